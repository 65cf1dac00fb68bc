"""What the `onnx` package knows about operators, looked up once each."""

from __future__ import annotations

from functools import cache

from onnx import AttributeProto, defs
from onnx.defs import OpSchema

from .tensors import Value, attribute

NEWEST = defs.onnx_opset_version()


@cache
def schema(op: str, version: int, domain: str = "") -> OpSchema | None:
    """The declaration of a standard operator as of an opset, None if there is none."""
    try:
        return defs.get_schema(op, version, domain)
    except defs.SchemaError:
        return None


@cache
def formals(s: OpSchema, count: int) -> tuple[str, ...]:
    """The names of the first `count` inputs; a variadic one repeats with `#i` behind it."""
    names = [f.name for f in s.inputs]
    if s.inputs and s.inputs[-1].option == OpSchema.FormalParameterOption.Variadic:
        names += [f"{names[-1]}#{i}" for i in range(1, count)]
    return tuple(names[:count])


@cache
def _defaults(s: OpSchema) -> tuple[tuple[str, Value], ...]:
    given = [(n, a.default_value) for n, a in s.attributes.items()]
    return tuple((n, attribute(d)) for n, d in given if d.type != AttributeProto.UNDEFINED)


def defaults(s: OpSchema) -> dict[str, Value]:
    """Attribute name → the value that leaving it out means."""
    return dict(_defaults(s))
