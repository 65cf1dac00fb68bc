"""A model for several samples at once: launching costs as much for one as for many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from knapper.compiler.ir import Graph
from knapper.compiler.work import node_macs
from knapper.isa.errors import KnapperError, UsageError

from .doors import opened
from .onnx import read
from .onnx.file import Model, open_model
from .onnx.ports import declared_dims

if TYPE_CHECKING:
    from onnx import ModelProto

WORK = 1 << 29
"""Multiply-accumulates that samples which go together should have."""
MOST = 32
"""Samples that go together, at most."""


def fitting(g: Graph) -> int:
    """How many samples of a network should go together: a power of two."""
    types = g.types()
    macs = sum(node_macs(n, types) for n in g.nodes)
    size = min(MOST, WORK // max(macs, 1))
    return 1 << max(size.bit_length() - 1, 0)


def _open(
    model: Model, shapes: Mapping[str, Sequence[int]], batch: int
) -> dict[str, Sequence[int]]:
    """Sizes or shapes for first axes that nobody says the size of."""
    stored = {t.name for t in model.proto.graph.initializer}
    found: dict[str, Sequence[int]] = {}
    for i in model.proto.graph.input:
        first, *rest = declared_dims(i) or (None,)
        if first is None or first.HasField("dim_value") or i.name in {*stored, *shapes}:
            continue
        if first.dim_param and first.dim_param not in shapes:
            found[first.dim_param] = (batch,)
        elif not first.dim_param and all(d.HasField("dim_value") for d in rest):
            found[i.name] = (batch, *(d.dim_value for d in rest))
    return found


@dataclass(frozen=True)
class Importer:
    """A model with what the user fixes of it; called with the number of samples, 0 for the model's own.

    A first axis that the model leaves open, and the user too, has that number.
    """

    model: str | Path | ModelProto | Model
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    consts: Mapping[str, Any] = field(default_factory=dict)
    replace_fixed: bool = False

    def __call__(self, batch: int = 0) -> Graph:
        """The graph; UsageError E704 if inputs do not begin with one sample, or outputs not with what was asked for."""
        model = open_model(opened(self.model))
        fixed = {**self.shapes, **(_open(model, self.shapes, batch) if batch else {})}
        one = read(model, fixed, self.consts, replace_fixed=self.replace_fixed)
        sizes = {t.shape[0] if t.rank else None for t in one.inputs.values()}
        if batch == 0 or sizes == {batch}:
            return one
        if sizes != {1}:
            raise UsageError(
                "E704", f"a batch of {batch}: the model's inputs do not begin with one sample"
            )
        wide = {n: (batch, *t.shape[1:]) for n, t in one.inputs.items()}
        found = read(model, {**fixed, **wide}, self.consts, replace_fixed=True)
        types = found.types()
        if any(types[v].shape[:1] != (batch,) for v in found.outputs.values()):
            raise UsageError("E704", f"a batch of {batch}: the model's outputs do not have it")
        return found

    def batched(self) -> Graph:
        """For as many samples as keep launches busy; as it is, if it takes no other number."""
        one = self(1) if _open(open_model(opened(self.model)), self.shapes, 1) else self()
        size = fitting(one)
        if size == 1 or any(not t.rank or t.shape[0] != 1 for t in one.inputs.values()):
            return one
        try:
            return self(size)
        except KnapperError:
            return one
