"""More nodes of random models: recurrent layers, transformers', detectors', values at places, subgraphs."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import GraphProto, helper
from random_writer import BOOL, DIMS, FLOAT, INT, Value, Writer, kind

# --- recurrent and transformers -----------------------------------------------------------------------------------------


@kind(2)
def recurrent(w: Writer) -> None:
    op, gates = w.rng.choice((("LSTM", 4), ("GRU", 3), ("RNN", 1)))
    length, batch, size, hidden = (w.rng.choice(c) for c in ((1, 2, 5), (1, 3), (1, 4, 9), (1, 4, 8)))  # fmt: skip
    direction = w.rng.choice(("forward", "reverse", "bidirectional"))
    d = 2 if direction == "bidirectional" else 1
    x = w.input(FLOAT, [length, batch, size])
    operands: list[Value | None] = [x, w.weight(d, gates * hidden, size), w.weight(d, gates * hidden, hidden)]  # fmt: skip
    operands.append(w.weight(d, 2 * gates * hidden) if w.flip() else None)
    lengths = np.asarray([w.rng.randrange(1, length + 1) for _ in range(batch)], np.int32)
    operands.append(w.const(lengths) if w.flip(4) else None)
    if w.flip():
        operands += [w.weight(d, batch, hidden) for _ in range(2 if op == "LSTM" else 1)]
    while operands[-1] is None:
        operands.pop()
    more: dict[str, Any] = {"hidden_size": hidden, "direction": direction}
    if op == "GRU":
        more["linear_before_reset"] = w.rng.randrange(2)
    if op == "LSTM" and len(operands) == 7 and w.flip():
        operands.append(w.weight(d, 3 * hidden))
    w.emit(op, operands, 1, False, w.rng.choice((1, 2, 3) if op == "LSTM" else (1, 2)), **more)


@kind(2)
def attention(w: Writer) -> None:
    if w.opset < 23:
        return
    batch, heads, q, k, d = (w.rng.choice(c) for c in ((1, 2), (2, 4), (1, 3, 8), (1, 4, 8), (2, 8)))  # fmt: skip
    shared = w.rng.choice((1, heads, heads // 2))
    flat = w.flip()
    shapes = [(batch, n, h * d) if flat else (batch, h, n, d) for n, h in ((q, heads), (k, shared), (k, shared))]  # fmt: skip
    operands: list[Value | None] = [w.input(FLOAT, s) for s in shapes]
    more: dict[str, Any] = {"q_num_heads": heads, "kv_num_heads": shared} if flat else {}
    if w.flip():
        more["is_causal"] = 1
    elif w.flip():
        operands.append(w.weight(q, k))
    if w.flip(4):
        more["scale"] = 0.5
    if w.flip(4):
        more["softcap"] = 2.0
    w.emit("Attention", operands, 4, **more)


@kind()
def root_mean_square(w: Writer) -> None:
    if w.opset >= 23:
        x = w.pick(ranks=range(2, 5), bound=20)
        axis = w.axis(x)
        if np.prod(x.shape[axis:]) > 1:
            w.emit("RMSNormalization", [x, w.weight(*x.shape[axis:], positive=True)], 40, axis=axis, epsilon=1e-3)  # fmt: skip


@kind()
def rotary(w: Writer) -> None:
    if w.opset >= 23:
        b, h, s, d = (w.rng.choice(c) for c in ((1, 2), (1, 3), (1, 5), (4, 8)))
        x = w.input(FLOAT, [b, h, s, d])
        waves = [w.weight(s + 2, d // 2) for _ in range(2)]
        at = w.const(np.asarray([[w.rng.randrange(s + 2) for _ in range(s)] for _ in range(b)], np.int64))  # fmt: skip
        w.emit("RotaryEmbedding", [x, *waves, at], 16, interleaved=w.rng.randrange(2))


@kind()
def more_norms(w: Writer) -> None:
    x = w.pick(ranks=[3, 4], bound=20)
    if w.flip():
        w.emit("LpNormalization", [x], 1, axis=w.axis(x), p=w.rng.choice((1, 2)))
    elif np.prod(x.shape[2:]) * x.shape[0] > 1:
        w.emit("MeanVarianceNormalization", [x], 40)


# --- places -------------------------------------------------------------------------------------------------------------


def indices(w: Writer, a: np.ndarray[Any, Any]) -> Value:
    """Known when compiling, or an input."""
    return w.given(a.astype(np.int64)) if w.flip() else w.const(a.astype(np.int64))


def some(w: Writer, high: int, *shape: int) -> np.ndarray[Any, Any]:
    """Random numbers below `high`."""
    return np.random.default_rng(w.rng.getrandbits(32)).integers(0, high, shape)


@kind(2)
def scatter(w: Writer) -> None:
    """Along an axis; where indices meet, only sums and extremes have one answer."""
    x = w.pick(ranks=range(1, 5))
    axis = w.axis(x)
    ways = ["none", *(["add", "mul"] if w.opset >= 16 else []), *(["max", "min"] if w.opset >= 18 else [])]  # fmt: skip
    reduction = w.rng.choice(ways)
    shape = [w.rng.randrange(1, d + 1) for d in x.shape]
    if reduction == "none":
        where = np.argsort(np.random.default_rng(w.rng.getrandbits(32)).random(x.shape), axis)
        where = where[tuple(slice(0, d) for d in shape)]
    else:
        where = some(w, x.shape[axis], *shape) - (x.shape[axis] if w.flip() else 0)
    update = w.input(FLOAT, shape)
    more = {} if reduction == "none" else {"reduction": reduction}
    exact = x.exact and reduction not in ("add", "mul")
    w.emit("ScatterElements", [x, indices(w, where), update], x.bound * 4 + 40, exact, axis=axis, **more)  # fmt: skip


@kind(2)
def places(w: Writer) -> None:
    """GatherND and ScatterND."""
    x = w.pick(ranks=range(1, 5), size=1 << 10)
    depth = w.rng.randrange(1, x.rank + 1)
    rows = w.rng.choice((1, 2, 4))
    if w.flip():
        batch = w.rng.randrange(min(depth, 2))
        lead = x.shape[:batch]
        where = np.stack([some(w, d, *lead, rows) for d in x.shape[batch:depth]], -1)
        w.emit("GatherND", [x, indices(w, where)], x.bound, x.exact, batch_dims=batch)
        return
    flat = w.rng.sample(range(int(np.prod(x.shape[:depth]))), min(rows, int(np.prod(x.shape[:depth]))))  # fmt: skip
    where = np.stack(np.unravel_index(flat, x.shape[:depth]), -1)
    update = w.input(FLOAT, (len(flat), *x.shape[depth:]))
    more = {"reduction": w.rng.choice(("add", "mul"))} if w.opset >= 16 and w.flip() else {}
    w.emit("ScatterND", [x, indices(w, where), update], 4 * x.bound + 4, x.exact and not more, **more)  # fmt: skip


@kind()
def cache(w: Writer) -> None:
    """Rows that go behind, or around, those that are there."""
    if w.opset >= 24:
        b, n, length, d = (w.rng.choice(c) for c in ((1, 2), (1, 3), (4, 8), (2, 5)))
        past, update = w.input(FLOAT, [b, n, length, d]), w.input(FLOAT, [b, n, 2, d])
        at = indices(w, some(w, length - 2, b))
        w.emit("TensorScatter", [past, update, at], 4, True, mode=w.rng.choice(("linear", "circular")))  # fmt: skip


@kind()
def one_hot(w: Writer) -> None:
    depth = w.rng.choice((2, 3, 7))
    i = indices(w, some(w, depth, *w.shape(w.rng.choice((1, 2)))))
    ends = w.const(np.float32([0.5, 2]))
    w.emit("OneHot", [i, w.const(np.array(depth, np.int64)), ends], 2, True, axis=w.rng.choice((-1, 0, 1)))  # fmt: skip


@kind()
def reverse(w: Writer) -> None:
    x = w.pick(ranks=[2, 3])
    lengths = w.const(1 + some(w, x.shape[0], x.shape[1]))
    w.emit("ReverseSequence", [x, lengths], x.bound, x.exact, time_axis=0, batch_axis=1)


@kind()
def crop(w: Writer) -> None:
    x = w.pick(ranks=range(1, 5))
    if w.opset >= 18:
        w.emit("CenterCropPad", [x, w.ints(*(w.rng.choice(DIMS[:8]) for _ in x.shape))], x.bound, x.exact)  # fmt: skip


@kind()
def filled(w: Writer) -> None:
    """From a shape that is computed when compiling."""
    if w.opset < 9:
        return
    x = w.pick(ranks=range(1, 4))
    names = [w.name() for _ in range(2)]
    shape = Value(names[0], INT, (x.rank,), 40, True)
    w.add("Shape", [x], [shape])
    value = helper.make_tensor("", FLOAT, [1], [1.5])
    full = Value(names[1], FLOAT, x.shape, 1.5, True)
    w.add("ConstantOfShape", [shape], [full], value=value)
    w.emit("Add", [x, full], x.bound + 2, x.exact)
    if x.rank == 2:
        eye = w.emit("EyeLike", [x], 1, True, dtype=FLOAT, k=w.rng.choice((-1, 0, 1)))
        w.emit("Mul", [x, eye], x.bound, x.exact)


@kind()
def indexed_pool(w: Writer) -> None:
    """MaxPool says where its values were; MaxUnpool puts them back."""
    if not w.smooth and w.opset >= 9:
        x = w.input(FLOAT, [1, w.rng.choice((1, 3)), 8, 8])
        n = w.rng.choice((2, 3))
        names = [w.name() for _ in range(2)]
        shape = (*x.shape[:2], *((d - n) // n + 1 for d in x.shape[2:]))
        y, i = Value(names[0], FLOAT, shape, 4, True), Value(names[1], INT, shape, 1e9, True)
        w.add("MaxPool", [x], [y, i], kernel_shape=[n, n], strides=[n, n])
        if w.flip():
            w.emit("MaxUnpool", [y, i], 4, True, kernel_shape=[n, n], strides=[n, n])


@kind()
def sampled(w: Writer) -> None:
    """Values at places between pixels."""
    if w.opset >= 16:
        x = w.input(FLOAT, [w.rng.choice((1, 2)), w.rng.choice((1, 3)), 5, 6])
        grid = w.const(w.numbers(FLOAT, [x.shape[0], 3, 4, 2]) / 3)
        names = ("linear", "cubic") if w.opset >= 20 else ("bilinear", "bicubic")
        padding = w.rng.choice(("zeros", "border", "reflection"))
        w.emit("GridSample", [x, grid], 16, mode=w.rng.choice(names), padding_mode=padding, align_corners=w.rng.randrange(2))  # fmt: skip


@kind()
def deformed(w: Writer) -> None:
    """A convolution whose taps are moved."""
    if w.opset >= 19:
        c, parts, group, size = w.rng.choice(
            ((1, 1, 1, 5), (2, 2, 1, 4), (4, 2, 2, 6), (4, 1, 4, 5))
        )
        x, k = w.input(FLOAT, [w.rng.choice((1, 2)), c, size, size]), w.rng.choice((1, 2, 3))
        stride, pad, step = w.rng.choice((1, 2)), w.rng.choice((0, 1)), w.rng.choice((1, 1, 2))
        out = (size + 2 * pad - (k - 1) * step - 1) // stride + 1
        if out > 0:
            moved = w.input(FLOAT, [x.shape[0], parts * k * k * 2, out, out])
            f, bias = (
                w.weight(2 * group, c // group, k, k),
                w.weight(2 * group) if w.flip() else None,
            )
            mask = w.weight(x.shape[0], parts * k * k, out, out) if w.flip() else None
            a = {
                "strides": [stride] * 2,
                "pads": [pad] * 4,
                "dilations": [step] * 2,
                "kernel_shape": [k, k],
            }
            operands = (
                [x, f, moved, bias, mask]
                if mask
                else [x, f, moved, bias]
                if bias
                else [x, f, moved]
            )
            w.emit("DeformConv", operands, 64 * k * k, group=group, offset_group=parts, **a)


@kind()
def regions(w: Writer) -> None:
    if w.opset >= 16:
        x = w.input(FLOAT, [2, w.rng.choice((1, 3)), 8, 8])
        low = np.abs(w.numbers(FLOAT, [3, 2]))
        rois = w.const(np.concatenate([low, low + 1 + np.abs(w.numbers(FLOAT, [3, 2]))], 1))
        batch = w.const(some(w, 2, 3))
        more = {"output_height": w.rng.choice((1, 2, 3)), "output_width": 2, "sampling_ratio": w.rng.choice((0, 1, 2))}  # fmt: skip
        w.emit("RoiAlign", [x, rois, batch], 8, mode="avg", spatial_scale=w.rng.choice((1.0, 0.5)), **more)  # fmt: skip


@kind()
def boxes(w: Writer) -> None:
    """The number of its rows is the data's: an output, that nothing reads."""
    if not w.smooth and w.opset >= 10:
        n, classes = w.rng.choice((4, 9)), w.rng.choice((1, 2))
        low = w.numbers(FLOAT, [1, n, 2])
        corners = w.given(np.concatenate([low, low + 1 + np.abs(w.numbers(FLOAT, [1, n, 2]))], -1))
        scores = w.given((some(w, 1000, 1, classes, n) / 1000).astype(np.float32))
        limits = [w.const(np.array([w.rng.choice((1, 3, 20))], np.int64)), w.const(np.float32([0.4])), w.const(np.float32([0.2]))]  # fmt: skip
        w.final("NonMaxSuppression", [corners, scores, *limits[: w.rng.choice((1, 2, 3))]], INT, ("n", 3))  # fmt: skip


@kind()
def chosen(w: Writer) -> None:
    """As many rows as the data decides, once more."""
    if w.smooth:
        return
    x = w.pick(exact=True, ranks=range(1, 4), size=256)
    op = w.rng.choice(("NonZero", "Compress", "Unique"))
    if op == "NonZero":
        w.final(op, [x], INT, (x.rank, "n"))
    elif op == "Compress":
        axis = w.rng.randrange(x.rank)
        shape = tuple("n" if i == axis else d for i, d in enumerate(x.shape))
        w.final(op, [x, w.given(w.numbers(BOOL, [x.shape[axis]]))], FLOAT, shape, axis=axis)
    elif w.flip():
        w.final(op, [x], FLOAT, ("n",), sorted=w.rng.randrange(2))
    else:
        axis = w.rng.randrange(x.rank)
        shape = tuple("n" if i == axis else d for i, d in enumerate(x.shape))
        w.final(op, [x], FLOAT, shape, axis=axis)


@kind()
def transform(w: Writer) -> None:
    if w.opset >= 20:
        x = w.input(FLOAT, [1, w.rng.choice((2, 5, 8)), 1])
        w.emit("DFT", [x, None, w.const(np.array(1, np.int64))], 64, onesided=w.rng.randrange(2))
    elif w.opset >= 17:
        x = w.input(FLOAT, [1, w.rng.choice((2, 5, 8)), 1])
        w.emit("DFT", [x], 64, axis=1, onesided=w.rng.randrange(2))
    if w.opset >= 17:
        signal, step = w.input(FLOAT, [1, 16, 1]), w.const(np.array(w.rng.choice((2, 4)), np.int64))
        window = w.const(np.abs(w.numbers(FLOAT, [8])))
        w.emit("STFT", [signal, step, window], 128, onesided=w.rng.randrange(2))


@kind()
def columns(w: Writer) -> None:
    if w.opset >= 18:
        x = w.input(FLOAT, [1, 4 * w.rng.choice((1, 3)), 16])
        w.emit("Col2Im", [x, w.ints(5, 5), w.ints(2, 2)], 16)


@kind()
def determinant(w: Writer) -> None:
    n = w.rng.choice((1, 2, 3))
    w.emit("Det", [w.input(FLOAT, [*w.shape(1), n, n])], 400)


@kind()
def products_of_all(w: Writer) -> None:
    x = w.pick(ranks=range(1, 4), bound=4, size=64)
    axis = w.rng.randrange(x.rank)
    if x.shape[axis] < 6:
        more: dict[str, Any] = {"axes": [axis]} if w.opset < 18 else {}
        operands = [x] if more else [x, w.ints(axis)]
        w.emit("ReduceProd", operands, 4.0 ** x.shape[axis], keepdims=w.rng.randrange(2), **more)


@kind()
def antialiased(w: Writer) -> None:
    """Resize with the attributes of opset 18."""
    x = w.pick(ranks=[4], size=1 << 10)
    if w.opset >= 18:
        sizes = w.ints(*(max(1, d * w.rng.choice((1, 2, 3)) // 2) for d in x.shape[2:]))
        mode = w.rng.choice(("linear", "cubic"))
        w.emit("Resize", [x, None, None, sizes], 3 * x.bound, mode=mode, axes=[2, 3], antialias=w.rng.randrange(2))  # fmt: skip


@kind()
def nearest(w: Writer) -> None:
    """Halves, doubles and triples: no coordinate is close to a tie by rounding alone."""
    x = w.pick(ranks=[3, 4], size=1 << 10)
    scales = [1.0, 1.0, *(w.rng.choice((0.5, 2.0, 4.0)) for _ in x.shape[2:])]
    way = w.rng.choice(("half_pixel", "asymmetric"))
    mode = w.rng.choice(("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"))
    more = {"coordinate_transformation_mode": way, "nearest_mode": mode}
    w.emit("Resize", [x, None, w.const(np.float32(scales))], x.bound, x.exact, mode="nearest", **more)  # fmt: skip


# --- subgraphs ----------------------------------------------------------------------------------------------------------


def body(name: str, nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> GraphProto:
    """A graph inside a node; (name, element type, shape) each."""
    infos = [[helper.make_tensor_value_info(*v) for v in vs] for vs in (inputs, outputs)]
    return helper.make_graph(nodes, name, *infos)


@kind()
def loop(w: Writer) -> None:
    """A few turns of x = tanh(x) · c, each of them kept; c is the enclosing graph's."""
    x, c = w.pick(ranks=range(4), bound=50), w.weight(1)
    if not x.rank:
        return
    n, a = w.rng.randrange(1, 5), w.name("b")
    turn = body("turn", [
        helper.make_node("Tanh", [f"{a}x"], [f"{a}t"]), helper.make_node("Mul", [f"{a}t", c.name], [f"{a}y"]),
        helper.make_node("Identity", [f"{a}y"], [f"{a}z"]), helper.make_node("Identity", [f"{a}c"], [f"{a}d"]),
    ], [(f"{a}i", INT, []), (f"{a}c", BOOL, []), (f"{a}x", FLOAT, x.shape)],
       [(f"{a}d", BOOL, []), (f"{a}y", FLOAT, x.shape), (f"{a}z", FLOAT, x.shape)])  # fmt: skip
    names = [w.name() for _ in range(2)]
    made = [Value(names[0], FLOAT, x.shape, 1, False), Value(names[1], FLOAT, (n, *x.shape), 1, False)]  # fmt: skip
    w.reads.add(c.name)
    w.add("Loop", [w.const(np.array(n, np.int64)), w.const(np.array(True)), x], made, body=turn)


@kind()
def scan(w: Writer) -> None:
    """A running sum of rows, squashed."""
    x = w.pick(ranks=[2, 3], bound=50)
    if x.shape[0] > 8 or w.opset < 9:
        return
    row, a = x.shape[1:], w.name("b")
    turn = body("turn", [
        helper.make_node("Add", [f"{a}s", f"{a}r"], [f"{a}t"]), helper.make_node("Sigmoid", [f"{a}t"], [f"{a}y"]),
        helper.make_node("Identity", [f"{a}y"], [f"{a}z"]),
    ], [(f"{a}s", FLOAT, row), (f"{a}r", FLOAT, row)], [(f"{a}y", FLOAT, row), (f"{a}z", FLOAT, row)])  # fmt: skip
    names = [w.name() for _ in range(2)]
    made = [Value(names[0], FLOAT, row, 1, False), Value(names[1], FLOAT, x.shape, 1, False)]
    more = {"scan_input_directions": [1]} if w.flip() else {}
    w.add("Scan", [w.weight(*row), x], made, body=turn, num_scan_inputs=1, **more)


@kind()
def branch(w: Writer) -> None:
    """If, of a condition that is known."""
    x = w.pick(bound=50)
    name = w.name("b")
    ways = [
        body(f"way{i}", [helper.make_node(op, [x.name], [f"{name}{i}"])], [], [(f"{name}{i}", FLOAT, x.shape)])
        for i, op in enumerate(("Sigmoid", "Neg"))
    ]  # fmt: skip
    w.reads.add(x.name)
    made = Value(w.name(), FLOAT, x.shape, 50, False)
    w.add("If", [w.const(np.array(w.flip()))], [made], then_branch=ways[0], else_branch=ways[1])
