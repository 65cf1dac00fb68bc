"""What a sparse product costs the fast engine: GMAC/s of the dense product that an SPWMMA stands for, by sparsity, beside numpy's sgemm.

Both sides are zero at random places. Every OHMMA is counted; `timed` also records the warp's path, an event for each SPWMMA. One thread.

PYTHONPATH=.ns python tests/bench/bench_sparse.py
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.update(dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from sparse_programs import kernel, program, record

from knapper.compiler.codegen.builder import KernelBuilder
from knapper.isa import instructions as i
from knapper.isa.modifiers import SR, Bits32, Cmp, Direction, Half, IntType, Width
from knapper.runtime.session import Session

TRIPS, UNROLLED, BLOCKS = 500, 4, 8
MACS = 32 * 32 * 16
SPARSITY = (0.0, 0.5, 0.8, 0.9, 0.95)


def loop(b: KernelBuilder, c: object, start: object, bm: object) -> None:
    """Products, one after the other, each of other bitmaps."""
    count, more, top, table, at = b.ureg(), b.pred(), b.label(), b.ureg(2), b.reg()
    b.emit(i.ULDC, Bits32._64, table, 16)
    b.emit(i.UMOV, count, TRIPS)
    b.emit(i.S2R, SR.LANEID, at)
    b.emit(i.SHF, Direction.L, IntType.U32, at, at, 2)
    b.place(top)
    for n in range(UNROLLED):
        bitmaps = b.reg()
        b.emit(i.LDG, Width._32, bitmaps, table, at, 128 * n)
        b.emit(i.SPWMMA, Half.F16, c, start, bitmaps)
    b.emit(i.IADD, IntType.U32, at, at, 128 * UNROLLED)
    b.emit(i.UISUB, count, count, 1)
    b.emit(i.UISETP, Cmp.NE, IntType.U32, more, count, 0)
    b.emit(i.BRA, top, guard=more)


def best(run: Callable[[], object]) -> float:
    """Seconds."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def inputs(sparsity: float) -> np.ndarray:
    """A record a block, with room for 32 values a vector, and a table of bitmaps."""
    rng, whole = np.random.default_rng(0), np.ones((32, 16), bool)
    a, b = (rng.standard_normal(s) for s in ((32, 16), (16, 32)))
    one = record(rng, (a, whole), (b, whole.T), np.zeros((32, 32)), Half.F16)
    bits = rng.random((TRIPS * UNROLLED, 32, 32)) >= sparsity
    table = np.packbits(bits, axis=-1, bitorder="little")
    return np.concatenate([*[one] * BLOCKS, table.ravel()])


def sgemm() -> float:
    """GMAC/s of numpy in one thread."""
    a = np.ones((1024, 1024), np.float32)
    return 1024**3 / best(lambda: a @ a) / 1e9


def main() -> None:
    session = Session(program(kernel(loop), BLOCKS, table=128 * TRIPS * UNROLLED))
    dense = sgemm()
    print(f"sgemm {dense:.1f} GMAC/s, one thread")
    print("sparsity   GMAC/s  of sgemm    timed   OHMMAs of an SPWMMA")
    for sparsity in SPARSITY:
        x = {"x": inputs(sparsity)}
        result = session.run(x, threads=1)
        counts = result.stats.launches[0].counts.instructions
        macs = BLOCKS * TRIPS * UNROLLED * MACS
        session.run(x, threads=1, timing=True)
        plain = macs / best(lambda: session.run(x, threads=1)) / 1e9  # noqa: B023
        launch = session.program.launches[0]
        engine = next(iter(session._engines.values()))
        timed = macs / best(lambda: engine.launch(launch, timing=True)) / 1e9  # noqa: B023
        issued = int(counts["ohmma"].sum()) / (BLOCKS * TRIPS * UNROLLED)
        print(f"{sparsity:8.2f} {plain:8.1f} {plain / dense:9.2f} {timed:8.1f} {issued:12.1f}")


if __name__ == "__main__":
    main()
