"""conformance: ONNX's own suite, case by case."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from knapper.isa.errors import KnapperError, UsageError, raise_all
from knapper.isa.machine import Machine

from .. import files
from ..conformance import VERDICTS, Case, Outcome, by_op, cases, outcome, summary
from ..progress import Progress
from ..tables import Table
from ..tables import show as show_tables
from ..tally import Tally, tally, total
from .options import TARGET

COLUMNS = ("op", *VERDICTS)
HEAD = """# ONNX's own suite

`knapper conformance` compiles every case of `onnx.backend.test`, runs it on the emulator and compares what comes out with what the suite stores,
by the suite's tolerances; the absolute one is 1e-5 at least, and of 16-bit results both are 1e-2. This page is its output for volta-8tc,
float32 stored as fp32; `pytest tests/test_conformance.py` guards it.

- *passed*: the values are right and kernels made them; *folded*: right, but nothing was left to run when it was compiled
- *wrong*: values differ; *crashed*: a defect of knapper; *refused*: one error with a code, listed below
- *disputed*: values differ from the suite's, which contradict ONNX's own text; they are the text's and onnxruntime's
- *scope*: strings, sequences and optionals, which are no tensors of numbers

An input becomes a constant, as with `--const`, only where its value decides a shape or an attribute. The core list is what an accelerator for
neural networks should serve: `knapper conformance --select core`.
"""


def conformance(a: argparse.Namespace) -> None:
    """`knapper conformance`."""
    if a.markdown:
        files.check_place(a.markdown)
    machine = Machine.load(a.target or TARGET)
    chosen = cases(a.select)
    if not chosen:
        raise UsageError(
            "E704",
            f"no case is named {' or '.join(a.select)}",
            hint="patterns may have *; core is the core list",
        )
    found = measured(chosen, machine, a.pipeline or "fp32", a.quiet)
    if a.markdown:
        files.write(a.markdown, page(tally(found)).encode())
    one = shown(found, a.verbose)
    show_tables(
        a,
        lambda: [o.to_dict() for o in found],
        [one],
        lambda: f"{one.text()}\n{summary(found)}",
    )
    raise_all(failures(found))


def measured(chosen: list[Case], machine: Machine, pipeline: str, quiet: int) -> list[Outcome]:
    """What becomes of each case."""
    found = []
    with Progress("conformance", bool(quiet)) as progress:
        for i, c in enumerate(chosen):
            progress(i, len(chosen), c.name)
            found.append(outcome(c, machine, pipeline))
    return found


def shown(found: list[Outcome], verbose: int) -> Table:
    """A line an operator; with -v or for a few cases a line a case."""
    if verbose or len(found) <= 20:
        rows = [(o.name, o.verdict, o.instructions or "", o.matrix, o.why) for o in found]
        return Table(rows, ("case", "verdict", "instructions", "matrix", "why"))
    return Table([[r[c] or "" for c in COLUMNS] for r in by_op(found)], COLUMNS)


def page(rows: Sequence[Tally]) -> str:
    """The page of the documentation."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join([r.op, *(str(r.counts.get(v) or '') for v in VERDICTS)])} |" for r in rows]  # fmt: skip
    reasons = [f"- {r.op}: {why}" for r in rows for why in r.reasons]
    totals = [
        f"- the whole suite: {total(r.counts for r in rows)}",
        f"- the core list: {total(r.core for r in rows)}",
    ]
    return "\n".join([HEAD, *totals, "", *lines, "", "Not passed, and why:", "", *reasons, ""])


def failures(found: list[Outcome]) -> list[KnapperError]:
    """An E706 for each case with wrong values, or none for a reason of our own."""
    bad = (o for o in found if o.verdict in ("wrong", "crashed"))
    return [KnapperError("E706", o.why, where=o.name) for o in bad]
