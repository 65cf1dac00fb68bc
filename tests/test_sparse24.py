"""Two of four: HMMA.SP against HMMA on what the compressed weights stand for, and the kernels made of it against dense ones."""

from dataclasses import replace

import matrix_cases as cases
import ml_dtypes
import numpy as np
import pytest
from bare_warp import LANE, Bare
from hypothesis import given
from hypothesis import strategies as st
from matrix_cases import conv, group_of, matmul, program, same, some

from knapper.compiler.codegen.generator import GENERATORS
from knapper.compiler.codegen.matrix.blocks import product
from knapper.compiler.driver import Options, plan
from knapper.compiler.encoding import Encoding
from knapper.compiler.ir import evaluate
from knapper.compiler.sparsity.fits import fits
from knapper.compiler.sparsity.tilewise import cut, tiles
from knapper.isa import instructions as I
from knapper.isa import sparse24, tensor
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Half
from knapper.isa.operands import Reg, Unsigned
from knapper.runtime.session import Session

DTYPES = {Half.F16: np.float16, Half.BF16: ml_dtypes.bfloat16}


def multiplied(type, a, b, e, c, half=0, mask=None):
    """d of HMMA.SP. a: [16, 32], b: [16, 16] compressed, e: [32] words"""
    m = Bare()
    for n in (0, 1):
        m.regs[4 * n : 4 * n + 4] = a[:, 16 * n : 16 * n + 16].reshape(4, 64).view(np.uint32)
    m.regs[8:12], m.regs[12] = b.reshape(4, 64).view(np.uint32), e
    m.regs[16:24] = c.reshape(8, 32).view(np.uint32)
    if mask is not None:
        m.mask = mask
    I.HMMA_SP(type, Reg(16), Reg(0), Reg(8), Reg(16), Reg(12), Unsigned(half)).execute(m)
    return m.regs[16:24].view(np.float32).reshape(16, 16)


def operands(type, seed):
    rng = np.random.default_rng(seed)
    a, b, c = (rng.standard_normal(s).astype(DTYPES[type]) for s in ((16, 32), (16, 16), (16, 16)))
    index = np.sort(rng.permuted(np.tile(np.arange(4), (8, 16, 1)), axis=2)[..., :2], axis=2)
    return a, b, c.astype(np.float32), index.transpose(0, 2, 1).reshape(16, 16)


def spread(b, index):
    """b[32, 16], element by element."""
    full = np.zeros((32, 16), b.dtype)
    for s in range(16):
        for j in range(16):
            full[4 * (s // 2) + index[s, j], j] = b[s, j]
    return full


@pytest.mark.parametrize("type", Half)
@pytest.mark.parametrize("half", [0, 1])
def test_it_is_two_dense_products_of_the_weights_it_stands_for(type, half):
    a, b, c, index = operands(type, half)
    e = sparse24.metadata(index, half) | sparse24.metadata(3 - index, 1 - half)
    assert (sparse24.indices(e, half) == index).all()
    full, expected = spread(b, index).astype(np.float64), c
    for n in (0, 16):
        expected = tensor.chain(a[:, n : n + 16].astype(np.float64), full[n : n + 16], expected)
    got = multiplied(type, a, b, e, c, half)
    assert (got.view(np.uint32) == expected.view(np.uint32)).all()
    half_ = multiplied(type, a, b, e, c, half, LANE < 16)  # even rows
    assert (half_[::2] == expected[::2]).all()
    assert (half_[1::2] == c[1::2]).all()


def test_what_is_not_kept_is_not_multiplied_and_a_k_named_twice_is_once():
    a, b, c, index = operands(Half.F16, 5)
    index[:] = 1
    a[:, np.arange(32) % 4 != 1] = np.inf
    expected, first = c, b[::2].astype(np.float64)
    for k in range(8):
        step = expected + a[:, 4 * k + 1, None].astype(np.float64) * first[k]
        expected = step.astype(np.float32)
    got = multiplied(Half.F16, a, b, sparse24.metadata(index), c)
    assert (got == expected).all()


# --- kernels ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(autouse=True)
def ampere(monkeypatch):
    monkeypatch.setattr(cases, "MACHINE", Machine.load("ampere"))


def two_of_four(matrix, seed, most=2):
    """The matrix [k, n] with at most that many of each four rows of a column left."""
    rng, (k, n) = np.random.default_rng(seed), matrix.shape
    order = rng.permuted(np.tile(np.arange(4), (-(-k // 4), n, 1)), axis=2).transpose(0, 2, 1)
    return np.where((order < most).reshape(-1, n)[:k], matrix, np.zeros((), matrix.dtype))


def pruned(case, name="nm", seed=0, most=2):
    """The case with weights pruned to the pattern."""
    graph, inputs = case
    p = product(group_of(graph))
    w = graph.constants[p.b]
    matrix = (w.T if p.trans_b else w.reshape(-1, w.shape[-1])).copy()
    options = {"n": 2, "m": 4}
    if name == "nm":
        matrix = two_of_four(matrix, seed, most)
    else:
        options, rng = {"tile": 16}, np.random.default_rng(seed)
        kept = np.flatnonzero(rng.random(matrix.shape[1]) < 0.8)
        full, matrix = matrix, np.zeros_like(matrix)
        for tile in cut(kept, 16):
            at = np.ix_(np.flatnonzero(rng.random(len(matrix)) < 0.5), tile)
            matrix[at] = full[at]
        while True:  # a row of which nothing is left goes, and moves what lies behind it
            for t in tiles(matrix, 16):
                at = np.ix_(t.rows, t.columns)
                matrix[at] = two_of_four(matrix[at], seed, most)
            if fits(matrix, Encoding(name, options)):
                break
    kept = np.ascontiguousarray(matrix.T if p.trans_b else matrix.reshape(w.shape))
    constants = {**graph.constants, p.b: kept}
    made = replace(graph, constants=constants, encodings={p.b: Encoding(name, options)})
    return made.verify(), inputs


def check(case, cache, count=2):
    """The reference's bits, from kernels and from their description in numpy."""
    graph, inputs = case
    want = evaluate(graph, inputs)
    for options in some(list(cases.offers(graph, "hmma_sp")), count):
        made = program(graph, "hmma_sp", options, cache)
        got = Session(made).run(inputs).outputs
        also = GENERATORS["hmma_sp"].evaluate(group_of(graph), options, inputs)
        for name, y in want.items():
            assert same(got[name], y), f"{options}: %{name} differs from dense"
            assert same(also[name], y), f"{options}: %{name} differs in numpy"


CASES = {
    "ragged": lambda: matmul((100, 98), (98, 72), known=True),
    "many columns": lambda: matmul((200, 128), (128, 224), plus=(224,), known=True),
    "few columns": lambda: matmul((33, 64), (64, 10), plus=(33, 10), known=True),
    "transposed": lambda: matmul((96, 104), (64, 96), known=True, trans_a=True, trans_b=True),
    "batches of A": lambda: matmul((3, 48, 40), (48, 24), known=True, trans_a=True),
    "pads": lambda: conv((1, 9, 9, 16), 40, 3, pad=1),
    "channels in steps": lambda: conv((1, 9, 9, 64), 48, 3, pad=1, after="residual"),
    "strides": lambda: conv((2, 9, 9, 24), 40, 3, stride=2, after="residual"),
    "a short tap": lambda: conv((1, 9, 9, 3), 24, 3, pad=2, dilation=2),
    "groups": lambda: conv((2, 9, 9, 16), 40, 3, pad=1, group=2),
    "pointwise": lambda: conv((2, 7, 7, 32), 48, 1),
}


@pytest.mark.parametrize("encoding", ["nm", "tvw"])
@pytest.mark.parametrize("name", CASES)
def test_kernels_have_the_bits_of_dense_ones(name, encoding, cache):
    case = pruned(CASES[name](), encoding)
    if (name, encoding) == ("groups", "tvw"):  # whose tiles a type cuts in another way
        why = GENERATORS["hmma_sp"].serves(group_of(case[0]), cases.MACHINE)
        assert "within each" in why
        return
    check(case, cache)


@given(st.data())
def test_any_weights(cache, data):
    m, k, n = (data.draw(st.integers(1, most)) for most in (70, 90, 70))
    name, most = data.draw(st.sampled_from(["nm", "tvw"])), data.draw(st.integers(0, 2))
    case = matmul((m, k), (k, n), plus=(n,), known=True)
    check(pruned(case, name, data.draw(st.integers(0, 99)), most), cache, 1)


def test_the_plan_takes_it_where_the_machine_has_it():
    graph, _ = pruned(matmul((2048, 1024), (1024, 1024), known=True))
    steps = [plan(graph, Machine.load(t), Options()).steps[0] for t in ("ampere", "volta-8tc")]
    assert [s.kind for s in steps] == ["hmma_sp", "hmma"]
