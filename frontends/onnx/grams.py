"""TfIdfVectorizer of integers: how often each n-gram of a pool is in a row of tokens.

    tokens  3 1 4 1 5        windows of two, one apart    3 1 │ 1 4 │ 4 1 │ 1 5
    pool    (1, 4) (3, 4)    two apart (a skip of one)    3 4 │ 1 1 │ 4 5             counts 1 1

Every window is compared with every n-gram of its length: [rows, windows, n-grams, length], all and sum.
"""

from __future__ import annotations

import numpy as np

from knapper.compiler.ir import Array, Attr
from knapper.isa.errors import FrontendError

from .builder import Builder, Call
from .forms import form


@form("TfIdfVectorizer", needs_op=False)
def _(b: Builder, call: Call) -> list[str]:
    x, pool = call.operand(0), np.array(call.integers("pool_int64s"), np.int64)
    starts, columns = call.integers("ngram_counts"), call.integers("ngram_indexes")
    least, most = call.integer("min_gram_length"), call.integer("max_gram_length")
    mode = str(call.attrs.get("mode", "TF"))
    if "pool_strings" in call.attrs or b.type(x).rank not in (1, 2):
        raise FrontendError(
            "E203", f"TfIdfVectorizer of strings, or of {b.type(x)}, is not supported"
        )

    def op(name: str, *operands: str, **attrs: Attr) -> str:
        return b.emit(name, operands, attrs, loc=call.loc)[0]

    rows = b.shape(x)[:-1]
    n, length = (rows or (1,))[0], b.shape(x)[-1]
    tokens = op("Reshape", op("Cast", x, to="i64"), shape=(n, length))
    found, which = [], []
    first = 0
    for size, (start, end) in enumerate(zip(starts, [*starts[1:], len(pool)], strict=True), 1):
        grams = pool[start:end].reshape(-1, size)
        if least <= size <= most and len(grams):
            apart = range(1, 2 if size == 1 else call.integer("max_skip_count") + 2)
            counts = [_counts(b, call, tokens, grams, step) for step in apart]
            found += [c for c in counts if c]
            which += [columns[first : first + len(grams)] for c in counts if c]
        first += len(grams)
    width = max(columns) + 1
    total = ""
    for c, places in zip(found, which, strict=True):
        spread = np.zeros((len(places), width), np.int64)
        spread[np.arange(len(places)), places] = 1
        chosen = op("Mul", op("Unsqueeze", c, axes=(2,)), b.constant(spread, "columns"))
        part = op("ReduceSum", chosen, axes=(1,), keepdims=0)
        total = op("Add", total, part) if total else part
    total = total or b.constant(np.zeros((n, width), np.int64), "none")
    if mode == "IDF":
        total = op("Cast", total, to="bool")
    y = op("Cast", total, to="f32")
    weights = call.attrs.get("weights")
    if mode != "TF" and isinstance(weights, tuple):
        each = np.ones(width, np.float32)
        each[list(columns)] = weights
        y = op("Mul", y, b.constant(each, "weights"))
    return b.emit("Reshape", [y], {"shape": (*rows, width)}, call.outputs, call.loc)


def _counts(b: Builder, call: Call, tokens: str, grams: Array, step: int) -> str:
    """How often each n-gram is there, its tokens `step` apart: [rows, n-grams]; "" if no window fits."""
    (n, length), (count, size) = b.shape(tokens), grams.shape
    windows = length - (size - 1) * step
    if windows < 1:
        return ""

    def op(name: str, *operands: str, **attrs: Attr) -> str:
        return b.emit(name, operands, attrs, loc=call.loc)[0]

    where = np.arange(windows)[:, None] + step * np.arange(size)
    seen = op("Gather", tokens, b.constant(where, "windows"), axis=1)
    seen = op("Reshape", seen, shape=(n, windows, 1, size))
    same = op(
        "Cast", op("Equal", seen, b.constant(grams.reshape(1, 1, count, size), "pool")), to="i64"
    )
    return op("ReduceSum", op("ReduceMin", same, axes=(3,), keepdims=0), axes=(1,), keepdims=0)
