"""What is asked for each layer: formats and methods, by names and patterns; from options, texts and files.

    overrides=["conv1*: weights=i8 activations=u8", "fc: float", "layers.toml"]

A file (TOML or JSON) says the same by tables; later ones win over earlier ones:

    ["conv1*"]
    weights = "i8"
    activations = "u8"
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path

from knapper.isa.errors import PassError, reason
from knapper.isa.formats import FORMATS, Format
from knapper.isa.formats.format import INT

from ..ir import Node
from .ranges import METHODS
from .squant import MODES

FLOAT = "float"
"""In place of a format: not quantized."""
ANT = tuple(f"ant{bits}" for bits in range(2, 17))
"""In place of an activation's format: integers or flint, whichever loses less; beyond six bits integers."""
WEIGHT_METHODS = ("nearest", "ant", "squant", *(f"squant-{m}" for m in MODES))
WEIGHT_SCALES = ("absmax", "mse", "minmax", "ant")


_WHOLE = [f for f in FORMATS.values() if f.integral]
WEIGHTS = tuple(f.name for f in _WHOLE if f.signed and f.largest < 1 << 31)
"""Formats that weights can have: zero points are not searched for, so negative ones need a sign. What an i32 holds."""
ACTIVATIONS = tuple(f.name for f in _WHOLE if f.largest < 1 << 16)
"""Formats that are rounded to as the network runs: those that 16 bits hold."""


@dataclass(frozen=True)
class Layer:
    """What becomes of one layer. `method` "" is the ranges' own."""

    weights: str = "i8"
    activations: str = "u8"
    method: str = ""
    weight_method: str = "nearest"
    weight_scale: str = "mse"

    def checked(self, where: str = "") -> Layer:
        """Itself; PassError E306 for a format or method that is none."""
        for name, known in (("weights", WEIGHTS), ("activations", (*ACTIVATIONS, *ANT))):
            given = getattr(self, name)
            if given != FLOAT and given not in known:
                raise _none(f"{name}={given!r}: no format for {name}", (FLOAT, *known), where)
        methods = {
            "method": ("", *METHODS),
            "weight_method": WEIGHT_METHODS,
            "weight_scale": WEIGHT_SCALES,
        }
        for name, values in methods.items():
            if getattr(self, name) not in values:
                raise _none(f"{name}={getattr(self, name)!r} is none", values, where)
        if self.weights != FLOAT and self.weight_method != "nearest" and self.format.kind != INT:
            raise _none(f"{self.weight_method} chooses integers, not {self.weights}", (), where)
        return self

    @property
    def format(self) -> Format:
        """Of weights."""
        return FORMATS[self.weights]

    def changed(self, options: Mapping[str, object], where: str) -> Layer:
        """With some options replaced; PassError E306 for unknown ones."""
        names = [f.name for f in fields(Layer)]
        for name, value in options.items():
            if name not in names or not isinstance(value, str):
                raise _none(f"{name}={value!r} is no option of a layer", names, where)
        return replace(self, **options).checked(where)  # type: ignore[arg-type]  # they are texts


STAYS = Layer(FLOAT, FLOAT)


@dataclass(frozen=True)
class Override:
    """Options for the layers that a pattern names."""

    pattern: str
    options: Mapping[str, object]
    where: str

    def apply(self, layer: Layer) -> Layer:
        return layer.changed(self.options, self.where)


def overrides(texts: Iterable[str]) -> list[Override]:
    """From texts and names of files; PassError E306 for what cannot be read."""
    return [o for t in texts for o in (_file(t) if t.endswith((".json", ".toml")) else [_text(t)])]


def _text(text: str) -> Override:
    pattern, colon, rest = text.rpartition(": ")
    words = rest.replace(",", " ").split()
    if not colon or not words:
        raise PassError(
            "E306",
            f"no override: {text!r}",
            hint="'conv1*: weights=i8 activations=u8', 'fc: float', or a file .json or .toml",
        )
    if words == [FLOAT]:
        return Override(pattern, {"weights": FLOAT, "activations": FLOAT}, text)
    return Override(pattern, dict(w.partition("=")[::2] for w in words), text)


def _file(path: str) -> list[Override]:
    try:
        text = Path(path).read_text()
        held = json.loads(text) if path.endswith(".json") else tomllib.loads(text)
        return [_table(str(pattern), options, path) for pattern, options in held.items()]
    except (OSError, ValueError, AttributeError, RecursionError) as e:
        raise PassError("E306", f"no overrides: {reason(e)}", where=path) from None


def _table(pattern: str, options: object, path: str) -> Override:
    if options == FLOAT:
        options = {"weights": FLOAT, "activations": FLOAT}
    if not isinstance(options, Mapping):
        raise ValueError(f"{pattern} has {options!r}, which is no table")
    return Override(pattern, options, path)


def named(n: Node, patterns: str) -> bool:
    """Whether patterns with *, between |, name a node: by its name in the model, its op, its result or its weights."""
    names = {n.loc, n.op, n.outputs[0], *n.inputs[1:2]}
    return any(fnmatchcase(x, p) for p in patterns.split("|") if p for x in names)


def _none(problem: str, known: Iterable[str], where: str) -> PassError:
    hint = f"known: {', '.join(filter(None, known))}" if known else ""
    return PassError("E306", problem, where=where, hint=hint)
