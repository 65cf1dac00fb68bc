"""Operators that ONNX defines as functions of others: their bodies, for those that knapper has no op of its own for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto, helper

from knapper.compiler.ir import Type
from knapper.isa.errors import FrontendError

from .tensors import DTYPE_OF

Schema = Any
"""An `onnx.defs.OpSchema` or None; onnx's own annotations lack the accessors of functions."""
CODE_OF = {name: code for code, name in DTYPE_OF.items()}


def has_body(s: Schema) -> bool:
    """Whether ONNX defines the operator by others."""
    return s is not None and (s.has_function or s.has_context_dependent_function)


def body(s: Schema, version: int, node: NodeProto, types: Sequence[Type | None]) -> FunctionProto:
    """The function that a node stands for; bodies may depend on its attributes and operand types."""
    if s is None:
        raise FrontendError("E203", f"operator {node.op_type} is not supported")
    if s.has_function:
        return _newest(s, version)
    versions = [v for v in s.context_dependent_function_opset_versions if v <= version]
    written = s.get_context_dependent_function_with_opset_version(
        max(versions), node.SerializeToString(), [_type_proto(t).SerializeToString() for t in types]
    )
    if not written:
        raise FrontendError("E203", f"operator {node.op_type} is not supported with these operands")
    return _parsed(written)


def defaults(s: Schema) -> list[AttributeProto]:
    """The attributes that a body may refer to though the call leaves them out."""
    return [a.default_value for a in s.attributes.values() if a.default_value.type] if s else []


def _newest(s: Schema, version: int) -> FunctionProto:
    chosen = max(v for v in s.function_opset_versions if v <= version)
    return _parsed(s.get_function_with_opset_version(chosen))


def _parsed(written: bytes) -> FunctionProto:
    f = FunctionProto()
    f.ParseFromString(written)
    return f


def _type_proto(t: Type | None) -> TypeProto:
    return helper.make_tensor_type_proto(CODE_OF[t.dtype], t.shape) if t else TypeProto()
