"""calibrate: what the values of a network are over samples, in a file that `compile --ranges` reads, whatever the formats."""

from __future__ import annotations

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files
from ..progress import Progress
from ..tables import Table, plural, show
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
    shown = None if a.verbose or a.format != "table" else SHOWN
    seen = report(ranges, shown)
    rest = len(ranges.values) - len(seen.rows)
    more = f"\n{rest} more; -v shows them" if rest else ""
    show(a, lambda: facts(ranges), [seen], lambda: seen.text() + more)
    seconds = time.perf_counter() - started
    if ranges.infinite:
        named = ", ".join(f"%{v}" for v in sorted(ranges.infinite)[:SHOWN])
        log.warning("infinite in some samples, so that they stay floats: %s", named)
    log.info("%s: %s, %.1f s", output, plural(len(ranges.values), "value"), seconds)


def facts(ranges: Ranges) -> dict[str, object]:
    """What `--json` prints."""
    values = {
        n: {"low": s.low, "high": s.high, "mean": s.mean, "std": s.std, "count": s.count}
        for n, s in ranges.values.items()
    }
    return {"method": ranges.method, "values": values, "infinite": sorted(ranges.infinite)}


def report(ranges: Ranges, most: int | None) -> Table:
    """A line a value: what was seen of it, and what its method makes of that for 8 bits."""
    from knapper.compiler.quantization.ranges import choose
    from knapper.isa.formats import FORMATS

    rows = []
    for name, s in list(ranges.values.items())[:most]:
        r = choose(s, ranges.method, FORMATS["u8"])
        spread = (s.low, s.high, s.mean, s.std, r.low, r.high)
        rows.append((name, s.count, *map(float, spread)))
    head = ("value", "seen", "least", "greatest", "mean", "std", f"{ranges.method}, u8", "to")
    return Table(rows, head)
