"""What all engines share: a new one is one module of this folder, which is found by itself. This page describes it.

    serves ─ tilings ─ step (cost) ─► options ─► begin ─ tile_a, tile_b ─ connect ─ compute … ─ results ─► kernel
                                                 └────────────── one k loop for all: `pipeline` ──────┘

An engine whose blocks compute tiles of C from tiles of A and B in shared memory states three classes:

1. A `Tiling`: the numbers that a plan chooses. It has bm, bn and bk; a subclass adds fields, which are options of the plan by their
   names, and says how many `threads` a block has.

2. A `TiledEngine`: `kind` (its name in plans), `extensions` of the machine that it needs, and

       refuses(group, p, machine)     why it cannot multiply these operands (types; the rest is checked here)
       tilings(group, p, machine)     tiles that may pay and fit the machine
       cycles(group, p, t, way, …)    what the launch costs; `cost.tiled` makes it of what a k step costs a block

   Then `register(MyEngine())`, and the plan chooses it where its cycles are fewest.

3. A `TiledKernel`, one launch being emitted. In the order in which they are called:

       begin()                        which part of the tile this warp or thread takes
       tile_a(start), tile_b(start)   how an operand comes into shared memory, from which byte of a buffer to which: who carries what
                                      (`geometry`) and from where (`block.a_access`: dense, im2col, gather); None: B bypasses it
       connect(buffers, tiles)        pointers into the buffers, accumulators
       compute(first, last)           multiply the current tiles: k strictly increasing, one rounding a step. Before a loop all
                                      `accumulators` are set to +0; a walk too short for one tells a `peel`ing engine instead: `first`
       results()                      where the accumulators lie in C: `epilogue` does the rest, nodes after the product and stores

   and `packed_weights(padded)`, the order in which weights that are known at compile time lie in memory. Around all this: `builder` makes
   the KernelBuilder, and `results` is a generator, so that what a machine needs before and after the stores goes around its yields.

An engine without such tiles (`direct`) states an `Engine` and an `Emitter`. None needs a line elsewhere: plan, cache, text and tests
go through the table of generators.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np

from knapper.isa.instructions import EXIT, MOV
from knapper.isa.lanes import LANES
from knapper.isa.machine import Machine

from ...ir import DTYPES, Array, Attr
from ..builder import RZ, KernelBuilder, VReg
from ..generator import Emitted, Group, Lowered, Options
from . import blocks, evaluate
from .blocks import Block
from .code import Number, add
from .epilogue import Epilogue, Frame, Spot, refusal
from .pipeline import Buffers, Tile, run
from .product import Product, product_of
from .tilewise import plan as tilewise_plan
from .tilewise.block import TilewiseBlock


def under_bitmaps(group: Group) -> str:
    """The operand in memory that only non-zero values of are stored, if there is one."""
    encodings = {v: t.encoding for v, t in group.inputs.items()}
    return next((v for v, e in encodings.items() if e and e.name == "bitmap"), "")


class Emitter(ABC):
    """One launch being emitted."""

    @abstractmethod
    def emit(self) -> Emitted:
        """The launch."""

    def constants(self) -> dict[str, Array]:
        """What it reads beside the group's values, made at compile time: packed weights, tables."""
        return {}


class Engine(ABC):
    """A generator of matrix kernels."""

    kind: str
    extensions: ClassVar[frozenset[str]] = frozenset({"conv"})
    """Of the machine, all needed."""
    sparse: ClassVar[bool] = False
    """Whether it reads an A that lies under bitmaps, and only such a one."""

    def serves(self, group: Group, machine: Machine) -> str | None:
        if missing := self.extensions - set(machine.extensions):
            return f"{machine.name} has no extension {', '.join(sorted(missing))}"
        if not self.sparse and (a := under_bitmaps(group)):
            return f"%{a} lies under bitmaps"
        p = product_of(group)
        return p if isinstance(p, str) else self.refuses(group, p, machine) or refusal(group, p)

    def prefetch(self, groups: Sequence[Group], machine: Machine) -> None:  # noqa: B027  may be left
        """Nothing is slow enough to start early."""

    def pack(self, group: Group, options: Options, machine: Machine) -> dict[str, Array]:
        return self.emitter(group, options, machine).constants()

    def lower(self, group: Group, options: Options, machine: Machine) -> Lowered:
        emitter = self.emitter(group, options, machine)
        return Lowered((emitter.emit(),), emitter.constants())

    @abstractmethod
    def refuses(self, group: Group, p: Product, machine: Machine) -> str | None:
        """Why the engine cannot compute this product, or None; what comes after it is not its business."""

    @abstractmethod
    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        """Options worth a cost estimate."""

    @abstractmethod
    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        """Predicted cycles."""

    @abstractmethod
    def emitter(self, group: Group, options: Options, machine: Machine) -> Emitter:
        """The launch with these options."""

    @abstractmethod
    def evaluate(self, group: Group, options: Options, env: dict[str, Array]) -> dict[str, Array]:
        """The group's outputs in numpy, tile by tile."""


# --- tiles --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tiling(ABC):
    """A block's tile of C and of k: the option `tile`. A subclass's fields are options of their names."""

    bm: int
    bn: int
    bk: int

    @classmethod
    def of(cls, options: Options) -> Self:
        """The tiling that a plan's options say."""
        tile: Any = options["tile"]
        own: dict[str, Any] = {f.name: options[f.name] for f in fields(cls)[len(tile) :]}
        return cls(*tile, **own)

    @property
    def options(self) -> dict[str, Attr]:
        """What `of` reads."""
        tile, own = (self.bm, self.bn, self.bk), fields(self)[3:]
        return {"tile": tile, **{f.name: getattr(self, f.name) for f in own}}

    @property
    @abstractmethod
    def threads(self) -> int:
        """Of a block."""


T = TypeVar("T", bound=Tiling)
TILEWISE = "tilewise"
"""The access of A that follows the tiles of pruned weights."""


class TiledEngine(Engine, Generic[T]):
    """An engine whose blocks compute tiles of C."""

    tiling: type[T]
    kernel: type[TiledKernel[T]]
    tilewise: ClassVar[bool] = False
    """Whether its kernels can also walk the tiles of pruned weights (`tilewise`)."""

    @abstractmethod
    def tilings(self, group: Group, p: Product, machine: Machine) -> Iterable[T]:
        """Tiles that may pay for this product."""

    @abstractmethod
    def cycles(self, group: Group, p: Product, t: T, way: str, machine: Machine) -> float:
        """Predicted cycles; `way` is how A is read: dense, im2col or gather."""

    def serves(self, group: Group, machine: Machine) -> str | None:
        if why := super().serves(group, machine):
            return why
        p = blocks.product(group)
        way = "packed" if blocks.packs(group, p) else "dense"
        if why := blocks.unaddressable(p, np.dtype(DTYPES[p.dtype]).itemsize, way):
            return why
        found = next(iter(self.candidates(group, machine)), None)
        return f"no tile of its operands fits {machine.name}" if found is None else None

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        p = blocks.product(group)
        for t in self.tilings(group, p, machine):
            if t.threads > LANES * machine.warps_per_sm:
                continue
            yield {**t.options, "access": blocks.access(p, t.bk)}
        if self.tilewise and (pruned := tilewise_plan.of(group, p)):
            for t in self.tilings(group, pruned.product, machine):
                if t.threads <= LANES * machine.warps_per_sm:
                    yield {**t.options, "access": TILEWISE, "tiles": pruned.tiles(t.bn)}

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        p, t = blocks.product(group), self.tiling.of(options)
        way = str(options["access"])
        if way == TILEWISE and (pruned := tilewise_plan.of(group, p)):
            return pruned.cycles(t, machine, lambda part: self.cycles(group, part, t, way, machine))
        return self.cycles(group, p, t, way, machine)

    def emitter(self, group: Group, options: Options, machine: Machine) -> TiledKernel[T]:
        return self.kernel(group, self.tiling.of(options), str(options["access"]), machine)

    def evaluate(self, group: Group, options: Options, env: dict[str, Array]) -> dict[str, Array]:
        p, t = blocks.product(group), self.tiling.of(options)
        if options["access"] == TILEWISE:
            return evaluate.tilewise(group, p, t, tilewise_plan.chunks(group, p, t.bn), env)
        return evaluate.tiled(group, p, t, env)


class TiledKernel(Emitter, Generic[T]):
    """One launch of a tiled engine being emitted. It is the pipeline's `Multiplier`."""

    peel: bool = False
    ahead: bool = False
    beside: Sequence[Any] = ()

    def __init__(self, group: Group, t: T, way: str, machine: Machine) -> None:
        self.group, self.t, self.machine = group, t, machine
        self.p = blocks.product(group)
        self.element = np.dtype(DTYPES[self.p.dtype]).itemsize
        tile = (t.bm, t.bn, t.bk)
        if way == "tilewise":
            self.block: Block = TilewiseBlock(
                group, self.p, tile, self.element, machine, self.stored
            )
        else:
            self.block = Block(group, self.p, tile, self.element, way, self.stored)

    @property
    def stored(self) -> str:
        """The dtype of packed weights; "": the operands'."""
        return ""

    @property
    @abstractmethod
    def vector(self) -> int:
        """The most elements of an operand that a load may take at once."""

    @abstractmethod
    def packed_weights(self, padded: Array) -> Array:
        """Weights [z, k, n], filled up to whole tiles, in the order in which the kernel reads them."""

    def constants(self) -> dict[str, Array]:
        return self.block.constants(self.vector * self.element, self.packed_weights)

    # --- the kernel

    def emit(self) -> Emitted:
        b = self.b = self.builder()
        b.role(self.group.nodes.index(self.p.node))
        self.block.begin(b)
        self.begin()
        tiles, nbytes = self._tiles()
        buffers = Buffers(b, nbytes, self.block.steps)
        self.connect(buffers, tiles)
        self.multiply(tiles, buffers)
        for frame, spots in self.results():
            self.epilogue(frame).emit(spots)
        b.emit(EXIT)
        return self.block.launch(b.finish())

    def builder(self) -> KernelBuilder:
        """An empty kernel with the block's threads."""
        return KernelBuilder(self.group.name, (self.t.threads, 1, 1), self.machine, matrix=True)

    def _tiles(self) -> tuple[list[Tile], int]:
        """The operands that go through shared memory, one behind the other, and the bytes that they take."""
        a, end = self.tile_a(0)
        b = self.tile_b(end)
        return ([a], end) if b is None else ([a, b[0]], b[1])

    @abstractmethod
    def begin(self) -> None:
        """Find out which part of the tile this thread takes."""

    @abstractmethod
    def tile_a(self, start: int) -> tuple[Tile, int]:
        """A in shared memory from byte `start` on, and where it ends."""

    @abstractmethod
    def tile_b(self, start: int) -> tuple[Tile, int] | None:
        """B likewise; None if it goes another way."""

    @abstractmethod
    def connect(self, buffers: Buffers, tiles: list[Tile]) -> None:
        """Make pointers into the buffers, and accumulators."""

    @abstractmethod
    def accumulators(self) -> Iterable[VReg]:
        """Those that are used."""

    def multiply(self, tiles: list[Tile], buffers: Buffers) -> None:
        """The walk over k."""
        run(self.b, tiles, buffers, self.block.steps, self)

    def clear(self) -> None:
        """Set the accumulators to +0."""
        for acc in self.accumulators():
            for r in range(acc.words):
                self.b.emit(MOV, acc[r], RZ)

    @abstractmethod
    def compute(self, first: bool, last: bool) -> None:
        """Multiply the current tiles into the accumulators; `first`: they start at +0 (asked if `peel`), `last`: no step follows."""

    @abstractmethod
    def results(self) -> Iterable[tuple[Frame, list[Spot]]]:
        """The accumulators and where they lie in C; spots of one frame have the same lane part."""

    def epilogue(self, frame: Frame) -> Epilogue:
        """What comes after the product, for spots of one frame."""
        return Epilogue(self.b, self.group, self.p, frame, self.block.parameters)

    def frame(self, row0: Number, col0: Number, row: VReg, col: VReg) -> Frame:
        """Spots that begin at a uniform row and column plus a lane's row and column, within the edges of C."""
        p, t = self.p, self.t
        bound = add(self.b, row, row0) if p.m % t.bm else None
        cols = p.n if p.n % t.bn else 0
        frame = Frame(row0, col0, row, col, bound, p.m, cols, self.block.axes)
        return self.block.scattered(self.b, frame)
