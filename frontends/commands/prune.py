"""prune: zeros into a model's weights, and the masks beside it.

    knapper prune model.onnx --pattern tw --sparsity 0.75 -g 64 -o pruned.onnx --masks masks.json

The model stays as it is but for those weights, so that any framework can go on training it under the masks. Compiling `pruned.onnx`
finds the zeros by itself. Layers that lost all of their weights are told of, and weights that no pattern is for.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from knapper.compiler.ir import Array, Graph
from knapper.compiler.passes.fold import Fold
from knapper.compiler.passes.prune import Prune, Weight, alone, masked, weights
from knapper.compiler.sparsity import sidecar
from knapper.isa.errors import FrontendError, UsageError, raise_all

from .. import files
from ..pytorch import ENDING as PYTORCH
from ..tables import Table, show
from .build import read_model

log = logging.getLogger("knapper")

OPTIONS = ("pattern", "sparsity", "granularity", "mode", "delta", "scores", "masks", "layers")


def prune(a: argparse.Namespace) -> None:
    """`knapper prune`."""
    for path in (a.output, a.masks_out):
        if path:
            files.check_place(path)
    if a.output and Path(a.output).suffix == PYTORCH:
        raise UsageError("E704", f"-o {a.output}: what is written is an ONNX file")
    dense = Fold().run(read_model(a))
    how = Prune(**{o: v for o in OPTIONS if (v := getattr(a, o)) is not None})
    masks = how.chosen(dense)
    pruned = masked(dense, masks)
    kept = {w.name: w for w in weights(pruned) if w.name in masks}
    if a.output:
        files.write(a.output, _model(a.model, pruned, kept))
    if a.masks_out:
        files.write(a.masks_out, sidecar.show(masks))
    rows = [*_rows(dense, kept)]
    patterns = {n: str(m.encoding) for n, m in masks.items()}
    show(a, lambda: rows, [_table(rows, patterns)], lambda: _text(rows, patterns))
    for told in _warnings(dense, rows):
        log.warning(told)


def _warnings(dense: Graph, rows: list[dict[str, Any]]) -> Iterator[str]:
    """Layers without any weight, and weights that no pattern is for."""
    for r in rows:
        if not r["density"] and dense.constants[r["weight"]].any():
            name = r["weight"]
            yield f"{name} has no weight left: its layer computes its bias; --layers '!{name}' leaves it as it is"
    others = alone(dense)
    for op in sorted({n.op for n in others.values()}):
        mine = [v for v, n in others.items() if n.op == op]
        size = sum(dense.constants[v].size for v in mine)
        names = ", ".join(mine[:4]) + ", …" * (len(mine) > 4)
        yield f"{size:,} weights of {op} are left as they are: {names}"


def _rows(dense: Graph, kept: Mapping[str, Weight]) -> Iterator[dict[str, Any]]:
    for name, w in kept.items():
        before = np.square(dense.constants[name].astype(np.float64))
        energy = float(before[w.array != 0].sum() / (before.sum() or 1.0))
        yield {
            "weight": name, "k": w.matrix.shape[0], "n": w.matrix.shape[1],
            "density": float(np.mean(w.array != 0)), "energy": energy,
        }  # fmt: skip


def _table(rows: list[dict[str, Any]], patterns: Mapping[str, str]) -> Table:
    head = ("weight", "K", "N", "density", "energy kept", "pattern")
    keys = ("weight", "k", "n", "density", "energy")
    return Table([(*(r[key] for key in keys), patterns[r["weight"]]) for r in rows], head)


def _text(rows: list[dict[str, Any]], patterns: Mapping[str, str]) -> str:
    """The table, and what is true of all weights together."""
    size = sum(r["k"] * r["n"] for r in rows)
    density = sum(r["density"] * r["k"] * r["n"] for r in rows) / max(size, 1)
    lines = [
        (r["weight"], f"{r['k']} × {r['n']}", f"{r['density']:.4f}", f"{r['energy']:.4f}", patterns[r["weight"]])
        for r in rows
    ]  # fmt: skip
    total = ("all", f"{size:,}", f"{density:.4f}", "", "")
    return Table([*lines, total], ("weight", "K × N", "density", "energy kept", "pattern")).text()


def _model(path: str, pruned: Graph, kept: Mapping[str, Weight]) -> bytes:
    """The ONNX file with other numbers in its initializers; E305 for weights that are none of them."""
    from onnx import numpy_helper

    from ..doors import proto
    from ..onnx.builder import symbol

    model = proto(path)
    places = {symbol(i.name): i for i in model.graph.initializer}
    raise_all(
        FrontendError(
            "E305", "is no initializer of the model, but computed from others", where=n, hint="leave it out: --layers '!NAME'"
        )
        for n, w in kept.items() if n not in places or list(places[n].dims) != list(w.array.shape)
    )  # fmt: skip
    for name, w in kept.items():
        old = places[name]
        stored: Array = w.array.astype(numpy_helper.to_array(old).dtype)
        new = numpy_helper.from_array(stored, old.name)
        old.CopyFrom(new)
    return bytes(model.SerializeToString())
