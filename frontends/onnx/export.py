"""A Graph as an ONNX model: standard operators only, so that others can check what was quantized here.

    knapper compile model.onnx --quantize i4 --calib images.npz --emit onnx -o quantized.onnx

| in the graph | in the model |
|---|---|
| QuantizeLinear, DequantizeLinear | the same; a narrower format of integers is a Clip of 8 or 16 bits behind QuantizeLinear |
| constant integers, 4 bits hold them | INT4, UINT4 |
| constants that 4 bits of flint or powers of two hold | codes ─► Cast ─► Gather of the 16 values ─► Mul by the scale |
| QuantizeLinear to another grid | how many thresholds x / scale reaches, each times its step: Unsqueeze, GreaterOrEqual, Cast, MatMul, Add |
| QuantizeLinear by a border | its arithmetic, written out |
| signed bytes that are only dequantized | 128 more, as UINT8, zero points as well: no value changes (why: `_bytes`) |
| what an op has as attributes and ONNX as operands | constants |

The graph is one from before `integers` and `layout`. What has no ONNX operator is refused, each node with its reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.defs import OpSchema

from knapper.compiler.ir import DTYPES, OPS, Array, Graph, Node, Type
from knapper.compiler.ops.quantize import bounds, on_grid, spread, ties
from knapper.isa.errors import FrontendError, KnapperError, raise_all
from knapper.isa.formats import FORMATS, Format

from .schemas import schema
from .tensors import DTYPE_OF

CODE_OF = {name: code for code, name in DTYPE_OF.items()}
OPSET = 21
"""The first that has blocks, INT4 and 16 bits; models say a newer one only if an operator is newer."""
FOUR = (("i4", TensorProto.INT4), ("u4", TensorProto.UINT4))
BOOKS = ("flint4", "uflint4", "pot4", "upot4")
OURS = ("layout", "out", "pad_value", "trans_a", "trans_b", "to", "format")
"""Attributes that ONNX has no place for, or another one."""
TYPED = {"Clip": ("min", "max"), "Pad": ("value",)}
"""Attributes that become operands of the first operand's type."""
FLOATS = {"Resize": ("roi", "scales")}
USUAL = {"dilations": 1, "strides": 1, "pads": 0}
"""What every axis has where a window says nothing."""
LISTS = {"TopK": ("k",)}
"""Attributes of one number that ONNX wants as a list of one."""
HALF = 128
"""From signed bytes to unsigned ones."""


def to_onnx(g: Graph) -> ModelProto:
    """The graph as a model. Raises every FrontendError at once."""
    e = _Export(g)
    problems = [p for n in g.nodes for p in e.add(n)]
    raise_all(problems)
    return e.model()


class _Export:
    """A model under construction."""

    def __init__(self, g: Graph) -> None:
        self.g, self.types = g, g.types()
        self.nodes: list[NodeProto] = []
        self.tensors: dict[str, TensorProto] = {}
        self.opset = OPSET
        self.users = g.users()
        self.moved = self._bytes()
        self.names = self._names()
        self.taken = {*self.names.values(), *g.inputs, *g.outputs}

    def _bytes(self) -> dict[str, int]:
        """Signed bytes that are written as unsigned ones → what is added to them: nothing where none is negative.

        onnxruntime makes unsigned bytes of them itself, where its processor is slow with signed ones. If it has copied the pair of nodes
        behind a Reshape before, as it does for a MatMul and an Add of rank 3, the copy still says `output_dtype` INT8, and the model does
        not load in its default optimizer ("output_dtype INT8 does not match y_zero_point type UINT8", 1.32).
        """
        found = dict[str, int]()
        for n in self.g.nodes:
            v = n.outputs[0]
            if n.op == "QuantizeLinear" and n.attr("to") == "i8" and _only_dequantized(self, v):
                zeros = [u.inputs[2] for u in (n, *self.users[v]) if len(u.inputs) > 2]
                if all(not z or z in self.g.constants for z in zeros):
                    found[v] = 0 if bounds("i8", n.attr("format"))[0] >= 0 else HALF
        return found

    def _names(self) -> dict[str, str]:
        """Graph value → its name in the model: an output's own if it has one alone."""
        made = {v for n in self.g.nodes for v in n.outputs if v}
        public = {v: name for name, v in self.g.outputs.items() if v in made}
        shown, names = {*self.g.inputs, *self.g.outputs}, {v: v for v in self.g.inputs}
        for v in (*self.g.constants, *made):
            names[v] = public.get(v) or (f"{v}_" if v in shown else v)
        return names

    def model(self) -> ModelProto:
        """What has been added, as a model."""
        for name, v in self.g.outputs.items():
            if self.names[v] != name:
                self.nodes.append(helper.make_node("Identity", [self.value(v)], [name]))
        inputs = [self._info(v, t) for v, t in self.g.inputs.items()]
        outputs = [self._info(name, self.types[v]) for name, v in self.g.outputs.items()]
        tensors = list(self.tensors.values())
        graph = helper.make_graph(self.nodes, self.g.name or "graph", inputs, outputs, tensors)
        opset = helper.make_opsetid("", self.opset)
        ir = helper.find_min_ir_version_for([opset])
        return helper.make_model(
            graph, opset_imports=[opset], ir_version=ir, producer_name="knapper"
        )

    def _info(self, name: str, t: Type) -> Any:
        return helper.make_tensor_value_info(name, CODE_OF[t.dtype], t.shape)

    # --- values

    def value(self, v: str) -> str:
        """The name of a value, whose constant is stored when it is first read."""
        if v in self.g.constants and self.names[v] not in self.tensors:
            self._store(self.names[v], self.g.constants[v])
        return self.names.get(v, "")

    def _store(self, name: str, a: Array) -> str:
        self.tensors[name] = numpy_helper.from_array(np.asarray(a, order="C"), name)
        return name

    def constant(self, a: Any, near: str) -> str:
        """A new constant."""
        return self._store(self.fresh(near), np.asarray(a))

    def fresh(self, near: str) -> str:
        """A name that nothing has."""
        name, i = near, 1
        while name in self.taken:
            name, i = f"{near}_{i}", i + 1
        self.taken.add(name)
        return name

    def op(self, op: str, *operands: str, near: str, result: str = "", **attrs: Any) -> str:
        """A node of one result."""
        y = result or self.fresh(near)
        self.nodes.append(helper.make_node(op, operands, [y], self.fresh(f"{near}/{op}"), **attrs))
        return y

    # --- nodes

    def add(self, n: Node) -> Iterator[KnapperError]:
        """Add a node; gives why not."""
        try:
            special = SPECIAL.get(n.op)
            if special is None or not special(self, n):
                self._plain(n)
        except FrontendError as e:
            yield FrontendError(e.code, e.message, where=str(n), hint=e.hint)

    def _plain(self, n: Node) -> None:
        s = self._schema(n)
        attrs, extra = dict[str, Any](), dict[str, str]()
        formals = {f.name.lower(): f.name.lower() for f in s.inputs} | {"value": "constant_value"}
        for name, given in n.attrs.items():
            if name in OURS and name not in s.attributes:
                self._refuse(n, name, given)
            elif _usual(name, given) and name in s.attributes:
                continue  # onnxruntime's own average pool of bytes does not know dilations
            elif name in s.attributes:
                attrs[name] = _attribute(name, given)
            elif formals.get(name.lower()) in {f.name.lower() for f in s.inputs}:
                extra[formals[name.lower()]] = self._operand(n, name, given)
            else:
                raise FrontendError("E203", f"{n.op} with {name}={given!r} has no ONNX form")
        if n.op in ("Cast", "BitCast"):
            attrs["to"] = CODE_OF[n.attr("to")]
        operands = self._operands(n, s, extra)
        results = [self.names[v] if v else "" for v in n.outputs]
        name = self.fresh(n.loc or results[0])
        self.nodes.append(helper.make_node(n.op, operands, results, name, **attrs))

    def _schema(self, n: Node) -> OpSchema:
        for opset in range(self.opset, 40):
            if (s := schema(n.op, opset)) is not None:
                self.opset = opset
                return s
        raise FrontendError("E203", f"ONNX has no operator {n.op}")

    def _refuse(self, n: Node, name: str, given: Any) -> None:
        if n.op == "Cast" or given in ("NCHW", "", 0, False):
            return
        hint = "a graph from before `integers` and `layout` has none"
        raise FrontendError("E203", f"{n.op} with {name}={given!r} has no ONNX form", hint=hint)

    def _operand(self, n: Node, name: str, given: Any) -> str:
        dtype: Any = np.int64
        if name in TYPED.get(n.op, ()):
            dtype = DTYPES[self.types[n.inputs[0]].dtype]
        elif name in FLOATS.get(n.op, ()):
            dtype = np.float32
        a = np.asarray(given, dtype)
        a = a.reshape(1) if name in LISTS.get(n.op, ()) else a
        return self.constant(a, f"{n.outputs[0]}.{name}")

    def _operands(self, n: Node, s: OpSchema, extra: Mapping[str, str]) -> list[str]:
        """Operands in ONNX's order: ours in the places that no attribute takes."""
        left = [self.value(v) for v in n.inputs]
        variadic = s.inputs and s.inputs[-1].option == OpSchema.FormalParameterOption.Variadic
        if variadic:
            return left
        absent = {a.lower() for a in OPS[n.op].attrs} - {a.lower() for a in s.attributes}
        absent |= {"constant_value"} if n.op == "Pad" else set()
        operands = [
            extra.get(f.name.lower(), "")
            if f.name.lower() in absent | extra.keys()
            else (left.pop(0) if left else "")
            for f in s.inputs
        ]
        while operands and not operands[-1]:
            operands.pop()
        return operands


def _usual(name: str, given: Any) -> bool:
    """Whether a window says what none says."""
    return name in USUAL and set(given) <= {USUAL[name]}


def _attribute(name: str, given: Any) -> Any:
    if name == "dtype" and isinstance(given, str):
        return CODE_OF[given]
    if isinstance(given, tuple):
        return list(given)
    return int(given) if isinstance(given, bool) else given


# --- what is written otherwise


def _matmul(e: _Export, n: Node) -> bool:
    """Operands transposed first, as nodes."""
    if n.attr("out"):
        return False
    names = []
    for v, turned in zip(n.inputs, (n.attr("trans_a"), n.attr("trans_b")), strict=True):
        x, rank = e.value(v), e.types[v].rank
        perm = [*range(rank - 2), rank - 1, rank - 2]
        names.append(e.op("Transpose", x, near=f"{x}.t", perm=perm) if turned else x)
    e.op("MatMul", *names, near=n.outputs[0], result=e.names[n.outputs[0]])
    return True


def _dequantize(e: _Export, n: Node) -> bool:
    """Constants of 4 bits as such, or as codes of a book."""
    x, y = n.inputs[0], e.names[n.outputs[0]]
    if e.types[x].dtype == "f32":
        scale = e.op(
            "Reshape",
            e.value(n.inputs[1]),
            e.constant(_shape(e, n), f"{y}.shape"),
            near=f"{y}.scale",
        )
        e.op("Mul", e.value(x), scale, near=y, result=y)
        return True
    attrs = {
        k: n.attr(k) for k in ("axis", "block_size") if n.attr(k) != OPS[n.op].attrs[k].default
    }
    a = e.g.constants.get(x)
    if a is not None and a.dtype.itemsize <= 2 and _only_dequantized(e, x):
        zero = e.g.constants.get(n.inputs[2]) if len(n.inputs) > 2 else np.zeros(1)
        for format, code in FOUR:
            f = FORMATS[format]
            if f.holds(a) and zero is not None and f.holds(zero):
                few = [_few(e, v, code) for v in (x, *n.inputs[2:])]
                few.insert(1, e.value(n.inputs[1]))
                e.op("DequantizeLinear", *few, near=y, result=y, **attrs)
                return True
        book = next((FORMATS[b] for b in BOOKS if FORMATS[b].holds(a)), None)
        if book is not None and zero is not None and not zero.any():
            _by_book(e, n, a, book, y)
            return True
    moved = x in e.moved
    operands = [e.value(v) for v in n.inputs[: 2 if moved else 3]]
    operands += [_moved_zero(e, n, e.moved[x])] if moved else []
    e.op("DequantizeLinear", *operands, near=y, result=y, **attrs)
    return True


def _moved_zero(e: _Export, n: Node, by: int) -> str:
    """A node's zero point for bytes without a sign."""
    named = n.inputs[2] if len(n.inputs) > 2 else ""
    zero = e.g.constants[named] if named else np.zeros(e.types[n.inputs[1]].shape)
    near = named or f"{n.inputs[1]}.zero"
    return e.constant((zero.astype(np.int64) + by).astype(np.uint8), near)


def _only_dequantized(e: _Export, v: str) -> bool:
    return (
        all(u.op == "DequantizeLinear" for u in e.users.get(v, ()))
        and v not in e.g.outputs.values()
    )


def _few(e: _Export, v: str, code: int) -> str:
    """A constant as elements of 4 bits."""
    a, name = e.g.constants[v], e.fresh(f"{v}.4")
    packed = np.asarray(a).astype(helper.tensor_dtype_to_np_dtype(code))
    e.tensors[name] = numpy_helper.from_array(packed, name)
    return name


def _by_book(e: _Export, n: Node, a: Array, book: Format, y: str) -> None:
    """Codes, the values that they mean, and the scale."""
    codes = e.fresh(f"{n.inputs[0]}.{book}")
    stored = book.encode(a).astype(helper.tensor_dtype_to_np_dtype(TensorProto.UINT4))
    e.tensors[codes] = numpy_helper.from_array(stored, codes)
    values = e.constant(book.grid.astype(np.float32), f"{book}.values")
    whole = e.op("Cast", codes, near=f"{codes}.i32", to=TensorProto.INT32)
    real = e.op("Gather", values, whole, near=f"{codes}.real", axis=0)
    scale = e.g.constants.get(n.inputs[1])
    if scale is not None:
        spread_out = spread(scale, a.shape, n.attr("axis"), n.attr("block_size"))
        factor = e.constant(spread_out, f"{n.inputs[1]}.spread")
    else:
        factor = e.op(
            "Reshape",
            e.value(n.inputs[1]),
            e.constant(_shape(e, n), f"{y}.shape"),
            near=f"{y}.scale",
        )
    e.op("Mul", real, factor, near=y, result=y)


def _shape(e: _Export, n: Node) -> Array:
    """The shape in which a scale broadcasts to the first operand."""
    rank, count = e.types[n.inputs[0]].rank, e.types[n.inputs[1]].count
    axis = n.attr("axis") % max(rank, 1)
    if n.attr("block_size"):
        raise FrontendError("E203", f"{n.op} of scales a block has no ONNX form here")
    return np.array([count if i == axis and count > 1 else 1 for i in range(rank)], np.int64)


def _quantize(e: _Export, n: Node) -> bool:
    """Formats behind 8 or 16 bits; grids and borders written out."""
    to, format, y = n.attr("to"), n.attr("format"), e.names[n.outputs[0]]
    grid = on_grid(format)
    border = n.inputs[3] if len(n.inputs) > 3 else ""
    by = e.moved.get(n.outputs[0])
    ends, stored = bounds(to, format), to if by is None else "u8"
    if grid is None and not border:
        attrs: dict[str, Any] = {
            k: n.attr(k) for k in ("axis", "block_size") if n.attr(k) != OPS[n.op].attrs[k].default
        }
        operands = [e.value(v) for v in n.inputs[: 3 if by is None else 2] if v]
        if by is not None:
            operands.append(_moved_zero(e, n, by))
        elif len(operands) < 3:
            attrs["output_dtype"] = CODE_OF[to]
        q = e.op(
            "QuantizeLinear",
            *operands,
            near=f"{y}.wide" if format else y,
            result="" if format else y,
            **attrs,
        )
        if format:
            clip = [e.constant(np.asarray(b + (by or 0), DTYPES[stored]), f"{y}.end") for b in ends]
            e.op("Clip", q, *clip, near=y, result=y)
        return True
    v = _over_scale(e, n, y)
    zero = _added(e, n, y)
    if grid is not None:
        v = e.op("Add", v, zero, near=f"{y}.shifted") if zero else v
        v = _steps(e, grid, v, y)
    else:
        v = _bordered(e, n, v, border, y)
        v = e.op("Add", v, zero, near=f"{y}.shifted") if zero else v
        clip = [e.constant(np.float32(b), f"{y}.end") for b in ends]
        v = e.op("Clip", v, *clip, near=f"{y}.clipped")
    if by:
        v = e.op("Add", v, e.constant(np.float32(by), f"{y}.half"), near=f"{y}.unsigned")
    e.op("Cast", v, near=y, result=y, to=CODE_OF[stored])
    return True


def _over_scale(e: _Export, n: Node, y: str) -> str:
    shape = e.constant(_shape(e, n), f"{y}.shape")
    scale = e.op("Reshape", e.value(n.inputs[1]), shape, near=f"{y}.scale")
    return e.op("Div", e.value(n.inputs[0]), scale, near=f"{y}.steps")


def _added(e: _Export, n: Node, y: str) -> str:
    """The zero point in f32, "" for none."""
    if len(n.inputs) < 3 or not n.inputs[2]:
        return ""
    real = e.op("Cast", e.value(n.inputs[2]), near=f"{y}.zero", to=TensorProto.FLOAT)
    return e.op("Reshape", real, e.constant(_shape(e, n), f"{y}.shape"), near=f"{y}.zero")


def _steps(e: _Export, f: Format, v: str, y: str) -> str:
    """The nearest value of a grid: the first one, and a step more for each threshold that is reached."""
    if ties(f) != "up" or f.bits > 8:
        raise FrontendError("E203", f"QuantizeLinear to {f} has no ONNX form here")
    values = f.values
    between = e.constant(((values[1:] + values[:-1]) / 2).astype(np.float32), f"{f}.thresholds")
    steps = e.constant(np.diff(values).astype(np.float32), f"{f}.steps")
    column = e.op("Unsqueeze", v, e.constant(np.array([-1]), f"{y}.axis"), near=f"{y}.column")
    reached = e.op("GreaterOrEqual", column, between, near=f"{y}.reached")
    counted = e.op("Cast", reached, near=f"{y}.counted", to=TensorProto.FLOAT)
    total = e.op("MatMul", counted, steps, near=f"{y}.total")
    return e.op("Add", total, e.constant(np.float32(f.smallest), f"{f}.first"), near=f"{y}.value")


def _bordered(e: _Export, n: Node, v: str, border: str, y: str) -> str:
    """floor(((v - ((b2·v + b1)·v)) - b0) + 1)"""
    b = e.g.constants.get(border)
    if b is None:
        raise FrontendError("E203", "QuantizeLinear by a border that is computed has no ONNX form")
    rank = e.types[n.inputs[0]].rank
    b0, b1, b2 = (
        e.constant(spread(c.reshape(-1), (1,) * rank, n.attr("axis"), 0), f"{border}.{i}")
        for i, c in enumerate(b)
    )
    slope = e.op("Add", e.op("Mul", b2, v, near=f"{y}.b2"), b1, near=f"{y}.b1")
    moved = e.op("Sub", v, e.op("Mul", slope, v, near=f"{y}.part"), near=f"{y}.moved")
    down = e.op("Sub", moved, b0, near=f"{y}.b0")
    return e.op(
        "Floor",
        e.op("Add", down, e.constant(np.float32(1), "one"), near=f"{y}.up"),
        near=f"{y}.whole",
    )


SPECIAL = {"MatMul": _matmul, "DequantizeLinear": _dequantize, "QuantizeLinear": _quantize}
"""Ops that are written otherwise: (export, node) → whether they were."""
