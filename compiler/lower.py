"""From steps to kernels, by way of the cache: what is not on disk is prefetched, lowered and kept.

Groups with matrix work are lowered first, since their generators compute in this process, while what others prefetch is
made elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from knapper.isa.errors import KnapperError, Problems, raise_all
from knapper.isa.machine import Machine

from .cache import KernelCache
from .codegen.generator import GENERATORS, Group, Lowered, Packs
from .plan import Plan, Step
from .structure import Canonical
from .text import show_attrs


@dataclass(frozen=True)
class Job:
    """A step in canonical form, and the name of its kernels."""

    step: Step
    canonical: Canonical
    key: str

    @property
    def group(self) -> Group:
        return self.canonical.group


@dataclass
class Report:
    """What the cache did, for `-v` and tests."""

    hits: int = 0
    lowered: int = 0


def lower(
    plan: Plan, cache: KernelCache, report: Report | None = None
) -> tuple[tuple[Job, Lowered], ...]:
    """Kernels of every step, in the plan's order, under canonical names; raises every step that cannot be lowered at once."""
    jobs = [_job(s, plan.machine, cache) for s in plan.steps]
    first = {j.key: j for j in reversed(jobs)}
    made = {key: found for key in first if (found := cache.get(key)) is not None}
    report = report or Report()
    report.hits = len(made)
    missed = [first[key] for key in dict.fromkeys(j.key for j in jobs) if key not in made]
    _prefetch(missed, plan.machine)
    fresh = _lower_all(missed, plan.machine)
    report.lowered = len(fresh)
    for key, lowered in fresh.items():
        cache.put(key, _kept(first[key], lowered))
    return tuple(
        (
            j,
            _with_constants(
                j, (made | fresh)[j.key], j.key in fresh and j is first[j.key], plan.machine
            ),
        )
        for j in jobs
    )


def _job(step: Step, machine: Machine, cache: KernelCache) -> Job:
    canonical = Canonical.of(step.group)
    structure = canonical.text if isinstance(step.generator, Packs) else canonical.content()
    return Job(
        step, canonical, cache.key(step.kind, structure, show_attrs(step.options), machine.hash)
    )


def _prefetch(jobs: Sequence[Job], machine: Machine) -> None:
    for kind, generator in GENERATORS.items():
        if groups := [j.group for j in jobs if j.step.kind == kind]:
            generator.prefetch(groups, machine)


def _lower_all(jobs: Sequence[Job], machine: Machine) -> dict[str, Lowered]:
    done, problems = dict[str, Lowered](), list[KnapperError]()
    for j in sorted(jobs, key=lambda j: j.step.macs == 0):
        try:
            done[j.key] = j.step.generator.lower(j.group, j.step.options, machine)
        except Problems as e:
            problems += (_of(j, p) for p in e.problems)
        except KnapperError as e:
            problems.append(_of(j, e))
    raise_all(problems)
    return done


def _of(job: Job, e: KnapperError) -> KnapperError:
    """An error of a canonical group, with the launch's own name."""
    return type(e)(e.code, e.message, where=f"launch {job.step.name}", hint=e.hint)


def _kept(job: Job, lowered: Lowered) -> Lowered:
    """What goes to disk: not the constants that `pack` makes anew."""
    return replace(lowered, constants={}) if isinstance(job.step.generator, Packs) else lowered


def _with_constants(job: Job, lowered: Lowered, own: bool, machine: Machine) -> Lowered:
    """The kernels with this step's constants: `own` says that they were lowered for this very step."""
    generator = job.step.generator
    if own or not isinstance(generator, Packs):
        return lowered
    return replace(lowered, constants=generator.pack(job.group, job.step.options, machine))


def names(job: Job, nodes: Sequence[str]) -> tuple[str, ...]:
    """The graph's names of the nodes that a kernel names canonically."""
    back: Mapping[str, str] = job.canonical.nodes
    return tuple(back.get(n, n) for n in nodes)
