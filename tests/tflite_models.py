"""TFLite files for tests, written by the schema's own packer: tensors and operators in a line each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

Array = NDArray[Any]
TYPES: Mapping[Any, int] = {
    np.dtype(np.float32): schema.TensorType.FLOAT32, np.dtype(np.float16): schema.TensorType.FLOAT16,
    np.dtype(np.int8): schema.TensorType.INT8, np.dtype(np.uint8): schema.TensorType.UINT8, np.dtype(np.int16): schema.TensorType.INT16,
    np.dtype(np.int32): schema.TensorType.INT32, np.dtype(np.int64): schema.TensorType.INT64, np.dtype(np.bool_): schema.TensorType.BOOL,
}  # fmt: skip


@dataclass
class File:
    """A file with one graph."""

    tensors: list[Any] = field(default_factory=list)
    buffers: list[Any] = field(default_factory=lambda: [schema.BufferT()])
    operators: list[Any] = field(default_factory=list)
    codes: list[Any] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)

    def tensor(
        self, name: str, shape: Sequence[int], dtype: Any = np.float32, *,
        scale: Any = None, zero: Any = 0, axis: int = 0, data: Array | None = None,
        variable: bool = False, open: Sequence[int] = (), type: int | None = None,
    ) -> str:  # fmt: skip
        t = schema.TensorT()
        t.name, t.shape, t.isVariable = name, list(shape), variable
        t.type = TYPES[np.dtype(dtype)] if type is None else type
        t.hasRank, t.buffer = True, 0
        if open:
            t.shapeSignature = [-1 if i in open else n for i, n in enumerate(shape)]
        if scale is not None:
            t.quantization = q = schema.QuantizationParametersT()
            q.scale = np.atleast_1d(np.asarray(scale, np.float32))
            q.zeroPoint = np.broadcast_to(np.asarray(zero, np.int64), q.scale.shape)
            q.quantizedDimension = axis
        if data is not None:
            b = schema.BufferT()
            b.data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            t.buffer = len(self.buffers)
            self.buffers.append(b)
        self.names[name] = len(self.tensors)
        self.tensors.append(t)
        return name

    def constant(self, name: str, a: Array, **how: Any) -> str:
        return self.tensor(name, a.shape, a.dtype, data=a, **how)

    def input(self, name: str, *shape: int, dtype: Any = np.float32, **how: Any) -> str:
        self.tensor(name, shape, dtype, **how)
        self.inputs.append(self.names[name])
        return name

    def op(
        self, name: str, operands: Sequence[str], results: Sequence[str], kind: str = "", *,
        custom: bytes | None = None, version: int = 1, **options: Any,
    ) -> None:  # fmt: skip
        """`kind`: the name of its options table, without `Options`."""
        code = schema.OperatorCodeT()
        code.builtinCode = getattr(schema.BuiltinOperator, "CUSTOM" if custom is not None else name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = version
        code.customCode = name if custom is not None else None
        o = schema.OperatorT()
        o.opcodeIndex = len(self.codes)
        self.codes.append(code)
        o.inputs = [self.names[n] if n else -1 for n in operands]
        o.outputs = [self.names[n] for n in results]
        if custom is not None:
            o.customOptions = np.frombuffer(custom, np.uint8)
        if kind:
            o.builtinOptionsType = getattr(schema.BuiltinOptions, f"{kind}Options")
            o.builtinOptions = getattr(schema, f"{kind}OptionsT")()
            for key, value in options.items():
                setattr(o.builtinOptions, key, value)
        self.operators.append(o)

    def bytes(self, *outputs: str) -> bytes:
        g = schema.SubGraphT()
        g.tensors, g.operators, g.name = self.tensors, self.operators, "main"
        g.inputs, g.outputs = self.inputs, [self.names[n] for n in outputs]
        m = schema.ModelT()
        m.version, m.operatorCodes, m.subgraphs, m.buffers = 3, self.codes, [g], self.buffers
        b = flatbuffers.Builder(1024)
        b.Finish(m.Pack(b), b"TFL3")
        return bytes(b.Output())
