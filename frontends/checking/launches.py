"""A program, launch by launch: what each makes of what it finds in memory, against the plan's reference for that.

Errors do not travel here: a launch's reference is computed from the very bytes that the launch reads. And what it reads must be what
the launch before it left there, or the memory plan let somebody write over it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from knapper.compiler.ir import DTYPES, Array, Type, evaluate
from knapper.compiler.plan import Plan, Step
from knapper.compiler.plan_text import step_line
from knapper.compiler.sparsity.bitmap import Layout
from knapper.isa.errors import KnapperError
from knapper.isa.program import BASE, Launch, Program
from knapper.runtime.memory import Memory
from knapper.runtime.session import Session

from ..compare import Difference, difference
from .subject import Levels, Subject, close, held

LIMIT = 1 << 32
RESTORED = re.compile(r"(\.(f16|bf16|f32|t|dense)(\.\d+)?)+$")
"""Tags that passes put behind the name of a value that they cast, transpose or encode: it is still that value."""


@dataclass(frozen=True)
class Bad:
    """A launch that goes wrong."""

    step: Step
    launches: tuple[Launch, ...]
    value: str
    """What it writes, or reads, that is wrong."""
    ours: Array
    theirs: Array
    of: Difference
    inputs: Mapping[str, Array]
    """What it finds."""
    kind: Literal["program", "plan", "memory"]
    index: int


@dataclass
class Walk:
    """A program on its way from launch to launch."""

    plan: Plan
    program: Program
    engine: Literal["fast", "reference"] = "fast"
    threads: int = 1
    left: dict[str, Array] = field(default_factory=dict)
    """What was put into memory so far, by the value whose memory it is."""

    @cached_property
    def session(self) -> Session:
        """The emulator."""
        return Session(self.program)

    @property
    def memory(self) -> Memory:
        return self.session.memory

    @cached_property
    def spans(self) -> tuple[tuple[Step, tuple[Launch, ...]], ...]:
        """Each step with its launches: those that carry its line."""
        found, rest = [], [*self.program.launches]
        for step in self.plan.steps:
            line, own = step_line(self.plan, step), []
            while rest and rest[0].note == line:
                own.append(rest.pop(0))
            found.append((step, tuple(own)))
        return tuple(found)

    def begin(self, feed: Mapping[str, Array]) -> None:
        """Inputs in memory, nothing else."""
        inputs = held(self.plan.graph, feed)
        self.memory.clear()
        for port in self.program.inputs:
            self.memory.put(port, inputs[port.name])
        self.left = dict(inputs)

    def run(self, launches: tuple[Launch, ...]) -> None:
        """Execute launches on what is there."""
        runner = self.session.engine(self.engine, False, self.threads, LIMIT)
        for launch in launches:
            runner.launch(launch)

    def read(self, value: str, t: Type) -> Array | None:
        """A value as it is in memory; None for what lies there in a way that nobody but kernels reads."""
        if value in self.plan.known:
            return self.plan.known[value]
        buffer = self.plan.buffer(value)
        if buffer is None:
            return None
        start = self.program.arena_address - BASE + buffer.offset
        if t.encoding is None or t.encoding.name != "bitmap":
            raw: Array = self.memory.data[start : start + t.dense.bytes].copy()
            shaped: Array = raw.view(DTYPES[t.dtype]).reshape(t.shape)
            return shaped
        layout = Layout(t.shape, int(t.encoding["pad"]))
        found: Array = layout.decode(
            self.memory.data[start : start + layout.bytes], DTYPES[t.dtype]
        )
        return found

    def steps(self, feed: Mapping[str, Array]) -> Iterator[tuple[Step, dict[str, Array]]]:
        """Run all; each step with what it left in memory."""
        self.begin(feed)
        for step, launches in self.spans:
            self.run(launches)
            found = ((v, self.read(v, t)) for v, t in step.group.outputs.items())
            yield step, {v: a for v, a in found if a is not None}

    def first_bad(self, feed: Mapping[str, Array]) -> Bad | None:
        """The first launch that goes wrong."""
        self.begin(feed)
        for i, (step, launches) in enumerate(self.spans):
            read = {v: self.read(v, t) for v, t in step.group.inputs.items()}
            inputs = {v: a for v, a in read.items() if a is not None}
            for v, a in inputs.items():
                kept = self.left.get(self.plan.roots[v], a)
                if v not in step.group.constants and a.tobytes() != kept.tobytes():
                    theirs = kept.reshape(-1).view(a.dtype).reshape(a.shape)
                    d = difference(v, a, theirs)
                    return Bad(step, launches, v, a, theirs, d, inputs, "memory", i)
            self.run(launches)
            if len(inputs) < len(read):
                continue
            if (bad := self._wrong(i, step, launches, inputs)) is not None:
                return bad
        return None

    def overwriter(self, feed: Mapping[str, Array], bad: Bad) -> str:
        """The launch that wrote over a value which was still to be read."""
        t = bad.step.group.inputs[bad.value]

        def there() -> bool:
            now = self.read(bad.value, t)
            return now is not None and now.tobytes() == bad.theirs.tobytes()

        self.begin(feed)
        seen = there()
        for step, launches in self.spans[: bad.index]:
            self.run(launches)
            if seen and not there():
                return step.name
            seen = there()
        return ""

    def _wrong(
        self, index: int, step: Step, launches: tuple[Launch, ...], inputs: dict[str, Array]
    ) -> Bad | None:
        """What a launch left that is wrong; else it is kept in mind."""
        want = evaluate(step.group.graph(), {v: a for v, a in inputs.items() if v not in step.group.constants})  # fmt: skip
        for v, t in step.group.outputs.items():
            ours = self.read(v, t)
            if ours is None or v not in want:
                continue
            d = difference(v, ours, want[v])
            if not close(d, ours):
                planned = self._planned(step, inputs).get(v)
                kind: Any = "plan" if planned is not None and agree(ours, planned) else "program"
                return Bad(step, launches, v, ours, want[v], d, inputs, kind, index)
            self.left[self.plan.roots[v]] = np.ascontiguousarray(ours)
        return None

    def _planned(self, step: Step, inputs: dict[str, Array]) -> dict[str, Array]:
        """The outputs by the generator's own tiling."""
        try:
            return step.generator.evaluate(step.group, step.options, dict(inputs))
        except KnapperError:
            return {}


def agree(ours: Array, theirs: Array) -> bool:
    """Whether two arrays are close."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    return close(difference("", ours, theirs), ours)


def walk(levels: Levels, engine: Literal["fast", "reference"] = "fast", threads: int = 1) -> Walk:
    """A program to walk through."""
    return Walk(levels.plan, levels.program, engine, threads)


# --- against onnxruntime ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launched:
    """A value that a launch left in memory, against onnxruntime's."""

    launch: str
    node: str
    op: str
    of: Difference


def against(subject: Subject, walk: Walk, stored: Any = None) -> Iterator[Launched]:
    """What launches leave in memory, against what onnxruntime computes under the same name.

    Passes put a tag behind the name of a value that they store in another way; types are widened, channels put back in front.
    `stored`: the type in which ulps are counted.
    """
    makers = subject.graph.producers()
    for step, found in walk.steps(subject.feed):
        for v, a in found.items():
            name = RESTORED.sub("", v)
            theirs, n = subject.values.get(name), makers.get(name)
            if theirs is None or n is None or (ours := _alike(a, theirs)) is None:
                continue
            of = difference(name, ours, theirs, stored=stored)
            yield Launched(step.name, n.loc or name, n.op, of)


def _alike(ours: Array, theirs: Array) -> Array | None:
    """Ours in the type and layout of theirs: of several that fit, the one that is nearest."""
    if (ours.dtype.kind in "biu") != (theirs.dtype.kind in "biu"):
        return None
    looks = [ours] if ours.shape == theirs.shape else []
    if ours.ndim == 4:
        looks += [x for x in (ours.transpose(0, 3, 1, 2),) if x.shape == theirs.shape]
    if not looks and ours.size == theirs.size and ours.ndim != theirs.ndim:
        looks = [ours.reshape(theirs.shape)]
    wide = [x.astype(theirs.dtype) for x in looks]
    return min(wide, key=lambda x: -difference("", x, theirs).cosine, default=None)
