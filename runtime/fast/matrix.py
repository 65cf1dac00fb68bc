"""HMMA and LDSM by hand. A fragment is row-major over (register, lane, half): as host memory it is just the matrix.

HMMA keeps the 16 rows of C in vector registers and takes each element of A from memory, where the multiply-add broadcasts it for
free. A is widened out of line on purpose: inlined, LLVM would keep it in registers and pay a shuffle for every broadcast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from knapper.isa.base.algebra import join
from knapper.isa.lanes import BF16, F16, F32, U32, LaneType
from knapper.isa.modifiers import Trans
from knapper.isa.sparse24 import KEPT, OF, shift

from ..decode import ROW
from . import accesses
from .algebra import Algebra, Traced
from .emit import (
    FLOAT,
    FULL,
    HALF,
    I8,
    I16,
    I32,
    I64,
    PTR,
    VOID,
    Code,
    Num,
    constant_vector,
    vector,
)
from .moves import counter, mover
from .trace import TraceWarp

N = 16
"""M, N and K."""
WIDEN = ir.FunctionType(VOID, [PTR, PTR])
"""void widen(fragment, scratch): 256 16-bit floats as fp32."""


def single(algebra: Algebra, half: Any, type: LaneType) -> Any:
    """A vector of 16-bit floats as fp32."""
    code, b, n = algebra.code, algebra.b, half.type.count
    if type is BF16:
        return b.bitcast(
            b.shl(b.zext(half, vector(I32, n)), constant_vector(I32, [16] * n)), vector(FLOAT, n)
        )
    if "f16c" in algebra.features:
        return b.fpext(b.bitcast(half, vector(HALF, n)), vector(FLOAT, n))
    wide = code.shuffle(half, half, [i % n for i in range(32)])
    value = algebra.single(Traced(algebra, wide, type)).v
    return code.shuffle(value, value, range(n))


def width_of(type: LaneType) -> int:
    """Bytes of an element of systolic commands: bytes come in twos."""
    return max(type.bits // 8, 2)


def words(algebra: Algebra, raw: Any, type: LaneType) -> Any:
    """A vector of elements as 32-bit words: fp32, or of two bytes each two halves."""
    b, n = algebra.b, raw.type.count
    if type.kind == "f":
        return single(algebra, raw, type) if type.bits == 16 else raw
    extend = b.sext if type.kind == "s" else b.zext
    return b.bitcast(
        extend(b.bitcast(raw, vector(I8, 2 * n)), vector(I16, 2 * n)), vector(FLOAT, n)
    )


def widen(m: TraceWarp, fragment: Any, type: LaneType) -> Any:
    """The fragment as fp32 in memory, [256]."""
    scratch = m.code.stack(4 * N * N)
    name = f"widen.{type.name.lower()}"
    m.require(name)
    m.code.call(name, WIDEN, fragment, scratch)
    return scratch


def emit_widen(algebra: Algebra, type: LaneType) -> None:
    """The body of `widen`."""
    code = algebra.code
    source, target = code.arguments
    for i in range(N):
        half = code.load(code.at(source, 2 * N * i), vector(I16, N), 32)
        code.store(single(algebra, half, type), code.at(target, 4 * N * i), 64)
    code.b.ret_void()


def multiply_add(m: TraceWarp, type: LaneType, a: Any, b: Any, c: Any) -> Any:
    """a·b + c in fp32, rounded once. A product of fp16 numbers is exact, so without FMA hardware two steps do."""
    if type is BF16 or "fma" in m.algebra.features:
        return m.code.intrinsic("llvm.fma", c.type, [a, b, c])
    return m.code.b.fadd(m.code.b.fmul(a, b), c)


def hmma(m: TraceWarp, i: Any) -> None:
    """d = a @ b + c."""
    code, t = m.code, i.type.lane
    for first, count in ((i.a, 4), (i.b, 4), (i.c, 8)):
        for r in range(count if m.checked else 0):
            m.word(first + r)
    a, b, c = widen(m, m.row(i.a), t), m.row(i.b), m.row(i.c)
    row = vector(FLOAT, N)
    sums = [code.load(code.at(c, 4 * N * r), row, 64) for r in range(N)]
    for k in range(N):
        right = single(m.algebra, code.load(code.at(b, 2 * N * k), vector(I16, N), 32), t)
        for r in range(N):
            left = code.load(code.at(a, 4 * (N * r + k)), FLOAT, 4)
            sums[r] = multiply_add(m, t, code.splat(left, N), right, sums[r])
    deliver(m, i, sums)


def hmma_sp(m: TraceWarp, i: Any) -> None:
    """d = a @ b + c over 32 k, of which each column of b has half: the others' sums stay, under a mask."""
    code, b_, t = m.code, m.code.b, i.type.lane
    for first, count in ((i.a, 8), (i.b, 4), (i.c, 8), (i.e, 1)):
        for r in range(count if m.checked else 0):
            m.word(first + r)
    a = [widen(m, m.row(i.a + n), t) for n in (0, 4)]
    b, c, e = m.row(i.b), m.row(i.c), m.row(i.e)
    sums = [code.load(code.at(c, 4 * N * r), vector(FLOAT, N), 64) for r in range(N)]
    for s in range(0, N, KEPT):
        pair = [code.load(code.at(b, 2 * N * (s + n)), vector(I16, N), 32) for n in range(KEPT)]
        which = [indices(code, e, s + n, int(i.half)) for n in range(KEPT)]
        for n in range(OF):
            first, second = (
                b_.icmp_unsigned("==", w, constant_vector(I32, [n] * N)) for w in which
            )
            kept, k = b_.or_(first, second), OF * (s // KEPT) + n
            right = single(m.algebra, b_.select(first, *pair), t)
            for r in range(N):
                left = code.load(code.at(a[k // N], 4 * (N * r + k % N)), FLOAT, 4)
                total = multiply_add(m, t, code.splat(left, N), right, sums[r])
                sums[r] = b_.select(kept, total, sums[r])
    deliver(m, i, sums)


def indices(code: Code, e: Any, s: int, half: int) -> Any:
    """Which of its four each element of row s of a compressed fragment is, from the metadata at e."""
    words = code.load(code.at(e, 4 * 8 * (s % 4)), vector(I32, N // 2), 32)
    spread = code.shuffle(words, words, [j // 2 for j in range(N)])
    shifts = constant_vector(I32, [shift(s, j, half) for j in range(N)])
    return code.b.and_(code.b.lshr(spread, shifts), constant_vector(I32, [3] * N))


def deliver(m: TraceWarp, i: Any, sums: list[Any]) -> None:
    """The rows of d, to lanes that are active."""
    code = m.code
    with code.either(m.mask == FULL) as (full, partial):
        with full:
            d = m.row(i.d)
            for r, total in enumerate(sums):
                code.store(total, code.at(d, 4 * N * r), 64)
            quiet(code, sums, [code.at(d, 4 * N * r) for r in range(N)])
        with partial:
            rows = code.stack(8 * ROW)
            for r, total in enumerate(sums):
                code.store(total, code.at(rows, 4 * N * r), 64)
            for n in range(8):
                word = Traced(m.algebra, code.load(code.at(rows, n * ROW), vector(I32), 64), U32)
                m.pending.append(
                    (
                        m.row(i.d + n),
                        m.words_of(m.algebra.bitcast(m.algebra._raw(word, F32), U32))[0],
                    )
                )
            m.flush()
    if m.checked:
        for n in range(8):
            m.mark(i.d + n)


def hmma_f16(m: TraceWarp, i: Any) -> None:
    """d = a @ b + c, rounded to fp16."""
    code = m.code
    for first in (i.a, i.b, i.c):
        for r in range(4 if m.checked else 0):
            m.word(first + r)
    a, b = widen(m, m.row(i.a), F16), m.row(i.b)
    sums = [
        single(m.algebra, code.load(code.at(m.row(i.c), 2 * N * r), vector(I16, N), 32), F16)
        for r in range(N)
    ]
    for k in range(N):
        right = single(m.algebra, code.load(code.at(b, 2 * N * k), vector(I16, N), 32), F16)
        for r in range(N):
            left = code.load(code.at(a, 4 * (N * r + k)), FLOAT, 4)
            sums[r] = multiply_add(m, F16, code.splat(left, N), right, sums[r])
    for n in range(4):
        rows = sums[4 * n : 4 * n + 4]
        low, high = (code.shuffle(rows[h], rows[h + 1], range(32)) for h in (0, 2))
        pairs = [
            m.algebra.convert(Traced(m.algebra, code.shuffle(low, high, range(h, 64, 2)), F32), F16)
            for h in (0, 1)
        ]
        m.write(i.d + n, join(*pairs))
    m.flush()


def quiet(code: Code, total: list[Any], places: list[Any]) -> None:
    """If any of the sums at some places is NaN, write the canonical one over it."""
    b, n = code.b, total[0].type.count
    nan = None
    for x, y in zip(total[::2], total[1::2] or total, strict=True):
        either = b.fcmp_unordered("uno", x, y)
        nan = either if nan is None else b.or_(nan, either)
    with code.when(code.of(b.bitcast(nan, ir.IntType(n))) != 0, likely=False):
        for value, place in zip(total, places, strict=True):
            bits = b.bitcast(value, vector(I32, n))
            canonical = constant_vector(I32, [0x7FC00000] * n)
            code.store(b.select(b.fcmp_unordered("uno", value, value), canonical, bits), place, 4)


def ldsm(m: TraceWarp, i: Any) -> None:
    """A fragment from shared memory, straight or transposed."""
    base = m.uniform_word(i.base)
    origin = base + m.record.get("slot", m.variant.slots["offset"])
    pitch = m.record.get("slot", m.variant.slots["pitch"])
    size = 4 if i.trans is Trans.N else 2
    with whole_rows(m, origin, pitch):
        if m.checked:
            ldsm_slowly(m, i, origin, pitch, size)
        else:
            ldsm_quickly(m, i, origin, pitch, size)


def ldsm_quickly(m: TraceWarp, i: Any, origin: Num, pitch: Num, size: int) -> None:
    """By whole rows if that serves."""
    code = m.code
    end = origin.wide() + pitch.wide() * (N - 1) + 2 * N
    quick = (
        (m.mask == FULL)
        & ((origin | pitch) & (size - 1) == 0)
        & (end <= m.state.shared_bytes.wide())
    )
    with code.either(quick) as (fast, slow):
        with fast:
            ldsm_fast(m, i, origin, pitch)
        with slow:
            ldsm_slowly(m, i, origin, pitch, size)


@contextmanager
def whole_rows(m: TraceWarp, origin: Num, pitch: Num) -> Iterator[None]:
    """For timing, count the wavefronts of an LDSM's rows, and not those of the loads that it is made of."""
    code, state, before = m.code, m.state, m.code.variable(0, I64)
    count = accesses.counter(code, state, m.record.pointer)
    with code.when(state.timing != 0):
        before.x = count.wavefronts
    yield
    with code.when(state.timing != 0):
        n = accesses.row_wavefronts(code, m.require, origin, pitch)
        count.wavefronts = before.x + n.wide()


def ldsm_fast(m: TraceWarp, i: Any, origin: Num, pitch: Num) -> None:
    """All lanes active, every row inside: rows are copied whole."""
    code = m.code
    host, d = code.at(m.state.pointer_to("shared"), origin), m.row(i.d)
    rows = [code.load(code.at(host, pitch.wide() * r), vector(I16, N), 2) for r in range(N)]
    for r, row in enumerate(rows if i.trans is Trans.N else transposed(code, rows)):
        code.store(row, code.at(d, 2 * N * r), 32)
    total = counter(code, m.state, m.record.pointer)
    total.smem_read = total.smem_read + 2 * N * N


def transposed(code: Code, rows: list[Any]) -> list[Any]:
    """A 16×16 transpose in four rounds of interleaving rows r and r + 8."""
    for _ in range(4):
        mixed = []
        for r in range(8):
            mixed += [
                code.shuffle(
                    rows[r], rows[r + 8], [x for j in range(h, h + 8) for x in (j, j + 16)]
                )
                for h in (0, 8)
            ]
        rows = mixed
    return rows


def ldsm_slowly(m: TraceWarp, i: Any, origin: Num, pitch: Num, size: int) -> None:
    """Lane by lane, in the order of `LDSM.execute`."""
    lane = m.lane()
    start, step = m.spread(origin, U32), m.spread(pitch, U32)
    for r in range(4):
        row, column = m.algebra.shr(lane, 3) + 4 * r, m.algebra.shl(lane & 7, 1)
        if i.trans is Trans.N:
            word = fetch(m, start + row * step + column * 2, size)
        else:
            low, high = (fetch(m, start + (column + k) * step + row * 2, size) for k in (0, 1))
            word = low | m.algebra.shl(high, 16)
        m.write(i.d + r, word)
        m.flush()


def fetch(m: TraceWarp, address: Traced, size: int) -> Traced:
    """A word of 2 or 4 bytes a lane."""
    rows = m.code.stack(ROW)
    m.move(mover("load", "shared", size, m.checked), m.mask, m.addresses(address), rows)
    return Traced(m.algebra, m.code.load(rows, vector(I32), 64), U32)
