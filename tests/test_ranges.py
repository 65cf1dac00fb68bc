"""Ranges: statistics that do not depend on how data was cut, methods against onnxruntime's, and files that lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from knapper.compiler.quantization.ranges import METHODS, Range, Ranges, choose, typed
from knapper.compiler.quantization.statistics import BINS, Statistics, by_channel
from knapper.isa.errors import PassError
from knapper.isa.formats import FORMATS

Array = NDArray[Any]
U8, I8, U4 = FORMATS["u8"], FORMATS["i8"], FORMATS["u4"]


def of(batches: list[Array]) -> Statistics:
    s = Statistics.of(batches[0])
    for b in batches[1:]:
        s = s.with_(b)
    return s


@given(seed=st.integers(0, 1 << 32), cuts=st.lists(st.integers(1, 99), max_size=4, unique=True), power=st.integers(-60, 60))  # fmt: skip
def test_how_data_is_cut_does_not_matter(seed: int, cuts: list[int], power: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_t(2, 100) * 2.0**power).astype(np.float32)
    whole, parts = Statistics.of(x), of(np.split(x, sorted(cuts)))
    assert (whole.low, whole.high, whole.count) == (parts.low, parts.high, parts.count)
    assert (whole.width, whole.first) == (parts.width, parts.first)
    assert whole.counts.tolist() == parts.counts.tolist()
    assert parts.sum == pytest.approx(whole.sum, rel=1e-6, abs=1e-6 * float(abs(x).max()))
    top = abs(x).max()
    assert BINS // 2 <= top / whole.width <= BINS


def test_every_bin_holds_what_lies_in_it() -> None:
    x = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    s = Statistics.of(x)
    edges = (s.first + np.arange(len(s.counts) + 1)) * s.width
    assert s.counts.tolist() == np.histogram(x, edges)[0].tolist()


def test_means_of_channels() -> None:
    x = np.random.default_rng(0).normal(size=(6, 3, 4, 5)).astype(np.float32)
    s = of([x[:2], x[2:]])
    assert s.means(1) == pytest.approx(x.mean((0, 2, 3)), abs=1e-6)
    assert s.means(-1) == pytest.approx(x.mean((0, 1, 2)), abs=1e-6)
    assert of([x, x[..., :4]]).means(-1) is None
    assert of([x, x[..., :4]]).means(1) is not None


def test_zeros_only_then_something() -> None:
    s = of([np.zeros(10, np.float32), np.full(3, 2.0, np.float32)])
    assert (s.low, s.high, s.count, s.counts.sum()) == (0, 2, 13, 13)
    assert choose(s, "minmax", U8).scale(U8) == (pytest.approx(2 / 255), 0)
    for method in METHODS:
        assert choose(Statistics.of(np.zeros(4)), method, U8).scale(U8) == (1, 0)


def test_what_is_not_finite_is_named() -> None:
    with pytest.raises(PassError, match="%relu1"):
        Ranges().with_({"relu1": np.array([1.0, np.nan], np.float32)})


def test_what_is_infinite_once_has_no_range() -> None:
    """A mask of attention, say: it stays a float, and is named in the file."""
    mask = np.array([0, -np.inf], np.float32)
    seen = Ranges.observe([{"mask": np.zeros(2, np.float32), "x": mask + 1}, {"mask": mask}])
    assert (set(seen.values), seen.infinite) == (set(), {"mask", "x"})
    assert Ranges.parse(seen.show()).infinite == {"mask", "x"}


def test_channels() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    assert [s.high for s in by_channel(x, 1)] == [15, 19, 23]


@given(low=st.floats(-100, 0), high=st.floats(0, 100), name=st.sampled_from(["u8", "i8", "u4", "i4", "u2", "i16"]))  # fmt: skip
def test_scale_and_zero_point(low: float, high: float, name: str) -> None:
    f = FORMATS[name]
    scale, zp = Range(low, high).scale(f)
    assert f.smallest <= zp <= f.largest
    assert scale > 0
    if high - low > 1e-30:
        ends = (np.array([f.smallest, f.largest]) - zp) * float(scale)
        assert np.abs(ends - [low, high]).max() <= 0.51 * scale + 1e-6 * (high - low)
    scale, zp = Range(-high, high).symmetric().scale(FORMATS["i8"])
    assert zp == 0


HEAVY = np.random.default_rng(3).standard_t(3, 20_000).astype(np.float32)
DATA = {"signed": HEAVY, "relu": np.maximum(HEAVY, 0), "gauss": np.random.default_rng(4).normal(size=20_000).astype(np.float32)}  # fmt: skip


def loss(x: Array, r: Range, name: str) -> float:
    scale, zp = r.scale(FORMATS[name])
    f = FORMATS[name]
    q = np.clip(np.rint(x / scale) + zp, f.smallest, f.largest)
    return float(np.square((q - zp) * scale - x).mean())


@pytest.mark.parametrize("name", ["u8", "i8", "u4", "u2"])
@pytest.mark.parametrize("data", DATA)
def test_mse_loses_least_of_all_methods(data: str, name: str) -> None:
    s, f = Statistics.of(DATA[data]), FORMATS[name]
    losses = {m: loss(DATA[data], choose(s, m, f), name) for m in METHODS}
    assert losses["mse"] <= 1.02 * min(losses.values())
    low, high = float(DATA[data].min()), float(DATA[data].max())
    tried = [loss(DATA[data], Range(min(low, 0) * k, high * j), name) for k in np.linspace(.05, 1, 20) for j in np.linspace(.05, 1, 20)]  # fmt: skip
    assert losses["mse"] <= 1.02 * min(tried)


def test_mse_on_a_grid_that_is_no_integers() -> None:
    s, f = Statistics.of(DATA["relu"]), FORMATS["uflint4"]
    scale, zp = choose(s, "mse", f).scale(f)
    assert zp == 0
    tops = np.linspace(0.1, 2, 200) * s.high
    losses = [
        np.square(f.round(DATA["relu"] * 64 / t) * t / 64 - DATA["relu"]).mean() for t in tops
    ]
    mine = np.square(f.round(DATA["relu"] / scale) * scale - DATA["relu"]).mean()
    assert mine <= 1.02 * min(losses)


def test_types_of_activations() -> None:
    chosen = {n: typed(Statistics.of(x), 4).name for n, x in DATA.items()}
    assert chosen == {"signed": "flint4", "relu": "uflint4", "gauss": "i4"}
    assert typed(Statistics.of(HEAVY), 8).name == "i8"


def test_gauss_is_squants() -> None:
    s = Statistics.of(DATA["relu"])
    sigma = DATA["relu"][DATA["relu"] > 0].std()
    assert choose(s, "gauss", U8).high == pytest.approx(25 * sigma, rel=1e-4)
    assert choose(s, "gauss", U4).high == pytest.approx(min(12 * sigma, s.high), rel=1e-4)
    signed = choose(Statistics.of(HEAVY), "gauss", I8)
    assert signed.low == -signed.high == pytest.approx(-20 * sigma, rel=1e-4)


def peer(method: str, batches: list[Array], **options: Any) -> tuple[float, float]:
    """The range that onnxruntime's collector makes."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    c = HistogramCollector(method, options.get("symmetric", False), 2048, 128, 99.9, "same")
    for b in batches:
        c.collect({"x": b})
    low, high = c.compute_collection_result()["x"][:2]
    return float(low), float(high)


@pytest.mark.parametrize("data", DATA)
def test_as_onnxruntime_calibrates(data: str, capsys: pytest.CaptureFixture[str]) -> None:
    batches = np.split(DATA[data], 4)
    batches.sort(key=lambda b: -abs(b).max())  # it widens its histogram by bins, which shifts them
    s = of(batches)
    ours = choose(s, "percentile", I8, percentile=99.9)
    low, high = peer("percentile", batches)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=0.05 * max(-low, high))
    ours = choose(s, "minmax", I8)
    assert (ours.low, ours.high) == (min(s.low, 0), s.high)
    ours = choose(s, "entropy", FORMATS["i8" if data == "signed" else "i7"])
    low, high = peer("entropy", batches)
    if data == "relu":  # there zeros weigh like any others, and half of what is not zero is cut off
        assert high < ours.high < s.high
    else:
        assert ours.high == pytest.approx(high, rel=0.02 if data == "signed" else 0.25)
    capsys.readouterr()


def test_moving_extremes_as_onnxruntime(tmp_path: Path) -> None:
    batches = np.split(DATA["signed"], 4)
    low, high = batches[0].min(), batches[0].max()
    for b in batches[1:]:
        low, high = low + 0.01 * (b.min() - low), high + 0.01 * (b.max() - high)
    r = choose(of(batches), "moving", U8)
    assert (r.low, r.high) == pytest.approx((low, high))


def observed() -> Ranges:
    rng = np.random.default_rng(0)
    return Ranges.observe(
        [{"a": rng.normal(size=(2, 30)).astype(np.float32), "ids": np.arange(3)} for _ in range(3)]
    )


def test_file_and_back(tmp_path: Path) -> None:
    r = observed()
    assert list(r.values) == ["a"]
    r.save(tmp_path / "r.json")
    read = Ranges.load(tmp_path / "r.json")
    assert read.show() == r.show()
    for method in METHODS:
        assert choose(read["a"], method, U8) == choose(r["a"], method, U8)


DAMAGED: dict[str, Any] = {
    "schema": lambda h: h | {"schema": "knapper.ranges/9"},
    "method": lambda h: h | {"method": "best"},
    "first schema": lambda h: {k: v for k, v in h.items() if k != "weights"},
    "weights": lambda h: h | {"weights": 3},
    "list": lambda h: [h],
    "values": lambda h: h | {"values": 3},
    "missing": lambda h: h | {"values": {"a": {"low": 1}}},
    "order": lambda h: with_(h, low=9.0, high=1.0),
    "nan": lambda h: with_(h, high=float("nan")),
    "infinite": lambda h: with_(h, squares=float("inf")),
    "text": lambda h: with_(h, width="0.5"),
    "width": lambda h: with_(h, width=0.3),
    "no width": lambda h: with_(h, width=0.0),
    "negative": lambda h: with_(h, counts=[-1, 1]),
    "no counts": lambda h: with_(h, counts=[]),
    "too many": lambda h: with_(h, counts=[0] * 100_000),
    "huge": lambda h: with_(h, counts=[1 << 80]),
    "far": lambda h: with_(h, first=1 << 70),
    "sums": lambda h: with_(h, sums=[[1], [float("nan")]]),
    "one sum": lambda h: with_(h, sums=[[1]]),
    "nested": lambda h: with_(h, counts=[[1]]),
}


def with_(held: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return held | {"values": {"a": held["values"]["a"] | changes}}


@pytest.mark.parametrize("damage", DAMAGED)
def test_files_that_lie(damage: str, tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    file.write_text(json.dumps(DAMAGED[damage](json.loads(observed().show()))))
    with pytest.raises(PassError, match="no ranges"):
        Ranges.load(file)


@pytest.mark.parametrize("text", ["", "[" * 100_000, "{}", '{"schema": 1', "\0"])
def test_texts_that_are_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(PassError, match="no ranges"):
        Ranges.load(tmp_path / "r.json")
    with pytest.raises(PassError, match="no ranges"):
        Ranges.load(tmp_path / "missing.json")
