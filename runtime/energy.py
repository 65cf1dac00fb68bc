"""What a launch's energy went into: events counted from what was executed, times picojoules an event of the machine's table.

Counts are linear in the engine's counters. An instruction costs so many events each time a warp issues it and so many for each lane
that was active, which follow from its declaration: the unit it uses, the register words it reads and writes, its multiply-accumulates.
`Rates` works that out once a program, for instructions that differ in nothing that matters; a launch is then two matrix products.

What no instruction causes by itself is told by `Usage`: the time it took, and what went past the L1 caches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from knapper.isa.core import Instr
from knapper.isa.description import EVENTS
from knapper.isa.instructions import IM2COL_PUSH, IMMA, IMMA_4
from knapper.isa.integer_tensor import of_b
from knapper.isa.lanes import LANES
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Element, Space, Start
from knapper.isa.operands import Reg, Src
from knapper.isa.program import Kernel
from knapper.isa.sparse import OHMMA, SPWMMA, STEPS
from knapper.isa.sparse24 import HMMA_SP
from knapper.isa.systolic import LSMA, SMA_LDB, Transfer
from knapper.isa.tensor import OPERAND

from .counters import COUNTER, WORD, Counts
from .decode import WORDS, Decoded, bits_of, words_of

NAMES = (*EVENTS, "static_sm", "constant")
"""The columns of every array of events: those of a table, an active SM for a cycle, the chip for a cycle."""
COMPONENTS = {
    "issue": ("issue",),
    "registers": ("rf_read", "rf_write"),
    "simd": ("int_op", "imul_op", "fp32_op", "fp64_op", "sfu_op", "cvt_op"),
    "matrix": (
        "fma16_tensor",
        "mac8_tensor",
        "mac4_tensor",
        "fma16_systolic",
        "fma32_systolic",
        "mac8_systolic",
        "pe_hop",
        "a_broadcast",
        "accumulator",
        "bitmap_op",
    ),
    "shared": ("smem_read", "smem_write", "vector_read", "vector_write"),
    "memory": ("l1", "l2", "dram"),
    "static": ("static_sm", "constant"),
    "host": ("host_flop", "link_byte"),
}
"""Parts of the machine, each with its events; every event is in one."""
LANE_EVENT = {
    "alu": "int_op", "imul": "imul_op", "fma": "fp32_op", "fp64": "fp64_op", "sfu": "sfu_op", "cvt": "cvt_op",
    "lsu_global": "int_op", "lsu_shared": "int_op", "lsu_local": "int_op",
    "bitmap": "bitmap_op",
}  # fmt: skip
"""What a lane does in a unit; loads and stores add an address. A unit of a plugin counts as an fp32 operation unless it is added."""
WARP_EVENT = {"uniform": "int_op"}
"""What is done once for the whole warp."""
COMMANDS = ("systolic", "dma")
"""Units that warps send commands to."""
ISSUE_ONLY = ("control", "barrier", "sreg", "mode", *COMMANDS)
"""Units that cost a warp nothing but the issue; what arrays and the DMA engine then do is told below."""
TENSOR = {"tensor": 1, "tensor_f16": 2, "tensor_int": 1, "outer": 1}
"""Tensor Core units, and how many accumulators of theirs share a word."""
PRODUCT = {IMMA: "mac8_tensor", IMMA_4: "mac4_tensor"}
"""What a multiply-accumulate of integers is."""
METADATA = LANES // 2
"""Words of e that an HMMA.SP uses: half of each lane's."""
BITMAPS = {
    SPWMMA.mnemonic: LANES + STEPS * LANES, OHMMA.mnemonic: 2,
    "BOHMMA.32321": LANES, "BMSLICE": 4 * LANES, "BMENC": 3 * LANES,
}  # fmt: skip
"""Operations on bitmaps by mnemonic, all lanes. An SPWMMA counts 32 of them and, each step of k, makes 32 rows of an outer product; an OHMMA
counts two; a slice shifts two words and counts two; an encoder tests, masks and counts."""
WORDWISE = ("alu", "imul")
"""Units 32 bits wide: an operation on 64 bits is two."""

FLOATS = NDArray[np.float64]
INTS = NDArray[np.int64]


@dataclass(frozen=True)
class Usage:
    """What timing says about a launch."""

    cycles: int
    active_sms: int
    """SMs that have a block."""
    l2_sectors: int
    """32-byte sectors between the L1 caches and L2."""
    dram_sectors: int
    """32-byte sectors between L2 and DRAM."""
    node_cycles: Sequence[float] = ()
    """How the cycles spread over the launch's nodes, in any unit; by issued instructions if not given."""


@dataclass(frozen=True)
class Energy:
    """Events by node and what one costs; sums of launches of one machine are made with +."""

    nodes: tuple[str, ...]
    counts: FLOATS
    """How often each event happened. [nodes, NAMES]"""
    picojoules: FLOATS
    """Of one event. [NAMES]"""

    @property
    def total(self) -> float:
        """Picojoules."""
        return float(self.counts.sum(axis=0) @ self.picojoules)

    @property
    def events(self) -> dict[str, float]:
        """Picojoules by event, of those that happened."""
        spent = self.counts.sum(axis=0) * self.picojoules
        return {name: float(pj) for name, pj in zip(NAMES, spent, strict=True) if pj}

    @property
    def by_node(self) -> dict[str, float]:
        """Picojoules by graph node."""
        total: dict[str, float] = {}
        for node, pj in zip(self.nodes, self.counts @ self.picojoules, strict=True):
            total[node] = total.get(node, 0.0) + float(pj)
        return total

    @property
    def components(self) -> dict[str, float]:
        """Picojoules by part of the machine."""
        spent = self.events
        return {
            part: sum(spent.get(event, 0.0) for event in events)
            for part, events in COMPONENTS.items()
        }

    def priced(self, machine: Machine) -> Energy:
        """The same events at another machine's prices."""
        return Energy(self.nodes, self.counts, prices(machine))

    def __add__(self, other: Energy) -> Energy:
        counts = np.concatenate([self.counts, other.counts])
        return Energy((*self.nodes, *other.nodes), counts, self.picojoules)


def prices(machine: Machine) -> FLOATS:
    """Picojoules of one event of each kind; static power becomes energy by the clock, caches that are not there cost nothing. [NAMES]"""
    static = (machine.sm_milliwatts, machine.constant_milliwatts)
    cycle = [milliwatts * 1e9 / machine.clock_hz for milliwatts in static]
    caches = {"l1": machine.l1_bytes, "l2": machine.l2_bytes}
    events = (machine.energy[event] if caches.get(event, 1) else 0.0 for event in EVENTS)
    return np.array([*events, *cycle])


def offload(machine: Machine, node: str, flops: int, link_bytes: int, cycles: int = 0) -> Energy:
    """A node on the host: its operations, its operands and results over the link, and the chip's cycles meanwhile."""
    counts = np.zeros((1, len(NAMES)))
    columns = [COLUMN[name] for name in ("host_flop", "link_byte", "constant")]
    counts[0, columns] = flops, link_bytes, cycles
    return Energy((node,), counts, prices(machine))


# --- what an instruction costs --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """Events of an instruction."""

    issue: Mapping[str, float]
    """Each time a warp issues it."""
    lane: Mapping[str, float]
    """For each active lane, beside that."""
    row: Mapping[str, float] = field(default_factory=dict)
    """For each row of A of a pass whose rows are counted as it is executed."""
    product: Mapping[str, float] = field(default_factory=dict)
    """For each multiplication of condensed values that is counted so."""


def cost(instr: Instr, machine: Machine) -> Cost:
    """The events that an instruction causes by itself. Shared memory and beyond are counted where they happen, by the engine."""
    unit = instr.resource()
    if instr.mnemonic in BITMAPS:
        return _bitmaps(instr)
    if unit in TENSOR:
        return Cost(_tensor(instr, machine), {})
    if isinstance(instr, LSMA):
        return Cost(_rows(instr, machine, int(instr.m), instr.space), {})
    if isinstance(instr, IM2COL_PUSH):
        return Cost({}, {}, _rows(instr, machine, 1, Space.ACC))
    if isinstance(instr, SMA_LDB):
        return Cost(_weights(instr, machine), {})
    registers = list(_registers(instr))
    lane: dict[str, float] = {"rf_read": 0, "rf_write": 0}
    for words, use in registers:
        lane["rf_read"] += words * ("r" in use)
        lane["rf_write"] += words * ("w" in use)
    if isinstance(instr, Transfer):
        lane["accumulator"] = int(instr.count)
    warp = {WARP_EVENT[unit]: 1} if unit in WARP_EVENT else {}
    if not warp and unit not in ISSUE_ONLY:
        times = max((words for words, _ in registers), default=1) if unit in WORDWISE else 1
        lane[LANE_EVENT.get(unit, "fp32_op")] = times
    return Cost(warp, lane)


def _registers(instr: Instr) -> Iterator[tuple[int, str]]:
    """(words, use) of the vector registers that an instruction names; RZ is none."""
    return ((a.words, a.use) for a in instr.accesses() if isinstance(a.first, Reg))


def _bitmaps(instr: Instr) -> Cost:
    """Bitmaps, and products of condensed vectors: a product reads a sum from the accumulation buffer and writes it. Operands in shared memory are
    counted by the engine."""
    registers = list(_registers(instr))
    lane = {
        name: float(sum(words for words, use in registers if way in use))
        for name, way in (("rf_read", "r"), ("rf_write", "w"))
    }
    products = {"fma16_tensor": 1, "accumulator": 2} if isinstance(instr, (SPWMMA, OHMMA)) else {}
    return Cost({"bitmap_op": BITMAPS[instr.mnemonic]}, lane, product=products)


def _tensor(instr: Instr, machine: Machine) -> dict[str, float]:
    """An HMMA moves the words that the machine's Tensor Cores move, not those of our fragments. RZ as C is not read. One over twice
    the k reads twice the words of A, and metadata; one of bytes by nibbles half the words of B."""
    accumulators = machine.tensor_accumulator_words / TENSOR[instr.resource()]
    reads_c = any(a.field == "c" for a in instr.accesses())
    operands: float = machine.tensor_operand_words
    if isinstance(instr, HMMA_SP):
        operands = 1.5 * operands + METADATA
    if isinstance(instr, IMMA):
        operands *= (OPERAND + of_b(instr)) / (2 * OPERAND)
    return {
        PRODUCT.get(type(instr), "fma16_tensor"): instr.macs(LANES),
        "rf_read": operands + accumulators * reads_c,
        "rf_write": accumulators,
    }


def _rows(instr: LSMA | IM2COL_PUSH, machine: Machine, rows: int, space: Space) -> dict[str, float]:
    """Rows of A through the array: their multiply-accumulates, C to and from where it lies, and what moves between processing elements.

    A and B come from shared memory, which the engine counts. Sums move down a row at each step, but stand still in an
    output-stationary array. A is driven along the rows at once, or handed from column to column; in the latter case a row of C
    leaves the array skewed, so that C in registers passes through the banks of shared memory.
    """
    columns, bits = _columns(instr, machine), instr.type.lane.bits
    macs, words = rows * machine.array_rows * columns, rows * columns
    elements = machine.array_columns * 16 // bits * int(instr.units)
    handed = rows * machine.array_rows * elements * bits / 32  # one operand past every element
    events: dict[str, float] = {f"fma{bits}_systolic": macs}
    if not isinstance(
        instr.type, Element
    ):  # a byte by a nibble is half the multipliers of a byte by a byte
        events = {"mac8_systolic": 2 * macs * instr.type.across.bits // bits}
    reads = instr.start is Start.ADD
    if space is Space.ACC:
        events["accumulator"] = words * (1 + reads)
    else:
        events["rf_read"], events["rf_write"] = words * reads, words
    if machine.dataflow == "sbws":
        events["pe_hop"] = macs
        events["a_broadcast"] = rows * machine.array_rows * bits / 32 * elements * bits / 16 / 16
    elif machine.dataflow == "ws":
        events["pe_hop"] = macs + handed
        if space is Space.REG:
            events["smem_read"], events["smem_write"] = words * reads, words
    else:
        events["pe_hop"] = 2 * handed
    return events


def _weights(instr: SMA_LDB, machine: Machine) -> dict[str, float]:
    """Each word of the new weights is written to one processing element."""
    elements = machine.array_rows * _columns(instr, machine)
    return {"pe_hop": elements * instr.type.lane.bits / 32}


def _columns(instr: LSMA | IM2COL_PUSH | SMA_LDB, machine: Machine) -> int:
    """Columns of all units of a command, for its element type."""
    return machine.array_columns * 16 // instr.type.across.bits * int(instr.units)


COLUMN = {name: i for i, name in enumerate(NAMES)}
COUNTERS = {name: i for i, name in enumerate(COUNTER.names or ())}


@dataclass(frozen=True)
class Rates:
    """The costs of all instructions of a program, by class: the variant, and which register operands are RZ."""

    issue: FLOATS
    """Events for an issue. [classes, NAMES]"""
    lane: FLOATS
    """Events for an active lane. [classes, NAMES]"""
    row: FLOATS
    """Events for a row that was counted. [classes, NAMES]"""
    product: FLOATS
    """Events for a product that was counted. [classes, NAMES]"""
    commands: NDArray[np.bool_]
    """Which are commands to engines. [classes]"""
    word: float
    """32-bit parts of a word of vector memory, 0 without vector memory."""
    kernels: Mapping[str, INTS]
    """The class of each instruction, by kernel. [n]"""
    roles: Mapping[str, INTS]
    """The index into a launch's nodes of each instruction, by kernel. [n]"""
    picojoules: FLOATS
    """Of one event. [NAMES]"""

    @staticmethod
    def of(machine: Machine, kernels: Sequence[Kernel], decoded: Decoded) -> Rates:
        """Rates of the kernels that were decoded."""
        words = np.concatenate([np.zeros((0, 2), np.uint64), *map(words_of, kernels)])
        keys = decoded.variant << MOST_FIELDS | _zeros(words, decoded)
        _, first, classes = np.unique(keys, return_index=True, return_inverse=True)
        instrs = [_instr(words[i]) for i in first.tolist()]
        costs = [cost(i, machine) for i in instrs]
        return Rates(
            _matrix([c.issue for c in costs]),
            _matrix([c.lane for c in costs]),
            _matrix([c.row for c in costs]),
            _matrix([c.product for c in costs]),
            np.array([i.resource() in COMMANDS for i in instrs], np.bool_),
            machine.vector_bytes / WORD,
            {k.name: classes[decoded.spans[k.name]] for k in kernels},
            {k.name: np.array(k.roles, np.int64) for k in kernels},
            prices(machine),
        )


MOST_FIELDS = 16
"""More than any instruction has."""


def _instr(halves: NDArray[np.uint64]) -> Instr:
    return Instr.decode(int(halves[0]) | int(halves[1]) << 64)


def _matrix(rows: Sequence[Mapping[str, float]]) -> FLOATS:
    return np.array([[row.get(name, 0.0) for name in NAMES] for row in rows]).reshape(
        -1, len(NAMES)
    )


def _zeros(words: WORDS, decoded: Decoded) -> INTS:
    """Which register operands of each instruction are RZ, one bit a field. [n]"""
    out = np.zeros(len(words), np.int64)
    for v, variant in enumerate(decoded.variants):
        member = np.flatnonzero(decoded.variant == v)
        for bit, (name, (kind, b)) in enumerate(variant.instr.layout.items()):
            value = getattr(variant.instr, name)
            if kind is Reg or (kind is Src and value.kind == Src.REG):
                raw = bits_of(words[member], b) & 0xFFFFFFFF
                out[member] |= (raw == RZ).astype(np.int64) << bit
    return out


(RZ,) = Reg.special


# --- what a launch costs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Launch:
    """One launch's counters, by node."""

    rates: Rates
    classes: INTS
    roles: INTS
    nodes: int
    counts: Counts

    @cached_property
    def columns(self) -> FLOATS:
        """Every counter, by node. [nodes, columns]"""
        flat = self.counts.instructions.view(np.uint64).reshape(len(self.roles), -1)
        own = self.roles == np.arange(self.nodes)[:, None]
        total: FLOATS = own.astype(np.float64) @ flat.astype(np.float64)
        return total

    def column(self, name: str) -> FLOATS:
        """A sum over instructions for every node. [nodes]"""
        return self.columns[:, COUNTERS[name]]

    @property
    def issued(self) -> FLOATS:
        """Issue slots that every node took; those of instructions that their guard skipped are among the executed. [nodes]"""
        return self.column("executed")

    def by_class(self, column: str) -> FLOATS:
        """Sums by node and class. [nodes, classes]"""
        n = len(self.rates.issue)
        places = self.roles * n + self.classes
        values = self.counts.instructions[column].astype(np.float64)
        flat = np.bincount(places, values, self.nodes * n).astype(np.float64, copy=False)
        return flat.reshape(self.nodes, n)

    def instructions(self) -> FLOATS:
        """Events that instructions cause by themselves. [nodes, NAMES]"""
        out = self.by_class("executed") @ self.rates.issue
        out += self.by_class("lanes") @ self.rates.lane
        out += self.by_class("rows") @ self.rates.row
        out += self.by_class("products") @ self.rates.product
        out[:, COLUMN["issue"]] = self.issued
        return out

    def memory(self) -> dict[str, FLOATS]:
        """Events that engines counted. [nodes] each"""
        if self.rates.word:
            return self.vector_memory()
        return {
            "smem_read": self.column("smem_read") / WORD,
            "smem_write": self.column("smem_write") / WORD,
            "l1": self.column("sectors"),
        }

    def vector_memory(self) -> dict[str, FLOATS]:
        """Likewise with a vector memory. What warps load and store passes it. [nodes] each

        A command reads whole words, of all banks; a transfer writes the banks that it has something for.
        """
        word, warps = self.rates.word, ~self.rates.commands
        sectors, read, write, smem_read, smem_write = (
            self.by_class(name)[:, warps].sum(axis=1)
            for name in ("sectors", "l2_read", "l2_write", "smem_read", "smem_write")
        )
        return {
            "smem_read": smem_read / WORD,
            "smem_write": smem_write / WORD,
            "vector_read": word * self.column("vector_reads") + read / WORD,
            "vector_write": (self.column("smem_write") - smem_write + write) / WORD,
            "l1": sectors,
        }

    def shared_out(self, usage: Usage) -> dict[str, FLOATS]:
        """What happened to the launch as a whole, given to nodes by what they asked for. [nodes] each"""
        traffic = _share(self.column("sectors"), self.issued)
        time = _share(np.array(usage.node_cycles, np.float64), self.issued)
        return {
            "l2": usage.l2_sectors * traffic,
            "dram": usage.dram_sectors * traffic,
            "static_sm": usage.cycles * usage.active_sms * time,
            "constant": usage.cycles * time,
        }


def _share(weights: FLOATS, otherwise: FLOATS) -> FLOATS:
    """Weights that add up to 1; if there are none, those of the second kind, or equal ones."""
    for w in (weights, otherwise):
        if len(w) and w.sum():
            return np.asarray(w / w.sum())
    return np.full(len(otherwise), 1 / len(otherwise))


def energy(
    rates: Rates, kernel: Kernel, nodes: Sequence[str], counts: Counts, usage: Usage
) -> Energy:
    """The energy of one launch, by event and node.

    `counts` must come from a run with timing, since sectors are counted only then. A launch without nodes has one without a name.
    """
    named = tuple(nodes) or ("",)
    launch = _Launch(
        rates, rates.kernels[kernel.name], rates.roles[kernel.name], len(named), counts
    )
    events = launch.instructions()
    for name, by_node in (launch.memory() | launch.shared_out(usage)).items():
        events[:, COLUMN[name]] += by_node
    return Energy(named, events, rates.picojoules)
