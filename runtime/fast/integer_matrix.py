"""IMMA by hand. Both operands are turned into words of four bytes, or of two halves, of one row and some k; a word of A meets sixteen words of B.

    A: [m][plane][word]: a word is read into all lanes              B: [plane][word][n]: n = 0 … 15 are a vector

The order of k inside a word, and of words, is free, as sums are exact: it only has to be the same on both sides. Nibbles thus come apart as they lie,
the low ones of each word in one plane and the high ones in another, and a table gives what a code stands for. Beside nibbles a row of bytes is
taken apart likewise, even k before odd.

With VNNI a step is one instruction: four products of an unsigned byte and a signed one (VPDPBUSD). If both operands are of one kind, A's top bits are
flipped, which moves its values by 128, and 128 times the sum of B's column makes up for it. Else, and for values beyond a byte, words are two halves
(VPMADDWD): even and odd bytes, extended. All of it wraps as the instruction does.

There are many pairs of types, so what is long is shared, in units of its own:

    integers.a.FORMAT.FORM[.apart](fragment, words)    integers.b.FORMAT.FORM.COUNT(fragment, words)    integers.dot.FORM.OPERAND.WORDS(a, b, c, d)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from knapper.isa.formats import FORMATS, Format
from knapper.isa.integer_tensor import IMMA
from knapper.isa.tensor import SIZE

from ..decode import ROW
from .emit import FULL, I8, I16, I32, I64, PTR, VOID, Code, constant_vector, vector
from .trace import TraceWarp

WORDS = vector(I32, SIZE)
BYTES, HALVES = vector(I8, 4 * SIZE), vector(I16, 2 * SIZE)
UNPACK = ir.FunctionType(VOID, [PTR, PTR])
DOT = ir.FunctionType(VOID, [PTR, PTR, PTR, PTR])
BIAS = 128
PLAIN, FLIPPED, HALF = "plain", "flipped", "halves"
"""What the words of A are: bytes, bytes with their top bit flipped, pairs of 16 bits."""
VNNI = frozenset({"avx512vnni", "avxvnni"})
"""Features with steps of four bytes, and of two halves, each one instruction."""
UNSIGNED, SIGNED = "unsigned", "signed"
"""What A's bytes are; B's are the other."""


def imma(m: TraceWarp, i: Any) -> None:
    """d = a @ bᵀ + c."""
    code, features = m.code, m.algebra.features
    a, b = i.a_type.format, i.b_type.format
    mixed = isinstance(i, IMMA) and b.bits == 4
    for first, count in ((i.a, 4), (i.b, 2 if mixed else 4), (i.c, 8)):
        for r in range(count if m.checked else 0):
            m.word(first + r)
    form, kind = how(features, a, b)
    words = (8 if a.bits == 8 else 16) * (2 if form == HALF else 1)
    left, right = code.stack(4 * SIZE * words), code.stack(4 * SIZE * words)
    unit(m, f"a.{a}.{form}{'.apart' * mixed}", UNPACK, m.row(i.a), left)
    of_b = HALF if form == HALF else PLAIN
    unit(m, f"b.{b}.{of_b}.{4 if mixed else 8}", UNPACK, m.row(i.b), right)
    dot, c = f"dot.{form}.{kind}.{words}", m.row(i.c)
    if (
        rows_of(features) < SIZE
    ):  # some of d is written before all of c is read, and they may overlap
        c = code.stack(8 * ROW)
        code.move(c, m.row(i.c), code.num(8 * ROW, I64))
    for n in range(8):
        m.mark(i.d + n)
    with code.either(m.mask == FULL) as (full, partial):
        with full:
            unit(m, dot, DOT, left, right, c, m.row(i.d))
        with partial:
            rows = code.stack(8 * ROW)
            unit(m, dot, DOT, left, right, c, rows)
            for n in range(8):
                word = code.load(code.at(rows, n * ROW), vector(I32), 64)
                m.pending.append((m.row(i.d + n), word))
            m.flush()


def how(features: frozenset[str], a: Format, b: Format) -> tuple[str, str]:
    """(form, what A's bytes are)."""

    def signed(f: Format) -> bool:
        return f.largest < BIAS

    def unsigned(f: Format) -> bool:
        return f.smallest >= 0

    if max(a.largest, b.largest) > 255 or not features & VNNI:
        return HALF, SIGNED
    if unsigned(a) and signed(b):
        return PLAIN, UNSIGNED
    if signed(a) and unsigned(b):
        return PLAIN, SIGNED
    return FLIPPED, UNSIGNED if signed(a) else SIGNED


def unit(m: TraceWarp, name: str, type: Any, *args: Any) -> None:
    """Call one of the units."""
    m.require(f"integers.{name}")
    m.code.call(f"integers.{name}", type, *args)


def build(name: str, module: ir.Module, features: frozenset[str]) -> None:
    """Write a unit: its name without `integers.`."""
    what, *parts = name.split(".")
    type = DOT if what == "dot" else UNPACK
    code = Code(module, f"integers.{name}", type, inline="noinline")
    {"a": emit_a, "b": emit_b, "dot": emit_dot}[what](code, features, parts)
    code.b.ret_void()


# --- A, B ------------------------------------------------------------------------------------------------------------------


def emit_a(code: Code, features: frozenset[str], parts: Sequence[str]) -> None:
    """A fragment as words [m][plane][word]."""
    a, form, apart = FORMATS[parts[0]], parts[1], len(parts) > 2
    source, target = code.arguments
    even_first = [32 * row + k for row in (0, 1) for odd in (0, 1) for k in range(odd, 32, 2)]
    with code.each(code.num(SIZE // 2)) as pair:
        both = code.load(code.at(source, pair * 64), BYTES, 64)
        if apart:
            both = code.shuffle(both, both, even_first)
        made = planes_of(code, features, [both], a, form)
        for p, plane in enumerate(made):
            flat = code.b.bitcast(plane, BYTES)
            for row in (0, 1):
                half = code.shuffle(flat, flat, range(32 * row, 32 * row + 32))
                place = (pair * 2 + row) * (32 * len(made)) + 32 * p
                code.store(half, code.at(target, place), 32)


def emit_b(code: Code, features: frozenset[str], parts: Sequence[str]) -> None:
    """A fragment whose rows have so many words as words [plane][word][n]."""
    b, form, count = FORMATS[parts[0]], parts[1], int(parts[2])
    source, target = code.arguments
    columns = [code.b.bitcast(x, BYTES) for x in transposed(code, source, count)]
    for n, word in enumerate(planes_of(code, features, columns, b, form)):
        code.store(word, code.at(target, 64 * n), 64)


def transposed(code: Code, fragment: Any, count: int) -> list[Any]:
    """`count` words of each row n as as many vectors over n: each round takes even words before odd ones."""
    rows = [code.load(code.at(fragment, 64 * r), WORDS, 64) for r in range(count)]
    for _ in range(count.bit_length() - 1):
        pairs = list(zip(rows[::2], rows[1::2], strict=True))
        rows = [code.shuffle(x, y, range(h, 2 * SIZE, 2)) for h in (0, 1) for x, y in pairs]
    return rows


# --- both ------------------------------------------------------------------------------------------------------------------


def planes_of(
    code: Code, features: frozenset[str], given: Sequence[Any], f: Format, form: str
) -> list[Any]:
    """Vectors of bytes as they are stored → one plane after the other, each with as many vectors."""
    b = code.b
    low = [b.and_(x, splat8(15)) for x in given] if f.bits == 4 else list(given)
    if f.bits == 4:
        low += [b.lshr(x, splat8(4)) for x in given]
    values = [int(v) for v in f.grid] if f.bits == 4 else []
    if form != HALF:
        flip = BIAS * (form == FLIPPED)
        if values:
            return [look_up(code, features, x, [v & 255 ^ flip for v in values]) for x in low]
        return [b.xor(x, splat8(flip)) for x in low] if flip else low
    if max(values, default=0) > 255:
        tables = [[v >> shift & 255 for v in values] for shift in (0, 8)]
        wide = [[b.bitcast(look_up(code, features, x, t), HALVES) for t in tables] for x in low]
        return [
            *(b.or_(b.and_(x, splat16(255)), b.shl(y, splat16(8))) for x, y in wide),
            *(b.or_(b.lshr(x, splat16(8)), b.and_(y, splat16(0xFF00))) for x, y in wide),
        ]
    if values:
        low = [look_up(code, features, x, [v & 255 for v in values]) for x in low]
    shift = b.ashr if f.signed else b.lshr
    flat = [b.bitcast(x, HALVES) for x in low]
    eight = splat16(8)
    return [*(shift(b.shl(x, eight), eight) for x in flat), *(shift(x, eight) for x in flat)]


def splat8(x: int) -> Any:
    """A byte in all lanes."""
    return constant_vector(I8, [x] * BYTES.count)


def splat16(x: int) -> Any:
    """Likewise a half."""
    return constant_vector(I16, [x] * HALVES.count)


def look_up(code: Code, features: frozenset[str], index: Any, table: Sequence[int]) -> Any:
    """table[index] for bytes below 16."""
    for feature, name, width in (
        ("avx512bw", "llvm.x86.avx512.pshuf.b.512", 512),
        ("avx2", "llvm.x86.avx2.pshuf.b", 256),
        ("ssse3", "llvm.x86.ssse3.pshuf.b.128", 128),
    ):
        if feature in features:
            return by_width(code, name, width, BYTES, [constant_vector(I8, [*table] * 4), index])
    found = splat8(table[0])
    for n, value in enumerate(table[1:], 1):
        found = code.b.select(code.b.icmp_unsigned("==", index, splat8(n)), splat8(value), found)
    return found


# --- products --------------------------------------------------------------------------------------------------------------


def emit_dot(code: Code, features: frozenset[str], parts: Sequence[str]) -> None:
    """d = c + Σ of words of A by words of B, all of it S32 [16, 16]."""
    form, kind, words = parts[0], parts[1], int(parts[2])
    a, b, c, d = code.arguments
    left_out = None
    if form == FLIPPED:
        columns = [code.load(code.at(b, 64 * n), WORDS, 64) for n in range(words)]
        left_out = moved(code, features, columns, kind)
    rows = rows_of(features)
    with code.each(code.num(SIZE // rows)) as group:
        a, c, d = (
            code.at(x, group * (size * rows)) for x, size in ((a, 4 * words), (c, 64), (d, 64))
        )
        sums = [code.load(code.at(c, 64 * r), WORDS, 64) for r in range(rows)]
        if left_out is not None:
            sums = [code.b.add(x, left_out) for x in sums]
        for n in range(words):
            right = code.load(code.at(b, 64 * n), WORDS, 64)
            for r in range(rows):
                left = code.splat(code.load(code.at(a, 4 * (words * r + n)), I32, 4), SIZE)
                if form == HALF:
                    sums[r] = add_pairs(code, features, sums[r], left, right)
                else:
                    sums[r] = quads(code, features, sums[r], kind, left, right)
        for r, total in enumerate(sums):
            code.store(total, code.at(d, 64 * r), 64)


def rows_of(features: frozenset[str]) -> int:
    """Rows of sums that the vector registers hold."""
    return SIZE if "avx512f" in features else 4


def moved(code: Code, features: frozenset[str], columns: Sequence[Any], kind: str) -> Any:
    """What flipped bytes of A leave out, by column: ∓128 Σ b."""
    total = zero = constant_vector(I32, [0] * SIZE)
    by = constant_vector(I32, [0x40404040] * SIZE)  # 64, which is either kind
    for word in columns:
        total = quads(code, features, total, kind, by, word)
    twice = code.b.add(total, total)
    return code.b.sub(zero, twice) if kind == UNSIGNED else twice


def quads(
    code: Code, features: frozenset[str], total: Any, kind: str, left: Any, right: Any
) -> Any:
    """total + Σ of four products of bytes."""
    width = 512 if "avx512vnni" in features else 256
    unsigned, signed = (left, right) if kind == UNSIGNED else (right, left)
    name = f"llvm.x86.avx512.vpdpbusd.{width}"
    return by_width(code, name, width, WORDS, [total, unsigned, signed])


def add_pairs(code: Code, features: frozenset[str], total: Any, x: Any, y: Any) -> Any:
    """total + Σ of two products of signed halves."""
    if features & VNNI:
        width = 512 if "avx512vnni" in features else 256
        name = f"llvm.x86.avx512.vpdpwssd.{width}"
        return by_width(code, name, width, WORDS, [total, x, y])
    return code.b.add(total, pairs(code, features, x, y))


def pairs(code: Code, features: frozenset[str], x: Any, y: Any) -> Any:
    """Σ of two products of signed halves."""
    b = code.b
    baseline = {"sse2"} if code.module.triple.startswith("x86_64") else set()
    for feature, name, width in (
        ("avx512bw", "llvm.x86.avx512.pmaddw.d.512", 512),
        ("avx2", "llvm.x86.avx2.pmadd.wd", 256),
        ("sse2", "llvm.x86.sse2.pmadd.wd", 128),
    ):
        if feature in features | baseline:
            return by_width(code, name, width, WORDS, [b.bitcast(v, HALVES) for v in (x, y)])
    up = constant_vector(I32, [16] * SIZE)
    high = b.mul(*(b.ashr(v, up) for v in (x, y)))
    return b.add(b.mul(*(b.ashr(b.shl(v, up), up) for v in (x, y))), high)


def by_width(code: Code, name: str, width: int, result: Any, given: Sequence[Any]) -> Any:
    """An intrinsic for vectors of `width` bits, on vectors of 512."""
    parts = 512 // width
    made = []
    for n in range(parts):
        each = [x if parts == 1 else slice_of(code, x, n, parts) for x in given]
        type = ir.FunctionType(
            vector(result.element, result.count // parts), [x.type for x in each]
        )
        made.append(code.call(name, type, *each))
    while len(made) > 1:
        count = 2 * made[0].type.count
        made = [
            code.shuffle(x, y, range(count)) for x, y in zip(made[::2], made[1::2], strict=True)
        ]
    return made[0]


def slice_of(code: Code, x: Any, n: int, parts: int) -> Any:
    """The n-th of equal parts."""
    count = x.type.count // parts
    return code.shuffle(x, x, range(n * count, (n + 1) * count))
