"""Loop and Scan, written out: the body is imported once a turn, with that turn's values in the place of its inputs.

    Loop(3, true, x)      body(0, true, x) ─► x₀     body(1, true, x₀) ─► x₁     body(2, true, x₁) ─► x₂

So the number of turns must be known when compiling. What a body computes from constants (its counter, its condition) is folded as it is
imported: a Loop whose condition turns false on known numbers ends there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from onnx import GraphProto

from knapper.isa.errors import FrontendError

from .builder import Builder, Call

TURNS_LIMIT = 10_000
"""Turns beyond which a model is taken for hostile."""
Turn = Callable[[GraphProto, Sequence[str], int], list[str]]
"""Imports a body with these values as its inputs, for that turn; gives its results."""
HINT = "bind what decides it with --const; or export the model with a fixed number of steps"


def loop(
    b: Builder, call: Call, operands: Sequence[str], body: GraphProto, turn: Turn
) -> list[str]:
    """The results of a Loop: what it carries, then what it collects.

    Raises FrontendError E204 if data decide how often it turns.
    """
    count, condition, *carried = [*operands, "", ""][: max(len(operands), 2)]
    limit = _limit(b, count)
    going = not condition or _known(b, condition, "the condition of Loop")
    collected: list[list[str]] = [[] for _ in body.output[1 + len(carried) :]]
    done = 0
    while going and done < limit:
        if done == TURNS_LIMIT:
            raise FrontendError("E209", f"Loop turns more than {TURNS_LIMIT:,} times")
        number = b.constant(np.asarray(done, np.int64), "turn")
        go_on, *results = turn(
            body, [number, condition or b.constant(np.asarray(True), "go"), *carried], done
        )
        carried = results[: len(carried)]
        for values, v in zip(collected, results[len(carried) :], strict=True):
            values.append(v)
        going, condition, done = _known(b, go_on, "the condition of Loop"), go_on, done + 1
    return [*carried, *(_stacked(b, values, 0, call.loc) for values in collected)]


def _limit(b: Builder, count: str) -> float:
    if not count:
        return np.inf
    if count not in b.known:
        problem = "how often Loop turns is computed from the network's inputs"
        raise FrontendError("E204", problem, hint=HINT)
    return int(b.known[count].ravel()[0])


def _known(b: Builder, value: str, what: str) -> bool:
    if value not in b.known:
        raise FrontendError("E204", f"{what} is computed from the network's inputs", hint=HINT)
    return bool(b.known[value].ravel()[0])


def scan(
    b: Builder, call: Call, operands: Sequence[str], body: GraphProto, turn: Turn
) -> list[str]:
    """The results of a Scan: its states, then what it collects along their axes."""
    if call.version < 9:
        return _batches(b, call, operands, body, turn)
    taken = call.integer("num_scan_inputs")
    states, scanned = list(operands[: len(operands) - taken]), operands[len(operands) - taken :]
    axes = _each(call, "scan_input_axes", taken)
    reverse = _each(call, "scan_input_directions", taken)
    lengths = {b.shape(v)[a] for v, a in zip(scanned, axes, strict=True)}
    if len(lengths) != 1:
        raise FrontendError(
            "E206",
            f"Scan reads sequences of {', '.join(map(str, sorted(lengths)))} elements: expected one length",
        )
    (length,) = lengths
    made = len(body.output) - len(states)
    collected: list[list[str]] = [[] for _ in range(made)]
    for t in range(length):
        rows = [
            _row(b, v, axis, length - 1 - t if back else t, call.loc)
            for v, axis, back in zip(scanned, axes, reverse, strict=True)
        ]
        results = turn(body, [*states, *rows], t)
        states = results[: len(states)]
        for values, v in zip(collected, results[len(states) :], strict=True):
            values.append(v)
    order = zip(
        collected,
        _each(call, "scan_output_axes", made),
        _each(call, "scan_output_directions", made),
        strict=True,
    )
    return [
        *states,
        *(_stacked(b, v[::-1] if back else v, axis, call.loc) for v, axis, back in order),
    ]


def _batches(
    b: Builder, call: Call, operands: Sequence[str], body: GraphProto, turn: Turn
) -> list[str]:
    """Scan as it was in opset 8: each element of a batch by itself."""
    lengths, *values = operands
    if lengths:
        problem = "Scan of opset 8 with sequence_lens is not supported"
        raise FrontendError("E203", problem, hint="export with opset 9 or newer")
    attrs = {n: v for n, v in call.attrs.items() if n != "directions"}
    if "directions" in call.attrs:
        attrs["scan_input_directions"] = call.attrs["directions"]
    one = replace(call, version=9, attrs=attrs)
    found = [
        scan(b, one, [_row(b, v, 0, i, call.loc) for v in values], body, turn)
        for i in range(b.shape(values[0])[0])
    ]
    return [_stacked(b, results, 0, call.loc) for results in zip(*found, strict=True)]


def _each(call: Call, name: str, count: int) -> tuple[int, ...]:
    """An attribute with a number for each input or output, zeros if it is left out."""
    return call.integers(name, (0,) * count)


def _row(b: Builder, value: str, axis: int, at: int, loc: str) -> str:
    """One element of a sequence along an axis."""
    rank = len(b.shape(value))
    span = {"starts": (at,), "ends": (at + 1,), "axes": (axis % rank,), "steps": (1,)}
    (row,) = b.emit("Slice", [value], span, loc=loc)
    return b.emit("Squeeze", [row], {"axes": (axis % rank,)}, loc=loc)[0]


def _stacked(b: Builder, values: Sequence[str], axis: int, loc: str) -> str:
    """Values side by side along a new axis."""
    if not values:
        raise FrontendError("E203", "a loop that collects and never turns is not supported")
    at = axis % (len(b.shape(values[0])) + 1)
    rows = [b.emit("Unsqueeze", [v], {"axes": (at,)}, loc=loc)[0] for v in values]
    return b.emit("Concat", rows, {"axis": at}, loc=loc)[0]
