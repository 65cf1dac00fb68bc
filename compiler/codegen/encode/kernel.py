"""A dense value becomes values packed under bitmaps: a warp takes a segment of 32 positions and 32 channels, which are a record.

    lane = position      LDG.128     8 channels of a pixel a lane, four times: 64 bytes side by side, whole sectors
       │
       └─ `record.pack`              as the epilogue of a sparse product does

Positions outside the value (the lead, what pads rows and images, the last segments) hold zeros, and channels that fill up to 32 do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from knapper.isa.instructions import EXIT, ISETP, LDG, MOV, PLOP, SHF
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Cmp, Direction, Logic, Width

from ...encoding import SEGMENT
from ...ir import Node
from ...sparsity.bitmap import CHANNELS, HEADER, Layout
from ..builder import KernelBuilder, VPred, VReg, VUReg
from ..generator import Emitted
from ..matrix.code import (
    S32,
    U32,
    Number,
    add,
    block_index,
    divmod_,
    lane_id,
    move_base,
    mul,
    param,
    special,
    uadd,
    ucompare,
    udivmod,
    umov,
    umul,
)
from . import record

WARPS = 4
LOADS = {8: Width._128, 4: Width._64, 2: Width._32, 1: Width.U16}
"""Elements a lane loads at once → how."""
FIXED = 50
"""Instructions of a warp beside its loads and the record."""


@dataclass(frozen=True)
class Cut:
    """How the value is cut into the work of warps."""

    layout: Layout

    @property
    def vector(self) -> int:
        """Channels that a lane loads at once."""
        return next(v for v in LOADS if self.layout.shape[-1] % v == 0)

    @property
    def warps(self) -> int:
        return self.layout.segments * self.layout.groups

    @property
    def last(self) -> int:
        """Channels of the value in the last record."""
        return self.layout.shape[-1] - CHANNELS * (self.layout.groups - 1)

    @property
    def blocks(self) -> int:
        return -(-self.warps // WARPS)


def cost(layout: Layout, machine: Machine) -> float:
    """The launch, a warp by itself, and what issue slots or the bitmap unit, L2 and DRAM take, none of which is ever quite busy.

    L2 has the value, as far as it has room, and makes room for all of the buffer; half of it is what earlier launches left to be written.
    """
    cut, unit, l2 = Cut(layout), machine.units["bitmap"], machine.l2_bytes
    each = -(-cut.warps // (machine.sms * machine.subcores))
    busy = max(
        FIXED + 3 * CHANNELS // cut.vector + record.INSTRUCTIONS, 2 * unit.interval * CHANNELS
    )
    dense, stored = 2 * layout.shape[-1] * len(layout.positions), layout.bytes
    moved = 1.5 * dense + layout.segments * layout.groups * HEADER
    written = max(0, dense + stored - l2, min(stored, dense + stored - l2 // 2))
    beyond = max(0, dense - l2) + written
    from_l2 = moved * machine.clock_hz / machine.l2_bytes_per_second
    from_dram = beyond * machine.clock_hz / machine.dram_bytes_per_second
    alone = machine.dram_latency + 2 * busy
    return float(machine.launch_cycles + alone + math.hypot(each * busy, from_l2, from_dram))


def emit(node: Node, layout: Layout, machine: Machine) -> Emitted:
    """The launch."""
    return _Kernel(node, layout, machine).emit()


class _Kernel:
    """One launch being emitted."""

    def __init__(self, node: Node, layout: Layout, machine: Machine) -> None:
        self.node, self.layout, self.cut = node, layout, Cut(layout)
        self.b = KernelBuilder("encode", (32 * WARPS, 1, 1), machine)

    def emit(self) -> Emitted:
        b, cut, layout = self.b, self.cut, self.layout
        self.x = param(b, 0)
        self.warp = special(b, SR.WARPID)
        self.segment, self.group = self._record()
        self.inner = self._before_last()
        self.valid, at = self._pixel()
        self.guards = {True: self.valid, False: self._both(self.valid, self.inner)}
        values = self._values(at)
        out, entries = param(b, 1), param(b, 1)
        move_base(b, entries, layout.sections[0])
        stage = b.shared(WARPS * record.VALUES, 128)
        own = umov(b, umul(b, self.warp, record.VALUES, stage))
        number = umul(b, self.segment, layout.groups, self.group)
        record.pack(b, lane_id(b), values, (own, 0), (out, entries), number)
        b.emit(EXIT)
        x, encoded = self.node.inputs[0], self.node.outputs[1]
        name = self.node.loc or self.node.outputs[0]
        uses = {x: "r", encoded: "w"}
        return Emitted(b.finish(), (cut.blocks, 1, 1), (x, encoded), uses, (name,))

    # --- where the warp and its lanes are

    def _record(self) -> tuple[Number, Number]:
        """The warp's segment and 32 channels; warps beyond the last one go."""
        b, cut = self.b, self.cut
        warp = uadd(b, self.warp, umul(b, block_index(b, SR.CTAID_X, cut.blocks), WARPS))
        assert isinstance(warp, VUReg)
        if cut.warps % WARPS:
            b.emit(EXIT, guard=ucompare(b, Cmp.GE, warp, cut.warps))
        return udivmod(b, warp, self.layout.groups)

    def _before_last(self) -> VPred | None:
        """Whether the record is not the last one of its segment; None if there is one."""
        if isinstance(self.group, int):
            return None
        return ucompare(self.b, Cmp.LT, self.group, self.layout.groups - 1)

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
        return valid, add(b, at, umul(b, self.group, 2 * CHANNELS))

    def _below(self, x: VReg, limit: int) -> VPred:
        p = self.b.pred()
        self.b.emit(ISETP, Cmp.LT, S32, p, x, limit)
        return p

    def _both(self, p: VPred, q: VPred | None) -> VPred:
        """Lanes of p, in records before the last one."""
        if q is None:
            return p
        d = self.b.pred()
        self.b.emit(PLOP, Logic.AND, d, p, q)
        return d

    # --- what it reads

    def _values(self, at: VReg) -> list[VReg | None]:
        """By channel; None where there are none in any record."""
        cut, found = self.cut, list[VReg | None]()
        for c in range(0, CHANNELS, cut.vector):
            only = self.inner is None and c >= cut.last  # channels that fill up
            found += [None] * cut.vector if only else self._load(at, c)
        return found

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
