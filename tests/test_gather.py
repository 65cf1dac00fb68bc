"""Gathered pushes: rows of the patch matrix by a list, on all engines and against the image itself; what they count, claim and refuse."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from vector_programs import (
    ADD,
    COMMIT,
    DONE,
    EXIT,
    F16,
    FILTER,
    INPUT,
    PLAIN,
    SET,
    WEIGHTS,
    agreed,
    copy,
    describe,
    fill,
    program,
    run,
    store,
    umov,
    wait,
)

from knapper.isa import gather
from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.errors import MachineFault
from knapper.isa.modifiers import Start
from knapper.isa.operands import Extent, Signed, Src, Unsigned, UReg
from knapper.isa.program import BASE
from knapper.isa.systolic import chain
from knapper.isa.vector_memory import ConvDesc

LISTED = FILTER + 4096
"""Where the list lies in the input."""
LIST = WEIGHTS + 4096
"""And in shared memory."""
MOST = 24
"""Kept rows, at most: three passes."""


def tile(td: int, k_len: int, at: int = LIST) -> list[Instr]:
    record = np.zeros((), gather.TILE)
    record["k_len"], record["at"] = k_len, at
    words = np.frombuffer(record.tobytes(), "<u4").tolist()
    return [
        *(umov(32 + k, word) for k, word in enumerate(words)),
        i.TWDESC(Src.of(td), UReg(32)),
    ]


def push(start: Start, td: int, begin: int, rows: int) -> list[Instr]:
    return [
        umov(30, 0), umov(31, rows),
        i.GATHK_PUSH(F16, start, Src.of(0), Extent(1), Unsigned(0), Src.of(td << 16 | begin), UReg(30), UReg(31)),
    ]  # fmt: skip


def passes(count: int, rows: int, td: int = 1) -> list[Instr]:
    """As many as a list of so many rows takes; at least one."""
    code: list[Instr] = [umov(27, WEIGHTS)]
    for begin in range(0, max(count, 1), 8):
        load = i.SMA_LDB(F16, Extent(1), UReg(27), Signed(32 * begin), Unsigned(32))
        code += [
            load,
            i.SMA_SWAP(Extent(1)),
            *push(ADD if begin else SET, td, begin, rows),
        ]
    return code


def filled(d: ConvDesc) -> list[Instr]:
    """An image, weights and a list in vector memory."""
    moved = [*copy(WEIGHTS, FILTER, 32 * MOST), *copy(LIST, LISTED, 2 * MOST)]
    return [*describe(d), *fill(0, d.layout.stored), *moved, *DONE]


def data(kept: Any) -> NDArray[np.uint8]:
    raw = np.random.default_rng(1).normal(size=INPUT // 2).astype(np.float16).view(np.uint8)
    entries = np.zeros(MOST, gather.ENTRY)
    entries[: len(kept)] = gather.delta(kept)
    raw[LISTED:][: entries.nbytes] = entries.view(np.uint8)
    return raw


def patches(d: ConvDesc, raw: NDArray[np.uint8], kept: Any) -> NDArray[np.float16]:
    """The kept columns of the patch matrix, from the image as it is."""
    shape = int(d.images), int(d.height), int(d.width), int(d.pitch)
    image = raw[: 2 * int(np.prod(shape))].view(np.float16).reshape(shape)
    wn, rows = int(d.layout.wn), int(d.layout.rows)
    out = np.zeros((rows, len(kept)), np.float16)
    for m in range(rows):
        group, rest = divmod(m, wn * d.out_h * d.out_w)
        (oy, ox), n = divmod(rest // wn, d.out_w), rest % wn + group * wn
        for j, row in enumerate(kept):
            pixel, c = divmod(int(row), d.channels)
            y = oy * d.stride_h + pixel // d.s * d.dilation_h - d.pad_t
            x = ox * d.stride_w + pixel % d.s * d.dilation_w - d.pad_l
            if n < d.images and 0 <= y < d.height and 0 <= x < d.width:
                out[m, j] = image[n, y, x, c]
    return out


DESCRIPTORS = {
    "eight images": PLAIN,
    "copies of three channels, stride": ConvDesc.of(
        image=BASE, base=64, height=5, width=6, channels=3, images=3, r=3, s=3, t=2, pad=(1, 1, 1, 1), stride=(2, 1), banks=8
    ),
    "one image, two words a pixel, dilation": ConvDesc.of(
        image=BASE, base=64, height=5, width=9, channels=11, images=1, r=2, s=3, pad=(1, 1, 1, 1), dilation=(1, 2), banks=8
    ),
    "rows of a matrix": ConvDesc.of(image=BASE, base=64, height=1, width=1, channels=40, images=21, banks=8),
}  # fmt: skip


@pytest.mark.parametrize("name", DESCRIPTORS)
@settings(max_examples=6, deadline=None)
@given(data_=st.data())
def test_a_chain_over_kept_rows(name: str, data_: st.DataObject) -> None:
    """Any list, on all engines, against the image itself; counters agree too."""
    d = DESCRIPTORS[name]
    k = int(d.r * d.s * d.channels)
    kept = sorted(data_.draw(st.sets(st.integers(0, k - 1), max_size=min(MOST, k))))
    raw, rows = data(kept), int(d.layout.rows)
    code = [*filled(d), *tile(1, len(kept)), *passes(len(kept), rows), *DONE]
    y, _ = agreed(program([*code, *store(16 * rows), EXIT]), raw)
    weights = raw[FILTER:][: 32 * MOST].view(np.float16).reshape(MOST, 16)
    want = chain(patches(d, raw, kept), weights[: len(kept)], np.zeros((rows, 16), np.float32))
    assert (y[: want.nbytes] == want.view(np.uint8).ravel()).all()


LISTS = 64
"""Bytes from one tile's list to the next's."""


def weights(row: int) -> list[Instr]:
    """Eight rows of them, for the passes that follow."""
    at = Signed(32 * row)
    return [i.SMA_LDB(F16, Extent(1), UReg(27), at, Unsigned(32)), i.SMA_SWAP(Extent(1))]


def several(d: ConvDesc, rng: Random) -> tuple[list[Instr], NDArray[np.uint8]]:
    """Passes of four tiles and of the whole filter in any order, over any rows, with weights that change; and the input."""
    k, rows = int(d.r * d.s * d.channels), int(d.layout.rows)
    lists = [sorted(rng.sample(range(k), rng.randrange(min(MOST, k) + 1))) for _ in range(4)]
    raw = data(())
    for td, kept in enumerate(lists):
        at = LISTED + LISTS * td
        raw[at:][: 2 * len(kept)] = gather.delta(kept).view(np.uint8)
    code = [*describe(d), *fill(0, d.layout.stored), *copy(WEIGHTS, FILTER, 32 * MOST), *copy(LIST, LISTED, 4 * LISTS), *DONE]  # fmt: skip
    for td, kept in enumerate(lists):
        code += tile(td, len(kept), LIST + LISTS * td)
    code += [umov(27, WEIGHTS), *weights(0), *push(SET, 0, 0, rows)]  # all sums are there
    for _ in range(rng.randrange(3, 12)):
        if rng.random() < 0.5:
            code += weights(rng.randrange(MOST - 8 + 1))
        first = rng.randrange(rows)
        m, start, c = rng.randrange(1, rows - first + 1), rng.choice((SET, ADD)), Src.of(16 * first)
        code += [umov(30, first), umov(31, m)]
        if rng.random() < 0.3:
            r, q = rng.randrange(d.r), d.t * rng.randrange(-(-d.s // d.t))
            tap = Src.of(rng.randrange(d.layout.blocks) << 16 | r << 8 | q)
            code.append(i.IM2COL_PUSH(F16, start, c, Extent(1), Unsigned(0), tap, UReg(30), UReg(31)))  # fmt: skip
        else:
            td = rng.randrange(4)
            tap = Src.of(td << 16 | rng.randrange(len(lists[td]) + 1))
            if rng.random() < 0.5:
                code.append(i.UMOV(UReg(33), tap))
                tap = Src.of(UReg(33))
            code.append(i.GATHK_PUSH(F16, start, c, Extent(1), Unsigned(0), tap, UReg(30), UReg(31)))  # fmt: skip
        code += rng.choice(([], [COMMIT], [COMMIT, wait(1)], DONE))
    return [*code, *DONE, *store(16 * rows), EXIT], raw


@pytest.mark.parametrize("seed", range(16))
def test_random_programs_are_the_same_on_all_engines(seed: int) -> None:
    rng = Random(seed)
    code, raw = several(rng.choice(list(DESCRIPTORS.values())), rng)
    y, _ = agreed(program(code), raw)
    assert y.any()


def counted(kept: list[int]) -> tuple[int, int]:
    """Accesses of the port, and rows, of a push of one pass."""
    rows = int(PLAIN.layout.rows)
    code = [*filled(PLAIN), *tile(1, len(kept)), *passes(len(kept), rows), *DONE, EXIT]
    _, counts = agreed(program(code), data(kept))
    pushes = counts.instructions[counts.instructions["rows"] > 0]
    return int(pushes["vector_reads"][0]), int(pushes["rows"][0])


def test_rows_of_one_bank_take_turns() -> None:
    """128 rows of A are 16 words: all banks give one together, and one bank as many as it has rows."""
    assert counted([0, 1, 2, 3, 4, 5, 6, 7]) == (16, 128)  # a whole tap
    assert counted([0, 9, 18, 27]) == (16, 128)  # four taps, four banks
    assert counted([0, 8, 16, 24]) == (64, 128)  # four taps, one bank


def test_a_chain_of_nothing_is_zero() -> None:
    """SET with no kept rows clears sums that were there, ADD leaves them."""
    rows = int(PLAIN.layout.rows)
    code = [*filled(PLAIN), *tile(1, 2), *tile(2, 0), *passes(2, rows), *push(ADD, 2, 0, rows)]
    y, _ = agreed(program([*code, *DONE, *store(16 * rows), EXIT]), data([3, 5]))
    assert y.any()
    y, _ = agreed(
        program([*code, *push(SET, 2, 0, rows), *DONE, *store(16 * rows), EXIT]), data([3, 5])
    )
    assert not y[: 64 * rows].any()


def fault(code: list[Instr], kept: list[int] | None = None) -> str:
    """What all checked engines say."""
    told = set()
    for engine in ("reference", "checked"):
        with pytest.raises(MachineFault) as e:
            run(program([*code, EXIT]), data(kept or [0, 1]), engine)
        told.add(str(e.value))
    (message,) = told
    return message


BEGUN = [*filled(PLAIN), *tile(1, 2)]


def test_faults() -> None:
    rows = int(PLAIN.layout.rows)
    assert "at most 65535 kept rows" in fault([*filled(PLAIN), *tile(0, 65536)])
    assert "begins at a multiple of 2" in fault([*filled(PLAIN), *tile(0, 2, LIST + 1)])
    assert "fits shared memory" in fault([*filled(PLAIN), *tile(0, 2, (1 << 17) - 2)])
    assert "tile descriptor 2 is used, where no TWDESC" in fault([*BEGUN, *passes(2, rows, td=2)])
    assert "begins within its list" in fault([*BEGUN, *push(SET, 1, 3, rows)])
    assert "one of four tiles" in fault([*BEGUN, *push(SET, 4, 0, rows)])
    assert "a kept row is a row of B" in fault([*BEGUN, *push(SET, 1, 0, rows)], [0, 72])
    assert "where nothing wrote" in fault([*filled(PLAIN), *tile(1, 2, LIST + 2 * MOST), *push(SET, 1, 0, rows)])  # fmt: skip


def test_hazards() -> None:
    """What a pending push uses stays as it is; what is on its way is not used."""
    pending = [*BEGUN, *passes(2, int(PLAIN.layout.rows))]
    assert "tile descriptor 1 changes" in fault([*pending, *tile(1, 2)])
    assert "AsyncHazard" in fault([*pending, *copy(LIST, LISTED, 16)])
    assert "AsyncHazard" in fault([*pending, *fill(0, 1)])
    late = [*BEGUN, *copy(LIST, LISTED, 16), *passes(2, 128)]
    assert "AsyncHazard" in fault(late)
