"""The lane algebra: what instructions are written in.

A value is one number a lane, 32 lanes. In the reference engine a value is a numpy array of shape (32,); in the fast engine
it is a handle on an LLVM vector (`runtime/fast/trace.py`). Both take `+ - * & | ^ ~`, unary `-`, comparisons (which give booleans), and
the functions below; Python numbers beside a value take the value's type. An `execute` body must therefore not branch on a
value (use `select`), only on the instruction's own fields.

Rules, the same in both engines: integers wrap; shifts by the width or more give 0 (arithmetic right: the sign); float `+ - * /` and `sqrt`
round once to nearest even, subnormals kept; `fma` rounds once; nothing contracts or splits. Any two NaNs are equal: inside an
instruction a NaN has no bits, and what reaches a register, memory or `bitcast` is the canonical NaN (positive, quiet, no payload).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ParamSpec, Protocol, TypeVar

import ml_dtypes
import numpy as np

LANES = 32
Value = Any
"""A numpy array of 32 lanes, or the fast engine's handle on one."""


@dataclass(frozen=True)
class LaneType:
    """The type of one lane: `kind` is f, s, u or b (bool)."""

    name: str
    kind: str
    bits: int
    dtype: Any
    """The numpy dtype."""

    def __repr__(self) -> str:
        return self.name


F16 = LaneType("F16", "f", 16, np.float16)
BF16 = LaneType("BF16", "f", 16, ml_dtypes.bfloat16)
F32 = LaneType("F32", "f", 32, np.float32)
F64 = LaneType("F64", "f", 64, np.float64)
S8, S16, S32, S64 = (
    LaneType(f"S{n}", "s", n, np.dtype(f"i{n // 8}").type) for n in (8, 16, 32, 64)
)
U8, U16, U32, U64 = (
    LaneType(f"U{n}", "u", n, np.dtype(f"u{n // 8}").type) for n in (8, 16, 32, 64)
)
B1 = LaneType("B1", "b", 1, np.bool_)
TYPES: dict[str, LaneType] = {
    t.name: t for t in (F16, BF16, F32, F64, S8, S16, S32, S64, U8, U16, U32, U64, B1)
}


class Warp(Protocol):
    """What `execute(m)` may ask of a warp. Writes, stores and predicate writes touch only the lanes that are active (guard included).

    A type narrower than 32 bits sits in the low bits of its register: floats with zeros above, signed integers sign-extended,
    unsigned ones zero-extended. 64-bit types take two registers, low word first.
    """

    def read(self, reg: Any, type: LaneType) -> Value: ...
    def source(self, src: Any, type: LaneType) -> Value:
        """A Src: register, uniform register (every lane the same) or immediate.

        An immediate is 32 raw bits. For a 64-bit integer type it is sign-extended, for F64 it is the high word with zeros below.
        """

    def write(self, reg: Any, value: Value) -> None: ...
    def predicate(self, p: Any) -> Value:
        """A Pred or Guard, as booleans."""

    def set_predicate(self, p: Any, value: Value) -> None: ...
    def uniform(self, reg: Any, type: LaneType) -> Value:
        """A uniform register, or a Src that is one or an immediate; the value is the same in every lane."""

    def set_uniform(self, reg: Any, value: Value) -> None:
        """Write a uniform register from lane 0 of a value that is the same in every lane; the guard does not matter."""

    def set_uniform_predicate(self, p: Any, value: Value) -> None:
        """Write a predicate in all 32 lanes, active or not, from lane 0 of a uniform value."""

    def load(
        self, space: str, address: Value, type: LaneType, words: int = 1, where: Value | None = None
    ) -> list[Value]:
        """`words` consecutive values of `type` from byte `address` on; inactive lanes give 0 and touch nothing.

        space: "global" (U64 addresses), "shared", "local" (U32), "param" (U32, uniform). `where` narrows the active lanes; a
        lane outside it gives 0. Parameters are read in every lane, active or not. The address must be a multiple of the access's size (words × type).
        """

    def store(
        self, space: str, address: Value, values: list[Value], where: Value | None = None
    ) -> None:
        """The inverse of `load`."""

    def lane(self) -> Value:
        """0 … 31, as U32."""

    def active(self) -> Value:
        """The lanes that this instruction acts on, as booleans (the guard included)."""

    def special(self, name: str) -> Value:
        """A special register as U32: TID_X …, CTAID_X …, NCTAID_X …, NTID_X …, LANEID, WARPID."""

    def shuffle(self, value: Value, lane: Value) -> Value:
        """Each lane gets `value` of lane number `lane` (0 … 31), whether that lane is active or not."""

    def ballot(self, value: Value) -> Value:
        """Booleans → one U32, bit i from lane i, the same in every lane; inactive lanes give 0."""

    def first(self, value: Value) -> Value:
        """The lowest active lane's value, in every lane."""

    def whole(self) -> None:
        """A fault unless all 32 lanes are active."""

    def tile(self, word: int) -> None:
        """A fault unless the block has a warp tile of accumulator memory at this word."""

    # control: `runtime` implements these natively in both engines
    def branch(self, target: int) -> None: ...
    def push_convergence(self, barrier: int, target: int) -> None: ...
    def converge(self, barrier: int) -> None: ...
    def barrier(self, number: int) -> None: ...
    def exit(self) -> None: ...

    # systolic commands: likewise
    def send(self, command: Any, address: int = 0, c: int = 0) -> None:
        """A command joins the queue. `address`: its first row in shared memory; `c`: where C begins, a register or a word."""

    def describe(self, number: int, words: list[int]) -> None:
        """A descriptor of the block becomes what its words say."""

    def fill(self, command: Any, first: int, rows: int) -> None:
        """A FILL.DUP joins the queue: stored rows from `first` on."""

    def push(self, command: Any, c: int, tap: int, first: int, rows: int) -> None:
        """An IM2COL.PUSH joins the queue: rows of the patch matrix from `first` on, into words of accumulator memory from `c` on."""

    def describe_tile(self, number: int, words: list[int]) -> None:
        """Likewise a tile's descriptor."""

    def copy(self, command: Any, target: int, source: int, size: int) -> None:
        """A DMA.LD joins the queue."""

    def commit(self) -> None: ...
    def wait(self, groups: int) -> None: ...
    def switch(self, mode: Any) -> None: ...


# --- functions of values: the numpy bodies are the specification -------------------------------------------------------

P = ParamSpec("P")
R = TypeVar("R")


def lanewise(body: Callable[P, R]) -> Callable[P, R]:
    """A function of values: `body` on numpy arrays, or the method of that name of the algebra that an operand brings."""

    @functools.wraps(body)
    def call(*args: P.args, **kw: P.kwargs) -> R:
        traced = next((v.algebra for v in args if hasattr(v, "algebra")), None)
        if traced is not None:
            result: R = getattr(traced, body.__name__)(*args, **kw)
            return result
        return body(*args, **kw)

    return call


BY_DTYPE: dict[Any, LaneType] = {np.dtype(t.dtype): t for t in TYPES.values()}


def type_of(x: Value) -> LaneType:
    """The lane type of a value, in either algebra."""
    return x.type if hasattr(x, "algebra") else BY_DTYPE[x.dtype]


def _alike(*values: Value) -> list[Any]:
    """Numpy operands of one type: Python numbers take the type of the arrays beside them."""
    dtype = next(v.dtype for v in values if isinstance(v, np.ndarray))
    return [v if isinstance(v, np.ndarray) else np.full(LANES, v, dtype) for v in values]


@lanewise
def constant(like: Value, x: Any, type: LaneType) -> Value:
    """A number in every lane, in the algebra of `like`."""
    return np.full(LANES, x, type.dtype)


@lanewise
def select(condition: Value, a: Value, b: Value) -> Value:
    """`a` where the condition holds, else `b`."""
    return np.where(condition, *_alike(a, b))


@lanewise
def bitcast(x: Value, type: LaneType) -> Value:
    """The same bits under another type of the same width. A NaN shows the bits of the canonical one."""
    return canonical(x).view(type.dtype)


def canonical(x: Value) -> Value:
    """A numpy value whose NaNs are all the positive quiet one without payload: what registers and memory get to see."""
    if type_of(x).kind != "f":
        return x
    return np.where(np.isnan(x), np.full_like(x, np.nan), x)


@lanewise
def isnan(x: Value) -> Value:
    """Booleans: which lanes are NaN."""
    return np.isnan(x)


@lanewise
def fma(a: Value, b: Value, c: Value) -> Value:
    """a·b + c, rounded once to nearest even."""
    a, b, c = _alike(a, b, c)
    if a.dtype == np.float64:
        return np.array([*map(_fma64, a.tolist(), b.tolist(), c.tolist())])
    product = a.astype(np.float64) * b.astype(np.float64)  # exact: at most 24 + 24 of 53 bits
    return convert(_add_to_odd(product, c.astype(np.float64)), BY_DTYPE[a.dtype])


def _add_to_odd(a: Value, b: Value) -> Value:
    """a + b in float64, rounded to odd: rounding the result again, to 51 bits or fewer, is as if it were the first time."""
    s = a + b
    t = s - a
    error = (a - (s - t)) + (b - t)
    even = s.view(np.int64) & 1 == 0
    return np.where(
        np.isfinite(s) & (error != 0) & even, np.nextafter(s, np.copysign(np.inf, error)), s
    )


def _fma64(a: float, b: float, c: float) -> float:
    """In exact rationals, which Python divides with one rounding."""
    rough = a * b + c
    if not (math.isfinite(a) and math.isfinite(b) and math.isfinite(c)):
        return rough
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    try:
        return (
            float(exact) if exact else rough
        )  # an exact zero has the sign that IEEE addition gives it
    except OverflowError:
        return math.inf if exact > 0 else -math.inf


@lanewise
def sqrt(x: Value) -> Value:
    """The square root, rounded to nearest even; NaN below zero, −0 of −0."""
    return np.sqrt(x)


ROUNDINGS: dict[str, Callable[[Value], Value]] = {
    "RN": np.rint,
    "RM": np.floor,
    "RP": np.ceil,
    "RZ": np.trunc,
}


@lanewise
def rint(x: Value) -> Value:
    """To the nearest integral value, ties to even."""
    return np.rint(x)


@lanewise
def floor(x: Value) -> Value:
    """To the integral value below."""
    return np.floor(x)


@lanewise
def ceil(x: Value) -> Value:
    """To the integral value above."""
    return np.ceil(x)


@lanewise
def trunc(x: Value) -> Value:
    """To the integral value towards zero."""
    return np.trunc(x)


@lanewise
def convert(x: Value, type: LaneType, rounding: str = "RN") -> Value:
    """The same number in another type.

    Integer → integer wraps. Anything → float rounds once to nearest even. Float → integer rounds to an integer as `rounding` says
    (RN nearest even, RM down, RP up, RZ towards zero), then saturates; NaN gives 0. Anything → B1 is `x != 0`.
    """
    source = BY_DTYPE[x.dtype]
    if type.kind == "b":
        return x != 0
    if type.kind == "f":
        return _to_float(x, type)
    if source.kind != "f":
        return x.astype(type.dtype)
    limits = np.iinfo(type.dtype)
    whole = ROUNDINGS[rounding](x.astype(np.float64))
    low, high = whole <= float(limits.min), whole >= float(int(limits.max) + 1)
    inside = np.where(low | high | isnan(x), 0, whole).astype(type.dtype)
    return np.where(low, limits.min, np.where(high, limits.max, inside)).astype(type.dtype)


def _to_float(x: Value, type: LaneType) -> Value:
    """Numpy and ml_dtypes round directly from some types, by way of float32 from others: make one rounding of two."""
    if type.bits > 16:
        return x.astype(type.dtype)
    if x.dtype in (
        np.int64,
        np.uint64,
    ):  # below 2**53 nothing is lost; above, bits 0–10 fold into one sticky bit
        sticky = (x & 0x7FF != 0).astype(x.dtype) << 11
        big = np.abs(x.astype(np.float64)) >= 2.0**53
        x = np.where(big, (x >> 11 << 11) | sticky, x)
    wide = x.astype(np.float64)
    return _to_odd32(wide).astype(type.dtype)


def _to_odd32(x: Value) -> Value:
    """float64 → float32, rounded to odd."""
    y = x.astype(np.float32)
    even = y.view(np.int32) & 1 == 0
    towards = np.where(y < x, np.float32(np.inf), np.float32(-np.inf))
    return np.where(np.isfinite(x) & (y != x) & even, np.nextafter(y, towards), y)


@lanewise
def minimum(a: Value, b: Value) -> Value:
    """The lesser; NaN if either is one; −0 is less than +0 (IEEE 754-2019's minimum)."""
    a, b = _alike(a, b)
    if BY_DTYPE[a.dtype].kind != "f":
        return np.minimum(a, b)
    return np.where((a < b) | ((a == b) & np.signbit(a)) | isnan(a), a, b)


@lanewise
def maximum(a: Value, b: Value) -> Value:
    """The greater; NaN if either is one; +0 is greater than −0 (IEEE 754-2019's maximum)."""
    a, b = _alike(a, b)
    if BY_DTYPE[a.dtype].kind != "f":
        return np.maximum(a, b)
    return np.where((a > b) | ((a == b) & np.signbit(b)) | isnan(a), a, b)


@lanewise
def absolute(x: Value) -> Value:
    """|x|; the least signed integer is its own."""
    return np.abs(x)


@lanewise
def shl(x: Value, n: Value | int) -> Value:
    """x · 2ⁿ modulo the width; 0 for n ≥ the width. n is unsigned, of any width."""
    bits = BY_DTYPE[x.dtype].bits
    return np.where(np.less(n, bits), x << np.minimum(n, bits - 1).astype(x.dtype), 0).astype(
        x.dtype
    )


@lanewise
def shr(x: Value, n: Value | int) -> Value:
    """x / 2ⁿ rounded down; for n ≥ the width 0, or −1 for a negative x. n is unsigned, of any width."""
    type = BY_DTYPE[x.dtype]
    least = np.minimum(n, type.bits - 1).astype(x.dtype)
    return (
        x >> least
        if type.kind == "s"
        else np.where(np.less(n, type.bits), x >> least, 0).astype(x.dtype)
    )


@lanewise
def mulhi(a: Value, b: Value) -> Value:
    """The high half of the double-width product."""
    a, b = _alike(a, b)
    return ((a.astype(object) * b.astype(object)) >> BY_DTYPE[a.dtype].bits).astype(a.dtype)


@lanewise
def idiv(a: Value, b: Value) -> Value:
    """The quotient rounded towards zero. x / 0 has all bits set; least / −1 wraps to the least."""
    a, b = _alike(a, b)
    magnitude = np.dtype(f"u{a.dtype.itemsize}")
    quotient = np.abs(a).view(magnitude) // np.maximum(np.abs(b).view(magnitude), 1)
    signed = np.where((a < 0) != (b < 0), -quotient, quotient)
    return np.where(b == 0, ~np.zeros_like(signed), signed).view(a.dtype)


@lanewise
def irem(a: Value, b: Value) -> Value:
    """a − b · (a / b), with the sign of a; x % 0 is x."""
    a, b = _alike(a, b)
    return np.where(b == 0, a, a - b * idiv(a, b))


@lanewise
def popc(x: Value) -> Value:
    """How many bits are set, as U32."""
    return np.bitwise_count(x.view(f"u{x.dtype.itemsize}")).astype(np.uint32)


@lanewise
def clz(x: Value) -> Value:
    """How many leading zeros, as U32; the width for 0."""
    bits = BY_DTYPE[x.dtype].bits
    return np.array([bits - int(v).bit_length() for v in x.view(f"u{x.dtype.itemsize}")], np.uint32)


@lanewise
def brev(x: Value) -> Value:
    """The bits in reverse order."""
    bits = BY_DTYPE[x.dtype].bits
    reversed_ = [int(f"{int(v):0{bits}b}"[::-1], 2) for v in x.view(f"u{x.dtype.itemsize}")]
    return np.array(reversed_, f"u{x.dtype.itemsize}").view(x.dtype)
