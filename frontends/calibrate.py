"""Calibration: a float network runs over samples, and what each of its values was goes into a file of ranges.

    class Reader:                                    # as of onnxruntime.quantization.CalibrationDataReader
        def get_next(self): …                        # {"input": f32[n,3,32,32]}, in the end None

    image = knapper.compile("net.onnx", quantize="i8", calibration=Reader())

What a reader gives is what the network takes. A dict, an iterable of dicts, an `.npz` file and a folder of pictures do as well; those of
files have pixels, which `Pixels` scales.

        import ─► passes before `quantize` ─► graph ─► every value that has readers made an output ─► fp32 on the emulator ─► Ranges
                                                └────────────────────────────── names ──────────────────────────────────────────┘

The values' names are those that `quantize` meets, since the same passes have run. onnxruntime, which knows the model's own names, is the
faster engine where passes leave values as they are: the first samples are computed by both, and compared.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np

from knapper.compiler import pipeline
from knapper.compiler.ir import Array, Graph, Type
from knapper.compiler.passes import Pass
from knapper.compiler.quantization.layers import fingerprint
from knapper.compiler.quantization.ranges import Ranges
from knapper.compiler.quantization.statistics import Statistics
from knapper.isa.errors import KnapperError, PassError, UsageError

from .api import Image
from .batches import fitting
from .dataset import Arrays, Choice, open_data
from .evaluate import PLAIN, Emulated, InOnnxruntime, Network, Tell, Values
from .feed import Feed, Pixels
from .workers import spread

log = logging.getLogger("knapper")
SAMPLES = 256
"""Samples of a file or folder that are taken where nobody says."""
CLOSE = 1e-3
"""Of the greatest magnitude: how far onnxruntime's values may be from the emulator's."""
MACHINE = "volta-8tc"
"""Its emulator computes ranges. Values in fp32 are the same on all machines."""
TRAINING = Choice(split="train", limit=SAMPLES)
SILENT: Tell = lambda done, total, what: None  # noqa: E731  a default, with its type
Job = Callable[[], Values]
"""Gives inputs of at most the network's batch."""


@runtime_checkable
class Reader(Protocol):
    """onnxruntime's: inputs by name, or None after the last."""

    def get_next(self) -> Mapping[str, Any] | None: ...


Source = str | Path | Mapping[str, Any] | Reader | Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Calibration:
    """What to observe a network on, and how."""

    source: Source
    method: str = "mse"
    engine: Literal["emulator", "onnxruntime"] = "emulator"
    choice: Choice = TRAINING
    pixels: Pixels = PLAIN
    workers: int = os.cpu_count() or 1
    tell: Tell = SILENT

    @property
    def files(self) -> bool:
        """Whether the samples are in files, and so any number of them at once is to be had."""
        return isinstance(self.source, str | Path)


def calibrate(
    read: Callable[[int], Graph], before: Iterable[Pass], how: Calibration, model: Any = None,
    wanted: Callable[[Graph], Iterable[str]] | None = None,
) -> Ranges:  # fmt: skip
    """The ranges of a network's values.

    Args:
        read: imports the model for so many samples at once; 0: for as many as it says itself.
        before: the passes before `quantize`.
        how: data, engine, method.
        model: its path or bytes, for onnxruntime.
        wanted: the values to observe; None: every float that a node reads.

    Raises UsageError E721, E722, E730 to E734 for data that does not fit, PassError E306 for values that are not finite.
    """
    passes = tuple(before)
    graph = pipeline.run(read(0), passes)
    whose = fingerprint(graph)
    values = list(dict.fromkeys(floats(graph) if wanted is None else wanted(graph)))
    if how.files:
        graph = _wider(graph, read, passes)
    ranges = observe(graph, values, how, model)
    if not ranges.values:
        hint = "a reader that was read before is at its end"
        raise UsageError("E730", "calibration has no samples", hint=hint)
    return replace(ranges, weights=whose)


def floats(g: Graph) -> list[str]:
    """What nodes read and is computed in float32."""
    types = g.types()
    read = (v for n in g.nodes for v in n.inputs if v and v not in g.constants)
    return [v for v in read if types[v].dtype == "f32"]


def _wider(g: Graph, read: Callable[[int], Graph], passes: tuple[Pass, ...]) -> Graph:
    """The same network for several samples at once; itself if it would become another."""
    size = fitting(g)
    if size == 1:
        return g
    try:
        wide = pipeline.run(read(size), passes)
    except KnapperError:
        return g
    same = [(n.op, n.inputs, n.outputs) for n in g.nodes] == [
        (n.op, n.inputs, n.outputs) for n in wide.nodes
    ]
    return wide if same else g


def observe(g: Graph, values: Iterable[str], how: Calibration, model: Any = None) -> Ranges:
    """Statistics of values over all samples, in the samples' order."""
    from knapper.compiler.driver import compile_graph
    from knapper.isa.machine import Machine

    values = list(values)
    if how.engine == "onnxruntime":
        values = _known(values, g, model)
    made = [v for v in values if v not in g.inputs]
    tail = [str(p) for p in _behind_quantize()]
    network: Network = Emulated(
        Image(
            compile_graph(
                g.with_(outputs={v: v for v in made}), Machine.load(MACHINE), ",".join(tail)
            )
        )
    )
    jobs, total = _jobs(how, g.inputs)
    if how.engine == "onnxruntime":
        network = Checked(network, _values(model, made, g.inputs))
    batch = _batch(g.inputs)
    found = _Merged(how.method)

    def worker(stop: Any) -> Callable[[Job], Mapping[str, Statistics | None]]:
        run = network.open(stop)

        def work(job: Job) -> Mapping[str, Statistics | None]:
            x = job()
            count = len(next(iter(x.values())))
            y = {**x, **run({n: _filled(a, batch) for n, a in x.items()})}
            return {v: _of(v, y[v], count, batch) for v in values}

        return work

    spread(
        worker,
        jobs,
        how.workers,
        found.take,
        lambda done: how.tell(min(done * batch, total), total, ""),
    )
    seen = {v: s for v, s in found.values.items() if s is not None}
    return Ranges(seen, how.method, infinite=frozenset(found.values.keys() - seen.keys()))


class _Merged:
    """Statistics so far; None of a value that was infinite once."""

    def __init__(self, method: str) -> None:
        self.values: dict[str, Statistics | None] = {}

    def take(self, more: Mapping[str, Statistics | None]) -> None:
        for v, s in more.items():
            if v not in self.values:
                self.values[v] = s
            elif (before := self.values[v]) is not None:
                self.values[v] = None if s is None else before.merged(s)


def _of(name: str, y: Array, count: int, batch: int) -> Statistics | None:
    """A value's, without what fills the last batch; None if some of it is infinite."""
    own = y[:count] if y.ndim and len(y) == batch else y
    if np.isinf(own).any():
        return None
    try:
        return Statistics.of(own)
    except PassError as e:
        raise PassError(e.code, e.message, where=f"%{name}") from None


def _filled(x: Array, batch: int) -> Array:
    return np.concatenate([x, np.repeat(x[-1:], batch - len(x), 0)]) if len(x) < batch else x


def _behind_quantize() -> tuple[Pass, ...]:
    """What compiles a graph that the passes before `quantize` have made, in fp32."""
    return split(pipeline.preset("fp32"))[1]


def split(passes: Iterable[Pass], at: str = "") -> tuple[tuple[Pass, ...], tuple[Pass, ...]]:
    """A preset's passes before and behind the place of `quantize`: where products are those that will run, and layouts the model's."""
    found = tuple(passes)
    here = [at] if at else ["quantize", "integers", "layout"]
    place = next((i for i, p in enumerate(found) if p.name in here), len(found))
    return found[:place], found[place:]


# --- samples ------------------------------------------------------------------------------------------------------------


def _batch(inputs: Mapping[str, Type]) -> int:
    return max(1, min((t.shape[0] for t in inputs.values() if t.rank), default=1))


def samples(how: Calibration, inputs: Mapping[str, Type]) -> list[dict[str, Array]]:
    """The samples themselves, in batches of the network's size; those that fill none are left out."""
    batch = _batch(inputs)
    batches = (dict(job()) for job in _jobs(how, inputs)[0])
    return [b for b in batches if all(len(a) == batch for a in b.values())]


def _jobs(how: Calibration, inputs: Mapping[str, Type]) -> tuple[Iterator[Job], int]:
    """What gives the samples, a batch each, and how many samples there are; 0 if that is not known."""
    source = how.source
    if isinstance(source, str | Path):
        data = open_data(source, inputs, how.choice)
        return _slices(Feed(data, inputs, how.pixels), len(data)), len(data)
    if isinstance(source, Mapping):
        feed = _given(source, inputs)
        return _slices(feed, len(feed.data)), len(feed.data)
    given = iter(source.get_next, None) if isinstance(source, Reader) else iter(source)
    return _read(given, inputs), 0


def _read(given: Iterable[Mapping[str, Any] | None], inputs: Mapping[str, Type]) -> Iterator[Job]:
    for batch in given:
        if not isinstance(batch, Mapping):
            problem = (
                f"a reader of calibration data gives dicts of arrays, not {type(batch).__name__}"
            )
            raise UsageError("E730", problem)
        feed = _given(batch, inputs)
        yield from _slices(feed, len(feed.data))


def _slices(feed: Feed, count: int) -> Iterator[Job]:
    return (
        partial(feed.take, range(i, min(i + feed.batch, count)))
        for i in range(0, count, feed.batch)
    )


def _given(batch: Mapping[str, Any], inputs: Mapping[str, Type]) -> Feed:
    """Arrays by input's name; UsageError E720 for other names, E730 for other numbers of samples."""
    arrays = {name: np.asarray(a) for name, a in batch.items()}
    if arrays.keys() != inputs.keys():
        wrong = ", ".join(sorted(arrays.keys() ^ inputs.keys()))
        hint = f"the network has {', '.join(f'{n}: {t}' for n, t in inputs.items())}"
        raise UsageError(
            "E720", f"calibration data has not the network's inputs: {wrong}", hint=hint
        )
    if len({a.shape[:1] for a in arrays.values()}) != 1 or not all(a.ndim for a in arrays.values()):
        raise UsageError("E730", "inputs of calibration have not the same number of samples")
    return Feed(Arrays(arrays, "calibration data"), inputs)


# --- onnxruntime --------------------------------------------------------------------------------------------------------


def _known(values: list[str], g: Graph, model: Any) -> list[str]:
    """Those that onnxruntime has, too; of the others, the user hears."""
    from .onnx.builder import symbol

    names = {symbol(v) for n in _proto(model).graph.node for v in n.output}
    lacking = [v for v in values if v not in names and v not in g.inputs]
    if lacking:
        rest = f" and {len(lacking) - 1} more" if lacking[1:] else ""
        log.warning("warning: onnxruntime does not have %%%s%s: passes made it", lacking[0], rest)
    return [v for v in values if v not in lacking]


def _proto(model: Any) -> Any:
    from .doors import proto

    return proto(model)


def _values(model: Any, wanted: Iterable[str], inputs: Mapping[str, Type]) -> Network:
    """The model in onnxruntime with values of the graph as outputs, under the graph's names."""
    import onnx

    from .onnx.builder import symbol

    proto = _proto(model)
    known = {symbol(v): v for n in proto.graph.node for v in n.output if v}
    names = {known[v]: v for v in wanted if v in known}
    del proto.graph.output[:]
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    return Renamed(InOnnxruntime(_wide(proto, inputs).SerializeToString(), inputs), names)


def _wide(proto: Any, inputs: Mapping[str, Type]) -> Any:
    """The model with inputs of these shapes."""
    from .onnx.builder import symbol

    constants = {i.name for i in proto.graph.initializer}
    for i in proto.graph.input:
        if i.name not in constants and symbol(i.name) in inputs:
            dims = i.type.tensor_type.shape.dim
            for d, n in zip(dims, inputs[symbol(i.name)].shape, strict=False):
                d.dim_value = n
    del proto.graph.value_info[:]
    return proto


@dataclass(frozen=True)
class Renamed:
    """A network whose outputs have other names."""

    network: Network
    names: Mapping[str, str]

    @property
    def inputs(self) -> Mapping[str, Type]:
        return self.network.inputs

    @property
    def outputs(self) -> list[str]:
        return [*self.names.values()]

    def open(self, stop: Any) -> Callable[[Values], Values]:
        run = self.network.open(stop)
        return lambda x: {self.names[n]: y for n, y in run(x).items()}


class Checked:
    """A network in place of another, whose first outputs are compared; UsageError E734 if they differ."""

    def __init__(self, slow: Network, fast: Network) -> None:
        self.slow, self.fast, self.checked = slow, fast, False
        self.inputs, self.outputs = slow.inputs, slow.outputs

    def open(self, stop: Any) -> Callable[[Values], Values]:
        run = self.fast.open(stop)

        def checking(x: Values) -> Values:
            y = run(x)
            if not self.checked:
                self.checked = True
                self._compare(self.slow.open(stop)(x), y)
            return y

        return checking

    def _compare(self, ours: Values, theirs: Values) -> None:
        for name, y in ours.items():
            r = theirs[name]
            top = float(np.abs(y).max(initial=0))
            if y.shape != r.shape or not float(np.abs(y - r).max(initial=0)) <= CLOSE * top:
                problem = f"%{name} is another value in onnxruntime: passes changed it"
                raise UsageError("E734", problem, hint="--calib-engine emulator")
