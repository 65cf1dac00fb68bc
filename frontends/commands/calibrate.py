"""calibrate: what the values of a network are over samples, in a file that `compile --ranges` reads, whatever the formats."""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files
from ..progress import Progress
from ..tables import plural, table
from .options import calibration, consts, shapes

if TYPE_CHECKING:
    from knapper.compiler.quantization.ranges import Ranges

log = logging.getLogger("knapper")
SHOWN = 12
"""Values in the table; `-v` shows all."""


def calibrate_model(a: argparse.Namespace) -> None:
    """`knapper calibrate`."""
    from knapper.compiler import pipeline

    from ..batches import Importer
    from ..calibrate import calibrate, split
    from ..quantizing import Request

    output = Path(a.output or Path(Path(a.model).name).with_suffix(".ranges.json"))
    files.check_place(output)
    how = calibration(a, a.images or "")
    assert how is not None  # --data is required
    Request(how)  # or there is no such method
    before = split(pipeline.preset("fp32"))[0]
    started = time.perf_counter()
    with Progress("calibrating", quiet=a.quiet > 0) as progress:
        importer = Importer(a.model, shapes(a.shape), consts(a.const))
        ranges = calibrate(importer, before, replace(how, tell=progress), a.model)
    files.write(output, ranges.show())
    if a.json:
        print(json.dumps(facts(ranges)))
        return
    print(report(ranges, None if a.verbose else SHOWN))
    seconds = time.perf_counter() - started
    log.info("%s: %s, %.1f s", output, plural(len(ranges.values), "value"), seconds)


def facts(ranges: Ranges) -> dict[str, object]:
    """What `--json` prints."""
    values = {
        n: {"low": s.low, "high": s.high, "mean": s.mean, "std": s.std, "count": s.count}
        for n, s in ranges.values.items()
    }
    return {"method": ranges.method, "values": values}


def report(ranges: Ranges, most: int | None) -> str:
    """A line a value: what was seen of it, and what its method makes of that for 8 bits."""
    from knapper.compiler.quantization.ranges import choose
    from knapper.isa.formats import FORMATS

    rows = []
    for name, s in list(ranges.values.items())[:most]:
        r = choose(s, ranges.method, FORMATS["u8"])
        rows.append(
            (name, s.count, *(f"{x:.4g}" for x in (s.low, s.high, s.mean, s.std, r.low, r.high)))
        )
    head = ["value", "seen", "least", "greatest", "mean", "std", f"{ranges.method}, u8", "to"]
    rest = len(ranges.values) - len(rows)
    return table(rows, head) + (f"\n{rest} more; -v shows them" if rest else "")
