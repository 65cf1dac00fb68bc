"""What passes between the worker and the code generator: kernels as plain lists, the vocabulary of which is here.

    kernel      {"grid": [x,y,z], "block": [x,y,z], "axes": {variable: "threadIdx.x"}, "buffers": [buffer…], "body": statement}
    buffer      {"role": value name | "s0" scratch | "c0" constant | "", "scope": global|shared|local, "dtype", "lanes", "count"}
    statement   ["seq", statement…]   ["store", buffer, index, value]   ["let", variable, value]   ["alloc", buffer]
                ["for", variable, first, count, body]   ["if", condition, then, else]   ["while", condition, body]   ["sync", scope]
    expression  ["int", dtype, number]   ["float", dtype, hex]   ["var", dtype, number]   ["load", dtype, buffer, index]
                ["cast", dtype, x]   ["add", dtype, a, b] and the like   ["select", dtype, condition, a, b]
                ["call", dtype, name, operand…]   ["ramp", dtype, first, step]   ["broadcast", dtype, x]
                ["bind", dtype, variable, value, body]   ["shuffle", dtype, vectors, places]

dtypes are the Graph's; a vector's has its lanes, `f16x4`. A buffer with lanes holds vectors, and its indices count them.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from ..ir import DTYPES, Array, Type

Json = Any


def array_out(a: Array) -> dict[str, Any]:
    """An array as JSON."""
    t = Type.of(a)
    return {
        "dtype": t.dtype,
        "shape": list(t.shape),
        "data": base64.b64encode(a.tobytes()).decode(),
    }


def array_in(d: dict[str, Any]) -> Array:
    """The way back."""
    return np.frombuffer(base64.b64decode(d["data"]), DTYPES[d["dtype"]]).reshape(d["shape"])
