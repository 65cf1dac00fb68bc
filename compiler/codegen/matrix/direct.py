"""Depthwise convolutions: a channel is filtered by itself, so there is nothing for a matrix unit to reduce.

    a thread: one channel, `pixels` neighbouring output pixels of a row          lanes: neighbouring channels, so every access is one run of memory

    for a tap row:   load the input pixels under it once;   for each tap:   acc[pixel] = fma(x[pixel · stride + tap], w[tap], acc[pixel])

Loads go through the conv unit, which gives zeros outside the image. Operands of 16 bits are widened after the load, bytes by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from knapper.isa.instructions import (
    BRA,
    EXIT,
    FFMA,
    IADD,
    IMAD,
    ISETP,
    LDG,
    MOV,
    SEL,
    UIADD,
)
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Cmp, FloatType, IntType, Scalar

from ...ir import Array
from ...ops.numeric import accumulate, accumulator, finish
from ..builder import RZ, KernelBuilder, VReg
from ..generator import Emitted, Group, Options, lanes_refuse, register
from ..scalar import INTEGERS, convert
from . import blocks, evaluate
from .access import FAR, Image, Sums, load_pixel, pixel_of
from .code import (
    S32,
    add,
    block_index,
    divmod_,
    fixed,
    move_base,
    mul,
    param,
    thread_id,
    ucompare,
    umov,
    umul,
)
from .cost import ADDRESSES, WEIGHT
from .engine import Emitter, Engine
from .epilogue import BYTES, TYPES, Epilogue, Frame, Spot, loading, operands
from .product import Product, Window
from .requantize import conversions

THREADS = 128
UNROLLED = 200
"""Multiply-adds a thread up to which the rows of taps are written out."""
WIDEST = 96
"""Input pixels of a row of taps that a thread holds at once, at most."""


def pixels_of(options: Options) -> int:
    """The option, read."""
    pixels: Any = options["pixels"]
    return int(pixels)


def columns(w: Window, pixels: int) -> list[int]:
    """The input pixels, counted from the first, that a row of taps sees from so many neighbouring output pixels."""
    return sorted({i * w.sx + j * w.dx for i in range(pixels) for j in range(w.kw)})


def whole(p: Product) -> Product:
    """The product without its axis of groups: all channels side by side."""
    return replace(p, axes=(), n=p.out_pitch)


def chain(p: Product, x: Array, w: Array, pixels: int) -> Array:
    """The accumulators [m, channels], so many rows at a time as a thread takes."""
    multiplier = p.out_pitch // p.a_pitch
    weights = w.reshape(-1, p.out_pitch)
    alone = replace(p, axes=(), k=p.k * p.a_pitch)
    taps = evaluate.pixels(alone, x, 0).reshape(p.m, -1, p.a_pitch).repeat(multiplier, 2)
    out = np.zeros((p.m, p.out_pitch), accumulator(x.dtype))
    for m in range(0, p.m, pixels):
        part = taps[m : m + pixels]
        out[m : m + pixels] = accumulate(
            (part.shape[0], p.out_pitch),
            part,
            weights,
            lambda a, b: ((a[:, t], b[t]) for t in range(b.shape[0])),
        )
    return out


class Pixels(Emitter):
    """One launch being emitted."""

    def __init__(self, group: Group, pixels: int, machine: Machine) -> None:
        self.group, self.pixels, self.machine = group, pixels, machine
        self.grouped = blocks.product(group)
        self.p = whole(self.grouped)
        assert self.p.window is not None
        self.w = self.p.window
        self.runs = -(-self.w.ow // pixels)
        self.count = self.w.images * self.w.oh * self.runs * self.p.n
        self.whole = self.p.dtype in INTEGERS
        self.element = BYTES[self.p.dtype]

    def emit(self) -> Emitted:
        p = self.p
        b = self.b = KernelBuilder(self.group.name, (THREADS, 1, 1), self.machine, matrix=True)
        b.role(self.group.nodes.index(p.node))
        names = (p.a, p.b, *operands(self.group, p), *self.group.outputs)
        self._place()
        self.image_base, self.weight_base = param(b, 0), param(b, 1)
        self.size = umov(b, self.w.h << 16 | self.w.w)
        self.acc = [b.reg() for _ in range(self.pixels)]
        self._rows()
        frame = Frame(0, 0, self.row, self.channel, self.bound, self.w.ow, 0, ())
        parameters = {v: 2 + i for i, v in enumerate(names[2:])}
        Epilogue(b, self.group, p, frame, parameters).emit(
            [Spot(acc, i, 0) for i, acc in enumerate(self.acc)]
        )
        b.emit(EXIT)
        grid = (-(-self.count // THREADS), 1, 1)
        return blocks.launched(b.finish(), self.group, self.grouped, grid, names)

    def _place(self) -> None:
        """The thread's channel, its first output pixel, and that pixel's first input pixel."""
        b, w = self.b, self.w
        block = block_index(b, SR.CTAID_X, -(-self.count // THREADS))
        thread = add(b, thread_id(b), umul(b, block, THREADS))
        run, self.channel = divmod_(b, thread, self.p.n)
        line, run = divmod_(b, run, self.runs) if self.runs > 1 else (run, fixed(b, 0))
        x = mul(b, run, self.pixels)
        self.row = mul(b, line, w.ow, x)
        source = (
            divmod_(b, self.channel, self.p.n // self.p.a_pitch)[0]
            if self.p.n > self.p.a_pitch
            else self.channel
        )
        image = Image(w, self.p.a_pitch * self.element, self.element, 1)
        self.address, self.pix = pixel_of(b, self.row, image, mul(b, source, self.element), None)
        self.weight = mul(b, self.channel, self.element)
        self.bound = x if self.w.ow % self.pixels else None
        if self.count % THREADS:
            self._watch(thread, x)

    def _watch(self, thread: VReg, x: VReg) -> None:
        """Threads past the end look far outside the image and store nothing."""
        b, inside = self.b, self.b.pred()
        b.emit(ISETP, Cmp.LT, S32, inside, thread, self.count)
        pix, self.bound = b.reg(), b.reg()
        b.emit(SEL, Bits32._32, pix, self.pix, FAR, inside)
        b.emit(SEL, Bits32._32, self.bound, x, 0x7FFFFFFF, inside)
        self.pix = pix

    def _rows(self) -> None:
        b, w = self.b, self.w
        for acc in self.acc:
            b.emit(MOV, acc, RZ)
        self.pix = add(b, self.pix, RZ)
        if w.taps * self.pixels <= UNROLLED or w.kh == 1:
            for i in range(w.kh):
                self._row()
                if i + 1 < w.kh:
                    self._next()
            return
        loop, counter = b.label(), umov(b, w.kh)
        b.place(loop)
        self._row()
        self._next()
        b.emit(UIADD, Bits32._32, counter, counter, -1)
        b.emit(BRA, loop, guard=ucompare(b, Cmp.NE, counter, 0))

    def _next(self) -> None:
        """Down to the next row of taps."""
        b, w = self.b, self.w
        move_base(b, self.image_base, w.dy * w.w * self.p.a_pitch * self.element)
        move_base(b, self.weight_base, w.kw * self.p.n * self.element)
        b.emit(IADD, S32, self.pix, self.pix, w.dy << 16)

    def _row(self) -> None:
        """One row of taps: input pixels once, then tap by tap."""
        w, taps = self.w, range(self.w.kw)
        multiply = (IMAD, IntType.U32) if self.whole else (FFMA, FloatType.F32)
        sums = Sums(self.b, self.address)
        xs = {x: self._input(sums, x) for x in columns(w, self.pixels)}
        for j in taps:
            weight = self._wide(self._weight(j))
            for i, acc in enumerate(self.acc):
                self.b.emit(*multiply, acc, xs[i * w.sx + j * w.dx], weight, acc)

    def _input(self, sums: Sums, x: int) -> VReg:
        d = self.b.reg()
        a, offset = sums.near(x * self.p.a_pitch * self.element)
        how = loading(self.p.dtype)
        at = self.image_base, a, offset, self.pix, x, self.size
        load_pixel(self.b, self.w.fill, how, d, *at)
        return self._wide(d)

    def _weight(self, tap: int) -> VReg:
        d = self.b.reg()
        self.b.emit(
            LDG,
            loading(self.p.b_type.dtype),
            d,
            self.weight_base,
            self.weight,
            tap * self.p.n * self.element,
        )
        return d

    def _wide(self, x: VReg) -> VReg:
        narrow = self.p.dtype in ("f16", "bf16")
        return convert(self.b, x, Scalar.F32, TYPES[self.p.dtype]) if narrow else x


class Direct(Engine):
    """The generator."""

    kind = "direct"

    def refuses(self, group: Group, p: Product, machine: Machine) -> str | None:
        if p.window is None or p.channels != 1:
            return "is no depthwise convolution"
        if p.window.kw > WIDEST:
            return f"a row of {p.window.kw} taps does not fit the registers of a thread"
        if why := lanes_refuse(machine):
            return why
        return f"operands are {p.dtype}" if p.dtype not in (*TYPES, *INTEGERS) else None

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        w = blocks.product(group).window
        assert w is not None
        for pixels in (8, 4, 2, 1):
            if pixels < 2 * w.ow and len(columns(w, pixels)) <= WIDEST:
                yield {"pixels": pixels}

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        """Loads, conversions and multiplies share the issue slots."""
        p, pixels = whole(blocks.product(group)), pixels_of(options)
        w = p.window
        assert w is not None
        warps = -(-w.images * w.oh * -(-w.ow // pixels) * p.n // 32)
        inputs = w.kh * ((pixels - 1) * w.sx + (w.kw - 1) * w.dx + 1)
        converted = inputs + w.taps if p.dtype in ("f16", "bf16") else 0
        converted += pixels * conversions(group, p) if p.dtype != "f32" else 0
        issued = inputs + w.taps * (1 + pixels) + converted
        issued += pixels * (2 + len(group.nodes)) + ADDRESSES // 2
        share = math.ceil(warps / (machine.sms * machine.subcores))
        busy = share * max(2 * issued, converted * machine.units["cvt"].interval)
        return machine.launch_cycles + 2 * machine.l2_latency + busy + WEIGHT * warps * issued

    def emitter(self, group: Group, options: Options, machine: Machine) -> Pixels:
        return Pixels(group, pixels_of(options), machine)

    def evaluate(self, group: Group, options: Options, env: dict[str, Array]) -> dict[str, Array]:
        p = blocks.product(group)
        values: dict[str, Any] = {"": None, **group.constants, **env}
        bias = values[p.bias] if p.bias else None
        acc = chain(p, values[p.a], values[p.b], pixels_of(options))
        out = str(p.node.attrs.get("out", ""))
        values[p.node.outputs[0]] = finish(
            acc.reshape(p.out_type.shape), bias, out, values[p.a].dtype
        )
        return evaluate.rest(group, p, values)


DIRECT_GENERATOR = register(Direct())
