"""What a run did, in numbers: per mnemonic, per launch, per graph node. `to_dict` is `stats.json`.

Everything is derived from the engines' counters, so it is exact, and the same whichever engine ran.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from knapper.isa.core import OPCODE_BITS, TABLE, Instr
from knapper.isa.errors import UsageError
from knapper.isa.instructions import BOHMMA, IM2COL_IPUSH, IM2COL_PUSH, MODE, OHMMA, SPWMMA
from knapper.isa.lanes import LANES
from knapper.isa.program import Kernel, Launch
from knapper.isa.sparse import DENSE
from knapper.isa.systolic import Array
from knapper.isa.verify import modes

from . import html
from .counters import Counts
from .decode import Decoded
from .energy import Energy
from .timing.report import Timing

if TYPE_CHECKING:
    from pandas import DataFrame

SCHEMA = "knapper.stats/1"
By = Literal["launch", "node", "instruction"]
"""What a table has a row for."""
SIZES = ("grid", "block")
LEVELS = {
    "l2_bytes": ("l2_read", "l2_write"),
    "smem_bytes": ("smem_read", "smem_write"),
}


@dataclass(frozen=True)
class KernelFacts:
    """What the counters of any launch of a kernel are multiplied with."""

    opcodes: NDArray[np.int64]
    """[n]"""
    macs: NDArray[np.int64]
    """Multiply-accumulates of each instruction with all lanes active. [n]"""
    per_byte: NDArray[np.float64]
    """Multiply-accumulates for a byte of A that a pass reads whose rows are counted as it is executed. [n]"""
    roles: NDArray[np.int64]
    """The index into a launch's nodes of each instruction. [n]"""
    switches: NDArray[np.bool_]
    """Whether an instruction is a MODE that finds the other mode. [n]"""

    @staticmethod
    def of(kernel: Kernel, decoded: Decoded) -> KernelFacts:
        span = decoded.spans[kernel.name]
        macs = np.array(
            [decoded.array.macs(v.instr, LANES) if kernel.matrix else 0 for v in decoded.variants],
            np.int64,
        )
        per_byte = np.array(
            [_per_byte(v.instr, decoded.array) if kernel.matrix else 0.0 for v in decoded.variants]
        )
        opcodes = decoded.records["kind"][span].astype(np.int64)
        variants, roles = decoded.variant[span], np.array(kernel.roles, np.int64)
        return KernelFacts(opcodes, macs[variants], per_byte[variants], roles, switches(kernel))


def _per_byte(i: Instr, array: Array) -> float:
    """An element of A meets a weight in every column, or two bytes of it two."""
    if not isinstance(i, IM2COL_PUSH):
        return 0.0
    pairs = 2 if isinstance(i, IM2COL_IPUSH) else 1
    return pairs * int(i.units) * array.columns_of(i.type.lane) / (i.type.lane.bits // 8)


def switches(kernel: Kernel) -> NDArray[np.bool_]:
    """Which instructions change the mode. In a kernel that is legal each is reached in one mode. [n]"""
    if not any(isinstance(i, MODE) for i in kernel.code):
        return np.zeros(len(kernel.code), np.bool_)
    return np.array(
        [
            isinstance(i, MODE) and bool(reached - {i.mode.name.lower()})
            for i, reached in zip(kernel.code, modes(kernel), strict=True)
        ]
    )


@dataclass(frozen=True)
class Measured:
    """What a launch took on a machine."""

    timing: Timing
    energy: Energy
    by_node: NDArray[Any]
    """How its cycles spread over its nodes, in issue slots. [nodes]"""

    @cached_property
    def node_cycles(self) -> list[int]:
        """The launch's cycles by node; they add up. Launching itself and empty slots are shared out like the rest."""
        parts = np.cumsum([0.0, *self.by_node])
        edges = np.rint(parts * (self.timing.cycles / max(parts[-1], 1.0))).astype(np.int64)
        return [int(n) for n in np.diff(edges)]


@dataclass(frozen=True)
class LaunchStats:
    """One launch."""

    launch: Launch
    kernel: Kernel
    facts: KernelFacts
    counts: Counts
    measured: Measured | None = None
    """None without timing."""

    @property
    def mode(self) -> str:
        """The SM's mode as it begins; "host" if the host computes it."""
        return "host" if self.launch.host else self.kernel.mode_entry

    @property
    def instructions(self) -> int:
        """Warp instructions issued."""
        return int(self.counts.instructions["executed"].sum())

    @cached_property
    def macs(self) -> NDArray[np.int64]:
        """Multiply-accumulates executed, by instruction."""
        counts, facts = self.counts.instructions, self.facts
        pushed = counts["smem_read"] * facts.per_byte
        dense = counts["lanes"].astype(np.int64) * facts.macs // LANES + pushed.astype(np.int64)
        return dense + counts["products"].astype(np.int64) * self.kernel.matrix

    @property
    def macs_executed(self) -> int:
        return int(self.macs.sum())

    @property
    def sparse(self) -> dict[str, int]:
        """Of products of condensed vectors: OHMMAs issued and left out (of the 128 of an SPWMMA without zeros, and by a guard), BOHMMAs;
        empty if there are none."""
        done = {cls: self.facts.opcodes == cls.opcode for cls in (SPWMMA, OHMMA, BOHMMA)}
        counts = self.counts.instructions
        if not any(counts["executed"][at].any() for at in done.values()):
            return {}
        product = counts[done[SPWMMA]]
        left = DENSE * (product["executed"] - product["skipped"]).sum() - product["ohmma"].sum()
        return {
            "ohmma_issued": int(counts["ohmma"].sum()),
            "ohmma_skipped": int(left + counts["skipped"][done[OHMMA]].sum()),
            "bohmma": int(counts["executed"][done[BOHMMA]].sum()),
        }

    @property
    def mode_switches(self) -> int:
        """Times that a block changed the mode of its SM; its warps do so together, wherever each of them is."""
        changed = self.counts.instructions["executed"][self.facts.switches].sum()
        return int(changed) // -(-prod(self.kernel.block) // LANES)

    def mnemonics(self) -> Counter[str]:
        """Warp instructions by mnemonic."""
        total = np.bincount(
            self.facts.opcodes, self.counts.instructions["executed"], 1 << OPCODE_BITS
        )
        return Counter(
            {TABLE[op].mnemonic: int(total[op]) for op in np.flatnonzero(total).tolist()}
        )

    def bytes(self, level: str) -> dict[str, int]:
        """{"read", "write"} of a level of memory."""
        if level == "dram_bytes":
            return {"read": self.counts.dram_read, "write": self.counts.dram_write}
        return {
            use: int(self.counts.instructions[column].sum())
            for use, column in zip(("read", "write"), LEVELS[level], strict=True)
        }

    def by_node(self) -> Iterator[tuple[str, int, int, int]]:
        """(node, warp instructions, macs executed, useful macs); the useful ones belong to the node that executes most."""
        roles, nodes = self.facts.roles, self.launch.nodes
        if not nodes:
            return
        work, macs = (
            np.bincount(roles, column, len(nodes))
            for column in (self.counts.instructions["executed"], self.macs)
        )
        best = int(macs.argmax())
        for i, node in enumerate(nodes):
            yield node, int(work[i]), int(macs[i]), self.launch.macs if i == best else 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.kernel.name,
            "nodes": list(dict.fromkeys(self.launch.nodes)),
            "mode": self.mode,
            "grid": list(self.launch.grid),
            "block": list(self.kernel.block),
            "instructions": self.instructions,
            "macs": self.launch.macs,
            "macs_executed": self.macs_executed,
            **{level: self.bytes(level) for level in ("dram_bytes", *LEVELS)},
            "mode_switches": self.mode_switches,
            **self.sparse,
            **self._measured(),
        }

    def _measured(self) -> dict[str, Any]:
        if (m := self.measured) is None:
            return {}
        vector = {
            name: int(self.counts.instructions[name].sum())
            for name in ("vector_reads", "vector_writes")
        }
        words = vector if any(vector.values()) or "port" in m.timing.busy else {}
        return {**m.timing.to_dict(), **words, "energy_pj": spent(m.energy)}


def spent(energy: Energy) -> dict[str, float]:
    """Picojoules by event, and in all."""
    return {**energy.events, "total": energy.total}


@dataclass(frozen=True)
class Stats:
    """A whole run."""

    target: str
    launches: tuple[LaunchStats, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    clock_hz: int = 0
    """The clock that cycles are of."""

    def __repr__(self) -> str:
        total = sum(self.instructions.values())
        return f"Stats({self.target}: {len(self.launches)} launches, {total:,} instructions, {self.macs:,} macs)"

    @property
    def instructions(self) -> Counter[str]:
        """Warp instructions by mnemonic."""
        total: Counter[str] = Counter()
        for launch in self.launches:
            total += launch.mnemonics()
        return total

    @property
    def macs(self) -> int:
        """Useful multiply-accumulates of convolutions and matrix products."""
        return sum(s.launch.macs for s in self.launches)

    @property
    def macs_executed(self) -> int:
        """Multiply-accumulates that matrix kernels executed, padding included."""
        return sum(s.macs_executed for s in self.launches)

    @property
    def timed(self) -> bool:
        """Whether the run was timed; one of no launches, too, then has a clock."""
        return self.clock_hz > 0 and all(s.measured is not None for s in self.launches)

    @property
    def cycles(self) -> int | None:
        """Cycles of all launches, one after the other; None without timing."""
        if not self.timed:
            return None
        return sum(s.measured.timing.cycles for s in self.launches if s.measured is not None)

    @property
    def seconds_at_clock(self) -> float | None:
        """`cycles` at the machine's clock; None without timing."""
        return None if self.cycles is None else self.cycles / self.clock_hz

    @property
    def energy_pj(self) -> dict[str, float]:
        """Picojoules by event, and in all; empty without timing."""
        total: dict[str, float] = {}
        for s in self.launches:
            for event, pj in spent(s.measured.energy).items() if s.measured else ():
                total[event] = total.get(event, 0.0) + pj
        return total

    @property
    def mode_switches(self) -> int:
        """Times that blocks changed the mode of their SMs, all SMs together. All switches are MODE instructions: a launch begins in the mode
        in which the one before it ended, and a MODE that finds its own mode changes nothing."""
        return sum(s.mode_switches for s in self.launches)

    def bytes(self, level: str) -> dict[str, int]:
        """{"read", "write"} of `dram_bytes`, `l2_bytes` or `smem_bytes`."""
        each = [s.bytes(level) for s in self.launches]
        return {use: sum(b[use] for b in each) for use in ("read", "write")}

    @property
    def nodes(self) -> dict[str, dict[str, Any]]:
        """Per graph node: instructions, macs, macs_executed, and if the run was timed cycles and energy_pj."""
        table: dict[str, dict[str, Any]] = {}
        for s in self.launches:
            for node, instructions, executed, useful in s.by_node():
                row = table.setdefault(node, {"instructions": 0, "macs": 0, "macs_executed": 0})
                row["instructions"] += instructions
                row["macs"] += useful
                row["macs_executed"] += executed
            if s.measured is not None:
                _add_measured(table, s.launch.nodes, s.measured)
        return table

    def rows(self, by: By = "launch") -> list[dict[str, Any]]:
        """A flat row for each launch, node or instruction: what holds several numbers is several columns, as in `dram_bytes.read`."""
        if by == "instruction":
            found = [{"instruction": m, "executed": n} for m, n in self.instructions.most_common()]
        elif by == "node":
            found = [{"node": name, **row} for name, row in self.nodes.items()]
        elif by == "launch":
            found = [{"launch": i, **s.to_dict()} for i, s in enumerate(self.launches)]
        else:
            raise UsageError("E704", f"rows by {by!r}: expected {', '.join(get_args(By))}")
        return [dict(_flat(row)) for row in found]

    def to_frame(self, by: By = "launch") -> DataFrame:
        """`rows` as a pandas frame, indexed by launch, node or instruction; UsageError E710 without pandas."""
        try:
            from pandas import DataFrame
        except ImportError:
            hint = "pip install 'knapper[frames]'; rows() is the same without pandas"
            raise UsageError("E710", "to_frame needs pandas", hint=hint) from None
        rows = self.rows(by)
        return DataFrame(rows).set_index(by) if rows else DataFrame()

    def _repr_html_(self) -> str:
        """In a notebook: the totals, and below them the launches."""
        return html.page(self.totals(), self._table())

    def totals(self) -> dict[str, object]:
        """What a run took, by name."""
        timed = {} if self.cycles is None else {
            "cycles": self.cycles,
            "ms at its clock": 1e3 * self.cycles / self.clock_hz,
            "mJ": 1e-9 * self.energy_pj["total"],
        }  # fmt: skip
        return {
            "target": self.target,
            "launches": len(self.launches),
            "instructions": sum(self.instructions.values()),
            "macs": self.macs,
            "macs executed": self.macs_executed,
            **timed,
        }

    def _table(self) -> html.Table:
        head = ["kernel", "nodes", "instructions", "macs", *(["cycles"] if self.timed else [])]
        rows = [
            (s.kernel.name, ", ".join(dict.fromkeys(s.launch.nodes)), s.instructions, s.launch.macs)
            + ((s.measured.timing.cycles,) if s.measured else ())
            for s in self.launches
        ]
        return html.Table(head, rows)

    def to_dict(self) -> dict[str, Any]:
        """`stats.json`; without timing null are `cycles`, `seconds_at_clock` and `energy_pj`."""
        return {
            "schema": SCHEMA,
            "provenance": dict(self.provenance),
            "target": self.target,
            "cycles": self.cycles,
            "seconds_at_clock": self.seconds_at_clock,
            "energy_pj": self.energy_pj or None,
            "instructions": dict(self.instructions.most_common()),
            "macs": self.macs,
            "macs_executed": self.macs_executed,
            **{level: self.bytes(level) for level in ("dram_bytes", *LEVELS)},
            "mode_switches": self.mode_switches,
            "kernels": [s.to_dict() for s in self.launches],
            "nodes": self.nodes,
        }


def _flat(row: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and texts by their path; sizes as in 2x1x1, names with commas."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        elif isinstance(value, list):
            yield path + key, ("x" if key in SIZES else ", ").join(map(str, value))
        else:
            yield path + key, value


def _add_measured(table: dict[str, dict[str, Any]], nodes: tuple[str, ...], m: Measured) -> None:
    """Cycles and energy of a launch to its nodes' rows; a node may be there twice."""
    for node, cycles in zip(nodes, m.node_cycles, strict=False):
        table[node]["cycles"] = table[node].get("cycles", 0) + cycles
    for node, energy in m.energy.by_node.items():
        if node in table:
            table[node]["energy_pj"] = table[node].get("energy_pj", 0.0) + energy
