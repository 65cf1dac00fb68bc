"""Between floats and integers."""

from __future__ import annotations

import numpy as np

from .convert import Call, converts, scales_of


@converts("QUANTIZE")
def _(call: Call) -> None:
    call.give(call.real(0))


@converts("DEQUANTIZE")
def _(call: Call) -> None:
    """Constants of float16 are those of float32 that they are."""
    if scales_of(call.tensor(0)) is not None:
        call.keep(call.real(0))
    elif call.is_known(0):
        call.keep_array(call.array(0).astype(np.float32))
    else:
        call.keep(call.cast(call.stored(0), call.result().type))


@converts("DENSIFY")
def _(call: Call) -> None:
    """A sparse constant, which was made dense when the file was read."""
    call.keep_array(call.array(0))
