"""What a program must satisfy, whoever made it: a compiler, an assembler, or a stranger's file.

`problems` looks at everything but the instructions, in time that does not grow with the code: image reader and writer call it.
`code_problems` decodes a kernel: assembler and engines call it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise
from math import prod

from .core import MODES as MODES
from .core import SIMD, Instr
from .errors import IsaError, KnapperError, raise_all
from .instructions import BRA, EXIT, MODE
from .machine import Machine
from .operands import Label, Reg
from .parameters import HOST
from .program import BASE, Kernel, Launch, Object, Offload, Port, Program
from .rows import companion
from .systolic import WORD, Array

THREADS = 1024
"""A block's threads, at most."""
GRID = (2**31 - 1, 65535, 65535)
PARAMS = 1 << 12
"""Parameter words of a launch, at most."""
MEMORY = 1 << 40
"""Bytes of device memory, at most."""
RANK = 64

DTYPES = {
    **dict.fromkeys(("i8", "u8", "bool"), 1),
    **dict.fromkeys(("f16", "bf16", "i16", "u16"), 2),
    **dict.fromkeys(("f32", "i32", "u32"), 4),
    **dict.fromkeys(("f64", "i64", "u64"), 8),
}
"""Bytes of an element of a port."""


def verify(program: Program, where: str = "") -> None:
    """Raise every problem of a program, its instructions included."""
    found: list[KnapperError] = list(problems(program, where))
    if not found:
        machine = Machine.from_dict(program.target)
        found += (p for k in program.kernels.values() for p in code_problems(k, machine, where))
    raise_all(found)


def problems(program: Program, where: str = "") -> Iterator[KnapperError]:
    """What is wrong with target, kernels' resources, launches, ports and objects."""
    try:
        machine = Machine.from_dict(program.target, where)
    except KnapperError as e:
        yield e
        return
    for text in _program(program, machine):
        yield IsaError("E522", text, where=where)


def _program(p: Program, machine: Machine) -> Iterator[str]:
    if not 0 <= p.arena_bytes <= MEMORY:
        yield f"arena: {p.arena_bytes} bytes, expected 0 to {MEMORY}"
    for name, kernel in p.kernels.items():
        yield from (f"kernel {name}: {text}" for text in _kernel(name, kernel, machine))
    nodes = {name: 1 + max(k.roles, default=0) for name, k in p.kernels.items()}
    mode = SIMD
    for i, launch in enumerate(p.launches):
        found = [*_launch(p, launch, nodes, machine), *_modes_of_launch(p, launch, machine, mode)]
        yield from (f"launch {i} of {launch.kernel}: {text}" for text in found)
        mode = p.kernels[launch.kernel].mode_exit if launch.kernel in p.kernels else mode
    for o in p.objects:
        yield from _object(p, o)
    yield from _twice("object", (o.name for o in p.objects))
    for kind, ports, start in (("input", p.inputs, p.arena_address), ("output", p.outputs, BASE)):
        yield from (
            f"{kind} {port.name}: {text}" for port in ports for text in _port(p, port, start)
        )
        yield from _twice(kind, (port.name for port in ports))
    yield from _companions({port.name: port for port in p.outputs})
    yield from _states(p)


def _kernel(name: str, k: Kernel, machine: Machine) -> Iterator[str]:
    if name != k.name or not name:
        yield f"is listed under the name {name!r}"
    if not k.words or len(k.words) % 16:
        yield f"{len(k.words)} bytes of code, expected a positive multiple of 16"
    if min(k.roles, default=0) < 0:
        yield f"role {min(k.roles)}"
    if len(k.roles) * 16 != len(k.words):
        yield f"{len(k.roles)} roles for {len(k.words) // 16} instructions"
    if min(k.block) < 1 or prod(k.block) > THREADS:
        yield f"a block of {k.block} threads, expected 1 to {THREADS}"
    elif 32 * k.registers * k.warps > machine.registers_per_sm:
        yield f"{k.warps} warps of {k.registers} registers exceed the SM's {machine.registers_per_sm}"
    for what, n, most in (
        ("registers", k.registers, machine.registers_per_thread),
        ("bytes of shared memory", k.shared_bytes, machine.shared_bytes_per_block),
        ("bytes of local memory", k.local_bytes, 1 << 24),
        ("words of accumulator memory", k.accumulators, machine.accumulator_bytes // WORD),
    ):
        if not 0 <= n <= most:
            yield f"{n} {what}, expected 0 to {most}"
    modes = MODES if "systolic" in machine.extensions else (SIMD,)
    if not {k.mode_entry, k.mode_exit} <= {*modes}:
        yield f"modes {k.mode_entry!r} and {k.mode_exit!r}, expected {', '.join(modes)}"


def _modes_of_launch(p: Program, launch: Launch, machine: Machine, mode: str) -> Iterator[str]:
    """The SMs are in `mode` before. A block finds the mode that the one before it on its SM left."""
    if (kernel := p.kernels.get(launch.kernel)) is None:
        return
    if kernel.mode_entry != mode:
        yield f"it starts in mode {kernel.mode_entry}, but finds {mode}"
    if kernel.mode_exit != kernel.mode_entry and prod(launch.grid) > machine.sms:
        yield (
            f"{prod(launch.grid)} blocks on {machine.sms} SMs: a block starts in the mode in which another ends, "
            f"but the kernel starts in {kernel.mode_entry} and ends in {kernel.mode_exit}"
        )


def _launch(
    p: Program, launch: Launch, nodes: Mapping[str, int], machine: Machine
) -> Iterator[str]:
    """`nodes`: how many a launch of each kernel needs."""
    if launch.kernel not in nodes:
        yield f"there is no kernel {launch.kernel!r}"
    elif nodes[launch.kernel] > max(len(launch.nodes), 1):
        yield f"its kernel works for node {nodes[launch.kernel] - 1}, but the launch has {len(launch.nodes)}"
    if not all(1 <= g <= most for g, most in zip(launch.grid, GRID, strict=True)):
        yield f"a grid of {launch.grid} blocks, expected 1 to {GRID}"
    if len(launch.params) > PARAMS or not all(0 <= x < 1 << 64 for x in launch.params):
        yield f"parameters: expected up to {PARAMS} unsigned 64-bit words"
    if launch.macs < 0:
        yield f"{launch.macs} multiply-accumulates"
    yield from _offload(launch.host, machine)
    for o in launch.operands:
        if o.use not in ("r", "w", "rw"):
            yield f"operand {o.value}: use {o.use!r}, expected r, w or rw"
        yield from _range(
            p, f"operand {o.value}", o.address, o.bytes, BASE if o.use == "r" else p.arena_address
        )


def _offload(host: Offload | None, machine: Machine) -> Iterator[str]:
    if host is None:
        return
    if machine.nonmatrix != HOST:
        yield f"the host computes it, but {machine.name} has none"
    if not (0 <= host.sent <= MEMORY and 0 <= host.received <= MEMORY):
        yield f"{host.sent} bytes to the host and {host.received} back, expected 0 to {MEMORY}"


def _object(p: Program, o: Object) -> Iterator[str]:
    if o.bytes < 0 or not BASE <= o.address <= o.address + o.bytes <= BASE + len(p.rodata):
        yield f"object {o.name}: {o.bytes} bytes at {o.address:#x} are not inside the {len(p.rodata)} bytes of rodata"


def _companions(outputs: Mapping[str, Port]) -> Iterator[str]:
    """What says how many rows of an output are meant must be one number."""
    for name, port in outputs.items():
        for axis in range(max(len(port.shape), 1)):
            rows = outputs.get(companion(name, axis))
            if rows is not None and (not port.shape or (rows.dtype, rows.shape) != ("i64", ())):
                yield f"output {rows.name}: is {rows.dtype}{list(rows.shape)}, expected one i64 that counts rows"


def _states(p: Program) -> Iterator[str]:
    """Each is one place, seen as an input and as an output; no two share a byte."""
    inputs, outputs = ({port.name: port for port in ports} for ports in (p.inputs, p.outputs))
    yield from _twice("state", (name for pair in p.state for name in pair))
    places: list[tuple[int, int, str]] = []
    for past, present in p.state:
        a, b = inputs.get(past), outputs.get(present)
        if a is None or b is None:
            yield f"state {past}: there is no {f'input {past!r}' if a is None else f'output {present!r}'}"
        elif replace(b, name=past) != a:
            yield f"state {past}: output {present} is another place, or of another type"
        elif a.dtype in DTYPES:
            places.append((a.address, a.address + a.count * DTYPES[a.dtype], past))
    for (_, end, one), (start, _, other) in pairwise(sorted(places)):
        if start < end:
            yield f"state {other}: it overlaps state {one}"


def _port(p: Program, port: Port, start: int) -> Iterator[str]:
    if port.dtype not in DTYPES:
        yield f"dtype {port.dtype!r}, expected one of {', '.join(DTYPES)}"
    elif len(port.shape) > RANK or not all(0 <= d <= MEMORY for d in port.shape):
        yield f"a shape of {len(port.shape)} sizes, expected up to {RANK}, none negative"
    else:
        yield from _range(p, "its data", port.address, port.count * DTYPES[port.dtype], start)


def _range(p: Program, what: str, address: int, size: int, start: int) -> Iterator[str]:
    end = p.arena_address + p.arena_bytes
    if size < 0 or not start <= address <= address + size <= end:
        yield f"{what}: {size} bytes at {address:#x} are not inside [{start:#x}, {end:#x})"


def _twice(what: str, names: Iterable[str]) -> Iterator[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            yield f"{what} {name}: there are two of that name"
        seen.add(name)


# --- the instructions of a kernel -----------------------------------------------------------------------------------------


def code_problems(kernel: Kernel, machine: Machine, where: str = "") -> Iterator[KnapperError]:
    """What is wrong with a kernel's instructions: none at all, not on this machine, beyond its registers, jumping out of it."""
    try:
        code = kernel.code
    except IsaError as e:
        yield IsaError(e.code, e.message, where=f"{where}: {e.where}" if where else e.where)
        return
    told = list(mode_problems(kernel, _array(machine).separate))
    for i, instr in enumerate(code):
        told += ((i, text) for text in instruction_problems(instr, kernel, machine, len(code)))
    for i, text in sorted(told):
        yield IsaError(
            "E522", f"kernel {kernel.name}: instruction {i}: {code[i]}: {text}", where=where
        )
    if not isinstance(code[-1], (EXIT, BRA)) or code[-1].guard != 7:
        yield IsaError(
            "E522", f"kernel {kernel.name}: it runs past its end: {code[-1]}", where=where
        )


def instruction_problems(i: Instr, kernel: Kernel, machine: Machine, length: int) -> Iterator[str]:
    """What is wrong with one instruction of a kernel of `length` instructions."""
    if not i.within(machine.extensions):
        yield f"{machine.name} has no extension {i.extension!r}"
    elif (more := i.needed()) and more not in machine.extensions:
        yield f"{machine.name} has no extension {more!r}"
    elif reason := _array(machine).refusal(i):
        yield reason
    for a in i.accesses():
        if isinstance(a.first, Reg) and a.first + a.words > kernel.registers:
            yield f"{a.field} reaches R{a.first + a.words - 1}, but the kernel has {kernel.registers} registers"
    for name, (kind, _) in i.layout.items():
        if kind is Label and getattr(i, name) >= length:
            yield f"{name} {getattr(i, name)} is outside the kernel's {length} instructions"


@lru_cache(16)
def _array(machine: Machine) -> Array:
    return Array.of(machine.to_dict())


# --- modes: which one an instruction runs in, whatever path leads to it ------------------------------------------------------


def modes(kernel: Kernel) -> list[frozenset[str]]:
    """The modes in which each instruction can be reached; none if it cannot be."""
    code, reached = kernel.code, [frozenset[str]() for _ in kernel.code]
    todo = [(0, kernel.mode_entry)]
    while todo:
        pc, mode = todo.pop()
        if pc < len(code) and mode not in reached[pc]:
            reached[pc] |= {mode}
            instr = code[pc]
            after = instr.mode.name.lower() if isinstance(instr, MODE) else mode
            todo += ((successor, after) for successor in _successors(instr, pc))
    return reached


def _successors(i: Instr, pc: int) -> Iterator[int]:
    """Where lanes can go on. Behind a BSYNC only lanes go on that came to it, so it needs no rule of its own."""
    if isinstance(i, BRA):
        yield int(i.target)
    if not isinstance(i, (BRA, EXIT)) or i.guard != 7:
        yield pc + 1


def mode_problems(kernel: Kernel, separate: bool = False) -> Iterator[tuple[int, str]]:
    """What is wrong with a kernel's modes: (instruction, why). Beside a `separate` array every instruction is legal in both."""
    for pc, (instr, reached) in enumerate(zip(kernel.code, modes(kernel), strict=True)):
        if len(reached) > 1:
            yield (
                pc,
                "it is reached in both modes: all paths to an instruction have one MODE in force",
            )
        elif not separate and (bad := reached - instr.modes):
            yield pc, f"{instr.mnemonic} is illegal in mode {min(bad)!r}"
        elif isinstance(instr, EXIT) and reached - {kernel.mode_exit}:
            yield (
                pc,
                f"it ends in mode {min(reached)!r}, but the kernel is to end in {kernel.mode_exit!r}",
            )
