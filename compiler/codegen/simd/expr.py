"""Scalar expressions with sharing: equal ones are one object, integers are kept as linear forms with an interval.

    (bx*16 + tx//16) * 128 + tx%16*4 + 64     ─►     Sum(64, {bx: 2048, tx//16: 128, tx%16: 4})

Everything index arithmetic needs comes of that form: common subexpressions are found by identity, constants end up in the offset field
of a load, what is the same in every lane is split off for the uniform unit, division by constants is done with the interval's help,
and 64-bit indices shrink to 32 bits where the interval says so. Float expressions are never rearranged.

A vector of TIR is a list of scalars here, which `evaluate.py` evaluates together where that is better.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import gcd
from typing import Any

Range = tuple[int, int]
INTEGERS = {"i8": (-(1 << 7), (1 << 7) - 1), "i16": (-(1 << 15), (1 << 15) - 1), "i32": (-(1 << 31), (1 << 31) - 1),
            "i64": (-(1 << 63), (1 << 63) - 1), "u8": (0, (1 << 8) - 1), "u16": (0, (1 << 16) - 1),
            "u32": (0, (1 << 32) - 1), "u64": (0, (1 << 64) - 1)}  # fmt: skip
FLOATS = ("f16", "bf16", "f32", "f64")
S32 = INTEGERS["i32"]
EVERYWHERE = 1 << 30
"""Depth of what changes with every statement: values of variables, loads."""


@dataclass(frozen=True, eq=False, slots=True)
class Expr:
    """One expression. `args` are expressions; `data` is what else says which one it is."""

    op: str
    dtype: str
    args: tuple[Expr, ...]
    data: Any
    range: Range | None
    """Bounds of an integer, both inclusive; None for other types."""
    uniform: bool
    """Whether every lane of a warp has the same value, computable on the uniform unit."""
    depth: int
    """Loops that it depends on: 0 none, n the n-th of the nest, EVERYWHERE more than that."""
    loads: bool
    """Whether it reads memory."""
    number: int
    """Order of making."""

    @property
    def is_constant(self) -> bool:
        return self.op in ("int", "float")

    @property
    def fits32(self) -> bool:
        """Whether 32 signed bits hold every value."""
        return self.range is not None and S32[0] <= self.range[0] and self.range[1] <= S32[1]

    @property
    def wraps(self) -> bool:
        """Whether it is a linear form whose terms may add up to another number than its value."""
        return self.op == "sum" and self.range == INTEGERS[self.dtype]

    @property
    def truth(self) -> Expr | None:
        """The boolean of which this integer is the number."""
        return self.args[0] if self.op == "cast" and self.args[0].dtype == "bool" else None

    @property
    def terms(self) -> dict[Expr, int]:
        """Of an integer: atom → factor."""
        if self.op == "sum":
            return dict(zip(self.args, self.data[1], strict=True))
        return {} if self.op == "int" else {self: 1}

    @property
    def offset(self) -> int:
        """Of an integer: the constant of its linear form."""
        return int(self.data[0]) if self.op == "sum" else int(self.data) if self.op == "int" else 0

    def __hash__(self) -> int:
        return self.number


@dataclass
class Pool:
    """Makes expressions, each once."""

    made: dict[Any, Expr] = field(default_factory=dict)

    def make(
        self,
        op: str,
        dtype: str,
        *args: Expr,
        data: Any = None,
        range: Range | None = None,
        uniform: bool | None = None,
        depth: int | None = None,
    ) -> Expr:
        """The expression with these parts; new, if it is."""
        key = (op, dtype, tuple(a.number for a in args), data)
        found = self.made.get(key)
        if found is None:
            if range is None and dtype in INTEGERS:
                range = INTEGERS[dtype]
            if uniform is None:
                uniform = all(a.uniform for a in args) and _on_uniform_unit(op, dtype, args, range)
            deep = max((a.depth for a in args), default=0) if depth is None else depth
            loads = op == "load" or any(a.loads for a in args)
            found = Expr(op, dtype, args, data, range, uniform, deep, loads, len(self.made))
            self.made[key] = found
        return found

    # --- constants

    def integer(self, value: int, dtype: str = "i32") -> Expr:
        """An integer constant, wrapped to its type."""
        low, high = INTEGERS.get(dtype, (0, 1))
        value = (int(value) - low) % (high - low + 1) + low
        return self.make("int", dtype, data=value, range=(value, value), uniform=True)

    def float(self, value: float, dtype: str) -> Expr:
        """A float constant; the key is its text, since 0 equals −0 and a NaN not even itself."""
        return self.make("float", dtype, data=float(value).hex())

    def bool(self, value: bool) -> Expr:
        """True or false."""
        return self.make("int", "bool", data=int(value), uniform=True)

    # --- integers

    def sum(self, dtype: str, offset: int, terms: dict[Expr, int]) -> Expr:
        """offset + Σ factor·atom, which wraps as the type does."""
        terms = {a: c for a, c in terms.items() if c}
        if not terms:
            return self.integer(offset, dtype)
        if (
            not offset
            and list(terms.values()) == [1]
            and (atom := next(iter(terms))).dtype == dtype
        ):
            return atom
        order = sorted(terms, key=lambda a: (a.depth, a.number))
        low = offset + sum(min(c * r for r in _bounds(a)) for a, c in terms.items())
        high = offset + sum(max(c * r for r in _bounds(a)) for a, c in terms.items())
        fits = INTEGERS[dtype][0] <= low and high <= INTEGERS[dtype][1]
        data = (offset, tuple(terms[a] for a in order))
        return self.make(
            "sum", dtype, *order, data=data, range=(low, high) if fits else INTEGERS[dtype]
        )

    def add(self, a: Expr, b: Expr, factor: int = 1) -> Expr:
        """a + factor·b."""
        terms = a.terms
        for atom, c in b.terms.items():
            terms[atom] = terms.get(atom, 0) + factor * c
        return self.sum(a.dtype, a.offset + factor * b.offset, terms)

    def scale(self, a: Expr, factor: int) -> Expr:
        """factor·a."""
        return self.sum(
            a.dtype, a.offset * factor, {atom: c * factor for atom, c in a.terms.items()}
        )

    def mul(self, a: Expr, b: Expr) -> Expr:
        """a·b."""
        if a.op == "int":
            a, b = b, a
        if b.op == "int":
            return self.scale(a, b.offset)
        corners = [x * y for x in _bounds(a) for y in _bounds(b)]
        return self.make("mul", a.dtype, a, b, range=_within(a.dtype, min(corners), max(corners)))

    def floordiv(self, a: Expr, b: Expr) -> Expr:
        """a / b, rounded down."""
        if b.op != "int" or b.offset <= 0:
            return self.make("floordiv", a.dtype, a, b)
        c = b.offset
        whole, rest = self._split(a, c)
        low, high = (r // c for r in _bounds(rest))
        if low == high:
            return self.add(whole, self.integer(low, a.dtype))
        return self.add(whole, self._divided(rest, c))

    def floormod(self, a: Expr, b: Expr) -> Expr:
        """a - b·floordiv(a, b)."""
        if b.op != "int" or b.offset <= 0:
            return self.make("floormod", a.dtype, a, b)
        c = b.offset
        rest = self._split(a, c)[1]
        low, high = _bounds(rest)
        if low // c == high // c:
            return self.add(rest, self.integer(-(low // c) * c, a.dtype))
        return self.make("floormod", a.dtype, rest, self.integer(c, a.dtype), range=(0, c - 1))

    def _split(self, a: Expr, c: int) -> tuple[Expr, Expr]:
        """a = c·whole + rest, term by term; nothing is taken out of an `a` that may wrap."""
        if a.wraps:
            return self.integer(0, a.dtype), a
        whole = {atom: k // c for atom, k in a.terms.items() if k % c == 0}
        rest = {atom: k for atom, k in a.terms.items() if k % c}
        return self.sum(a.dtype, a.offset // c, whole), self.sum(a.dtype, a.offset % c, rest)

    def _divided(self, a: Expr, c: int) -> Expr:
        """a // c, after what numerator and divisor have in common is gone: (4a + 2b + 1) // 6 = (2a + b) // 3."""
        common = 1 if a.wraps else gcd(c, *a.terms.values())
        if common > 1:
            a = self.sum(
                a.dtype, a.offset // common, {atom: k // common for atom, k in a.terms.items()}
            )
            c //= common
        if c == 1:
            return a
        low, high = _bounds(a)
        return self.make(
            "floordiv", a.dtype, a, self.integer(c, a.dtype), range=(low // c, high // c)
        )

    def extreme(self, op: str, a: Expr, b: Expr) -> Expr:
        """min or max of integers."""
        (al, ah), (bl, bh) = _bounds(a), _bounds(b)
        if (ah <= bl) if op == "min" else (al >= bh):
            return a
        if (bh <= al) if op == "min" else (bl >= ah):
            return b
        f = min if op == "min" else max
        return self.make(op, a.dtype, a, b, range=(f(al, bl), f(ah, bh)))

    def cast(self, a: Expr, dtype: str) -> Expr:
        """An integer as another integer type."""
        if a.op == "int":
            return self.integer(a.offset, dtype)
        exact = a.range is not None and _inside(a.range, dtype) and a.range != INTEGERS[a.dtype]
        if exact or (a.op == "sum" and 32 <= _bits(dtype) <= _bits(a.dtype)):
            return self.sum(dtype, a.offset, a.terms)
        inside = a.range if a.range is not None and _inside(a.range, dtype) else None
        return self.make("cast", dtype, a, range=inside)

    def narrow(self, a: Expr) -> Expr:
        """An i32 with the low 32 bits of an integer: all that addresses need, and all there is where `fits32`."""
        if a.op == "int":
            return self.integer(a.offset)
        if a.op == "sum" and not (a.wraps and _bits(a.dtype) < 32):
            return self.sum("i32", a.offset, a.terms)
        if _bits(a.dtype) <= 32:
            return a
        if a.op == "cast" and a.args[0].dtype == "i32":
            return a.args[0]
        if a.op == "load":
            return self.make(
                "load", "i32", *a.args, data=(*a.data, "low"), depth=a.depth, uniform=False
            )
        if (
            a.fits32
            and a.op in ("mul", "floordiv", "floormod", "min", "max")
            and all(x.fits32 for x in a.args)
        ):
            return self.make(a.op, "i32", *map(self.narrow, a.args), range=a.range)
        return self.make("low", "i32", a, range=a.range if a.fits32 else None, uniform=False)

    def compare(self, op: str, a: Expr, b: Expr) -> Expr:
        """lt, le, eq or ne of integers; what the intervals decide is a constant."""
        zero, number = (a, b) if op == "lt" else (b, a)
        if op in ("lt", "ne") and zero.op == "int" and not zero.offset and number.truth:
            return number.truth
        difference = self._difference(a, b)
        yes, no = _decided(op, a, b, difference)
        if yes or no:
            return self.bool(yes)
        if difference is not None:
            a, b = self._sides(a, b, difference)
        return self.make(
            op, "bool", a, b, uniform=a.uniform and b.uniform and a.fits32 and b.fits32
        )

    def _difference(self, a: Expr, b: Expr) -> Expr | None:
        """a - b, term by term; None if a side may wrap, and so is not the sum of its terms."""
        if a is b:
            return self.integer(0, "i64")
        if a.wraps or b.wraps:
            return None
        return self.add(self._wide(a), self._wide(b), -1)

    def _sides(self, a: Expr, b: Expr, difference: Expr) -> tuple[Expr, Expr]:
        """Variable terms on the left and a constant on the right, if 32 bits hold both."""
        bare = self.sum("i64", 0, difference.terms)
        fits = bare.fits32 and S32[0] <= -difference.offset <= S32[1]
        if not fits or a.dtype not in ("i32", "i64"):
            return a, b
        return self.sum("i32", 0, difference.terms), self.integer(-difference.offset, "i32")

    def _wide(self, a: Expr) -> Expr:
        return self.sum("i64", a.offset, a.terms)


def _decided(op: str, a: Expr, b: Expr, difference: Expr | None) -> tuple[bool, bool]:
    """Whether a comparison always holds, and whether it never does, by the intervals."""
    (al, ah), (bl, bh) = _bounds(a), _bounds(b)
    low, high = al - bh, ah - bl
    if difference is not None:
        low, high = max(low, _bounds(difference)[0]), min(high, _bounds(difference)[1])
    equal = low == high == 0, low > 0 or high < 0
    decided = {"lt": (high < 0, low >= 0), "le": (high <= 0, low > 0), "eq": equal}
    return decided[op] if op != "ne" else equal[::-1]


def _bounds(a: Expr) -> Range:
    if a.range is None:
        raise TypeError(f"{a.op} of type {a.dtype} is no integer")
    return a.range


def _within(dtype: str, low: int, high: int) -> Range:
    """The interval, or all of the type if it may wrap."""
    return (low, high) if _inside((low, high), dtype) else INTEGERS[dtype]


def _inside(r: Range, dtype: str) -> bool:
    return INTEGERS[dtype][0] <= r[0] and r[1] <= INTEGERS[dtype][1]


def _on_uniform_unit(op: str, dtype: str, args: tuple[Expr, ...], range: Range | None) -> bool:
    """Whether the uniform unit computes it: on natural numbers it divides, and it has 32 bits, so of wider ones the low half.

    What a lane computed never gets back there.
    """
    if dtype not in INTEGERS or _bits(dtype) < 32:
        return False
    if op == "sum":
        return True
    if op == "cast":
        return _bits(dtype) > 32 and args[0].dtype == "i32"
    if _bits(dtype) > 32 and not all(
        r is not None and _inside(r, "i32") for r in (range, *(a.range for a in args))
    ):
        return False
    if op in ("floordiv", "floormod"):
        return all(a.range is not None and a.range[0] >= 0 for a in args)
    return op == "mul" or (op in ("min", "max") and all(a.fits32 for a in args))


def _bits(dtype: str) -> int:
    return int(dtype[1:])


def walk(e: Expr) -> Iterator[Expr]:
    """The expression and all it is made of, each once."""
    seen, todo = {e}, [e]
    while todo:
        x = todo.pop()
        yield x
        for a in x.args:
            if a not in seen:
                seen.add(a)
                todo.append(a)
