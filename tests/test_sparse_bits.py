"""Whatever weights are left, whatever the shape: sparse kernels of all targets have the bits of the dense product; what a skipped zero leaves out.

    pattern ─ mask ─▶ weights ─ fits ─▶ encoding ─▶ kernels of a target that skip zeros ─▶ bits of `evaluate`, which multiplies all
                                                   (dense ones where there are none)

A zero that is skipped meets no Inf and no NaN: an oracle says which are skipped, kernel by kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sparse_cases
from hypothesis import event, given, settings
from hypothesis import strategies as st
from matrix_cases import Case, conv, group_of, matmul, same
from sparse_cases import sparse
from test_channel_first import SMALL

from knapper.compiler.codegen.generator import GENERATORS
from knapper.compiler.codegen.matrix.blocks import product
from knapper.compiler.codegen.matrix.channel_first.shape import column_of
from knapper.compiler.codegen.matrix.hmma_sp import compressed
from knapper.compiler.codegen.matrix.tilewise.channel_first import Joint, joined
from knapper.compiler.driver import Options, finish
from knapper.compiler.encoding import Encoding
from knapper.compiler.ir import Array, Graph, compute, evaluate
from knapper.compiler.sparsity import PATTERNS, Recipe, masks
from knapper.compiler.sparsity.fits import fits
from knapper.compiler.sparsity.recognise import recognise
from knapper.compiler.sparsity.tilewise import split, tiles
from knapper.compiler.sparsity.view import View
from knapper.isa.machine import Machine
from knapper.runtime.session import Session

MACHINES = {"volta-8tc": None, "sma3": None, "ampere": None, "tpu-v2": SMALL}
"""None: as it is; else with a small array, of which products take many passes."""
KINDS = {
    "volta-8tc": ("hmma",),
    "sma3": ("systolic",),
    "ampere": ("hmma_sp", "hmma"),
    "tpu-v2": ("tilewise_channel_first", "channel_first"),
}
"""Kernels of a target, those that skip more before others."""
SKIP = ("hmma_sp", "tilewise_channel_first")
"""Kinds that do nothing else; others have an access `tilewise`."""
GRANULARITY = st.sampled_from([4, 8, 16, 32])
FEW = max(8, (settings.default or settings()).max_examples // 4)
"""Examples: each compiles a kernel."""


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


# --- weights


def share(data: Any) -> float:
    """Any, and often an end."""
    return float(data.draw(st.sampled_from([0.0, 0.05, 0.5, 0.9, 1.0]) | st.floats(0, 1)))


def mask(data: Any, matrix: Array, pattern: str) -> tuple[Array, Encoding | None]:
    """Which elements of [K, N] stay, and what a pass would say of them."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    if pattern == "any":  # rows and columns go, then elements
        rows, columns, elements = (share(data) for _ in range(3))
        keeps = [rng.random(n) < s for n, s in zip(matrix.shape, (rows, columns), strict=True)]
        return np.outer(*keeps) & (rng.random(matrix.shape) < elements), None
    sparsity = min(share(data), 0.97)
    options: dict[str, Any] = {"block": (data.draw(GRANULARITY), data.draw(GRANULARITY))}
    if pattern == "tvw":
        sparsity = max(sparsity, 0.5)
    if pattern == "tew":
        options["delta"] = min(0.05, (1 - sparsity) / 2)
    recipe = Recipe(pattern, sparsity, data.draw(GRANULARITY), **options)
    scores = rng.random(matrix.shape) * rng.random(matrix.shape[0])[:, None]
    views = {"w": View((0, 1))}
    found = masks({"w": scores}, pattern=pattern, sparsity=sparsity, granularity=recipe.granularity, views=views, **options)  # fmt: skip
    return found["w"], recipe.encoding


def named(matrix: Array, encoding: Encoding | None) -> Encoding | None:
    """The encoding if zeros fit it, else what they look like."""
    return encoding if encoding and fits(matrix, encoding) else recognise(matrix)


def pruned(data: Any, case: Case, pattern: str) -> Case:
    """The case with weights pruned, and an encoding if they have one."""
    graph, inputs = case
    p = product(group_of(graph))
    w = graph.constants[p.b]
    matrix = w.reshape(-1, w.shape[-1])
    kept, encoding = mask(data, matrix, pattern)
    matrix = np.where(kept, matrix, np.zeros((), w.dtype))
    encoding = named(matrix, encoding)
    event(f"{pattern}: {encoding.name if encoding else 'dense'}")
    constants = {**graph.constants, p.b: np.ascontiguousarray(matrix.reshape(w.shape))}
    made = replace(graph, constants=constants, encodings={p.b: encoding} if encoding else {})
    return made.verify(), inputs


# --- kernels


@dataclass(frozen=True)
class Way:
    """A kernel for a graph of one group."""

    machine: Machine = field(repr=False)
    kind: str
    options: dict[str, Any]

    def run(self, graph: Graph, inputs: dict[str, Array], cache: Path) -> dict[str, Array]:
        forced = {"g": {"kind": self.kind, **self.options}}
        program = finish(graph, self.machine, Options(forced=forced, cache=cache))
        session = Session(program)
        outputs = session.run(inputs).outputs
        session.close()
        return dict(outputs)


def ways(graph: Graph, target: str) -> list[Way]:
    """Those that skip zeros, of the first kind that has any; dense ones if none does."""
    machine, group, dense = MACHINES[target] or Machine.load(target), group_of(graph), list[Way]()
    for kind in KINDS[target]:
        if GENERATORS[kind].serves(group, machine) is not None:
            continue
        every = [
            Way(machine, kind, dict(o))
            for o in GENERATORS[kind].candidates(group, machine)
            if o.get("modes", ("simd",))[0] == "simd"  # as a launch by itself begins
        ]
        skips = [w for w in every if kind in SKIP or w.options.get("access") == "tilewise"]
        if skips:
            return skips
        dense += every
    return dense


def drawn(data: Any) -> Case:
    """A ragged product or convolution."""
    dtype, size = data.draw(st.sampled_from(["f16", "bf16"])), st.integers(1, 70)
    if data.draw(st.booleans()):
        m, k, n = (data.draw(size) for _ in range(3))
        return matmul((m, k), (k, n), plus=(n,), dtype=dtype, known=True)
    x = tuple(data.draw(st.integers(1, most)) for most in (2, 7, 9, 40))
    k, stride = data.draw(st.sampled_from([1, 3])), data.draw(st.sampled_from([1, 1, 2]))
    after = data.draw(st.sampled_from(["relu", "residual"]))
    return conv(x, data.draw(size), k, stride, pad=k // 2, dtype=dtype, after=after)


@pytest.mark.parametrize("target", KINDS)
@settings(max_examples=FEW)
@given(st.data())
def test_any_zeros_in_weights(target: str, cache: Path, data: Any) -> None:
    pattern = data.draw(st.sampled_from([*PATTERNS, "any"]))
    graph, inputs = pruned(data, drawn(data), pattern)
    found = ways(graph, target)
    way = data.draw(st.sampled_from(found))
    event(f"{target}: {way.kind} {way.options.get('access', '')}")
    got, want = way.run(graph, inputs, cache), evaluate(graph, inputs)
    for v, y in want.items():
        assert same(got[v], y), f"{way}: %{v}"


@settings(max_examples=FEW)
@given(st.data())
def test_any_zeros_on_both_sides(data: Any) -> None:
    pattern = data.draw(st.sampled_from([*PATTERNS, "any"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    dtype = data.draw(st.sampled_from(["f16", "bf16"]))
    c, n = (data.draw(st.integers(1, 70)) for _ in range(2))
    size, taps, pad = (data.draw(st.integers(1, 100)),), (), 0
    if data.draw(st.booleans()):
        size = tuple(data.draw(st.integers(1, most)) for most in (2, 7, 9))
        k = data.draw(st.sampled_from([1, 3]))
        taps, pad = (k, k), data.draw(st.sampled_from([1, 2] if k == 3 else [0, 1]))
    w = sparse(rng, (*taps, c, n), 1.0, dtype)
    kept, _ = mask(data, w.reshape(-1, n), pattern)
    w = np.where(kept.reshape(w.shape), w, np.zeros((), w.dtype))
    x = sparse(rng, (*size, c), share(data), dtype)
    after, out = (data.draw(st.sampled_from(s)) for s in (["", "relu", "residual"], ["dense", "encoded", "both"]))  # fmt: skip
    made = sparse_cases.case(x, w, pad, after, out, dtype)
    options = data.draw(st.sampled_from(sparse_cases.offers(made)))
    got, _ = sparse_cases.run(made, options)
    for v, y in made.want.items():
        assert same(got[v] + np.zeros((), y.dtype), y + np.zeros((), y.dtype)), f"{options}: %{v}"


# --- Inf and NaN

STRANGE = np.array([np.inf, -np.inf, np.nan], np.float16)


def strange(rng: np.random.Generator, a: Array, count: int = 3) -> Array:
    """An array of which some elements that are not zero are no numbers."""
    out, places = a.copy(), np.flatnonzero(a)
    at = rng.choice(places, min(count, len(places)), replace=False)
    out.ravel()[at] = rng.choice(STRANGE, len(at)).astype(a.dtype)
    return out


def patches(x: Array, k: int) -> Array:
    """[M, K] of a product, or of a convolution with `same` pads, its taps before channels."""
    if x.ndim == 2:
        return x
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    _, h, w, c = x.shape
    taps = [padded[:, r : r + h, q : q + w] for r in range(k) for q in range(k)]
    return np.stack(taps, 3).reshape(-1, k * k * c)


@np.errstate(all="ignore")
def chain(a: Array, w: Array, takes: Array) -> Array:
    """Sums over ascending k of what takes part, [M, N]. takes: [M or 1, K, N]"""
    total = np.zeros((len(a), w.shape[1]), np.float32)
    for k in range(len(w)):
        more = total.astype(np.float64) + a[:, k, None].astype(np.float64) * w[k].astype(np.float64)
        total = np.where(takes[:, k], more.astype(np.float32), total)
    return total


def kept(matrix: Array, way: Way, graph: Graph) -> Array:
    """Which weights [K, N] a kernel multiplies, zero or not."""
    p = product(group_of(graph))
    if way.kind == "hmma_sp":
        fill = -len(matrix) % 4
        padded = np.pad(matrix, ((0, fill), (0, 0)))[None]
        found = np.zeros((len(padded[0]) // 4, 4, matrix.shape[1]), bool)
        index = compressed(padded)[1].reshape(-1, 2, matrix.shape[1])
        np.put_along_axis(found, index, True, axis=1)
        return found.reshape(-1, matrix.shape[1])[: len(matrix)]
    encoding = graph.encodings[p.b]
    width, out = int(encoding["tile"]), np.zeros(matrix.shape, bool)
    own = split(matrix, width)[0] if encoding.name == "tew" else matrix
    parts = [
        Joint(np.flatnonzero((matrix[:, t.columns] != 0).any(axis=1)), t.columns)
        for t in tiles(own, width)  # of its columns, rows that tile or residue have
    ]
    if way.kind == "tilewise_channel_first":  # and the array's passes those of several tiles
        parts = joined(parts, way.machine.array_rows, column_of(p, way.machine))
    for t in parts:
        out[np.ix_(t.rows, t.columns)] = True
    return out


def after(graph: Graph, total: Array, inputs: dict[str, Array]) -> dict[str, Array]:
    """The results of a group whose product has these sums [M, N]."""
    env: dict[str, Any] = {"": None, **graph.constants, **inputs}
    with np.errstate(all="ignore"):
        for n in graph.nodes:
            if n.op in ("Conv", "MatMul"):
                y = total.reshape(n.types[0].shape)
                env[n.outputs[0]] = y + env[n.inputs[2]] if n.op == "Conv" and n.inputs[2:] else y
            else:
                env |= dict(zip(n.outputs, compute(n, env), strict=True))
    return {v: env[v] for v in graph.outputs}


TILED = [("volta-8tc", "tw"), ("sma3", "tw"), ("tpu-v2", "tw"), ("ampere", "tw"), ("ampere", "nm"), ("sma3", "tew"), ("tpu-v2", "tew")]  # fmt: skip


@pytest.mark.parametrize(("target", "pattern"), TILED)
@settings(max_examples=FEW)
@given(st.data())
def test_a_weight_that_is_skipped_makes_no_nan(target: str, pattern: str, cache: Path, data: Any) -> None:  # fmt: skip
    """Inf and NaN on both sides, of which rows that a tile has not, meet nothing."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    k = data.draw(st.sampled_from([1, 3]))
    c, n = data.draw(st.integers(8, 40)), data.draw(st.integers(8, 40))
    case = conv((1, 4, 5, c), n, 3, pad=1) if k == 3 else matmul((9, c), (c, n), plus=(n,), known=True)  # fmt: skip
    graph, inputs = pruned(data, case, pattern)
    p = product(group_of(graph))
    w = strange(rng, graph.constants[p.b], 1)
    graph = replace(graph, constants={**graph.constants, p.b: w})
    inputs = {**inputs, p.a: strange(rng, inputs[p.a])}
    way = data.draw(st.sampled_from(ways(graph, target)))
    if way.kind not in SKIP and way.options.get("access") != "tilewise":
        return  # too few zeros for a name
    matrix = w.reshape(-1, n)
    total = chain(patches(inputs[p.a], k), matrix, kept(matrix, way, graph)[None])
    want, got = after(graph, total, inputs), way.run(graph, inputs, cache)
    for v, y in want.items():
        assert same(got[v], y), f"{way}: %{v}"
    dense = evaluate(graph, inputs)
    event(f"{way.kind}: dense has {'more' if any((np.isnan(dense[v]) & ~np.isnan(want[v])).any() for v in want) else 'as many'} NaNs")  # fmt: skip


@settings(max_examples=FEW)
@given(st.data())
def test_a_zero_on_either_side_makes_no_nan(data: Any) -> None:
    """Of products of condensed vectors: what is left out is where activation or weight is a zero."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 20)))
    k, c, n = (data.draw(s) for s in (st.sampled_from([1, 3]), st.integers(8, 40), st.integers(8, 40)))  # fmt: skip
    shape = (1, 4, 5, c) if k == 3 else (9, c)
    x, w = strange(rng, sparse(rng, shape, 0.5)), strange(rng, sparse(rng, (k * k * c, n), 0.4))
    weights = w.reshape(k, k, c, n) if k == 3 else w
    made = sparse_cases.case(x, weights, k // 2, "", data.draw(st.sampled_from(["dense", "both"])))
    a = patches(x, k)
    total = chain(a, w, (a != 0)[:, :, None] & (w != 0))
    with np.errstate(all="ignore"):
        total = np.where(np.isnan(total), np.float32(np.nan), total)  # as it reaches memory
        want = total.astype(np.float16).reshape(made.want["z" if "z" in made.want else "d"].shape)
    options = data.draw(st.sampled_from(sparse_cases.offers(made)))
    got, _ = sparse_cases.run(replace(made, want=dict.fromkeys(made.want, want)), options)
    for v, y in got.items():
        assert same(y, want), f"{options}: %{v}"
