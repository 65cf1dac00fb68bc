"""A value in the form that the dual-side sparse Tensor Core reads: non-zero values, packed under bitmaps.

    %d: f16[1,28,28,64], %b: f16[1,28,28,64] bitmap{pad=1} = BitmapEncode %y {pad=1}

Both results are the operand; they differ in how they lie in memory. `%b` is for sparse products, `%d` for everybody else. A result
that nobody reads is not stored.

How `%b` lies there: positions go in segments of 32, channels in 32s. A matrix [M, C] has a position a row. In an image [N, H, W, C] rows
lie W + pad apart and images H + pad rows, behind a lead of pad rows and pad pixels, so that a tap of a window is a shift of the stream:

    records   [segments][channels / 32]       bitmaps, starts, up to 1,024 values, packed (`sparsity.bitmap`)
    entries   [segments][channels / 32] u32   where a record begins, and how many 16s of bytes its values fill
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..encoding import DENSITY, Encoding
from ..ir import Array, Type, op, require
from .elementwise import Example, Rng, draw
from .shapes import of_kind

NARROW = frozenset({"f16", "bf16"})


@op
def BitmapEncode(x: Type, *, pad: int = 0, density: float = DENSITY) -> tuple[Type, Type]:
    """x as it is, and x under bitmaps: [M, C], or [N, H, W, C] with up to `pad` pixels around it; 16-bit floats.

    `density`: the share of x that is expected not to be zero. Results do not depend on it, predicted times do.
    """
    of_kind("BitmapEncode", NARROW, x)
    require(x.rank >= 2 and x.count > 0, f"BitmapEncode: {x} has no rows of channels")
    require(pad >= 0, f"BitmapEncode: pad is {pad}")
    require(pad == 0 or x.rank == 4, f"BitmapEncode: {x} is no image that could be padded by {pad}")
    require(0 <= density <= 1, f"BitmapEncode: density is {density}")
    said = {"density": float(density)} if density != DENSITY else {}
    return x, replace(x, encoding=Encoding("bitmap", {"pad": pad, **said}))


@BitmapEncode.reference
def _(x: Array, pad: int = 0, density: float = DENSITY) -> tuple[Array, Array]:
    return x, x


@BitmapEncode.example
def _(rng: Rng) -> Iterator[Example]:
    x = draw(rng, (2, 5, 7, 20), "f16")
    x[x < 0] = 0
    yield [x], {"pad": 1, "density": 0.75}
    yield [draw(rng, (9, 16), "bf16")], {}
