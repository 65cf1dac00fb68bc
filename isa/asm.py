"""A program as text: what `knapper dis` prints and `knapper asm` reads. Assembling a disassembly gives the same image bytes.

    .version 1.2
    .digest #52b9…                      // of the text: an image made of a changed one says so
    .target volta-8tc #1f0c…            // the whole description is in the blob of that hash; without one: by name
    .arena 4096
    .rodata 512                         // bytes; what no object covers is zero
    .object conv.weight 0x10000000 512 #9ab3…
    .input x f32[1, 3, 8, 8] 0x10000200
    .state past present                 // an input and an output that are one place, which keeps what it has from run to run

    .kernel conv_0
    .block 128 1 1
    .registers 40                       // without it: as many as the code names
    .role 0                             // /layer1/Conv: the node that what follows works for
        S2R.TID_X R0
    L1:
        IADD.S32 R0, R0, 0x1
        @P0 BRA L1
        EXIT

    .launch conv_0 7 7 1                // grid
    .params 0x10000000 0x10000200
    .node /layer1/Conv
    .host 4096 512 1                    // the host computes it: bytes to it and back, whether it must be asked

Bulk data stay out of the text: a file beside it, `<hash>.blob`, has them, each under the hash of its content. Comments start
with `//`.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from lark import Token

from . import files, verify
from .core import Instr
from .errors import IsaError, KnapperError, raise_all
from .lines import Lines, parse_line
from .listing import VERSION, bundle, digest, disassemble, sha256
from .machine import Machine
from .operands import Reg, integer
from .program import BASE, Kernel, Launch, Object, Offload, Operand, Port, Program

__all__ = ["assemble", "disassemble", "load", "save"]

MOST_ZEROS = 1 << 30
"""Bytes of rodata that no data cover, at most: a slip of the pen shall not take all memory."""


@dataclass
class _Kernel:
    """A kernel under construction."""

    name: str
    line: int
    block: tuple[int, int, int] | None = None
    registers: int | None = None
    shared: int = 0
    local: int = 0
    accumulators: int = 0
    modes: tuple[str, str] = ("simd", "simd")
    matrix: bool = False
    role: int = 0
    roles: list[int] = field(default_factory=list)
    code: list[tuple[int, str]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


@dataclass
class _Launch:
    """A launch under construction."""

    kernel: str
    grid: tuple[int, int, int]
    params: tuple[int, ...] = ()
    nodes: list[str] = field(default_factory=list)
    operands: list[Operand] = field(default_factory=list)
    macs: int = 0
    note: str = ""
    host: Offload | None = None


def assemble(
    text: str, blobs: Mapping[str, bytes] | None = None, where: str = "program.s"
) -> Program:
    """The program of a text; every problem of it at once, as file:line:column.

    Its `meta` has "edited" if the text says another thing than when it was printed.
    """
    reader = _Reader(blobs or {}, where)
    for number, line in enumerate(text.split("\n"), 1):
        reader.line(number, line)
    program = reader.finish()
    if reader.digest in ("", digest(text)):
        return program
    return replace(program, meta={**program.meta, "edited": "asm"})


class _Reader:
    """Takes a file line by line. `on_…` methods take a directive's values; problems are collected, not raised."""

    def __init__(self, blobs: Mapping[str, bytes], where: str) -> None:
        self.blobs, self.where, self.lines = blobs, where, Lines()
        self.problems: list[KnapperError] = []
        self.number, self.text = 0, ""
        self.newer = False
        self.target: tuple[int, str, str | None] | None = None
        self.meta: dict[str, str] = {}
        self.digest = ""
        self.arena_bytes = self.rodata_bytes = 0
        self.pieces: list[tuple[int, int, int, str]] = []
        self.objects: list[Object] = []
        self.ports: dict[str, list[Port]] = {".input": [], ".output": []}
        self.state: list[tuple[str, str]] = []
        self.kernels: list[_Kernel] = []
        self.launches: list[_Launch] = []

    def line(self, number: int, text: str) -> None:
        """Read one line."""
        self.number, self.text = number, text
        start = text.lstrip()
        if not start or start.startswith("//"):
            return
        try:
            if start[0] == ".":
                self.directive(text)
            else:
                self.code_line(text)
        except IsaError as e:
            self.problem(e, number, text)

    def problem(self, e: IsaError, number: int, text: str = "") -> None:
        """Note a problem; `e.where` is its column, or nothing."""
        place = f"{self.where}:{number}" + (f":{e.where}" if e.where else "")
        shown = f" in `{text.strip()}`" if text.strip() else ""
        self.problems.append(IsaError(e.code, e.message + shown, where=place, hint=e.hint))

    def directive(self, text: str) -> None:
        tree = parse_line(text)
        values = [_value(t) for t in tree.children if isinstance(t, Token)]
        getattr(self, f"on_{tree.data}")(*values)

    def code_line(self, text: str) -> None:
        """A label or an instruction; instructions wait until the kernel's labels are known."""
        kernel, code = self.kernel(), text.partition("//")[0].rstrip()
        name, colon, _ = code.partition(":")
        if not colon:
            kernel.code.append((self.number, code))
            kernel.roles.append(kernel.role)
            return
        parse_line(text)
        if (name := name.strip()) in kernel.labels:
            raise IsaError("E532", f"label {name} is defined twice in this kernel")
        kernel.labels[name] = len(kernel.code)

    def kernel(self) -> _Kernel:
        if not self.kernels or self.launches:
            raise IsaError("E533", "expected after a .kernel and before the first .launch")
        return self.kernels[-1]

    def launch(self) -> _Launch:
        if not self.launches:
            raise IsaError("E533", "expected after a .launch")
        return self.launches[-1]

    # the file as a whole

    def on_version(self, major: int, minor: int) -> None:
        if major != VERSION[0]:
            raise IsaError(
                "E533", f"text format {major}.{minor}, this knapper reads {VERSION[0]}.x"
            )
        self.newer = minor > VERSION[1]

    def on_target(self, name: str, blob: str | None = None) -> None:
        self.target = (self.number, name, blob)

    def on_meta(self, key: str, value: str) -> None:
        self.meta[key] = value

    def on_blobs(self, name: str) -> None:
        """For whoever finds the file; the blobs are here already."""

    def on_digest(self, value: str) -> None:
        self.digest = value

    def on_arena(self, size: int) -> None:
        self.arena_bytes = size

    def on_rodata(self, size: int) -> None:
        if size > verify.MEMORY:
            raise IsaError("E533", f".rodata: expected up to {verify.MEMORY} bytes")
        self.rodata_bytes = size

    def on_data(self, address: int, size: int, blob: str) -> None:
        self.pieces.append((self.number, address, size, blob))

    def on_object(self, name: str, address: int, size: int, blob: str) -> None:
        self.on_data(address, size, blob)
        self.objects.append(Object(name, address, size))

    def on_port(self, kind: str, name: str, dtype: str, *numbers: int) -> None:
        self.ports[kind].append(Port(name, dtype, numbers[:-1], numbers[-1]))

    def on_state(self, past: str, present: str) -> None:
        self.state.append((past, present))

    # kernels

    def on_kernel(self, name: str) -> None:
        if self.launches:
            raise IsaError("E533", "expected before the first .launch")
        if any(k.name == name for k in self.kernels):
            raise IsaError("E533", f"there is a kernel {name} already")
        self.kernels.append(_Kernel(name, self.number))

    def on_block(self, x: int, y: int, z: int) -> None:
        self.kernel().block = (x, y, z)

    def on_registers(self, count: int) -> None:
        self.kernel().registers = count

    def on_shared(self, size: int) -> None:
        self.kernel().shared = size

    def on_local(self, size: int) -> None:
        self.kernel().local = size

    def on_accumulators(self, words: int) -> None:
        self.kernel().accumulators = words

    def on_modes(self, entry: str, leave: str) -> None:
        self.kernel().modes = (entry, leave)

    def on_matrix(self) -> None:
        self.kernel().matrix = True

    def on_role(self, role: int) -> None:
        self.kernel().role = role

    # launches

    def on_launch(self, kernel: str, x: int, y: int, z: int) -> None:
        self.launches.append(_Launch(kernel, (x, y, z)))

    def on_params(self, *params: int) -> None:
        self.launch().params += params

    def on_node(self, name: str) -> None:
        self.launch().nodes.append(name)

    def on_operand(self, use: str, value: str, address: int, size: int) -> None:
        self.launch().operands.append(Operand(value, address, size, use))

    def on_macs(self, count: int) -> None:
        self.launch().macs = count

    def on_host(self, sent: int, received: int, asked: int) -> None:
        self.launch().host = Offload(sent, received, bool(asked))

    def on_note(self, text: str) -> None:
        self.launch().note = text

    # the end

    def finish(self) -> Program:
        """The whole program; raises all that was wrong."""
        rodata = self._rodata()
        machine = self._machine()
        kernels = [self._kernel(k, machine) for k in self.kernels]
        raise_all(self.problems)
        assert machine is not None
        program = Program(
            target=machine.to_dict(),
            kernels={k.name: k for k in kernels},
            launches=tuple(_launch(x) for x in self.launches),
            inputs=tuple(self.ports[".input"]),
            outputs=tuple(self.ports[".output"]),
            rodata=rodata,
            objects=tuple(self.objects),
            arena_bytes=self.arena_bytes,
            meta=self.meta,
            state=tuple(self.state),
        )
        raise_all(verify.problems(program, self.where))
        return program

    def _blob(self, name: str) -> bytes:
        data = self.blobs.get(name)
        if data is None:
            raise IsaError(
                "E534",
                f"there is no data #{name}",
                hint="the .blob file belongs beside the .s file",
            )
        if sha256(data) != name:
            raise IsaError("E534", f"the data of #{name} have another hash")
        return data

    def _rodata(self) -> bytes:
        if self.rodata_bytes > MOST_ZEROS + sum(size for _, _, size, _ in self.pieces):
            reason = f".rodata is {self.rodata_bytes} bytes, far more than the data in it"
            self.problem(IsaError("E533", reason), 1)
            return b""
        out = bytearray(self.rodata_bytes)
        for number, address, size, name in self.pieces:
            try:
                out[address - BASE : address - BASE + size] = self._piece(address, size, name)
            except IsaError as e:
                self.problem(e, number)
        return bytes(out)

    def _piece(self, address: int, size: int, name: str) -> bytes:
        data = self._blob(name)
        if len(data) != size:
            raise IsaError("E534", f"the data of #{name} are {len(data)} bytes, expected {size}")
        if not BASE <= address <= address + size <= BASE + self.rodata_bytes:
            raise IsaError(
                "E533",
                f"{size} bytes at {address:#x} are not inside the {self.rodata_bytes} bytes of .rodata",
            )
        return data

    def _machine(self) -> Machine | None:
        if self.target is None:
            self.problem(IsaError("E533", ".target is missing"), 1)
            return None
        number, name, blob = self.target
        try:
            return (
                Machine.load(name)
                if blob is None
                else Machine.from_stored(_json(self._blob(blob)), f"target {name}", self.newer)
            )
        except IsaError as e:
            self.problem(e, number)
        except KnapperError as e:
            self.problems.append(e)
        return None

    def _kernel(self, k: _Kernel, machine: Machine | None) -> Kernel:
        code: list[tuple[int, str, Instr]] = []
        for number, text in k.code:
            try:
                code.append((number, text, self.lines.read(text, k.labels)))
            except IsaError as e:
                self.problem(e, number, text)
        if (k.block is None or not k.code) and not self.problems:
            self.problem(
                IsaError(
                    "E533", f".kernel {k.name} has no {'.block' if k.code else 'instructions'}"
                ),
                k.line,
            )
        kernel = Kernel(
            name=k.name,
            words=self._encode(code),
            roles=tuple(k.roles),
            block=k.block or (1, 1, 1),
            registers=k.registers if k.registers is not None else _registers(i for _, _, i in code),
            shared_bytes=k.shared,
            local_bytes=k.local,
            accumulators=k.accumulators,
            mode_entry=k.modes[0],
            mode_exit=k.modes[1],
            matrix=k.matrix,
        )
        if machine is not None:
            self._check(kernel, code, len(k.code), machine)
        return kernel

    def _encode(self, code: list[tuple[int, str, Instr]]) -> bytes:
        words = []
        for number, text, instr in code:
            try:
                words.append(_word(instr))
            except IsaError as e:
                self.problem(e, number, text)
        return b"".join(words)

    def _check(
        self, kernel: Kernel, code: list[tuple[int, str, Instr]], length: int, machine: Machine
    ) -> None:
        good: set[Instr] = set()
        for number, text, instr in code:
            if instr in good:
                continue
            found = list(verify.instruction_problems(instr, kernel, machine, length))
            for reason in found:
                self.problem(IsaError("E522", reason), number, text)
            if not found:
                good.add(instr)


@lru_cache(1 << 16)
def _word(instr: Instr) -> bytes:
    return instr.encode().to_bytes(16, "little")


def _registers(code: Iterable[Instr]) -> int:
    """How many registers code names."""
    return max(
        (a.first + a.words for i in code for a in i.accesses() if isinstance(a.first, Reg)),
        default=0,
    )


def _launch(x: _Launch) -> Launch:
    nodes, operands = tuple(x.nodes), tuple(x.operands)
    return Launch(x.kernel, x.grid, x.params, nodes, operands, x.macs, x.note, x.host)


def _value(token: Token) -> Any:
    """What a terminal stands for."""
    if token.type == "NUMBER":
        if len(token) > 40:
            raise IsaError("E530", "a number of more than 40 digits", where=str(token.column))
        return integer(token)
    if token.type == "STRING":
        return _string(token)
    return token[1:] if token.type == "HASH" else str(token)


def _string(token: Token) -> str:
    try:
        return str(json.loads(token))
    except ValueError:
        raise IsaError(
            "E530", "expected a quoted text as in JSON", where=str(token.column)
        ) from None


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise IsaError("E534", "the target's data are not JSON") from None


# --- files ---------------------------------------------------------------------------------------------------------------

MAGIC = b"KNAPBLOB"
ENTRY = struct.Struct("<32sQ")
BLOBS = re.compile(r"^\s*\.blobs\s+#([0-9a-f]{64})", re.MULTILINE)


def save(program: Program, path: str | Path) -> Path:
    """Write the text to `path` and the bulk data beside it; gives the path of the latter."""
    path = Path(path)
    text, blobs = disassemble(program)
    entries = b"".join(ENTRY.pack(bytes.fromhex(name), len(data)) for name, data in blobs.items())
    head = MAGIC + len(blobs).to_bytes(8, "little") + entries
    beside = path.parent / f"{bundle(blobs)}.blob"
    files.write(beside, lambda f: f.writelines([head, *blobs.values()]))
    files.write(path, text.encode())
    return beside


def load(path: str | Path) -> Program:
    """Assemble a file; its bulk data are looked for beside it."""
    path = Path(path)
    try:
        text = files.read(path).decode()
    except UnicodeDecodeError as e:
        raise IsaError(
            "E530", f"not UTF-8 text: {e.reason} at byte {e.start}", where=str(path)
        ) from None
    named = BLOBS.search(text)
    return assemble(text, read_blobs(path.parent / f"{named[1]}.blob") if named else {}, str(path))


def read_blobs(path: Path) -> dict[str, bytes]:
    """The bulk data of a `.blob` file, by hash; IsaError E534 if it is not there, or another kind of file."""
    try:
        data = path.read_bytes()
    except OSError as e:
        hint = "it has the weights and the machine: it belongs beside the .s file"
        reason = f"cannot read the bulk data: {e.strerror}"
        raise IsaError("E534", reason, where=str(path), hint=hint) from None
    count = int.from_bytes(data[8:16], "little")
    at = 16 + count * ENTRY.size
    if data[:8] != MAGIC or at > len(data):
        raise IsaError("E534", "not a file of bulk data", where=str(path))
    blobs = {}
    for name, size in ENTRY.iter_unpack(data[16:at]):
        blobs[name.hex()] = data[at : at + size]
        at += size
    return blobs
