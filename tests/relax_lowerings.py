"""Build every op's relax facet for the host with LLVM and run it on the op's examples: a script for test_ops.py.

Writes {"op_example": what is wrong, or ""} as JSON to standard output, for all ops or those named on the command line; with
--first for the first example of each. It is a process of its own because tvm takes a second to load and hooks into the
interpreter that loads it. All cases are functions of one module, compiled at once without optimisation (50 ms a case); a module
that does not compile is tried function by function.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tvm
from tvm import relax

from knapper.compiler import ops  # noqa: F401  declares the ops
from knapper.compiler.ir import NAMES, OPS
from knapper.compiler.ops import table
from knapper.compiler.ops.lowering import TVM_DTYPES

TOLERANCE = {"f16": 2**-9, "bf16": 2**-6, "f32": 1e-5, "f64": 1e-6}
FACET_ERRORS = (tvm.error.InternalError, AttributeError, TypeError, ValueError)

Case = tuple[str, list[Any], dict[str, Any]]


def results(y: Any) -> list[Any]:
    return list(y) if isinstance(y, list | tuple) else [y]


def declare(bb: Any, name: str, case: Case) -> None:
    """Add the case as a function that gives a tuple of results."""
    op, operands, attrs = case
    types = [
        a if a is None else relax.TensorType(a.shape, TVM_DTYPES[NAMES[a.dtype]]) for a in operands
    ]
    xs = [t if t is None else relax.Var(f"x{i}", t) for i, t in enumerate(types)]
    with bb.function(name, [x for x in xs if x is not None]):
        with bb.dataflow():
            made = [bb.emit(e) for e in results(OPS[op].facets["relax"](relax, *xs, **attrs))]
            out = bb.emit_output(relax.Tuple(made))
        bb.emit_func_output(out)


def machine(cases: dict[str, Case]) -> Any:
    """A virtual machine with a function for every case."""
    bb = relax.BlockBuilder()
    for name, case in cases.items():
        declare(bb, name, case)
    target = tvm.target.Target({"kind": "llvm", "opt-level": 0})
    return relax.VirtualMachine(tvm.compile(bb.get(), target), tvm.cpu())


def problem(vm: Any, name: str, case: Case) -> str:
    """What the lowering makes wrong, or nothing."""
    op, operands, attrs = case
    want = results(OPS[op].facets["reference"](*operands, **attrs))
    feeds = (tvm.runtime.tensor(np.asarray(a, order="C")) for a in operands if a is not None)
    got = [y.numpy() for y in vm[name](*feeds)]
    return "; ".join(filter(None, (difference(g, w) for g, w in zip(got, want, strict=False))))


def difference(got: Any, want: Any) -> str:
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"{got.dtype}{got.shape} where the reference has {want.dtype}{want.shape}"
    tolerance = TOLERANCE.get(NAMES[want.dtype], 0)
    a, b = (v.astype(np.float64) if tolerance else v for v in (got, want))
    if np.allclose(a, b, tolerance, tolerance, equal_nan=True):
        return ""
    return f"differs by up to {np.abs(a.astype(np.float64) - b.astype(np.float64)).max()}"


def problems(cases: dict[str, Case]) -> Iterator[tuple[str, str]]:
    """What is wrong with each case."""
    try:
        vm = machine(cases)
    except FACET_ERRORS as e:
        if len(cases) == 1:
            yield next(iter(cases)), f"{type(e).__name__}: {str(e).strip()[-600:]}"
            return
        for name, case in cases.items():
            yield from problems({name: case})
        return
    for name, case in cases.items():
        yield name, problem(vm, name, case)


def main() -> None:
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # tvm prints
    last = 1 if "--first" in sys.argv else None
    names = [n for n in sys.argv[1:] if n != "--first"] or sorted(OPS)
    lowered = [n for n in names if "relax" in OPS[n].facets]
    found = {
        f"{n}_{i}": (n, *case)
        for n in lowered
        for i, case in enumerate(table.examples(OPS[n])[:last])
    }
    json.dump(dict(problems(found)), out)
    out.close()


if __name__ == "__main__":
    main()
