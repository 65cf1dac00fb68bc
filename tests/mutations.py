"""Structured damage: models that parse and mean something else, images whose checksum is right and whose content is not.

ModelProto ─► drop, double, rename, rewire a node │ retype or resize an attribute │ other dims and types │ cut an initializer
image      ─► bytes of one section changed ─► sealed again, so that the reader goes on
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace

from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    helper,
)

from knapper.isa import elf, image
from knapper.isa.errors import KnapperError

Change = Callable[[ModelProto, random.Random], None]
EXTREMES = (0, -1, 1, 2, 3, 1 << 31, -(1 << 31), (1 << 62) + 1, -(1 << 63), (1 << 63) - 1)


def model(proto: ModelProto, rng: random.Random) -> ModelProto:
    """A copy with one to three changes."""
    copy = ModelProto.FromString(proto.SerializeToString())
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(CHANGES)(copy, rng)
    return copy


def _node(p: ModelProto, rng: random.Random) -> NodeProto:
    """Any node, also of the graphs inside others."""
    found = list(_nodes(p.graph))
    return rng.choice(found) if found else p.graph.node.add()


def _nodes(g: GraphProto) -> Iterator[NodeProto]:
    for n in g.node:
        yield n
        for a in n.attribute:
            if a.HasField("g"):
                yield from _nodes(a.g)


def drop(p: ModelProto, rng: random.Random) -> None:
    """A node less."""
    if p.graph.node:
        del p.graph.node[rng.randrange(len(p.graph.node))]


def double(p: ModelProto, rng: random.Random) -> None:
    """A node twice."""
    p.graph.node.append(_node(p, rng))


def swap(p: ModelProto, rng: random.Random) -> None:
    """Two nodes change places."""
    a, b = _node(p, rng), _node(p, rng)
    kept = NodeProto.FromString(a.SerializeToString())
    a.CopyFrom(NodeProto.FromString(b.SerializeToString()))
    b.CopyFrom(kept)


def rename(p: ModelProto, rng: random.Random) -> None:
    """Another operator."""
    other = rng.choice(("", "Foo", "Loop", "If", "LSTM", "Einsum", "TopK", "Split", "Resize", "Constant", _node(p, rng).op_type))  # fmt: skip
    _node(p, rng).op_type = other


def domain(p: ModelProto, rng: random.Random) -> None:
    """An operator of somebody else's."""
    _node(p, rng).domain = rng.choice(("ai.onnx", "com.microsoft", "ai.onnx.ml", "mine"))


def rewire(p: ModelProto, rng: random.Random) -> None:
    """An operand that is another value: of another type, of itself, of nothing."""
    n = _node(p, rng)
    names = ["", "nowhere", *(o for m in p.graph.node for o in m.output), *(t.name for t in p.graph.initializer)]  # fmt: skip
    what = rng.choice(("replace", "add", "remove", "output"))
    if what == "output" and n.output:
        n.output[rng.randrange(len(n.output))] = rng.choice(names)
    elif what == "add" or not n.input:
        n.input.append(rng.choice(names))
    elif what == "remove":
        del n.input[rng.randrange(len(n.input))]
    else:
        n.input[rng.randrange(len(n.input))] = rng.choice(names)


def retype(p: ModelProto, rng: random.Random) -> None:
    """An attribute of another type, of an extreme value, of another length, or twice, or of nobody."""
    n = _node(p, rng)
    names = [a.name for a in n.attribute] + ["axis", "axes", "perm", "to", "pads"]
    name = rng.choice(names)
    values = (
        rng.choice(EXTREMES), [], [rng.choice(EXTREMES)], [rng.choice(EXTREMES) for _ in range(rng.randrange(9))], 0.5, float("nan"),
        float("inf"), [1.5], "text", "", ["a", "b"], b"\xff\x00", TensorProto(), helper.make_tensor("", 1, [2], [1, 2]),
    )  # fmt: skip
    value = rng.choice(values)
    kept = [a for a in n.attribute if a.name != name or rng.randrange(8) == 0]
    attribute = (
        AttributeProto(name=name, type=AttributeProto.INTS)
        if value == []
        else helper.make_attribute(name, value)
    )
    if rng.randrange(6) == 0:
        attribute.type = rng.choice(list(AttributeProto.AttributeType.values()))
    kept = [AttributeProto.FromString(a.SerializeToString()) for a in kept]
    del n.attribute[:]
    n.attribute.extend([*kept, attribute] if rng.randrange(5) else kept)


def resize(p: ModelProto, rng: random.Random) -> None:
    """An input or output of another shape."""
    ports: list[ValueInfoProto] = [*p.graph.input, *p.graph.output, *p.graph.value_info]
    if not ports:
        return
    tensor = rng.choice(ports).type.tensor_type
    what = rng.choice(("dim", "symbol", "drop", "add", "type", "none"))
    if what == "type":
        tensor.elem_type = rng.choice((0, -1, 99, *TensorProto.DataType.values()))
    elif what == "none":
        tensor.ClearField("shape")
    elif what == "add" or not tensor.shape.dim:
        tensor.shape.dim.add().dim_value = rng.choice((0, 1, 3))
    elif what == "drop":
        del tensor.shape.dim[rng.randrange(len(tensor.shape.dim))]
    elif what == "symbol":
        rng.choice(tensor.shape.dim).dim_param = rng.choice(("N", "", "\x00", "1"))
    else:
        rng.choice(tensor.shape.dim).dim_value = rng.choice((0, -1, 5, 1 << 20, 1 << 40, 1 << 62))


def weights(p: ModelProto, rng: random.Random) -> None:
    """An initializer that is cut, of other dims, of another type, of other bits, or twice."""
    held = [*p.graph.initializer, *(a.t for n in p.graph.node for a in n.attribute if a.HasField("t"))]  # fmt: skip
    if not held:
        return
    t = rng.choice(held)
    what = rng.choice(("cut", "dims", "type", "bits", "double", "name", "outside"))
    if what == "cut":
        t.raw_data = t.raw_data[: rng.randrange(len(t.raw_data) + 1)]
    elif what == "dims":
        t.dims[:] = [rng.choice((*EXTREMES, *t.dims)) for _ in range(rng.randrange(6))]
    elif what == "type":
        t.data_type = rng.choice((0, -1, 99, *TensorProto.DataType.values()))
    elif what == "bits" and t.raw_data:
        raw = bytearray(t.raw_data)
        raw[rng.randrange(len(raw))] = rng.choice((0, 0x7F, 0x80, 0xFF))
        t.raw_data = bytes(raw)
    elif what == "double":
        p.graph.initializer.append(t)
    elif what == "name":
        t.name = rng.choice(("", "nowhere", *(i.name for i in p.graph.input)))
    elif what == "outside":
        t.data_location = TensorProto.EXTERNAL
        t.external_data.add(key="location", value=rng.choice(("", "/etc/passwd", "../x", "none")))


def ports(p: ModelProto, rng: random.Random) -> None:
    """Inputs and outputs that are missing, there twice, or of another name."""
    side = rng.choice((p.graph.input, p.graph.output))
    what = rng.choice(("drop", "double", "name"))
    if not side:
        return
    if what == "drop":
        del side[rng.randrange(len(side))]
    elif what == "double":
        side.append(rng.choice(side))
    else:
        rng.choice(side).name = rng.choice(("", "nowhere", p.graph.output[0].name if p.graph.output else "y"))  # fmt: skip


def header(p: ModelProto, rng: random.Random) -> None:
    """Another opset, none, or two."""
    if rng.randrange(2) and p.opset_import:
        p.opset_import[0].version = rng.choice((0, -1, 1, 6, 7, 9, 13, 26, 99, 1 << 40))
    elif rng.randrange(2):
        del p.opset_import[:]
    else:
        p.opset_import.add(domain=rng.choice(("", "mine")), version=rng.choice((1, 13, 21)))


CHANGES: tuple[Change, ...] = (
    drop, double, swap, rename, domain, rewire, rewire, retype, retype, retype, resize, weights, weights, ports, header,
)  # fmt: skip


def bits(data: bytes, rng: random.Random) -> bytes:
    """A file cut off, or with a few bytes changed."""
    if rng.randrange(5) == 0:
        return data[: rng.randrange(len(data))]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))  # fmt: skip
    return bytes(changed)


def program(data: bytes, rng: random.Random) -> bytes:
    """An image with bytes of one section changed, and its checksum right: digits of tables become other digits, so that they parse."""
    sections = elf.parse(memoryview(data))[1:-1]
    full = [s for s in sections if len(s.data) and not s.name.startswith((".symtab", ".strtab"))]
    chosen = rng.choice(full)
    raw = bytearray(chosen.data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(raw))
        if chosen.name.startswith(".knapper.") and chosen.name != ".knapper.line":
            digits = [i for i, b in enumerate(raw) if 0x31 <= b <= 0x39]
            if digits:
                raw[rng.choice(digits)] = rng.choice(b"123456789")
        elif rng.randrange(2):
            raw[at] ^= 1 << rng.randrange(8)
        else:
            raw[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    edited = [replace(s, data=bytes(raw), size=-1) if s is chosen else s for s in sections]
    built = elf.build(edited)
    try:
        return bytes(image.seal(built))
    except KnapperError:  # the note that would say the checksum is what was damaged
        return bytes(built)
