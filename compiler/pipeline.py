"""Pipelines: passes in order, written as text, verified after each step and watched by hooks.

    default = parse("fold,dead,simplify")
    g = run(g, default, hooks=[Dump(Path("out")), Clock()])

A hook is called after the import (step 0) and after every pass. If a pass raises, or leaves a graph
that does not verify, its error gets the note `while running pass fold{limit=1}`, and `Dump` writes
crash.ir: the graph before that pass under a line with the passes that were still to run.
"""

from __future__ import annotations

import difflib
import time
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TextIO

from knapper.isa.errors import IRError, PassError, UsageError

from . import ops  # noqa: F401  (declares the ops that graphs are made of)
from .ir import Attr, Graph
from .passes import PASSES, Pass
from .passes.bitmap import Bitmap
from .passes.place import Place
from .passes.precision import Precision
from .text import parse_passes, save, show

PRESETS: dict[str, str] = {
    "fp16": "recurrent,fold,dead,simplify,bn,idioms,products,fold,simplify,integers,layout,precision,fold,dead,sparsity,fuse,bitmap",
    "bf16": 'recurrent,fold,dead,simplify,bn,idioms,products,fold,simplify,integers,layout,precision{type="bf16"},fold,dead,sparsity,fuse,bitmap',
    "fp32": 'recurrent,fold,dead,simplify,bn,idioms,products,fold,simplify,integers,layout,precision{type="fp32"},fold,dead,sparsity,fuse,bitmap',
}


# --- text ---------------------------------------------------------------------------------------


def parse(text: str) -> tuple[Pass, ...]:
    """Passes from text such as `fold,squant{bits=4}`; PassError E301, E302 or E304 names what is known.

    A precision's name stands for its preset: `fp32,place{kind=ffma}`. Of several `bitmap` the last one counts, so that the preset's, which
    would choose first, leaves all to `fp16,bitmap{force=true}`.

    >>> show_passes(parse("fold, fuse, place{kind=ffma}"))
    'fold,fuse,place{kind="ffma"}'
    """
    every = [p for name, options in _read(text) for p in _step(name, options)]
    choosing = [p for p in every if isinstance(p, Bitmap)]
    found = tuple(p for p in every if p not in choosing[:-1] or p is choosing[-1])
    late = [
        p for p, after in pairwise(found) if isinstance(p, Place) and not isinstance(after, Place)
    ]
    if late:
        problem = f"{late[0]} is not at the end: a pass behind it may undo it"
        raise PassError("E304", problem, hint="fuse,place{…} are the last")
    return found


def _read(text: str) -> list[tuple[str, dict[str, Attr]]]:
    """Names and options; UsageError E101 for other text: it was typed, or given by a call."""
    try:
        return parse_passes(text)
    except IRError as e:
        raise UsageError(e.code, e.message, where=e.where, hint=e.hint) from None


def _step(name: str, options: dict[str, Attr]) -> tuple[Pass, ...]:
    """The passes that one word of a pipeline means."""
    return parse(PRESETS[name]) if name in PRESETS and not options else (_make(name, options),)


def show_passes(passes: Iterable[Pass]) -> str:
    """The text that `parse` reads."""
    return ",".join(map(str, passes))


def preset(precision: str) -> tuple[Pass, ...]:
    """The default passes for a stored type of float tensors: fp16, bf16 or fp32."""
    if precision not in PRESETS:
        raise UsageError("E303", f"no precision {precision!r}", hint=_known(precision, PRESETS))
    return parse(PRESETS[precision])


def _make(name: str, options: dict[str, Attr]) -> Pass:
    cls = PASSES.get(name)
    if cls is None:
        raise PassError("E301", f"no pass named {name!r}", hint=_known(name, {**PASSES, **PRESETS}))
    types = typing.get_type_hints(cls)
    has = cls.declared()
    for option, value in options.items():
        if option not in has:
            hint = _known(option, has)
            raise PassError("E302", f"pass {name} has no option {option!r}", hint=hint)
        if not _fits(value, types[option]):
            want = getattr(types[option], "__name__", types[option])
            raise PassError("E302", f"pass {name}: {option} must be {want}, not {value!r}")
    return cls(**options)


def _fits(value: Attr, want: Any) -> bool:
    """Whether an option's value is of its field's type; an int serves as a float."""
    plain = typing.get_origin(want) or want
    if plain is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is plain


def _known(wrong: str, known: Iterable[str]) -> str:
    """A hint: what was meant, and what there is."""
    names = sorted(known)
    close = difflib.get_close_matches(wrong, names, 1)
    meant = f"did you mean {close[0]}? " if close else ""
    return f"{meant}known: {', '.join(names) or 'none'}"


# --- running ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """What a hook sees: the graph before and after a pass. Step 0 is the import (no pass)."""

    index: int
    name: str
    before: Graph
    after: Graph
    seconds: float


class Hook(Protocol):
    """Watches a pipeline."""

    def after(self, step: Step) -> None:
        """Called when a step is done and its graph has verified."""

    def failed(self, g: Graph, rest: Sequence[Pass]) -> None:
        """Called when the first of `rest` failed on `g`; the error goes on afterwards."""


def run(
    g: Graph, passes: Sequence[Pass], hooks: Sequence[Hook] = (), stop_after: str = ""
) -> Graph:
    """Apply the passes in order, verifying after each; `stop_after` names the last one to run."""
    if stop_after and stop_after not in (p.name for p in passes):
        hint = _known(stop_after, {p.name for p in passes})
        raise PassError("E301", f"cannot stop after {stop_after!r}: not in the pipeline", hint=hint)
    _tell(hooks, Step(0, "import", g, g.verify(), 0.0))
    for i, p in enumerate(passes):
        start = time.perf_counter()
        before, g = g, _guarded(p, g, passes[i:], hooks).with_(meta=_through(p, g.meta))
        _tell(hooks, Step(i + 1, p.name, before, g, time.perf_counter() - start))
        if p.name == stop_after:
            break
    return g


def _through(p: Pass, meta: Mapping[str, str]) -> dict[str, str]:
    """Where a graph is from that has gone through one more pass."""
    passes = ",".join(filter(None, [meta.get("pipeline", ""), str(p)]))
    stored = {"precision": p.type} if isinstance(p, Precision) else {}
    return {**meta, "pipeline": passes, **stored}


def _guarded(p: Pass, g: Graph, rest: Sequence[Pass], hooks: Sequence[Hook]) -> Graph:
    try:
        return p.run(g).verify()
    except Exception as e:
        e.add_note(f"while running pass {p}")
        for hook in hooks:
            hook.failed(g, rest)
        raise


def _tell(hooks: Sequence[Hook], step: Step) -> None:
    for hook in hooks:
        hook.after(step)


# --- hooks --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dump:
    """Writes every step as DIR/00-import.ir, DIR/01-fold.ir, …; crash.ir at a failure."""

    folder: Path

    def after(self, step: Step) -> None:
        """Write the step's graph."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save(step.after, self.folder / f"{step.index:02}-{step.name}.ir")

    def failed(self, g: Graph, rest: Sequence[Pass]) -> None:
        """Write the graph that the pass failed on, with what was to run: a golden test's input."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save(g, self.folder / "crash.ir", header=f"// passes: {show_passes(rest)}\n")


@dataclass(frozen=True)
class Clock:
    """Collects what each step took and left: rows of (name, seconds, nodes, constant bytes)."""

    rows: list[tuple[str, float, int, int]] = field(default_factory=list)

    def after(self, step: Step) -> None:
        """Add a row."""
        held = sum(a.nbytes for a in step.after.constants.values())
        self.rows.append((step.name, step.seconds, len(step.after.nodes), held))

    def failed(self, g: Graph, rest: Sequence[Pass]) -> None:
        """Nothing to add."""


@dataclass(frozen=True)
class Diff:
    """Writes what each step changed, as a unified diff of the texts."""

    out: TextIO

    def after(self, step: Step) -> None:
        """Write the difference, if there is one."""
        old, new = (show(x).splitlines(keepends=True) for x in (step.before, step.after))
        names = f"before {step.name}", f"after {step.name}"
        self.out.writelines(difflib.unified_diff(old, new, *names, n=1))

    def failed(self, g: Graph, rest: Sequence[Pass]) -> None:
        """Nothing to show."""
