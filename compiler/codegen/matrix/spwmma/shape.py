"""The operands of a product of encoded activations and constant weights, and how it is cut into tiles.

rows of C    positions of A's stream, 32 to a tile: tile t of C is segment t shifted by the tap
k            (tap row, tap column, 32 channels): a step is `depth` records of one tap

A record of either operand is a unit. Half a warp carries one from global to shared memory, so a warp carries two of one operand:

    A   segments × depth units      warps 0 … a - 1 of those that load      half 0, half 1: units 2 · warp, 2 · warp + 1
    B   columns × depth units       warps a … a + b - 1
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from knapper.isa.machine import Machine
from knapper.isa.sparse import STEPS, WORDS

from ....ir import Array, Node
from ....sparsity.bitmap import CHANNELS, HEADER, LINE, LINES, SEGMENT, SLOT, Layout
from ...generator import Group, Options
from ..product import Product, product_of

WARPS = (8, 4, 2, 1)
DEPTHS = (4, 3, 2, 1)
DESCRIPTORS = 8 * CHANNELS
"""Bytes in shared memory that say of a unit's channels where their values lie: an address and a bitmap."""
VALUES = SLOT - HEADER
"""Bytes of its values, at worst."""
BUFFERS = 3
"""In shared memory: a step is computed, one waits, one is being stored. And as many more are on their way, in registers."""
HALVES = CHANNELS // STEPS
"""Products of a unit."""
FURTHEST = 0x7FFF
"""The conv unit counts segments with 16 bits, signed."""
MOST = 1 << 31
"""Bytes of a buffer: offsets have 32 bits, signed."""
STAGE = 32 * 36 * 4
"""Bytes in which a warp turns its tile: 32 rows of 32 words and 4 of room, so that no access conflicts."""


@dataclass(frozen=True)
class Encoded:
    """The group's last node, if it encodes: the value that it takes, its results ("" if absent)."""

    value: str
    dense: str
    bitmap: str
    layout: Layout


@dataclass(frozen=True)
class Operation:
    """A group as this engine sees it: `plain` is the group without the encoding, `encoded` what that was."""

    p: Product
    layout: Layout
    density: float
    """Of the activations, as their type says."""
    plain: Group
    encoded: Encoded | None

    @property
    def taps(self) -> int:
        return self.p.window.taps if self.p.window else 1

    @property
    def shifts(self) -> list[int]:
        """By how many positions each tap is ahead of the output."""
        w = self.p.window
        if w is None:
            return [0]
        pitch = self.layout.pitch
        return [
            (i * w.dy - w.py) * pitch + j * w.dx - w.px for i in range(w.kh) for j in range(w.kw)
        ]

    @property
    def shifted(self) -> bool:
        """Whether a window of 32 positions may span two segments."""
        return any(s % SEGMENT for s in self.shifts)

    @property
    def first(self) -> int:
        """The first tile of C that has a row."""
        return 0 if self.encoded else self.layout.lead // SEGMENT

    @property
    def count(self) -> int:
        """Tiles of C along the rows, from the first one on."""
        end = self.layout.segments if self.encoded else -(-self.layout.end // SEGMENT)
        return end - self.first

    @property
    def columns(self) -> int:
        """Tiles of C along the columns."""
        return -(-self.p.n // SEGMENT)

    @property
    def groups(self) -> int:
        """Records of a tap."""
        return self.layout.groups


def operation(group: Group) -> Operation | str:
    """The group's operation, or why it has none."""
    if "spwmma" not in group.found:
        group.found["spwmma"] = _operation(group)
    known: Operation | str = group.found["spwmma"]
    return known


def _operation(group: Group) -> Operation | str:
    split = _split(group)
    if isinstance(split, str):
        return split
    plain, encoded = split
    p = product_of(plain)
    if isinstance(p, str):
        return p
    coded = p.a_type.encoding
    if coded is None or coded.name != "bitmap":
        return f"%{p.a} is not encoded as bitmaps"
    layout = Layout(p.a_type.shape, coded["pad"])
    if why := _unfit(plain, p, layout):
        return why
    if encoded is not None:
        if p.out_type.shape[:-1] != p.a_type.shape[:-1] or encoded.layout.inset != layout.inset:
            return f"%{encoded.bitmap} is encoded with another pad than %{p.a}"
        if encoded.layout.shape != p.out_type.shape:
            return f"%{encoded.bitmap} has another shape than the product"
    return Operation(p, layout, coded.density, plain, encoded)


def _unfit(group: Group, p: Product, layout: Layout) -> str | None:
    if p.dtype not in ("f16", "bf16"):
        return f"operands are {p.dtype}, SPWMMA takes f16 and bf16"
    if p.b not in group.constants:
        return f"%{p.b} is computed: only weights known now are encoded"
    if p.axes or p.trans_a:
        return "has batches, groups of channels or a transposed left operand"
    lines = layout.segments * layout.groups * (SLOT // LINE)
    if (
        layout.segments > FURTHEST
        or lines >= LINES
        or layout.bytes >= MOST
        or 2 * p.m * p.n >= MOST
    ):
        return "its operands are larger than can be addressed"
    return _stays(p, layout) if p.window else None


def _stays(p: Product, layout: Layout) -> str | None:
    """Why a convolution is no shift of the stream, or None."""
    w = p.window
    assert w is not None
    if w.sy != 1 or w.sx != 1 or (w.oh, w.ow) != (w.h, w.w):
        return "its output is no image of its input's size"
    if max(w.py, w.px) > layout.inset or (2 * w.py, 2 * w.px) != (
        w.dy * (w.kh - 1),
        w.dx * (w.kw - 1),
    ):
        return f"pads of {w.py} and {w.px}, the stream has {layout.inset}"
    return None


def _split(group: Group) -> tuple[Group, Encoded | None] | str:
    """The group without the node that encodes its result."""
    nodes = [n for n in group.nodes if n.op == "BitmapEncode"]
    if not nodes:
        return group, None
    if len(nodes) > 1:
        return "encodes more than one value"
    (node,) = nodes
    at = dict(zip(node.outputs, node.types, strict=True))
    coded = [v for v in node.outputs if v and at[v].encoding is not None]
    dense = next((v for v in node.outputs if v and at[v].encoding is None), "")
    if not coded:
        return "encodes nothing"
    (bitmap,), (value,) = coded[:1], node.inputs[:1]
    if any(v in n.inputs for n in group.nodes for v in node.outputs if v):
        return "an encoded value is used in the launch that makes it"
    encoding = at[bitmap].encoding
    assert encoding is not None
    rest = tuple(n for n in group.nodes if n is not node)
    made = {v: t for n in rest for v, t in zip(n.outputs, n.types, strict=True)}
    if value not in made:
        return f"%{value} is encoded where it is not made"
    if made[value].dtype not in ("f16", "bf16"):
        return f"encodes {made[value]}"
    if dense:
        copy = Node(
            "Identity", (value,), (dense,), (made[value],), {}, loc=node.loc, group=node.group
        )
        rest = (*rest, copy)
    outputs = {v: t for v, t in group.outputs.items() if v != bitmap}
    outputs.setdefault(value, made[value])
    plain = Group(group.name, rest, group.inputs, outputs, group.constants)
    return plain, Encoded(value, dense, bitmap, Layout(at[bitmap].shape, encoding["pad"]))


# --- tiles


@dataclass(frozen=True)
class Tiles:
    """A block: wm × wn warps, each with a tile of 32 × 32, and `depth` records of 32 channels a step."""

    wm: int
    wn: int
    depth: int

    @staticmethod
    def of(options: Options) -> Tiles:
        """What a plan's options say."""
        tile: Any = options["tile"]
        bm, bn, bk = tile
        return Tiles(bm // SEGMENT, bn // SEGMENT, bk // CHANNELS)

    @property
    def options(self) -> dict[str, Any]:
        return {"tile": (SEGMENT * self.wm, SEGMENT * self.wn, CHANNELS * self.depth)}

    @property
    def warps(self) -> int:
        return self.wm * self.wn


@dataclass(frozen=True)
class Shape:
    """An operation cut into tiles: how many steps, and who loads what."""

    op: Operation
    t: Tiles

    @property
    def halo(self) -> int:
        """Segments beyond the block's own."""
        return int(self.op.shifted)

    @property
    def steps_of_tap(self) -> int:
        return -(-self.op.groups // self.t.depth)

    @property
    def steps(self) -> int:
        return self.op.taps * self.steps_of_tap

    @property
    def rows(self) -> int:
        """Entries of a column of tiles of B for a tap, those that fill its last step included."""
        return self.steps_of_tap * self.t.depth

    @property
    def units_a(self) -> int:
        return (self.t.wm + self.halo) * self.t.depth

    @property
    def units_b(self) -> int:
        return self.t.wn * self.t.depth

    @property
    def slots_a(self) -> int:
        """Warps that carry A."""
        return -(-self.units_a // 2)

    @property
    def slots(self) -> int:
        """Warps that load."""
        return self.slots_a + -(-self.units_b // 2)

    @property
    def warps(self) -> int:
        """Those that multiply, and those that load."""
        return self.t.warps + self.slots

    @property
    def places(self) -> int:
        """Units that a buffer has room for."""
        return 2 * self.slots

    @property
    def buffer(self) -> int:
        """Bytes of a buffer: values, then descriptors."""
        return self.places * (VALUES + DESCRIPTORS)

    @property
    def buffers(self) -> int:
        return min(BUFFERS, self.steps)

    @property
    def shared_bytes(self) -> int:
        return max(self.buffer * self.buffers, self.t.warps * STAGE)

    @property
    def registers(self) -> int:
        """Roughly what a thread needs."""
        return max(38 * self.buffers + 18, 132)

    @property
    def grid(self) -> tuple[int, int, int]:
        return -(-self.op.count // self.t.wm), -(-self.op.columns // self.t.wn), 1


def shapes(op: Operation, machine: Machine) -> Iterator[Shape]:
    """Those that may pay and fit the machine."""
    words = machine.accumulator_bytes // 4 // WORDS
    for warps in WARPS:
        for wm in (n for n in (8, 4, 2, 1) if warps % n == 0):
            wn = warps // wm
            if warps > words or wm // 2 >= op.count or wn // 2 >= op.columns:
                continue
            for depth in DEPTHS:
                s = Shape(op, Tiles(wm, wn, depth))
                fits = s.shared_bytes <= machine.shared_bytes_per_block
                fits = fits and 32 * s.warps * s.registers <= machine.registers_per_sm
                if fits and (depth < 2 * op.groups or depth == 1):
                    yield s


def weights(op: Operation, values: Array) -> Array:
    """B as [k, n]."""
    if op.p.window is not None:
        return values.reshape(op.p.k, op.p.n)
    return values.reshape(op.p.n, op.p.k).T if op.p.trans_b else values.reshape(op.p.k, op.p.n)
