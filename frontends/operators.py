"""Every operator with its types and limits, read out of what the compiler itself goes by.

    types     each example of an op's declaration, with its operands in every dtype, through the op's shape inference
    limits    the conditions in the declaration (`require`), and the refusals in an ONNX form (`raise FrontendError("E203", …)`)
    opsets    the history of the `onnx` package
    cases     the stored results of ONNX's suite (`tally.results`)

Nothing here is typed a second time, so that it cannot be wrong by itself.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from onnx import defs

from knapper.compiler import ops as _declared  # noqa: F401  the op set
from knapper.compiler.ir import DTYPES, NAMES, OPS, Array, Op, Type, infer
from knapper.isa.errors import IRError

from .onnx import inline
from .onnx.door import BRANCHES
from .onnx.forms import COMPLETE, FORMS
from .onnx.quantized import CONTRIB
from .onnx.schemas import NEWEST, schema
from .onnx.unserved import INSTEAD
from .tally import Tally, results

KINDS = {
    "floats": ("f16", "bf16", "f32", "f64"),
    "integers": ("i8", "i16", "i32", "i64", "u8", "u16", "u32", "u64"),
    "bool": ("bool",),
}
DEEP = 2
"""Helpers of helpers are read no further."""
UNSAID = ("of_kind", "same_dtype")
"""Helpers whose conditions are the types."""


@dataclass(frozen=True)
class Operator:
    """An op of the Graph."""

    op: Op
    types: Mapping[str, tuple[str, ...]]
    """Of each operand, by name: what it may be, together with those that must be like it."""
    limits: tuple[str, ...]
    """What its declaration refuses."""

    @property
    def operands(self) -> str:
        """`x`, `[bias]` where it may be left out, `*xs` for any number."""
        kinds = self.op.parameters.values()
        return ", ".join(_operand(p) for p in kinds if p.kind is not p.KEYWORD_ONLY)

    @property
    def attributes(self) -> str:
        """With their defaults, those that have one."""
        given = self.op.attrs.items()
        return ", ".join(n if p.default is p.empty else f"{n}={p.default}" for n, p in given)


@dataclass(frozen=True)
class Spelling:
    """An operator of ONNX."""

    name: str
    domain: str
    how: str
    """How it is served; "" if it is not."""
    versions: tuple[int, ...]
    """The opsets that define it anew."""
    until: int | None
    """The opset before the one that drops it."""
    limits: tuple[str, ...]
    """What the importer refuses of it, and what it says instead of serving it."""
    tally: Tally | None
    """What became of the suite's cases."""

    @property
    def opsets(self) -> str:
        """`1-28`; `7-9` of what a later opset drops; of another domain the versions themselves."""
        if not self.versions or self.domain:
            return ", ".join(map(str, self.versions))
        return f"{self.versions[0]}-{self.until or NEWEST}"

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "operator": self.name,
            "domain": self.domain,
            "served": self.how,
            "versions": list(self.versions),
            "opsets": self.opsets,
            "limits": list(self.limits),
            "cases": dict(self.tally.counts) if self.tally else {},
            "reasons": list(self.tally.reasons) if self.tally else [],
        }


# --- the Graph's ops ----------------------------------------------------------------------------------------------------


def operator(op: Op) -> Operator:
    """What there is to say of an op."""
    return Operator(op, types(op), tuple(dict.fromkeys(conditions(op))))


def types(op: Op) -> dict[str, tuple[str, ...]]:
    """The dtypes that the declaration takes, operand by operand: an example's, with that operand, and those of its dtype, in another."""
    found: dict[str, set[str]] = {}
    for operands, attrs in examples(op):
        given = [None if x is None else Type.of(np.asarray(x)) for x in operands]
        for name, t in zip(_names(op, len(given)), given, strict=True):
            if t is None:
                continue
            some = found.setdefault(name, set())
            for dtype in set(DTYPES) - some:
                alike = [replace(x, dtype=dtype) if x and x.dtype == t.dtype else x for x in given]
                alone = [replace(x, dtype=dtype) if x is t else x for x in given]
                if _takes(op, alike, attrs) or _takes(op, alone, attrs):
                    some.add(dtype)
    return {name: tuple(d for d in DTYPES if d in some) for name, some in found.items()}


def _names(op: Op, count: int) -> list[str]:
    """The operands' names; a variadic one's again and again."""
    kinds = [p for p in op.parameters.values() if p.kind is not p.KEYWORD_ONLY]
    names = [p.name for p in kinds]
    last = [names[-1]] * count if kinds and kinds[-1].kind is kinds[-1].VAR_POSITIONAL else []
    return [*names, *last][:count]


def examples(op: Op) -> list[tuple[list[Array | None], Mapping[str, Any]]]:
    """The examples of a declaration; none where it has none."""
    make = op.facets.get("example")
    if make is None:
        return []
    made = make(np.random.default_rng(0))
    return [made] if isinstance(made, tuple) else [*made]


def _takes(op: Op, operands: list[Type | None], attrs: Mapping[str, Any]) -> bool:
    try:
        infer(op.name, operands, attrs)
    except IRError:
        return False
    return True


def spelled(types: Mapping[str, Iterable[str]]) -> str:
    """Dtypes for people: of all operands at once, where they are the same.

    >>> spelled({"x": ["f16", "bf16", "f32", "f64", "i32"], "y": DTYPES})
    'x: floats, i32; y: all'
    >>> spelled({"a": ["bool"], "b": ["bool"]})
    'bool'
    """
    said = {name: _kinds(set(t)) for name, t in types.items()}
    if len({*said.values()}) <= 1:
        return next(iter(said.values()), "")
    return "; ".join(f"{name}: {text}" for name, text in said.items())


def _kinds(given: set[str]) -> str:
    """A set of dtypes in words."""
    if given == set(DTYPES):
        return "all"
    words = []
    for kind, members in KINDS.items():
        words += [kind] if given >= set(members) else [d for d in members if d in given]
    return ", ".join(words)


def conditions(op: Op) -> Iterator[str]:
    """The messages of a declaration's conditions, with the operands' names where an error has their types."""
    for f in _reached(op.infer, DEEP):
        for call in _calls(f, "require"):
            if len(call.args) > 1:
                yield _message(call.args[1], op.name)


def _reached(f: Callable[..., Any], depth: int) -> Iterator[Callable[..., Any]]:
    """A function and the helpers of the op set that it calls."""
    yield f
    if depth == 0:
        return
    names = {n.func.id for n in ast.walk(_tree(f)) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}  # fmt: skip
    for name in sorted(names - {*UNSAID}):
        helper = f.__globals__.get(name)
        if inspect.isfunction(helper) and helper.__module__.startswith("knapper.compiler.ops"):
            yield from _reached(helper, depth - 1)


@cache
def _tree(f: Callable[..., Any]) -> ast.AST:
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(f)))
    except (OSError, SyntaxError, TypeError):  # declared where no source is
        return ast.Module([], [])


def _calls(f: Callable[..., Any], name: str) -> Iterator[ast.Call]:
    for n in ast.walk(_tree(f)):
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == name:
            yield n


def _message(e: ast.expr, name: str) -> str:
    """A message as its template: names in place of values, the op's own left out."""
    if isinstance(e, ast.Constant):
        text = str(e.value)
    elif isinstance(e, ast.JoinedStr):
        text = "".join(_part(v, name) for v in e.values)
    else:
        text = ast.unparse(e)
    return text.removeprefix(f"{name}: ").removeprefix(f"{name} ").strip()


def _part(e: ast.expr, name: str) -> str:
    if isinstance(e, ast.Constant):
        return str(e.value)
    assert isinstance(e, ast.FormattedValue)
    shown = ast.unparse(e.value)
    if shown in ("name", "call.op"):
        return name
    return f"{{{shown}}}" if isinstance(e.value, ast.Name | ast.Attribute) else "…"


def _operand(p: inspect.Parameter) -> str:
    if p.kind is p.VAR_POSITIONAL:
        return f"*{p.name}"
    return p.name if p.default is p.empty else f"[{p.name}]"


# --- ONNX's operators ---------------------------------------------------------------------------------------------------


@cache
def spellings() -> tuple[Spelling, ...]:
    """All operators of ONNX that are served, or that its suite asks for, and those of other domains that are served."""
    stored = results()
    names = {s.name for s in defs.get_all_schemas() if not s.domain}
    keys = {("", n) for n in names} | {*CONTRIB} | {(_domain(n), n) for n in stored.keys() - names}
    asked = {("", n) if n in names else (_domain(n), n) for n in stored}
    ordered = sorted(keys, key=lambda k: (k[1], k[0]))
    return tuple(_spelling(d, n, stored.get(n) if (d, n) in asked else None) for d, n in ordered)


def _domain(name: str) -> str:
    """The domain of an operator that the suite asks for and ONNX's own does not have."""
    return next((d for d, n in sorted(_histories()) if n == name), "")


def _spelling(domain: str, name: str, tally: Tally | None) -> Spelling:
    history = sorted(_histories().get((domain, name), []))
    versions = tuple(v for v, deprecated in history if not deprecated)
    dropped = next((v for v, deprecated in history if deprecated), None)
    form = CONTRIB.get((domain, name)) or (FORMS.get(name) if not domain else None)
    how = _how(domain, name)
    limits = _refusals(form) if form else ()
    if not how:
        limits = (INSTEAD.get(name, "not supported"),)
    return Spelling(name, domain, how, versions, dropped and dropped - 1, limits, tally)


@cache
def _histories() -> dict[tuple[str, str], list[tuple[int, bool]]]:
    found: dict[tuple[str, str], list[tuple[int, bool]]] = {}
    for s in defs.get_all_schemas_with_history():
        found.setdefault((s.domain, s.name), []).append((s.since_version, s.deprecated))
    return found


def _how(domain: str, name: str) -> str:
    """How the importer serves an operator, by the tables that it asks itself."""
    if name in BRANCHES and not domain:
        return "branches and steps written out"
    if name in OPS and OPS[name].domain == domain:
        return "op"
    if (domain, name) in CONTRIB or (name in COMPLETE and not domain):
        return "written as others"
    newest = max((v for v, _ in _histories().get((domain, name), [])), default=0)
    if inline.has_body(schema(name, newest, domain)) and name not in INSTEAD:
        return "ONNX's own definition"
    return ""


def _refusals(f: Callable[..., Any]) -> tuple[str, ...]:
    """What a form says is not supported."""
    found = []
    for call in _calls(f, "FrontendError"):
        code, *rest = call.args
        if isinstance(code, ast.Constant) and code.value == "E203" and rest:
            found.append(_message(rest[0], ""))
    return tuple(dict.fromkeys(found))


assert set().union(*KINDS.values()) == set(DTYPES) == set(NAMES.values())
