"""The arithmetic of an LSMA, or a push, in vector code.

    systolic.product.f16(state, command, c)     64 rows of A at a time, widened (`patches.py`: or gathered) once for all units
      ├ systolic.pass.16(…)                         8 steps of k on 16 columns of C: 8 rows at a time, 8 multiply-adds a load and store
      └ systolic.step.16(…)                         one step: those that a push has left
        systolic.pass.16.bytes(…) and step              the same on bytes, two to a step

C in registers is just the matrix: rows of C follow each other over (register, lane). The weights of 8 steps stay in vector registers, an element
of A is broadcast by the multiply-add itself.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from llvmlite import ir

from knapper.isa.formats import Format
from knapper.isa.lanes import LaneType
from knapper.isa.modifiers import FLOATS, Beside, Element, Nibble, Pair

from .algebra import Algebra
from .emit import FLOAT, I1, I8, I16, I32, I64, PTR, VOID, Code, Num, Require, Struct, vector
from .integer_matrix import add_pairs
from .kept import LISTED, ROWS
from .layout import COMMAND, STATE
from .matrix import quiet, width_of, words
from .patches import GATHER
from .queues import CHUNK, GATHERED, PATCHES, row_words, weights

PRODUCT = ir.FunctionType(VOID, [PTR, PTR, PTR])
STREAM = ir.FunctionType(VOID, [PTR, I64, I32, I32, PTR, I64])
"""stream(source, pitch, rows, elements, target, pitch): rows of elements as words, fp32 or two S16; a multiple of 8 elements."""
PASS = ir.FunctionType(VOID, [PTR, I64, PTR, I64, PTR, I64, PTR, I64, I32])
"""pass(sums, pitch, c, pitch, weights, pitch, a, pitch, rows): c = sums + a · weights."""
STEPS = 8
"""Steps of k in one pass."""
BLOCK = 8
"""Rows of C that a pass keeps in vector registers."""


Left: TypeAlias = Element | Pair | Beside
Right: TypeAlias = Element | Pair | Nibble
"""Types of A and of B."""


def unit_of(type: Left | Right) -> str:
    """A type in the name of a unit."""
    return type.name.lower() + ".n" * isinstance(type, Beside)


def stream(element: Left | Right, require: Require) -> str:
    """The unit that widens rows."""
    name = f"systolic.stream.{element.name.lower()}"
    require(name)
    return name


def emit_stream(algebra: Algebra, type: LaneType) -> None:
    """Rows of elements as words, eight at a time."""
    code = algebra.code
    source, pitch, rows, elements, target, step = code.arguments
    size = width_of(type)
    with code.each(code.of(rows)) as r, code.each(code.of(elements) >> 3) as block:
        place = code.at(code.at(source, r.wide() * code.of(pitch)), block.wide() * (8 * size))
        raw = code.load(place, vector(I16 if size == 2 else FLOAT, 8), 4)
        wide = words(algebra, raw, type)
        code.store(wide, code.at(code.at(target, r.wide() * code.of(step)), block.wide() * 32), 32)
    code.b.ret_void()


def emit_nibbles(code: Code, format: Format) -> None:
    """Rows of bytes, two codes in each, as words by a table of all bytes."""
    source, pitch, rows, elements, target, step = code.arguments
    both = np.arange(256)[:, None] >> (0, 4) & 15
    table = format.decode(both).astype(np.int16).view(np.uint32).ravel()
    words_ = code.table(table.tolist())
    with code.each(code.of(rows)) as r, code.each(code.of(elements)) as n:
        byte = code.load(code.at(code.at(source, r.wide() * code.of(pitch)), n), I8)
        index = code.of(code.b.zext(byte, I64))
        word = code.load(code.at(words_, index * 4), I32, 4)
        code.store(word, code.at(code.at(target, r.wide() * code.of(step)), n.wide() * 4), 4)
    code.b.ret_void()


def emit_product(code: Code, element: Left, require: Require) -> None:
    """C (+)= A · W, units and columns in strips as wide as a vector, k in steps of a pass."""
    state, command = (
        Struct(code, STATE, code.arguments[0]),
        Struct(code, COMMAND, code.arguments[1]),
    )
    size = element.lane.bits // 8
    strip = 32 // size
    kind = ".bytes" * (element.kind != FLOATS)
    passes, step = f"systolic.pass.{strip}{kind}", f"systolic.step.{strip}{kind}"
    gather, widen = f"systolic.gather.{element.name.lower()}", stream(element, require)
    for name in (passes, step, gather):
        require(name)
    width = state.array_columns * 16 // element.across.bits
    pitch = (command.units * width * 4).wide()
    source = code.at(state.pointer_to("shared"), command.first)
    depth, a = (state.array_rows * 4).wide(), state.pointer_to("stream")
    listed, kept = "systolic.listed", f"systolic.kept.{size}"
    for name in (listed, kept):
        require(name)
    with code.when(command.kind == GATHERED):
        code.call(listed, LISTED, state.pointer, command.pointer)
    with code.when((command.steps == 0) & (command.fresh != 0)):  # no pass begins the chain
        nothing = [code.arguments[2], ir.Constant(I8, 0), (command.m.wide() * pitch).value]
        code.intrinsic("llvm.memset", VOID, [*nothing, ir.Constant(I1, 0)], [PTR, I64])
    with code.each((command.m + (CHUNK - 1)) // CHUNK) as chunk:
        first = (chunk * CHUNK).wide()
        rows = smaller(code, command.m - chunk * CHUNK, CHUNK)
        with code.either(command.kind == PATCHES) as (patches, plain):
            with patches:
                code.call(
                    gather, GATHER, state.pointer, command.pointer, first.value, rows.value, a
                )
            with plain, code.either(command.kind == GATHERED) as (gathered, rest):
                with gathered:
                    code.call(kept, ROWS, state.pointer, command.pointer, first.value, rows.value)
                    raw, tight = state.pointer_to("gathered"), (state.array_rows * size).wide()
                    code.call(widen, STREAM, raw, tight.value, rows.value, state.array_rows.value, a, depth.value)  # fmt: skip
                with rest:
                    place = code.at(source, first * command.pitch.wide())
                    code.call(widen, STREAM, place, command.pitch.wide().value, rows.value, state.array_rows.value, a, depth.value)  # fmt: skip
        block = code.at(code.arguments[2], first * pitch)
        with code.each(command.units) as unit, code.each(width // strip) as column:
            c = code.at(block, (unit * width + column * strip).wide() * 4)
            w = code.at(weights(code, state, unit, code.num(0)), column.wide() * (4 * strip))
            row = (row_words(state.array_columns) * 4).wide()

            def some(name: str, k: Num) -> None:
                """Steps from the k-th on."""
                fresh = ((command.fresh != 0) & (k == 0)).value
                sums = code.b.select(fresh, state.address("zeros"), c)
                stride = code.b.select(fresh, ir.Constant(I64, 0), pitch.value)
                code.call(
                    name, PASS, sums, stride, c, pitch.value, code.at(w, k.wide() * row), row.value,
                    code.at(a, k.wide() * 4), depth.value, rows.value,
                )  # fmt: skip

            whole = command.steps // STEPS
            with code.each(whole) as k:
                some(passes, k * STEPS)
            with code.each(command.steps % STEPS) as k:
                some(step, whole * STEPS + k)
    code.b.ret_void()


def smaller(code: Code, x: Num, most: int) -> Num:
    """x, but at most so much."""
    return code.of(code.b.select((x < most).value, x.value, code.num(most).value))


def emit_pass(code: Code, features: frozenset[str], n: int, steps: int, pairs: bool) -> None:
    """Steps of k for a strip of n columns, in fp32 or on pairs of S16."""
    sums, stride, c, pitch, w, row, a, depth, rows = code.arguments
    element = I32 if pairs else FLOAT
    strip = vector(element, n)
    right = [code.load(code.at(w, code.of(row) * k), strip, 4 * n) for k in range(steps)]

    def some(first: Num, count: int) -> None:
        """`count` rows of C."""
        at = [first.wide() + r for r in range(count)]
        total = [code.load(code.at(sums, r * code.of(stride)), strip, 4) for r in at]
        left = [code.at(a, r * code.of(depth)) for r in at]
        for k in range(steps):
            for r in range(count):
                one = code.splat(code.load(code.at(left[r], 4 * k), element, 4), n)
                if pairs:
                    total[r] = add_pairs(code, features, total[r], one, right[k])
                else:
                    total[r] = code.intrinsic("llvm.fma", strip, [one, right[k], total[r]])
        places = [code.at(c, r * code.of(pitch)) for r in at]
        for value, place in zip(total, places, strict=True):
            code.store(value, place, 4)
        if not pairs:
            quiet(code, total, places)

    whole_blocks = code.of(rows) // BLOCK
    with code.each(whole_blocks) as block:
        some(block * BLOCK, BLOCK)
    with code.each(code.of(rows) % BLOCK) as r:
        some(whole_blocks * BLOCK + r, 1)
    code.b.ret_void()
