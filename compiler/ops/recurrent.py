"""RNN, GRU and LSTM: one op each, whose meaning is a step written in other ops, once for every element of the sequence.

    x[T,B,I] ─ one product for all steps ─► x·W [T,B,g·H]
                                             │ row t
    h ───────── product by R ─────────────► + ─► gates ─► h'        `unrolled` is that walk; `reference` evaluates it,
    └───────────────────────────── next step ◄────────────┘          and the pass `recurrent` writes it into the graph

So what runs on the machine and what defines the op are the same text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..ir import OPS, Array, Attr, Type, op, require
from .elementwise import Example, Rng, draw
from .numeric import FLOATS
from .shapes import of_kind, same_dtype

Ints = tuple[int, ...]
DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
"""Which way each of the op's directions walks: from the end or not."""


class Arithmetic(Protocol):
    """What a step is written with: arrays, or values of a graph."""

    def op(self, name: str, *operands: Any, **attrs: Attr) -> Any:
        """The result of an op."""

    def constant(self, a: Array) -> Any:
        """An array as a value."""

    def type(self, v: Any) -> Type:
        """A value's type."""


class Evaluated:
    """Arithmetic on arrays, by the ops' references."""

    def op(self, name: str, *operands: Array, **attrs: Attr) -> Array:
        """By the reference."""
        return np.asarray(OPS[name].facets["reference"](*operands, **attrs))

    def constant(self, a: Array) -> Array:
        """Itself."""
        return a

    def type(self, v: Array) -> Type:
        """Its dtype and shape."""
        return Type.of(v)


# --- activations --------------------------------------------------------------------------------

FUNCTIONS: dict[str, tuple[tuple[float, ...], Callable[..., Any]]] = {
    "affine": ((1.0, 0.0), lambda m, x, a, b: _scaled(m, x, a, b)),
    "elu": ((1.0,), lambda m, x, a: m.op("Elu", x, alpha=a)),
    "hardsigmoid": ((0.2, 0.5), lambda m, x, a, b: m.op("HardSigmoid", x, alpha=a, beta=b)),
    "leakyrelu": ((0.01,), lambda m, x, a: m.op("LeakyRelu", x, alpha=a)),
    "relu": ((), lambda m, x: m.op("Relu", x)),
    "scaledtanh": ((1.0, 1.0), lambda m, x, a, b: _scaled(m, m.op("Tanh", _scaled(m, x, b, 0.0)), a, 0.0)),
    "sigmoid": ((), lambda m, x: m.op("Sigmoid", x)),
    "softplus": ((), lambda m, x: m.op("Softplus", x)),
    "softsign": ((), lambda m, x: m.op("Softsign", x)),
    "tanh": ((), lambda m, x: m.op("Tanh", x)),
    "thresholdedrelu": ((1.0,), lambda m, x, a: m.op("ThresholdedRelu", x, alpha=a)),
}  # fmt: skip
"""By name in lower case: defaults of alpha and beta, and the function."""


def _scaled(m: Arithmetic, x: Any, alpha: float, beta: float) -> Any:
    """alpha · x + beta."""
    y = x if alpha == 1 else m.op("Mul", x, _like(m, alpha, x))
    return y if beta == 0 else m.op("Add", y, _like(m, beta, x))


def _like(m: Arithmetic, value: float, x: Any) -> Any:
    """A number of x's dtype."""
    from ..ir import DTYPES

    return m.constant(np.array(value, DTYPES[m.type(x).dtype]))


def _functions(names: Sequence[str], alphas: Sequence[float], betas: Sequence[float]) -> list[Any]:
    """The activations in order; those that have an alpha or a beta take the next one that is given."""
    left = [list(alphas), list(betas)]

    def bound(name: str) -> Callable[[Arithmetic, Any], Any]:
        defaults, f = FUNCTIONS[name.lower()]
        numbers = [
            given.pop(0) if given else default
            for given, default in zip(left, defaults, strict=False)
        ]
        return lambda m, x: f(m, x, *numbers)

    return [bound(name) for name in names]


# --- the walk -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A kind of step: how many gates its weights have, and what activations it has by default."""

    gates: int
    activations: tuple[str, ...]
    states: int
    """What goes from step to step."""
    step: Callable[..., tuple[Any, ...]]


@dataclass
class Weights:
    """One direction's operands, products turned so that they can be multiplied by rows."""

    r: Any
    """[H, gates · H]"""
    bias_r: Any
    """[gates · H], None without biases: that of the recurrent product; the other one is in the rows."""
    peepholes: list[Any]


def unrolled(
    m: Arithmetic, cell: Cell, operands: Mapping[str, Any], attrs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """The results of a recurrent op: all steps' outputs, then the last states."""
    x, first = operands["x"], bool(attrs.get("layout", 0))
    if first:
        x = m.op("Transpose", x, perm=(1, 0, 2))
    names = attrs.get("activations") or cell.activations * len(DIRECTIONS[attrs["direction"]])
    functions = _functions(
        names, attrs.get("activation_alpha", ()), attrs.get("activation_beta", ())
    )
    each = len(cell.activations)
    found = [
        _direction(m, cell, x, operands, attrs, d, back, functions[each * d : each * (d + 1)])
        for d, back in enumerate(DIRECTIONS[attrs["direction"]])
    ]
    steps, *states = (
        _joined(m, [f[i] for f in found], axis)
        for i, axis in [(0, 1), *((i, 0) for i in range(1, 1 + cell.states))]
    )
    if first:
        steps = m.op("Transpose", steps, perm=(2, 0, 1, 3))
        states = [m.op("Transpose", s, perm=(1, 0, 2)) for s in states]
    return (steps, *states)


def _joined(m: Arithmetic, parts: list[Any], axis: int) -> Any:
    """Directions side by side along a new axis."""
    rows = [m.op("Unsqueeze", p, axes=(axis,)) for p in parts]
    return rows[0] if len(rows) == 1 else m.op("Concat", *rows, axis=axis)


def _direction(
    m: Arithmetic,
    cell: Cell,
    x: Any,
    operands: Mapping[str, Any],
    attrs: Mapping[str, Any],
    d: int,
    back: bool,
    functions: list[Any],
) -> tuple[Any, ...]:
    """One direction: its steps' outputs [T,B,H], then its last states [B,H]."""
    length, batch, _ = m.type(x).shape
    weights, rows = _products(m, cell, x, operands, d)
    hidden = m.type(weights.r).shape[0]
    states = [
        _state(m, operands.get(name), d, (batch, hidden), x, bool(attrs.get("layout", 0)))
        for name in ("initial_h", "initial_c")[: cell.states]
    ]
    limit, lens = float(attrs.get("clip", 0.0)), operands.get("sequence_lens")

    def act(i: int, v: Any) -> Any:
        return functions[i](m, m.op("Clip", v, min=-limit, max=limit) if limit else v)

    outputs: list[Any] = [None] * length
    for t in reversed(range(length)) if back else range(length):
        new = cell.step(m, _row(m, rows, t), states, weights, act, attrs)
        outputs[t] = new[0]
        if lens is not None:
            inside = _inside(m, lens, t)
            outputs[t] = m.op("Where", inside, new[0], _like(m, 0.0, x))
            new = tuple(m.op("Where", inside, n, s) for n, s in zip(new, states, strict=True))
        states = list(new)
    return _joined(m, outputs, 0), *states


def _products(
    m: Arithmetic, cell: Cell, x: Any, operands: Mapping[str, Any], d: int
) -> tuple[Weights, Any]:
    """What the steps multiply by, and x · W + bias for all of them, [T,B,gates · H]."""
    length, batch, size = m.type(x).shape
    w, r = (m.op("Transpose", _part(m, operands[n], 0, d), perm=(1, 0)) for n in ("w", "r"))
    wide = m.type(w).shape[1]
    flat = m.op("MatMul", m.op("Reshape", x, shape=(length * batch, size)), w)
    bias_r = None
    if operands.get("b") is not None:
        b = _part(m, operands["b"], 0, d)
        bias_w, bias_r = (_span(m, b, 0, i * wide, (i + 1) * wide) for i in (0, 1))
        flat = m.op("Add", flat, bias_w)
    peepholes: list[Any] = []
    if operands.get("p") is not None:
        p, hidden = _part(m, operands["p"], 0, d), wide // cell.gates
        peepholes = [_span(m, p, 0, i * hidden, (i + 1) * hidden) for i in range(3)]
    rows = m.op("Reshape", flat, shape=(length, batch, wide))
    return Weights(r, bias_r, peepholes), rows


def _span(m: Arithmetic, v: Any, axis: int, start: int, end: int) -> Any:
    return m.op("Slice", v, starts=(start,), ends=(end,), axes=(axis,), steps=(1,))


def _part(m: Arithmetic, v: Any, axis: int, at: int) -> Any:
    """An element along an axis, which goes."""
    return m.op("Squeeze", _span(m, v, axis, at, at + 1), axes=(axis,))


def _row(m: Arithmetic, rows: Any, t: int) -> Any:
    return _part(m, rows, 0, t)


def _state(m: Arithmetic, given: Any, d: int, shape: Ints, x: Any, batch_first: bool) -> Any:
    """A first state [B,H]: zeros if it is not given."""
    if given is None:
        return m.op("Expand", _like(m, 0.0, x), shape=shape)
    return _part(m, given, 1 if batch_first else 0, d)


def _inside(m: Arithmetic, lens: Any, t: int) -> Any:
    """Which of the batch have a step t. [B,1]"""
    column = m.op("Unsqueeze", lens, axes=(1,))
    return m.op("Greater", column, m.constant(np.array(t, np.int32)))


def _gates(m: Arithmetic, v: Any, count: int) -> list[Any]:
    """[B, count · H] cut into gates."""
    wide = m.type(v).shape[1] // count
    return [_span(m, v, 1, i * wide, (i + 1) * wide) for i in range(count)]


def _recurrent(m: Arithmetic, h: Any, weights: Weights) -> Any:
    """h · R + its bias."""
    y = m.op("MatMul", h, weights.r)
    return y if weights.bias_r is None else m.op("Add", y, weights.bias_r)


# --- the three cells ----------------------------------------------------------------------------

Act = Callable[[int, Any], Any]


def _rnn(
    m: Arithmetic, row: Any, states: list[Any], w: Weights, act: Act, attrs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """h' = f(x·W + h·R + biases)"""
    return (act(0, m.op("Add", row, _recurrent(m, states[0], w))),)


def _gru(
    m: Arithmetic, row: Any, states: list[Any], w: Weights, act: Act, attrs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """h' = (1 - z) · g + z · h; update z, reset r, and new g, which sees h through r before or after its product."""
    (h,) = states
    xz, xr, xg = _gates(m, row, 3)
    hidden = m.type(h).shape[1]
    if attrs.get("linear_before_reset", 0):
        hz, hr, hg = _gates(m, _recurrent(m, h, w), 3)
    else:
        r_zr, bias = (
            _span(m, w.r, 1, 0, 2 * hidden),
            None if w.bias_r is None else _span(m, w.bias_r, 0, 0, 2 * hidden),
        )
        hz, hr = _gates(m, _recurrent(m, h, Weights(r_zr, bias, [])), 2)
    z, r = act(0, m.op("Add", xz, hz)), act(0, m.op("Add", xr, hr))
    if attrs.get("linear_before_reset", 0):
        seen = m.op("Mul", r, hg)
    else:
        r_g = _span(m, w.r, 1, 2 * hidden, 3 * hidden)
        bias = None if w.bias_r is None else _span(m, w.bias_r, 0, 2 * hidden, 3 * hidden)
        seen = _recurrent(m, m.op("Mul", r, h), Weights(r_g, bias, []))
    g = act(1, m.op("Add", xg, seen))
    kept = m.op("Sub", _like(m, 1.0, z), z)
    return (m.op("Add", m.op("Mul", kept, g), m.op("Mul", z, h)),)


def _lstm(
    m: Arithmetic, row: Any, states: list[Any], w: Weights, act: Act, attrs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """c' = f · c + i · g, h' = o · tanh(c'); gates in the order i, o, f, g; peepholes let i and f see c, and o see c'."""
    h, c = states
    i, o, f, g = _gates(m, m.op("Add", row, _recurrent(m, h, w)), 4)
    if w.peepholes:
        pi, po, pf = w.peepholes
        i, f = (m.op("Add", v, m.op("Mul", p, c)) for v, p in ((i, pi), (f, pf)))
    i, g = act(0, i), act(1, g)
    f = m.op("Sub", _like(m, 1.0, i), i) if attrs.get("input_forget", 0) else act(0, f)
    new = m.op("Add", m.op("Mul", f, c), m.op("Mul", i, g))
    if w.peepholes:
        o = m.op("Add", o, m.op("Mul", po, new))
    return m.op("Mul", act(0, o), act(2, new)), new


CELLS = {
    "RNN": Cell(1, ("Tanh",), 1, _rnn),
    "GRU": Cell(3, ("Sigmoid", "Tanh"), 1, _gru),
    "LSTM": Cell(4, ("Sigmoid", "Tanh", "Tanh"), 2, _lstm),
}


# --- the ops ------------------------------------------------------------------------------------


def _types(
    name: str, given: Mapping[str, Type | None], attrs: Mapping[str, Any]
) -> tuple[Type, ...]:
    """The results' types; IRError E102 if operands do not fit."""
    cell = CELLS[name]
    x, w, r = (t for t in (given["x"], given["w"], given["r"]) if t is not None)
    of_kind(name, FLOATS, x)
    dtype = same_dtype(name, x, w, r)
    direction = attrs["direction"]
    require(
        direction in DIRECTIONS,
        f"{name}: direction {direction!r}, expected one of {', '.join(DIRECTIONS)}",
    )
    require(
        x.rank == w.rank == r.rank == 3,
        f"{name}: x, w and r are {x}, {w}, {r}: expected three axes each",
    )
    length, batch = x.shape[:2] if not attrs["layout"] else (x.shape[1], x.shape[0])
    d, hidden = len(DIRECTIONS[direction]), r.shape[2]
    wide = cell.gates * hidden
    wanted = {
        "w": (d, wide, x.shape[2]), "r": (d, wide, hidden), "b": (d, 2 * wide), "sequence_lens": (batch,),
        "p": (d, 3 * hidden),
        **dict.fromkeys(("initial_h", "initial_c"), (batch, d, hidden) if attrs["layout"] else (d, batch, hidden)),
    }  # fmt: skip
    for operand, shape in wanted.items():
        t = given.get(operand)
        require(
            t is None or t.shape == shape,
            f"{name}: {operand} is {t}, expected [{','.join(map(str, shape))}]",
        )
    names = attrs["activations"]
    require(
        not names or len(names) >= d * len(cell.activations),
        f"{name}: {len(names)} activations, expected at least {d * len(cell.activations)}",
    )
    unknown = [n for n in names if str(n).lower() not in FUNCTIONS]
    require(
        not unknown, f"{name}: no activation {unknown[:1]}", f"there are {', '.join(FUNCTIONS)}"
    )
    require(length > 0, f"{name}: x is {x}, a sequence without elements")
    steps = (batch, length, d, hidden) if attrs["layout"] else (length, d, batch, hidden)
    state = (batch, d, hidden) if attrs["layout"] else (d, batch, hidden)
    return Type(dtype, steps), *(Type(dtype, state) for _ in range(cell.states))


@op
def RNN(
    x: Type, w: Type, r: Type, b: Type | None = None, sequence_lens: Type | None = None,
    initial_h: Type | None = None, *,
    direction: str = "forward", hidden_size: int = 0, activations: tuple[str, ...] = (),
    activation_alpha: tuple[float, ...] = (), activation_beta: tuple[float, ...] = (), clip: float = 0.0, layout: int = 0,
) -> tuple[Type, ...]:  # fmt: skip
    """Elman's recurrent layer over x[T,B,I] (layout=1: [B,T,I]): all outputs [T,D,B,H] and the last state [D,B,H]."""
    given = {"x": x, "w": w, "r": r, "b": b, "sequence_lens": sequence_lens, "initial_h": initial_h}
    return _types(
        "RNN", given, {"direction": direction, "activations": activations, "layout": layout}
    )


@op
def GRU(
    x: Type, w: Type, r: Type, b: Type | None = None, sequence_lens: Type | None = None,
    initial_h: Type | None = None, *,
    direction: str = "forward", hidden_size: int = 0, activations: tuple[str, ...] = (),
    activation_alpha: tuple[float, ...] = (), activation_beta: tuple[float, ...] = (), clip: float = 0.0,
    linear_before_reset: int = 0, layout: int = 0,
) -> tuple[Type, ...]:  # fmt: skip
    """Gated recurrent units, gates z, r, h, over x[T,B,I] (layout=1: [B,T,I]): all outputs [T,D,B,H] and the last state [D,B,H]."""
    given = {"x": x, "w": w, "r": r, "b": b, "sequence_lens": sequence_lens, "initial_h": initial_h}
    return _types(
        "GRU", given, {"direction": direction, "activations": activations, "layout": layout}
    )


@op
def LSTM(
    x: Type, w: Type, r: Type, b: Type | None = None, sequence_lens: Type | None = None,
    initial_h: Type | None = None, initial_c: Type | None = None, p: Type | None = None, *,
    direction: str = "forward", hidden_size: int = 0, activations: tuple[str, ...] = (),
    activation_alpha: tuple[float, ...] = (), activation_beta: tuple[float, ...] = (), clip: float = 0.0,
    input_forget: int = 0, layout: int = 0,
) -> tuple[Type, ...]:  # fmt: skip
    """Long short-term memory, gates i, o, f, c, over x[T,B,I] (layout=1: [B,T,I]): all outputs [T,D,B,H], the last h and c [D,B,H]."""
    given = {
        "x": x, "w": w, "r": r, "b": b, "sequence_lens": sequence_lens,
        "initial_h": initial_h, "initial_c": initial_c, "p": p,
    }  # fmt: skip
    return _types(
        "LSTM", given, {"direction": direction, "activations": activations, "layout": layout}
    )


def operands_of(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """Operands by the names of the op's parameters; those that are absent are left out."""
    kinds = OPS[name].parameters.values()
    names = [k.name for k in kinds if k.kind is not k.KEYWORD_ONLY]
    return {
        n: v
        for n, v in zip(names, values, strict=False)
        if v is not None and not (isinstance(v, str) and not v)
    }


def _reference(name: str) -> Callable[..., tuple[Array, ...]]:
    def evaluate(*operands: Array | None, **attrs: Any) -> tuple[Array, ...]:
        given = {"direction": "forward", **attrs}
        return unrolled(Evaluated(), CELLS[name], operands_of(name, operands), given)

    return evaluate


def _examples(name: str) -> Callable[[Rng], Iterator[Example]]:
    gates = CELLS[name].gates

    def draws(rng: Rng, d: int, *, length: int = 3, batch: int = 2) -> list[Any]:
        shapes = ((length, batch, 4), (d, gates * 5, 4), (d, gates * 5, 5), (d, 2 * gates * 5))
        return [draw(rng, s, "f32", -0.5, 0.5) for s in shapes]

    def examples(rng: Rng) -> Iterator[Example]:
        yield draws(rng, 1)[:3], {"hidden_size": 5}
        yield draws(rng, 1), {"hidden_size": 5, "direction": "reverse"}
        lens = np.array([3, 1], np.int32)
        state = draw(rng, (2, 2, 5), "f32")
        yield [*draws(rng, 2), lens, state], {"hidden_size": 5, "direction": "bidirectional"}

    return examples


for _name in CELLS:
    OPS[_name].reference(_reference(_name))
    OPS[_name].example(_examples(_name))
