"""Option values: NAME=VALUE pairs into shapes and constants."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from knapper.isa.errors import UsageError

if TYPE_CHECKING:
    from ..calibrate import Calibration
    from ..dataset import Choice
    from ..evaluate import Tell
    from ..feed import Pixels
    from ..quantizing import Request

TARGET = "volta-8tc"
"""The machine that is meant where none is named."""


def shapes(options: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """`--shape x=1,3,224,224`, `--shape batch=8`.

    >>> shapes(["x=1,3,224,224", "batch=8", "scalar="])
    {'x': (1, 3, 224, 224), 'batch': (8,), 'scalar': ()}
    """
    return {name: _shape(name, text) for name, text in pairs("--shape", options).items()}


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
    return {name: _const(text) for name, text in pairs("--const", options).items()}


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


def states(options: Sequence[str]) -> dict[str, str]:
    """`--state past=present`; UsageError E704 for an input that is given twice.

    >>> states(["past=present", "h0=hn"])
    {'past': 'present', 'h0': 'hn'}
    """
    return pairs("--state", options)


def pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE several times; UsageError E704 for a name that is there twice."""
    found: dict[str, str] = {}
    for name, value in (pair(option, text) for text in texts):
        if name in found:
            raise UsageError("E704", f"{option} {name}={value}: {name} is {found[name]} already")
        found[name] = value
    return found


def pair(option: str, text: str) -> tuple[str, str]:
    """NAME=VALUE; names may hold anything but `=`."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UsageError("E704", f"{option} {text}: expected NAME=VALUE")
    return name, value


# --- labelled data ------------------------------------------------------------------------------------------------------


def choice(a: argparse.Namespace) -> Choice:
    """Which samples are meant: --images, --labels, --classes, --offset, --limit, --resize."""
    from ..dataset import Choice

    if a.resize is not None and a.resize < 0:
        raise UsageError("E704", f"--resize {a.resize}: expected 0 or more")
    return Choice(
        a.images or "", a.labels or "", "test", a.limit, a.classes or "", a.offset, a.resize
    )


def calibration(
    a: argparse.Namespace, images: str = "", tell: Tell | None = None
) -> Calibration | None:
    """What to observe for quantization: --calib with --calib-method, --calib-engine, --calib-limit and what is said of pixels."""
    if not a.calib:
        return None
    from ..calibrate import SILENT, Calibration
    from ..dataset import Choice

    if a.calib_limit < 1:
        raise UsageError("E704", f"--calib-limit {a.calib_limit}: expected 1 or more")
    chosen = Choice(images, split="train", limit=a.calib_limit, resize=a.resize, labelled=False)
    return Calibration(
        a.calib,
        a.calib_method or "mse",
        a.calib_engine,
        chosen,
        pixels(a),
        a.threads,
        tell or SILENT,
    )


def request(a: argparse.Namespace, images: str = "", tell: Tell | None = None) -> Request:
    """Where ranges come from: --calib, or --ranges."""
    from knapper.compiler.quantization.ranges import Ranges

    from ..quantizing import Request

    if a.calib and a.ranges:
        raise UsageError("E704", "--ranges does not apply: --calib makes others")
    if a.calib_method and not (a.calib or a.ranges):
        raise UsageError("E704", "--calib-method does not apply without --calib or --ranges")
    ranges = Ranges.load(a.ranges) if a.ranges else None
    if ranges is not None and a.calib_method:
        ranges = replace(ranges, method=a.calib_method)
    return Request(calibration(a, images, tell), ranges)


def quantize(a: argparse.Namespace) -> str | None:
    """What --quantize asks for; W8A8 where there are only ranges."""
    from ..quantizing import USUAL

    ranges_only = (a.calib or a.ranges) and a.pipeline is None
    return a.quantize or (USUAL if ranges_only else None)


PLAIN: dict[str, object] = {"images": None, "mean": "0", "std": "1", "scale": None, "bgr": False, "resize": None}  # fmt: skip
"""What is said of samples by default."""


def refuse_samples(a: argparse.Namespace) -> None:
    """UsageError E704 for what is said of samples where there are none."""
    for option, usual in PLAIN.items():
        if not a.calib and getattr(a, option) != usual:
            raise UsageError("E704", f"--{option} does not apply without --calib")


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
