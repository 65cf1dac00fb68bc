"""KernelBuilder: instructions on virtual registers in, an encoded `Kernel` out.

    emit … emit ─► blocks ─► liveness ─► list scheduling ─► linear scan ─► words

Both code generators (matrix kernels, SIMD kernels from TVM) and every plugin write their code through it.

    b = KernelBuilder("scale", (128, 1, 1), machine)
    x, y, base = b.reg(), b.reg(), b.ureg(2)
    b.emit(ULDC, Bits32._64, base, 0)
    …
    kernel = b.finish()
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

from knapper.isa.core import SIMD, Instr
from knapper.isa.errors import CompileError
from knapper.isa.machine import Machine
from knapper.isa.operands import Guard, Label, Src
from knapper.isa.program import Kernel
from knapper.isa.systolic import WORD

from . import liveness, regalloc, schedule
from .virtual import (
    PREDICATE,
    PT,
    RZ,
    UNIFORM,
    URZ,
    VECTOR,
    Record,
    Shape,
    Virtual,
    VLabel,
    VPred,
    VReg,
    VUReg,
    check,
    registers_of,
    shape,
    signature,
)

__all__ = ["PT", "RZ", "URZ", "KernelBuilder", "Not", "VLabel", "VPred", "VReg", "VUReg"]


def Not(p: VPred) -> VPred:
    """The negated guard, like `~p`."""
    return ~p


class KernelBuilder:
    """Collects the instructions of one kernel. `matrix` marks a kernel whose multiply-accumulates are counted; `modes` are those of the
    SM in which it starts and ends; `accumulators` words of accumulator memory are a block's (0: all)."""

    def __init__(
        self,
        name: str,
        block: tuple[int, int, int],
        machine: Machine,
        matrix: bool = False,
        modes: tuple[str, str] = (SIMD, SIMD),
        accumulators: int = 0,
    ) -> None:
        self.name, self.block, self.machine, self.matrix = name, block, machine, matrix
        self.modes, self.accumulators = modes, accumulators
        self.records: list[Record] = []
        self.groups = regalloc.Groups()
        self.labels: list[VLabel] = []
        self.shared_bytes = self.local_bytes = 0
        self._role = 0
        self._guard: VPred | Guard = PT
        self._shapes: dict[tuple[Any, ...], Shape] = {}
        self._latencies = {unit: row.latency for unit, row in machine.units.items()}
        self._latencies["lsu_global"] = (
            machine.l2_latency
        )  # what a load takes that L1 does not hold

    # --- resources

    def reg(self, words: int = 1) -> VReg:
        """`words` consecutive vector registers, aligned to 1, 2 or 4."""
        return VReg(self.groups.add(VECTOR, words), words, VECTOR)

    def ureg(self, words: int = 1) -> VUReg:
        """`words` consecutive uniform registers."""
        return VUReg(self.groups.add(UNIFORM, words), words, UNIFORM)

    def pred(self) -> VPred:
        """A predicate."""
        return VPred(self.groups.add(PREDICATE, 1), 1, PREDICATE)

    def label(self) -> VLabel:
        """A branch target, to be placed once."""
        self.labels.append(VLabel())
        return self.labels[-1]

    def place(self, label: VLabel) -> None:
        """The label stands before the next instruction."""
        if label.at >= 0:
            raise CompileError("E431", "a label is placed twice", where=self.name)
        label.at = len(self.records)

    def role(self, i: int) -> None:
        """The following instructions work for node `i` of the launch."""
        self._role = i

    def shared(self, nbytes: int, align: int = 16) -> int:
        """Reserve static shared memory; gives its byte offset."""
        offset = -(-self.shared_bytes // align) * align
        self.shared_bytes = offset + nbytes
        return offset

    def local(self, nbytes: int) -> int:
        """Reserve local memory for each thread; gives its byte offset (aligned to 16)."""
        offset = -(-self.local_bytes // 16) * 16
        self.local_bytes = offset + nbytes
        return offset

    # --- instructions

    @contextmanager
    def under(self, guard: VPred | Guard) -> Iterator[None]:
        """Everything emitted inside takes this guard, unless told otherwise."""
        outer, self._guard = self._guard, guard
        yield
        self._guard = outer

    def emit(self, cls: type[Instr], *operands: Any, guard: Any = None, **more: Any) -> None:
        """Append an instruction: fields in declaration order, numbers where an immediate is meant.

        Raises CompileError E430 for an operand that does not fit its field.
        """
        fields, positions, defaults = signature(cls)
        if len(operands) < len(fields):
            operands += tuple(
                more[n] if n in more else defaults[n] for n, _, _ in fields[len(operands) :]
            )
        modifiers = tuple([operands[i] for i in positions])
        key = (cls, modifiers)
        s = self._shapes.get(key) or self._shapes.setdefault(
            key, shape(cls, modifiers, self._latencies, self.name)
        )
        where = self.name
        values = (
            [v for i, v in enumerate(operands) if i not in positions] if positions else operands
        )
        checked = tuple([check(slot, v, where) for slot, v in zip(s.slots, values, strict=True)])
        self.records.append(self._record(s, checked, self._guard if guard is None else guard))

    def _record(self, s: Shape, operands: tuple[Any, ...], guard: Any) -> Record:
        r = Record(s, operands, guard, self._role)
        for slot, v in zip(s.slots, operands, strict=True):
            if isinstance(v, Virtual):
                if "r" in slot.use:
                    r.reads += registers_of(slot, v)
                if "w" in slot.use:
                    r.writes += registers_of(slot, v)
            elif isinstance(v, VLabel):
                r.target = v
        if isinstance(guard, Virtual):
            r.reads.append(guard.base)
        return r

    # --- the way down

    def finish(self) -> Kernel:
        """Allocate, schedule, encode. CompileError E432 if registers do not suffice, E433 if warps or shared memory do not, E431 for a
        label nobody placed."""
        if any(label.at < 0 for label in self.labels):
            raise CompileError("E431", "a label was never placed", where=self.name)
        self._fits()
        blocks = liveness.blocks(self.records, self.labels)
        live = liveness.live(self.records, blocks)
        limits = (self.registers, 63, 7)
        try:
            order = schedule.schedule(self.records, blocks, live, self.groups, limits)
            places = regalloc.allocate(
                self.records, order, blocks, live, self.groups, limits, self.name
            )
        except CompileError:  # the schedule lengthened too many lives: the source order is the one that was written to fit
            order = list(range(len(self.records)))
            places = regalloc.allocate(
                self.records, order, blocks, live, self.groups, limits, self.name
            )
        return self._encode(order, places)

    def _fits(self) -> None:
        """CompileError E433 if the machine cannot hold a block."""
        m = self.machine
        for what, needs, most in (
            ("warps", self.warps, m.warps_per_sm),
            ("bytes of shared memory", self.shared_bytes, m.shared_bytes_per_block),
            ("words of accumulator memory", self.accumulators, m.accumulator_bytes // WORD),
        ):
            if needs > most:
                problem = f"a block has {needs} {what}, on {m.name} at most {most}"
                raise CompileError("E433", problem, where=f"kernel {self.name}")

    @property
    def warps(self) -> int:
        """Of a block."""
        return -(-prod(self.block) // 32)

    @property
    def registers(self) -> int:
        """Vector registers that a thread may use."""
        m = self.machine
        return min(m.registers_per_thread, m.registers_per_sm // (32 * self.warps))

    def _encode(self, order: list[int], places: regalloc.Places) -> Kernel:
        kept = [i for i in order if not idle(self.records[i], places.at)]
        moved = self._new_indices(order, kept) if len(kept) < len(order) else None
        words = [encode(self.records[i], places.at, moved).to_bytes(16, "little") for i in kept]
        return Kernel(
            self.name, b"".join(words), tuple(self.records[i].role for i in kept), self.block, max(places.used[VECTOR], 1),
            self.shared_bytes, self.local_bytes, *self.modes, matrix=self.matrix, accumulators=self.accumulators,
        )  # fmt: skip

    def _new_indices(self, order: list[int], kept: list[int]) -> list[int]:
        """Index before idle moves were dropped → index after; a label's instruction may be gone, then it is the next one."""
        stays, moved = set(kept), [0]
        for i in order:
            moved.append(moved[-1] + (i in stays))
        return moved


def idle(r: Record, at: list[int]) -> bool:
    """Whether a move's source and destination came to be one register."""
    return (
        r.name in regalloc.MOVES
        and [at[w] for w in r.reads[:1]] == [at[w] for w in r.writes]
        and _same_file(r)
    )


def _same_file(r: Record) -> bool:
    source = r.operands[1]
    return isinstance(source, Virtual) and source.file == (VECTOR if r.name == "MOV" else UNIFORM)


def encode(r: Record, at: list[int], moved: list[int] | None = None) -> int:
    """The 128-bit word; `at` maps virtual words to physical registers, `moved` the places of labels."""
    s = r.shape
    guard = r.guard
    word = (
        s.bits
        | ((at[guard.base] + 8 * guard.negated) if isinstance(guard, Virtual) else int(guard)) << 10
    )
    for slot, v in zip(s.slots, r.operands, strict=True):
        if isinstance(v, Virtual):
            raw = at[v.base]
            if slot.kind is Src:
                raw |= (Src.UREG if v.file == UNIFORM else Src.REG) << 32
            elif v.negated:
                raw += 8
        elif slot.kind is Label:
            raw = v.at if moved is None else moved[v.at]
        else:
            raw = v
        word |= raw << slot.lo
    return word
