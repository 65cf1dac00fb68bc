"""A dense value becomes values packed under bitmaps: a warp takes a segment of 32 positions and 32 channels.

    lane = position      LDG.128     8 channels of a pixel a lane, four times: 64 bytes side by side, whole sectors
       │
       ├─ BMENC          a channel at a time: lanes that hold no zero store, side by side, and all lanes get the bitmap
       ├─ STG.128        32 bitmaps, by lane 0
       └─ STG.8          which of the two 16s of channels have any

Positions outside the value (the lead, what pads rows and images, the last segments) hold zeros, and channels that fill up to 16 do.
Slots are written as far as there are values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

from knapper.isa.instructions import BMENC, EXIT, ISETP, LDG, LOP, MOV, PLOP, SHF, STG
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Cmp, Direction, Logic, Memory, Width

from ...encoding import SEGMENT
from ...ir import Node
from ...sparsity.bitmap import GROUP, SLOT, Layout
from ..builder import KernelBuilder, VPred, VReg, VUReg
from ..generator import Emitted
from ..matrix.code import (
    S32,
    U32,
    Number,
    add,
    block_index,
    divmod_,
    fixed,
    lane_id,
    move_base,
    mul,
    param,
    special,
    uadd,
    ucompare,
    udivmod,
    umul,
)

WARPS = 4
CHUNK = 32
"""Channels of a warp: those of a byte of flags."""
LOADS = {8: Width._128, 4: Width._64, 2: Width._32, 1: Width.U16}
"""Elements a lane loads at once → how."""
FIXED = 60
"""Instructions of a warp beside those for its channels; counted in the code below."""


@dataclass(frozen=True)
class Cut:
    """How the value is cut into the work of warps."""

    layout: Layout

    @property
    def vector(self) -> int:
        """Channels that a lane loads at once."""
        return next(v for v in LOADS if self.layout.shape[-1] % v == 0)

    @property
    def chunks(self) -> int:
        return -(-self.layout.channels // CHUNK)

    @property
    def warps(self) -> int:
        return self.layout.segments * self.chunks

    @property
    def width(self) -> int:
        """Channels that a warp writes at most."""
        return min(CHUNK, self.layout.channels)

    @property
    def last(self) -> int:
        """Channels of the value in the last chunk."""
        return self.layout.shape[-1] - CHUNK * (self.chunks - 1)

    @property
    def blocks(self) -> int:
        return -(-self.warps // WARPS)


def cost(layout: Layout, machine: Machine) -> float:
    """The launch, a load, and what the busiest of issue slots, the bitmap unit and memory takes."""
    cut, unit = Cut(layout), machine.units["bitmap"]
    each = -(-cut.warps // (machine.sms * machine.subcores))
    channels = min(cut.width, layout.shape[-1])
    busy = max(FIXED + 3 * channels, 2 * unit.interval * channels)
    dense = 2 * layout.shape[-1] * len(layout.positions)
    moved = 2 * dense + sum(layout.sections[1:])
    memory = moved * machine.clock_hz / machine.l2_bytes_per_second
    return float(machine.launch_cycles + machine.l2_latency + max(each * busy, memory))


def emit(node: Node, layout: Layout, machine: Machine) -> Emitted:
    """The launch."""
    return _Kernel(node, layout, machine).emit()


class _Kernel:
    """One launch being emitted."""

    def __init__(self, node: Node, layout: Layout, machine: Machine) -> None:
        self.node, self.layout, self.cut = node, layout, Cut(layout)
        self.b = KernelBuilder("encode", (32 * WARPS, 1, 1), machine)

    def emit(self) -> Emitted:
        b, cut = self.b, self.cut
        self.x = param(b, 0)
        self.segment, self.chunk = self._warp()
        self.inner = self._before_last()
        self.first = b.pred()
        b.emit(ISETP, Cmp.EQ, S32, self.first, lane_id(b), 0)
        self.valid, at = self._pixel()
        self.guards = {True: self.valid, False: self._both(self.valid, self.inner)}
        bitmaps = self._values(at)
        self._bitmaps(bitmaps)
        self._flags([quad[i] for quad in bitmaps for i in range(4)])
        b.emit(EXIT)
        x, encoded = self.node.inputs[0], self.node.outputs[1]
        name = self.node.loc or self.node.outputs[0]
        uses = {x: "r", encoded: "w"}
        return Emitted(b.finish(), (cut.blocks, 1, 1), (x, encoded), uses, (name,))

    # --- where the warp and its lanes are

    @property
    def _several(self) -> bool:
        return self.cut.chunks > 1

    def _warp(self) -> tuple[Number, Number]:
        """The warp's segment and chunk of channels; warps beyond the last one go."""
        b, cut = self.b, self.cut
        warp = uadd(
            b, special(b, SR.WARPID), umul(b, block_index(b, SR.CTAID_X, cut.blocks), WARPS)
        )
        assert isinstance(warp, VUReg)
        if cut.warps % WARPS:
            b.emit(EXIT, guard=ucompare(b, Cmp.GE, warp, cut.warps))
        return udivmod(b, warp, cut.chunks)

    def _before_last(self) -> VPred | None:
        """Whether the chunk is not the last one; None if there is one."""
        if isinstance(self.chunk, int):
            return None
        return ucompare(self.b, Cmp.LT, self.chunk, self.cut.chunks - 1)

    def _pixel(self) -> tuple[VPred, VReg]:
        """Whether a lane's position is one of the value, and the byte in it where its channels begin."""
        b, s = self.b, self.layout
        _, height, width = s.image
        here = add(b, lane_id(b), umul(b, self.segment, SEGMENT))
        here = add(b, here, -s.lead)
        valid = self._below(here, s.end - s.lead)
        if s.inset:
            b.emit(ISETP, Cmp.GE, S32, valid, here, 0, guard=valid)
            line, column = divmod_(b, here, s.pitch)
            image, row = divmod_(b, line, s.rows)
            b.emit(ISETP, Cmp.LT, S32, valid, column, width, guard=valid)
            b.emit(ISETP, Cmp.LT, S32, valid, row, height, guard=valid)
            here = mul(b, mul(b, image, height, row), width, column)
        at = mul(b, here, 2 * s.shape[-1])
        return valid, add(b, at, umul(b, self.chunk, 2 * CHUNK))

    def _below(self, x: VReg, limit: int) -> VPred:
        p = self.b.pred()
        self.b.emit(ISETP, Cmp.LT, S32, p, x, limit)
        return p

    def _both(self, p: VPred, q: VPred | None) -> VPred:
        """Lanes of p, in chunks before the last one."""
        if q is None:
            return p
        d = self.b.pred()
        self.b.emit(PLOP, Logic.AND, d, p, q)
        return d

    # --- what it writes

    def _values(self, at: VReg) -> list[VReg]:
        """Pack every channel; the bitmaps, four a register group."""
        b, cut = self.b, self.cut
        out = param(b, 1)
        place = self._line(SLOT)
        quads = [b.reg(4) for _ in range(cut.width // 4)]
        for c in range(0, cut.width, cut.vector):
            if c >= cut.last and not self._several:  # channels that only fill up
                for k in range(c, c + cut.vector):
                    b.emit(MOV, quads[k // 4][k % 4], 0)
                continue
            for k, v in enumerate(self._load(at, c), c):
                b.emit(BMENC, Memory.G, quads[k // 4][k % 4], out, place, SLOT * k, v)
        return quads

    def _load(self, at: VReg, c: int) -> list[VReg]:
        """Channels from c on of each lane's pixel, each in the low half of a register; zeros where there is none."""
        b, v = self.b, self.cut.vector
        data = b.reg(max(v // 2, 1))
        words = [data[i] for i in range(data.words)]
        for word in words:
            b.emit(MOV, word, 0)
        b.emit(LDG, LOADS[v], data, self.x, at, 2 * c, guard=self.guards[c < self.cut.last])
        return [self._half(words[k // 2], k % 2) for k in range(v)]

    def _half(self, word: VReg, high: int) -> VReg:
        if not high:
            return word
        d = self.b.reg()
        self.b.emit(SHF, Direction.R, U32, d, word, 16)
        return d

    def _line(self, size: int) -> VReg:
        """The byte where the warp's channels begin, in a section with `size` bytes a channel."""
        b, s = self.b, self.layout
        rest = umul(b, self.chunk, CHUNK * size)
        return fixed(b, umul(b, self.segment, s.channels * size, rest))

    def _section(self, i: int) -> VUReg:
        """The base address of a section of the buffer."""
        base = param(self.b, 1)
        move_base(self.b, base, sum(self.layout.sections[:i]))
        return base

    def _bitmaps(self, quads: list[VReg]) -> None:
        """Lane 0 writes the words, where the chunk has these channels."""
        b, base, at = self.b, self._section(1), self._line(4)
        short = self.layout.channels % CHUNK
        inner = self._both(self.first, self.inner)
        for i, quad in enumerate(quads):
            there = not short or 4 * i < short
            b.emit(STG, Width._128, base, at, 16 * i, quad, guard=self.first if there else inner)

    def _flags(self, words: list[VReg]) -> None:
        """A bit for each 16 channels."""
        b, s = self.b, self.layout
        byte, some = fixed(b, 0), b.pred()
        for i in range(0, len(words), GROUP):
            found = reduce(self._or, words[i : i + GROUP])
            b.emit(ISETP, Cmp.NE, S32, some, found, 0)
            b.emit(LOP, Logic.OR, Bits32._32, byte, byte, 1 << i // GROUP, guard=some)
        at = fixed(b, uadd(b, umul(b, self.segment, s.flags), self.chunk))
        b.emit(STG, Width.U8, self._section(2), at, 0, byte, guard=self.first)

    def _or(self, x: VReg, y: VReg) -> VReg:
        d = self.b.reg()
        self.b.emit(LOP, Logic.OR, Bits32._32, d, x, y)
        return d
