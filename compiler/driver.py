"""The compiler's way through its levels, with a door at each.

    Graph ─ optimize ─► fused Graph ─ schedule ─► Plan ─ generate ─► Program
      ▲                     ▲                       ▲
      └────── from_ir ──────┘                   from_plan              `--from`: a file takes the place of what came before

`dump` is called with the name and value of everything on the way: "00-import", "01-fold", … with graphs, "plan" with the Plan,
"program" with the Program. `Files` is a dump that writes them all.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from knapper import __version__
from knapper.isa import caches, image
from knapper.isa.errors import raise_all
from knapper.isa.machine import Machine
from knapper.isa.program import Program

from . import ops as _declared  # noqa: F401  the op set
from . import pipeline as pipelines
from . import plan_text, text
from .assemble import assemble
from .cache import KernelCache, folder
from .groups import is_view
from .idle import idle_units
from .ir import Array, Graph, state_problems
from .lower import Report, lower
from .passes import Pass
from .passes.aquant import AQuant
from .passes.quantize import Quantize
from .passes.state import State
from .plan import Plan
from .plugins import sources
from .quantization.ranges import Ranges
from .schedule import Forced, schedule
from .tvm import cache as tir

log = logging.getLogger("knapper")
Dump = Callable[[str, Graph | Plan | Program], None]
"""Called with the name and the value of each level on the way."""


@dataclass(frozen=True)
class Options:
    """How to compile, beside the target. Plain defaults give what `knapper compile MODEL` does."""

    pipeline: str | None = None
    """Passes as text; None: the preset of `precision`."""
    precision: str = "fp16"
    forced: Forced = field(default_factory=dict)
    """What launches must have, by group name pattern: `{"conv*": {"kind": "ffma"}}`."""
    meta: Mapping[str, str] = field(default_factory=dict)
    """Provenance that the caller knows, such as the model file's hash under "model"."""
    cache: Path | None = None
    """Kernel cache; None: `$KNAPPER_CACHE` or the user's cache folder."""
    hooks: Sequence[pipelines.Hook] = ()
    machine: Machine | None = None
    """Whose cost model passes ask, such as `im2col{mode="auto"}`; what makes a program sets it."""
    ranges: Ranges | None = None
    """What calibration has seen, for passes `quantize` that have no file of ranges."""
    samples: Sequence[Mapping[str, Array]] | None = None
    """Inputs of the network, for passes `aquant` that have no file of samples."""
    state: Mapping[str, str] = field(default_factory=dict)
    """Input → the output that is its next value: the network keeps it on the machine from run to run."""


def compile_graph(
    graph: Graph,
    machine: Machine,
    pipeline: str | None = None,
    precision: str = "fp16",
    dump: Dump | None = None,
    *,
    forced: Forced | None = None,
    meta: Mapping[str, str] | None = None,
    cache: Path | None = None,
    hooks: Sequence[pipelines.Hook] = (),
    state: Mapping[str, str] | None = None,
) -> Program:
    """A network for a machine.

    Errors: those of the passes (E3xx), E410 for nodes that no generator serves, all at once, E4xx of the generators.
    """
    options = Options(
        pipeline, precision, forced or {}, meta or {}, cache, hooks, machine, state=state or {}
    )
    return finish(optimize(graph, options, dump), machine, options, dump)


def optimize(graph: Graph, options: Options = Options(), dump: Dump | None = None) -> Graph:
    """Level 1: the passes, verified one by one. The result says where it is from, beside what `options.meta` says.

    States get their places at the end. IRError E104 for a state that is none.
    """
    graph = graph.with_(meta=_origin(graph, options), state={**graph.state, **options.state})
    raise_all(state_problems(graph, graph.types()))
    hooks = [*options.hooks, *([_Tell(dump)] if dump else [])]
    wanted = passes(options)
    if graph.state and [p.name for p in wanted if p.name in ("fuse", "state")] == ["fuse"]:
        wanted = (*wanted, *_on((State(),), options.machine))
    return pipelines.run(graph, wanted, hooks)


def finish(
    graph: Graph,
    machine: Machine,
    options: Options = Options(),
    dump: Dump | None = None,
) -> Program:
    """Levels 2 and 3, from a fused graph on."""
    return generate(plan(graph, machine, options, dump), options, dump)


def plan(
    graph: Graph, machine: Machine, options: Options = Options(), dump: Dump | None = None
) -> Plan:
    """Level 2, from a fused graph on. Warns of matrix units that nothing has kernels for."""
    made = schedule(graph, machine, options.forced)
    if any(s.macs for s in made.steps):
        for line in idle_units(machine):
            log.warning("warning: %s", line)
    if dump:
        dump("plan", made)
    return made


def generate(
    plan: Plan,
    options: Options = Options(),
    dump: Dump | None = None,
) -> Program:
    """Level 3: kernels, from the cache where it has them, data and addresses."""
    cache, report = KernelCache(options.cache or folder(), sources()), Report()
    most = caches.limit()
    known = {"knapper": __version__} | _origin(plan.graph, options)
    program = assemble(plan, lower(plan, cache, report), known)
    if report.lowered:
        caches.tidy(cache.folder, most)
        caches.tidy(tir.folder(), most)
    if dump:
        dump("program", program)
    return program


def from_ir(
    path: Path, machine: Machine, options: Options = Options(), dump: Dump | None = None
) -> Program:
    """Compile a `.ir` file.

    A fused graph goes on as it is, unless a pipeline is asked for; another goes through the passes.
    """
    graph = text.load(path)
    if options.pipeline is None and is_fused(graph):
        return finish(graph, machine, options, dump)
    return finish(optimize(graph, replace(options, machine=machine), dump), machine, options, dump)


def from_plan(
    path: Path, machine: Machine, options: Options = Options(), dump: Dump | None = None
) -> Program:
    """Compile a `.plan` file; E412 and E413 for what is not legal on the machine, with its line."""
    return generate(plan_text.load(path, machine), options, dump)


@dataclass(frozen=True)
class Files:
    """A dump that writes every level to a folder: `00-import.ir`, …, `plan.plan`, `program.s` and `program.elf`."""

    folder: Path

    def __call__(self, name: str, level: Graph | Plan | Program) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if isinstance(level, Graph):
            text.save(level, self.folder / f"{name}.ir")
        elif isinstance(level, Plan):
            plan_text.save(level, self.folder / f"{name}.plan")
        else:
            from knapper.isa import asm

            asm.save(level, self.folder / f"{name}.s")
            image.save(level, self.folder / f"{name}.elf")


def is_fused(graph: Graph) -> bool:
    """Whether every node has its group or is a view, and so needs no pass before it is scheduled."""
    return any(n.group for n in graph.nodes) and all(n.group or is_view(n) for n in graph.nodes)


def passes(options: Options) -> tuple[Pass, ...]:
    """The passes that the options ask for."""
    text = options.pipeline
    found = pipelines.preset(options.precision) if text is None else pipelines.parse(text)
    return _on(tuple(_with_data(p, options) for p in found), options.machine)


def _on(found: tuple[Pass, ...], machine: Machine | None) -> tuple[Pass, ...]:
    return found if machine is None else tuple(p.on(machine) for p in found)


def _with_data(p: Pass, options: Options) -> Pass:
    """A pass with the samples, and what was seen of them, if it lacks any."""
    if options.samples is not None and isinstance(p, AQuant) and not p.data:
        p = replace(p, batches=options.samples)
    if options.ranges is not None and isinstance(p, Quantize) and not p.ranges:
        return replace(p, observed=options.ranges)
    return p


@dataclass(frozen=True)
class _Tell:
    """A pipeline's hook that passes each graph on to a dump."""

    dump: Dump

    def after(self, step: pipelines.Step) -> None:
        self.dump(f"{step.index:02}-{step.name}", step.after)

    def failed(self, g: Graph, rest: Sequence[Pass]) -> None:
        self.dump("crash", g)


def _origin(graph: Graph, options: Options) -> dict[str, str]:
    """Where a graph is from: what it says itself, what the caller knows, or the hash of its own text."""
    known = {**graph.meta, **options.meta}
    return known if "model" in known else {"model": _graph_hash(graph), **known}


def _graph_hash(g: Graph) -> str:
    return hashlib.sha256(text.show(g).encode()).hexdigest()
