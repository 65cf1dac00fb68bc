"""The generator of kind "host": what no matrix engine of a machine with `nonmatrix = "host"` serves.

The values are those of the same SIMD kernel that another machine would run: some generator of this package makes it (option `code`), and the
emulator runs it. So a network has the same bits on every target. What is modelled is what it costs: the launch record marks the launch as the
host's, with the bytes that cross the link (`compiler.link`), and timing and energy are those of the host core and the link
(`runtime.timing.host`). No SM works meanwhile, whatever the kernel's grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from knapper.isa.machine import Machine
from knapper.isa.parameters import HOST

from ...ir import Array
from ..generator import GENERATORS, Generator, Group, Lowered, Options, lanes_refuse, register

CODE = "code"
"""The option that says which generator makes the kernel."""
OPERATIONS = 4
"""Operations an element and node that a prediction counts; a run counts those that were executed."""


@lru_cache(16)
def simt(machine: Machine) -> Machine:
    """The machine if its SIMD lanes ran everything."""
    return machine.with_(nonmatrix="simt")


class Host:
    """The generator."""

    kind = HOST

    def serves(self, group: Group, machine: Machine) -> str | None:
        if not lanes_refuse(machine):
            return f"{machine.name} has no host"
        refusals = self._refusals(group, machine)
        if own := [kind for kind, why in refusals.items() if why is None]:
            return f"{own[0]} serves it"
        refusals = self._refusals(group, simt(machine))
        if None in refusals.values():
            return None
        return "; ".join(f"its {kind} code: {why}" for kind, why in refusals.items())

    def _refusals(self, group: Group, machine: Machine) -> dict[str, str | None]:
        """What the other generators say of a group."""
        return {k: g.serves(group, machine) for k, g in GENERATORS.items() if g is not self}

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        """One: the code is chosen as on the machine's own lanes, what it costs there is nothing to the host."""
        refusals, lanes = self._refusals(group, simt(machine)), simt(machine)
        offers = [
            (GENERATORS[kind].cost(group, options, lanes), {CODE: kind, **options})
            for kind, why in refusals.items()
            if why is None
            for options in GENERATORS[kind].candidates(group, lanes)
        ]
        yield min(offers, key=lambda offer: offer[0])[1]

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        """Cycles as if the host were asked for this launch alone, and all but constants crossed the link."""
        crossing = [t.bytes for v, t in group.inputs.items() if v not in group.constants]
        crossing += [t.bytes for t in group.outputs.values()]
        operations = OPERATIONS * sum(t.count for n in group.nodes for t in n.types)
        seconds = (
            sum(crossing) / machine.link_bytes_per_second
            + operations / (machine.host_clock_hz * machine.host_flops_per_cycle)
            + machine.host_microseconds * 1e-6
        )
        return seconds * machine.clock_hz

    def prefetch(self, groups: Sequence[Group], machine: Machine) -> None:
        for kind, generator in GENERATORS.items():
            lanes = simt(machine)
            mine = [g for g in groups if kind != self.kind and generator.serves(g, lanes) is None]
            if mine:
                generator.prefetch(mine, lanes)

    def lower(self, group: Group, options: Options, machine: Machine) -> Lowered:
        code, own = _inner(options)
        return code.lower(group, own, simt(machine))

    def evaluate(self, group: Group, options: Options, env: dict[str, Array]) -> dict[str, Array]:
        code, own = _inner(options)
        return code.evaluate(group, own, env)


def _inner(options: Options) -> tuple[Generator, Options]:
    """The generator that makes the kernel, and its options."""
    return GENERATORS[str(options[CODE])], {k: v for k, v in options.items() if k != CODE}


register(Host())
