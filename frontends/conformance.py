"""ONNX's own suite through knapper: each case of `onnx.backend.test` is compiled, run on the emulator, and compared with its stored outputs.

    case ─ bind ─► read ─► compile ─► run ─► compare          passed    values are right, and kernels made them
             │                                                folded    values are right, but nothing was left to run
    inputs whose value decides a shape or an                  wrong     values, types or shapes differ
    attribute become constants, no others                     disputed  the suite contradicts ONNX's text, which is kept to
                                                              crashed   an error of knapper's own, which is a defect
                                                              refused   one clear error: its code and text
                                                              scope     strings, sequences, optionals: no tensors of numbers

Tolerances are the suite's own, as far as the type can hold them (`tolerances`). What the names in `core` are is in docs/conformance.md.
"""

from __future__ import annotations

import fnmatch
import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from knapper.compiler.ir import DTYPES, NAMES, Array, Graph
from knapper.isa.errors import KnapperError, Problems
from knapper.isa.machine import Machine

from .onnx import read

Verdict = Literal["passed", "folded", "wrong", "disputed", "crashed", "refused", "scope"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
UNBOUND = "E204"
"""Something that must be known when compiling is computed from the network's inputs."""
NARROW = 1e-2
"""The tolerance of 16-bit results; the suite's own is below their resolution."""
LEAST = 1e-5
"""The absolute tolerance of others, at least: the suite's own is 1e-7, which float32 has not beside sums of larger numbers."""


LENGTHS = (
    "ONNX's text has (length_original - 1) / (length_resized - 1), of the resized tensor, as onnxruntime and PyTorch have; "
    "the suite takes scale × length, which is no length"
)
DISPUTED = {
    "test_resize_downsample_scales_linear_align_corners": LENGTHS,
    "test_resize_downsample_scales_cubic_align_corners": LENGTHS,
}
"""Cases whose stored values are not what ONNX's text says: disputed, where ours are onnxruntime's; wrong, where they are neither."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    name: str
    op: str
    verdict: Verdict
    why: str = ""
    instructions: int = 0
    """Warp instructions that ran."""
    matrix: str = ""
    """The matrix instructions among them."""

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return asdict(self)


@dataclass(frozen=True)
class Case:
    """A case of the suite: one model, its inputs, and what comes out."""

    name: str
    op: str
    """The operator that it is about; that of a function's own case for the one where its body is written out."""
    model: ModelProto
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    rtol: float
    atol: float

    @property
    def numeric(self) -> bool:
        """Whether all that goes in and out is a tensor of numbers or booleans, and declared as one."""
        ports = (*self.model.graph.input, *self.model.graph.output)
        return all(p.type.HasField("tensor_type") for p in ports) and all(
            isinstance(a, np.ndarray | np.generic) and a.dtype.kind not in "OUS"
            for a in (*self.inputs, *self.outputs)
        )

    @cached_property
    def given(self) -> dict[str, Array]:
        """Inputs by name."""
        names = [i.name for i in self.model.graph.input]
        return {n: np.asarray(a) for n, a in zip(names, self.inputs, strict=False)}


def core() -> frozenset[str]:
    """Names of the cases that a neural-network accelerator should serve."""
    return frozenset(json.loads(Path(__file__).with_name("conformance_core.json").read_text()))


def cases(select: Sequence[str] = ()) -> list[Case]:
    """The suite's cases of one node whose name, or whose operator, fits one of the patterns; all if there are none."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its generators divide by zero, and overflow, on purpose
        listed = [c for c in collect_testcases(None) if c.model is not None]
    ops = {c.name: _op(c) for c in listed}
    found = (_case(c, ops.get(c.name.split("_expanded")[0], ops[c.name])) for c in listed)
    chosen = (c for c in found if not select or any(_fits(c, s) for s in select))
    return sorted(chosen, key=lambda c: (c.op, c.name))


def _op(c: Any) -> str:
    """Of a case's operators the one that its name names, else the first."""
    kinds: list[str] = [n.op_type for n in c.model.graph.node]
    return min(kinds, key=lambda kind: kind.lower() not in c.name.replace("_", ""))


def _case(c: Any, op: str) -> Case:
    inputs, outputs = c.data_sets[0] if c.data_sets else ((), ())
    given, stored = (tuple(map(_array, a)) for a in (inputs, outputs))
    return Case(c.name, op, c.model, given, stored, c.rtol, c.atol)


def _array(a: Any) -> Any:
    """Types that numpy lacks are stored as protobuf."""
    return numpy_helper.to_array(a) if isinstance(a, TensorProto) else a


def _fits(c: Case, pattern: str) -> bool:
    return (
        c.name in core()
        if pattern == "core"
        else any(fnmatch.fnmatchcase(x, pattern) for x in (c.name, c.op))
    )


# --- one case -----------------------------------------------------------------------------------------------------------


def outcome(c: Case, machine: Machine, pipeline: str = "fp32") -> Outcome:
    """Compile, run and compare a case."""
    if not c.numeric:
        return Outcome(c.name, c.op, "scope", "strings, sequences or optionals")
    try:
        return _run(c, machine, pipeline)
    except Problems as e:
        return Outcome(c.name, c.op, "refused", str(e).splitlines()[0])
    except KnapperError as e:
        return Outcome(c.name, c.op, "refused", str(e))
    except Exception as e:  # a table of hundreds of cases tells of a defect, and goes on
        return Outcome(c.name, c.op, "crashed", f"{type(e).__name__}: {e}")


def _run(c: Case, machine: Machine, pipeline: str) -> Outcome:
    from knapper.compiler.driver import compile_graph

    from .api import Image

    graph = bound(c.model, c.given)
    image = Image(compile_graph(graph, machine, pipeline))
    feed = {name: _held(c.given[name], t.dtype) for name, t in graph.inputs.items()}
    result = image.run(feed)
    stats = result.stats.to_dict()
    why = "; ".join(_differences(c, result.outputs, pipeline))
    executed = sum(stats["instructions"].values())
    verdict: Verdict = "wrong" if why else "passed" if executed else "folded"
    if why and c.name in DISPUTED and not any(_differences(_by_oracle(c), result.outputs, pipeline)):  # fmt: skip
        verdict, why = "disputed", DISPUTED[c.name]
    matrix = ", ".join(sorted(m for m in stats["instructions"] if "MMA" in m or m == "LSMA"))
    return Outcome(c.name, c.op, verdict, why, executed, matrix)


def _by_oracle(c: Case) -> Case:
    """The case with onnxruntime's outputs."""
    from .oracle import Oracle

    return replace(c, outputs=tuple(Oracle(c.model.SerializeToString()).run(c.given).values()))


def bound(model: ModelProto, given: Mapping[str, Array]) -> Graph:
    """The case's graph. Only inputs whose value decides a shape or an attribute become constants: none can be left out."""

    def attempt(consts: Iterable[str]) -> Graph:
        chosen = {n: given[n] for n in consts}
        shapes = {n: a.shape for n, a in given.items() if n not in chosen}
        return read(model, shapes, chosen, replace_fixed=True)

    try:
        return attempt(())
    except KnapperError as e:
        if UNBOUND not in str(e):
            raise
    needed = list(given)
    graph = attempt(needed)
    for name in given:
        fewer = [n for n in needed if n != name]
        try:
            graph, needed = attempt(fewer), fewer
        except KnapperError:
            continue
    return graph


def _held(a: Array, dtype: str) -> Array:
    """Elements of a few bits in the wider type that the graph holds their values in."""
    return a.astype(DTYPES[dtype]) if a.dtype not in NAMES else a


def _differences(c: Case, got: Mapping[str, Array], pipeline: str) -> Iterator[str]:
    """What is not as it should be, in words."""
    if not c.outputs:
        yield "nothing to compare with"
    for (name, y), stored in zip(got.items(), c.outputs, strict=False):
        want = _held(np.asarray(stored), NAMES[y.dtype])
        if (y.shape, y.dtype) != (want.shape, want.dtype):
            yield f"{name} is {y.dtype}{list(y.shape)}, expected {want.dtype}{list(want.shape)}"
            continue
        rtol, atol = tolerances(c, want, pipeline)
        if want.dtype.kind in "biu":
            same = y == want
        else:
            a, b = (np.asarray(v, np.float64) for v in (y, want))
            same = np.isclose(a, b, rtol, atol, equal_nan=True)
        if not same.all():
            yield f"{name}: {np.count_nonzero(~same)} of {same.size} elements differ"
    if len(got) < len(c.outputs):
        yield f"{len(got)} outputs, expected {len(c.outputs)}"


def tolerances(c: Case, want: Array, pipeline: str) -> tuple[float, float]:
    """The suite's (relative, absolute); what 16 bits can hold where values are stored so."""
    if want.dtype.itemsize == 2 or not pipeline.startswith("fp32"):
        return max(c.rtol, NARROW), max(c.atol, NARROW)
    return c.rtol, max(c.atol, LEAST)


# --- tables -------------------------------------------------------------------------------------------------------------


def by_op(found: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row an operator: how many cases of each verdict."""
    ops = sorted({o.op for o in found})
    return [
        {"op": op} | {v: sum(o.verdict == v for o in found if o.op == op) for v in VERDICTS}
        for op in ops
    ]


def summary(found: Sequence[Outcome]) -> str:
    """One line.

    >>> summary([Outcome("test_abs", "Abs", "passed"), Outcome("test_lstm", "LSTM", "refused")])
    '2 cases: 1 passed, 1 refused'
    """
    counts = {v: sum(o.verdict == v for o in found) for v in VERDICTS}
    said = ", ".join(f"{n:,} {v}" for v, n in counts.items() if n)
    return f"{len(found):,} cases: {said}"
