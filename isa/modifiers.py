"""The suffixes of mnemonics: `.F32`, `.LT`, `.128`. Member values are the encoding and never change."""

from __future__ import annotations

from .formats import FORMATS, Format
from .formats.format import INT
from .lanes import TYPES, U8, U16, LaneType
from .operands import Modifier

FLOATS, BYTES, NIBBLES = range(3)
"""Kinds of weights of systolic units, each with products of its own."""
EACH = (1, 2, 4)
"""Multiply-accumulates of a processing element for 16 bits, by kind."""


class Typed(Modifier):
    """A suffix that stands for a lane type of the same name."""

    @property
    def lane(self) -> LaneType:
        """The lane type."""
        return TYPES[self.name]


class FloatType(Typed):
    """The type of a float instruction."""

    F32 = 0
    F64 = 1


class IntType(Typed):
    """The type of an integer instruction."""

    S32 = 0
    U32 = 1
    S64 = 2
    U64 = 3


class Half(Typed):
    """A 16-bit float type."""

    F16 = 0
    BF16 = 1


class Coded(Modifier):
    """A suffix that stands for a number format of few bits: `.S8` for i8, `.U8` for u8, `.FLINT4` for flint4."""

    @property
    def format(self) -> Format:
        """The format."""
        name = self.name.lower()
        return FORMATS[name if name in FORMATS else f"i{name[1:]}"]

    @property
    def extension(self) -> str:
        """The extension that machines with the format have, or "": integers belong to the instruction itself."""
        return "" if self.format.kind == INT else "types"


class Byte(Coded):
    """An integer of 8 bits."""

    S8 = 0
    U8 = 1


class Nibble(Coded):
    """A format of 4 bits."""

    S4 = 2
    U4 = 3
    FLINT4 = 4
    UFLINT4 = 5
    POT4 = 6
    UPOT4 = 7

    @property
    def lane(self) -> LaneType:
        """Of weights of a systolic unit, what a column has of a row: two, of neighbouring k, in a byte."""
        return U8

    @property
    def across(self) -> LaneType:
        """What a column has of a row of weights."""
        return self.lane

    @property
    def number(self) -> int:
        """Among all types of A and B of systolic commands."""
        return len(Element) + int(self)

    @property
    def kind(self) -> int:
        """Of weights."""
        return NIBBLES


class Few(Coded):
    """A format of 8 or 4 bits."""

    S8 = 0
    U8 = 1
    S4 = 2
    U4 = 3
    FLINT4 = 4
    UFLINT4 = 5
    POT4 = 6
    UPOT4 = 7


class Scalar(Typed):
    """Every type that CVT converts from or to."""

    F16 = 0
    BF16 = 1
    F32 = 2
    F64 = 3
    S8 = 4
    U8 = 5
    S16 = 6
    U16 = 7
    S32 = 8
    U32 = 9
    S64 = 10
    U64 = 11


class Bits32(Modifier):
    """The width of an operation on raw bits."""

    _32 = 0
    _64 = 1

    @property
    def lane(self) -> LaneType:
        """U32 or U64."""
        return TYPES[f"U{self}"]


class Width(Modifier):
    """The width of a memory access. Stores know no signed ones."""

    U8 = 0
    S8 = 1
    U16 = 2
    S16 = 3
    _32 = 4
    _64 = 5
    _128 = 6

    @property
    def lane(self) -> LaneType:
        """The type of each of the `words` values."""
        return TYPES.get(self.name, TYPES["U32"])

    @property
    def words(self) -> int:
        """Registers it takes."""
        return {Width._64: 2, Width._128: 4}.get(self, 1)

    @property
    def bytes(self) -> int:
        """Bytes a lane."""
        return self.words * self.lane.bits // 8


STORES = (Width.U8, Width.U16, Width._32, Width._64, Width._128)
"""The widths that a store takes."""


class Cmp(Modifier):
    """A comparison."""

    EQ = 0
    NE = 1
    LT = 2
    LE = 3
    GT = 4
    GE = 5


class MinMax(Modifier):
    """Which of two."""

    MIN = 0
    MAX = 1


class Logic(Modifier):
    """A bitwise or boolean operation."""

    AND = 0
    OR = 1
    XOR = 2


class Direction(Modifier):
    """Which way to shift."""

    L = 0
    R = 1


class Rounding(Modifier):
    """To nearest even, down (minus), up (plus), toward zero."""

    RN = 0
    RM = 1
    RP = 2
    RZ = 3


class Fn(Modifier):
    """A special function."""

    RCP = 0
    RSQ = 1
    SQRT = 2
    EX2 = 3
    LG2 = 4
    EXP = 5
    LOG = 6
    SIN = 7
    COS = 8
    TANH = 9
    ERF = 10


class Shuffle(Modifier):
    """How SHFL picks its source lane: by number, below, above, by flipping bits."""

    IDX = 0
    UP = 1
    DOWN = 2
    BFLY = 3


class Vote(Modifier):
    """Of the active lanes."""

    ALL = 0
    ANY = 1


class Trans(Modifier):
    """LDSM: as it lies in memory, or transposed."""

    N = 0
    T = 1


class Mode(Modifier):
    """A mode of the SM; in lower case it is one of `core.MODES`."""

    SIMD = 0
    SYSTOLIC = 1


class Element(Typed):
    """The type of A and B of a systolic command."""

    F16 = 0
    BF16 = 1
    F32 = 2

    @property
    def across(self) -> LaneType:
        """What a column has of a row of weights."""
        return self.lane

    @property
    def number(self) -> int:
        """Among all types of A and B, `Pair`, `Nibble` and `Beside` included."""
        return int(self)

    @property
    def kind(self) -> int:
        """Of weights."""
        return FLOATS


class Pair(Coded):
    """The type of A or B of a systolic command on integers: an element is two of them, 16 bits."""

    S8 = 0
    U8 = 1

    @property
    def lane(self) -> LaneType:
        """An element as it is stored."""
        return U16

    @property
    def across(self) -> LaneType:
        """What a column has of a row of weights."""
        return self.lane

    @property
    def number(self) -> int:
        """Among all types of A and B."""
        return len(Element) + int(self)

    @property
    def kind(self) -> int:
        """Of weights."""
        return BYTES


class Beside(Coded):
    """The type of A of a systolic command beside weights of 4 bits: an element is two bytes, as of `Pair`."""

    S8 = 0
    U8 = 1

    @property
    def lane(self) -> LaneType:
        """An element of A as it is stored."""
        return U16

    @property
    def across(self) -> LaneType:
        """What a column has of a row of weights."""
        return U8

    @property
    def number(self) -> int:
        """Among all types of A and B."""
        return len(Element) + len(Pair) + len(Nibble) + int(self)

    @property
    def kind(self) -> int:
        """Of weights."""
        return NIBBLES


class Start(Modifier):
    """LSMA: add to C as it is, or set C: begin the chain at +0."""

    ADD = 0
    SET = 1


class Space(Modifier):
    """LSMA: where C lies, in registers of the warp or in accumulator memory of the SM."""

    REG = 0
    ACC = 1


class Memory(Modifier):
    """BMENC: global memory, or shared."""

    G = 0
    S = 1


class SR(Modifier):
    """A special register: where a thread is."""

    TID_X = 0
    TID_Y = 1
    TID_Z = 2
    CTAID_X = 3
    CTAID_Y = 4
    CTAID_Z = 5
    NTID_X = 6
    NTID_Y = 7
    NTID_Z = 8
    NCTAID_X = 9
    NCTAID_Y = 10
    NCTAID_Z = 11
    LANEID = 12
    WARPID = 13


UNIFORM_SR = tuple(sr for sr in SR if not sr.name.startswith("TID") and sr is not SR.LANEID)
"""Special registers that are the same in all lanes of a warp."""
