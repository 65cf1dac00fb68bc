"""Walk a model's nodes in order and build the Graph; problems are collected, not stopped at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, ValueInfoProto

from knapper.compiler import ops as _declared  # noqa: F401  the op set
from knapper.compiler.ir import OPS, Graph
from knapper.isa.description import did_you_mean
from knapper.isa.errors import FrontendError, KnapperError, Problems, UsageError, raise_all

from . import composed as _composed  # noqa: F401  registers its forms
from . import conversions as _conversions  # noqa: F401  registers its forms
from . import grams as _grams  # noqa: F401  registers its forms
from . import inline, loops
from . import sampling as _sampling  # noqa: F401  registers its forms
from . import selected as _selected  # noqa: F401  registers its forms
from . import training as _training  # noqa: F401  registers its forms
from .builder import OPS_HINT, Builder, Call, Sized, bind
from .file import Model, open_model
from .forms import COMPLETE, adapted
from .ports import bound_value, contradictions, declared_dims, input_type, outside
from .quantized import CONTRIB
from .rows import with_rows
from .schemas import NEWEST, formals, schema
from .tensors import FEW, Value, array_of, attribute
from .unserved import INSTEAD

NONSENSE = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""What shape inference and protobuf raise on attributes, sizes and names that no exporter writes."""
LOOPS = {"Loop": loops.loop, "Scan": loops.scan}
BRANCHES = {"If", *LOOPS}
"""Operators with graphs inside."""
DEPTH_LIMIT = 32
"""Functions inside functions; a real model has three or so."""


@dataclass(frozen=True)
class Absent:
    """What a name stands for whose node could not be imported; `reason` is said when something reads it.

    The empty reason: it has been said already.
    """

    reason: str = ""


class Unreadable(Exception):
    """A node reads a value that an earlier problem left undefined."""


@dataclass
class Scope:
    """One graph, function body or `If` branch: its names, opsets, and the attributes that a function was called with."""

    opsets: Mapping[str, int]
    values: dict[str, str | Absent] = field(default_factory=dict)
    attrs: Mapping[str, AttributeProto] = field(default_factory=dict)
    parent: Scope | None = None
    path: str = ""
    """What node names begin with: the call of a model-local function."""
    loc: str = ""
    """The model's node that everything here works for, inside a standard operator's own definition."""
    depth: int = 0

    def find(self, name: str) -> str | Absent | None:
        """The graph value of an ONNX name; enclosing graphs are visible in subgraphs."""
        if name in self.values:
            return self.values[name]
        return self.parent.find(name) if self.parent else None

    def version(self, domain: str) -> int:
        """The opset that nodes of a domain mean."""
        if domain not in self.opsets:
            raise FrontendError("E209", f"the model imports no opset for domain {domain!r}")
        return self.opsets[domain]


def read(
    model: str | Path | ModelProto | Model,
    shapes: Mapping[str, Sequence[int]] | None = None,
    consts: Mapping[str, Any] | None = None,
    *,
    replace_fixed: bool = False,
) -> Graph:
    """Import an ONNX model.

    Args:
        model: a path, a loaded ModelProto, or an opened model.
        shapes: input name → shape; a symbolic dimension's name → its size.
        consts: input name → the value it always has, for inputs that decide shapes.
        replace_fixed: whether `shapes` may say another size than the model where that has one (a batch); else that is E703.

    Raises FrontendError, or Problems with every one that was found.
    """
    opened = open_model(model)

    def imported(limits: Mapping[str, int]) -> tuple[Graph, Mapping[str, Sized]]:
        door = Door(opened, replace_fixed, limits)
        return door.graph(shapes or {}, consts or {}), door.builder.sized

    try:
        return with_rows(imported)
    except NONSENSE as e:
        raise FrontendError("E209", f"cannot be imported: {e}", where=opened.name) from e


class Door:
    """One import."""

    def __init__(
        self, model: Model, replace_fixed: bool = False, limits: Mapping[str, int] | None = None
    ) -> None:
        """`limits`: nodes that keep another number of boxes than the model says, or have another number of rows, for `rows`."""
        self.model, self.replace_fixed = model, replace_fixed and not model.fixed
        self.builder = Builder(limits=limits or {})
        self.problems: list[KnapperError] = []
        self.functions = {(_domain(f.domain), f.name, f.overload): f for f in model.proto.functions}

    def graph(self, shapes: Mapping[str, Sequence[int]], consts: Mapping[str, Any]) -> Graph:
        """Import the model's main graph; raises every problem at once."""
        proto = self.model.proto.graph
        scope = Scope({_domain(o.domain): o.version for o in self.model.proto.opset_import})
        self._opset(scope)
        self._initializers(proto, scope)
        self._inputs(proto, scope, shapes, consts)
        self.nodes(proto.node, scope)
        outputs = {o.name: v for o in proto.output if isinstance(v := self._output(o, scope), str)}
        if not self.problems and not outputs:
            self.problems.append(self._problem("E209", "the model has no outputs"))
        raise_all(self.problems)
        return self.builder.graph(proto.name or Path(self.model.name).stem, outputs)

    # --- what a graph begins and ends with ---

    def _opset(self, scope: Scope) -> None:
        opset = scope.opsets.get("", NEWEST)
        if not 1 <= opset <= NEWEST:
            hint = "a newer `onnx` package may know it"
            raise self._problem("E208", f"opset {opset} is not between 1 and {NEWEST}", hint)

    def _initializers(self, proto: GraphProto, scope: Scope) -> None:
        for s in proto.sparse_initializer:
            problem = f"initializer {s.values.name!r} is sparse, which is not supported"
            self.problems.append(self._problem("E202", problem, "store it dense"))
            scope.values[s.values.name] = Absent()
        for i, t in enumerate(proto.initializer):
            with self._collect(""):
                scope.values[t.name] = Absent()
                raw = self.model.weights.get(i) if scope.parent is None else None
                array = array_of(t, raw, self.model.folder)
                scope.values[t.name] = self.builder.constant(array, t.name)

    def _inputs(
        self,
        proto: GraphProto,
        scope: Scope,
        shapes: Mapping[str, Sequence[int]],
        consts: Mapping[str, Any],
    ) -> None:
        free = [i for i in proto.input if i.name not in scope.values]
        if not self.replace_fixed:
            self.problems += contradictions(free, shapes, self.model)
        sizes = self._sizes(free, shapes, consts)
        self.problems += outside(sizes, self.model)
        for i in free:
            scope.values[i.name] = Absent()
            with self._collect(f"input {i.name!r}"):
                if i.name in consts:
                    constant = self.builder.constant(bound_value(i, consts[i.name]), i.name)
                    scope.values[i.name] = constant
                else:
                    scope.values[i.name] = self.builder.input(i.name, input_type(i, sizes, shapes))
                if few := FEW.get(i.type.tensor_type.elem_type):
                    self.builder.formats[str(scope.values[i.name])] = few[1]

    def _sizes(
        self,
        inputs: Sequence[ValueInfoProto],
        shapes: Mapping[str, Sequence[int]],
        consts: Mapping[str, Any],
    ) -> dict[str, int]:
        """The sizes of symbolic dimensions that `shapes` settles, by symbol or through the input that has it."""
        symbols = {d.dim_param for i in inputs for d in declared_dims(i) if d.dim_param}
        names = {i.name for i in inputs}
        for option, given, what, allowed in (
            ("--shape", shapes, "inputs and open dimensions", names | symbols),
            ("--const", consts, "inputs", names),
        ):
            for name in given.keys() - allowed:
                known = ", ".join(sorted(allowed)) or "none"
                problem = f"{option} names {name!r}; the model's {what} are: {known}"
                hint = did_you_mean(name, allowed)
                self.problems.append(UsageError("E701", problem, where=self.model.name, hint=hint))
        sizes = {
            n: int(s[0])
            for n, s in shapes.items()
            if n in symbols and n not in names and len(s) == 1
        }
        for i in inputs:
            for d, size in zip(declared_dims(i), shapes.get(i.name, ()), strict=False):
                if d.dim_param:
                    sizes.setdefault(d.dim_param, int(size))
        return sizes

    def _output(self, o: ValueInfoProto, scope: Scope) -> str | None:
        with self._collect(f"output {o.name!r}"):
            return self.operand(scope, o.name)
        return None

    # --- nodes ---

    def nodes(self, protos: Iterable[NodeProto], scope: Scope) -> None:
        """Import nodes in order."""
        for p in protos:
            with self._collect(self._name(p, scope)):
                for o in p.output:
                    if o in scope.values:
                        raise FrontendError("E209", f"value {o!r} is defined twice")
                results = self._node(p, scope)
                missing = Absent(f"result {{}} of {p.op_type} is not supported")
                for i, o in enumerate(p.output):
                    absent = replace(missing, reason=missing.reason.format(i))
                    scope.values[o] = results[i] if i < len(results) else absent
                continue
            # The node failed. What reads it is not worth a second complaint.
            scope.values |= {o: Absent() for o in p.output if o not in scope.values}

    def _node(self, p: NodeProto, scope: Scope) -> Sequence[str | Absent]:
        """The graph values that a node's results are."""
        domain = _domain(p.domain)
        version = scope.version(domain)
        function = self.functions.get((domain, p.op_type, p.overload))
        declared = schema(p.op_type, version, domain)
        body_serves = inline.has_body(declared) and p.op_type not in INSTEAD
        self._refuse_unknown(p, domain, version, function is not None or body_serves)
        operands = [self.operand(scope, name) if name else "" for name in p.input]
        if p.op_type == "If" and not domain:
            return self._if(p, operands, scope)
        if p.op_type in LOOPS and not domain:
            return self._loop(p, operands, scope)
        if function is not None:
            return self._call(p, function, operands, scope, local=True)
        if contrib := CONTRIB.get((domain, p.op_type)):
            named = dict(zip(map(str, range(len(operands))), operands, strict=True))
            loc = scope.loc or self.builder.location(scope.path + _label(p))
            call = Call(p.op_type, named, self._attributes(p, scope), tuple(p.output), loc, version)
            return contrib(self.builder, call)
        if not self._native(p.op_type, domain):
            types = [self.builder.types.get(v) for v in operands]
            body = inline.body(declared, version, self._resolved(p, scope), types)
            return self._call(p, body, operands, scope, local=False)
        names = formals(declared, len(operands)) if declared else map(str, range(len(operands)))
        call = Call(
            p.op_type,
            dict(zip(names, operands, strict=False)),
            self._attributes(p, scope),
            tuple(p.output),
            scope.loc or self.builder.location(scope.path + _label(p)),
            version,
            declared,
        )
        return self._adapted(call)

    def _adapted(self, call: Call) -> list[str]:
        """The values of a standard operator, or of one of a plugin."""
        return adapted(self.builder, call) if call.schema else bind(self.builder, call)

    def _native(self, op: str, domain: str) -> bool:
        known = (op in OPS and OPS[op].domain == domain) or (op in COMPLETE and not domain)
        return known or (domain, op) in CONTRIB

    def _refuse_unknown(self, p: NodeProto, domain: str, version: int, has_body: bool) -> None:
        if has_body or self._native(p.op_type, domain) or (p.op_type in BRANCHES and not domain):
            return
        if domain:
            raise FrontendError(
                "E203",
                f"knapper has no operator {p.op_type} of domain {domain} (version {version})",
                hint=INSTEAD.get(p.op_type, "a plugin can add it: --plugin FILE.py"),
            )
        close = get_close_matches(p.op_type, OPS, 1, 0.85)
        guess = (
            f"; did you mean {close[0]}?" if close and schema(p.op_type, version) is None else ""
        )
        raise FrontendError(
            "E203",
            f"operator {p.op_type} is not supported",
            hint=INSTEAD.get(p.op_type) or f"{OPS_HINT}{guess}",
        )

    def operand(self, scope: Scope, name: str) -> str:
        """The graph value of an ONNX name."""
        value = scope.find(name)
        if value is None:
            raise FrontendError("E209", f"reads {name!r}, which nothing before it defines")
        if isinstance(value, Absent):
            if value.reason:
                raise FrontendError("E203", f"reads {name!r}, but {value.reason}")
            raise Unreadable
        return value

    def _resolved(self, p: NodeProto, scope: Scope) -> NodeProto:
        """The node with its references to the enclosing function's attributes replaced by what they refer to."""
        if not any(a.ref_attr_name for a in p.attribute):
            return p
        copy = NodeProto()
        copy.CopyFrom(p)
        del copy.attribute[:]
        for a in p.attribute:
            if not a.ref_attr_name:
                copy.attribute.append(a)
            elif (given := scope.attrs.get(a.ref_attr_name)) is not None:
                copy.attribute.add().CopyFrom(given)
                copy.attribute[-1].name = a.name
        return copy

    def _attributes(self, p: NodeProto, scope: Scope) -> dict[str, Value]:
        return {a.name: attribute(a) for a in self._resolved(p, scope).attribute}

    # --- bodies ---

    def _call(
        self, p: NodeProto, f: FunctionProto, operands: Sequence[str], scope: Scope, *, local: bool
    ) -> list[str | Absent]:
        """Import a function's body in place of its call."""
        if scope.depth >= DEPTH_LIMIT:
            raise FrontendError("E209", f"functions are nested more than {DEPTH_LIMIT} deep")
        name = scope.loc or self.builder.location(scope.path + _label(p))
        opsets = {**scope.opsets, **{_domain(o.domain): o.version for o in f.opset_import}}
        declared = schema(p.op_type, scope.version(_domain(p.domain)), _domain(p.domain))
        defaults = inline.defaults(declared)
        given = {
            a.name: a for a in (*defaults, *f.attribute_proto, *self._resolved(p, scope).attribute)
        }
        inner = Scope(
            opsets,
            dict(zip(f.input, operands, strict=False)),
            given,
            path=f"{name}/" if local else scope.path,
            loc=scope.loc if local else name,
            depth=scope.depth + 1,
        )
        inner.values |= dict.fromkeys(f.input[len(operands) :], "")
        self.nodes(f.node, inner)
        return [self._result(inner, o) for o in f.output]

    def _if(self, p: NodeProto, operands: Sequence[str], scope: Scope) -> list[str | Absent]:
        """Import the branch that a constant condition takes."""
        condition = self.builder.known.get(operands[0])
        if condition is None:
            raise FrontendError(
                "E204",
                "the condition of If is computed from the network's inputs; branches are chosen when compiling",
                hint="compute both and choose with Where; if one is fixed in your use, bind it: --const NAME=VALUE",
            )
        wanted = "then_branch" if condition.ravel()[0] else "else_branch"
        branch = next((a.g for a in p.attribute if a.name == wanted), None)
        if branch is None:
            raise FrontendError("E209", f"If has no {wanted}")
        return self._branch(branch, {}, scope)

    def _branch(
        self, branch: GraphProto, values: Mapping[str, str | Absent], scope: Scope, path: str = ""
    ) -> list[str | Absent]:
        """Import a graph inside a node, with these values in the place of its inputs."""
        inner = replace(
            scope, values={**values}, parent=scope, depth=scope.depth + 1, path=scope.path + path
        )
        self._initializers(branch, inner)
        self.nodes(branch.node, inner)
        return [self._result(inner, o.name) for o in branch.output]

    def _loop(self, p: NodeProto, operands: Sequence[str], scope: Scope) -> list[str]:
        """Import the body of a loop, once a turn."""
        body = next((a.g for a in p.attribute if a.name == "body"), None)
        if body is None:
            raise FrontendError("E209", f"{p.op_type} has no body")
        name = scope.loc or self.builder.location(scope.path + _label(p))
        attrs = {n: v for n, v in self._attributes(p, scope).items() if n != "body"}
        call = Call(p.op_type, {}, attrs, tuple(p.output), name, scope.version(""))

        def turn(body: GraphProto, values: Sequence[str], number: int) -> list[str]:
            names = (i.name for i in body.input)
            found = self._branch(
                body, dict(zip(names, values, strict=True)), scope, f"{_label(p)}.{number}/"
            )
            if any(isinstance(v, Absent) for v in found):
                raise Unreadable
            return [str(v) for v in found]

        return LOOPS[p.op_type](self.builder, call, operands, body, turn)

    def _result(self, scope: Scope, name: str) -> str | Absent:
        return scope.find(name) or Absent(f"{name!r} is not defined")

    # --- problems ---

    def _name(self, p: NodeProto, scope: Scope) -> str:
        output = next((o for o in p.output if o), "")
        name = f"{scope.path}{p.name}" if p.name else f"that makes {output!r}"
        inside = (
            f"{scope.loc!r}, in its definition" if scope.loc else repr(name) if p.name else name
        )
        return f"node {inside} ({p.op_type})"

    def _problem(self, code: str, message: str, hint: str = "") -> FrontendError:
        return FrontendError(code, message, where=self.model.name, hint=hint)

    @contextmanager
    def _collect(self, where: str) -> Iterator[None]:
        """Keep a problem for the end, with the file and the place in front of it."""
        place = f"{self.model.name}: {where}" if where else self.model.name
        try:
            yield
        except Unreadable:
            pass
        except Problems:
            raise
        except KnapperError as e:
            code = e.code if isinstance(e, FrontendError) else "E206"
            self.problems.append(FrontendError(code, e.message, where=place, hint=e.hint))
        except NONSENSE as e:
            reason = f"cannot be imported: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"
            self.problems.append(
                FrontendError("E209", reason, where=place, hint="is the file damaged?")
            )
            self.problems[-1].__cause__ = e


def _label(p: NodeProto) -> str:
    """What a node is called: its name, else its first result's."""
    return p.name or next((o for o in p.output if o), p.op_type)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain
