"""A model's inputs: their types once `--shape` has settled open dimensions, and the values that `--const` binds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ValueInfoProto

from knapper.compiler.ir import DTYPES, Array, Type
from knapper.isa.errors import FrontendError, UsageError

from .file import Model
from .tensors import FEW, dtype_of


def declared_dims(i: ValueInfoProto) -> Sequence[Any]:
    """The dimensions that a model declares: sizes or symbols."""
    dims: Sequence[Any] = i.type.tensor_type.shape.dim
    return dims


def element(i: ValueInfoProto) -> str:
    """The element type; FrontendError E202 for what is no tensor."""
    kind = i.type.WhichOneof("value")
    if kind != "tensor_type":
        what = (kind or "value without a type").removesuffix("_type").replace("_", " ")
        raise FrontendError("E202", f"is a {what}, not a tensor")
    few = FEW.get(i.type.tensor_type.elem_type)
    return few[0] if few else dtype_of(i.type.tensor_type.elem_type)


def contradictions(
    inputs: Iterable[ValueInfoProto], shapes: Mapping[str, Sequence[int]], model: Model
) -> Iterator[UsageError]:
    """An E703 for every input whose given shape is not the one that the model fixes."""
    for i in inputs:
        given, dims = shapes.get(i.name, ()), declared_dims(i)
        fixed = [d.dim_value if d.HasField("dim_value") else None for d in dims]
        if len(given) == len(fixed) and any(
            n not in (None, m) for n, m in zip(fixed, given, strict=True)
        ):
            shown = ",".join(d.dim_param or str(n) for d, n in zip(dims, fixed, strict=True))
            problem = f"input {i.name!r} is [{shown}], --shape says [{','.join(map(str, given))}]"
            others = (
                "export it with dynamic_shapes"
                if model.fixed
                else "knapper.compile(shapes=…) replaces others"
            )
            hint = f"only symbolic dimensions can be chosen; {others}"
            yield UsageError("E703", problem, where=model.name, hint=hint)


def outside(sizes: Mapping[str, int], model: Model) -> Iterator[UsageError]:
    """An E703 for every symbolic dimension of a size that the model is not for."""
    for name, n in sizes.items():
        least, most = model.limits.get(name, (0, None))
        if n < least or (most is not None and n > most):
            span = f"{least} or more" if most is None else f"{least} to {most}"
            problem = f"dimension {name!r} is {n}; the model was exported for {span}"
            yield UsageError("E703", problem, where=model.name)


def input_type(
    i: ValueInfoProto, sizes: Mapping[str, int], shapes: Mapping[str, Sequence[int]]
) -> Type:
    """An input's static type; FrontendError E205 if a dimension is open."""
    dtype = element(i)
    dims = declared_dims(i)
    shown = [d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?") for d in dims]
    if (given := shapes.get(i.name)) is not None:
        if i.type.tensor_type.HasField("shape") and len(given) != len(dims):
            raise FrontendError(
                "E205",
                f"has {len(dims)} dimensions [{','.join(shown)}], --shape gives {len(given)}",
            )
        shape = tuple(map(int, given))
    elif not i.type.tensor_type.HasField("shape"):
        raise FrontendError("E205", "has no shape", hint=f"give one: --shape {i.name}=1,...")
    else:
        shape = tuple(
            sizes.get(d.dim_param, d.dim_value if d.HasField("dim_value") else -1) for d in dims
        )
    if any(n < 0 for n in shape):
        example = ",".join(str(n) if n >= 0 else "1" for n in shape)
        open_ = [s for s, n in zip(shown, shape, strict=True) if n < 0]
        raise FrontendError(
            "E205",
            f"has shape [{','.join(shown)}] with {', '.join(open_)} open; knapper compiles static shapes",
            hint=f"--shape {i.name}={example}",
        )
    return Type(dtype, shape)


def bound_value(i: ValueInfoProto, value: Any) -> Array:
    """The value of `--const` as the input's element type; one number serves for any shape of one element."""
    dtype = np.dtype(DTYPES[element(i)])
    problem = f"--const gives {value!r}, which is no {dtype.name}"
    try:
        given = np.asarray(value)
        with np.errstate(invalid="ignore"):
            array = given.astype(dtype)
    except (TypeError, ValueError, OverflowError):
        raise FrontendError("E702", problem) from None
    if dtype.kind in "biu" and not np.array_equal(array, given):
        raise FrontendError("E702", problem)
    sizes = [d.dim_value if d.HasField("dim_value") else None for d in declared_dims(i)]
    if array.ndim == 0:
        array = array.reshape(
            [1 if n is None else n for n in sizes] if set(sizes) <= {1, None} else ()
        )
    if len(sizes) != array.ndim or any(
        n not in (None, m) for n, m in zip(sizes, array.shape, strict=True)
    ):
        shown = ",".join("?" if n is None else str(n) for n in sizes)
        raise FrontendError("E702", f"has shape [{shown}], --const gives {list(array.shape)}")
    return array
