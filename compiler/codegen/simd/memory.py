"""Loads and stores: addresses from linear forms, neighbours with one wide access.

global   [base of the buffer (uniform pair) + lanes' byte offset + constant]     the constant takes what the index has of it
shared   [URZ + byte offset + place of the buffer]
local    arrays that are indexed by what only the running kernel knows; all others are registers
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from knapper.isa.errors import CompileError
from knapper.isa.instructions import LDG, LDL, LDS, MOV, STG, STL, STS
from knapper.isa.modifiers import Width

from ..builder import URZ, VReg, VUReg
from .evaluate import Evaluator
from .expr import Expr
from .parse import Buffer
from .values import HALVES, Emitter, Value, size, words

WIDTHS = {
    "bool": Width.U8,
    "u8": Width.U8,
    "i8": Width.S8,
    "i16": Width.S16,
    "u16": Width.U16,
    "f16": Width.U16,
    "bf16": Width.U16,
}
STORES = {1: Width.U8, 2: Width.U16, 4: Width._32, 8: Width._64, 16: Width._128}
OFFSET = 1 << 23
"""Constants below this, of either sign, fit the instruction."""
LARGEST = 1 << 31
"""Bytes of a buffer that a signed 32-bit offset reaches."""


class Memory(Evaluator):
    """An evaluator that knows where buffers are."""

    def __init__(self, emitter: Emitter, buffers: list[Buffer], frugal: bool) -> None:
        super().__init__(emitter, frugal)
        self.buffers = buffers
        self.bases: dict[str, VUReg] = {}
        """Role of a global buffer → its address."""
        self.places: dict[int, int] = {}
        """Shared or local buffer → its byte offset."""

    # --- loads

    def load(self, x: Expr) -> Value:
        b = self.buffers[x.data[0]]
        dtype = "i32" if "low" in x.data else b.dtype
        d = self.e.reg(words(dtype))
        self._blank(d, [None] * d.words)
        self._access(self._width(dtype), d, b, x.args[0])
        if dtype == "bool":
            return self.e.convert(Value("u8", d), "bool")
        return Value(dtype, d)

    def load_together(self, lanes: tuple[Expr, ...], otherwise: list[Value] | None = None) -> None:
        b = self.buffers[lanes[0].data[0]]
        i = 0
        while i < len(lanes):
            n = self._run(b, [x.args[0] for x in lanes[i:]])
            part = otherwise[i : i + n] if otherwise else None
            for x, v in zip(lanes[i : i + n], self._load_run(b, lanes[i], n, part), strict=True):
                self.keep(x, v)
            i += n

    def _load_run(
        self, b: Buffer, first: Expr, n: int, otherwise: list[Value] | None
    ) -> list[Value]:
        """n neighbours by one access."""
        nbytes = n * size(b.dtype)
        if nbytes < 4:
            d = self.e.reg()
            self._blank(d, [otherwise[0].at if otherwise else None])
            self._access(self._width(b.dtype), d, b, first.args[0])
            v = Value("u8" if b.dtype == "bool" else b.dtype, d)
            return [self.e.convert(v, b.dtype)]
        d = self.e.reg(nbytes // 4)
        self._blank(d, _raw(otherwise, nbytes // 4) if otherwise else [None] * d.words)
        self._access(STORES[nbytes], d, b, first.args[0])
        return _unpacked(b.dtype, d, n)

    def _blank(self, d: VReg, contents: list[Any]) -> None:
        """What lanes that a guard leaves out will find: registers that are read must have been written."""
        if not self.guards:
            return
        for i, word in enumerate(contents):
            self.e.emit(MOV, d[i], 0 if word is None else word)

    def _run(self, b: Buffer, places: list[Expr]) -> int:
        """How many of these elements, from the first on, one access may take."""
        return next(
            (n for n in (16, 8, 4, 2) if n <= len(places) and self._is_run(b, places[:n])), 1
        )

    def _is_run(self, b: Buffer, places: list[Expr]) -> bool:
        """Whether they are neighbours, fill 4 to 16 bytes, and start at a multiple of that.

        Of types narrower than a register only 16-bit floats go in pairs: conversions read either half, integers need their own.
        """
        nbytes = len(places) * size(b.dtype)
        if not 4 <= nbytes <= 16 or (size(b.dtype) < 4 and b.dtype not in HALVES):
            return False
        first = places[0]
        steps = (self.pool.add(x, first, -1) for x in places)
        if any(s.op != "int" or s.offset != i for i, s in enumerate(steps)):
            return False
        return all(c * size(b.dtype) % nbytes == 0 for c in (first.offset, *first.terms.values()))

    # --- stores

    def store(self, b: Buffer, places: list[Expr], values: list[Expr]) -> None:
        """Write elements, in order; under the guard."""
        self.together(values)
        i = 0
        while i < len(places):
            n = self._run(b, places[i:])
            width, source = self._gathered(b.dtype, values[i : i + n])
            self._access(width, source, b, places[i], store=True)
            i += n

    def _gathered(self, dtype: str, values: list[Expr]) -> tuple[Width, Any]:
        """Neighbours in consecutive registers."""
        nbytes = len(values) * size(dtype)
        if nbytes < 4:
            v = self.e.low(self.value(values[0]))
            v = self.e.convert(v, "u32") if dtype == "bool" else v
            return STORES[nbytes], self.e.zero_or(v)
        if len(values) == 1:
            return STORES[nbytes], self.e.zero_or(self.value(values[0]))
        if dtype in HALVES:
            return STORES[nbytes], self._halves([self.value(x) for x in values])
        return STORES[nbytes], self._whole(dtype, values)

    def _halves(self, values: list[Value]) -> VReg:
        pairs = list(zip(values[::2], values[1::2], strict=True))
        halves = all(a.at is b.at and not a.high and b.high for a, b in pairs)
        if halves and (row := self._row([a.at for a, _ in pairs])) is not None:
            return row
        d = self.e.reg(len(pairs))
        for i, (a, b) in enumerate(pairs):
            self.e.pack(a, b, into=d[i])
        return d

    def _whole(self, dtype: str, values: list[Expr]) -> VReg:
        n = words(dtype)
        there = [self.known(x) for x in values]
        held = [v.at for v in there if v is not None and isinstance(v.at, VReg)]
        if len(held) == len(there) and (row := self._row(held)) is not None:
            return row
        d = self.e.reg(n * len(values))
        for i, x in enumerate(values):
            target = d[i * n : (i + 1) * n]
            v = self.value(x, into=target)
            if v.at is not target:
                self.e.move(target, v)
        return d

    def _row(self, parts: list[Any]) -> VReg | None:
        """Registers that are consecutive and aligned already, as one."""
        if not all(isinstance(p, VReg) for p in parts):
            return None
        total = sum(p.words for p in parts)
        groups, first = self.e.groups, parts[0].base
        start = groups.base[groups.owner[first]]
        end = start + groups.words[groups.owner[first]]
        follows = all(p.base + p.words == q.base for p, q in pairwise(parts))
        if not follows or first + total > end or (first - start) % total:
            return None
        return VReg(first, total, parts[0].file)

    # --- addresses

    def _access(
        self, width: Width, data: Any, b: Buffer, place: Expr, *, store: bool = False
    ) -> None:
        register, constant = self._address(b, place)
        guard = self.guard
        if b.scope == "global":
            base = self.bases[b.role]
            operands = (
                (base, register, constant, data) if store else (data, base, register, constant)
            )
            self.e.emit(STG if store else LDG, width, *operands, guard=guard)
        elif b.scope == "shared":
            operands = (URZ, register, constant, data) if store else (data, URZ, register, constant)
            self.e.emit(STS if store else LDS, width, *operands, guard=guard)
        else:
            local = (register, constant, data) if store else (data, register, constant)
            self.e.emit(STL if store else LDL, width, *local, guard=guard)

    def _address(self, b: Buffer, place: Expr) -> tuple[Any, int]:
        """(register with the lane's byte offset, constant)."""
        if b.elements * size(b.dtype) > LARGEST:
            raise CompileError(
                "E443",
                f"a buffer of {b.elements} elements is beyond 32-bit offsets",
                where=f"kernel {self.e.name}",
            )
        scaled = self.pool.scale(self.pool.narrow(place), size(b.dtype))
        constant = scaled.offset + self.places.get(b.number, 0)
        rest = self.pool.sum("i32", 0, scaled.terms)
        if not -OFFSET <= constant < OFFSET:
            rest, constant = self.pool.sum("i32", constant, scaled.terms), 0
        return self.e.zero_or(self.value(rest)), constant

    def _width(self, dtype: str) -> Width:
        return WIDTHS.get(dtype) or STORES[size(dtype)]


def _raw(values: list[Value], n: int) -> list[int]:
    """The words of known values."""
    bits = 32 * n // len(values)
    whole = sum(v.at << i * bits for i, v in enumerate(values) if isinstance(v.at, int))
    return [whole >> 32 * i & 0xFFFFFFFF for i in range(n)]


def _unpacked(dtype: str, d: VReg, n: int) -> list[Value]:
    """The elements that registers hold after a wide load; the two halves of a word name the same register object."""
    if dtype in HALVES:
        parts = [d[i] if d.words > 1 else d for i in range(d.words)]
        return [Value(dtype, parts[i // 2], high=bool(i % 2)) for i in range(n)]
    k = words(dtype)
    return [Value(dtype, d[i * k : (i + 1) * k]) for i in range(n)]
