"""`--quantize` and calibration, between a model and the compiler's passes.

fold,dead,simplify,bn,… ─┬─► quantize{weights=i4} ─► layout,precision,…      --quantize i4 puts the pass into the precision's preset
                         └─► calibrate the graph here, on what it will ask for
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from knapper.compiler import driver, pipeline
from knapper.compiler.passes.aquant import AQuant
from knapper.compiler.passes.quantize import BN, Quantize
from knapper.compiler.quantization.ranges import METHODS, Ranges
from knapper.compiler.quantization.recipe import FLOAT
from knapper.isa.errors import UsageError

from .calibrate import Calibration, calibrate, samples, split

if TYPE_CHECKING:
    from knapper.compiler.ir import Graph
    from knapper.compiler.passes import Pass

USUAL = "i8"
"""What calibration data alone asks for."""


def text(quantize: str) -> str:
    """The pass that `--quantize` means: formats of weights and activations come first, before them perhaps `aquant`.

    >>> text("i8"), text("i4,u4,first_last=i8"), text("aquant,i2,u4")
    ('quantize{weights=i8}', 'quantize{weights=i4,activations=u4,first_last=i8}', 'aquant{weights=i2,activations=u4}')
    """
    words = [w for w in map(str.strip, quantize.split(",")) if w]
    name = words.pop(0) if words[:1] == ["aquant"] else "quantize"
    names, given = ["weights", "activations"], list[str]()
    for word in words:
        if "=" not in word and not names:
            problem = f"--quantize {quantize}: what is {word!r}?"
            raise UsageError("E704", problem, hint="--quantize i4,u8,OPTION=VALUE")
        given.append(word if "=" in word else f"{names.pop(0)}={word}")
    return f"{name}{{{','.join(given)}}}" if given else name


def passes(precision: str, given: str | None, quantize: str | None) -> str | None:
    """The passes as text: the preset with quantization in it. None: the preset as it is."""
    if not quantize:
        return given
    if given is not None:
        hint = f"put it where it belongs: …,{text(quantize)},integers,layout,…"
        raise UsageError("E704", "--quantize does not apply: --pipeline decides it", hint=hint)
    (asked,) = pipeline.parse(text(quantize))
    normalized = isinstance(asked, Quantize) and asked.ranges == BN  # which reads what `bn` folds
    before, behind = split(pipeline.preset(precision), "bn" if normalized else "")
    return ",".join([*map(str, before), text(quantize), *map(str, behind)])


def behind_quantization(found: tuple[Pass, ...]) -> tuple[Pass, ...]:
    """Those of the passes whose graph is still one for ONNX: not the choice of integers, layouts and stored types."""
    names = [p.name for p in found]
    late = (i for i, n in enumerate(names) if n in ("integers", "layout", "precision", "fuse"))
    return found[: next(late, len(names))]


@dataclass(frozen=True)
class Request:
    """What is asked for beside the passes: where ranges come from."""

    calibration: Calibration | None = None
    ranges: Ranges | None = None

    def __post_init__(self) -> None:
        method = self.calibration.method if self.calibration else "mse"
        if method not in METHODS:
            raise UsageError(
                "E704",
                f"no method {method!r} to choose ranges",
                hint=f"there are {', '.join(METHODS)}",
            )

    def options(
        self, options: driver.Options, read: Callable[[int], Graph], model: Any = None
    ) -> driver.Options:
        """The driver's options with ranges for the first `quantize` that asks for any, or if none does, takes them.

        `read` imports the model for so many samples at once, 0: for its own number.
        """
        if self.calibration is None and self.ranges is None:
            return options
        found = driver.passes(options)
        at = next((i for meant in (asks, takes) for i, p in enumerate(found) if meant(p)), None)
        if at is None:
            hint = "--quantize i8"
            raise UsageError("E704", "nothing is quantized that ranges would be for", hint=hint)
        ranges, how, seen = self.ranges, self.calibration, None
        if how is not None:
            if any(isinstance(p, AQuant) and not p.data for p in found):
                seen = samples(how, read(0).inputs)
                if not seen:
                    hint = "as many as the network takes at once, or more"
                    raise UsageError("E730", "samples do not make up a batch", hint=hint)
                how = replace(how, source=seen)
            ranges = calibrate(read, found[:at], how, model, found[at].wanted)  # type: ignore[attr-defined]  # what asks has `wanted`
        assert ranges is not None
        meta = {**options.meta, "ranges": ranges.digest}
        return replace(options, ranges=ranges, samples=seen, meta=meta)


def asks(p: object) -> bool:
    """Whether a pass needs ranges that it has not: `aquant` with samples of its own observes those.

    >>> asks(Quantize()), asks(AQuant()), asks(AQuant(data="samples.npz")), takes(AQuant(data="samples.npz"))
    (True, True, False, True)
    """
    return takes(p) and not (isinstance(p, AQuant) and p.data)


def takes(p: object) -> bool:
    """Whether a pass has use for ranges."""
    if not isinstance(p, Quantize) or p.ranges or p.observed is not None:
        return False
    return p.activations != FLOAT or p.bias_correction
