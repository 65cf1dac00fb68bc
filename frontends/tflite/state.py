"""Recurrent operators, and what is kept between runs: a state is an input of the network and an output called `NAME.next`.

TFLite writes a state into a tensor that it keeps. Here the caller feeds what a run gave to the next one, zeros to the first:
`--state NAME=NAME.next` does, on the device.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from knapper.compiler.ir import Array
from knapper.isa.errors import FrontendError

from .convert import Call, converts
from .elementwise import activated

PEEPHOLES, PROJECTION, NORMALIZED = range(9, 12), (16, 17), range(20, 24)
GATES = {"i": 0, "f": 1, "c": 2, "o": 3}
"""TFLite's order of an LSTM's gates; ONNX has i, o, f, c."""


def kept(call: Call, i: int) -> str:
    """A variable operand, as an input of the network."""
    t, at = call.tensor(i), call.op.inputs[i]
    if not t.variable:
        return call.stored(i)
    if not call.model.values.get(at):
        call.model.values[at] = call.model.names[at]
    return call.stored(i)


def keep_state(call: Call, i: int, v: str) -> None:
    """A variable operand is v behind the run; in what it is stored as."""
    t = call.tensor(i)
    if t.variable:
        call.model.states.append((call.model.names[call.op.inputs[i]], t, v))


@converts("UNIDIRECTIONAL_SEQUENCE_LSTM")
def _(call: Call) -> None:
    _refuse_unusual(call)
    time_major = bool(call.option("timeMajor", False))
    x = call.real(0, () if time_major else (1, 0, 2))
    w, r = (np.concatenate([_gate(call, k, n) for n in "iofc"]) for k in (1, 5))
    b = np.concatenate([call.real_array(12 + GATES[n]).ravel() for n in "iofc"])
    hidden = r.shape[1]
    operands = [x, call.constant(w[None], "W"), call.constant(r[None], "R")]
    operands.append(call.constant(np.concatenate([b, np.zeros_like(b)])[None], "B"))
    states = [call.node("Unsqueeze", kept(call, i), call.int64(0)) for i in (18, 19)]
    peep: list[str] = []
    if any(map(call.has, PEEPHOLES)):
        p = np.concatenate([call.real_array(k).ravel() for k in (9, 11, 10)])
        peep = [call.constant(p[None], "P")]
    y, h, c = call.nodes("LSTM", [*operands, "", *states, *peep], 3, hidden_size=hidden)
    one = call.node("Squeeze", y, call.int64(1))
    call.give(one, perm=() if time_major else (1, 0, 2))
    for i, v in ((18, h), (19, c)):
        keep_state(call, i, call.node("Squeeze", v, call.int64(0)))


def _gate(call: Call, first: int, name: str) -> Array:
    return call.real_array(first + GATES[name])


def _refuse_unusual(call: Call) -> None:
    """FrontendError E203 for what ONNX's LSTM has not."""
    given = call.named("ActivationFunctionType", "fusedActivationFunction")
    unusual = {
        "an activation other than tanh": given != "TANH",
        "a coupled input gate": not call.has(1),
        "a projection": any(map(call.has, PROJECTION)),
        "normalized gates": any(map(call.has, NORMALIZED)),
        "a clipped cell": float(call.option("cellClip", 0.0)) != 0,
        "integer states": call.tensor(0).type != "FLOAT32",
    }
    for what, found in unusual.items():
        if found:
            raise FrontendError("E203", f"an LSTM with {what} is not supported")


@converts("UNIDIRECTIONAL_SEQUENCE_RNN")
def _(call: Call) -> None:
    time_major = bool(call.option("timeMajor", False))
    names = {"TANH": "Tanh", "RELU": "Relu", "NONE": "Affine"}
    given = call.named("ActivationFunctionType", "fusedActivationFunction")
    if given not in names or call.tensor(0).type != "FLOAT32":
        raise FrontendError("E203", f"an RNN with {given} of {call.tensor(0).type}")
    how: dict[str, Any] = {"activations": [names[given]], "hidden_size": call.shape(2)[0]}
    if given == "NONE":
        how |= {"activation_alpha": [1.0], "activation_beta": [0.0]}
    w, r, b = (call.real_array(i) for i in (1, 2, 3))
    operands = [call.real(0, () if time_major else (1, 0, 2))]
    operands += [call.constant(a[None]) for a in (w, r, np.concatenate([b, np.zeros_like(b)]))]
    state = call.node("Unsqueeze", kept(call, 4), call.int64(0))
    y, h = call.nodes("RNN", [*operands, "", state], 2, **how)
    call.give(call.node("Squeeze", y, call.int64(1)), perm=() if time_major else (1, 0, 2))
    keep_state(call, 4, call.node("Squeeze", h, call.int64(0)))


@converts("SVDF")
def _(call: Call) -> None:
    """A filter over time: each of `units` is the sum of `rank` filters of one feature and of that feature's last values.

    state [batch, filters, steps]: the oldest value goes, the newest comes last.
    """
    rank, (filters, steps) = int(call.option("rank")), call.shape(2)
    if rank < 1 or filters % rank or call.tensor(0).type != "FLOAT32":
        raise FrontendError("E203", f"an SVDF of rank {rank} of {call.tensor(0).type}")
    before = kept(call, 4)
    old = call.node("Reshape", before, call.int64(-1, filters, steps))
    last = call.node("MatMul", call.real(0), call.real(1, (1, 0)))
    last = call.node("Unsqueeze", last, call.int64(2))
    old = call.node("Slice", old, call.int64(1), call.int64(steps), call.int64(2))
    now = call.node("Concat", old, last, axis=2)
    summed = call.node("ReduceSum", call.node("Mul", now, call.real(2)), call.int64(2), keepdims=0)
    parts = call.node("Reshape", summed, call.int64(-1, filters // rank, rank))
    y = call.node("ReduceSum", parts, call.int64(2), keepdims=0)
    y = call.node("Add", y, call.real(3)) if call.has(3) else y
    call.give(activated(call, y))
    keep_state(call, 4, call.node("Reshape", now, call.int64(-1, filters * steps)))
