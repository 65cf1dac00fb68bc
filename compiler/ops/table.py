"""The op set as data: rows for `knapper ops`, and every op's examples for tests."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import OPS, Array, Op

FACETS = ("reference", "example", "relax", "grad")


@dataclass(frozen=True)
class Row:
    """One op: its signature, attributes with defaults ("" where none: required), facets, and what it does in a line."""

    name: str
    signature: str
    attrs: dict[str, str]
    facets: tuple[str, ...]
    doc: str


def rows() -> list[Row]:
    """Every declared op, by name."""
    return [_row(OPS[name]) for name in sorted(OPS)]


def _row(o: Op) -> Row:
    attrs = {name: "" if p.default is p.empty else repr(p.default) for name, p in o.attrs.items()}
    doc = (inspect.getdoc(o.infer) or "").partition("\n")[0]
    return Row(o.name, _signature(o), attrs, tuple(f for f in FACETS if f in o.facets), doc)


def _signature(o: Op) -> str:
    """`Conv(x, w, b?, *, strides, …)`: `?` marks an optional operand, `*xs` takes any number.

    >>> _signature(OPS["Clip"])
    'Clip(x; min, max)'
    """
    operands = []
    for name, p in o.parameters.items():
        if p.kind is p.VAR_POSITIONAL:
            operands.append(f"*{name}")
        elif p.kind is not p.KEYWORD_ONLY:
            operands.append(name if p.default is p.empty else f"{name}?")
    attrs = f"; {', '.join(o.attrs)}" if o.attrs else ""
    return f"{o.name}({', '.join(operands)}{attrs})"


def examples(o: Op, seed: int = 0) -> list[tuple[list[Array | None], dict[str, Any]]]:
    """The op's examples, (operands, attributes) each; the same for the same seed."""
    found = o.facets["example"](np.random.default_rng(seed))
    return [found] if isinstance(found, tuple) else list(found)
