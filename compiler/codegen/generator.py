"""What the plan and the kernel generators say to each other.

    Group ── serves? candidates, cost ──► options ── lower ──► Lowered: kernels with symbolic addresses
                                             └────── evaluate ► the same launch, tile by tile, in numpy

A generator covers one engine of the machine. It never sees an address: `Emitted.params` name values, and the plan resolves
them once every buffer has its place. So equal groups give equal kernels, which are shared, and can be kept on disk.

A module in this folder that calls `register` is found by itself; a plugin calls `register` from outside.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, Protocol, TypeVar, runtime_checkable

from knapper.isa.core import SIMD
from knapper.isa.machine import Machine
from knapper.isa.parameters import HOST
from knapper.isa.program import Kernel

from ..ir import Array, Attr, Graph, Node, Type

Options = Mapping[str, Attr]
MODES = "modes"
"""The option that says the SM's modes at entry and exit, absent if both are SIMD; a plan's text shows it as `simd..systolic`."""


def modes_of(options: Options) -> tuple[str, str]:
    """The modes at entry and exit."""
    modes: Any = options.get(MODES, (SIMD, SIMD))
    return modes[0], modes[1]


@dataclass(frozen=True)
class Group:
    """The nodes of one launch, in order. Values between them live in registers; `inputs` and `outputs` are in memory."""

    name: str
    nodes: tuple[Node, ...]
    inputs: dict[str, Type]
    outputs: dict[str, Type]
    constants: dict[str, Array] = field(default_factory=dict)
    """Values of those inputs that are known now: weights."""

    @cached_property
    def found(self) -> dict[str, Any]:
        """What generators found out about it, each under its own name, so that they need not for every one of many options."""
        return {}

    def graph(self) -> Graph:
        """The group as a graph of its own, for the ops' references."""
        inputs = {v: t for v, t in self.inputs.items() if v not in self.constants}
        encodings = {v: e for v in self.constants if (e := self.inputs[v].encoding)}
        outputs = {v: v for v in self.outputs}
        return Graph(self.name, inputs, outputs, self.nodes, self.constants, encodings=encodings)


@dataclass(frozen=True)
class Emitted:
    """One kernel launch with symbolic addresses."""

    kernel: Kernel
    grid: tuple[int, int, int]
    params: tuple[str | int, ...]
    """64-bit words: a number, or the name of a value, constant or scratch buffer for its address."""
    uses: dict[str, str]
    """Name → "r", "w" or "rw"."""
    nodes: tuple[str, ...]
    """Names of the graph nodes it works for; `Kernel.roles` indexes them."""
    macs: int = 0


@dataclass(frozen=True)
class Lowered:
    """What a group became: launches in order, the constants they read (packed weights), scratch bytes they need."""

    launches: tuple[Emitted, ...]
    constants: dict[str, Array] = field(default_factory=dict)
    scratch: dict[str, int] = field(default_factory=dict)


class Generator(Protocol):
    """One way to turn groups into kernels."""

    @property
    def kind(self) -> str:
        """Its name in the table and in plans."""

    def serves(self, group: Group, machine: Machine) -> str | None:
        """None if the generator can take the group, else why not."""

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        """The option sets worth a cost estimate (tile, warps, stages, access, …); the first is taken if costs are equal."""

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        """Predicted cycles, from the machine's unit table."""

    def prefetch(self, groups: Sequence[Group], machine: Machine) -> None:
        """Start slow work for many groups in the background; `lower` waits for its own part."""

    def lower(self, group: Group, options: Options, machine: Machine) -> Lowered:
        """Emit kernels; CompileError naming the group if it does not fit the machine."""

    def evaluate(self, group: Group, options: Options, env: dict[str, Array]) -> dict[str, Array]:
        """The group's outputs by the tiling that the options say, in numpy: what the kernel will compute."""


@runtime_checkable
class Packs(Protocol):
    """A generator whose kernels do not depend on the contents of constants, only on their types.

    Its kernels are shared by groups that differ in weights, and a cached kernel needs no `lower`, only `pack`.
    """

    def pack(self, group: Group, options: Options, machine: Machine) -> dict[str, Array]:
        """`lower(…).constants`, without emitting code."""


def lanes_refuse(machine: Machine) -> str | None:
    """Why the SIMD lanes of a machine compute no launch of their own, or None. Its matrix kernels use them for their epilogues all the same."""
    if machine.nonmatrix == HOST:
        return f"{machine.name} leaves what its matrix engines do not serve to the host"
    return None


GENERATORS: dict[str, Generator] = {}
"""Kind → generator, in order of registration."""

G = TypeVar("G", bound=Generator)


def register(generator: G) -> G:
    """Add a generator to the table; ValueError if its kind is taken."""
    if generator.kind in GENERATORS:
        raise ValueError(f"a generator of kind {generator.kind!r} is registered already")
    GENERATORS[generator.kind] = generator
    return generator


def generators() -> dict[str, Generator]:
    """Every generator: imports the modules of this folder first."""
    _discover()
    return GENERATORS


@cache
def _discover() -> None:
    package = importlib.import_module(__package__ or "")
    for module in sorted(m.name for m in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"{package.__name__}.{module}")
