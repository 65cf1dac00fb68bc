"""check: does the emulator compute what onnxruntime computes, and if not, where does it start.

knapper check model.onnx                                  outputs, and the launch that is farthest from onnxruntime's node
knapper check model.onnx --nodes                          every launch
knapper check model.onnx --reproducer fault.ir            the smallest graph that shows what is wrong
knapper check fault.ir                                    such a graph, against its own reference
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from knapper.compiler.ir import DTYPES, Array, Graph
from knapper.isa.errors import KnapperError, UsageError, raise_all
from knapper.isa.machine import Machine

from .. import files
from ..api import Image
from ..compare import HEAD, ORACLE, as_table
from ..inputs import gather, needed
from ..tables import Table, plural, show
from .build import read_model, refuse_both
from .execute import run
from .options import TARGET, consts, states

if TYPE_CHECKING:
    from ..checking.finding import Finding
    from ..checking.launches import Launched
    from ..checking.search import Run, Verdict
    from ..checking.subject import Levels, Subject, Way

log = logging.getLogger("knapper")
GRAPH = ".ir"


def check_model(a: argparse.Namespace) -> None:
    """`knapper check`. What is wrong overflows, and is compared all the same."""
    with np.errstate(all="ignore"):
        _check(a)


def _check(a: argparse.Namespace) -> None:
    from ..checking import search
    from ..checking.subject import Way

    refuse_both(a)
    if a.reproducer:
        _check_place(a.reproducer)
    machine, state = Machine.load(a.target or TARGET), states(a.state)
    way = Way(machine, a.pipeline, a.precision or "fp16", state)
    runner = _runner(a)
    graph = _graph(a)
    levels = way.levels(graph)
    subject, note = _subject(a, graph, levels)
    verdict = search.check(subject, way, runner, a.tolerance, levels)
    nodes = _nodes(verdict) if subject.values and subject.whose == ORACLE else []
    found = search.first_divergence(verdict) if verdict.problems or a.levels else None
    if found is not None:
        _tell(a, verdict, found, search.fp32_hint(verdict, found, way, runner, a.tolerance))
    _print(a, verdict, nodes, found, note)
    if a.reproducer:
        _reproduce(a, found, way, runner)
    raise_all(verdict.problems)


def _tell(a: argparse.Namespace, v: Verdict, found: Finding, hint: str) -> None:
    """Say with the last problem where it begins; of outputs that agree all the same, make it one."""
    said = "; ".join(filter(None, (found.text, hint)))
    if v.problems:
        last = v.problems[-1]
        v.problems[-1] = KnapperError("E706", last.message, where=a.model, hint=said)
    elif found.level != "none":
        problem = f"the outputs are near enough, but {found.text}"
        v.problems.append(KnapperError("E706", problem, where=a.model))


def _graph(a: argparse.Namespace) -> Graph:
    """What is to be checked: an imported model, or a graph."""
    from knapper.compiler import text

    if Path(a.model).suffix != GRAPH:
        return read_model(a)
    for option in ("shape", "const", "state"):
        if getattr(a, option):
            raise UsageError("E704", f"--{option} does not apply: {a.model} has it decided already")
    return text.load(a.model)


def _subject(a: argparse.Namespace, graph: Graph, levels: Levels) -> tuple[Subject, str]:
    """The network with its inputs and what should come out; and what there is to say of it."""
    from ..checking.nodes import intermediates
    from ..checking.subject import Subject
    from ..oracle import Oracle

    arrays = begun(graph, gather(needed(levels.program), a.input or ["random:0"]))
    if Path(a.model).suffix == GRAPH:
        return Subject.alone(a.model, graph, arrays), ""
    feed = {**consts(a.const), **arrays}
    expected = Oracle(a.model).run(feed)
    values: Mapping[str, Array] = {}
    note = _interpreted(Path(a.model), feed, expected)
    try:
        values = intermediates(a.model, graph, feed)
    except (KnapperError, ValueError) as e:
        note = f"onnxruntime does not tell values between nodes: {str(e).splitlines()[0]}"
    inputs = {n: arrays[n] for n in graph.inputs}
    return Subject(a.model, graph, inputs, expected, ORACLE, values), note


def _interpreted(model: Path, feed: Mapping[str, Array], converted: Mapping[str, Array]) -> str:
    """How far what a TFLite model is converted to is from TFLite; E706 if it is something else."""
    from ..tflite.file import ENDING

    if model.suffix != ENDING:
        return ""
    from ..tflite.interpreter import agreement

    return agreement(model, feed, converted)


def begun(graph: Graph, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """What the model is fed, in its own types: states begin as zeros."""
    zeros = {v: np.zeros(t.shape, DTYPES[t.dtype]) for v, t in graph.inputs.items() if v not in arrays}  # fmt: skip
    given = {v: np.asarray(a, DTYPES[graph.inputs[v].dtype]) if v in graph.inputs else a for v, a in arrays.items()}  # fmt: skip
    return {**zeros, **given}


def _runner(a: argparse.Namespace) -> Run:
    """Runs programs as the options say."""

    def runner(levels: Levels, feed: Mapping[str, Array]) -> Mapping[str, Array]:
        arrays = {p.name: feed[p.name] for p in levels.program.inputs}
        return run(Image(levels.program), arrays, a).outputs

    return runner


def _nodes(v: Verdict) -> list[Launched]:
    from ..checking.launches import against, walk

    return list(against(v.subject, walk(v.levels), v.levels.stored))


def _print(
    a: argparse.Namespace, v: Verdict, nodes: list[Launched], found: Finding | None, note: str
) -> None:
    """Outputs, launches, and what was found."""
    outputs = replace(as_table(v.found), title="outputs")
    launches = Table([_row(n) for n in nodes], ("node", "op", "launch", *HEAD), "nodes")

    def facts() -> dict[str, Any]:
        rows = [{"launch": n.launch, "op": n.op, "node": n.node, **n.of.to_dict()} for n in nodes]
        return {
            "outputs": [d.to_dict() for d in v.found],
            "nodes": rows,
            "first": found.to_dict() if found else None,
        }

    def text() -> str:
        shown = [outputs.plain()] * bool(v.found)
        if a.nodes and nodes:
            shown += ["", launches.plain()]
        elif nodes:
            shown.append(_worst(nodes))
        return "\n".join(shown)

    if v.found or nodes or a.json:
        show(a, facts, [outputs, launches] if a.nodes else [outputs], text)
    if note and not a.json:
        log.info("%s", note)


def _row(n: Launched) -> tuple[object, ...]:
    return (n.node, n.op, n.launch, *n.of.row())


def _worst(nodes: list[Launched]) -> str:
    """One line about all launches."""
    floats = [n for n in nodes if n.of.numeric]
    many = plural(len(nodes), "node")
    if not floats:
        return f"{many} compared"
    worst = min(floats, key=lambda n: (-n.of.strays, n.of.cosine))
    return f"{many} compared with {ORACLE}'s; farthest is {worst.node} ({worst.op}): cosine {worst.of.cosine:.7f}"


def _check_place(path: str) -> None:
    if Path(path).suffix != GRAPH:
        raise UsageError("E704", f"--reproducer {path}: expected a file that ends in {GRAPH}")
    files.check_place(path)


def _reproduce(a: argparse.Namespace, found: Finding | None, way: Way, runner: Run) -> None:
    """Write the smallest graph that shows what was found, and say how to see it."""
    from ..checking.reproducer import write

    if found is None or found.level == "none":
        log.info("%s: not written, since every level is within its precision", a.reproducer)
        return
    made = write(Path(a.reproducer), found, way, runner, _options(a))
    if made is None:
        log.warning("warning: %s: not written, since no part of the network shows it", a.reproducer)
        return
    files_made = ", ".join(map(str, (made.path, *made.beside)))
    log.info("%s: %s; this shows it:\n  %s", files_made, plural(made.nodes, "node"), made.command)


def _options(a: argparse.Namespace) -> list[str]:
    """What a command must say to run on the same machine in the same way."""
    words = [w for p in a.plugin for w in ("--plugin", p)]
    words += ["-t", a.target] if a.target else []
    words += ["--precision", a.precision] if a.precision else []
    words += ["--engine", a.engine] if a.engine != "fast" else []
    return words
