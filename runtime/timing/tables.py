"""What each instruction costs, for whole programs at once: decoded records and a machine in, arrays in.

    Structure   what instructions read, write and need: of the program, whichever machine and launch
    Costs       what that takes on a machine: ports, latencies, register conflicts
      Fixed     of one kernel, whichever launch
    operations  of one launch: with the sectors and wavefronts that its accesses took on average

Instructions are taken variant by variant (some hundred in a network), never one by one.

A register bank delivers `register_bank_reads` registers as an instruction issues. For each time that more are wanted of one bank the
instruction starts a cycle later, and its sub-core issues the next one a cycle later. Operands of four registers and more
(fragments, 128-bit data) are streams that a unit reads as it works: its interval has room for that, and they are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa.core import SYSTOLIC, Instr
from knapper.isa.instructions import IM2COL_PUSH, MODE
from knapper.isa.lanes import LANES
from knapper.isa.machine import Machine
from knapper.isa.modifiers import EACH
from knapper.isa.operands import READ, Guard, Pred, Reg, Src, UReg
from knapper.isa.program import Kernel
from knapper.isa.verify import modes

from ..decode import ROW, Decoded, Variant
from . import outer
from .commands import ASYNCHRONOUS, streams, work
from .footprint import Footprint
from .state import (
    ARRAY,
    COMMIT,
    DMA,
    FREE,
    LOAD_WEIGHTS,
    OP,
    QUEUE,
    SPAN,
    STREAM,
    SWAP_WEIGHTS,
    TICK,
    TRANSFER,
    WAIT,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
UNIFORMS, PREDICATES, ACCUMULATORS = 63, 7, 2
"""Slots of a scoreboard behind those of registers."""
SECTORS = 4
"""Sectors of 32 bytes that a load/store unit's port takes an interval."""
SECTOR = 32
PENDING = 256
"""Commands that a warp may have pending (`knapper.isa.systolic.QUEUE`)."""
WAVEFRONT = 128
"""Bytes that a pass over shared memory moves."""
NARROW = 2
"""Registers of the widest operand that counts in bank conflicts."""


@dataclass(frozen=True)
class Field:
    """A register operand of a variant, as decoded records hold it."""

    slot: int
    """-1: the guard. Of accumulators which of their slots."""
    bank: str
    """R, U, P, or A: accumulators."""
    words: int
    read: bool
    """It is only read."""
    write: int
    """What becomes of it (`state.SPAN`)."""

    @staticmethod
    def all_of(v: Variant) -> list[Field]:
        """The register operands of a variant, the guard first."""
        writes = v.instr.mnemonic not in ASYNCHRONOUS
        out = []
        for name, (kind, b) in v.instr.layout.items():
            if b.use and (bank := bank_of(kind, getattr(v.instr, name))):
                words, write = words_of(v.instr, b.words), writes and "w" in b.use
                out.append(Field(v.slots.get(name, -1), bank, words, b.use == READ, int(write)))
        return out + [Field(n, "A", 1, False, does) for n, does in outer.accumulators(v.instr)]


def words_of(instr: Instr, words: Any) -> int:
    """How many registers an operand takes."""
    return int(words if isinstance(words, int) else words(instr))


def bank_of(kind: type[Any], value: Any) -> str:
    """Which registers an operand is in, or "" if in none that have a scoreboard."""
    if kind is Src:
        kind = type(value.value)
    banks = {Reg: "R", UReg: "U", Pred: "P", Guard: "P"}
    return banks.get(kind, "")


@dataclass(frozen=True)
class Structure:
    """What the instructions of all kernels read, write and need."""

    first: Ints
    """Scoreboard slot of each register operand; what is absent (RZ, PT) has no words. [n, operands]"""
    words: Ints
    write: Ints
    """What becomes of it (`state.SPAN`)."""
    guard: Ints
    """Slot of the guard, or -1. [n]"""
    reads: Ints
    """Distinct registers of narrow operands that are read, -1 where there are fewer. [n, reads]"""
    units: tuple[str, ...]
    """Names of units."""
    unit: Ints
    """Index into `units`. [n]"""
    instrs: tuple[Instr, ...]
    """A representative of each variant."""
    variant: Ints
    """Index into `instrs`. [n]"""
    stores: NDArray[np.bool_]
    """Instructions that write no register. [n]"""
    spans: Mapping[str, slice]
    """Where each kernel is."""
    conflicts: dict[tuple[int, int], Ints] = field(default_factory=dict)

    @staticmethod
    def of(decoded: Decoded, kernels: Mapping[str, Kernel]) -> Structure:
        """Of decoded kernels."""
        return _Structures(decoded, kernels).build()

    def extra(self, banks: int, reads: int) -> Ints:
        """Cycles that reading registers takes beyond the issue. [n]"""
        key = (banks, reads)
        if key not in self.conflicts:
            there = self.reads >= 0
            most = max_over_banks(self.reads % banks, there, banks)
            self.conflicts[key] = np.maximum(-(-most // reads) - 1, 0)
        return self.conflicts[key]


def max_over_banks(bank: Ints, there: NDArray[np.bool_], banks: int) -> Ints:
    """Of the registers that are there, how many lie in the bank that has most. [n]"""
    counts = np.zeros((len(bank), banks), np.int64)
    for column in range(bank.shape[1]):
        rows = np.flatnonzero(there[:, column])
        counts[rows, bank[rows, column]] += 1
    most: Ints = counts.max(axis=1, initial=0)
    return most


class _Structures:
    """Fills a Structure, variant by variant."""

    def __init__(self, decoded: Decoded, kernels: Mapping[str, Kernel]) -> None:
        self.decoded, self.kernels = decoded, kernels
        n = len(decoded.records)
        self.registers = np.zeros(n, np.int64)
        for name, span in decoded.spans.items():
            self.registers[span] = kernels[name].registers
        self.fields = [Field.all_of(v) for v in decoded.variants]
        columns = max(map(len, self.fields), default=1)
        self.first, self.words = (np.zeros((n, columns), np.int64) for _ in range(2))
        self.write = np.zeros((n, columns), np.int64)
        self.reads = np.full((n, NARROW * columns), -1)
        self.guard = np.full(n, -1)

    def build(self) -> Structure:
        order = np.argsort(self.decoded.variant, kind="stable")
        ends = np.cumsum(np.bincount(self.decoded.variant, minlength=len(self.fields)))
        for fields, members in zip(self.fields, np.split(order, ends[:-1]), strict=True):
            self.variant(fields, members)
        units = dict.fromkeys(v.instr.resource() for v in self.decoded.variants)
        index = {name: i for i, name in enumerate(units)}
        instrs = [v.instr for v in self.decoded.variants]
        unit = np.array([index[i.resource()] for i in instrs], np.int64)
        stores = np.array(
            [not any(f.write and f.bank != "A" for f in fields) for fields in self.fields], np.bool_
        )
        v = self.decoded.variant
        return Structure(
            self.first, self.words, self.write, self.guard, self.distinct(), tuple(units), unit[v], tuple(instrs), v, stores[v],
            self.decoded.spans,
        )  # fmt: skip

    def variant(self, fields: list[Field], members: NDArray[np.intp]) -> None:
        """All instructions of one variant."""
        records, registers = self.decoded.records[members], self.registers[members]
        for column, f in enumerate(fields):
            number = self.number(f, records)
            limit, base = {
                "R": (registers, 0 * registers),
                "U": (0 * registers + UNIFORMS, registers),
                "P": (0 * registers + PREDICATES, registers + UNIFORMS),
                "A": (0 * registers + ACCUMULATORS, registers + UNIFORMS + PREDICATES),
            }[f.bank]
            there = number < limit
            self.first[members, column] = base + number
            self.words[members, column] = np.where(there, f.words, 0)
            self.write[members, column] = f.write
            if f.bank == "P" and f.slot < 0:
                self.guard[members] = np.where(there, base + number, -1)
            if f.bank == "R" and f.read and f.words <= NARROW:
                for word in range(f.words):
                    self.reads[members, NARROW * column + word] = np.where(there, number + word, -1)

    @staticmethod
    def number(f: Field, records: NDArray[Any]) -> Ints:
        """Of the operand, in its bank, as each record has it."""
        if f.bank == "A":
            return np.full(len(records), f.slot, np.int64)
        slot = records["guard"] if f.slot < 0 else records["slot"][:, f.slot]
        number: Ints = slot.astype(np.int64) // (ROW if f.bank == "R" else 4)
        return number

    def distinct(self) -> Ints:
        """`reads` without repetitions, in as few columns as it takes."""
        reads = np.sort(self.reads, axis=1)[:, ::-1]
        reads[:, 1:][reads[:, 1:] == reads[:, :-1]] = -1
        return np.sort(reads, axis=1)[:, ::-1][
            :, : max(1, int((reads >= 0).sum(axis=1).max(initial=0)))
        ]


@dataclass(frozen=True)
class Fixed:
    """A kernel on a machine: what all its launches have in common."""

    ops: NDArray[Any]
    """`OP`s, as if no access took more than one turn."""
    spans: NDArray[Any]
    """`SPAN`s; `first` and `last` of an `OP` are places here."""
    loads: NDArray[np.bool_]
    """Which instructions read global memory."""
    stores: NDArray[np.bool_]
    """Which write it."""
    systolic: bool
    """Whether it uses systolic mode, or the array at all: what lies in it is one block's."""
    pushes: tuple[tuple[int, Instr], ...]
    """Passes whose rows the code does not say, by place."""
    queues: Mapping[str, int]
    """Sizes of what an SM keeps of its systolic commands."""
    peak: float
    """Operations a second of the unit that does most of its multiply-accumulates, 0 if none does any."""


@dataclass(frozen=True)
class Costs:
    """A program on a machine."""

    structure: Structure
    machine: Machine
    kernels: Mapping[str, Kernel]
    _fixed: dict[str, Fixed] = field(default_factory=dict)

    def of(self, kernel: str) -> Fixed:
        """What all launches of a kernel have in common."""
        if kernel not in self._fixed:
            self._fixed[kernel] = self._of(kernel)
        return self._fixed[kernel]

    def _of(self, kernel: str) -> Fixed:
        span = self.structure.spans[kernel]
        ops = self.ops[span].copy()
        spans, ops["first"], ops["last"] = self._spans(kernel)
        return Fixed(
            ops, spans, self.global_loads[span], self.global_stores[span], self._systolic(kernel) or self._commands(kernel),
            tuple(self._pushes(kernel)), self._queues(kernel), self._peak(kernel),
        )  # fmt: skip

    @cached_property
    def ports(self) -> dict[str, tuple[int, int]]:
        """Of each unit: its first port, and how far apart the sub-cores' ports are (0: all share it)."""
        out: dict[str, tuple[int, int]] = {}
        number = 1 + max(FREE, QUEUE + ARRAY, QUEUE + DMA)
        for name, unit in self.machine.units.items():
            if (owner := getattr(unit, "port", "") or name) != name:
                continue
            spread = int(unit.per == "subcore")
            out[owner] = (number, spread)
            number += self.machine.subcores if spread else 1
        return {
            name: out[getattr(unit, "port", "") or name]
            for name, unit in self.machine.units.items()
        }

    @cached_property
    def owners(self) -> dict[str, tuple[int, int]]:
        """Of each unit that has ports of its own: the first one, and how many there are; ascending, without gaps."""
        return {
            name: (first, self.machine.subcores if spread else 1)
            for name, (first, spread) in self.ports.items()
            if self.machine.units[name].port in ("", name)
        }

    @cached_property
    def port_count(self) -> int:
        """Ports in all."""
        return 1 + max(
            first + spread * (self.machine.subcores - 1) for first, spread in self.ports.values()
        )

    @cached_property
    def ops(self) -> NDArray[Any]:
        """`OP` of every instruction, with all that no launch changes."""
        s, machine = self.structure, self.machine
        ops = np.zeros(len(s.unit), OP)
        rows = [machine.units[name] for name in s.units]
        columns = {
            "port": [self.ports[name][0] for name in s.units],
            "spread": [self.ports[name][1] for name in s.units],
            "occupy": [TICK * unit.interval for unit in rows],
            "latency": [TICK * unit.latency for unit in rows],
            "memory": [int(name.startswith("lsu_")) for name in s.units],
        }
        for name, column in columns.items():
            ops[name] = np.array(column, np.int64)[s.unit]
        kinds = np.array([work(i, machine) for i in s.instrs], np.int64).reshape(-1, 2)
        ops["kind"], ops["work"] = kinds[s.variant].T
        ops["guard"] = s.guard
        for v, instr in enumerate(s.instrs):
            if turn := outer.turn(instr, machine):
                mine = s.variant == v
                ops["occupy"][mine], ops["latency"][mine], ops["skip"][mine] = turn
            if any(values := outer.reads(instr, machine)):
                mine = s.variant == v
                ops["reads"][mine], ops["a_pass"][mine] = values
                ops["other"][mine] = self.ports[outer.SHARED][0]
        ops["port"][ops["kind"] == COMMIT], ops["occupy"][ops["kind"] == COMMIT] = QUEUE, 0
        ops["spread"][ops["kind"] == COMMIT] = 0
        for name in s.spans:
            self._modes(ops, name)
        ops["extra"] = s.extra(machine.register_banks, machine.register_bank_reads)
        return ops

    def _modes(self, ops: NDArray[Any], name: str) -> None:
        """What the mode of the SM decides of a kernel: what MODE costs, and what the array leaves of shared memory."""
        if not self._systolic(name):
            return
        machine, kernel, part = self.machine, self.kernels[name], ops[self.structure.spans[name]]
        for pc, (instr, reached) in enumerate(zip(kernel.code, modes(kernel), strict=True)):
            if isinstance(instr, MODE) and reached != {instr.mode.name.lower()}:
                part["latency"][pc] += TICK * machine.mode_switch_cycles
            elif instr.unit == "lsu_shared" and reached == {SYSTOLIC} and self._free_banks:
                part["occupy"][pc] = part["occupy"][pc] * machine.shared_banks // self._free_banks

    @property
    def _free_banks(self) -> int:
        """Banks of shared memory that an array leaves; 0: it needs as many as there are, and so has memory of its own."""
        return max(0, self.machine.shared_banks - self.machine.systolic_banks)

    def _systolic(self, name: str) -> bool:
        kernel = self.kernels[name]
        if "systolic" not in self.machine.extensions:
            return False
        kinds = self.structure.variant[self.structure.spans[name]]
        return SYSTOLIC in (kernel.mode_entry, kernel.mode_exit) or bool(
            np.isin(kinds, self._modal).any()
        )

    def _queues(self, name: str) -> dict[str, int]:
        ops = self.ops[self.structure.spans[name]]
        return {
            "queue": max(1, self.machine.lsma_queue),
            "groups": 1 + int(ops["work"][ops["kind"] == WAIT].max(initial=0)),
            "commands": PENDING if self._commands(name) else 1,
            "shared_port": int(self.machine.vector_word > 0),
        }

    def _commands(self, name: str) -> bool:
        """Whether a kernel sends commands to engines."""
        kinds = self.ops["kind"][self.structure.spans[name]]
        return bool(np.isin(kinds, (LOAD_WEIGHTS, SWAP_WEIGHTS, STREAM, TRANSFER)).any())

    def _pushes(self, name: str) -> Iterator[tuple[int, Instr]]:
        s = self.structure
        variants = s.variant[s.spans[name]]
        for v, instr in enumerate(s.instrs):
            if isinstance(instr, IM2COL_PUSH):
                yield from ((int(pc), instr) for pc in np.flatnonzero(variants == v))

    def _peak(self, name: str) -> float:
        s, machine = self.structure, self.machine
        macs = self._macs[s.variant[s.spans[name]]]
        if not macs.any():
            return 0.0
        pc = int(macs.argmax())
        op = self.ops[s.spans[name]][pc]
        instr: Any = s.instrs[s.variant[s.spans[name]][pc]]
        ticks = outer.dense(instr, machine)[1] or op["occupy"]
        a_cycle = macs[pc] / (ticks / TICK) * (machine.subcores if op["spread"] else 1)
        if op["kind"] == STREAM:
            a_cycle = (
                EACH[instr.type.kind]
                * machine.systolic_units
                * machine.array_rows
                * machine.array_columns
            )
        return float(2 * a_cycle * machine.sms * machine.clock_hz)

    @cached_property
    def _macs(self) -> Ints:
        """Multiply-accumulates of each variant; a push, which has as many rows as it is told, counts as if it had most. [variants]"""
        most = max((i.macs(LANES) for i in self.structure.instrs), default=0) + 1
        macs = [
            most if isinstance(i, IM2COL_PUSH) else outer.dense(i, self.machine)[0] or i.macs(LANES)
            for i in self.structure.instrs
        ]
        return np.array(macs, np.int64)

    @cached_property
    def _modal(self) -> Ints:
        """Variants of MODE."""
        return np.array(
            [v for v, i in enumerate(self.structure.instrs) if isinstance(i, MODE)], np.int64
        )

    def on(self, unit: str) -> NDArray[np.bool_]:
        """Which instructions a unit executes."""
        if unit not in self.structure.units:
            return np.zeros(len(self.structure.unit), np.bool_)
        on: NDArray[np.bool_] = self.structure.unit == self.structure.units.index(unit)
        return on

    @cached_property
    def global_loads(self) -> NDArray[np.bool_]:
        """Which instructions read global memory."""
        return (self.on("lsu_global") & ~self.structure.stores) | self.on("dma")

    @cached_property
    def global_stores(self) -> NDArray[np.bool_]:
        """Which instructions write it."""
        return (self.on("lsu_global") & self.structure.stores) | self._encodes

    @cached_property
    def _encodes(self) -> NDArray[np.bool_]:
        """Which of them have a result as well, from no memory."""
        s = self.structure
        return np.array([outer.encodes(i) for i in s.instrs], np.bool_)[s.variant]

    def operations(self, kernel: str, counts: NDArray[Any], foot: Footprint) -> NDArray[Any]:
        """`OP` of a kernel's instructions in a launch that counted `counts`."""
        fixed = self.of(kernel)
        ops, loads, stores = fixed.ops.copy(), fixed.loads, fixed.stores
        times = np.maximum(
            counts["executed"].astype(np.int64) - counts["skipped"].astype(np.int64), 1
        )
        sectors, wavefronts = (
            counts[name].astype(np.float64) / times for name in ("sectors", "wavefronts")
        )
        one = ops["occupy"].copy()  # ticks of an access that the port takes at once
        accesses = (ops["memory"] > 0) | self.on("bitmap")[self.structure.spans[kernel]]
        passes = np.where(accesses, np.maximum(sectors / SECTORS, wavefronts), 1)
        ops["occupy"] = np.maximum(one, np.rint(one * passes).astype(np.int64))
        warps = loads & (ops["kind"] != TRANSFER)
        ops["latency"] = np.where(warps, np.int64(round(TICK * foot.latency)), ops["latency"])
        ops["latency"] += ops["occupy"] - one
        misses = np.where(loads, foot.l1_misses, np.where(stores, 1.0, 0.0))
        to_dram = np.where(loads, foot.l2_misses, np.where(stores, foot.written_back, 0.0))
        ops["l2"] = np.rint(sectors * misses * foot.l2_ticks).astype(np.int64)
        ops["dram"] = np.rint(sectors * misses * to_dram * foot.dram_ticks).astype(np.int64)
        ops["vector"] = self._vector(kernel, counts, times, sectors, wavefronts)
        for pc, instr in fixed.pushes:
            ops["work"][pc] = streams(instr, self.machine, counts["rows"][pc] / times[pc])
        return ops

    def _vector(
        self, kernel: str, counts: NDArray[Any], times: Ints, sectors: Floats, wavefronts: Floats
    ) -> Ints:
        """Ticks of the vector memory's port that instructions take. What warps load and store passes it as well."""
        if not self.machine.vector_word:
            return np.zeros(len(times), np.int64)
        span = self.structure.spans[kernel]
        words = (counts["vector_reads"] + counts["vector_writes"]) / times
        moved = np.where(self.on("lsu_global")[span], SECTOR * sectors, 0.0)
        moved += np.where(self.on("lsu_shared")[span], WAVEFRONT * wavefronts, 0.0)
        ticks: Ints = np.rint(TICK * (words + moved / self.machine.vector_bytes)).astype(np.int64)
        return ticks

    def _spans(self, kernel: str) -> tuple[NDArray[Any], Ints, Ints]:
        """`SPAN`s of a kernel, and where those of each instruction begin and end."""
        s, span = self.structure, self.structure.spans[kernel]
        words = s.words[span]
        there = words > 0
        flat = np.zeros(int(there.sum()), SPAN)
        flat["slot"], flat["words"], flat["write"] = (
            column[there] for column in (s.first[span], words, s.write[span])
        )
        last = np.cumsum(there.sum(axis=1))
        return flat, last - there.sum(axis=1), last
