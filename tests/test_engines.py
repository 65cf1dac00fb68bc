"""Both engines compute the same bits and count the same, on random programs drawn from the instruction table."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_operands import BUILT_IN
from random_programs import Writer, numbers

from knapper.runtime.paths import Paths
from knapper.runtime.session import Result, Session


def spelled(paths: Paths | None) -> Any:
    """Paths as lists, to compare."""
    if paths is None:
        return None
    return paths.of_block.tolist(), [[w.tolist() for w in warps] for warps in paths.warps]


def differences(a: Result, b: Result) -> list[str]:
    """In what two runs differ."""
    found = [
        f"output {n}: {np.count_nonzero(a.outputs[n] != b.outputs[n])} words"
        for n in a.outputs
        if (a.outputs[n] != b.outputs[n]).any()
    ]
    for x, y in zip(a.stats.launches, b.stats.launches, strict=True):
        table = x.counts.instructions.dtype.names or ()
        found += [
            f"counter {c}"
            for c in table
            if (x.counts.instructions[c] != y.counts.instructions[c]).any()
        ]
        found += [
            f"total {u}"
            for u in ("dram_read", "dram_write", "l1_unique")
            if getattr(x.counts, u) != getattr(y.counts, u)
        ]
        found += ["gaps"] * (x.counts.gaps.tolist() != y.counts.gaps.tolist())
        found += ["paths"] * (spelled(x.counts.paths) != spelled(y.counts.paths))
    return found


SEEDS = range(24)
WINDOWS = (0, 4, 1)
"""Of the collector, program by program."""


@pytest.mark.parametrize("seed", SEEDS)
def test_random_programs_give_the_same_bits_and_counts(seed: int) -> None:
    program = Writer(seed).program(150, WINDOWS[seed % 3])
    session, x = Session(program), {"x": numbers(seed)}
    reference = session.run(x, engine="reference", timing=True)
    fast = session.run(x, engine="fast", threads=1 + seed % 2, timing=True)
    assert not differences(reference, fast)
    if seed % 4 == 0:
        assert not differences(reference, session.run(x, checked=True, timing=True))


def test_random_programs_cover_the_instruction_table() -> None:
    executed: Counter[str] = Counter()
    for seed in SEEDS:
        executed += Session(Writer(seed).program(150)).run({"x": numbers(seed)}).stats.instructions
    names = {cls.mnemonic for cls in BUILT_IN}
    missing = names - set(executed)
    print(f"executed {len(names - missing)} of {len(names)} opcodes; missing: {sorted(missing)}")
    assert len(missing) <= 0.05 * len(names)


GENERIC = """
import hashlib, sys
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("engines", sys.argv[1])
engines = sys.modules["engines"] = module_from_spec(spec)
spec.loader.exec_module(engines)
for seed in map(int, sys.argv[2:]):
    print(engines.digest(seed))
"""


def digest(seed: int) -> str:
    """Of what the fast engine computes."""
    session = Session(Writer(seed).program(100, WINDOWS[seed % 3]))
    result = session.run({"x": numbers(seed)}, engine="fast", threads=1, timing=True)
    counts = result.stats.launches[0].counts
    parts = result.outputs["y"].tobytes(), counts.instructions.tobytes(), spelled(counts.paths)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@pytest.mark.parametrize("variable", ["KNAPPER_CPU", "NUMBA_CPU_NAME"])
def test_results_do_not_depend_on_the_processor(variable: str) -> None:
    """A processor without vector extensions, fused multiply-add or half precision computes the same bits."""
    tests = Path(__file__).parent
    env = {
        **os.environ,
        variable: "generic",
        "PYTHONPATH": os.pathsep.join(map(str, (tests.parent / ".ns", tests))),
    }
    seeds = (0, 1)
    done = subprocess.run(
        [sys.executable, "-c", GENERIC, __file__, *map(str, seeds)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [digest(seed) for seed in seeds]
