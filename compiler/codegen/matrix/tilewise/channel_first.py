"""Tile-wise pruned weights on an array that is fed from vector memory: `channel_first` whose passes are gathered, and whose columns are scattered.

    job     (tile, strip of output pixels): the passes of a tile are ⌈kLen / P⌉ gathered pushes, at least one
    tile    at most as many columns as the array has; those that were pruned are tiles with kLen 0, whose sums are +0

Columns of the array that a tile does not fill are lost, so tiles are merged as long as the union of their rows takes no more passes than they
take one by one: rows that one of them did not keep are zeros there, as they are in a dense product.

    constants   columns [tiles, columns] · descriptors, 64 bytes a tile · for each tile its list and its packed rows, filled up to the longest
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from knapper.isa import gather
from knapper.isa.instructions import (
    BAR,
    BRA,
    GATHK_PUSH,
    LDG,
    R2UR,
    TWDESC,
    UIADD,
    UMOV,
)
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Bits32, Cmp, Start, Width
from knapper.isa.systolic import LANES

from ....ir import DTYPES, Array
from ...builder import VReg, VUReg
from ...generator import Group, Options, register
from .. import blocks, evaluate
from ..channel_first.cost import Costs
from ..channel_first.epilogue import Pieces, Place, Run, Sums
from ..channel_first.generator import ChannelFirst, warps
from ..channel_first.kernel import DESCRIPTOR, Kernel
from ..channel_first.nest import Job
from ..channel_first.shape import CHUNK, Tiles, Walk, walks
from ..code import Number, fixed, move_base, mul, param, ucompare, umov, umul
from ..epilogue import Frame
from . import plan as tilewise_plan

ALIGN = 256


@dataclass(frozen=True)
class Joint:
    """Rows and columns that passes of the array are for."""

    rows: Array
    columns: Array


def joined(parts: list[Joint], rows: int, columns: int) -> list[Joint]:
    """Tiles cut to the array's columns, neighbours merged while that takes no more passes."""
    found: list[Joint] = []
    for part in parts:
        for at in range(0, len(part.columns), columns):
            own = Joint(part.rows, part.columns[at : at + columns])
            last = found[-1] if found else None
            if last is not None and len(last.columns) + len(own.columns) <= columns:
                both = np.union1d(last.rows, own.rows)
                apart = _passes(last.rows, rows) + _passes(own.rows, rows)
                if bool(len(last.rows)) == bool(len(own.rows)) and _passes(both, rows) <= apart:
                    found[-1] = Joint(both, np.concatenate([last.columns, own.columns]))
                    continue
            found.append(own)
    return found


def _passes(kept: Array, rows: int) -> int:
    return max(1, -(-len(kept) // rows))


@dataclass(frozen=True)
class Gathers(Tiles):
    """Tiles of a product, walked in one way: a block is a tile, a job all its passes."""

    joints: tuple[Joint, ...] = ()

    @property
    def blocks(self) -> int:
        return len(self.joints)

    @cached_property
    def passes(self) -> int:
        """Of the longest tile."""
        return max(_passes(x.rows, self.rows) for x in self.joints)

    @property
    def kept(self) -> str:
        return "all" if self.blocks == 1 else "block"

    @property
    def list_bytes(self) -> int:
        """Of a tile's list, filled up."""
        return self.passes * self.rows * gather.ENTRY.itemsize

    @property
    def each(self) -> int:
        """Bytes that are fetched of a tile."""
        return self.list_bytes + self.passes * self.tile_bytes

    @property
    def weight_bytes(self) -> int:
        return (1 if self.blocks == 1 else 2) * self.each

    @property
    def records_at(self) -> int:
        return self.blocks * self.columns * 4

    @property
    def tiles_at(self) -> int:
        return -(-(self.records_at + self.blocks * gather.TILE.itemsize) // ALIGN) * ALIGN

    def tables(self, matrix: Array) -> Array:
        """What a kernel reads, from B[K, N]."""
        columns = np.full((self.blocks, self.columns), self.p.n, np.int32)
        records = np.zeros(self.blocks, gather.TILE)
        packed = []
        for number, (record, joint) in enumerate(zip(records, self.joints, strict=True)):
            columns[number, : len(joint.columns)] = joint.columns
            at = self.tiles_at + number * self.each
            record["b"], record["k"] = at + self.list_bytes, at
            record["n"] = number * self.columns * 4
            record["k_len"], record["n_len"] = len(joint.rows), len(joint.columns)
            listed = np.zeros(self.passes * self.rows, gather.ENTRY)
            listed[: len(joint.rows)] = gather.delta(joint.rows)
            own = np.zeros((self.passes * self.rows, self.columns), DTYPES[self.p.dtype])
            own[: len(joint.rows), : len(joint.columns)] = matrix[np.ix_(joint.rows, joint.columns)]
            packed += [listed.view(np.uint8), own.view(np.uint8).ravel()]
        head = np.concatenate([columns.view(np.uint8).ravel(), records.view(np.uint8)])
        gap = np.zeros(self.tiles_at - len(head), np.uint8)
        return np.concatenate([head, gap, *packed])


def gathers(group: Group, walk: Walk, machine: Machine) -> Gathers:
    """The tiles of a group's weights on a machine."""
    p = blocks.product(group)
    pruned = tilewise_plan.of(group, p)
    assert pruned is not None
    plain = Tiles(p, walk, machine)
    found = joined([Joint(x.rows, x.columns) for x in pruned.parts], plain.rows, plain.columns)
    return Gathers(p, walk, machine, tuple(found))


class GatherKernel(Kernel):
    """One launch being emitted."""

    def __init__(self, group: Group, walk: Walk, machine: Machine) -> None:
        super().__init__(group, walk, machine)
        self.t: Gathers = gathers(group, walk, machine)

    @property
    def packed_name(self) -> str:
        turned = "T" if self.p.trans_b else ""
        return f"{self.p.b}{turned}.tiles.{self.t.rows}x{self.t.columns}"

    def constants(self) -> dict[str, Array]:
        matrix = evaluate.right(self.p, self.group.constants[self.p.b], 0)
        return {self.packed_name: self.t.tables(matrix)}

    def _sums(self) -> Sums:
        return Scattered(self.b, self.group, self.t, self.parameters, self.z, self.warp)

    def _weights(self, j: Job, chunk: Number, turn: VUReg | None) -> Number:
        """Where a tile's list begins in vector memory; its weights are behind it."""
        b, t = self.b, self.t
        if t.kept == "all":
            return t.weights_at
        return umul(b, self._parity(j.block), t.each, t.weights_at)

    def _tile(
        self, j: Job, chunk: Number, turn: VUReg | None, weights: VUReg
    ) -> tuple[VUReg, int, VUReg, Number]:
        b, t, source = self.b, self.t, self.b.ureg(2)
        b.emit(UIADD, Bits32._64, source, weights, t.tiles_at)
        move_base(b, source, umul(b, j.block, t.each))
        return umov(b, self._weights(j, chunk, turn)), 0, source, t.each

    def _array(self) -> None:
        b, t = self.b, self.t
        self.sums, td = umov(b, 0), umov(b, 0)
        u = b.ureg(gather.REGISTERS)
        for k in range(gather.REGISTERS):
            b.emit(UMOV, u[k], 0)
        b.emit(BAR, 0)
        with self.nest.jobs() as j:
            self._strip(j)
            kept = self._kept(j)
            at = umov(b, self._weights(j, 0, None))
            b.emit(UMOV, u[gather.WORDS["k_len"]], kept)
            b.emit(UMOV, u[gather.WORDS["at"]], at)
            b.emit(UIADD, Bits32._32, at, at, t.list_bytes)
            b.emit(BAR, 0)
            b.emit(TWDESC, td, u)
            self._gathered(at, kept, td)
            self._tick_ends(td)
            self._job_ends()
        self._drained()

    def _kept(self, j: Job) -> VUReg:
        """kLen of the job's tile."""
        b, t = self.b, self.t
        record, lane, value, d = param(b, 1), fixed(b, 0), b.reg(), b.ureg()
        move_base(b, record, umul(b, j.block, gather.TILE.itemsize, t.records_at))
        b.emit(LDG, Width._32, value, record, lane, 4 * gather.WORDS["k_len"])
        b.emit(R2UR, d, value)
        return d

    def _gathered(self, at: VUReg, kept: VUReg, td: VUReg) -> None:
        """A tile's passes: the first begins its chain, and there is one even if nothing was kept."""
        b, t = self.b, self.t
        tap, begin = umov(b, umul(b, td, 1 << 16)), umov(b, t.rows)
        again, over = b.label(), b.label()
        self._load_weights(at, 0)
        self._gather(Start.SET, tap)
        b.emit(BRA, over, guard=ucompare(b, Cmp.GE, begin, kept))
        b.place(again)
        b.emit(UIADD, Bits32._32, at, at, t.tile_bytes)
        b.emit(UIADD, Bits32._32, tap, tap, t.rows)
        b.emit(UIADD, Bits32._32, begin, begin, t.rows)
        self._load_weights(at, 0)
        self._gather(Start.ADD, tap)
        b.emit(BRA, again, guard=ucompare(b, Cmp.LT, begin, kept))
        b.place(over)

    def _gather(self, start: Start, tap: VUReg) -> None:
        self.b.emit(GATHK_PUSH, self.type, start, self.sums, 1, DESCRIPTOR, tap, self.m0, self.m)


class Scattered(Sums):
    """What the epilogue's warps do: as many epilogues as the array has columns for warps, each at columns of its own."""

    def _ready(self, j: Job, sums: VUReg, begin: Number, end: Number, piece: int) -> Run:
        self.listed = self._listed(j)
        return super()._ready(j, sums, begin, end, piece)

    def _listed(self, j: Job) -> list[VReg]:
        """The columns of C that a lane's sums belong to, one a register of sums."""
        b, t = self.b, self.t
        table, offset = param(b, 1), mul(b, self.column, 4)
        move_base(b, table, umul(b, j.block, t.columns * 4))
        found = []
        for at in range(0, t.columns, LANES):
            d = b.reg()
            b.emit(LDG, Width._32, d, table, offset, 4 * at)
            found.append(d)
        return found

    def _places(self, acc: VReg) -> Iterator[Place]:
        t = self.t
        _, down, across = t.steps
        for i in range(acc.words):
            row, col = divmod(i * LANES, t.columns)
            pixel, image = divmod(row, t.wn)
            away = pixel * t.wn + image if t.single else image
            yield Place(acc[i], pixel * down + image * across, col, pixel, away)

    def _begun(self, j: Job, first: Number) -> Any:
        b, t, p = self.b, self.t, self.t.p
        section, down, across = t.steps
        made = []
        for col in self.listed:
            frame = Frame(
                row0=umul(b, j.section, section, umul(b, first, down)), col0=0,
                row=self._lane(down, across), col=col, bound=None, limit=0, cols=p.n, axes=(),
            )  # fmt: skip
            e = Pieces(b, self.group, p, frame, self.parameters)
            if int(t.descriptor.images) % t.wn:
                e.images = self._beyond(j, first)
            e.begin_all([0])
            made.append(e)
        return Many(made)


class Many:
    """Epilogues of one piece, each with a share of its columns."""

    def __init__(self, parts: list[Pieces]) -> None:
        self.parts = parts

    @property
    def pixels(self) -> VReg | None:
        return self.parts[0].pixels

    @pixels.setter
    def pixels(self, x: VReg) -> None:
        for e in self.parts:
            e.pixels = x

    def fetch_first(self, spots: Any, some: Any) -> None:
        pass

    def fetch_next(self, spots: Any, rows: int, more: Any) -> None:
        pass

    def emit(self, spots: list[Place]) -> None:
        for n, e in enumerate(self.parts):
            e.emit([replace(s, col=0) for s in spots if s.col // LANES == n])

    def advance(self, rows: int, pixels: int, images: int) -> None:
        for e in self.parts:
            kept = e.pixels
            if kept is not None and e is not self.parts[0]:
                e.pixels = None
            e.advance(rows, pixels, images)
            e.pixels = kept


class TilewiseChannelFirst(ChannelFirst):
    """The generator."""

    kind = "tilewise_channel_first"
    extensions = frozenset({"async", "systolic", "conv", "gather"})

    def refuses(self, group: Group, p: Any, machine: Machine) -> str | None:
        if why := super().refuses(group, p, machine):
            return why
        if tilewise_plan.of(group, p) is None:
            return "B has no tiles"
        if p.batch > 1:
            return "a batch, or groups"
        if -(-p.k // machine.array_rows) > CHUNK:
            return f"{p.k} rows of B: more passes than a tick has"
        if next(iter(self.candidates(group, machine)), None) is None:
            return "no strip fits"
        return None

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        p = blocks.product(group)
        for walk in walks(p, machine, warps(machine)):
            t = gathers(group, walk, machine)
            if walk.order == "image" and t.chunks == 1 and t.fits():
                # kernels are kept by their options: how many tiles and passes there are is all that they know of the weights
                yield {**asdict(walk), "tiles": t.blocks, "passes": t.passes}

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        t = gathers(group, Walk.of(options), machine)
        launch, each = Costs(group, t).launch, t.p.m + t.strips * t.sections * machine.lsma_bubble
        idle = sum(t.passes - _passes(x.rows, t.rows) for x in t.joints)
        return float(max(launch - idle * each, machine.launch_cycles))

    def emitter(self, group: Group, options: Options, machine: Machine) -> GatherKernel:
        return GatherKernel(group, Walk.of(options), machine)


register(TilewiseChannelFirst())
