"""Compile and run whole networks against onnxruntime: times, ratios, memory. Not part of the test run.

    python tests/bench/bench_network.py [MODEL.onnx …] [--runs 3] [--json]

Without models: resnet18 and resnet50 of `$KNAPPER_DATA/models` (or `../models` beside it). Compile times are from process start to file,
cold (an empty kernel cache) and warm; run times are CPU time of all threads, the least of a few runs, against onnxruntime's fp32 run
on one thread in the same process. The first run is told too: it includes the translation of kernels to host code.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / ".ns"))


@dataclass(frozen=True)
class Row:
    """What was measured of one network; seconds, and megabytes of the largest process."""

    model: str
    cold_compile: float
    warm_compile: float
    compile_mb: float
    first_run_cpu: float
    run_cpu: float
    run_wall: float
    onnxruntime_cpu: float
    ratio: float
    """CPU time of a run by onnxruntime's."""
    timing_ratio: float
    """CPU time of a run with timing by that of one without, in a session that has timed such a run; `bench_timing.py` has the first one's."""
    cosine: float
    """The outputs' agreement: a benchmark of wrong results is none."""
    macs: int
    instructions: int


def measure(model: Path, runs: int) -> Row:
    """Compile in processes of their own, run here."""
    with tempfile.TemporaryDirectory() as folder:
        elf = Path(folder, "model.elf")
        cold, cold_mb = compile_time(model, elf, Path(folder))
        warm, warm_mb = compile_time(model, elf, Path(folder))
        return Row(model.stem, cold, warm, max(cold_mb, warm_mb), *run_times(model, elf, runs))


def compile_time(model: Path, elf: Path, folder: Path) -> tuple[float, float]:
    """Wall seconds from process start to file, and the peak of the largest process in MB."""
    env = os.environ | {"PYTHONPATH": str(ROOT / ".ns"), "KNAPPER_CACHE": str(folder / "cache")}
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "knapper", "compile", str(model), "-q", "-o", str(elf)], env=env
    )
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"compiling {model} failed with {child.returncode}")
    return seconds, usage.ru_maxrss / 1024


def run_times(
    model: Path, elf: Path, runs: int
) -> tuple[float, float, float, float, float, float, float, int, int]:
    """First run, best run (CPU, wall), onnxruntime, their ratio, the one with timing, agreement, work."""
    from knapper.isa import image
    from knapper.runtime.session import Session

    session, theirs = Session(image.read(elf.read_bytes(), str(elf))), native(model)
    x = {i.name: draw(i.shape) for i in session.program.inputs}
    first = least(lambda: session.run(x), 1)[0]
    cpu, wall = least(lambda: session.run(x), runs)
    session.run(x, timing=True)
    timed_cpu, _ = least(lambda: session.run(x, timing=True), runs)
    native_cpu, _ = least(lambda: theirs(x), runs + 2)
    result = session.run(x)
    stats = result.stats.to_dict()
    agreement = cosine(next(iter(result.outputs.values())), theirs(x))
    work = stats["macs"], sum(stats["instructions"].values())
    return first, cpu, wall, native_cpu, cpu / native_cpu, timed_cpu / cpu, agreement, *work


def native(model: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """The model in onnxruntime, fp32, on one thread; gives its first output."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, x)[0]


def least(f: Callable[[], object], times: int) -> tuple[float, float]:
    """The least CPU and the least wall time of a call."""
    spent = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        f()
        spent.append((time.process_time() - cpu, time.perf_counter() - wall))
    return min(s[0] for s in spent), min(s[1] for s in spent)


def draw(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.astype(np.float64).reshape(-1), b.astype(np.float64).reshape(-1)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def networks() -> Iterator[Path]:
    data = Path(os.environ.get("KNAPPER_DATA", ROOT.parent / "shared"))
    for name in ("resnet18.onnx", "resnet50.onnx"):
        places = [data / "models" / name, data.parent / "models" / name]
        yield next((p for p in places if p.is_file()), places[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [asdict(measure(m, args.runs)) for m in args.models or networks()]
    if args.json:
        print(json.dumps(rows))
        return
    for name in rows[0]:
        print(
            f"{name:16}",
            *(
                f"{r[name]:>16,.4g}" if isinstance(r[name], float) else f"{r[name]:>16}"
                for r in rows
            ),
        )


if __name__ == "__main__":
    main()
