"""Random models against an oracle, damaged models and damaged images against nothing but an error with a code: `make fuzz`.

    python tests/fuzz.py --minutes 60                                     fresh seeds, both cores
    python tests/fuzz.py --graphs 1000 --models 5000 --images 5000 --seed 1     the same cases every time
    python tests/fuzz.py --again fuzz-found/graph-1144.npz                one that failed

    seed ─► graph: draw ─► onnxruntime, else ONNX's reference │ compile, emulate ─► compare     right, refused, unknown (no oracle)
            model: a drawn one, damaged                       ─► compile                        compiled, refused
            image: a drawn one's, damaged, sealed again       ─► read, run                      ran, refused

What must not be: `wrong` values, a `traceback` (an error without a code), a `hang`, a `crash` of the process. Each is a file that
`--again` runs; those that were found are kept in tests/fuzzed, as golden cases. Cases run in child processes, a slice of seeds each, so
that a crash is seen and the next seed goes on. Exit code 1 if there was any.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import json
import os
import queue
import random
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from subprocess import PIPE
from typing import Any

import mutations
import numpy as np
import random_models
from onnx import ModelProto
from random_models import Array

import knapper
from knapper.frontends.api import Image
from knapper.frontends.oracle import Oracle
from knapper.isa import image
from knapper.isa.errors import CODES, KnapperError, Problems

BOUNDS = {"fp32": 1e-4, "fp16": 3e-2}
"""Of the largest value of an output: sums in another order; 16 bits between launches."""
TARGETS = ("volta-8tc", "volta-8tc", "volta-8tc", "sma3", "tpu-v2", "dstc")
BASES = 60
"""Models that are damaged are few, so that their kernels and images are there already."""
SLICE = {"graph": 100, "model": 500, "image": 500}
"""Cases of a child process."""
HANG = 120.0
"""Seconds without a word after which a case is one that does not end."""
MISTAKEN = {"LRN"}
"""Operators that ONNX's reference gets wrong: its LRN goes over the batch where it should go over channels."""
BAD = ("wrong", "traceback", "hang", "crash")


class Wrong(Exception):
    """Values that are not what they should be."""


# --- cases --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Specimen:
    """All that a case is: it can be written to a file and run from there."""

    kind: str
    data: bytes
    """A model, or an image."""
    inputs: Mapping[str, Array] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """One .npz, which `load` reads."""
        arrays = {f"in:{n}": a for n, a in self.inputs.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        said = json.dumps({"kind": self.kind, **self.options})
        np.savez_compressed(path, data=np.frombuffer(self.data, np.uint8), options=said, **arrays)  # type: ignore[arg-type]

    @staticmethod
    def load(path: Path) -> Specimen:
        """Read what `save` wrote."""
        with np.load(path) as file:
            options = json.loads(str(file["options"]))
            inputs = {n[3:]: file[n] for n in file.files if n.startswith("in:")}
            return Specimen(options.pop("kind"), file["data"].tobytes(), inputs, options)


def graph(seed: int) -> Specimen:
    """A random model; one of five in fp16, which has no operators with steps."""
    rng = random.Random(seed)
    precision = rng.choice(("fp32",) * 4 + ("fp16",))
    target = rng.choice(TARGETS)
    case = random_models.draw(rng, smooth=precision != "fp32")
    options = {"target": target, "precision": precision}
    return Specimen("graph", case.model.SerializeToString(), case.inputs, options)


def damaged_model(seed: int) -> Specimen:
    """A model with one to three changes; one of ten is a file that is simply damaged."""
    rng = random.Random(seed)
    whole = _base(rng.randrange(BASES)).model
    if not rng.randrange(10):
        return Specimen("model", mutations.bits(whole.SerializeToString(), rng))
    return Specimen("model", mutations.model(whole, rng).SerializeToString())


def damaged_image(seed: int) -> Specimen:
    """An image with a right checksum and wrong content; one of ten is a file that is simply damaged."""
    rng = random.Random(seed)
    base = rng.randrange(BASES)
    engine = "fast" if rng.randrange(8) else "reference"
    checked = bool(rng.randrange(2))
    data = (mutations.program if rng.randrange(10) else mutations.bits)(_image(base), rng)
    return Specimen("image", data, _base(base).inputs, {"engine": engine, "checked": checked})


@functools.cache
def _base(seed: int) -> random_models.Case:
    return random_models.draw(random.Random(seed))


@functools.cache
def _image(seed: int) -> bytes:
    """The image of the base, or of the next one that compiles."""
    try:
        return image.write(knapper.compile(_base(seed).model).program)
    except KnapperError:
        return _image(seed + 1)


DRAW: dict[str, Callable[[int], Specimen]] = {
    "graph": graph, "model": damaged_model, "image": damaged_image,
}  # fmt: skip


# --- verdicts -----------------------------------------------------------------------------------------------------------


def agrees(s: Specimen) -> str:
    """Compare a model with the oracle; raises Wrong."""
    model = ModelProto.FromString(s.data)
    want = oracle(model, s.inputs)
    if want is None:
        return "unknown"
    precision = s.options["precision"]
    net = knapper.compile(model, s.options["target"], precision)
    bound = BOUNDS["fp16" if random_models.narrow(model) else precision]
    wrong = random_models.differences(net.run(dict(s.inputs)).outputs, want, bound)
    if wrong:
        raise Wrong("; ".join(wrong))
    return "right"


def oracle(model: ModelProto, inputs: Mapping[str, Array]) -> dict[str, Array] | None:
    """onnxruntime's outputs, or those of ONNX's reference where that has no kernel; None without either, or where a value is not finite."""
    try:
        runtime = Oracle(model.SerializeToString())
    except KnapperError:
        runtime = None
    try:
        if runtime:
            want = runtime.run(inputs)
    except KnapperError:  # it does not like what it sees; ONNX's reference does not look
        return None
    if runtime is None:
        if any(n.op_type in MISTAKEN for n in model.graph.node):
            return None
        from onnx.reference import ReferenceEvaluator

        names = [o.name for o in model.graph.output]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = ReferenceEvaluator(model).run(None, dict(inputs))
        except Exception:  # it raises whatever its operators do, and has not all of them
            return None
        want = dict(zip(names, map(np.asarray, found), strict=True))
    finite = all(np.isfinite(r).all() for r in want.values() if r.dtype.kind == "f")
    return want if finite else None


def compiles(s: Specimen) -> str:
    """A damaged file may still be a model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "damaged.onnx"
        path.write_bytes(s.data)
        knapper.compile(path, precision="fp32")
    return "compiled"


def runs(s: Specimen) -> str:
    """A damaged image may run to an end, or to a limit."""
    engine = s.options["engine"]
    limit = 200_000 if engine == "fast" else 5_000
    net = Image(image.read(s.data))
    net.run(dict(s.inputs), engine=engine, checked=s.options["checked"], limit=limit)
    return "ran"


TRY: dict[str, Callable[[Specimen], str]] = {"graph": agrees, "model": compiles, "image": runs}


def verdict(s: Specimen) -> tuple[str, str]:
    """What became of a case, and why."""
    try:
        return TRY[s.kind](s), ""
    except Wrong as e:
        return "wrong", str(e)
    except KnapperError as e:
        problems = e.problems if isinstance(e, Problems) else [e]
        if all(p.code in CODES for p in problems):
            return "refused", f"{problems[0].code} {problems[0].message}"
        return "traceback", f"an error with a code that is none: {e}"
    except Exception as e:  # whatever it is, it is what is looked for
        last = traceback.extract_tb(e.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return "traceback", f"{type(e).__name__}: {e} ({place})"


# --- slices -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """A case's verdict."""

    kind: str
    seed: int
    verdict: str
    why: str = ""


def child(kind: str, seed: int, count: int) -> None:
    """Run cases in this process, a line of JSON each."""
    for s in range(seed, seed + count):
        print(json.dumps([s, *verdict(DRAW[kind](s))]), flush=True)


def slice_(kind: str, seed: int, count: int) -> Iterator[Finding]:
    """Run cases in child processes: one, and another behind each case that ends it."""
    end = seed + count
    while seed < end:
        words = [sys.executable, __file__, "--child", kind, str(seed), str(end - seed)]
        with subprocess.Popen(words, stdout=PIPE, stderr=PIPE, text=True) as process:
            for found, *said in _lines(process):
                yield Finding(kind, found, *said)
                seed = found + 1
                if seed == end:
                    return
            hung = process.poll() is None
            process.kill()
            error = process.stderr.read()[-500:] if process.stderr else ""
        why = f"longer than {HANG:.0f} s" if hung else f"exit code {process.returncode}: {error}"
        yield Finding(kind, seed, "hang" if hung else "crash", why)
        seed += 1


def _lines(process: subprocess.Popen[str]) -> Iterator[list[Any]]:
    """What a child says, as long as it does not stop to talk for too long."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def listen() -> None:
        for line in process.stdout or ():
            lines.put(line)
        process.wait()
        lines.put("")

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    with contextlib.suppress(queue.Empty):
        while line := lines.get(timeout=HANG):
            yield json.loads(line)
        listener.join()


# --- the command --------------------------------------------------------------------------------------------------------


def plan(a: argparse.Namespace) -> Iterator[tuple[str, int, int]]:
    """Slices (kind, first seed, count): as many as were asked for, or for ever."""
    wanted = {"graph": a.graphs, "model": a.models, "image": a.images}
    if not any(wanted.values()):
        for i in itertools.count():
            yield from ((k, a.seed + i * n, n) for k, n in SLICE.items())
    for kind, count in wanted.items():
        for at in range(0, count, SLICE[kind]):
            yield kind, a.seed + at, min(SLICE[kind], count - at)


class Log:
    """Counts and failures of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.counts, self.reasons = folder, Counter[tuple[str, str]](), Counter[str]()
        self.bad: list[Finding] = []

    def add(self, f: Finding) -> str:
        """Count a finding; a failure is written to a file, and said."""
        self.counts[f.kind, f.verdict] += 1
        if f.kind == "graph" and f.verdict == "refused":
            self.reasons[f.why] += 1
        if f.verdict not in BAD:
            return ""
        self.bad.append(f)
        path = self.folder / f"{f.kind}-{f.seed}.npz"
        DRAW[f.kind](f.seed).save(path)
        return f"{f.verdict} {path}: {f.why}"

    def table(self) -> Any:
        """A row a kind of case."""
        from rich.table import Table

        verdicts = ["right", "compiled", "ran", "refused", "unknown", *BAD]
        table = Table("cases", "count", *verdicts)
        for kind in DRAW:
            row = [self.counts[kind, v] for v in verdicts]
            if sum(row):
                table.add_row(kind, *(f"{n:,}" if n else "" for n in (sum(row), *row)))
        return table


def hours(a: argparse.Namespace) -> int:
    """Run slices until there are none left, or until the time is over; how many cases failed."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console, log = Console(), Log(a.found)
    console.width = max(console.width, 110)  # the table's, also in a log
    total = a.graphs + a.models + a.images or None
    end = time.monotonic() + a.minutes * 60 if total is None else float("inf")
    columns = (TextColumn("fuzz"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console.print(f"seed {a.seed}")
    with Progress(*columns, console=console) as bar, ThreadPoolExecutor(a.jobs) as pool:
        task = bar.add_task("", total=total)

        def work(part: tuple[str, int, int]) -> None:
            for f in slice_(*part):
                said = log.add(f)
                bar.advance(task)
                if said:
                    console.print(said, markup=False, soft_wrap=True)

        slices, running = plan(a), set[Future[None]]()
        for part in slices:
            if time.monotonic() > end:
                break
            running.add(pool.submit(work, part))
            if len(running) >= a.jobs:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for f in done:
                    f.result()
        for f in running:
            f.result()
    console.print(log.table())
    for why, n in log.reasons.most_common(20):
        console.print(f"{n} refused: {why}", markup=False, soft_wrap=True)
    return len(log.bad)


def main() -> int:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--minutes", type=float, default=60, help="of all kinds, if no counts are given")
    p.add_argument("--graphs", type=int, default=0, help="random models")
    p.add_argument("--models", type=int, default=0, help="damaged models")
    p.add_argument("--images", type=int, default=0, help="damaged images")
    today = int(datetime.now(UTC).strftime("%Y%m%d")) * 1_000_000
    p.add_argument("--seed", type=int, default=today, help="of the first case; the date's")
    p.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    p.add_argument("--found", type=Path, default=Path("fuzz-found"), help="where failures go")
    p.add_argument("--again", type=Path, nargs="+", help="run cases from files")
    p.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        child(a.child[0], int(a.child[1]), int(a.child[2]))
        return 0
    if a.again:
        told = {path: verdict(Specimen.load(path)) for path in a.again}
        for path, (what, why) in told.items():
            print(f"{path}: {what} {why}")
        return int(any(what in BAD for what, _ in told.values()))
    return int(hours(a) > 0)


if __name__ == "__main__":
    sys.exit(main())
