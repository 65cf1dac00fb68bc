"""Run a program: inputs in, launches in order, outputs and counts out.

    result = Session(program).run({"x": x})
    result.outputs["y"], result.stats.to_dict()

A program may have states, pairs of an input and an output that are one place in memory. A session keeps what is there from run to
run, on the device; no run copies it in or out:

    with Session(program) as session:
        for result in session.run_many({"token": t} for t in prompt): ...      # "past" begins as zeros
        session.state["past"]                                                  # a copy of what is there now
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from threading import RLock
from typing import TYPE_CHECKING, Any, Self, get_args

import numpy as np

from knapper.isa.errors import UsageError, raise_all
from knapper.isa.lanes import LANES
from knapper.isa.machine import Machine
from knapper.isa.program import Port, Program
from knapper.isa.rows import trimmed
from knapper.isa.systolic import Array as Units

from . import budget, html
from .budget import LIMIT, WORK, EngineName
from .decode import Decoded, decode
from .engine import Engine
from .memory import DTYPES, Array, Memory, require
from .reference import ReferenceEngine
from .stats import KernelFacts, LaunchStats, Stats

if TYPE_CHECKING:
    from .timing.meter import Meter, Metering

Progress = Callable[[float, int, str], None]
"""(launches done, of which the last may be a part; launches in all; what runs)."""


@dataclass(frozen=True)
class Result:
    """Outputs by name, and what it took."""

    outputs: dict[str, Array]
    stats: Stats

    def __repr__(self) -> str:
        shown = (f"{n}: {a.dtype}[{','.join(map(str, a.shape))}]" for n, a in self.outputs.items())
        return f"Result({', '.join(shown)}; {self.stats!r})"

    def _repr_html_(self) -> str:
        """In a notebook: a line an output, and the totals."""
        return html.page(html.spread(self.outputs), self.stats.totals())


class Kept(Mapping[str, Array]):
    """A session's states by the input's name; each is read from the device when it is asked for."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __getitem__(self, name: str) -> Array:
        return self._session.read({p.name: p for p in self._session.memory.kept}[name])

    def __contains__(self, name: object) -> bool:
        return any(p.name == name for p in self._session.memory.kept)

    def __iter__(self) -> Iterator[str]:
        return (p.name for p in self._session.memory.kept)

    def __len__(self) -> int:
        return len(self._session.memory.kept)

    def __repr__(self) -> str:
        return f"Kept({', '.join(f'{p.name}: {spell(p)}' for p in self._session.memory.kept)})"


class Session:
    """A loaded program: its memory, and what was compiled to run it, live as long as the session.

    Use it in `with`, or `close` it: its threads end.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.memory = Memory(program)
        self._engines: dict[tuple[Any, ...], Engine] = {}
        self._meter: Meter | None = None
        self._running = (
            RLock()
        )  # a session has one memory: runs from several threads wait for each other

    def run(
        self,
        inputs: Mapping[str, Array],
        engine: EngineName = "fast",
        checked: bool = False,
        threads: int = 2,
        limit: int = LIMIT,
        progress: Progress | None = None,
        work: int | None = None,
        timing: bool = False,
        jump: bool = True,
    ) -> Result:
        """Run all launches on the inputs.

        States need none: each has what the last run left, or zeros at first; an input given for one sets it. They are not among the
        result's outputs: `state` reads them.

        `checked` makes the fast engine look for races, reads of what was never written, and accesses that a launch does not
        declare; the reference engine always does. `limit` bounds the instructions of one warp in one launch, `work` the warp
        instructions of the whole run (None: `WORK` of the engine). `timing` adds cycles and energy; without `jump` it simulates every
        cycle of a steady state, to the same end. UsageError names everything that is wrong with the inputs; MachineFault tells
        where the machine stopped.
        """
        kept = {past for past, _ in self.program.state}
        raise_all(input_problems(self.program.inputs, inputs, kept))
        if engine not in get_args(EngineName):
            known = " and ".join(get_args(EngineName))
            raise UsageError("E723", f"no engine is called {engine!r}", hint=f"there are {known}")
        work = WORK[engine] if work is None else work
        budget.check(self.program, work)
        with self._running:
            return self._run(inputs, engine, checked, threads, limit, work, progress, timing, jump)

    def _run(
        self,
        inputs: Mapping[str, Array],
        engine: EngineName,
        checked: bool,
        threads: int,
        limit: int,
        work: int,
        progress: Progress | None,
        timing: bool,
        jump: bool,
    ) -> Result:
        total = len(self.program.launches)

        def tell(what: str) -> None:
            if progress is not None:
                progress(0, total, what)

        def compiling(parts: int) -> None:
            tell(
                f"compiling the emulator core ({parts} part{'s' * (parts != 1)}, kept for next time)"
            )

        runner = self.engine(engine, checked, threads, limit, compiling)
        self.memory.clear()
        for port in self.program.inputs:
            if port.name in inputs:
                self.memory.put(port, inputs[port.name])
        metering = self.metering(jump, tell) if timing else None
        counts = list[LaunchStats]()
        for i, launch in enumerate(self.program.launches):

            def tick(share: float, i: int = i, what: str = launch.note or launch.kernel) -> None:
                if progress is not None and share < 1:  # the next launch says the same
                    progress(i + share, total, what)

            tick(0)
            kernel, facts = self.program.kernels[launch.kernel], self._facts[launch.kernel]
            counted = runner.launch(launch, work, tick, timing)
            made = LaunchStats(launch, kernel, facts, counted)
            work -= made.instructions
            counts.append(made)
        if metering:  # afterwards: in turns, each would find its code and data evicted
            counts = [replace(s, measured=metering.launch(s.launch, s.counts)) for s in counts]
        kept = {present for _, present in self.program.state}
        results = [port for port in self.program.outputs if port.name not in kept]
        outputs = trimmed({port.name: self.memory.get(port) for port in results})
        provenance = self.provenance(inputs, engine, checked)
        clock = self.machine.clock_hz if timing else 0
        return Result(outputs, Stats(self.target, tuple(counts), provenance, clock))

    def once(self, inputs: Mapping[str, Array], **how: Any) -> Result:
        """A run that begins with every state zero, as a function of its inputs: the states are among the result's outputs."""
        with self._running:
            self.memory.reset()
            result = self.run(inputs, **how)
            kept = {present: past for past, present in self.program.state}
            read = {
                p.name: self.memory.get(p) if p.name in kept else result.outputs[p.name]
                for p in self.program.outputs
                if p.name in kept or p.name in result.outputs
            }
        return replace(result, outputs=read)

    def run_many(self, many: Iterable[Mapping[str, Array]], **how: Any) -> Iterator[Result]:
        """A result for each set of inputs, computed when it is asked for; `how` is as for `run`."""
        return (self.run(inputs, **how) for inputs in many)

    @property
    def state(self) -> Mapping[str, Array]:
        """The states by the input's name. Reading one copies it from the device."""
        return Kept(self)

    def read(self, port: Port) -> Array:
        """A copy of what is at a port, between two runs."""
        with self._running:
            return self.memory.get(port)

    def reset(self) -> None:
        """Make every state zero again."""
        with self._running:
            self.memory.reset()

    @cached_property
    def machine(self) -> Machine:
        """The target."""
        return Machine.from_dict(self.program.target)

    def metering(self, jump: bool, notice: Callable[[str], None] = lambda what: None) -> Metering:
        """What times and prices the launches of one run. `notice` is told if that must be compiled first."""
        from .timing.meter import Meter  # numba takes a while to import

        if self._meter is None:
            self._meter = Meter.of(self.machine, self.program.kernels, self.decoded)
        return self._meter.start(
            jump, lambda: notice("compiling the timing pass (kept for next time)")
        )

    @cached_property
    def decoded(self) -> Decoded:
        """All kernels, ready to run; MachineFault E601 for everything that the target cannot execute."""
        target = self.program.target
        return decode(
            list(self.program.kernels.values()),
            tuple(target.get("extensions", ())),
            Units.of(target),
        )

    @cached_property
    def _facts(self) -> dict[str, KernelFacts]:
        return {
            name: KernelFacts.of(kernel, self.decoded)
            for name, kernel in self.program.kernels.items()
        }

    @property
    def target(self) -> str:
        return str(self.program.target.get("name", ""))

    def engine(
        self,
        name: EngineName,
        checked: bool,
        threads: int,
        limit: int,
        compiling: Callable[[int], None] = lambda parts: None,
    ) -> Engine:
        """An engine for the program, made on first use. MachineFault if a kernel may not run, or needs too much memory.

        `compiling` is called with the number of missing parts before the fast engine's core is compiled.
        """
        assert self.decoded is not None  # or it raised
        key = (name, checked, threads, limit)
        if key not in self._engines:
            local = max(
                (LANES * k.warps * k.local_bytes for k in self.program.kernels.values()), default=0
            )
            require(local * threads, f"a block's local memory, in {threads} threads,")
            self._engines[key] = self._make(name, checked, threads, limit, compiling)
        return self._engines[key]

    def _make(
        self,
        name: EngineName,
        checked: bool,
        threads: int,
        limit: int,
        compiling: Callable[[int], None],
    ) -> Engine:
        if name == "reference":
            return ReferenceEngine(self.program, self.memory, limit)
        from .fast.engine import FastEngine  # llvmlite takes a while to import

        return FastEngine(
            self.program,
            self.memory,
            self.decoded,
            checked=checked,
            threads=threads,
            limit=limit,
            notice=compiling,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the engines' threads; another run would start them again."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()

    def provenance(self, inputs: Mapping[str, Array], engine: str, checked: bool) -> dict[str, Any]:
        """What made these numbers: the program's own record, the inputs, what earlier runs left, the engine."""
        digests = {
            n: hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()[:16]
            for n, a in sorted(inputs.items())
        }
        kept = [past for past, _ in self.program.state if past not in inputs]
        return {
            **self.program.meta,
            "engine": engine,
            "checked": checked,
            "inputs": digests,
            **({"kept": kept} if kept else {}),
            "numpy": np.__version__,
        }


def input_problems(
    ports: tuple[Port, ...], inputs: Mapping[str, Array], kept: Container[str] = ()
) -> Iterator[UsageError]:
    """Everything that is wrong with a set of inputs; those that are `kept` may be missing."""
    names = [p.name for p in ports]
    expected = f"the network has {', '.join(f'{p.name}: {spell(p)}' for p in ports) or 'no inputs'}"
    for name in sorted(set(inputs) - set(names)):
        yield UsageError("E720", f"there is no input {name!r}", hint=expected)
    for port in ports:
        if port.name not in inputs:
            if port.name in kept:
                continue
            yield UsageError("E720", f"input {port.name!r} is missing", hint=expected)
            continue
        value = np.asarray(inputs[port.name])
        if value.dtype != np.dtype(DTYPES[port.dtype]):
            said = f"{value.dtype}[{','.join(map(str, value.shape))}]"
            hint = f"convert it: x.astype({np.dtype(DTYPES[port.dtype]).name!r})"
            yield UsageError(
                "E722", f"input {port.name!r}: expected {spell(port)}, got {said}", hint=hint
            )
        elif value.shape != port.shape:
            got = f"{port.dtype}[{','.join(map(str, value.shape))}]"
            yield UsageError("E721", f"input {port.name!r}: expected {spell(port)}, got {got}")


def spell(port: Port) -> str:
    """A port's type: `f16[1,3,224,224]`."""
    return f"{port.dtype}[{','.join(map(str, port.shape))}]"
