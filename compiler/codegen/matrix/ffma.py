"""Matrix products on the SIMD lanes: fp32 by FFMA, fp64 likewise, integers by IMAD.

    a thread's tile of C: groups of four rows by groups of four columns          an operand in shared memory is either
       columns 4·tx …    4·tx + 4·TX …                                             [x][k]  as A lies in memory: a 16-byte read is 4 k of one x
    rows 4·ty …                                                                    [k][x]  as B lies in memory: a 16-byte read is 4 x of one k

64-bit types read two instead of four. The loop over a k tile takes one such step at a time, so code stays small. 16-bit and 8-bit operands
are widened on their way into shared memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from knapper.isa.instructions import BRA, EXIT, FFMA, IMAD, LDS, MOV, UIADD, UMOV
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Bits32, Cmp, FloatType, IntType, Scalar, Width

from ...ir import Array
from ..builder import RZ, KernelBuilder, VReg, VUReg
from ..generator import Emitted, Group, Lowered, Options, register
from ..scalar import convert
from . import blocks, cost, evaluate
from .access import WIDTHS, Packed
from .blocks import Block
from .code import add, divmod_, mul, thread_id, ucompare
from .epilogue import Epilogue, Frame, Spot, refusal
from .geometry import grid
from .pipeline import Buffers, Tile, run
from .product import Product, product_of


@dataclass(frozen=True)
class Kind:
    """How operands of a type are multiplied: bytes in memory, words in registers, the instruction, the type of packed weights."""

    element: int
    words: int
    multiply: Any
    type: Any
    stored: str
    signed: bool = False
    widen: Scalar | None = None


KINDS = {
    "f32": Kind(4, 1, FFMA, FloatType.F32, "f4"),
    "f16": Kind(2, 1, FFMA, FloatType.F32, "f4", widen=Scalar.F16),
    "bf16": Kind(2, 1, FFMA, FloatType.F32, "f4", widen=Scalar.BF16),
    "f64": Kind(8, 2, FFMA, FloatType.F64, "f8"),
    "i32": Kind(4, 1, IMAD, IntType.U32, "i4"),
    "u32": Kind(4, 1, IMAD, IntType.U32, "u4"),
    "i64": Kind(8, 2, IMAD, IntType.S64, "i8"),
    "u64": Kind(8, 2, IMAD, IntType.U64, "u8"),
    "i8": Kind(1, 1, IMAD, IntType.U32, "i4", signed=True),
    "u8": Kind(1, 1, IMAD, IntType.U32, "i4"),
    "i16": Kind(2, 1, IMAD, IntType.U32, "i4", signed=True),
    "u16": Kind(2, 1, IMAD, IntType.U32, "i4"),
}
"""The low half of a product is the same signed and unsigned; IMAD.S32 makes addresses and is not counted as a product."""


@dataclass(frozen=True)
class Tiling:
    """The options, read: block tile and a thread's tile."""

    bm: int
    bn: int
    bk: int
    tm: int
    tn: int

    @staticmethod
    def of(options: Options) -> Tiling:
        tile: Any = options["tile"]
        thread: Any = options["thread"]
        return Tiling(*tile, *thread)

    @property
    def threads(self) -> int:
        return self.bm // self.tm * (self.bn // self.tn)


class Ffma:
    """The generator."""

    kind = "ffma"

    def serves(self, group: Group, machine: Machine) -> str | None:
        if "conv" not in machine.extensions:
            return f"{machine.name} has no extension conv"
        p = product_of(group)
        if isinstance(p, str):
            return p
        if p.dtype not in KINDS or p.a_type.dtype != p.b_type.dtype:
            return f"operands are {p.a_type.dtype} and {p.b_type.dtype}"
        floating = p.dtype in ("f32", "f16", "bf16")
        if not floating and (len(group.nodes) > 1 or p.bias):
            return f"a product of {p.dtype} takes no epilogue"
        element = KINDS[p.dtype].element
        why = refusal(group, p) if floating else None
        return why or blocks.unaddressable(
            p, element, "packed" if p.b in group.constants else "dense"
        )

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        p = blocks.product(group)
        for t in tilings(p):
            yield {
                "tile": (t.bm, t.bn, t.bk),
                "thread": (t.tm, t.tn),
                "access": blocks.access(p, t.bk),
            }

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        p = blocks.product(group)
        return cost.ffma(
            p,
            Tiling.of(options),
            KINDS[p.dtype].words,
            str(options["access"]),
            machine,
            len(group.nodes),
        )

    def prefetch(self, groups: Sequence[Group], machine: Machine) -> None:
        """Nothing is slow enough to start early."""

    def pack(self, group: Group, options: Options, machine: Machine) -> dict[str, Array]:
        """Weights as [z, n tile, k step, k, n], and the gather table."""
        return _Kernel(group, options, machine).constants()

    def lower(self, group: Group, options: Options, machine: Machine) -> Lowered:
        k = _Kernel(group, options, machine)
        return Lowered((k.emit(),), k.constants())

    def evaluate(self, group: Group, options: Options, env: dict[str, Array]) -> dict[str, Array]:
        return evaluate.tiled(group, blocks.product(group), Tiling.of(options), env)


FFMA_GENERATOR = register(Ffma())


SHAPES = (
    (128, 128, 8, 8), (128, 64, 8, 8), (64, 64, 8, 8), (64, 64, 8, 4), (128, 32, 8, 4),
    (32, 64, 4, 4), (32, 32, 4, 4), (16, 64, 4, 4), (4, 128, 4, 4),
)  # fmt: skip
WIDE_SHAPES = ((64, 64, 4, 4), (32, 32, 4, 4), (16, 32, 2, 4))
"""(bm, bn, rows and columns a thread): of 32-bit and of 64-bit types."""


def tilings(p: Product) -> Iterable[Tiling]:
    """Block tiles that may pay for this product."""
    wide = KINDS[p.dtype].words == 2
    shapes = WIDE_SHAPES if wide else SHAPES
    fits = [s for s in shapes if (s[0] < 2 * p.m or s[0] <= 16) and (s[1] < 2 * p.n or s[1] <= 32)]
    for bm, bn, tm, tn in fits or shapes[-1:]:
        yield Tiling(bm, bn, 8 if wide else 16, tm, tn)


@dataclass(frozen=True)
class _Operand:
    """One operand in shared memory. `across`: [k][x], else [x][k]; `per_thread` groups of `size` x lie `apart` bytes apart."""

    pointer: VUReg
    lane: VReg
    across: bool
    pitch: int
    groups: int
    size: int
    apart: int


class _Kernel:
    """One launch being emitted."""

    def __init__(self, group: Group, options: Options, machine: Machine) -> None:
        self.group, self.machine, self.t = group, machine, Tiling.of(options)
        self.p = blocks.product(group)
        self.how = KINDS[self.p.dtype]
        self.size = 4 * self.how.words
        self.run = 4 // self.how.words
        tile = (self.t.bm, self.t.bn, self.t.bk)
        self.block = Block(
            group, self.p, tile, self.how.element, str(options["access"]), self.how.stored
        )

    def constants(self) -> dict[str, Array]:
        found = self.block.tables(self.most * self.how.element)
        if self.block.packed:
            t, padded = self.t, self.block.padded_weights(self.group.constants[self.p.b])
            z, k, n = padded.shape
            parts = padded.reshape(z, k // t.bk, t.bk, n // t.bn, t.bn)
            found[self.block.packed_name] = parts.transpose(0, 3, 1, 2, 4).copy()
        return found

    @property
    def most(self) -> int:
        """The longest vector of operand elements: narrow ones come alone, since each needs a register of its own."""
        return 16 // self.how.element if self.how.element >= 4 else 1

    def emit(self) -> Emitted:
        t, p = self.t, self.p
        b = self.b = KernelBuilder(self.group.name, (t.threads, 1, 1), self.machine, matrix=True)
        b.role(self.group.nodes.index(p.node))
        self.block.begin(b)
        self.tx_count, self.ty_count = t.bn // t.tn, t.bm // t.tm
        self.ty, self.tx = divmod_(b, thread_id(b), self.tx_count)
        a, start = self._tile(
            p.trans_a, t.bm, 0, self.block.vector_a(self.most), self.block.a_access
        )
        if self.block.packed:
            bt, end = self._packed(start)
        else:
            bt, end = self._tile(
                not p.trans_b, t.bn, start, self.block.vector_b(self.most), self.block.b_access
            )
        buffers = Buffers(b, end, self.block.steps)
        self.a = self._operand(buffers, a, p.trans_a, t.bm, t.tm, self.ty, self.ty_count)
        self.bb = self._operand(
            buffers, bt, self.block.packed or not p.trans_b, t.bn, t.tn, self.tx, self.tx_count
        )
        self.acc = [[b.reg(self.how.words) for _ in range(t.tn)] for _ in range(t.tm)]
        run(b, [a, bt], buffers, self.block.steps, self)
        self._epilogue()
        b.emit(EXIT)
        return self.block.launch(b.finish())

    # --- operands

    def _pitch(self, across: bool, extent: int) -> int:
        """Bytes from row to row of a tile; rows of [x][k] are set off by 16 bytes, which spreads them over the banks."""
        return extent * self.size if across else self.t.bk * self.size + 16

    def _tile(self, across: bool, extent: int, start: int, v: int, reach: Any) -> tuple[Tile, int]:
        rows, cols = (self.t.bk, extent) if across else (extent, self.t.bk)
        pitch = self._pitch(across, extent)
        g = grid(self.b, rows, cols, v, self.t.threads, pitch, self.size)
        return Tile(
            reach(self.b, g, self.how.signed), g, start, self.size, self._widened()
        ), start + rows * pitch

    def _widened(self) -> Any:
        return (
            (lambda b, x: convert(b, x, Scalar.F32, self.how.widen))
            if self.how.widen is not None
            else None
        )

    def _packed(self, start: int) -> tuple[Tile, int]:
        t, v = self.t, self.run
        g = grid(self.b, t.bk, t.bn, v, t.threads, t.bn * self.size, self.size)
        nbytes = t.bk * t.bn * self.size
        base = self.block.packed_base(self.b)
        return Tile(
            Packed(base, g, nbytes, self.block.steps, Width._128), g, start, self.size
        ), start + nbytes

    def _operand(
        self,
        buffers: Buffers,
        tile: Tile,
        across: bool,
        extent: int,
        per_thread: int,
        place: VReg,
        count: int,
    ) -> _Operand:
        size = min(self.run, per_thread)
        pitch = self._pitch(across, extent)
        step = self.size if across else pitch
        lane = mul(self.b, place, size * step)
        return _Operand(
            buffers.pointer(tile.start),
            lane,
            across,
            pitch,
            per_thread // size,
            size,
            size * count * step,
        )

    peel = False
    beside: Sequence[Any] = ()

    def clear(self) -> None:
        for acc in (c for row in self.acc for c in row):
            for w in range(self.how.words):
                self.b.emit(MOV, acc[w], RZ)

    def compute(self, first: bool, last: bool) -> None:
        """A loop over the k tile, as many k a turn as one read of [x][k] brings."""
        b = self.b
        turns, counter, loop = self.t.bk // self.run, b.ureg(), b.label()
        pointers = [b.ureg(), b.ureg()]
        for pointer, o in zip(pointers, (self.a, self.bb), strict=True):
            b.emit(UMOV, pointer, o.pointer)
        b.emit(UMOV, counter, turns)
        b.place(loop)
        xs, ys = (
            self._read(o, pointer) for o, pointer in zip((self.a, self.bb), pointers, strict=True)
        )
        for k in range(self.run):
            for x, row in zip(xs, self.acc, strict=True):
                for y, acc in zip(ys, row, strict=True):
                    b.emit(self.how.multiply, self.how.type, acc, x[k], y[k], acc)
        for pointer, o in zip(pointers, (self.a, self.bb), strict=True):
            b.emit(
                UIADD, Bits32._32, pointer, pointer, self.run * (o.pitch if o.across else self.size)
            )
        b.emit(UIADD, Bits32._32, counter, counter, -1)
        b.emit(BRA, loop, guard=ucompare(b, Cmp.NE, counter, 0))

    def _read(self, o: _Operand, pointer: VUReg) -> list[list[VReg]]:
        """The thread's elements of an operand, [x][k]."""
        if o.across:
            rows = [
                self._vectors(
                    o, pointer, [k * o.pitch + g * o.apart for g in range(o.groups)], o.size
                )
                for k in range(self.run)
            ]
            return [[row[x] for row in rows] for x in range(o.groups * o.size)]
        places = [g * o.apart + i * o.pitch for g in range(o.groups) for i in range(o.size)]
        flat = self._vectors(o, pointer, places, self.run)
        return [flat[i : i + self.run] for i in range(0, len(flat), self.run)]

    def _vectors(self, o: _Operand, pointer: VUReg, places: list[int], count: int) -> list[VReg]:
        found, w = list[VReg](), self.how.words
        for place in places:
            d = self.b.reg(count * w)
            self.b.emit(LDS, WIDTHS[4 * count * w], d, pointer, o.lane, place)
            found += [d[i * w : (i + 1) * w] for i in range(count)]
        return found

    def _epilogue(self) -> None:
        b, t, p = self.b, self.t, self.p
        gm, gn = self.a.size, self.bb.size
        row, col = mul(b, self.ty, gm), mul(b, self.tx, gn)
        bound = add(b, row, self.block.m0) if p.m % t.bm else None
        frame = Frame(
            self.block.m0,
            self.block.n0,
            row,
            col,
            bound,
            p.m,
            p.n if p.n % t.bn else 0,
            self.block.axes,
        )
        spots = [
            Spot(
                self.acc[i][j],
                i // gm * gm * self.ty_count + i % gm,
                j // gn * gn * self.tx_count + j % gn,
            )
            for i in range(t.tm)
            for j in range(t.tn)
        ]
        Epilogue(b, self.group, p, frame, self.block.parameters).emit(spots)
