"""Pruning: weights that matter least become zeros, by the patterns of `sparsity.patterns`, ranked over all layers together.

    prune{pattern=tw,sparsity=0.75,granularity=64}            tiles of 64 columns, magnitudes
    prune{scores="taylor.npz"}                                an array a weight, by its name, in its shape
    prune{groups=["conv1*|conv2*","fc*"]}                     layers that one list names are ranked together, all others too
    prune{stages=[0.25,0.5]}                                  first a quarter, then half, then `sparsity`: each ranks what is left
    prune{masks="masks.json"}                                 ready-made ones, such as training was done with

Weights are the constant second operands of Conv, MatMul and Gemm, seen as [K, N]; those of grouped convolutions stay, since a group is no
matrix of the others' kind. `layers` says which (names of weights, nodes, patterns with *, between |; ! leaves out).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from knapper.isa.errors import PassError, raise_all

from ..ir import Array, Graph, Node
from ..sparsity import Recipe, schedule, sidecar
from ..sparsity.ranking import EXACT
from ..sparsity.view import View, views
from .base import Pass
from .fold import Fold

PRODUCTS = frozenset(
    {"Attention", "Conv", "ConvTranspose", "Einsum", "GRU", "Gemm", "LSTM", "MatMul", "RNN"}
)
"""What multiplies by matrices that may be constants."""


@dataclass(frozen=True)
class Prune(Pass):
    """Make the weights zero that matter least."""

    name = "prune"
    pattern: str = "tw"
    sparsity: float = 0.75
    granularity: int = 128
    mode: str = EXACT
    delta: float = 0.05
    vector: int = 16
    block: tuple[int, ...] = (32, 32)
    n: int = 2
    m: int = 4
    apriori: float = 0.0
    stages: tuple[float, ...] = ()
    groups: tuple[str, ...] = ()
    layers: str = "*"
    scores: str = ""
    masks: str = ""

    @property
    def recipe(self) -> Recipe:
        """The pattern; UsageError E305 for what cannot be."""
        return Recipe(**{name: getattr(self, name) for name in Recipe.__dataclass_fields__})

    def run(self, g: Graph) -> Graph:
        """Multiply weights by masks, and say in their types what the zeros are."""
        g = Fold().run(g)  # weights may be stored in another type, or transposed
        return masked(g, self.chosen(g))

    def chosen(self, g: Graph) -> dict[str, sidecar.Mask]:
        """The mask of each weight of a folded graph that is pruned: as they are given, or ranked."""
        layers = {w.name: w for w in weights(g) if w.meant(self.layers)}
        if not layers:
            raise PassError("E304", f"prune: no weights are called {self.layers!r}", hint=_known(g))
        if self.masks:
            return self._given(layers)
        encoding = self.recipe.encoding
        ranked = self._ranked(layers)
        return {n: sidecar.Mask(layers[n].view.matrix(m), encoding) for n, m in ranked.items()}

    def _ranked(self, layers: dict[str, Weight]) -> dict[str, Array]:
        recipe = self.recipe
        options = {n: getattr(recipe, n) for n in Recipe.__dataclass_fields__ if n != "sparsity"}
        return schedule(
            {n: w.array for n, w in layers.items()}, (*self.stages, recipe.sparsity), groups=self._groups(layers),
            scores=self._scores(layers), views={n: w.view for n, w in layers.items()}, **options,
        )  # fmt: skip

    def _given(self, layers: dict[str, Weight]) -> dict[str, sidecar.Mask]:
        """Masks from a file."""
        read = sidecar.read(self.masks)
        if unknown := sorted(read.keys() - layers.keys()):
            problem = f"prune: there are masks of {', '.join(unknown)}, which are no weights here"
            raise PassError("E304", problem, where=self.masks, hint=_names(layers))
        raise_all(
            PassError("E305", f"prune: the mask of {n} is {s.shape}, the weight {list(layers[n].matrix.shape)}", where=self.masks)
            for n, s in read.items() if s.mask.shape != layers[n].matrix.shape
        )  # fmt: skip
        return read

    def _scores(self, layers: dict[str, Weight]) -> dict[str, Array] | None:
        if not self.scores:
            return None
        try:
            with Path(self.scores).open("rb") as raw:
                file = np.load(raw)
                if not isinstance(file, np.lib.npyio.NpzFile):
                    raise ValueError("one array, not an .npz file with an array for each weight")
                return {n: file[n] for n in file.files if n in layers}
        except (OSError, ValueError, EOFError, BadZipFile) as e:
            raise PassError("E305", f"prune: {e}", where=self.scores) from None

    def _groups(self, layers: dict[str, Weight]) -> list[list[str]]:
        return [[n for n, w in layers.items() if w.meant(names)] for names in self.groups]


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight of a product."""

    name: str
    node: Node
    array: Array
    view: View

    @property
    def matrix(self) -> Array:
        """As [K, N]."""
        return self.view.matrix(self.array)

    def masked(self, kept: Array) -> Array:
        """Zero where a mask of its shape says so."""
        return np.where(kept, self.array, np.zeros((), self.array.dtype))

    def meant(self, patterns: str) -> bool:
        """Whether a list of patterns names it."""
        given = [p for p in patterns.split("|") if p]
        names = {self.name, self.node.loc, self.node.op}

        def any_of(those: list[str]) -> bool:
            return any(fnmatchcase(n, p) for n in names for p in those)

        wanted = [p for p in given if not p.startswith("!")] or ["*"]
        return any_of(wanted) and not any_of([p[1:] for p in given if p.startswith("!")])


def weights(g: Graph) -> Iterator[Weight]:
    """The constants that exactly one kind of product reads as its weights."""
    users = g.users()
    for name, array in g.constants.items():
        nodes = [n for n in users.get(name, ()) if len(n.inputs) > 1 and n.inputs[1] == name]
        looks = views(name, array.ndim, nodes)
        grouped = any(n.op == "Conv" and n.attr("group") > 1 for n in nodes)
        if len(looks) == 1 and not grouped and array.dtype.kind in "fV":
            yield Weight(name, nodes[0], array, looks[0])


def masked(g: Graph, masks: Mapping[str, sidecar.Mask]) -> Graph:
    """The graph with weights zero where masks say so, and what the zeros are in their types."""
    layers = {w.name: w for w in weights(g) if w.name in masks}
    made = {n: w.masked(w.view.back(masks[n].mask, w.array.shape)) for n, w in layers.items()}
    encodings = {n: masks[n].encoding for n in layers}
    return g.with_(constants={**g.constants, **made}, encodings={**g.encodings, **encodings})


def alone(g: Graph) -> dict[str, Node]:
    """The constant matrices that products read, but `weights` are not: of recurrent layers, groups of channels, and the like."""
    pruned = {w.name for w in weights(g)}
    found: dict[str, Node] = {}
    for n in g.nodes:
        for v in n.inputs if n.op in PRODUCTS else ():
            w = g.constants.get(v)
            if w is not None and w.dtype.kind in "fV" and min((*w.shape[-2:], w.ndim)) > 1:
                found.setdefault(v, n)
    return {v: n for v, n in found.items() if v not in pruned}


def _names(layers: dict[str, Weight]) -> str:
    return f"there are {', '.join(list(layers)[:8])}"


def _known(g: Graph) -> str:
    if layers := {w.name: w for w in weights(g)}:
        return _names(layers)
    others = sorted({n.op for n in alone(g).values()})
    but = f", not those of {', '.join(others)}" if others else ""
    return f"prune wants products with constant weights{but}"
