"""The systolic extension: asynchronous matrix commands to weight-stationary arrays, as in SMA.

An SM has `systolic_units` arrays of `array_rows` × `array_columns` processing elements (8 × 16 here; in fp32 half the columns). Weights
stand still, a row of A is broadcast along each row of elements, partial sums move down: one row of C leaves a unit each cycle. Units stand side
by side: u of them hold W[8, 16 u] and compute C[m, 16 u] (+)= A[m, 8] · W.

           W of unit 0            unit 1                 A: shared memory, row r at base + offset + r · pitch
         ┌─────────────┬─────────────┐                   B: likewise, row k of W
    A[r, 0] ─▶ ▫ ▫ ▫ … ─▶ ▫ ▫ ▫ …    │                   C: registers of the warp, element (r, n) is word r · 16 u + n
    A[r, 1] ─▶ ▫ ▫ ▫ … ─▶ ▫ ▫ ▫ …    │                      over (register, lane); or accumulator memory of the SM,
         │     ↓ sums        ↓       │                      word c + r · 16 u + n
         └─────────────┴─────────────┘
              C[r, 0 … 15]  16 … 31

**Numbers.** acc = C, or +0 for `.SET`; for k = 0 … rows - 1: acc = fma(A[r, k], W[k, n], acc), rounded to fp32 at each step. The sum enters at the
array's edge, so a pass continues the chain, and two passes of eight give the bits of one HMMA. That the silicon would do so is assumed.

**Integers.** ISMA.LDB and ILSMA work on bytes, two to an element: A[m, 8] and W[8, 16 u] are of elements of 16 bits as above, each of them two
steps of k, the low byte the first. A processing element adds both products, so that a unit does twice the multiply-accumulates in the same
time, on operands of the same size: assumed, as are bytes in these arrays at all. Sums are S32, exact modulo 2^32. Bytes of A and of W are signed
or unsigned, each as its command says. A product on weights of another kind than its own, floats, bytes or nibbles, is a fault.

**Nibbles.** ISMA.LDB.N and ILSMA.N, of extension `fusion`, have bytes of A and weights of 4 bits. Multipliers are made of four of 4 bits,
as in BitFusion and ANT: a byte by a byte takes all four, a byte by a nibble two. So a unit has twice the columns, W[8, 32 u] of pairs, in the
same time, on operands of the same size; C has twice the words. Codes of flint and powers of two, which machines of extension `types` have, are
decoded at the array's edge, to base << exponent, as in ANT. All of that for these arrays is assumed.
What is not there: nibbles of A, so 4 by 4 bits take the time of 8 by 4, not half of it; nibbles behind IM2COL.IPUSH, whose weights are bytes, so a
convolution from vector memory multiplies bytes by bytes; codes of A, which are decoded where they are stored.

**Commands are asynchronous.** `SMA.LDB`, `SMA.SWAP` and `LSMA` join the warp's queue; `SMA.COMMIT` makes those since the last one a group, which the
controller takes as one transaction; `SMA.WAIT n` waits until at most n groups of the warp are pending. Until then nobody may count on
what a group does: its C is stale, and its A and B must stay as they are. The emulator executes a group at the `SMA.WAIT` or `MODE` that
completes it, reading A, B and C as they are then. So a forgotten wait gives stale numbers, and in a checked run a fault, AsyncHazard, for: reading
or writing a register that a pending LSMA writes (another LSMA may); writing shared memory that a pending command reads; accumulators likewise;
an EXIT with groups pending; a WAIT or EXIT with commands that no COMMIT follows.

**Weights.** Each unit has active and shadow weights. LDB loads the shadows, SWAP exchanges the two. Groups of different warps follow each
other in no known order, so a group brings its own weights, or uses those that its own warp loaded last; if another warp may have
loaded weights since (in the same stretch between barriers, or after its load), that is an AsyncHazard as well.

**Modes.** LSMA and SMA.* exist in systolic mode. There the arrays take the lanes of fp32, fp64 and special functions (integer division is one of
them) and the Tensor Cores: instructions on those units are illegal. Integers, predicates, conversions, loads, stores, barriers and branches run
in both. `MODE` completes the warp's groups, waits for all warps of the block as BAR does, and switches. Every instruction is
reached in one mode only, on whichever path: the verifier proves it.

A command is the whole warp's: it takes no guard, and all 32 lanes must be active.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base.algebra import nth
from .core import MODES, SYSTOLIC, Access, Instr
from .lanes import U32, LaneType, canonical, fma
from .modifiers import Beside, Element, Mode, Nibble, Pair, Space, Start
from .operands import READ, UPDATE, WRITE, Extent, Reg, Signed, Src, Unsigned, UReg, bits

LANES = 32
MOST = 192
"""Registers that C, or an accumulator transfer, takes at most."""
QUEUE = 256
"""Commands of a warp, its COMMITs included, that can be pending."""
WORD = 4
"""Rows of A and B begin at multiples of it: shared memory delivers words."""


STEP = 8
"""Rows, and fp32 columns, of a unit are a multiple of it."""
UNITS = 7
"""Units that a command can name."""
VECTOR = 8
"""Elements of a word of vector memory, on machines that have it."""
ACCUMULATORS, VECTORS = "accumulator memory", "vector memory"
"""What some machines have, and some instructions want."""


@dataclass(frozen=True)
class Array:
    """A machine's systolic units: the shape of one, for 16-bit elements, how many there are, words of accumulator memory, elements of a
    word of vector memory (0: shared memory is none), and whether they are made of no SIMD lanes."""

    rows: int = 8
    columns: int = 16
    units: int = UNITS
    accumulators: int = 0
    word: int = 0
    separate: bool = False

    @staticmethod
    def of(target: Mapping[str, Any]) -> Array:
        """From a machine description as plain data (`Machine.to_dict`); what it does not say is as above."""

        def number(key: str, otherwise: int) -> int:
            return int(target[key]["value"]) if key in target else otherwise

        return Array(
            number("array_rows", 8),
            number("array_columns", 16),
            number("systolic_units", UNITS),
            number("accumulator_bytes", 0) // WORD,
            number("vector_word", 0),
            bool(number("separate_array", 0)),
        )

    def of_block(self, words: int) -> Array:
        """With the accumulator memory of a block whose kernel says how many words it has; 0: all."""
        return replace(self, accumulators=words) if words else self

    def macs(self, i: Instr, lanes: int) -> int:
        """Multiply-accumulates of an instruction on these units, when `lanes` lanes are active."""
        own = ARRAY.rows * ARRAY.columns
        return (
            i.macs(lanes) * self.rows * self.columns // own
            if isinstance(i, LSMA)
            else i.macs(lanes)
        )

    @property
    def unfit(self) -> str:
        """Why these units are not emulated, or ""."""
        if self.rows % STEP or self.columns % (2 * STEP):
            legal = f"rows are a multiple of {STEP}, columns of {2 * STEP}"
            return f"units of {self.rows} × {self.columns}: {legal}"
        if self.word not in (0, VECTOR):
            return f"words of {self.word} elements: only {VECTOR} are emulated"
        return ""

    def refusal(self, i: Instr) -> str:
        """Why these units cannot do an instruction, or ""; others than Needy ones are not theirs."""
        if not isinstance(i, Needy):
            return ""
        if self.unfit:
            return self.unfit
        if getattr(i, "units", 0) > self.units:
            return f"the machine has {self.units} systolic units"
        if isinstance(i, LSMA) and i.space is Space.REG:
            shape, own = (self.rows, self.columns), (ARRAY.rows, ARRAY.columns)
            if shape != own:
                return "C in registers needs units of {} × {}, the machine's have {} × {}".format(
                    *own, *shape
                )
        has = {ACCUMULATORS: self.accumulators, VECTORS: self.word}
        missing = [n for n in i.needs() if not has[n]]
        return f"the machine has no {missing[0]}" if missing else ""

    def columns_of(self, type: LaneType) -> int:
        """Columns of one unit that has so much of a row in each."""
        return self.columns * 16 // type.bits


ARRAY = Array()
"""The shape that the ISA's register operands have. Others need accumulator memory."""


SOME = tuple(Extent(n) for n in range(1, UNITS + 1))


class Needy(Instr):
    """An instruction that wants more of a machine than its extension."""

    def needs(self) -> tuple[str, ...]:
        """What it wants: ACCUMULATORS, VECTORS."""
        return ()


class Command(Needy, unit="systolic"):
    """A systolic command is the warp's as a whole: it takes no guard, and all lanes must be active."""

    modes = frozenset({SYSTOLIC})

    def refusal(self) -> str:
        return f"a systolic command takes no guard, got {self.guard}" if self.guard != 7 else ""


class MODE(Command, opcode=0x120, unit="mode", extension="systolic"):
    """Switch the SM: complete the warp's groups, wait for all warps of the block, then go on in `mode`.

    A block barrier: all live lanes of all warps must come to it, as to a BAR. A switch to the mode that is on is only that.
    """

    modes = frozenset(MODES)
    mode: Mode = bits(14)

    def execute(self, m: Any) -> None:
        m.switch(self.mode)


class SMA_LDB(Command, opcode=0x121, name="SMA.LDB", extension="systolic"):
    """Shadow weights of units 0 … units - 1 = W[rows, units · columns] from shared memory; row k at base + offset + k * pitch.

    Elements of a row lie side by side: unit u's columns begin behind those of unit u - 1. Rows begin at multiples of 4.
    """

    type: Element = bits(15, 14)
    units: Extent = bits(20, 18, only=SOME)
    base: UReg = bits(63, 58, use=READ)
    offset: Signed = bits(127, 104)
    pitch: Unsigned = bits(57, 42)

    syntax = "{units}, [{base}+{offset}], {pitch}"

    def execute(self, m: Any) -> None:
        m.send(self, origin(self, m))


class SMA_SWAP(Command, opcode=0x122, name="SMA.SWAP", extension="systolic"):
    """Units 0 … units - 1 exchange active and shadow weights."""

    units: Extent = bits(20, 18, only=SOME)

    def execute(self, m: Any) -> None:
        m.send(self)


def tile(i: Any) -> int:
    """Registers that C takes: none in accumulator memory."""
    return -(-int(i.m) * width(i) // LANES) if i.space is Space.REG else 1


def width(i: Any) -> int:
    """Columns of C in registers."""
    return ARRAY.columns_of(i.type.across) * int(i.units)


class LSMA(Command, opcode=0x123, extension="systolic"):
    """C[m, n] (+)= A[m, rows] · W, with n = units · columns and the active weights W of units 0 … units - 1.

    Row r of A is `rows` elements at base + offset + r * pitch in shared memory, at multiples of 4. `.REG`: c is the first register of C, of at
    most 192; `.ACC`: c is a uniform register or an immediate, the first word of C in accumulator memory. Only `.ADD` reads C.
    """

    type: Element = bits(15, 14)
    start: Start = bits(16)
    space: Space = bits(17)
    c: Src = bits(97, 64, use=UPDATE, words=tile)
    units: Extent = bits(20, 18, only=SOME)
    m: Extent = bits(33, 21)
    base: UReg = bits(63, 58, use=READ)
    offset: Signed = bits(127, 104)
    pitch: Unsigned = bits(57, 42)

    syntax = "{c}, {units}, {m}, [{base}+{offset}], {pitch}"

    def refusal(self) -> str:
        if self.m == 0:
            return "m is 0"
        if (self.c.kind == Src.REG) != (self.space is Space.REG):
            return f"c is {'a' if self.space is Space.REG else 'no'} register for .{self.space}, not {self.c}"
        if tile(self) > MOST:
            return f"C takes {tile(self)} registers, at most {MOST}"
        return super().refusal()

    def needs(self) -> tuple[str, ...]:
        return (ACCUMULATORS,) if self.space is Space.ACC else ()

    def accesses(self) -> Iterator[Access]:
        """C is written, and read unless the chain is set; a uniform register that holds C's address is read."""
        use = {Space.ACC: READ}.get(self.space) or (WRITE if self.start is Start.SET else UPDATE)
        for access in super().accesses():
            yield replace(access, use=use) if access.field == "c" else access

    def execute(self, m: Any) -> None:
        c = int(m.uniform(self.c, U32)[0]) if self.space is Space.ACC else self.c.payload
        m.send(self, origin(self, m), c)

    def macs(self, lanes: int) -> int:
        """On units of the ISA's shape; `Array.macs` knows others."""
        return lanes * int(self.m) * ARRAY.rows * width(self) // LANES


class ISMA_LDB(SMA_LDB, opcode=0x12A, name="ISMA.LDB", extension="systolic"):
    """Shadow weights as SMA.LDB loads them, of pairs of bytes: row k holds W[2k, n] and W[2k + 1, n] side by side, for each column n."""

    type: Pair = bits(15, 14)  # type: ignore[assignment]  # another kind of elements


class ILSMA(LSMA, opcode=0x12B, extension="systolic"):
    """C[m, n] (+)= A[m, 2 · rows] · W in S32, which wraps; W as ISMA.LDB loaded it. `type` is A's: row r is 2 · rows bytes. Else as LSMA."""

    type: Pair = bits(15, 14)  # type: ignore[assignment]  # another kind of elements

    def macs(self, lanes: int) -> int:
        return 2 * super().macs(lanes)


class ISMA_LDB_N(SMA_LDB, opcode=0x12D, name="ISMA.LDB.N", extension="fusion"):
    """Shadow weights W[2 · rows, 2 · units · columns] of 4 bits; a byte of row k is W[2k, n], the low nibble, and W[2k + 1, n]. Else as SMA.LDB."""

    type: Nibble = bits(17, 14)  # type: ignore[assignment]  # another kind of elements

    def needed(self) -> str:
        return self.type.extension


class ILSMA_N(ILSMA, opcode=0x12E, name="ILSMA.N", extension="fusion"):
    """C[m, n] (+)= A[m, 2 · rows] · W in S32, which wraps, n = 2 · units · columns; W as ISMA.LDB.N loaded it. Else as ILSMA."""

    type: Beside = bits(15, 14)  # type: ignore[assignment]  # another kind of elements


class SMA_COMMIT(Command, opcode=0x124, name="SMA.COMMIT", extension="systolic"):
    """The commands since the last COMMIT become one group, which may be empty."""

    def execute(self, m: Any) -> None:
        m.commit()


class SMA_WAIT(Command, opcode=0x125, name="SMA.WAIT", extension="systolic"):
    """Wait until at most `n` groups of this warp are pending."""

    n: Unsigned = bits(33, 26)

    def execute(self, m: Any) -> None:
        m.wait(int(self.n))


class Transfer(Needy, unit="systolic"):
    """Between registers and accumulator memory, word by word, in either mode."""

    also = ("sparse",)
    count: Extent

    def needs(self) -> tuple[str, ...]:
        return (ACCUMULATORS,)

    def refusal(self) -> str:
        return "" if 1 <= self.count <= MOST else f"count is 1 to {MOST}, not {self.count}"


def by_count(i: Any) -> int:
    """Registers that a transfer moves."""
    return int(i.count)


def word_address(m: Any, base: UReg, offset: Signed, register: int) -> Any:
    """The byte address of each lane's word of a transfer's n-th register."""
    words = m.uniform(base, U32) + (int(offset) + LANES * register & 0xFFFFFFFF)
    return (words + m.lane()) * WORD


class ACC_LD(Transfer, opcode=0x126, name="ACC.LD", extension="systolic"):
    """`count` registers from d on = accumulator memory: lane l of the n-th gets word base + offset + 32 n + l."""

    count: Extent = bits(25, 18)
    d: Reg = bits(33, 26, use=WRITE, words=by_count)
    base: UReg = bits(63, 58, use=READ)
    offset: Signed = bits(127, 104)

    syntax = "{count}, {d}, [{base}+{offset}]"

    def execute(self, m: Any) -> None:
        for n in range(self.count):
            address = word_address(m, self.base, self.offset, n)
            m.write(nth(self.d, n), m.load("accumulator", address, U32)[0])


class ACC_ST(Transfer, opcode=0x127, name="ACC.ST", extension="systolic"):
    """Accumulator memory = `count` registers from s on; the inverse of ACC.LD."""

    count: Extent = bits(25, 18)
    base: UReg = bits(63, 58, use=READ)
    offset: Signed = bits(127, 104)
    s: Reg = bits(49, 42, use=READ, words=by_count)

    syntax = "{count}, [{base}+{offset}], {s}"

    def execute(self, m: Any) -> None:
        for n in range(self.count):
            address = word_address(m, self.base, self.offset, n)
            m.store("accumulator", address, [m.read(nth(self.s, n), U32)])


def origin(i: Any, m: Any) -> int:
    """The address of a command's first row in shared memory; the sum wraps."""
    return int(m.uniform(i.base, U32)[0]) + int(i.offset) & 0xFFFFFFFF


Words = NDArray[np.uint32]


def words(elements: NDArray[Any], type: Element | Pair | Nibble | Beside) -> Words:
    """What a unit makes of elements: fp32, or of pairs of bytes or nibbles both as S16, in one word."""
    if isinstance(type, Element):
        return elements.astype(np.float32).view(np.uint32)
    pairs = np.ascontiguousarray(elements)[..., None].view(np.uint8)
    if isinstance(type, Nibble):
        pairs = np.concatenate([pairs & 15, pairs >> 4], axis=-1)
    return type.format.decode(pairs).astype(np.int16).view(np.uint32)[..., 0]


def multiplied(a: Words, w: Words, c: Words, type: Element | Pair | Beside) -> Words:
    """c[m, n] + a[m, k] @ w[k, n] of such words: a chain in fp32, or S32 modulo 2^32."""
    if isinstance(type, Element):
        return chain(*(x.view(np.float32) for x in (a, w, c))).view(np.uint32)
    total = c.astype(np.int64)
    for n in (0, 1):
        x, y = (v[..., None].view(np.int16)[..., n].astype(np.int64) for v in (a, w))
        total += x @ y
    return total.astype(np.uint32)


def chain(a: NDArray[Any], w: NDArray[Any], c: NDArray[np.float32]) -> NDArray[np.float32]:
    """c[m, n] + a[m, k] @ w[k, n], k strictly increasing, each step one fused multiply-add in fp32. The operands are of one element type.

    In float64 a product is exact, and a sum that is rounded to odd there loses nothing that rounding to fp32 sees.
    """
    shape, total = c.shape, c.ravel()
    for k in range(w.shape[0]):
        left, right = (
            np.broadcast_to(x.astype(np.float32), shape).ravel() for x in (a[:, k : k + 1], w[k])
        )
        total = fma(left, right, total)
    summed: NDArray[np.float32] = canonical(total).reshape(shape)
    return summed
