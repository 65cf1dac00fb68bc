"""eval: how often an image is right about labelled data, with an interval, and beside another network.

knapper eval model.elf --data test.npz --mean .485,.456,.406 --std .229,.224,.225
knapper eval model.elf --data imagenet/val --reference model.onnx
"""

from __future__ import annotations

import argparse
import logging
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from knapper.isa.errors import KnapperError, UsageError, raise_all

from .. import files
from ..api import Image, load
from ..progress import Progress
from ..tables import Table, plural, show, table
from .options import TARGET, choice, consts, pixels, shapes

if TYPE_CHECKING:
    from ..dataset import Data
    from ..evaluate import Evaluation, Network

log = logging.getLogger("knapper")
ELF = b"\x7fELF"
IDLE = ("target", "precision", "pipeline", "shape", "const", "batch", "quantize", "calib", "ranges")
"""Options that have nothing to decide about an image."""
FLOATS = ("f16", "bf16", "f32", "f64")


def evaluate_file(a: argparse.Namespace) -> None:
    """`knapper eval`."""
    from ..dataset import open_data
    from ..evaluate import evaluate

    _check(a)
    network = open_network(a)
    data = open_data(a.data, network.inputs, choice(a))
    reference = _reference(a, network)
    _refuse(a, data, reference)
    started = time.perf_counter()
    with Progress("evaluating", quiet=a.quiet > 0) as progress:
        found = evaluate(
            network, data, pixels(a), reference=reference, output=a.scores or "", workers=a.threads, tell=progress
        )  # fmt: skip
    seconds = time.perf_counter() - started
    shown = [m for m in found.metrics if not a.metric or m in a.metric]
    if missing := [m for m in a.metric if m not in shown]:
        raise UsageError("E732", f"--metric {missing[0]}: scores have {found.classes} classes")
    if not shown:
        hint = "labels for top1 and top5, --reference for agreement and sqnr"
        raise KnapperError("E706", "nothing was compared", where=a.data, hint=hint)
    rows = {m: _metric(found, m) for m in shown}
    show(
        a,
        lambda: _facts(a, data, found, rows, seconds),
        [metrics(rows)],
        lambda: report(a, network, data, found, rows, seconds),
    )


def _check(a: argparse.Namespace) -> None:
    problems = [
        UsageError("E704", f"--{name} {value}: expected 1 or more")
        for name in ("limit", "threads", "batch")
        if (value := getattr(a, name)) is not None and value < 1
    ]
    raise_all(problems)


def _refuse(a: argparse.Namespace, data: Data, reference: Network | None) -> None:
    """UsageError E732 for metrics without what they need, before the work."""
    if data.labels is None and {"top1", "top5"} & {*a.metric}:
        hint = "--labels NAME|FILE says where they are"
        raise UsageError("E732", "top1 and top5 need labels", where=a.data, hint=hint)
    if reference is None and {"agreement", "sqnr"} & {*a.metric}:
        hint = "--reference FILE.elf, FILE.onnx or onnxruntime"
        raise UsageError("E732", "agreement and sqnr need another network", hint=hint)


# --- networks -----------------------------------------------------------------------------------------------------------


def open_network(a: argparse.Namespace) -> Network:
    """The image, or the model compiled."""
    from ..evaluate import Emulated

    return Emulated(_image(a), a.engine)


def _image(a: argparse.Namespace) -> Image:
    if _is_image(a.file):
        for option in IDLE:
            if getattr(a, option):
                raise UsageError("E704", f"--{option} does not apply: {a.file} is compiled already")
        return load(a.file)
    from knapper.compiler import driver
    from knapper.isa.machine import Machine

    from ..batches import Importer
    from .build import how, refuse_both

    refuse_both(a)
    machine = Machine.load(a.target or TARGET)
    importer = Importer(a.file, shapes(a.shape), consts(a.const))
    options = how(a, a.file, machine)
    fixed = a.batch or options.samples is not None  # which are in batches of the model's size
    graph = importer(a.batch or 0) if fixed else importer.batched()
    return Image(driver.finish(driver.optimize(graph, options), machine, options))


def _is_image(path: str) -> bool:
    return files.read(path)[: len(ELF)] == ELF


def _reference(a: argparse.Namespace, network: Network) -> Network | None:
    from ..evaluate import Emulated, InOnnxruntime

    if not a.reference:
        return None
    name = a.file if a.reference == "onnxruntime" else a.reference
    if _is_image(name):
        if a.reference == "onnxruntime":
            hint = "--reference MODEL.onnx"
            raise UsageError("E704", f"{a.file} is an image: which model?", hint=hint)
        return Emulated(load(name), a.engine)
    return InOnnxruntime(name, network.inputs)


# --- what is printed ----------------------------------------------------------------------------------------------------


def _metric(found: Evaluation, metric: str) -> dict[str, Any]:
    if metric == "sqnr":
        return {
            "value": found.sqnr if math.isfinite(found.sqnr) else None,
            "equal": found.sqnr == math.inf,
        }
    share = found.right(metric)
    row = {"value": share.value, "right": share.right, "of": share.of, "interval": share.interval}
    if metric == "agreement" or found.scored.other is None:
        return row
    lost, *interval = found.lost(metric)
    theirs = found.right(metric, reference=True).value
    return row | {"reference": theirs, "lost": lost, "lost_interval": interval}


def _facts(
    a: argparse.Namespace, data: Data, found: Evaluation, rows: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    return {
        "file": a.file, "data": a.data, "about": data.about, "samples": len(found), "metrics": rows,
        "nan": found.broken, "reference": a.reference, "seconds": seconds,
    }  # fmt: skip


COLUMNS = ("value", "right", "of", "low", "high", "reference", "lost", "lost low", "lost high")


def metrics(rows: Mapping[str, Any]) -> Table:
    """A metric a row; what it has no number for is empty. Bounds are of 95 %."""
    lines = []
    for metric, row in rows.items():
        low, high = row.get("interval", (None, None))
        less, more = row.get("lost_interval", (None, None))
        flat = {**row, "low": low, "high": high, "lost low": less, "lost high": more}
        lines.append((metric, *(flat.get(c) for c in COLUMNS)))
    return Table(lines, ("metric", *COLUMNS))


def report(
    a: argparse.Namespace, network: Network, data: Data, found: Evaluation, rows: Mapping[str, Any], seconds: float
) -> str:  # fmt: skip
    """A line for each metric, and what was measured."""
    lines: list[tuple[str, ...]] = [("samples", f"{len(found):,}: {data.about}")]
    first = next(iter(data.take([0]).values())).dtype
    for name, t in network.inputs.items():
        how = pixels(a).show(first) if t.dtype in FLOATS else "x"
        lines.append((name, f"{t}" if how == "x" else f"{t} = {how}"))
    for metric, row in rows.items():
        lines.append((metric, _line(metric, row)))
        if "lost" in row:
            low, high = row["lost_interval"]
            lost = f"{100 * row['lost']:.2f} points of the reference's {row['reference']:.2%} (95 %: {100 * low:.2f} to {100 * high:.2f})"
            lines.append(("  lost", lost))
    if found.broken:
        lines.append(("nan", f"the scores of {plural(found.broken, 'sample')} are no numbers"))
    lines.append(("time", f"{seconds:.1f} s, {1e3 * seconds / len(found):.1f} ms a sample"))
    return table(lines)


def _line(metric: str, row: Mapping[str, Any]) -> str:
    if metric == "sqnr":
        none = "outputs are equal" if row["equal"] else "outputs are zero or no numbers"
        return none if row["value"] is None else f"{row['value']:.2f} dB"
    low, high = row["interval"]
    return f"{row['value']:.2%}  ({row['right']:,} of {row['of']:,}; 95 %: {low:.2%} to {high:.2%})"
