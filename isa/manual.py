"""The reference manual and the frozen encoding table, both generated from the declarations.

Prose that belongs to a module is that module's docstring; only the machine's state is described here. `tests/test_isa.py` fails when
MANUAL.md or ENCODINGS.txt is stale; `pytest --bless` rewrites them. A change of an existing row of ENCODINGS.txt breaks
every image in the world: it needs a new major ISA version (`image.ISA`).
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from . import (
    asm,
    base,
    conv,
    dma,
    formats,
    functions,
    gather,
    image,
    integer_tensor,
    lanes,
    sparse,
    sparse24,
    systolic,
    tensor,
    vector_memory,
)
from .base import algebra, control, floating, integer, memory, uniform, warp
from .core import CUSTOM, OPCODE_BITS, TABLE, WORD, Instr
from .operands import Bits, Modifier

EXTENSIONS: dict[str, str] = {
    "base": "integers to 64 bits, f16, bf16, f32, f64, special functions, memory, divergence, shuffles, votes, barriers",
    "tensor": "inner-product matrix multiply-accumulate: 16-bit operands with fp32 or fp16 accumulators, 8 and 4 bits with S32",
    "sparse24": "inner products over twice the k, of weights that keep two of four elements",
    "systolic": "asynchronous matrix commands to weight-stationary arrays, floats and bytes, two modes of the SM; vector memory",
    "conv": "loads that know the image: implicit im2col",
    "async": "a DMA engine that copies to shared memory",
    "sparse": "outer products of condensed vectors: zeros on either side take no time; bitmaps",
    "gather": "products of tile-wise pruned weights on an array that is fed from vector memory",
    "types": "operands of integer products in flint and powers of two, decoded at the multipliers' edge: no instructions, but their types",
    "fusion": "bytes by weights of 4 bits in systolic arrays, at twice the multiply-accumulates of bytes by bytes",
    "custom": f"opcodes {CUSTOM[0]:#x} to {CUSTOM[-1]:#x}: no built-in instruction; plugins declare theirs here",
}
"""What an extension adds, in the order of the manual."""

FAMILIES: tuple[ModuleType, ...] = (
    control,
    uniform,
    integer,
    floating,
    memory,
    warp,
    tensor,
    integer_tensor,
    sparse24,
    systolic,
    conv,
    vector_memory,
    dma,
    sparse,
    gather,
)
"""The modules that declare instructions; each one's docstring opens its section."""

STATE = """
**A launch** runs one kernel over a grid of blocks (x, y, z). Blocks are independent. Launches of a program run one after the other;
what one wrote, the next one sees. The launch's parameters are 64-bit words in a constant bank that `ULDC` reads.

**A block** is up to 1,024 threads, 32 to a warp: thread (x, y, z) is number x + X·(y + Y·z), warp = number / 32, lane = number % 32.
Lanes of the last warp beyond the block's size are never live. A block has shared memory, zero-based, and 16 barriers.

**An SM** that has systolic units is in a mode, `simd` or `systolic`. A kernel says in which mode its blocks begin and end; launches follow each
other in matching modes, and if a kernel changes it, each SM runs at most one of the launch's blocks. Units and accumulator memory are a
block's while it runs, and hold nothing when it begins.

**A warp** has

| state | how many | what |
|---|---|---|
| `R0` … `R254` | as many as the kernel declares | 32 lanes of 32 bits; `RZ` (255) reads as zero and swallows writes |
| `UR0` … `UR62` | 63 | one 32-bit scalar a warp; `URZ` (63) reads as zero |
| `P0` … `P6` | 7 | one bit a lane; `PT` (7) is true, writing it does nothing |
| `B0` … `B15` | 16 | regions in which lanes converge |
| queue | 256 | systolic commands: groups that are pending, and commands that no COMMIT follows |
| live, active | 32 bits each | lanes that have not exited; lanes on the current path |
| stack | 32 | paths not yet taken: program counter and lanes |
| program counter | 1 | the index of an instruction in its kernel |

An operand of several registers is a row of consecutive ones that begins at a multiple of 2, from three on of 4: 64-bit types are even pairs,
low word first; `.128` accesses and 16-bit fragments take 4, fp32 fragments 8. A type under 32 bits sits in the low bits of its
register: floats and unsigned integers with zeros above, signed integers sign-extended.

**Predication.** Every instruction has a guard, `@P0` or `@!P0`. Writes, stores and predicate writes touch only the active lanes that
the guard picks. Uniform instructions take no guard and run once for the warp, whichever lanes are active.

**A source operand** is a register, a uniform register (the same value in every lane) or a 32-bit immediate. For a 64-bit integer type an
immediate is sign-extended; for F64 it is the high word of the number, the low word is zero.

**Nothing is initialised**: reading a register or memory that nothing has written is a fault in a checked run.
"""

MEMORY = """
| space | addresses | size of an address | who sees it |
|---|---|---|---|
| global | from `0x10000000` on, one flat space: read-only data, then the arena | 64 | all |
| shared | from 0 on | 32 | the block |
| accumulator | from 0 on, words; on machines that have it | 32 | the block |
| local | from 0 on | 32 | the thread |
| param | from 0 on, read-only | 24-bit constant | the launch |

A launch may declare the buffers that it reads and writes; then touching others is a fault, as is a store to read-only data. Two warps of a
block that touch one byte of shared memory with no barrier between, at least one of them writing, race: a fault in a checked run.
"""

RULES = """
- **Matrix products**, on every engine and in SIMD code: the accumulator starts at +0 (or at C); for k strictly increasing
  acc = fma(a, b, acc) with one rounding to fp32, nearest even, subnormals kept. The order is fixed, so the bits are.
- **Fused or not**: `FFMA` and `HMMA` round once a step; `FMUL` then `FADD` round twice. Nothing contracts, nothing splits.
- **NaN**: any two are equal. What reaches a register or memory is the canonical one: positive, quiet, no payload (`7fc00000` in F32).
- **-0** is kept by every operation that IEEE 754 says keeps it, and equals +0 in comparisons; `FMNMX` takes it as the smaller.
- **FMNMX** with a NaN is NaN (IEEE 754-2019 minimum and maximum), so a Relu hides none. `FSETP` with a NaN holds for `.NE` only.
- **Integers wrap.** x / 0 has all bits set, x % 0 is x, the least number / -1 is itself with remainder 0, |least| is itself.
- **Shifts** by the width or more give 0, a signed right shift the sign. The amount is an unsigned 32-bit number.
- **Conversions**: float to integer rounds as told, saturates, and takes NaN to 0; integer to integer wraps; all else rounds to nearest even.
- **Overflow** of a float gives an infinity, underflow a subnormal or zero, both silently: there are no float traps.
"""


def prose(module: ModuleType) -> str:
    """What a module says of itself."""
    return inspect.cleandoc(module.__doc__ or "")


def _rest(module: ModuleType) -> str:
    """Its prose without the first paragraph."""
    return prose(module).partition("\n\n")[2]


def manual() -> str:
    """MANUAL.md."""
    head = [
        "# The knapper instruction set",
        f"Version {image.ISA[0]}.{image.ISA[1]}. Generated by `isa/manual.py` from the declarations in `isa/`; edit those.",
        "Contents: "
        + " · ".join(f"[{name}](#{name.lower().replace(' ', '-')})" for name, _ in chapters()),
    ]
    return (
        "\n\n".join([*head, *(f"## {name}\n\n{text.strip()}" for name, text in chapters())]) + "\n"
    )


def chapters() -> Iterator[tuple[str, str]]:
    """The chapters by name."""
    yield "Machine state", STATE
    yield "Memory", MEMORY
    yield (
        "Numbers",
        f"{RULES}\nThe lane algebra, in which `execute` says what an instruction does:\n{_rest(lanes)}",
    )
    yield "Number formats", f"{_rest(formats.format)}\n\n{_formats()}"
    yield "Special functions", prose(functions)
    yield "Encoding", _encoding()
    yield "Assembly", prose(asm)
    yield "Binary", prose(image)
    for name, meaning in EXTENSIONS.items():
        yield f"Extension {name}", "\n\n".join([f"*{meaning}.*", *_families(name)])


def _encoding() -> str:
    lines = [
        f"Every instruction is {WORD} bits, little-endian in memory; bits {OPCODE_BITS - 1}:0 are the opcode, 13:10 the guard.",
        "A word with an unknown opcode, a set bit that no field has, or a field value without meaning is no instruction.",
    ]
    picture = _rest(base)
    return "\n".join(lines) + "\n\n" + textwrap.indent(picture, "    ")


def _formats() -> str:
    """A row a format."""
    rows = [
        f"| `{f}` | {f.bits} | {len(f.values)} | {f.smallest:.7g} | {least:.7g} | {f.largest:.7g} |"
        for f in formats.FORMATS.values()
        for least in [f.values[f.values > 0][0]]
    ]
    head = [
        "| format | bits | values | least | least above 0 | largest |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([*head, *rows])


def _families(extension: str) -> Iterator[str]:
    for module in FAMILIES:
        own = [
            c for c in by_opcode() if c.__module__ == module.__name__ and c.extension == extension
        ]
        if own:
            yield "\n\n".join(
                [
                    f"### {module.__name__.rpartition('.')[2].capitalize()}",
                    prose(module),
                    *map(page, own),
                ]
            )
    yield from (page(c) for c in by_opcode() if c.extension == extension and not _built_in(c))


def _built_in(cls: type[Instr]) -> bool:
    return cls.__module__ in {m.__name__ for m in FAMILIES}


def by_opcode() -> list[type[Instr]]:
    """All instructions in the order of their opcodes."""
    return [TABLE[opcode] for opcode in sorted(TABLE)]


def page(cls: type[Instr]) -> str:
    """One instruction's page."""
    names = cls.operands()
    shape = (cls.syntax or ", ".join(f"{{{n}}}" for n in names)).format(**{n: n for n in names})
    usage = f"{cls.mnemonic}{''.join(f'.<{n}>' for n in cls.modifiers())} {shape}".rstrip()
    rows = [_row(name, kind, b) for name, (kind, b) in cls.layout.items() if name != "guard"]
    table = (
        "\n".join(["| field | bits | what | use |", "|---|---|---|---|", *rows])
        if rows
        else "No fields."
    )
    facts = f"Opcode `{cls.opcode:#05x}` · unit {cls.unit} · modes {', '.join(sorted(cls.modes))}"
    facts += "".join(f" · also of extension {name}" for name in cls.also)
    return f"#### {cls.mnemonic}\n\n`{usage}`\n\n{inspect.cleandoc(cls.__doc__ or '')}\n\n{facts}\n\n{table}"


def _row(name: str, kind: Any, b: Bits) -> str:
    what = (
        " ".join(f"`.{m}`={int(m)}" for m in b.only or kind)
        if issubclass(kind, Modifier)
        else kind.__name__
    )
    if b.only and not issubclass(kind, Modifier):
        what += f": {', '.join(map(str, b.only))}"
    use = {"": "", "r": "read", "w": "written", "rw": "read, written"}[b.use]
    return f"| {name} | {_place(b)} | {what}{_words(b)} | {use} |"


def _place(b: Bits) -> str:
    return f"{b.hi}:{b.lo}" if b.width > 1 else str(b.hi)


def _words(b: Bits) -> str:
    """How many registers."""
    if b.words == 1 or not b.use:
        return ""
    spans: dict[Any, str] = {
        algebra.by_access: "1, 2 for `.64`, 4 for `.128`",
        algebra.by_width: "1, 2 for `.64`",
        systolic.tile: "m · n / 32 rounded up",
        systolic.by_count: "count",
        integer_tensor.of_b: "4, 2 for 4 bits",
        sparse.base_words: "2 for `.G`, 1 for `.S`",
    }
    count = (
        str(b.words) if isinstance(b.words, int) else spans.get(b.words, "1, 2 for a 64-bit type")
    )
    return f" × {count}"


def encodings() -> str:
    """ENCODINGS.txt: a row an instruction. A word w is that instruction if w & mask == match and every field has a meaning."""
    head = (
        f"# knapper ISA {image.ISA[0]}.{image.ISA[1]}: frozen. New rows may come, old ones stay.\n"
    )
    return head + "".join(
        f"{row}\n" for cls in by_opcode() if cls.opcode not in CUSTOM for row in _encoding_rows(cls)
    )


def _encoding_rows(cls: type[Instr]) -> Iterator[str]:
    fixed = ~cls.used & (1 << WORD) - 1 | (1 << OPCODE_BITS) - 1
    yield f"{cls.mnemonic} extension={cls.extension} mask={fixed:#034x} match={cls.opcode:#05x}"
    for name, (kind, b) in cls.layout.items():
        values = (
            f" {{{', '.join(f'{m}={int(m)}' for m in kind)}}}" if issubclass(kind, Modifier) else ""
        )
        only = f" only {', '.join(map(str, b.only))}" if b.only else ""
        yield f"    {name} {_place(b)} {kind.__name__}{values}{only}"
