"""More nodes of random models: functions with a domain, element types of all sizes, products of integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper
from random_writer import FLOAT, INT, INTS, Value, Writer, kind

HALF, DOUBLE = TensorProto.FLOAT16, TensorProto.DOUBLE
SIGNED = (TensorProto.INT8, TensorProto.INT16, *INTS)
UNSIGNED = (TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64)
NUMBERS = (FLOAT, HALF, DOUBLE, *SIGNED, *UNSIGNED)

# --- functions ----------------------------------------------------------------------------------------------------------


@kind()
def inverse(w: Writer) -> None:
    """Of what their domain is: sines, cosines, or more than one."""
    op = w.rng.choice(("Asin", "Acos", "Acosh", "Atanh", "Asinh", "Tan", "Sinh", "Cosh"))
    x = w.pick(bound=5)
    if op in ("Asinh", "Sinh", "Cosh"):
        w.emit(op, [x], 80)
    elif op == "Acosh":
        if (size := w.emit("Abs", [x], 5)) and (y := w.emit("Add", [size, w.number(1.125)], 7)):
            w.emit(op, [y], 3)
    elif (y := w.emit("Sin", [x], 1)) and (y := w.emit("Mul", [y, w.number(0.75)], 1)):
        w.emit(op, [y], 4)


@kind()
def power(w: Writer) -> None:
    x, e = w.pick(bound=5), w.rng.choice((2.0, 3.0, 1.0, 0.5, -1.0))
    if e in (2.0, 3.0, 1.0):
        exponent = w.const(np.array(e, w.rng.choice((np.float32, np.int64))))
        w.emit("Pow", [x, exponent], 125)
    elif (y := w.emit("Abs", [x], 5)) and (y := w.emit("Add", [y, w.number(1.0)], 6)):
        w.emit("Pow", [y, w.number(e)], 6)


@kind()
def thresholds(w: Writer) -> None:
    if not w.smooth:
        x = w.pick(exact=True)
        op = w.rng.choice(("Shrink", "ThresholdedRelu", "IsNaN", "IsInf", "Hardmax"))
        more: dict[str, Any] = {
            "Shrink": {"lambd": 1.5, "bias": w.rng.choice((0.0, 1.5))}, "ThresholdedRelu": {"alpha": 1.25},
            "Hardmax": {"axis": w.axis(x) if x.rank else 0},
        }.get(op, {})  # fmt: skip
        if x.rank or op != "Hardmax":
            w.emit(op, [x], x.bound + 2, True, **more)


@kind()
def newer(w: Writer) -> None:
    """Functions of newer opsets."""
    if w.opset >= 24:
        w.emit("Swish", [w.pick(bound=50)], 50, alpha=w.rng.choice((1.0, 0.5)))


# --- element types ------------------------------------------------------------------------------------------------------


@kind(3)
def other_type(w: Writer) -> None:
    """To another type, a step or two there, and back."""
    to = w.rng.choice([t for t in NUMBERS if t != FLOAT and not (w.smooth and t not in (DOUBLE, HALF))])  # fmt: skip
    x = w.pick(exact=to not in (DOUBLE, HALF), bound=100)
    if to in UNSIGNED:
        x = w.emit("Abs", [x], x.bound, x.exact) or x
    y = w.emit("Cast", [x], x.bound, x.exact, to=to)
    for _ in range(w.rng.randrange(3)):
        if y and y.bound < 100 and to not in UNSIGNED[:2]:
            y = _arithmetic(w, y) or y
    if y:
        back = w.rng.choice((FLOAT, FLOAT, *INTS)) if to not in (DOUBLE, HALF) else FLOAT
        w.emit("Cast", [y], y.bound, y.exact and to not in (HALF, DOUBLE), to=back)


def _arithmetic(w: Writer, x: Value) -> Value | None:
    other = w.input(x.dtype, [1 if w.flip(3) else d for d in x.shape])
    op = w.rng.choice(("Add", "Sub", "Mul", "Max", "Min", "Concat", "Transpose"))
    if op == "Transpose":
        return w.emit(op, [x], x.bound, x.exact)
    if op == "Concat":
        return w.emit(op, [x, x], x.bound, x.exact, axis=w.axis(x)) if x.rank else None
    bound = x.bound * 18 if op == "Mul" else x.bound + 18
    if x.dtype == TensorProto.INT8 and bound > 127:
        return None
    if x.dtype in UNSIGNED and op == "Sub":
        return None
    return w.emit(op, [x, other], bound, x.exact and x.dtype != HALF)


@kind()
def bits(w: Writer) -> None:
    x = w.pick(w.rng.choice(INTS))
    if w.opset >= 18:
        op = w.rng.choice(("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot"))
        w.emit(op, [x] if op.endswith("Not") else [x, w.partner(x)], max(16.0, 2 * x.bound + 1), True)  # fmt: skip


@kind()
def shift(w: Writer) -> None:
    dtype = w.rng.choice(UNSIGNED)
    x = w.input(dtype, w.shape())
    by = w.const(np.asarray(w.rng.randrange(4), helper.tensor_dtype_to_np_dtype(dtype)))
    y = w.emit("BitShift", [x, by], 150, True, direction=w.rng.choice(("LEFT", "RIGHT")))
    if y:
        w.emit("Cast", [y], 150, True, to=INT)


@kind()
def like(w: Writer) -> None:
    x = w.pick(w.rng.choice(INTS))
    if w.opset >= 15:
        w.emit("CastLike", [x, w.const(np.zeros(1, w.rng.choice((np.float32, np.int32))))], x.bound, x.exact)  # fmt: skip


@kind()
def remainder(w: Writer) -> None:
    x = w.pick(w.rng.choice((FLOAT, *INTS)), exact=True, bound=100)
    if not (w.smooth and x.dtype == FLOAT):
        y = w.const(np.asarray(w.rng.choice((1, 2, 3, 7)), helper.tensor_dtype_to_np_dtype(x.dtype)))  # fmt: skip
        w.emit("Mod", [x, y], 7, True, fmod=1 if x.dtype == FLOAT else w.rng.randrange(2))


# --- products -----------------------------------------------------------------------------------------------------------

EINSUM = (
    "ij,jk->ik", "bij,bjk->bik", "bij,bkj->bik", "bhid,bhjd->bhij", "ij->ji", "ij->i", "ij,ij->", "i,j->ij", "ii->i", "ij,jk,kl->il",
    "...ij,...jk->...ik", "bihd,bjhd->bhij", "bchw->bc", "bij->b", "ijk,k->ij",
)  # fmt: skip


@kind(2)
def einsum(w: Writer) -> None:
    equation = w.rng.choice(EINSUM)
    sizes: dict[str, int] = {}
    operands: list[Value | None] = []
    n = 1.0
    for term in equation.partition("->")[0].split(","):
        letters = [f".{i}" for i in range(2)] * ("..." in term) + list(term.replace("...", ""))
        for c in letters:
            sizes.setdefault(c, w.rng.choice((1, 2, 3, 4, 7)))
        operands.append(w.weight(*(sizes[c] for c in letters)) if operands else w.input(FLOAT, [sizes[c] for c in letters]))  # fmt: skip
        n *= 4
    w.emit("Einsum", operands, n * float(np.prod(list(sizes.values()))), equation=equation)


@kind()
def integer_products(w: Writer) -> None:
    """8 bits times 8 bits. Zero points are even: onnxruntime adds them before it rounds to even, ONNX's text after."""
    kinds = [w.rng.choice((np.uint8, np.int8)) for _ in range(2)]
    m, k, n = (w.rng.choice((1, 2, 3, 8, 17)) for _ in range(3))
    a = w.input(helper.np_dtype_to_tensor_dtype(np.dtype(kinds[0])), [2, m, k])
    b = w.const(w.numbers(helper.np_dtype_to_tensor_dtype(np.dtype(kinds[1])), [k, n]))
    zeros = [w.const(np.asarray(2 * w.rng.randrange(3), t)) for t in kinds]
    if w.flip():
        w.emit("MatMulInteger", [a, b, *zeros], 400 * k, True)
    elif not w.smooth:
        s = w.number(0.25)
        if y := w.emit("QLinearMatMul", [a, s, zeros[0], b, s, zeros[1], w.number(2.0), zeros[0]], 255, True):  # fmt: skip
            w.emit("DequantizeLinear", [y, w.number(2.0), zeros[0]], 512, True)


@kind()
def integer_convolutions(w: Writer) -> None:
    """u8 images, weights of either sign."""
    c, m, size = w.rng.choice((1, 3, 4)), w.rng.choice((1, 4, 7)), w.rng.choice((4, 7, 8))
    dtype = w.rng.choice((np.uint8, np.int8))
    x = w.input(TensorProto.UINT8, [1, c, size, size])
    f = w.const(w.numbers(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), [m, c, 3, 3]))
    zero, zf = w.const(np.asarray(2 * w.rng.randrange(3), np.uint8)), w.const(np.asarray(0, dtype))
    a = {"pads": [1, 1, 1, 1]} if w.flip() else {}
    if w.flip():
        w.emit("ConvInteger", [x, f, zero, *([zf] if w.flip() else [])], 3000 * c, True, **a)
    elif not w.smooth:
        s, t = w.number(0.25), w.number(8.0)
        bias = [w.const(w.numbers(TensorProto.INT32, [m]))] if w.flip() else []
        if y := w.emit("QLinearConv", [x, s, zero, f, s, zf, t, zero, *bias], 255, True, **a):
            w.emit("DequantizeLinear", [y, t, zero], 2048, True)


@kind()
def blocks_of_scales(w: Writer) -> None:
    """Weights of 8 bits with a scale a block, dequantized; a product reads them."""
    if w.opset >= 21:
        k, n, block = w.rng.choice((4, 8, 16)), w.rng.choice((3, 8)), w.rng.choice((2, 4))
        q = w.const(w.numbers(TensorProto.INT8, [k, n]))
        scale = w.const(np.exp2(-np.abs(w.numbers(INT, [k // block, n]).clip(-3, 3)).astype(np.float32)))  # fmt: skip
        zero = [w.const(w.numbers(TensorProto.INT8, [k // block, n]))] if w.flip() else []
        if f := w.emit("DequantizeLinear", [q, scale, *zero], 20, True, axis=0, block_size=block):
            w.emit("MatMul", [w.input(FLOAT, [w.rng.choice((1, 5)), k]), f], 80 * k)


@kind()
def dynamic(w: Writer) -> None:
    """Quantized by its own range; only the values back, since a tie may fall either way in 16 bits."""
    if not w.smooth and w.opset >= 11:
        x = w.pick(exact=True, bound=100)
        names = [w.name() for _ in range(3)]
        w.add("DynamicQuantizeLinear", [x], [
            Value(names[0], TensorProto.UINT8, x.shape, 255, True), Value(names[1], FLOAT, (), x.bound),
            Value(names[2], TensorProto.UINT8, (), 255, True),
        ])  # fmt: skip


@kind()
def running(w: Writer) -> None:
    """Products so far: of few elements, that are not large."""
    x = w.pick(ranks=range(1, 4), bound=4, size=64)
    axis = w.rng.randrange(x.rank)
    if w.opset >= 26 and x.shape[axis] < 5:
        more = {"exclusive": w.rng.randrange(2), "reverse": w.rng.randrange(2)}
        w.emit("CumProd", [x, w.const(np.array(axis, np.int64))], 256, **more)


@kind()
def logarithm_of_sums(w: Writer) -> None:
    x = w.pick(ranks=range(1, 4), bound=50)
    axis = w.rng.randrange(x.rank)
    if (size := w.emit("Abs", [x], x.bound)) and (y := w.emit("Add", [size, w.number(1.0)], 51)):
        more: dict[str, Any] = {"axes": [axis]} if w.opset < 18 else {}
        w.emit("ReduceLogSum", [y] if more else [y, w.ints(axis)], 9, keepdims=w.rng.randrange(2), **more)  # fmt: skip
