"""What random programs do with accumulators: systolic commands, and products of condensed vectors, of whole warps.

words of accumulator memory   0 … 1023 systolic commands | 1024, 2048 a tile of each whole warp | 4096 one more of warp 0, at an immediate address
"""

from __future__ import annotations

from typing import Any

from random_operands import CALM, FREE, MINE, SCALAR, SHARED, THREADS, Operands

from knapper.isa import instructions as i
from knapper.isa.modifiers import (
    Beside,
    Bits32,
    Cmp,
    Element,
    Half,
    IntType,
    Logic,
    Mode,
    Nibble,
    Pair,
    Space,
    Start,
)
from knapper.isa.operands import Extent, Guard, Pred, Reg, Signed, Src, Unsigned, UReg

START, TILE = Reg(6), UReg(7)
"""Where values of condensed vectors lie (two registers), and where the warp's tile."""
ANYWHERE = 0x3BE
"""Bits of an address in a warp's shared memory behind which 64 bytes are left."""
RUN = 0x3F000000 | ANYWHERE
"""Of such an address, and how many values lie there."""


KINDS: list[tuple[Any, Any, Any, int]] = [
    (i.SMA_LDB, i.LSMA, Element, 16),
    (i.SMA_LDB, i.LSMA, Element, 16),
    (i.ISMA_LDB, i.ILSMA, Pair, 16),
    (i.ISMA_LDB_N, i.ILSMA_N, Beside, 32),
]
"""How weights are loaded and multiplied by, the types of what they are multiplied with, columns of a unit."""


class Products(Operands):
    """Stretches of a program."""

    def body(self, length: int) -> None:
        """Random code."""
        raise NotImplementedError

    # --- systolic commands

    def systolic(self) -> None:
        """A stretch in systolic mode: what is legal there, and bursts of commands."""
        self.emit(i.MODE(Mode.SYSTOLIC))
        self.free = CALM
        for _ in range(self.rng.randrange(1, 4)):
            self.body(3)
            self.burst()
        self.free = FREE
        self.emit(i.MODE(Mode.SIMD))

    def unless(self, cmp: Cmp, place: int, end: object) -> None:
        """Warps whose shared memory lies so go to the end."""
        self.emit(i.UISETP(cmp, IntType.U32, Pred(6), MINE, Src.of(place)))
        self.emit(lambda: i.BRA(self.at(end), guard=Guard(6)))

    def burst(self) -> None:
        """Groups of the whole warps; those with idle lanes go round."""
        end = object()
        self.unless(Cmp.GE, THREADS // 32 * SHARED, end)
        self.emit(i.ACC_ST(Extent(8), UReg(63), Signed(64), self.reg(8)))
        for _ in range(self.rng.randrange(1, 4)):
            self.group()
            for _ in range(self.rng.randrange(3)):
                self.emit(self.draw(self.rng.choice(SCALAR)))
            self.emit(i.SMA_WAIT(Unsigned(self.rng.randrange(3))))
        self.emit(i.SMA_WAIT(Unsigned(0)))
        self.emit(i.ACC_LD(Extent(8), self.reg(8), UReg(63), Signed(64)))
        self.mark(end)

    def group(self) -> None:
        """Weights, and products with them; sometimes of another type than they were loaded as, of floats, of bytes or of nibbles."""
        load, product, kinds, across = self.rng.choice(KINDS)
        types: list[Any] = list(kinds)
        type, units = self.rng.choice(types), Extent(self.rng.randrange(1, 4))
        place = (
            MINE,
            Signed(self.rng.choice([0, 4, 64])),
            Unsigned(self.rng.choice([0, 32, 36, 96])),
        )
        nibbles = load is i.ISMA_LDB_N
        self.emit(load(self.rng.choice(list(Nibble)) if nibbles else type, units, *place))
        self.emit(i.SMA_SWAP(units))
        for _ in range(self.rng.randrange(1, 3)):
            type = self.rng.choice([type, type, *types])
            space, start = self.rng.choice(list(Space)), self.rng.choice(list(Start))
            u = Extent(self.rng.randrange(1, units + 1))
            columns = u * (8 if type is Element.F32 else across)
            m = self.rng.randrange(1, (256 if space is Space.ACC else 32 * 16) // columns + 1)
            c = (
                Src.of(64 + self.rng.randrange(256 - m * columns + 1))
                if space is Space.ACC
                else None
            )
            c = c or Src.of(self.reg(-(-m * columns // 32)))
            pitch = Unsigned(self.rng.choice([0, 4, 16] if m <= 48 else [0, 4]))
            self.emit(product(type, start, space, c, u, Extent(m), MINE, place[1], pitch))
        self.emit(i.SMA_COMMIT())

    # --- products of condensed vectors

    def sparse(self) -> None:
        """Products that add to a warp's tile, between what makes bitmaps and reads the tile."""
        end, mine = object(), self.rng.random() < 0.7
        if mine:
            self.unless(Cmp.GE, THREADS // 32 * SHARED, end)
            self.emit(i.UIADD(Bits32._32, TILE, MINE, Src.of(1024)))
        else:
            self.unless(Cmp.NE, 0, end)
            self.emit(i.UMOV(TILE, Src.of(4096)))
        c = Src.of(TILE if mine else 4096)
        self.emit(i.ACC_ST(Extent(32), TILE, Signed(0), self.reg(32)))
        for _ in range(self.rng.randrange(1, 4)):
            self.vectors()
            for _ in range(self.rng.randrange(1, 4)):
                self.product(c)
            for _ in range(self.rng.randrange(3)):
                self.emit(self.draw(self.rng.choice(SCALAR)))
            count = Extent(self.rng.choice((1, 8, 32)))
            at = Signed(32 * self.rng.randrange(33 - count))
            if self.rng.random() < 0.5:
                self.emit(i.ACC_LD(count, self.reg(int(count)), TILE, at))
            elif count < 32:
                self.emit(i.ACC_ST(count, TILE, at, self.reg(int(count))))
        self.emit(i.ACC_LD(Extent(32), self.reg(32), TILE, Signed(0)))
        self.mark(end)

    def vectors(self) -> None:
        """Values lie anywhere in the warp's shared memory, in two runs."""
        for n, mask in enumerate((RUN, ANYWHERE)):
            r = Reg(START + n)
            self.emit(i.LOP(Logic.AND, Bits32._32, r, self.reg(), Src.of(mask)))
            self.emit(i.IADD(IntType.S32, r, r, Src.of(MINE)))

    def product(self, c: Src) -> None:
        """All lanes take part, or none do: what decides it is the warp's."""
        half, bm, guard = self.rng.choice(list(Half)), self.reg(), Guard(7)
        if self.rng.random() < 0.3:  # fewer bits, or more
            how, other = self.rng.choice((Logic.AND, Logic.OR)), Src.of(self.reg())
            self.emit(i.LOP(how, Bits32._32, bm, self.reg(), other))
        if self.rng.random() < 0.3:
            self.emit(i.BTST(Pred(6), self.ureg(), Src.of(self.rng.randrange(32))))
            guard = Guard(6 + 8 * self.rng.randrange(2))
        if self.rng.random() < 0.6:
            self.emit(i.SPWMMA(half, c, START, bm, guard=guard))
        for _ in range(self.rng.randrange(4)):
            k, row, column = (Unsigned(self.rng.randrange(n)) for n in (16, 4, 2))
            self.emit(i.OHMMA(half, c, START, bm, k, row, column, guard=guard))
