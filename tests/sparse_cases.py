"""Sparse products for tests: a group whose left operand is encoded, run by itself on buffers that numpy made and reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knapper.compiler import ops  # noqa: F401  declares them
from knapper.compiler.codegen.generator import Group, Options
from knapper.compiler.codegen.matrix.spwmma.generator import SPWMMA_GENERATOR
from knapper.compiler.ir import DTYPES, OPS, Array, Encoding, Node, Type, infer
from knapper.compiler.sparsity.bitmap import HEADER, SLOT, Layout
from knapper.isa.machine import Machine
from knapper.isa.program import BASE, Launch, Port, Program
from knapper.runtime.session import Session

DSTC = Machine.load("dstc")


def sparse(
    rng: np.random.Generator, shape: Sequence[int], density: float, dtype: str = "f16"
) -> Array:
    """Random numbers, of which so many are not zero."""
    x = rng.standard_normal(shape).astype(np.float32)
    x[x == 0] = 1
    return np.asarray(np.where(rng.random(shape) < density, x, 0).astype(DTYPES[dtype]))


@dataclass
class Case:
    """A group, the values of its inputs, and what it should make of them."""

    group: Group
    values: dict[str, Array]
    want: dict[str, Array]

    @property
    def constants(self) -> Mapping[str, Array]:
        return self.group.constants


def case(
    x: Array, w: Array, pad: int = 0, after: str = "relu", out: str = "dense", dtype: str = "f16", seed: int = 0, **attrs: Any
) -> Case:  # fmt: skip
    """Conv if x is an image and w has four axes, else MatMul; `after`: "", bias, relu, residual; `out`: dense, encoded or both."""
    rng = np.random.default_rng(seed)
    under = Encoding("bitmap", {"pad": pad})
    types = {"x": Type(dtype, x.shape, under), "w": Type.of(w)}
    values = {"x": x, "w": w}
    constants = {"w": w}
    nodes: list[Node] = []

    def op(name: str, results_of: Sequence[str], *operands: str, **attrs: Any) -> str:
        made = infer(name, [types[v] for v in operands], attrs)
        reference = OPS[name].facets["reference"](*(values[v] for v in operands), **attrs)
        results = reference if isinstance(reference, tuple) else (reference,)
        for v, t, a in zip(results_of, made, results, strict=True):
            if v:
                types[v], values[v] = t, a
        nodes.append(Node(name, operands, tuple(results_of), made, attrs, loc=name, group="g"))
        return results_of[0]

    def known(name: str, a: Array) -> str:
        types[name], values[name], constants[name] = Type.of(a), a, a
        return name

    bias = after in ("bias", "relu", "residual")
    vector = rng.standard_normal(w.shape[-1]).astype(np.float32)
    if w.ndim == 4:
        operands = ("x", "w", known("b", vector)) if bias else ("x", "w")
        k = w.shape[0]
        d = attrs.get("dilation", 1)
        attrs = {"strides": (1, 1), "pads": (d * (k - 1) // 2,) * 4, "dilations": (d, d)}
        y = op("Conv", ["y"], *operands, **attrs, group=1, layout="NHWC", out="f32")
    else:
        y = op("MatMul", ["y"], "x", "w", out="f32")
        y = op("Add", ["yb"], y, known("b", vector)) if bias else y
    if after == "residual":
        r = sparse(rng, types[y].shape, 1.0, dtype)
        types["r"], values["r"] = Type.of(r), r
        y = op("Add", ["sum"], y, op("Cast", ["wide"], "r", to="f32"))
    if after in ("relu", "residual"):
        y = op("Relu", ["relu"], y)
    y = op("Cast", ["z"], y, to=dtype)
    outputs = [y]
    if out != "dense":
        op("BitmapEncode", ["d" if out == "both" else "", "e"], y, pad=pad)
        outputs = ["d", "e"] if out == "both" else ["e"]
    inputs = {v: t for v, t in types.items() if v in ("x", "w", "b", "r")}
    group = Group("g", tuple(nodes), inputs, {v: types[v] for v in outputs}, constants)
    return Case(group, values, {v: values[v] for v in outputs})


def layout(t: Type) -> Layout:
    assert t.encoding is not None
    return Layout(t.shape, t.encoding["pad"])


def program(c: Case, options: Options, machine: Machine = DSTC) -> tuple[Program, dict[str, Array]]:
    """A program of one launch, and what its ports take. Results begin as garbage, which is legal: all of them is written."""
    lowered = SPWMMA_GENERATOR.lower(c.group, options, machine)
    (emitted,) = lowered.launches
    data: dict[str, Array] = {}
    for v in emitted.params:
        assert isinstance(v, str)
        t = c.group.inputs.get(v)
        if v in lowered.constants:
            data[v] = np.ascontiguousarray(lowered.constants[v]).reshape(-1).view(np.uint8)
        elif t is not None and t.encoding is not None:
            data[v] = layout(t).encode(c.values[v])
        elif t is not None:
            data[v] = np.ascontiguousarray(c.values[v]).reshape(-1).view(np.uint8)
        else:
            data[v] = np.full(c.group.outputs[v].bytes, 0x5A, np.uint8)
    at, address = BASE, {}
    for v, a in data.items():
        address[v], at = at, at + -(-a.size // 256) * 256
    ports = {v: Port(v, "u8", a.shape, address[v]) for v, a in data.items()}
    inputs = tuple(ports[v] for v in data)
    outputs = tuple(ports[v] for v in c.group.outputs)
    launch = Launch(
        emitted.kernel.name,
        emitted.grid,
        tuple(address[str(v)] for v in emitted.params),
        emitted.nodes,
        macs=emitted.macs,
    )
    kernels = {emitted.kernel.name: emitted.kernel}
    return Program(
        machine.to_dict(), kernels, (launch,), inputs, outputs, arena_bytes=at - BASE
    ), data


def run(
    c: Case, options: Options, engine: Any = "fast", machine: Machine = DSTC, **settings: Any
) -> tuple[dict[str, Array], Any]:
    """The results as numpy sees them, and the run's statistics."""
    made, data = program(c, options, machine)
    session = Session(made)
    result = session.run(data, engine=engine, **settings)
    session.close()
    got = {}
    for v, t in c.group.outputs.items():
        raw = np.asarray(result.outputs[v])
        if t.encoding is not None:
            got[v] = layout(t).decode(raw, DTYPES[t.dtype])
            check_buffer(layout(t), raw, c.want[v])
        else:
            got[v] = raw.view(DTYPES[t.dtype]).reshape(t.shape)
    return got, result.stats


def check_buffer(where: Layout, raw: Array, want: Array) -> None:
    """Entries are those that numpy writes, and of records with values all bytes that they say, but for what lies behind the last value."""
    expected, at = where.encode(want), where.sections[0]
    count = where.segments * where.groups
    assert (raw[at : at + 4 * count] == expected[at : at + 4 * count]).all(), "entries"
    nnz = (where.tiles(want) != 0).sum((-1, -2))
    used = np.arange(SLOT) < np.where(nnz > 0, HEADER + 2 * nnz, 0)[:, None]
    same = raw[: count * SLOT].reshape(count, SLOT) == expected[: count * SLOT].reshape(count, SLOT)
    assert same[used].all(), "records"


def offers(c: Case, machine: Machine = DSTC) -> list[Options]:
    assert SPWMMA_GENERATOR.serves(c.group, machine) is None
    return list(SPWMMA_GENERATOR.candidates(c.group, machine))
