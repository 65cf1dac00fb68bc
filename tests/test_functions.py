"""The special functions: within their stated error of numpy's long doubles, right at the edges, alike in both engines."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.functions import ALGORITHMS
from knapper.isa.modifiers import SR, Bits32, Direction, FloatType, Fn, IntType, Width
from knapper.isa.operands import Reg, Signed, Src, Unsigned, UReg
from knapper.isa.program import BASE, Kernel, Launch, Port, Program
from knapper.runtime.session import EngineName, Session

Array = np.ndarray[Any, Any]
Long = np.longdouble


def mufu(name: str, x: Array, engine: EngineName = "fast") -> Array:
    """The function of every element, by a kernel; the type is x's, F32 or F64."""
    wide = x.dtype == np.float64
    width, type, dtype = (
        (Width._64, FloatType.F64, "f64") if wide else (Width._32, FloatType.F32, "f32")
    )
    blocks, shift = -(-len(x) // 32), 3 if wide else 2
    size = 32 * blocks << shift
    code: list[Instr] = [
        i.S2R(SR.TID_X, Reg(0)), i.S2R(SR.CTAID_X, Reg(1)), i.IMAD(IntType.U32, Reg(0), Reg(1), Src.of(32), Reg(0)),
        i.SHF(Direction.L, IntType.U32, Reg(0), Reg(0), Src.of(shift)), i.ULDC(Bits32._64, UReg(0), Unsigned(0)),
        i.ULDC(Bits32._64, UReg(2), Unsigned(8)), i.LDG(width, Reg(4), UReg(0), Reg(0), Signed(0)),
        i.MUFU(Fn[name], type, Reg(6), Reg(4)), i.STG(width, UReg(2), Reg(0), Signed(0), Reg(6)), i.EXIT(),
    ]  # fmt: skip
    kernel = Kernel("f", Kernel.encode(code), (0,) * len(code), (32, 1, 1), 8)
    ports = [Port(n, dtype, (32 * blocks,), BASE + k * size) for k, n in enumerate("xy")]
    launch = Launch("f", (blocks, 1, 1), tuple(p.address for p in ports), ("n",))
    program = Program(
        {"extensions": ()}, {"f": kernel}, (launch,), (ports[0],), (ports[1],), arena_bytes=2 * size
    )
    padded = np.resize(x, 32 * blocks)
    y: Array = Session(program).run({"x": padded}, engine=engine).outputs["y"][: len(x)]
    return y


def ulps(got: Array, want: Array) -> float:
    """The largest error in units of the last place of the result's type, where both are finite."""
    least = np.finfo(got.dtype).smallest_subnormal
    unit = np.maximum(np.spacing(np.abs(want).astype(got.dtype)).astype(Long), Long(least))
    fine = np.isfinite(got) & np.isfinite(want.astype(got.dtype))
    assert fine.any()
    return float((np.abs(got.astype(Long) - want) / unit)[fine].max())


def erf(x: Array) -> Array:
    """By Maclaurin's series with all terms positive, in long doubles."""
    x = x.astype(Long)
    term = total = x.copy()
    for k in range(1, 150):
        term = term * (2 * x * x) / (2 * k + 1)
        total = total + term
    root_pi = np.sqrt(Long("3.14159265358979323846264338327950288"))
    return np.asarray(total * np.exp(-x * x) * (2 / root_pi))


# name: (truth, where to look, F64 bound in ulp)
rng = np.random.default_rng(7)
COUNT = 100_000
TRUTH: dict[str, tuple[Callable[[Array], Array], Callable[[], list[Array]], float]] = {
    "RCP": (lambda x: 1 / x, lambda: [10 ** rng.uniform(-300, 300, COUNT)], 0.501),
    "RSQ": (lambda x: 1 / np.sqrt(x), lambda: [10 ** rng.uniform(-300, 300, COUNT)], 1.5),
    "SQRT": (np.sqrt, lambda: [10 ** rng.uniform(-300, 300, COUNT)], 0.501),
    "EX2": (np.exp2, lambda: [rng.uniform(-1074, 1024, COUNT), rng.uniform(-1, 1, COUNT)], 1.0),
    "EXP": (np.exp, lambda: [rng.uniform(-745, 709, COUNT), rng.uniform(-1, 1, COUNT)], 1.0),
    "LG2": (np.log2, lambda: [10 ** rng.uniform(-320, 308, COUNT), rng.uniform(0.5, 2, COUNT), 1 + rng.uniform(-1e-6, 1e-6, COUNT)], 1.0),
    "LOG": (np.log, lambda: [10 ** rng.uniform(-320, 308, COUNT), rng.uniform(0.5, 2, COUNT), 1 + rng.uniform(-1e-6, 1e-6, COUNT)], 1.0),
    "SIN": (np.sin, lambda: [rng.uniform(-1e5, 1e5, COUNT), rng.uniform(-7, 7, COUNT), 10 ** rng.uniform(-300, 308, COUNT)], 1.0),
    "COS": (np.cos, lambda: [rng.uniform(-1e5, 1e5, COUNT), rng.uniform(-7, 7, COUNT), 10 ** rng.uniform(-300, 308, COUNT)], 1.0),
    "TANH": (np.tanh, lambda: [rng.uniform(-20, 20, COUNT), rng.uniform(-1, 1, COUNT), 10 ** rng.uniform(-300, 0, COUNT)], 2.0),
    "ERF": (erf, lambda: [rng.uniform(-6, 6, COUNT), rng.uniform(-1.2, 1.2, COUNT), 10 ** rng.uniform(-300, 0, COUNT)], 2.5),
}  # fmt: skip


def test_every_function_has_its_truth() -> None:
    assert set(TRUTH) == set(ALGORITHMS)


@pytest.mark.parametrize("name", TRUTH)
def test_f64_error_is_within_the_table(name: str) -> None:
    truth, samples, bound = TRUTH[name]
    with np.errstate(all="ignore"):
        for x in samples():
            error = ulps(mufu(name, x), truth(x.astype(Long)))
            assert error <= bound, f"{name}: {error:.3f} ulp"


@pytest.mark.parametrize("name", TRUTH)
def test_f32_error_is_within_half_a_place(name: str) -> None:
    """Every fp16 number, and fp32 numbers of all sizes."""
    truth, _, _ = TRUTH[name]
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    singles = rng.integers(0, 1 << 32, 200_000, dtype=np.uint32).view(np.float32)
    with np.errstate(all="ignore"):
        for x in (halves, singles):
            x = x[np.isfinite(x)]
            x = x[np.abs(x) <= (6 if name == "ERF" else np.inf)]
            x = x[x >= 0] if name in ("RSQ", "SQRT", "LOG", "LG2") else x
            assert ulps(mufu(name, x), truth(x.astype(Long))) <= 0.501


INF, NAN, TINY = math.inf, math.nan, 5e-324
EDGES: dict[str, list[tuple[float, float]]] = {
    "RCP": [(0.0, INF), (-0.0, -INF), (INF, 0.0), (-INF, -0.0)],
    "RSQ": [(0.0, INF), (-0.0, -INF), (INF, 0.0), (-INF, NAN), (-1.0, NAN), (4.0, 0.5)],
    "SQRT": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, NAN), (-1.0, NAN), (9.0, 3.0)],
    "EX2": [
        (0.0, 1.0),
        (-0.0, 1.0),
        (INF, INF),
        (-INF, 0.0),
        (1024.0, INF),
        (-1076.0, 0.0),
        (-1074.0, TINY),
        (10.0, 1024.0),
    ],
    "EXP": [(0.0, 1.0), (-0.0, 1.0), (INF, INF), (-INF, 0.0), (710.0, INF), (-746.0, 0.0)],
    "LG2": [
        (0.0, -INF),
        (-0.0, -INF),
        (INF, INF),
        (-INF, NAN),
        (-1.0, NAN),
        (1.0, 0.0),
        (0.125, -3.0),
        (TINY, -1074.0),
    ],
    "LOG": [(0.0, -INF), (-0.0, -INF), (INF, INF), (-INF, NAN), (-1.0, NAN), (1.0, 0.0)],
    "SIN": [(0.0, 0.0), (-0.0, -0.0), (INF, NAN), (-INF, NAN), (TINY, TINY)],
    "COS": [(0.0, 1.0), (-0.0, 1.0), (INF, NAN), (-INF, NAN), (TINY, 1.0)],
    "TANH": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (1e300, 1.0), (TINY, TINY)],
    "ERF": [(0.0, 0.0), (-0.0, -0.0), (INF, 1.0), (-INF, -1.0), (7.0, 1.0)],
}


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("name", EDGES)
def test_edges(name: str, engine: EngineName) -> None:
    x, want = np.array([*EDGES[name], (NAN, NAN), (-NAN, NAN)]).T
    got = mufu(name, x, engine)
    np.testing.assert_array_equal(got, want)
    numbers = ~np.isnan(want)
    np.testing.assert_array_equal(np.signbit(got[numbers]), np.signbit(want[numbers]))


@pytest.mark.parametrize("name", TRUTH)
def test_both_engines_compute_the_same_bits(name: str) -> None:
    for x in (
        rng.integers(0, 1 << 32, 2048, dtype=np.uint32).view(np.float32),
        rng.integers(0, 1 << 64, 512, dtype=np.uint64).view(np.float64),
    ):
        bits = np.uint64 if x.dtype == np.float64 else np.uint32
        np.testing.assert_array_equal(
            mufu(name, x, "fast").view(bits), mufu(name, x, "reference").view(bits)
        )


def test_far_angles_next_to_a_multiple_of_half_pi_keep_their_places() -> None:
    """The F64 that comes closest of all, 2**-61 from a multiple of π/2; and one at each end of every piece of 2/π."""
    closest = 6381956970095103.0 * 2.0**797
    assert mufu("COS", np.array([closest]))[0] == pytest.approx(float(np.cos(Long(closest))), 1e-12)
    assert abs(mufu("COS", np.array([closest]))[0]) < 2.0**-60
    ends = 2.0 ** np.arange(20, 1024, 50)
    x = np.concatenate([np.nextafter(ends, 0), ends, -ends])
    for name, truth in (("SIN", np.sin), ("COS", np.cos)):
        assert ulps(mufu(name, x), truth(x.astype(Long))) <= 1


def test_far_f32_angles_are_right_in_both_engines() -> None:
    x = np.array([1e6, 2.0**20, 1e10, -1e20, 3.4e38, 2.0**50, 2.0**80, 2.0**110], np.float32)
    assert ulps(mufu("SIN", x, "fast"), np.sin(x.astype(Long))) <= 0.501
    assert ulps(mufu("SIN", x, "reference"), np.sin(x.astype(Long))) <= 0.501
