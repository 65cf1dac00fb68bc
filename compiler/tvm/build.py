"""A group of Graph nodes → Relax → one PrimFunc → scheduled and lowered TIR → plain lists. Runs in the worker.

    nodes ─ the ops' relax facets ─► function `group` ─ LegalizeOps ─► call_tir … ─ FuseTIR ─► one PrimFunc ─ schedule ─► kernels

The group is fused already (that is what a group is), so it is marked as one primitive instead of running FuseOps. Operators that
TVM writes as ready-made kernels (sort, top-k, scans) cannot be fused; a group with one of them stays a sequence of calls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.relax import transform as R
from tvm.s_tir import ScheduleError
from tvm.s_tir import transform as S
from tvm.tirx import transform as T

from ..ir import DTYPES, OPS, Type
from ..ops.lowering import TVM_DTYPES
from .export import Exporter, UnknownTirError, kind
from .schedule import ready_made, scheduled
from .tir import array_in, array_out

Json = Any

TARGET = {
    "kind": "cuda",
    "arch": "sm_70",
    "thread_warp_size": 32,
    "max_threads_per_block": 256,
    "max_shared_memory_per_block": 49152,
}
"""What TVM is told, the same for all knapper targets."""


class GroupError(Exception):
    """A group that TVM does not lower: which node, and why."""

    def __init__(self, node: int, message: str) -> None:
        self.node = node
        super().__init__(message)


@cache
def target() -> Any:
    """The one target."""
    return tvm.target.Target(TARGET)


@cache
def passes() -> tuple[Any, ...]:
    """From a scheduled PrimFunc to loops, flat buffers, synchronisation and shuffles; nothing here changes results."""
    return (
        S.CanonicalizeLoop(),
        S.LowerCrossThreadReduction(),
        S.LowerInitBlock(),
        S.PlanAndUpdateBufferAllocationLocation(),
        S.ConvertBlocksToOpaque(),
        S.LiftThreadBinding(),
        S.CompactBufferAllocation(),
        S.UnifyThreadBinding(),
        S.LowerMatchBuffer(),
        S.StmtSimplify(),
        S.LowerOpaqueBlock(),
        T.FlattenBuffer(),
        T.NarrowDataType(32),
        S.LoopPartition(),
        T.VectorizeLoop(True),
        T.StorageRewrite(),
        S.HoistIfThenElse(),
        T.UnrollLoop(),
        S.RenormalizeSplitPattern(),
        T.StmtSimplify(),
        T.RemoveNoOp(),
        S.RewriteUnsafeSelect(),
        S.ThreadSync("shared"),
        S.LowerThreadAllreduce(),
    )


def kernels(group: Json) -> Json:
    """The group's kernels in order, and the scratch buffers between them.

    Raises GroupError for what TVM does not take, UnknownTirError for TIR that the export does not know.
    """
    module = _legal(group)
    calls = _Calls(module.mod["main"], module.inputs, group["outputs"])
    done: list[Json] = []
    for function, roles, shapes in calls.found:
        done += Exporter(roles, calls.scratch).kernels(_lowered(_bound(module.mod[function], shapes)))
    arrays = {f"c{i}": array_out(a) for i, a in enumerate(module.arrays)}
    return {"kernels": done, "scratch": calls.scratch, "constants": arrays if module.no_constants else {}}


# --- Relax


class _Relax:
    """`tvm.relax` as facets see it. Constants that a TIR function would take as a tensor cannot be fused; `values` avoids them.

    A scalar then becomes a `full` of no dimensions, which is inlined as an immediate, and an array a parameter of the group.
    """

    def __init__(self, builder: Any, values: list[Any] | None) -> None:
        self.builder, self.values = builder, values
        self.arrays: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(relax, name)

    def const(self, value: Any, dtype: Any = None) -> Any:
        """relax.const, or what stands for it."""
        made = relax.const(value, dtype)
        if made.ty.ndim:
            self.arrays.append(made.value.numpy())
            return made if self.values is None else self.values[len(self.arrays) - 1]
        return made if self.values is None else self.builder.emit(relax.op.full((), made, str(made.ty.dtype)))


@dataclass
class _Module:
    """A module under construction: `main` with the group's nodes in it, or `main` that calls `group`, which has them."""

    group: Json
    nested: bool
    arrays: list[Any] = field(default_factory=list)
    """Arrays that facets made: parameters c0, c1, …"""
    no_constants: bool = False

    def build(self) -> _Module:
        builder = relax.BlockBuilder()
        types = {v["name"]: Type(v["dtype"], tuple(v["shape"])) for v in self.group["inputs"] if "data" not in v}
        types |= {f"c{i}": Type.of(a) for i, a in enumerate(self.arrays)}
        variables = {name: relax.Var(name, _type(t)) for name, t in types.items()}
        facets = _Relax(builder, [variables[f"c{i}"] for i in range(len(self.arrays))] if self.no_constants else None)
        with builder.function("group" if self.nested else "main", list(variables.values()), private=self.nested):
            with builder.dataflow():
                out = builder.emit_output(self._body(builder, facets, variables))
            self.function = builder.emit_func_output(out)
        self.arrays = facets.arrays
        self.inputs = {v: name for name, v in variables.items()}
        if self.nested:
            self.inputs = {relax.Var(name, _type(t)): name for name, t in types.items()}
            with builder.function("main", list(self.inputs)):
                with builder.dataflow():
                    out = builder.emit_output(relax.Call(self.function, list(self.inputs)))
                builder.emit_func_output(out)
        with target():
            self.mod = R.DeadCodeElimination()(R.LegalizeOps()(relax.backend.DispatchSortScan()(builder.get())))
        return self

    def _body(self, builder: Any, facets: _Relax, variables: dict[str, Any]) -> Any:
        env: dict[str, Any] = {"": None, **variables}
        env |= {v["name"]: _literal(builder, v) for v in self.group["inputs"] if "data" in v}
        for i, node in enumerate(self.group["nodes"]):
            _emit(facets, env, i, node)
        if missing := [v for v in self.group["outputs"] if env.get(v) is None]:
            raise GroupError(len(self.group["nodes"]) - 1, f"no lowering makes %{missing[0]}")
        return _result(builder, [env[v] for v in self.group["outputs"]], set(variables.values()))

    @property
    def takes_constants(self) -> bool:
        """Whether a TIR function takes a constant as a tensor."""
        calls = (b.value for block in self.mod[self.function].body.blocks for b in block.bindings)
        tensors = (a for c in calls if kind(c) == "Call" and c.op.name == "relax.call_tir" for a in c.args[1].fields)
        return any(kind(a) != "Var" and kind(a) != "DataflowVar" for a in tensors)

    @property
    def is_ready_made(self) -> bool:
        """Whether some TIR function starts threads by itself."""
        return any(kind(f) == "PrimFunc" and ready_made(f) for f in self.mod.functions.values())


def _legal(group: Json) -> _Module:
    """The module whose `main` calls TIR functions, fused into one if that is possible."""
    module = _Module(group, nested=True).build()
    if module.takes_constants:
        module = _Module(group, nested=True, arrays=module.arrays, no_constants=True).build()
    if module.is_ready_made:
        return _Module(group, nested=False, arrays=module.arrays, no_constants=True).build()
    mod = module.mod
    mod[module.function] = mod[module.function].with_attr("Primitive", 1)
    try:
        module.mod = R.DeadCodeElimination()(R.FuseTIR()(R.AnnotateTIROpPattern()(mod)))
    except tvm.error.InternalError as e:
        raise GroupError(0, brief(e)) from None
    return module


def _type(t: Type) -> Any:
    return relax.TensorType(t.shape, TVM_DTYPES[t.dtype])


def _literal(builder: Any, v: Json) -> Any:
    """A constant of one element, which ends up as an immediate."""
    scalar = relax.const(array_in({**v, "shape": ()}), TVM_DTYPES[v["dtype"]])
    return builder.emit(relax.op.full(tuple(v["shape"]), scalar, TVM_DTYPES[v["dtype"]])) if v["shape"] else scalar


def _emit(facets: _Relax, env: dict[str, Any], i: int, node: Json) -> None:
    """Add a node's results to the environment."""
    builder = facets.builder
    attrs = {k: _attr(a) for k, a in node["attrs"].items()}
    try:
        made = OPS[node["op"]].facets["relax"](facets, *(env[v] for v in node["inputs"]), **attrs)
        made = list(made) if isinstance(made, list | tuple) else _parts(builder.normalize(made))
        for name, e in zip(node["outputs"], made, strict=False):
            env[name] = e if isinstance(e, relax.Var) else builder.emit(e)
    except (tvm.error.InternalError, TypeError, ValueError, AttributeError) as e:
        raise GroupError(i, brief(e)) from None


def _parts(e: Any) -> list[Any]:
    if isinstance(e.ty, relax.TupleType):
        e = relax.BlockBuilder.current().emit(e)
        return [relax.TupleGetItem(e, i) for i in range(len(e.ty.fields))]
    return [e]


def _attr(a: Json) -> Any:
    return tuple(map(_attr, a)) if isinstance(a, list) else a


def _result(builder: Any, values: list[Any], inputs: set[Any]) -> Any:
    """The outputs, each a value of its own: what only passes through is copied."""
    seen = set(inputs)
    own = []
    for v in values:
        own.append(builder.emit_te(tvm.topi.identity, v) if v in seen or not isinstance(v, relax.Var) else v)
        seen.add(own[-1])
    return own[0] if len(own) == 1 else builder.normalize(relax.Tuple(own))


def brief(e: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(e).splitlines()]
    return next((line for line in lines if line), type(e).__name__)[:300]


# --- the calls of main


class _Calls:
    """The TIR functions that `main` calls, in order: (function, names of its buffers, their shapes)."""

    def __init__(self, main: Any, inputs: dict[Any, str], outputs: list[str]) -> None:
        self.found: list[tuple[Any, list[str], list[tuple[int, ...]]]] = []
        self.scratch: dict[str, int] = {}
        names: dict[Any, Any] = dict(inputs)
        bindings = [b for block in main.body.blocks for b in block.bindings]
        wanted = self._results(main.body.body, bindings, outputs)
        for b in bindings:
            self._binding(b.var, b.value, names, wanted)

    def _results(self, result: Any, bindings: list[Any], outputs: list[str]) -> dict[Any, Any]:
        """Variable → the output that it is; a tuple's variable → the names of its parts."""
        value = {b.var: b.value for b in bindings}
        while result in value and isinstance(value[result], relax.Var):
            result = value[result]
        if len(outputs) == 1:
            return {result: outputs[0]}
        wanted: dict[Any, Any] = {result: outputs}
        if result in value and isinstance(value[result], relax.Tuple):
            wanted |= dict(zip(value[result].fields, outputs, strict=True))
        for v, e in value.items():
            if v in wanted and isinstance(e, relax.TupleGetItem):
                parts = wanted.setdefault(e.tuple_value, {})
                parts[e.index] = wanted[v]
        return wanted

    def _binding(self, var: Any, value: Any, names: dict[Any, Any], wanted: dict[Any, Any]) -> None:
        if isinstance(value, relax.TupleGetItem):
            names[var] = names[value.tuple_value][value.index]
        elif isinstance(value, relax.Var):
            names[var] = names[value]
        elif isinstance(value, relax.Call) and value.op.name == "relax.call_tir":
            types = list(var.ty.fields) if isinstance(var.ty, relax.TupleType) else [var.ty]
            made = [self._name(wanted.get(var), i, len(types), t) for i, t in enumerate(types)]
            names[var] = made if isinstance(var.ty, relax.TupleType) else made[0]
            read = list(value.args[1].fields)
            shapes = [tuple(int(n) for n in t.shape) for t in ([*(v.ty for v in read), *types])]
            self.found.append((value.args[0], [names[v] for v in read] + made, shapes))
        elif not isinstance(value, relax.Tuple):
            raise UnknownTirError(f"Relax operator {getattr(value.op, 'name', value)}")

    def _name(self, wanted: Any, i: int, n: int, t: Any) -> str:
        """The output that a call's i-th result is, or a scratch buffer."""
        if isinstance(wanted, str) and n == 1:
            return wanted
        if isinstance(wanted, list):
            return str(wanted[i])
        if isinstance(wanted, dict) and i in wanted:
            return str(wanted[i])
        name = f"s{len(self.scratch)}"
        count = int(np.prod([int(d) for d in t.shape], dtype=np.int64))
        self.scratch[name] = count * np.dtype(DTYPES[_ours(str(t.dtype))]).itemsize
        return name


def _ours(name: str) -> str:
    return next(d for d, theirs in TVM_DTYPES.items() if theirs == name)


# --- TIR


def _bound(f: Any, shapes: list[tuple[int, ...]]) -> Any:
    """The function for buffers of these shapes, where it was written for symbolic ones."""
    symbolic = {}
    for v, shape in zip(f.params, shapes, strict=True):
        for dim, n in zip(v.ty.shape, shape, strict=True):
            if kind(dim) == "Var":
                symbolic[dim] = tirx.IntImm(str(dim.ty.dtype), n)
    return f.specialize(symbolic) if symbolic else f


def _lowered(f: Any) -> Any:
    """Scheduled, and through the passes."""
    f = scheduled(f, target())
    f = f.with_attr("target", target().with_host("llvm")).with_attr("global_symbol", "group")
    mod = tvm.IRModule({"group": f})
    for p in passes():
        mod = p(mod)
    return mod["group"]
