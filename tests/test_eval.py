"""`knapper eval`: what it finds in files and folders, what it counts, and what it refuses."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper
from shop import Knapper

from knapper.compiler.ir import Type
from knapper.frontends import demo
from knapper.frontends.dataset import Arrays, Choice, open_data, picture
from knapper.frontends.evaluate import WRONG, Evaluation, Scored, Share, evaluate
from knapper.frontends.feed import Feed, Pixels, placed_as
from knapper.frontends.workers import spread
from knapper.isa.errors import KnapperError, UsageError

Array = NDArray[Any]
FASHION = str(demo.HERE / "fashion.onnx")
FASHION_DATA = str(demo.HERE / "fashion.npz")
NORMAL = ("--mean", ".2860", "--std", ".3530")
RGB = {"x": Type("f32", (1, 3, 2, 4))}


def images(n: int = 6, channels: int = 3) -> Array:
    return np.random.default_rng(0).integers(0, 256, (n, 2, 4, channels)).astype(np.uint8)


def picker(path: Path, batch: int | str = 1, classes: int = 4) -> Path:
    """A network whose scores are the first pixels of the first channel: what it says is seen in the data."""
    value, node = helper.make_tensor_value_info, helper.make_node
    shape = {n: onnx.numpy_helper.from_array(np.array(v), n) for n, v in (("b", [0, 0, 0]), ("e", [1, 1, classes]), ("a", [1, 2, 3]))}  # fmt: skip
    nodes = [node("Slice", ["x", "b", "e", "a"], ["s"]), node("Flatten", ["s"], ["scores"])]
    graph = helper.make_graph(
        nodes, "picker", [value("x", TensorProto.FLOAT, [batch, 3, 2, 4])],
        [value("scores", TensorProto.FLOAT, [batch, classes])], [*shape.values()],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


# --- reading


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (("test_images", "test_labels", "train_images", "train_labels"), "test_images"),
        (("x_train", "y_train", "x_test", "y_test"), "x_test"),
        (("X", "y"), "X"),
        (("data", "target"), "data"),
        (("trainImages", "trainLabels"), "trainImages"),
        (("pictures_of_cats", "kind"), "pictures_of_cats"),
    ],
)
def test_arrays_are_found_by_their_names(
    tmp_path: Path, names: tuple[str, ...], found: str
) -> None:
    x, y = images(), np.arange(6) % 3
    np.savez(tmp_path / "d.npz", **{n: y + (i > 1) if i % 2 else x for i, n in enumerate(names)})
    data = open_data(tmp_path / "d.npz", RGB)
    assert data.about.startswith(f"{found} u8[6,2,4,3]")
    if found != "pictures_of_cats":
        assert data.labels is not None
        assert data.labels.tolist() == (y + (names.index(found) > 1)).tolist()


def test_calibration_takes_the_training_set(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x_test=images(), x_train=images())
    assert open_data(tmp_path / "d.npz", RGB, Choice(split="train")).about.startswith("x_train")


def test_inputs_by_name_come_first(tmp_path: Path) -> None:
    inputs = {"ids": Type("i64", (1, 3)), "mask": Type("i64", (1, 3))}
    np.savez(
        tmp_path / "d.npz", ids=np.ones((5, 3), int), mask=np.zeros((5, 3), int), labels=[1] * 5
    )
    data = open_data(tmp_path / "d.npz", inputs)
    assert {n: a.shape for n, a in Feed(data, inputs).take([0, 4]).items()} == {
        "ids": (2, 3),
        "mask": (2, 3),
    }
    assert data.labels is not None


def test_a_limit_is_spread_over_all() -> None:
    x = images(10)
    data = Arrays({"x": x}, "x", np.arange(10))
    from knapper.frontends.dataset import limited

    some = limited(data, 4)
    assert some.labels is not None
    assert some.labels.tolist() == [0, 2, 5, 7]
    assert (some.take([1, 3])["x"] == x[[2, 7]]).all()


@pytest.mark.parametrize(
    ("arrays", "code", "says"),
    [
        ({"a": images(), "b": images()}, "E730", "which array has the samples?"),
        ({"x": images(0)}, "E730", "no samples"),
        ({"x": np.float32(1)}, "E730", "'x' is one number, no samples"),
        ({"x": images(), "labels": np.full(6, 0.5)}, "E731", "whole numbers"),
        ({"x": images(), "labels": np.full(6, np.inf)}, "E731", "whole numbers"),
        ({"x": images(), "labels": np.full(6, np.nan)}, "E731", "whole numbers"),
        ({"x": images(), "labels": np.full(6, 2**63, np.uint64)}, "E731", "whole numbers"),
        ({"x": images(), "labels": np.full(6, "cat")}, "E731", "not numbers"),
        ({"x": images(), "labels": np.zeros((6, 0))}, "E731", "0 labels for 6 samples"),
        ({"x": np.full((6, 3), "cat")}, "E722", "elements of <U3"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, arrays: Any, code: str, says: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(UsageError, match=says) as e:
        open_data(tmp_path / "d.npz", RGB)
    assert e.value.code == code


# --- feeding


def test_pixels_are_normalised_in_double_precision() -> None:
    x = images()
    pixels = Pixels(None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    got = Feed(Arrays({"x": x}, ""), RGB, pixels).take(range(6))["x"]
    want = ((x / 255 - pixels.mean) / pixels.std).transpose(0, 3, 1, 2).astype(np.float32)
    assert (got == want).all()
    floats = Feed(Arrays({"x": x / 255}, ""), RGB, pixels).take(range(6))["x"]
    assert (floats == want).all()
    swapped = Feed(Arrays({"x": x}, ""), RGB, Pixels(1.0, bgr=True)).take([0])["x"]
    assert (swapped[0] == x[0].transpose(2, 0, 1)[::-1]).all()


@pytest.mark.parametrize(
    "lines", ["a 1\nb 2\nc 0\n", "--3\n1\n1\n", "²\n1\n1\n", "9" * 30, "1 2 3\n1\n1\n"]
)
def test_lines_that_are_no_labels(tmp_path: Path, lines: str) -> None:
    (tmp_path / "labels.txt").write_text(lines)
    np.savez(tmp_path / "d.npz", x=images(3))
    with pytest.raises(UsageError, match="expected lines of") as e:
        open_data(tmp_path / "d.npz", RGB, Choice(labels=str(tmp_path / "labels.txt")))
    assert e.value.code == "E731"


def test_one_sample_may_have_one_label(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=images(1), y=np.array(7))
    labels = open_data(tmp_path / "d.npz", RGB).labels
    assert labels is not None
    assert labels.tolist() == [7]


def test_pictures_have_one_shape(tmp_path: Path) -> None:
    for i, shape in enumerate([(4, 4, 3), (3, 4, 4)]):
        np.save(tmp_path / f"{i}.npy", np.zeros(shape, np.uint8))
    data = open_data(tmp_path, {"x": Type("f32", (1, 3, 4, 4))})
    with pytest.raises(UsageError, match="several shapes"):
        data.take([0, 1])


@pytest.mark.parametrize(
    ("shape", "want", "fits"),
    [
        ((5, 2, 4, 3), (1, 3, 2, 4), (5, 3, 2, 4)),
        ((5, 3, 2, 4), (1, 2, 4, 3), (5, 2, 4, 3)),
        ((5, 8, 8), (1, 1, 8, 8), (5, 1, 8, 8)),
        ((5, 8, 8), (1, 64), (5, 64)),
        ((5, 64), (7, 8, 8, 1), (5, 8, 8, 1)),
        ((5, 1, 3, 2, 4), (1, 3, 2, 4), (5, 3, 2, 4)),
        ((5, 2, 4, 3), (1, 24), None),
        ((5, 8, 8), (1, 3, 8, 8), None),
    ],
)
def test_layouts(
    shape: tuple[int, ...], want: tuple[int, ...], fits: tuple[int, ...] | None
) -> None:
    x = np.arange(math.prod(shape)).reshape(shape)
    placed = placed_as(x, Type("f32", want))
    assert (placed is None) if fits is None else (placed is not None and placed.shape == fits)


def test_integers_are_not_rounded_into_an_input() -> None:
    for x, says in (
        (np.full((2, 3), 0.5), "samples are float64"),
        (np.full((2, 3), 300), "300 to 300"),
    ):
        with pytest.raises(UsageError, match=says) as e:
            Feed(Arrays({"x": x}, ""), {"x": Type("u8", (1, 3))}).take([0])
        assert e.value.code == "E722"


def test_samples_that_are_no_numbers_are_refused_by_name() -> None:
    x = np.zeros((9, 3), np.float32)
    x[:6, 1] = -np.inf  # is one
    x[7, 2] = np.nan
    data, inputs = Arrays({"x": x}, ""), {"x": Type("f32", (2, 3))}
    assert np.isneginf(Feed(data, inputs).take([1, 6])["x"]).sum() == 1
    x[:6, 1] = 0
    with pytest.raises(UsageError, match="input 'x': sample 7 is no number") as e:
        evaluate(Linear(np.eye(3)), data)
    assert e.value.code == "E735"


@pytest.mark.parametrize("words", [{"mean": (1.0, 2.0)}, {"bgr": True}])
def test_numbers_a_channel_need_channels(words: Mapping[str, Any]) -> None:
    with pytest.raises(UsageError, match="channels"):
        Feed(
            Arrays({"x": images(2, 1)}, ""), {"x": Type("f32", (1, 1, 2, 4))}, Pixels(**words)
        ).take([0])


# --- counting


def test_ties_go_to_the_first_class_and_what_is_not_a_number_is_wrong() -> None:
    y = np.array([[1, 2, 2], [3, 1, 3], [np.nan, 0, 1], [0, 0, 0]], np.float32)
    found = Scored.of(y, np.array([2, 0, 0, 1]))
    assert found.rank.tolist() == [1, 0, WRONG, 1]
    assert found.best.tolist() == [1, 0, -1, 0]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Of 2,000 experiments with 60 samples each, 92 to 98 in a hundred."""
    rng = np.random.default_rng(0)
    for truth in (0.5, 0.9):
        found = [Share(int(k), 60).interval for k in rng.binomial(60, truth, 2000)]
        assert 0.92 <= np.mean([low <= truth <= high for low, high in found]) <= 0.98
    ours, theirs = (rng.random((2000, 200)) < p for p in (0.86, 0.88))
    spans = []
    for mine, other in zip(ours, theirs, strict=True):
        a, b = (Scored(np.where(r, 0, 9), np.zeros(200), np.ones(200)) for r in (mine, other))
        spans.append(
            Evaluation(Scored(a.rank, a.best, a.power, b, np.zeros(200)), 10, True).lost("top1")
        )
    assert 0.92 <= np.mean([low <= 0.02 <= high for _, low, high in spans]) <= 0.98


class Linear:
    """Scores that are a matrix product, in numpy, two samples at once."""

    def __init__(self, w: Array, batch: int = 2) -> None:
        self.w, self.inputs, self.outputs = w, {"x": Type("f32", (batch, len(w)))}, ["y"]

    def open(self, stop: threading.Event) -> Any:
        def run(x: Mapping[str, Array]) -> dict[str, Array]:
            assert x["x"].shape == self.inputs["x"].shape
            return {"y": x["x"] @ self.w}

        return run


@pytest.mark.parametrize("workers", [1, 3])
def test_metrics_are_those_of_numpy(workers: int) -> None:
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((41, 8), np.float32), rng.standard_normal((8, 10), np.float32)
    other, labels = w + rng.standard_normal((8, 10), np.float32) / 8, rng.integers(0, 10, 41)
    found = evaluate(
        Linear(w), Arrays({"x": x}, "", labels), reference=Linear(other, 3), workers=workers
    )
    y, r = x @ w, x @ other
    assert found.metrics == ("top1", "top5", "agreement", "sqnr")
    assert found.right("top1") == Share(int((y.argmax(1) == labels).sum()), 41)
    assert found.right("top5").right == sum(
        k in row for k, row in zip(labels, (-y).argsort(1)[:, :5], strict=True)
    )
    assert found.right("agreement").right == (y.argmax(1) == r.argmax(1)).sum()
    assert found.sqnr == pytest.approx(10 * np.log10((r**2).sum() / ((y - r) ** 2).sum()), abs=1e-3)


def test_noise_of_what_is_equal_or_no_number() -> None:
    x, w = np.ones((4, 3), np.float32), np.eye(3, dtype=np.float32)
    for other, sqnr in ((w, math.inf), (0 * w, -math.inf), (w * np.nan, math.nan)):
        found = evaluate(Linear(w), Arrays({"x": x}, ""), reference=Linear(other))
        assert found.sqnr == pytest.approx(sqnr, nan_ok=True)
        assert found.broken == 0
        assert found.right("agreement").right == (0 if math.isnan(sqnr) else 4)


def test_nothing_to_count_fails() -> None:
    with pytest.raises(KnapperError, match="nothing was evaluated") as e:
        evaluate(Linear(np.eye(3)), Arrays({"x": np.zeros((0, 3))}, ""))
    assert e.value.code == "E706"


def test_workers_stop_at_the_first_error() -> None:
    def worker(stop: threading.Event) -> Any:
        def work(job: int) -> int:
            if job == 3:
                raise KnapperError("E706", "third")
            time.sleep(0.002)
            return job

        return work

    taken = list[int]()
    with pytest.raises(KnapperError, match="third"):
        spread(worker, count(), 2, taken.append)
    assert taken == [0, 1, 2]


@pytest.mark.parametrize("workers", [1, 4])
def test_results_are_taken_in_order(workers: int) -> None:
    rng, taken = np.random.default_rng(0), list[int]()
    pauses = rng.random(200) / 2000

    def worker(stop: threading.Event) -> Any:
        return lambda job: (time.sleep(pauses[job]), job)[1]

    spread(worker, iter(range(200)), workers, taken.append)
    assert taken == list(range(200))


# --- the command


def test_fashion_is_judged_as_the_demo_does(run: Knapper) -> None:
    code, out, err = run(
        "eval", FASHION, "--data", FASHION_DATA, *NORMAL, "--reference", "onnxruntime"
    )
    assert code == 0, err
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert "89.00%  (89 of 100; 95 %: 81.37% to 93.75%)" in lines["top1"]
    assert "100 of 100" in lines["agreement"]
    assert "f32[32,1,28,28] = (x/255 − 0.286) / 0.353" in lines["image"]
    assert float(lines["sqnr"].split()[1]) > 50


def test_an_image_says_the_same_one_by_one(run: Knapper, tmp_path: Path) -> None:
    assert run("compile", FASHION, "-o", "f.elf")[0] == 0
    words = ("--data", FASHION_DATA, *NORMAL, "--limit", "30", "--json")
    found = [json.loads(run("eval", f, *words)[1])["metrics"] for f in ("f.elf", FASHION)]
    assert found[0] == found[1]
    assert found[0]["top1"]["of"] == 30
    both = run("eval", "f.elf", *words, "--reference", FASHION, "--metric", "agreement")
    assert json.loads(both[1])["metrics"]["agreement"]["value"] == 1


def test_a_folder_of_classes(run: Knapper, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    picker(tmp_path / "m.onnx")
    for k in range(4):
        (tmp_path / "val" / f"n{k}").mkdir(parents=True)
        for i in range(2):
            x = np.zeros((2, 4, 3), np.uint8)
            x[0, k, 0] = 200
            image.fromarray(x).save(tmp_path / "val" / f"n{k}" / f"{i}.png")
    code, out, err = run(
        "eval", "m.onnx", "--data", "val", "--resize", "2", "--precision", "fp32", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["metrics"]["top1"]["right"] == 8
    (tmp_path / "order.txt").write_text("n3\nn2\nn1\nn0\n")
    code, out, _ = run(
        "eval", "m.onnx", "--data", "val", "--resize", "2", "--classes", "order.txt", "--json"
    )
    assert json.loads(out)["metrics"]["top1"]["right"] == 0


def test_a_picture_is_made_smaller_and_its_middle_cut_out(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    wide = np.zeros((70, 140, 3), np.uint8)
    wide[:, 35:105] = 255  # the middle square is white
    image.fromarray(wide).save(tmp_path / "a.png")
    assert picture(tmp_path / "a.png", (30, 30, 3), None).mean() == 255
    assert picture(tmp_path / "a.png", (30, 30, 1), 0).mean() == pytest.approx(127.5, abs=1)
    assert picture(tmp_path / "a.png", (30, 60, 3), 30).shape == (30, 60, 3)


def test_what_is_no_picture_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("PIL.Image")
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UsageError, match="cannot be read") as e:
        picture(tmp_path / "a.png", (30, 30, 3), None)
    assert e.value.code == "E733"
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UsageError, match="need Pillow"):
        picture(tmp_path / "a.png", (30, 30, 3), None)


def test_a_folder_and_a_file_of_labels(run: Knapper, tmp_path: Path) -> None:
    picker(tmp_path / "m.onnx", "N")
    (tmp_path / "val").mkdir()
    for k in (2, 0, 3):
        x = np.zeros((2, 4, 3), np.uint8)
        x[0, k, 0] = 9
        np.save(tmp_path / "val" / f"p{k}.npy", x)
    (tmp_path / "val.txt").write_text("p0.npy 0\np3.npy 3\np2.npy 1\n")
    words = ("eval", "m.onnx", "--data", "val", "--labels", "val.txt", "--shape", "N=1", "--json")
    assert json.loads(run(*words)[1])["metrics"]["top1"]["right"] == 2
    (tmp_path / "val.txt").write_text("p0.npy 0\np3.npy 3\n")
    assert "E731" in run(*words)[2]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((FASHION, "--data", "nowhere.npz"), "E705"),
        ((FASHION, "--data", FASHION_DATA, "--images", "pixels"), "E730"),
        ((FASHION, "--data", FASHION_DATA, "--offset", "1"), "E731"),
        ((FASHION, "--data", FASHION_DATA, "--metric", "sqnr"), "E732"),
        ((FASHION, "--data", FASHION_DATA, "--scores", "logits"), "E732"),
        ((FASHION, "--data", FASHION_DATA, "--std", "0"), "E704"),
        ((FASHION, "--data", FASHION_DATA, "--mean", "1,2,3"), "E704"),
        ((FASHION, "--data", FASHION_DATA, "--limit", "0"), "E704"),
        (("SHOP/small.elf", "--data", FASHION_DATA, "--batch", "2"), "E704"),
        (("SHOP/small.elf", "--data", FASHION_DATA), "E730"),
        (("SHOP/small.elf", "--data", "SHOP/in.npz"), "E706"),  # the answer is no
        (("SHOP/small.elf", "--data", "SHOP/in.npz", "--reference", "onnxruntime"), "E704"),
    ],
)
def test_what_cannot_be_judged_is_refused(run: Knapper, words: tuple[str, ...], code: str) -> None:
    status, _, err = run("eval", *words)
    assert status == (1 if code == "E706" else 2)
    assert code in err, err


# --- trained networks


@pytest.mark.parametrize("limit", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_resnet20_has_its_accuracy(run: Knapper, data: Path, limit: int) -> None:
    code, out, err = run(
        "eval", str(data / "models/resnet20_cifar10.onnx"), "--data", str(data / "data/cifar10_small.npz"), "--json",
        "--mean", ".485,.456,.406", "--std", ".229,.224,.225", "--reference", "onnxruntime", "--limit", str(limit),
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)["metrics"]
    assert abs(found["top1"]["lost"]) <= 2 / limit
    assert found["sqnr"]["value"] > 55
    if limit == 2000:
        assert found["top1"]["reference"] == pytest.approx(0.884)


def test_lite0_has_its_accuracy(run: Knapper, data: Path) -> None:
    code, out, err = run(
        "eval", str(data / "models/efficientnet_lite0.onnx"), "--data", str(data / "data/imagenet_120.npz"), "--json",
        "--scale", "1", "--mean", "127", "--std", "128", "--limit", "20", "--reference", "onnxruntime",
    )  # fmt: skip
    assert code == 0, err
    found = json.loads(out)["metrics"]
    assert found["agreement"]["right"] >= 19
    assert found["top1"]["reference"] >= 0.8
