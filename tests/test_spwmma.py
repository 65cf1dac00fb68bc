"""Sparse products: dense numbers whatever the zeros, OHMMAs as many as the operands' bits say, bytes as many as values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sparse_cases import DSTC, Case, case, layout, offers, run, sparse

from knapper.compiler.codegen.matrix.spwmma.generator import SPWMMA_GENERATOR
from knapper.compiler.codegen.matrix.spwmma.shape import Operation, operation, weights
from knapper.compiler.sparsity.bitmap import SEGMENT, Layout, Weights, read, tiled
from knapper.isa.machine import Machine

RNG = np.random.default_rng(0)


def agrees(c: Case, count: int = 2, engine: Any = "fast") -> None:
    """The first and the last tiles give the bits of the references."""
    legal = offers(c)
    for options in [*legal[:: max(1, len(legal) // count)][: count - 1], legal[-1]]:
        got, _ = run(c, options, engine)
        for v, want in c.want.items():
            if c.group.outputs[v].encoding:
                want = want + np.zeros((), want.dtype)  # no sign of zero is stored
            assert got[v].tobytes() == want.tobytes(), f"{options}: %{v}"


CASES: dict[str, Any] = {
    "matrix": lambda: case(sparse(RNG, (70, 200), 0.3), sparse(RNG, (200, 72), 0.5)),
    "one row, no bias": lambda: case(sparse(RNG, (1, 320), 0.5), sparse(RNG, (320, 40), 0.5), after=""),
    "matrix, residual": lambda: case(sparse(RNG, (65, 64), 0.5), sparse(RNG, (64, 33), 0.5), after="residual"),
    "matrix to encoded": lambda: case(sparse(RNG, (70, 80), 0.3), sparse(RNG, (80, 48), 0.5), out="encoded"),
    "bf16": lambda: case(
        sparse(RNG, (40, 64), 0.5, "bf16"), sparse(RNG, (64, 64), 0.5, "bf16"), dtype="bf16", out="both"
    ),
    "3x3": lambda: case(sparse(RNG, (1, 9, 7, 32), 0.5), sparse(RNG, (3, 3, 32, 24), 0.5), 1),
    "3x3 to encoded, batch": lambda: case(
        sparse(RNG, (3, 6, 5, 48), 0.4), sparse(RNG, (3, 3, 48, 40), 0.2), 1, out="encoded"
    ),
    "3x3, residual, both, ragged": lambda: case(
        sparse(RNG, (2, 5, 7, 40), 0.5), sparse(RNG, (3, 3, 40, 40), 0.5), 1, "residual", "both"
    ),
    "3x3 under a wide pad": lambda: case(
        sparse(RNG, (1, 5, 6, 16), 0.5), sparse(RNG, (3, 3, 16, 16), 0.5), 3, out="both"
    ),
    "3x3 dilated": lambda: case(
        sparse(RNG, (1, 8, 8, 16), 0.5), sparse(RNG, (3, 3, 16, 16), 0.5), 2, dilation=2
    ),
    "5x5": lambda: case(sparse(RNG, (1, 8, 9, 16), 0.5), sparse(RNG, (5, 5, 16, 16), 0.3), 2),
    "1x1, pad of a neighbour": lambda: case(
        sparse(RNG, (2, 6, 6, 64), 0.5), sparse(RNG, (1, 1, 64, 32), 0.5), 1, out="encoded"
    ),
    "1x1": lambda: case(sparse(RNG, (2, 6, 6, 72), 0.5), sparse(RNG, (1, 1, 72, 32), 0.5), 0),
    "more taps than image": lambda: case(
        sparse(RNG, (1, 3, 2, 16), 0.9), sparse(RNG, (5, 5, 16, 16), 0.9), 2
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_results_have_the_references_bits(name: str) -> None:
    agrees(CASES[name]())


@pytest.mark.parametrize("name", ["matrix to encoded", "3x3, residual, both, ragged"])
def test_the_checking_engine_finds_nothing_to_complain_of(name: str) -> None:
    agrees(CASES[name](), 1, "reference")


@settings(max_examples=20, deadline=None)
@given(st.data())
def test_any_shape_and_any_zeros(data: Any) -> None:
    def pick(*choices: Any) -> Any:
        return data.draw(st.sampled_from(choices))

    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    densities = [pick(0.0, 0.03, 0.5, 0.9, 1.0) for _ in range(2)]
    c, n = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    out, after = pick("dense", "encoded", "both"), pick("", "relu", "residual")
    if pick(True, False):
        shape = tuple(data.draw(st.integers(1, limit)) for limit in (2, 7, 9))
        k = pick(1, 3)
        pad = pick(1, 2) if k == 3 else pick(0, 1)
        x, w = sparse(rng, (*shape, c), densities[0]), sparse(rng, (k, k, c, n), densities[1])
        agrees(case(x, w, pad, after, out), 1)
    else:
        m = data.draw(st.integers(1, 100))
        agrees(case(sparse(rng, (m, c), densities[0]), sparse(rng, (c, n), densities[1]), 0, after, out), 1)  # fmt: skip


# --- what is counted


def oracle(c: Case) -> int:
    """CA @ CB of the operands as they are shifted: ceil(nA / 8) · ceil(nB / 16), summed over tiles and k."""
    op = operation(c.group)
    assert isinstance(op, Operation)
    stream = layout(c.group.inputs["x"]).stream(c.values["x"])
    rows = op.count * SEGMENT
    columns = []
    for shift in op.shifts:
        at = np.arange(rows) + op.first * SEGMENT + shift
        inside = (at >= 0) & (at < len(stream))
        columns.append(np.where(inside[:, None], stream[at.clip(0, len(stream) - 1)], 0))
    a = np.concatenate(columns, 1) != 0
    b = tiled(weights(op, c.constants["w"]), op.taps) != 0
    ca = -(-a.reshape(op.count, SEGMENT, -1).sum(1) // 8)
    cb = -(-b.sum(-1).reshape(op.columns, -1) // 16)
    return int((ca @ cb.T).sum())


def counted(stats: Any, column: str) -> int:
    return int(stats.launches[0].counts.instructions[column].sum())


@pytest.mark.parametrize(
    "name", ["matrix", "3x3", "3x3 to encoded, batch", "1x1, pad of a neighbour"]
)
def test_ohmmas_are_as_many_as_the_popcounts_say(name: str) -> None:
    c = CASES[name]()
    small = offers(c)[-1]
    assert small["tile"] == (32, 32, 32)
    _, stats = run(c, small)
    assert counted(stats, "ohmma") == oracle(c)


def test_bytes_that_are_read_go_with_the_values() -> None:
    read = {}
    for density in (1.0, 0.5, 0.1):
        c = case(sparse(RNG, (256, 256), density), sparse(RNG, (256, 64), density), after="")
        _, stats = run(c, {"tile": (64, 64, 64)})
        read[density] = counted(stats, "l2_read")
    assert read[0.5] < 0.7 * read[1.0]  # sectors of 32 bytes, and bitmaps
    assert read[0.1] < 0.4 * read[1.0]


def test_kernels_do_not_depend_on_weights() -> None:
    words = {
        SPWMMA_GENERATOR.lower(c.group, {"tile": (64, 32, 32)}, DSTC).launches[0].kernel.words
        for c in (
            case(sparse(RNG, (64, 32), 0.5), sparse(np.random.default_rng(seed), (32, 32), density))
            for seed, density in ((1, 0.1), (2, 1.0))
        )
    }
    assert len(words) == 1


def test_what_is_no_shift_of_the_stream_is_refused() -> None:
    w = sparse(RNG, (3, 3, 16, 16), 0.5)
    narrow = case(sparse(RNG, (1, 5, 5, 16), 0.5), w, 0)
    assert "the stream has 0" in str(SPWMMA_GENERATOR.serves(narrow.group, DSTC))
    volta = Machine.load("volta-8tc")
    assert "no extension sparse" in str(SPWMMA_GENERATOR.serves(narrow.group, volta))


# --- encodings


@pytest.mark.parametrize(("shape", "pad"), [((40, 20), 0), ((2, 5, 6, 33), 1), ((1, 3, 3, 16), 3)])
def test_what_is_encoded_can_be_decoded(shape: tuple[int, ...], pad: int) -> None:
    x, where = sparse(RNG, shape, 0.4), Layout(shape, pad)
    assert where.bytes == len(where.encode(x))
    assert (where.decode(where.encode(x), np.float16) == x).all()


def test_records_hold_the_weights() -> None:
    matrix = sparse(RNG, (2 * 20, 40), 0.3)
    matrix[:16, :32] = 0
    matrix[20:] = 0
    made = Weights.of(matrix, 2, 3)
    assert (made.entries > 0).tolist() == [[True, False, False] + 3 * [False]] * 2
    want = np.zeros((2, 2, 3, 32, 32), np.float16)
    want[:, :, 0] = tiled(matrix, 2)
    found = read(made.records, made.entries.reshape(-1), np.float16)
    assert (found.reshape(want.shape) == want).all()
