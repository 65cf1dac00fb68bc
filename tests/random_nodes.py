"""The nodes of random models: a function writes one, or two that belong together, with operands and attributes that fit them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from random_writer import BOOL, DIMS, FLOAT, INT, INTS, Value, Writer, joint, kind

# --- elementwise --------------------------------------------------------------------------------------------------------

UNARY: tuple[tuple[str, int, Callable[[float], float]], ...] = (
    ("Sigmoid", 1, lambda b: 1.0), ("Tanh", 1, lambda b: 1.0), ("Erf", 1, lambda b: 1.0), ("Atan", 1, lambda b: 2.0),
    ("Softplus", 1, lambda b: b + 1), ("Softsign", 1, lambda b: 1.0), ("Elu", 1, lambda b: b + 1), ("Selu", 1, lambda b: 2 * b + 2),
    ("LeakyRelu", 1, lambda b: b), ("HardSigmoid", 1, lambda b: 1.0), ("HardSwish", 14, lambda b: b), ("Celu", 1, lambda b: b + 1),
    ("Mish", 18, lambda b: b), ("Gelu", 20, lambda b: b),
)  # fmt: skip


@kind(4)
def unary(w: Writer) -> None:
    op, since, bound = w.rng.choice(UNARY)
    if since <= w.opset:
        x = w.pick(bound=50)
        w.emit(op, [x], bound(x.bound))


@kind(3)
def plain(w: Writer) -> None:
    x = w.pick(w.rng.choice((FLOAT, FLOAT, *INTS)))
    op = w.rng.choice(("Abs", "Neg", "Identity") if x.dtype != FLOAT else ("Abs", "Neg", "Identity", "Relu", "Relu"))  # fmt: skip
    w.emit(op, [x], x.bound, x.exact)


@kind()
def periodic(w: Writer) -> None:
    op = w.rng.choice(("Sin", "Cos", "Exp"))
    w.emit(op, [w.pick(bound=5)], 150.0 if op == "Exp" else 1.0)


@kind()
def positive(w: Writer) -> None:
    """Functions of what is above zero: |x| + 1."""
    x = w.pick(bound=100)
    size = w.emit("Abs", [x], x.bound, x.exact)
    if size and (more := w.emit("Add", [size, w.const(np.float32([1]).reshape(()))], x.bound + 1)):
        w.emit(w.rng.choice(("Sqrt", "Log", "Reciprocal")), [more], x.bound + 1)


@kind()
def steps(w: Writer) -> None:
    if not w.smooth:
        op = w.rng.choice(("Floor", "Ceil", "Round", "Sign"))
        x = w.pick(exact=True)
        w.emit(op, [x], x.bound + 1, True)


@kind(5)
def binary(w: Writer) -> None:
    x = w.pick(w.rng.choice((FLOAT, FLOAT, FLOAT, *INTS)), bound=1e3)
    y = w.partner(x)
    op = w.rng.choice(("Add", "Sub", "Mul", "Max", "Min"))
    bound = x.bound * y.bound if op == "Mul" else x.bound + y.bound
    exact = x.exact and y.exact and not (w.smooth and op == "Mul")
    w.emit(op, [x, y] if w.flip() else [y, x], bound, exact)


@kind()
def divide(w: Writer) -> None:
    dtype = w.rng.choice((FLOAT, *INTS))
    x = w.pick(dtype, bound=1e3)
    if dtype == FLOAT:
        w.emit("Div", [x, w.weight(x.shape[-1] if x.rank else 1, positive=True)], 2 * x.bound)
    else:
        y = w.const(np.array(w.rng.choice((1, 2, 3, 7)), helper.tensor_dtype_to_np_dtype(dtype)))
        w.emit(w.rng.choice(("Div", "Mod")), [x, y], x.bound + 7, True)


@kind()
def several(w: Writer) -> None:
    x = w.pick(bound=1e3)
    xs = [x, w.partner(x), x][: w.rng.choice((1, 2, 2, 3))]
    op = w.rng.choice(("Sum", "Mean", "Max", "Min"))
    w.emit(op, xs, sum(v.bound for v in xs), op in ("Max", "Min") and all(v.exact for v in xs))


@kind()
def clip(w: Writer) -> None:
    x = w.pick()
    ends = [w.const(np.array(v, np.float32)) for v in (-1.5, 2.0)]
    operands = w.rng.choice(([x, *ends], [x, None, ends[1]], [x, ends[0]], [x]))
    w.emit("Clip", operands, x.bound + 2, x.exact)


@kind()
def prelu(w: Writer) -> None:
    x = w.pick(ranks=range(1, 5))
    w.emit("PRelu", [x, w.weight(x.shape[0], *[1] * (x.rank - 1)) if w.flip() else w.weight(1)], x.bound)  # fmt: skip


@kind(2)
def compare(w: Writer) -> None:
    if not w.smooth:
        x = w.pick(w.rng.choice((FLOAT, *INTS)), exact=True)
        y = w.partner(x)
        if y.exact:
            op = w.rng.choice(("Less", "Greater", "Equal", "LessOrEqual", "GreaterOrEqual"))
            w.emit(op, [x, y], 1, True)


@kind()
def logic(w: Writer) -> None:
    x = w.pick(BOOL)
    op = w.rng.choice(("And", "Or", "Xor", "Not"))
    w.emit(op, [x] if op == "Not" else [x, w.partner(x)], 1, True)


@kind(2)
def where(w: Writer) -> None:
    x = w.pick(w.rng.choice((FLOAT, FLOAT, INT)))
    y, dims = w.partner(x), [1 if w.flip(3) else d for d in x.shape]
    held = [v for v in w.values if v.dtype == BOOL and joint(v.shape, x.shape)]
    condition = w.rng.choice(held) if held and w.flip() else w.input(BOOL, dims)
    w.emit("Where", [condition, x, y], max(x.bound, y.bound), x.exact and y.exact)


@kind(2)
def cast(w: Writer) -> None:
    dtype = w.rng.choice((FLOAT, BOOL, *INTS))
    to = w.rng.choice((FLOAT, FLOAT, BOOL, *INTS))
    stepped = dtype == FLOAT and to != FLOAT
    if not (stepped and w.smooth):
        x = w.pick(dtype, exact=stepped)
        w.emit("Cast", [x], x.bound, x.exact, to=to)


@kind()
def quantize(w: Writer) -> None:
    """To 8 bits and back; scales are powers of two."""
    if not w.smooth:
        x = w.pick(exact=True, bound=100)
        per_axis = x.rank and w.flip()
        axis = w.axis(x) if per_axis else 0
        dims = (x.shape[axis],) if per_axis else ()
        scale = w.const(np.float32(2.0) ** -w.numbers(INT, dims).clip(0, 3).astype(np.float32))
        kind_, least = w.rng.choice(((np.uint8, 128), (np.int8, 0)))
        zero = w.const((np.abs(w.numbers(INT, dims)) + least).astype(kind_))
        more = {"axis": axis} if per_axis else {}
        if q := w.emit("QuantizeLinear", [x, scale, zero], 255, True, **more):
            w.emit("DequantizeLinear", [q, scale, zero], 300, True, **more)


# --- products, windows, norms -------------------------------------------------------------------------------------------


@kind(3)
def matmul(w: Writer) -> None:
    x = w.pick(ranks=range(1, 5), bound=100)
    k = x.shape[-1]
    fit = [v for v in w.values if v.dtype == FLOAT and v.rank > 1 and v.shape[-2] == k and v.bound <= 100]  # fmt: skip
    y = w.rng.choice(fit) if fit and w.flip() else w.weight(k, *w.shape(w.rng.choice((0, 1, 1, 1))))
    w.emit("MatMul", [x, y], x.bound * y.bound * k)


@kind(2)
def gemm(w: Writer) -> None:
    x, n = w.pick(ranks=[2], bound=100), w.rng.choice(DIMS)
    ta, tb = w.flip(), w.flip()
    m, k = x.shape[:: -1 if ta else 1]
    y = w.weight(*(n, k) if tb else (k, n))
    c = [w.weight(*w.rng.choice(((n,), (1, n), (m, 1), (m, n), ())))] if w.flip() else []
    alpha, beta = w.rng.choice((1.0, 0.5)), w.rng.choice((1.0, 2.0))
    w.emit("Gemm", [x, y, *c], x.bound * k + 2, transA=int(ta), transB=int(tb), alpha=alpha, beta=beta)  # fmt: skip


def window(w: Writer, x: Value, dilated: bool = True) -> dict[str, Any]:
    """Attributes of a window over x's space, which it fits in.

    SAME goes with strides no larger than the window: else its padding is negative, for which there are as many answers as oracles.
    """
    space = x.shape[2:]
    kernel = [w.rng.choice([k for k in (1, 2, 3, 5) if k <= d]) for d in space]
    a: dict[str, Any] = {"kernel_shape": kernel}
    if w.flip():
        a["strides"] = [w.rng.choice((1, 2, 3)) for _ in space]
    if dilated and w.flip(3):
        a["dilations"] = [2 if 2 * k - 1 <= d else 1 for k, d in zip(kernel, space, strict=True)]
    if w.flip(3):
        a["auto_pad"] = w.rng.choice(("SAME_UPPER", "SAME_LOWER", "VALID"))
        if a["auto_pad"] != "VALID":
            a.pop("dilations", None)
            a["strides"] = [min(s, k) for s, k in zip(a.get("strides", kernel), kernel, strict=True)]  # fmt: skip
    elif w.flip():
        a["pads"] = [w.rng.randrange(k) for k in (*kernel, *kernel)]
    return a


@kind(4)
def conv(w: Writer) -> None:
    x = w.pick(ranks=[3, 4, 4, 4, 5], bound=100)
    c, a = x.shape[1], window(w, x)
    group = w.rng.choice([g for g in range(1, c + 1) if c % g == 0])
    m = group * w.rng.choice((1, 2, 3) if group > 1 else DIMS)
    if w.flip(4):
        group, m = c, c
    f = w.weight(m, c // group, *a["kernel_shape"])
    bias = [w.weight(m)] if w.flip() else []
    n = c // group * int(np.prod(a["kernel_shape"]))
    w.emit("Conv", [x, f, *bias], x.bound * n, group=group, **a)


@kind(2)
def conv_transpose(w: Writer) -> None:
    x = w.pick(ranks=[3, 4, 4], bound=100, size=1 << 10)
    c, a = x.shape[1], window(w, x)
    group = w.rng.choice([g for g in (1, 2, c) if c % g == 0])
    f = w.weight(c, w.rng.choice((1, 2, 3, 7)), *a["kernel_shape"])
    if "strides" in a and "auto_pad" not in a and w.flip():
        a["output_padding"] = [w.rng.randrange(s) for s in a["strides"]]
    n = c * int(np.prod(a["kernel_shape"]))
    w.emit("ConvTranspose", [x, f], x.bound * n, group=group, **a)


@kind(3)
def pool(w: Writer) -> None:
    op = w.rng.choice(("MaxPool", "AveragePool", "MaxPool", "AveragePool", "LpPool"))
    x = w.pick(ranks=[3, 4, 4, 5], bound=1e3)
    a = window(w, x, dilated=op == "MaxPool" or w.opset >= (19 if op[0] == "A" else 18))
    if op == "AveragePool" and w.flip():
        a["count_include_pad"] = 1
    if "auto_pad" not in a and w.flip(3) and (op != "LpPool" or w.opset >= 18):
        a["ceil_mode"] = 1
    if op == "LpPool" and a.get("auto_pad") == "VALID":
        a.pop("dilations", None)  # onnxruntime's result is too large, with zeros at its ends
    w.emit(op, [x], x.bound * 9, op == "MaxPool" and x.exact, **a)


@kind()
def global_pool(w: Writer) -> None:
    x = w.pick(ranks=[3, 4, 5])
    op = w.rng.choice(("GlobalAveragePool", "GlobalMaxPool"))
    w.emit(op, [x], x.bound, op == "GlobalMaxPool" and x.exact)


@kind(3)
def norm(w: Writer) -> None:
    """Over more than one element: the norm of one is rounding, magnified."""
    x = w.pick(ranks=range(3, 5), bound=20)
    c, space = x.shape[1], int(np.prod(x.shape[2:]))
    kinds = ("Layer", "Instance", "Batch", "Group")
    op = w.rng.choice((*(f"{k}Normalization" for k in kinds), "LRN"))
    s = w.weight(c, positive=True)
    if op == "LayerNormalization" and w.opset >= 17:
        axis = w.axis(x)
        if np.prod(x.shape[axis:]) > 1:
            scale = w.weight(*x.shape[axis:], positive=True)
            w.emit(op, [x, scale, w.weight(*x.shape[axis:])] if w.flip() else [x, scale], 40, axis=axis)  # fmt: skip
    elif op == "InstanceNormalization" and space > 1:
        w.emit(op, [x, s, w.weight(c)], 40, epsilon=1e-3)
    elif op == "BatchNormalization":
        w.emit(op, [x, s, w.weight(c), w.weight(c), w.weight(c, positive=True)], 4 * x.bound)
    elif op == "GroupNormalization" and w.opset >= 21 and space > 1:
        groups = w.rng.choice([g for g in range(1, c + 1) if c % g == 0])
        w.emit(op, [x, s, w.weight(c)], 40, num_groups=groups)
    elif op == "LRN" and x.rank == 4:  # onnxruntime's is of images alone
        w.emit(op, [x], x.bound, size=w.rng.choice((1, 3, 5)))


@kind(3)
def softmax(w: Writer) -> None:
    x = w.pick(ranks=range(1, 5), bound=100)
    op = w.rng.choice(("Softmax", "Softmax", "LogSoftmax"))
    w.emit(op, [x], 1 if op == "Softmax" else 2 * x.bound + 9, axis=w.axis(x))


REDUCE = ("Sum", "Mean", "Max", "Min", "L1", "L2", "SumSquare", "LogSumExp")


@kind(3)
def reduce(w: Writer) -> None:
    dtype = w.rng.choice((FLOAT, FLOAT, FLOAT, TensorProto.INT32))
    x, op = (
        w.pick(dtype, range(1, 6), bound=50),
        w.rng.choice(REDUCE[:4] if dtype != FLOAT else REDUCE),
    )
    if dtype != FLOAT and op == "Mean":
        return
    axes = w.rng.sample(range(x.rank), w.rng.randrange(x.rank + 1))
    axes = [a - x.rank if w.flip() else a for a in axes]
    keep: dict[str, Any] = {"keepdims": w.rng.randrange(2)} if w.flip() else {}
    n = float(np.prod(x.shape))
    bound = {"Mean": x.bound, "Max": x.bound, "Min": x.bound, "SumSquare": x.bound**2 * n}.get(op, x.bound * n)  # fmt: skip
    exact = x.exact and (op in ("Max", "Min") or dtype != FLOAT)
    if not axes:
        w.emit(f"Reduce{op}", [x], bound, exact, **keep)
    elif op == "Sum" or w.opset >= 18:
        w.emit(f"Reduce{op}", [x, w.ints(*axes)], bound, exact, **keep)
    else:
        w.emit(f"Reduce{op}", [x], bound, exact, axes=axes, **keep)


@kind()
def cumsum(w: Writer) -> None:
    x = w.pick(ranks=range(1, 5), bound=100)
    axis = w.const(np.array(w.axis(x), np.int64))
    w.emit("CumSum", [x, axis], x.bound * max(x.shape), exclusive=w.rng.randrange(2), reverse=w.rng.randrange(2))  # fmt: skip


@kind(2)
def select(w: Writer) -> None:
    if w.smooth:
        return
    x = w.pick(ranks=range(1, 5), exact=True)
    axis = w.axis(x)
    if w.flip():
        more = {"keepdims": w.rng.randrange(2), "select_last_index": w.rng.randrange(2)}
        op = w.rng.choice(("ArgMax", "ArgMin"))
        w.emit(op, [x], x.shape[axis], True, axis=axis, **more)
    else:
        k = w.ints(w.rng.randrange(1, x.shape[axis] + 1))
        w.emit("TopK", [x, k], max(x.bound, x.shape[axis]), True, 2, axis=axis, largest=w.rng.randrange(2))  # fmt: skip


# --- data movement ------------------------------------------------------------------------------------------------------


def anything(w: Writer, ranks: Sequence[int] = range(6)) -> Value:
    return w.pick(w.rng.choice((FLOAT, FLOAT, FLOAT, INT, BOOL)), ranks)


@kind(3)
def reshape(w: Writer) -> None:
    x = anything(w)
    total, shape = int(np.prod(x.shape)), []
    while total > 1 and len(shape) < 4:
        d = w.rng.choice([d for d in range(1, total + 1) if total % d == 0])
        shape.append(d)
        total //= d
    shape.append(total)
    w.rng.shuffle(shape)
    if w.flip():
        shape[w.rng.randrange(len(shape))] = -1
    w.emit("Reshape", [x, w.ints(*shape)], x.bound, x.exact)


@kind()
def flatten(w: Writer) -> None:
    x = anything(w, range(1, 6))
    if w.flip():
        w.emit("Flatten", [x], x.bound, x.exact, axis=w.rng.randrange(-x.rank, x.rank + 1))
    elif w.flip():
        w.emit("Unsqueeze", [x, w.ints(w.rng.randrange(x.rank + 1))], x.bound, x.exact)
    elif ones := [i for i, d in enumerate(x.shape) if d == 1]:
        w.emit("Squeeze", [x, w.ints(w.rng.choice(ones))], x.bound, x.exact)


@kind(3)
def transpose(w: Writer) -> None:
    x = anything(w, range(1, 6))
    more = {"perm": w.rng.sample(range(x.rank), x.rank)} if not w.flip(4) else {}
    w.emit("Transpose", [x], x.bound, x.exact, **more)


@kind(2)
def slice_(w: Writer) -> None:
    x = anything(w, range(1, 6))
    axes = w.rng.sample(range(x.rank), w.rng.randrange(1, x.rank + 1))
    starts, ends, strides = [], [], []
    for a in axes:
        d, back = x.shape[a], w.flip(4)
        starts.append(w.rng.randrange(d) if not back else w.rng.choice((d + 3, -1)))
        ends.append(w.rng.choice((d, d + 5, 1 << 62, -1)) if not back else -(1 << 62))
        strides.append(w.rng.choice((1, 1, 2, 3)) * (-1 if back else 1))
    operands = [x, w.ints(*starts), w.ints(*ends), w.ints(*axes), w.ints(*strides)]
    w.emit("Slice", operands, x.bound, x.exact)


def _border(w: Writer, d: int, mode: str) -> int:
    """Negative cuts off; a reflection is no larger than what it reflects."""
    if mode == "reflect":
        return w.rng.randrange(min(3, d))
    return w.rng.randrange(-1 if mode == "constant" and d > 2 else 0, 3)


@kind(2)
def pad(w: Writer) -> None:
    x = w.pick(ranks=range(1, 5))
    mode = w.rng.choice(("constant", "constant", "edge", "reflect"))
    pads = [_border(w, d, mode) for d in (*x.shape, *x.shape)]
    value = [w.const(np.array(1.5, np.float32))] if mode == "constant" and w.flip() else []
    w.emit("Pad", [x, w.ints(*pads), *value], x.bound + 1.5, x.exact, mode=mode)


@kind(3)
def concat(w: Writer) -> None:
    x = anything(w, range(1, 6))
    axis = w.axis(x)
    rest = np.delete(x.shape, axis).tolist()
    alike = [v for v in w.values if (v.dtype, v.rank) == (x.dtype, x.rank)]
    other = [v for v in alike if np.delete(v.shape, axis).tolist() == rest]
    xs = [x, *w.rng.choices(other, k=w.rng.randrange(3))]
    w.emit("Concat", xs, max(v.bound for v in xs), all(v.exact for v in xs), axis=axis)


@kind(2)
def split(w: Writer) -> None:
    x = anything(w, range(1, 6))
    axis = w.axis(x)
    d = x.shape[axis]
    if d > 1:
        cuts = sorted(w.rng.sample(range(1, d), min(d - 1, w.rng.choice((1, 2)))))
        sizes = [b - a for a, b in zip([0, *cuts], [*cuts, d], strict=True)]
        w.emit("Split", [x, w.ints(*sizes)], x.bound, x.exact, len(sizes), axis=axis)


@kind(2)
def gather(w: Writer) -> None:
    x = anything(w, range(1, 5))
    axis = w.axis(x)
    d, dims = x.shape[axis], w.rng.choice(((), (1,), (3,), (2, 2)))
    op = w.rng.choice(("Gather", "Gather", "GatherElements"))
    shape = dims if op == "Gather" else tuple(w.rng.randrange(1, s + 1) for s in x.shape)
    rng = np.random.default_rng(w.rng.getrandbits(32))
    indices = np.asarray(rng.integers(-d, d, shape), w.rng.choice((np.int32, np.int64)))
    if w.flip():
        i = Value(w.name("in"), helper.np_dtype_to_tensor_dtype(indices.dtype), indices.shape)
        w.inputs[i.name] = indices
        w.ports.append(i)
    else:
        i = w.const(indices)
    w.emit(op, [x, i], x.bound, x.exact, axis=axis)


@kind()
def spread(w: Writer) -> None:
    x = w.pick(ranks=range(1, 5), size=1 << 8)
    if w.flip():
        w.emit("Tile", [x, w.ints(*(w.rng.choice((1, 2, 3)) for _ in x.shape))], x.bound, x.exact)
    else:
        shape = [w.rng.choice((1, 2, 3)) if d == 1 else d for d in x.shape]
        w.emit("Expand", [x, w.ints(*[2][: w.rng.randrange(2)], *shape)], x.bound, x.exact)


@kind()
def triangle(w: Writer) -> None:
    x = w.pick(ranks=range(2, 5))
    if w.opset >= 14:
        w.emit("Trilu", [x, w.const(np.array(w.rng.randrange(-2, 3), np.int64))], x.bound, x.exact, upper=w.rng.randrange(2))  # fmt: skip


@kind()
def blocks(w: Writer) -> None:
    x = w.pick(ranks=[4])
    if x.shape[1] % 4 == 0:
        w.emit("DepthToSpace", [x], x.bound, x.exact, blocksize=2, mode=w.rng.choice(("DCR", "CRD")))  # fmt: skip
    elif x.shape[2] % 2 == x.shape[3] % 2 == 0:
        w.emit("SpaceToDepth", [x], x.bound, x.exact, blocksize=2)


@kind(2)
def resize(w: Writer) -> None:
    """Nearest with factors that leave no tie, linear and cubic with any."""
    x = w.pick(ranks=[4], size=1 << 10)
    mode = w.rng.choice(("nearest", "linear", "cubic"))
    way = w.rng.choice(("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel"))
    a = {"coordinate_transformation_mode": "asymmetric" if mode == "nearest" else way}
    if mode == "nearest":
        a["nearest_mode"] = "floor"
    factors = (1, 2, 3) if mode == "nearest" else (0.5, 1, 2, 3)
    scales = [1, 1, *(w.rng.choice(factors) for _ in "hw")]
    if w.flip():
        operands = [x, None, w.const(np.array(scales, np.float32))]
    else:
        sizes = [max(1, int(d * s)) for d, s in zip(x.shape, scales, strict=True)]
        operands = [x, None, None, w.ints(*sizes)]
    w.emit("Resize", operands, 3 * x.bound, mode == "nearest" and x.exact, mode=mode, **a)
