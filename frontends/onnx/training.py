"""Steps of optimizers, which are plain arithmetic: ai.onnx.preview.training's Adagrad, Adam and Momentum.

Inputs are R, T, then for each of n tensors its value, gradient and moments, group by group; outputs are the new values, then the moments:

    R T  X₁ … Xₙ  G₁ … Gₙ  V₁ … Vₙ  (H₁ … Hₙ)   ─►   X₁ … Xₙ  V₁ … Vₙ  (H₁ … Hₙ)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from knapper.compiler.ir import DTYPES
from knapper.isa.errors import FrontendError

from .builder import Builder, Call
from .quantized import contrib

DOMAIN = "ai.onnx.preview.training"
Update = Callable[["Step", str, str, list[str]], list[str]]
"""(value, gradient, moments) → the new value and the new moments."""


@dataclass(frozen=True)
class Step:
    """One node being written: its step size r, and how many there have been, t."""

    b: Builder
    call: Call
    r: str
    t: str
    dtype: str

    def op(self, name: str, *operands: str) -> str:
        """The result of an op."""
        return self.b.emit(name, operands, loc=self.call.loc)[0]

    def number(self, value: float) -> str:
        return self.b.constant(np.array(value, DTYPES[self.dtype]), "number")

    def times(self, v: str, factor: float) -> str:
        return self.op("Mul", v, self.number(factor))

    def rate(self, name: str, default: float) -> float:
        """An attribute that is a number."""
        return float(str(self.call.attrs.get(name, default)))

    def decayed(self, old: str, share: float, new: str, rest: float) -> str:
        """share · old + rest · new."""
        return self.op("Add", self.times(old, share), self.times(new, rest))

    def regularised(self, x: str, g: str) -> str:
        """The gradient with that of the value's own norm."""
        return self.op("Add", self.times(x, self.rate("norm_coefficient", 0)), g)


def _steps(moments: int, update: Update, b: Builder, call: Call) -> list[str]:
    r, t, *rest = call.inputs.values()
    n = len(rest) // (2 + moments)
    if not n or len(rest) != n * (2 + moments):
        raise FrontendError("E206", f"{call.op} takes R, T and groups of {2 + moments} tensors")
    made = []
    for i in range(n):
        x, g, *kept = rest[i::n]
        dtype = b.type(x).dtype
        (rate,) = b.emit("Cast", [r], {"to": dtype}, loc=call.loc)
        (count,) = b.emit("Cast", [t], {"to": dtype}, loc=call.loc)
        made.append(update(Step(b, call, rate, count, dtype), x, g, kept))
    return [group[j] for j in range(1 + moments) for group in made]


@contrib("Adagrad", domains=(DOMAIN,))
def _(b: Builder, call: Call) -> list[str]:
    """h += g²; x -= r / (1 + t · decay) · g / (√h + ε)."""

    def update(s: Step, x: str, g: str, kept: list[str]) -> list[str]:
        g = s.regularised(x, g)
        h = s.op("Add", kept[0], s.op("Mul", g, g))
        late = s.op("Add", s.times(s.t, s.rate("decay_factor", 0)), s.number(1))
        below = s.op("Add", s.op("Sqrt", h), s.number(s.rate("epsilon", 1e-6)))
        change = s.op("Div", s.op("Mul", s.op("Div", s.r, late), g), below)
        return [s.op("Sub", x, change), h]

    return _steps(1, update, b, call)


@contrib("Adam", domains=(DOMAIN,))
def _(b: Builder, call: Call) -> list[str]:
    """v = α v + (1 - α) g; h = β h + (1 - β) g²; x -= r √(1 - βᵗ) / (1 - αᵗ) · v / (√h + ε), the first step without the corrections."""

    def update(s: Step, x: str, g: str, kept: list[str]) -> list[str]:
        alpha, beta = s.rate("alpha", 0.9), s.rate("beta", 0.999)
        g = s.regularised(x, g)
        v = s.decayed(kept[0], alpha, g, 1 - alpha)
        h = s.decayed(kept[1], beta, s.op("Mul", g, g), 1 - beta)
        one = s.number(1)
        below = s.op("Sub", one, s.op("Pow", s.number(alpha), s.t))
        above = s.op("Sqrt", s.op("Sub", one, s.op("Pow", s.number(beta), s.t)))
        later = s.op("Greater", s.t, s.number(0))
        ratio = s.op("Where", later, s.op("Div", above, below), one)
        root = s.op("Add", s.op("Sqrt", h), s.number(s.rate("epsilon", 1e-6)))
        x = s.op("Sub", x, s.op("Div", s.op("Mul", s.op("Mul", s.r, ratio), v), root))
        return [s.times(x, 1 - s.rate("norm_coefficient_post", 0)), v, h]

    return _steps(2, update, b, call)


@contrib("Momentum", domains=(DOMAIN,))
def _(b: Builder, call: Call) -> list[str]:
    """v = α v + β g, at the first step g itself; x -= r v, or with Nesterov's look ahead r (g + α v)."""
    mode = str(call.attrs.get("mode", "standard"))
    if mode not in ("standard", "nesterov"):
        raise FrontendError("E206", f"Momentum has no mode {mode!r}")

    def update(s: Step, x: str, g: str, kept: list[str]) -> list[str]:
        alpha = s.rate("alpha", 0.9)
        g = s.regularised(x, g)
        beta = s.op(
            "Where", s.op("Greater", s.t, s.number(0)), s.number(s.rate("beta", 1)), s.number(1)
        )
        v = s.op("Add", s.times(kept[0], alpha), s.op("Mul", g, beta))
        along = v if mode == "standard" else s.op("Add", g, s.times(v, alpha))
        return [s.op("Sub", x, s.op("Mul", s.r, along)), v]

    return _steps(1, update, b, call)
