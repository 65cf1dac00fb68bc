"""Option values: NAME=VALUE pairs into shapes and constants."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from knapper.isa.errors import UsageError

if TYPE_CHECKING:
    from ..dataset import Choice, Split
    from ..feed import Pixels

TARGET = "volta-8tc"
"""The machine that is meant where none is named."""


def shapes(options: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`--shape x=1,3,224,224`, `--shape batch=8`.

    >>> shapes(["x=1,3,224,224", "batch=8", "scalar="])
    {'x': (1, 3, 224, 224), 'batch': (8,), 'scalar': ()}
    """
    return {name: _shape(name, text) for name, text in (pair("--shape", o) for o in options)}


def _shape(name: str, text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(n) for n in text.replace("x", ",").split(",")) if text else ()
    except ValueError:
        raise UsageError(
            "E704", f"--shape {name}={text}: expected sizes such as 1,3,224,224"
        ) from None
    if any(n < 0 for n in shape):
        raise UsageError("E704", f"--shape {name}={text}: sizes are not negative")
    return shape


def consts(options: Sequence[str]) -> dict[str, Any]:
    """`--const n=4`, `--const scale=1,2,2`, `--const flag=true`, `--const x=FILE.npy`.

    >>> consts(["n=4", "scale=1,2.5", "flag=true"])
    {'n': 4, 'scale': [1, 2.5], 'flag': True}
    """
    return {name: _const(text) for name, text in (pair("--const", o) for o in options)}


def _const(text: str) -> Any:
    if text.endswith(".npy"):
        from ..inputs import array

        return array(text)
    values = [_number(t) for t in text.split(",")]
    return values if len(values) > 1 else values[0]


def _number(text: str) -> bool | int | float:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    raise UsageError("E704", f"--const: {text!r} is not a number, true, false or an .npy file")


def pair(option: str, text: str) -> tuple[str, str]:
    """NAME=VALUE; names may hold anything but `=`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError("E704", f"{option} {text}: expected NAME=VALUE")
    return name, value


# --- labelled data ------------------------------------------------------------------------------------------------------


def choice(a: argparse.Namespace, split: Split = "test") -> Choice:
    """Which samples are meant: --images, --labels, --classes, --offset, --limit, --resize."""
    from ..dataset import Choice

    if a.resize is not None and a.resize < 0:
        raise UsageError("E704", f"--resize {a.resize}: expected 0 or more")
    return Choice(
        a.images or "", a.labels or "", split, a.limit, a.classes or "", a.offset, a.resize
    )


def pixels(a: argparse.Namespace) -> Pixels:
    """What becomes of values: --scale, --mean, --std, --bgr."""
    from ..feed import Pixels

    scale = None if a.scale is None else _decimal("--scale", a.scale)
    mean, std = (
        tuple(_decimal(o, t) for t in text.split(","))
        for o, text in (("--mean", a.mean), ("--std", a.std))
    )
    return Pixels(scale, mean, std, a.bgr)


def _decimal(option: str, text: str) -> float:
    """A number, or the ratio of two: 1/255."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / (float(below) if slash else 1)
    except (ValueError, ZeroDivisionError):
        raise UsageError(
            "E704", f"{option} {text}: expected a number, such as 0.5 or 1/255"
        ) from None
