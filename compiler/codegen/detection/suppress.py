"""NonMaxSuppression in four launches, each the same whatever the data is.

    scores ─ sort ──► order: u32[lists, boxes]      a block sorts the boxes of one (image, class), best first
    boxes ── overlap ► bits: u32[lists, boxes, words]       bit j of row i: the i-th best overlaps the j-th best by too much
             pick ───► chosen: u32[lists, kept], counts: u32[lists]         a warp walks down the order, a word of bits at a time
             collect ► rows: i64[bound, 3] and their number         lists one after the other, zeros behind

Only `pick` is serial, and it takes a step for each box that is kept and each 32 that are there, not one for each pair.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from knapper.isa.machine import Machine

from ..generator import Group, Lowered
from . import collect, overlap, pick, sort
from .boxes import Sizes, Suppression
from .operands import FAR, Place, core_of, source

LISTS = 65535
"""What a grid has on its third axis, at most."""


@dataclass(frozen=True)
class _Scratch:
    """Bytes of what passes between the launches."""

    order: int
    bits: int
    chosen: int
    counts: int

    @staticmethod
    def of(s: Sizes) -> _Scratch:
        return _Scratch(
            4 * s.lists * s.boxes,
            4 * s.lists * s.boxes * s.words,
            4 * s.lists * s.kept,
            4 * s.lists,
        )


def suppression(group: Group) -> Suppression:
    """The node of a group, and where its operands lie."""
    node = core_of(group)
    assert not isinstance(node, str)
    boxes, scores = (source(group, v) for v in node.inputs[:2])
    lists, kept = group.inputs[scores.value].shape, node.types[0].shape[0]
    batch, classes, count = lists
    thresholds: list[Place | None] = [source(group, v) if v else None for v in node.inputs[2:]]
    iou, least = [*thresholds, None, None][:2]
    sizes = Sizes(batch, classes, count, kept // max(batch * classes, 1))
    outputs = [v if v in group.outputs else "" for v in (*node.outputs, "")[:2]]
    centered = bool(node.attr("center_point_box"))
    return Suppression(sizes, boxes, scores, iou, least, centered, outputs[0], outputs[1])


def refusal(group: Group, machine: Machine) -> str | None:
    """Why the kernels cannot take a group: a list that shared memory cannot hold, bits that an offset cannot reach."""
    s = suppression(group).sizes
    if sort.shared_bytes(s) > machine.shared_bytes_per_block:
        most = machine.shared_bytes_per_block // sort.KEY
        return f"it sorts at most {1 << most.bit_length() - 1:,} boxes, not {s.boxes:,}"
    if s.lists > LISTS:
        return f"it takes at most {LISTS:,} lists, not {s.lists:,}"
    if _Scratch.of(s).bits >= FAR:
        return f"the overlaps of {s.lists} times {s.boxes:,} boxes take more than 2 GiB"
    return None


def lower(group: Group, machine: Machine) -> Lowered:
    """The launches and what passes between them."""
    p = suppression(group)
    nodes = tuple(n.loc or n.outputs[0] for n in group.nodes)
    role = next(i for i, n in enumerate(group.nodes) if n.op != "Cast")
    scratch = {f"{group.name}.{k}": v for k, v in vars(_Scratch.of(p.sizes)).items() if v}
    parts = [sort, overlap, pick, collect] if p.sizes.kept else [collect]
    launches = [part.emit(p, group.name, machine, role) for part in parts]
    used = {name for e in launches for name in e.uses}
    return Lowered(
        tuple(replace(e, nodes=nodes) for e in launches),
        scratch={name: n for name, n in scratch.items() if name in used},
    )


def cost(group: Group, machine: Machine) -> float:
    """Launches, the passes of the sorting network, the pairs, and a load's latency for each step of the walk."""
    s = suppression(group).sizes
    if not s.kept:
        return float(machine.launch_cycles)
    lanes = 32 * machine.subcores
    rounds = -(-s.lists // machine.sms)
    passes = sort.passes(s) * (-(-sort.length(s) // (2 * lanes)) * sort.EXCHANGE + sort.BARRIER)
    pairs = s.lists * s.boxes**2 / 2 * overlap.PAIR / (lanes * machine.sms)
    walk = rounds * (s.words + s.kept) * (machine.l2_latency + pick.STEP)
    return float(4 * machine.launch_cycles + rounds * passes + pairs + walk)
