"""Matrix products. The reference is the numeric contract itself: one fma a step, k strictly increasing (see `numeric`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..ir import DTYPES, Array, Type, op, require
from .elementwise import Example, Rng, draw
from .lowering import TVM_DTYPES as TVM
from .lowering import const, dtype_of, emit, rank_of, wide
from .numeric import FLOATS, accumulate, finish
from .shapes import NUMBERS, broadcast, of_kind

NARROW_INTEGERS = frozenset({"i8", "u8", "i16", "u16"})


def product_type(name: str, a: Type, b: Type, out: str) -> str:
    """Result dtype of a matrix product: `out`, or the operands' where that can hold a result."""
    of_kind(name, NUMBERS, a, b)
    both_narrow = {a.dtype, b.dtype} <= NARROW_INTEGERS
    require(
        a.dtype == b.dtype or both_narrow,
        f"{name}: operands differ in dtype: {a}, {b}",
        "insert a Cast",
    )
    if a.dtype in FLOATS:
        require(out == "" or out in FLOATS, f"{name}: out={out!r} for float operands {a}")
    else:
        wide_enough = out == "i32" if both_narrow else out in ("", a.dtype)
        require(
            wide_enough,
            f"{name}: out={out!r} for {a}",
            "8 and 16 bit integers accumulate in i32: out='i32'",
        )
    return out or a.dtype


def _swap(t: Type, swap: bool) -> Type:
    require(not swap or t.rank >= 2, f"MatMul: cannot transpose {t}")
    return Type(t.dtype, (*t.shape[:-2], t.shape[-1], t.shape[-2])) if swap else t


@op
def MatMul(
    a: Type, b: Type, *, trans_a: bool = False, trans_b: bool = False, out: str = ""
) -> Type:
    """Matrix product a[…,M,K] · b[…,K,N] as numpy.matmul; trans_a, trans_b swap an operand's last two axes first.

    `out` is the result's dtype: "f32" with f16 or bf16 operands gives the accumulator unrounded.
    """
    dtype = product_type("MatMul", a, b, out)
    require(a.rank >= 1 and b.rank >= 1, f"MatMul: {a} by {b}: a scalar is no matrix")
    sa, sb = _swap(a, trans_a).shape, _swap(b, trans_b).shape
    k = sb[-2] if len(sb) > 1 else sb[0]
    require(sa[-1] == k, f"MatMul: inner sizes differ: {a} by {b}: {sa[-1]} and {k}")
    batch = broadcast("MatMul", Type(dtype, sa[:-2]), Type(dtype, sb[:-2]))
    return Type(
        dtype, (*batch, *(sa[-2:-1] if len(sa) > 1 else ()), *(sb[-1:] if len(sb) > 1 else ()))
    )


def _columns(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    """The k-th column of a[…,M,K] and row of b[…,K,N], shaped to broadcast to […,M,N]."""
    for k in range(a.shape[-1]):
        yield a[..., :, k, None], b[..., None, k, :]


def product(a: Array, b: Array) -> Array:
    """The accumulator of a[…,M,K] · b[…,K,N]."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return accumulate((*batch, a.shape[-2], b.shape[-1]), a, b, _columns)


@MatMul.reference
def _(a: Array, b: Array, trans_a: bool = False, trans_b: bool = False, out: str = "") -> Array:
    a = a.swapaxes(-1, -2) if trans_a else a
    b = b.swapaxes(-1, -2) if trans_b else b
    acc = product(a[None] if a.ndim == 1 else a, b[:, None] if b.ndim == 1 else b)
    if b.ndim == 1:
        acc = acc[..., 0]
    if a.ndim == 1:
        acc = acc[..., 0, :] if b.ndim > 1 else acc[..., 0]
    return finish(acc, None, out, a.dtype)


def accumulating(R: Any, x: Any) -> Any:
    """The operand in the type that a product accumulates in."""
    d = dtype_of(x)
    to = {
        "float16": "float32",
        "bfloat16": "float32",
        "int8": "int32",
        "uint8": "int32",
        "int16": "int32",
        "uint16": "int32",
    }
    return emit(R, R.op.astype(x, to[d])) if d in to else x


def stored(R: Any, y: Any, out: str, operand: Any) -> Any:
    """The accumulator rounded to the result type."""
    want = TVM[out] if out else dtype_of(operand)
    return R.op.astype(y, want)


def _swapped(R: Any, x: Any, swap: bool) -> Any:
    n = rank_of(x)
    return R.op.permute_dims(x, [*range(n - 2), n - 1, n - 2]) if swap else x


@MatMul.relax
def _(R: Any, a: Any, b: Any, trans_a: bool = False, trans_b: bool = False, out: str = "") -> Any:
    wide_a, wide_b = accumulating(R, a), accumulating(R, b)
    y = R.op.matmul(_swapped(R, wide_a, trans_a), _swapped(R, wide_b, trans_b))
    return stored(R, y, out, a)


@MatMul.example
def _(rng: Rng) -> Iterator[Example]:
    shapes = [
        ((5, 7), (7, 3)),
        ((2, 1, 4, 6), (3, 6, 5)),
        ((6,), (2, 6, 3)),
        ((2, 4, 6), (6,)),
        ((9,), (9,)),
    ]
    for sa, sb in shapes:
        yield [draw(rng, sa, "f32"), draw(rng, sb, "f32")], {}
    yield [draw(rng, (4, 6), "f16"), draw(rng, (6, 5), "f16")], {}
    yield [draw(rng, (4, 6), "f16"), draw(rng, (6, 5), "f16")], {"out": "f32"}
    yield [draw(rng, (4, 6), "bf16"), draw(rng, (6, 5), "bf16")], {"out": "f32"}
    yield (
        [draw(rng, (2, 6, 4), "f32"), draw(rng, (2, 5, 6), "f32")],
        {"trans_a": True, "trans_b": True},
    )
    yield [draw(rng, (3, 4), "f64"), draw(rng, (4, 2), "f64")], {}
    yield [draw(rng, (3, 4), "i32", -99, 99), draw(rng, (4, 2), "i32", -99, 99)], {}
    yield [draw(rng, (3, 4), "u8", 0, 99), draw(rng, (4, 2), "i8", -99, 99)], {"out": "i32"}


@op
def Gemm(
    a: Type,
    b: Type,
    c: Type | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Type:
    """alpha · a'·b' + beta · c, a' and b' transposed where asked; c broadcasts to [M,N]. Each scaling rounds to f32."""
    dtype = product_type("Gemm", a, b, "")
    require(a.rank == b.rank == 2, f"Gemm: {a} by {b}: expected two matrices")
    (m, k), (k2, n) = (t.shape[::-1] if swap else t.shape for t, swap in ((a, transA), (b, transB)))
    require(
        k == k2,
        f"Gemm: inner sizes differ: {a} by {b} with transA={transA}, transB={transB}: {k} and {k2}",
    )
    if c is not None:
        fits = c.rank <= 2 and broadcast("Gemm", c, Type(dtype, (m, n))) == (m, n)
        require(fits, f"Gemm: c is {c}, which does not broadcast to [{m},{n}]")
    return Type(dtype, (m, n))


@Gemm.reference
def _(
    a: Array,
    b: Array,
    c: Array | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    acc = product(a.T if transA else a, b.T if transB else b)
    with np.errstate(all="ignore"):
        acc = acc if alpha == 1 else acc * acc.dtype.type(alpha)
        bias = c if c is None or beta == 1 else c.astype(acc.dtype) * acc.dtype.type(beta)
    return finish(acc, bias, "", a.dtype)


@Gemm.relax
@wide
def _(
    R: Any,
    a: Any,
    b: Any,
    c: Any = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Any:
    y = R.op.matmul(_swapped(R, a, bool(transA)), _swapped(R, b, bool(transB)))
    y = y if alpha == 1 else R.op.multiply(y, const(R, alpha, a))
    if c is None:
        return y
    return R.op.add(y, c if beta == 1 else R.op.multiply(c, const(R, beta, c)))


@Gemm.example
def _(rng: Rng) -> Iterator[Example]:
    yield [draw(rng, (4, 7), "f32"), draw(rng, (7, 3), "f32"), draw(rng, (3,), "f32")], {}
    yield (
        [draw(rng, (7, 4), "f32"), draw(rng, (3, 7), "f32")],
        {"transA": 1, "transB": 1, "alpha": 0.5},
    )
    yield (
        [draw(rng, (4, 7), "f16"), draw(rng, (3, 7), "f16"), draw(rng, (4, 1), "f16")],
        {"transB": 1, "beta": 0.25},
    )
    yield (
        [draw(rng, (4, 5), "f64"), draw(rng, (5, 3), "f64"), np.array(2, DTYPES["f64"])],
        {"alpha": 2.0, "beta": 3.0},
    )
    yield [draw(rng, (4, 5), "i32"), draw(rng, (5, 3), "i32"), draw(rng, (3,), "i32")], {}
