"""RoiAlign: a thread computes one result, in the order in which results lie in memory.

    thread ─► (region, bin row, bin column, channel)       channels last: 32 lanes read 32 neighbouring channels of one pixel
       └─ for each sample of the bin:  point ─► four neighbours, four weights ─► + or max

With a sampling ratio all lanes take the same number of samples. Without one it depends on the region's size: lanes of
different regions then leave the loop at different times, inside a convergence region.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

from knapper.isa.instructions import (
    BRA,
    BSSY,
    BSYNC,
    CVT,
    EXIT,
    FADD,
    FDIV,
    FMUL,
    FRND,
    IADD,
    IDIV,
    IMAD,
    IMNMX,
    IMUL,
    ISETP,
    LDG,
    PLOP,
    SEL,
)
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Cmp, FloatType, Logic, MinMax, Rounding, Scalar, Width
from knapper.isa.operands import Convergence

from ...ops.detection import HALF
from ...ops.shapes import channel_axis, spatial_axes
from ..builder import KernelBuilder, VPred, VReg
from ..generator import Emitted, Group
from ..matrix.code import S32, U32, add, block_index, divmod_, fixed, mul, param, thread_id, umul
from ..scalar import SCALAR, arith, choose, compare, constant, extreme, f32
from .operands import core_of, source, targets

THREADS = 128
minus = SCALAR["Sub"]


@dataclass(frozen=True)
class Sizes:
    """All that the kernel knows in advance."""

    count: int
    """Results."""
    channels: int
    height: int
    width: int
    bins: tuple[int, int]
    """Rows and columns a region."""
    ratio: int
    scale: float
    half: bool
    greatest: bool
    last: bool
    """Channels last."""

    @staticmethod
    def of(group: Group) -> Sizes:
        """Read off a group's node and types."""
        node = core_of(group)
        assert not isinstance(node, str)
        layout = node.attr("layout")
        x = group.inputs[source(group, node.inputs[0]).value].shape
        height, width = (x[i] for i in spatial_axes(layout, 4))
        return Sizes(
            node.types[0].count, x[channel_axis(layout, 4)], height, width,
            (node.attr("output_height"), node.attr("output_width")), node.attr("sampling_ratio"), node.attr("spatial_scale"),
            node.attr("coordinate_transformation_mode") == HALF, node.attr("mode") == "max", layout == "NHWC",
        )  # fmt: skip


def emit(group: Group, machine: Machine) -> Emitted:
    """The launch."""
    return _Kernel(group, machine).emit()


class _Kernel:
    """One launch being emitted."""

    def __init__(self, group: Group, machine: Machine) -> None:
        node = core_of(group)
        assert not isinstance(node, str)
        self.group, self.node, self.s = group, node, Sizes.of(group)
        self.b = KernelBuilder("roialign", (THREADS, 1, 1), machine)
        self.b.role(group.nodes.index(node))
        self.x, self.rois = (source(group, v) for v in node.inputs[:2])
        self.targets = targets(group, node.outputs[0])

    def emit(self) -> Emitted:
        b, s = self.b, self.s
        blocks = -(-s.count // THREADS)
        names = [self.x.value, self.rois.value, self.node.inputs[2]]
        names += [t.value for t in self.targets]
        bases = [param(b, i) for i in range(len(names))]
        self.image, self.regions, self.indices = bases[:3]
        result = add(b, thread_id(b), umul(b, block_index(b, SR.CTAID_X, blocks), THREADS))
        if s.count % THREADS:
            outside = b.pred()
            b.emit(ISETP, Cmp.GE, S32, outside, result, s.count)
            b.emit(EXIT, guard=outside)
        self._place(result)
        total = self._samples()
        for target, base in zip(self.targets, bases[3:], strict=True):
            target.store(b, base, mul(b, result, target.bytes), total)
        b.emit(EXIT)
        uses = dict.fromkeys(names[:3], "r") | dict.fromkeys(names[3:], "w")
        nodes = tuple(n.loc or n.outputs[0] for n in self.group.nodes)
        return Emitted(b.finish(), (blocks, 1, 1), tuple(names), uses, nodes)

    # --- where the thread is

    def _place(self, result: VReg) -> None:
        """The thread's bin, its region's image, and where the samples of the bin begin."""
        b, s = self.b, self.s
        if s.last:
            rest, channel = divmod_(b, result, s.channels)
            rest, column = divmod_(b, rest, s.bins[1])
            region, row = divmod_(b, rest, s.bins[0])
        else:
            rest, column = divmod_(b, result, s.bins[1])
            rest, row = divmod_(b, rest, s.bins[0])
            region, channel = divmod_(b, rest, s.channels)
        index, corners = b.reg(), mul(b, region, 4 * self.rois.bytes)
        b.emit(LDG, Width._32, index, self.indices, mul(b, region, 8), 0)
        left, top, right, bottom = (self._corner(corners, i) for i in range(4))
        self.rows = self._axis(top, bottom, s.bins[0], row)
        self.columns = self._axis(left, right, s.bins[1], column)
        plane = s.height * s.width
        if s.last:
            self.origin = mul(b, index, plane * s.channels, channel)
        else:
            self.origin = mul(b, mul(b, index, s.channels, channel), plane)

    def _corner(self, at: VReg, i: int) -> VReg:
        """A coordinate of the region in pixels of x."""
        b, s = self.b, self.s
        scaled = arith(
            b, FMUL, self.rois.load(b, self.regions, at, i * self.rois.bytes), f32(s.scale)
        )
        return arith(b, FADD, scaled, f32(-0.5 if s.half else 0.0))

    def _axis(self, start: VReg, end: VReg, bins: int, at: VReg) -> _Axis:
        """One axis of the bin: where it starts, how long it is, how many samples it has."""
        b, s = self.b, self.s
        length = minus(b, end, start)
        if not s.half:
            length = extreme(b, MinMax.MAX, length, f32(1.0))
        size = arith(b, FDIV, length, constant(b, bins))
        begin = arith(b, FADD, start, arith(b, FMUL, self._float(at), size))
        if s.ratio:
            return _Axis(begin, size, s.ratio, constant(b, s.ratio))
        samples = b.reg()
        b.emit(CVT, Scalar.S32, Scalar.F32, Rounding.RP, samples, size)
        b.emit(IMNMX, MinMax.MAX, S32, samples, samples, 0)
        return _Axis(begin, size, samples, self._float(samples))

    def _float(self, i: VReg) -> VReg:
        """A signed integer as f32."""
        d = self.b.reg()
        self.b.emit(CVT, Scalar.F32, Scalar.S32, Rounding.RN, d, i)
        return d

    # --- samples

    def _samples(self) -> VReg:
        """The loop over the samples of the bin, row by row; their mean, or the greatest."""
        b, s = self.b, self.s
        total, first = fixed(b, 0), fixed(b, 0)
        count = self._count()
        loop, end = b.label(), b.label()
        if not isinstance(count, int):
            b.emit(BSSY, Convergence(0), end)
            b.emit(BRA, end, guard=self._compare(Cmp.EQ, count, 0))
        b.place(loop)
        parts = self._parts(*self._divided(first))
        self._take(total, parts, first)
        b.emit(IADD, S32, first, first, 1)
        b.emit(BRA, loop, guard=self._compare(Cmp.LT, first, count))
        b.place(end)
        if not isinstance(count, int):
            b.emit(BSYNC, Convergence(0))
        return total if s.greatest else self._mean(total, count)

    def _take(self, total: VReg, parts: list[VReg], i: VReg) -> None:
        """The i-th sample into the total: its parts' sum is added, or the greatest of them counts."""
        b = self.b
        if self.s.greatest:
            best = reduce(partial(extreme, b, MinMax.MAX), parts)
            better = extreme(b, MinMax.MAX, total, best)
            b.emit(SEL, Bits32._32, total, best, better, self._compare(Cmp.EQ, i, 0))
        else:
            b.emit(FADD, FloatType.F32, total, total, reduce(partial(arith, b, FADD), parts))

    def _count(self) -> VReg | int:
        """Samples of the bin."""
        if self.s.ratio:
            return self.s.ratio**2
        d = self.b.reg()
        self.b.emit(IMUL, S32, d, self.rows.samples, self.columns.samples)
        return d

    def _mean(self, total: VReg, count: VReg | int) -> VReg:
        """total / count; 0 where a region without extent has no sample."""
        b = self.b
        if isinstance(count, int):
            return arith(b, FDIV, total, constant(b, count))
        some = b.reg()
        b.emit(IMNMX, MinMax.MAX, S32, some, count, 1)
        return arith(b, FDIV, total, self._float(some))

    def _divided(self, i: VReg) -> tuple[VReg, VReg]:
        """Row and column of the i-th sample."""
        b, samples = self.b, self.columns.samples
        if isinstance(samples, int):
            return divmod_(b, i, samples)
        row, column, back = b.reg(), b.reg(), b.reg()
        b.emit(IDIV, U32, row, i, samples)
        b.emit(IMUL, S32, back, row, samples)
        b.emit(IADD, S32, column, i, mul(b, back, -1))
        return row, column

    def _parts(self, row: VReg, column: VReg) -> list[VReg]:
        """The four neighbours of a sample, each times its weight; zeros outside the image."""
        b, s = self.b, self.s
        y = self._neighbours(self.rows.at(b, self._float(row)), s.height)
        x = self._neighbours(self.columns.at(b, self._float(column)), s.width)
        outside = b.pred()
        b.emit(PLOP, Logic.OR, outside, y.outside, x.outside)
        corners = ((y.before, y.low), (y.behind, y.high))
        sides = ((x.before, x.low), (x.behind, x.high))
        zero, found = constant(b, 0.0), []
        for weight, line in corners:
            for across, pixel in sides:
                product = arith(b, FMUL, arith(b, FMUL, weight, across), self._pixel(line, pixel))
                found.append(choose(b, outside, zero, product))
        return found

    def _neighbours(self, at: VReg, size: int) -> _Neighbours:
        """The pixels before and behind a point of one axis, and their weights."""
        b = self.b
        low, high, is_last = b.reg(), b.reg(), b.pred()
        outside = b.pred()
        b.emit(
            PLOP,
            Logic.OR,
            outside,
            compare(b, Cmp.LT, at, f32(-1.0)),
            compare(b, Cmp.GT, at, f32(size)),
        )
        at = extreme(b, MinMax.MAX, at, f32(0.0))
        whole = b.reg()
        b.emit(FRND, Rounding.RZ, FloatType.F32, whole, at)
        b.emit(CVT, Scalar.S32, Scalar.F32, Rounding.RZ, low, at)
        b.emit(ISETP, Cmp.GE, S32, is_last, low, size - 1)
        b.emit(IMNMX, MinMax.MIN, S32, low, low, size - 1)
        b.emit(IMNMX, MinMax.MIN, S32, high, add(b, low, 1), size - 1)
        behind = choose(b, is_last, constant(b, 0.0), minus(b, at, whole))
        before = minus(b, constant(b, 1.0), behind)
        return _Neighbours(low, high, before, behind, outside)

    def _pixel(self, row: VReg, column: VReg) -> VReg:
        """x at a pixel, in the thread's image and channel."""
        b, s, pixel, at = self.b, self.s, self.b.reg(), self.b.reg()
        b.emit(IMAD, S32, pixel, row, s.width, column)
        b.emit(IMAD, S32, at, pixel, s.channels if s.last else 1, self.origin)
        return self.x.load(b, self.image, mul(b, at, self.x.bytes))

    def _compare(self, cmp: Cmp, x: VReg, y: Any) -> VPred:
        p = self.b.pred()
        self.b.emit(ISETP, cmp, S32, p, x, y)
        return p


@dataclass(frozen=True)
class _Axis:
    """Samples of the thread's bin on one axis: `samples` as a number known now or a register, `parts` the same as f32."""

    begin: VReg
    size: VReg
    samples: VReg | int
    parts: VReg

    def at(self, b: KernelBuilder, i: VReg) -> VReg:
        """Where the i-th sample is: begin + (i + ½) · size / samples."""
        inner = arith(b, FMUL, arith(b, FADD, i, f32(0.5)), self.size)
        return arith(b, FADD, self.begin, arith(b, FDIV, inner, self.parts))


@dataclass(frozen=True)
class _Neighbours:
    """Two pixels of one axis, their weights, and whether the point is too far outside to count."""

    low: VReg
    high: VReg
    before: VReg
    behind: VReg
    outside: VPred


SAMPLE, BIN = 70, 60
"""Instructions of a sample, and of a bin beside its samples; counted in the code above."""
USUAL = 2
"""Samples a side, for an estimate, where the data decides."""


def cost(group: Group, machine: Machine) -> float:
    """The launch, and the instructions of all threads over all issue slots."""
    s = Sizes.of(group)
    instructions = s.count * (BIN + (s.ratio or USUAL) ** 2 * SAMPLE)
    return float(machine.launch_cycles + instructions / (32 * machine.subcores * machine.sms))
