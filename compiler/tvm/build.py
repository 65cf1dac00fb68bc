"""A group of Graph nodes → Relax → one PrimFunc → scheduled and lowered TIR → plain lists. Runs in the worker.

    nodes ─ the ops' relax facets ─► function `group` ─ LegalizeOps ─► call_tir … ─ FuseTIR ─► one PrimFunc ─ schedule ─► kernels

The group is fused already (that is what a group is), so it is marked as one primitive instead of running FuseOps. Operators that
TVM writes as ready-made kernels (sort, top-k, scans) cannot be fused; a group with one of them stays a sequence of calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import tvm
from tvm import relax
from tvm.relax import transform as R
from tvm.s_tir import transform as S
from tvm.tirx import transform as T

from ..ir import OPS, Type
from ..ops.lowering import TVM_DTYPES
from .exact import hidden, legalization, number
from .export import Exporter, UnknownTirError, kind
from .schedule import ready_made, scheduled
from .tir import array_in, array_out

Json = Any

VERSION: str = tvm.__version__

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
def passes(ours: bool) -> tuple[Any, ...]:
    """From a scheduled PrimFunc to loops, flat buffers, synchronisation and shuffles.

    Two of them simplify. What they may not touch is hidden from them; a ready-made kernel keeps its arithmetic in sight, which is
    all about places: nothing is fused into it, and what it does to values is one operation at most.
    """
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
        *([T.Apply(hidden)] if ours else []),
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
        exporter = Exporter(roles, calls.scratch)
        done += exporter.kernels(_lowered(module.mod[function]), shapes)
    arrays = {f"c{i}": array_out(a) for i, a in enumerate(module.arrays)}
    return {"kernels": done, "scratch": calls.scratch, "constants": arrays}


# --- Relax


@dataclass(frozen=True)
class _Module:
    """A module whose `main` calls TIR functions; main's parameters by name; the arrays among them, c0, c1, …"""

    mod: Any
    inputs: dict[Any, str]
    arrays: list[Any]


def _legal(group: Json) -> _Module:
    """The group as calls of TIR functions, fused into one if that is possible."""
    mod, names = _module(group)
    legal = _as_tir(mod, legalization())
    if any(map(ready_made, _functions(legal).values())):
        legal = _as_tir(mod, {})  # nothing is fused: a constant of its own would be a kernel
        return _rebuilt(_functions(legal), legal["main"], names, "main")
    module = _rebuilt(_functions(legal), legal["main"], names, "group")
    try:
        fused = R.DeadCodeElimination()(R.FuseTIR()(R.AnnotateTIROpPattern()(module.mod)))
    except tvm.error.InternalError as e:
        raise GroupError(0, brief(e)) from None
    return _Module(fused, module.inputs, module.arrays)


def _as_tir(mod: Any, own: dict[str, Any]) -> Any:
    """Every operator as a call of a TIR function, by TVM's rules and some of our own."""
    with target():
        mod = relax.backend.DispatchSortScan()(R.LegalizeOps({**SCANS, **own})(mod))
        return R.DeadCodeElimination()(R.LegalizeOps()(mod))


def _functions(mod: Any) -> dict[Any, Any]:
    return {v: f for v, f in mod.functions.items() if kind(f) == "PrimFunc"}


def _scan(running: Any) -> Any:
    """Running sums or products, each row in order by one thread: TVM's kernel for GPUs takes long rows in another order."""

    def legalize(builder: Any, call: Any) -> Any:
        attrs = call.attrs
        axis, exclusive = int(attrs.axis), bool(attrs.exclusive)
        return builder.call_te(running, call.args[0], axis, str(attrs.dtype), exclusive)

    return legalize


SCANS = {
    "relax.cumsum": _scan(tvm.topi.cumsum),
    "relax.cumprod": _scan(tvm.topi.cumprod),
}


def _module(group: Json) -> tuple[Any, list[str]]:
    """A function with the group's nodes in it, and the names of its parameters."""
    builder = relax.BlockBuilder()
    types = {
        v["name"]: Type(v["dtype"], tuple(v["shape"])) for v in group["inputs"] if "data" not in v
    }
    variables = {name: relax.Var(name, _type(t)) for name, t in types.items()}
    with builder.function("main", list(variables.values())):
        with builder.dataflow():
            env: dict[str, Any] = {"": None, **variables}
            env |= {v["name"]: _literal(builder, v) for v in group["inputs"] if "data" in v}
            for i, node in enumerate(group["nodes"]):
                _emit(builder, env, i, node)
            if missing := [v for v in group["outputs"] if env.get(v) is None]:
                raise GroupError(len(group["nodes"]) - 1, f"no lowering makes %{missing[0]}")
            out = builder.emit_output(
                _result(builder, [env[v] for v in group["outputs"]], set(variables.values()))
            )
        builder.emit_func_output(out)
    return builder.get(), list(types)


def _rebuilt(functions: dict[Any, Any], f: Any, names: list[str], name: str) -> _Module:
    """The function again, without constants, which fusion does not take: numbers become a TIR function, arrays parameters.

    If its name is `group` it is a primitive, and a `main` calls it.
    """
    builder = relax.BlockBuilder(tvm.IRModule(functions))
    bindings = [b for block in f.body.blocks for b in block.bindings]
    arrays = [c.value.numpy() for c in _constants(bindings) if c.ty.ndim]
    names = [*names, *(f"c{i}" for i in range(len(arrays)))]
    types = [v.ty for v in f.params] + [_type(Type.of(a)) for a in arrays]
    variables, arguments = (
        [relax.Var(v, t) for v, t in zip(names, types, strict=True)] for _ in range(2)
    )
    primitive = {"attrs": {"Primitive": 1}, "private": True} if name == "group" else {}
    with builder.function(name, variables, **primitive):
        with builder.dataflow():
            env = dict(zip(f.params, variables, strict=False))
            free = iter(variables[len(f.params) :])
            for b in bindings:
                e = _replaced(builder, b.value, env, free)
                env[b.var] = e if isinstance(e, relax.Var) else builder.emit(e)
            result = env[f.body.body]
            out = builder.emit_output(
                builder.emit_te(tvm.topi.identity, result) if result in set(variables) else result
            )
        function = builder.emit_func_output(out)
    if name == "group":
        with builder.function("main", arguments):
            with builder.dataflow():
                out = builder.emit_output(relax.Call(function, arguments))
            builder.emit_func_output(out)
    inputs = arguments if name == "group" else variables
    return _Module(builder.get(), dict(zip(inputs, names, strict=True)), arrays)


def _constants(bindings: list[Any]) -> list[Any]:
    """Constants that are operands, in the order of their use."""
    found: list[Any] = []
    for b in bindings:
        parts = (
            b.value.args[1].fields
            if _is_call_tir(b.value)
            else [b.value, *getattr(b.value, "fields", [])]
        )
        found += [e for e in parts if kind(e) == "GenericConst"]
    return found


def _is_call_tir(e: Any) -> bool:
    return kind(e) == "Call" and getattr(e.op, "name", "") == "relax.call_tir"


def _replaced(builder: Any, e: Any, env: dict[Any, Any], arrays: Any) -> Any:
    """An expression of legal Relax with other operands."""

    def operand(x: Any) -> Any:
        if kind(x) != "GenericConst":
            return env[x]
        if x.ty.ndim:
            return next(arrays)
        value, d = x.value.numpy().item(), str(x.ty.dtype)
        return builder.emit_te(lambda: tvm.topi.full((), d, number(value, d)))

    match kind(e):
        case "Call" if _is_call_tir(e):
            made = e.ty_args[0]
            types = list(made.fields) if isinstance(made, relax.TupleType) else made
            return relax.call_tir(
                e.args[0], relax.Tuple([operand(x) for x in e.args[1].fields]), types
            )
        case "Tuple":
            return relax.Tuple([operand(x) for x in e.fields])
        case "TupleGetItem":
            return relax.TupleGetItem(env[e.tuple_value], e.index)
        case "Var" | "DataflowVar" | "GenericConst":
            return operand(e)
    raise UnknownTirError(f"Relax expression {getattr(getattr(e, 'op', None), 'name', kind(e))}")


def _type(t: Type) -> Any:
    return relax.TensorType(t.shape, TVM_DTYPES[t.dtype])


def _literal(builder: Any, v: Json) -> Any:
    """A constant of one element, which ends up as an immediate."""
    shape, d = tuple(v["shape"]), TVM_DTYPES[v["dtype"]]
    array = array_in({**v, "shape": ()})
    if not shape:
        return relax.const(array, d)
    # relax.op.full stumbles over infinities
    return builder.emit_te(lambda: tvm.topi.full(shape, d, number(array.item(), d)))


def _emit(builder: Any, env: dict[str, Any], i: int, node: Json) -> None:
    """Add a node's results to the environment."""
    attrs = {k: _attr(a) for k, a in node["attrs"].items()}
    try:
        made = OPS[node["op"]].facets["relax"](relax, *(env[v] for v in node["inputs"]), **attrs)
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
        own.append(
            builder.emit_te(tvm.topi.identity, v)
            if v in seen or not isinstance(v, relax.Var)
            else v
        )
        seen.add(own[-1])
    return own[0] if len(own) == 1 else builder.normalize(relax.Tuple(own))


def brief(e: Exception) -> str:
    """The first line of an error that says something."""
    lines = [line.strip() for line in str(e).splitlines()]
    return next((line for line in lines if line), type(e).__name__)[:300]


# --- the calls of main


@dataclass
class _Slot:
    """A tensor in memory."""

    name: str
    bytes: int = 0


class _Calls:
    """The TIR functions that `main` calls, in order: (function, names of its buffers, their shapes); scratch buffers between them."""

    def __init__(self, main: Any, inputs: dict[Any, str], outputs: list[str]) -> None:
        self.made: list[_Slot] = []
        calls: list[tuple[Any, list[_Slot], list[tuple[int, ...]]]] = []
        self.slots: dict[Any, Any] = {v: _Slot(name) for v, name in inputs.items()}
        for b in (b for block in main.body.blocks for b in block.bindings):
            self.slots[b.var] = self._value(b, calls)
        result = self.slots[main.body.body]
        for slot, name in zip(
            result if isinstance(result, list) else [result], outputs, strict=True
        ):
            slot.name = name
        self.scratch: dict[str, int] = {}
        for slot in self.made:
            if not slot.name:
                slot.name = f"s{len(self.scratch)}"
                self.scratch[slot.name] = slot.bytes
        self.found = [(f, [s.name for s in slots], shapes) for f, slots, shapes in calls]

    def _value(self, b: Any, calls: list[Any]) -> Any:
        """The slot of a binding's value, or the slots of a tuple's."""
        match kind(b.value):
            case "TupleGetItem":
                return self.slots[b.value.tuple_value][b.value.index]
            case "Tuple":
                return [self.slots[x] for x in b.value.fields]
            case "Var" | "DataflowVar":
                return self.slots[b.value]
            case "Call" if _is_call_tir(b.value):
                return self._call(b.var.ty, b.value, calls)
        raise UnknownTirError(f"Relax expression {kind(b.value)}")

    def _call(self, ty: Any, call: Any, calls: list[Any]) -> Any:
        types = list(ty.fields) if isinstance(ty, relax.TupleType) else [ty]
        made = [_Slot("", _bytes(t)) for t in types]
        self.made += made
        read = list(call.args[1].fields)
        shapes = [tuple(int(n) for n in t.shape) for t in (*(v.ty for v in read), *types)]
        calls.append((call.args[0], [*(self.slots[v] for v in read), *made], shapes))
        return made if isinstance(ty, relax.TupleType) else made[0]


def _bytes(t: Any) -> int:
    d = next(d for d, theirs in TVM_DTYPES.items() if theirs == str(t.dtype))
    return Type(d, tuple(int(n) for n in t.shape)).bytes


# --- TIR


def _lowered(f: Any) -> Any:
    """Scheduled, and through the passes."""
    ours = not ready_made(f)
    f = scheduled(f, target())
    f = f.with_attr("target", target().with_host("llvm")).with_attr("global_symbol", "group")
    mod = tvm.IRModule({"group": f})
    for p in passes(ours):
        mod = p(mod)
    return mod["group"]
