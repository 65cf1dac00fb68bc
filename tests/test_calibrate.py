"""Calibration: whatever samples come from, ranges are those of the network's values as numpy computes them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto
from shop import Knapper

import knapper
from knapper.compiler import pipeline
from knapper.compiler.driver import Options
from knapper.compiler.ir import Graph, Type, evaluate
from knapper.compiler.quantization.ranges import Ranges
from knapper.frontends import demo
from knapper.frontends.batches import Importer, fitting
from knapper.frontends.calibrate import Calibration, Source, calibrate, split
from knapper.frontends.dataset import Choice
from knapper.frontends.feed import Pixels
from knapper.frontends.networks.sketch import Sketch, he
from knapper.frontends.quantizing import Request, asks, passes, text
from knapper.isa.errors import KnapperError, PassError, UsageError

Array = NDArray[Any]
FASHION = str(demo.HERE / "fashion.onnx")
FASHION_DATA = str(demo.HERE / "fashion.npz")
NORMAL = ("--mean", ".2860", "--std", ".3530")
BEFORE = split(pipeline.preset("fp32"))[0]


def network(batch: int = 1) -> onnx.ModelProto:
    """Two convolutions with a sum, and a classifier."""
    s = Sketch("small")
    w = [s.constant(he(s.rng, (8, 8, 3, 3), 72)) for _ in range(2)]
    first = s.constant(he(s.rng, (8, 3, 3, 3), 27))
    x = s.node("Relu", s.node("Conv", "input", first, pads=[1] * 4))
    y = s.node("Relu", s.node("Add", s.node("Conv", x, w[0], pads=[1] * 4), x))
    flat = s.node(
        "Flatten", s.node("GlobalAveragePool", s.node("Conv", y, w[1], pads=[1] * 4)), axis=1
    )
    out = s.node("MatMul", flat, s.constant(he(s.rng, (8, 6), 8)))
    return s.model({"input": (batch, 3, 8, 8)}, {"output": (out, TensorProto.FLOAT, (batch, 6))})


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return network()


@pytest.fixture(scope="module")
def samples() -> Array:
    return np.random.default_rng(0).standard_normal((10, 3, 8, 8), np.float32)


class Reader:
    """onnxruntime's CalibrationDataReader, in essence."""

    def __init__(self, batches: list[Mapping[str, Array]]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> Mapping[str, Array] | None:
        return next(self.batches, None)


def of(model: onnx.ModelProto, source: Source, **options: Any) -> Ranges:
    return calibrate(
        Importer(model), BEFORE, Calibration(source, **options), model.SerializeToString()
    )


def same(a: Ranges, b: Ranges) -> bool:
    return a.show() == b.show()


# --- what is observed


def test_statistics_are_those_of_the_numpy_reference(
    model: onnx.ModelProto, samples: Array
) -> None:
    found = of(model, {"input": samples})
    graph = pipeline.run(Importer(model)(), BEFORE)
    made = [v for v in found.values if v not in graph.inputs]
    assert len(made) >= 7
    seen = [
        evaluate(graph.with_(outputs={v: v for v in made}), {"input": x[None]}) for x in samples
    ]
    for v in made:
        values = np.concatenate([y[v] for y in seen]).astype(np.float64)
        s = found[v]
        assert s.count == values.size
        assert (s.low, s.high) == pytest.approx((values.min(), values.max()), rel=1e-5, abs=1e-6)
        assert (s.mean, s.std) == pytest.approx((values.mean(), values.std()), rel=1e-4, abs=1e-6)
    assert found["input"].low == samples.min()


def test_all_kinds_of_sources_give_the_same(
    model: onnx.ModelProto, samples: Array, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", input=samples)

    def generated() -> Iterator[Mapping[str, Array]]:
        yield from ({"input": x[None]} for x in samples)

    whole = of(model, {"input": samples})
    for source in (
        Reader([{"input": x[None]} for x in samples]),
        generated(),
        [{"input": samples[:7]}, {"input": samples[7:]}],
    ):
        assert same(whole, of(model, source))
    wide = of(
        model, tmp_path / "x.npz"
    )  # several at once: sums are rounded elsewhere, and so are moving extremes
    assert wide.values.keys() == whole.values.keys()
    for v in wide.values:
        assert (wide[v].counts == whole[v].counts).all()
        assert (wide[v].low, wide[v].high) == (whole[v].low, whole[v].high)


def test_the_number_of_workers_changes_nothing(model: onnx.ModelProto, samples: Array) -> None:
    one, four = (of(model, {"input": samples}, workers=n, method="moving") for n in (1, 4))
    assert same(one, four)


def test_a_batch_that_is_not_full_is_counted_as_it_is(samples: Array) -> None:
    one, three = (of(network(n), {"input": samples}) for n in (1, 3))
    assert {v: s.count for v, s in one.values.items()} == {
        v: s.count for v, s in three.values.items()
    }


def test_onnxruntime_observes_the_same(model: onnx.ModelProto, samples: Array) -> None:
    ours, theirs = (of(model, {"input": samples}, engine=e) for e in ("emulator", "onnxruntime"))
    assert ours.values.keys() == theirs.values.keys()
    for v, s in ours.values.items():
        assert (s.low, s.high) == pytest.approx((theirs[v].low, theirs[v].high), rel=1e-5, abs=1e-6)


def test_onnxruntime_is_not_believed_blindly(model: onnx.ModelProto, samples: Array) -> None:
    other = network()
    for i in other.graph.initializer:
        i.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(i) * np.float32(1.01), i.name)
        )
    with pytest.raises(UsageError, match="another value in onnxruntime") as e:
        calibrate(
            Importer(model),
            BEFORE,
            Calibration({"input": samples}, engine="onnxruntime"),
            other.SerializeToString(),
        )
    assert e.value.code == "E734"


def test_only_what_is_asked_for_is_observed(model: onnx.ModelProto, samples: Array) -> None:
    found = calibrate(
        Importer(model), BEFORE, Calibration({"input": samples}), None, lambda g: [*g.inputs]
    )
    assert [*found.values] == ["input"]


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ({"image": np.zeros((1, 3, 8, 8), np.float32)}, "E720"),
        ({"input": np.zeros((1, 3, 9, 9), np.float32)}, "E721"),
        ({"input": np.full((1, 3, 8, 8), np.nan, np.float32)}, "E735"),
        ({"input": np.full((1, 3, 8, 8), np.inf, np.float32)}, "E306"),
        ({"input": np.zeros((0, 3, 8, 8), np.float32)}, "E730"),
        ([np.zeros((1, 3, 8, 8))], "E730"),
        ([], "E730"),
        (Reader([]), "E730"),
        ("nowhere.npz", "E705"),
    ],
)
def test_data_that_does_not_fit_is_refused(model: onnx.ModelProto, source: Any, code: str) -> None:
    with pytest.raises(KnapperError) as e:
        of(model, source)
    assert e.value.code == code


def test_as_many_samples_go_together_as_are_worth_a_launch(model: onnx.ModelProto) -> None:
    importer = Importer(model)
    assert fitting(importer()) == 32
    assert importer.batched().inputs["input"].shape == (32, 3, 8, 8)
    with pytest.raises(UsageError, match="do not begin with one sample"):
        Importer(network(3))(2)


# --- what it is for


def test_quantize_goes_where_products_are_final() -> None:
    found = passes("fp16", None, "i4,u4,first_last=i8")
    assert found is not None
    assert ",quantize{weights=i4,activations=u4,first_last=i8}," in found
    names = [p.name for p in pipeline.parse(found)]
    assert names.index("bn") < names.index("quantize") < names.index("layout")
    assert passes("fp16", "fold", None) == "fold"
    with pytest.raises(UsageError, match="what is 'u8'"):
        text("i4,u4,u8")


def test_ranges_of_normalizations_are_taken_before_they_are_folded() -> None:
    found = passes("fp32", None, "i8,ranges=bn")
    assert found is not None
    names = [p.name for p in pipeline.parse(found)]
    assert names.index("quantize") == names.index("bn") - 1
    rounded = knapper.compile(FASHION, quantize="i8,ranges=bn")
    assert "quantize" in rounded.program.meta["pipeline"]


def test_a_reader_serves_learned_borders(model: onnx.ModelProto, samples: Array) -> None:
    data = Reader([{"input": x[None]} for x in samples])
    image = knapper.compile(model, quantize="aquant,i4,u4,steps=20,samples=8", calibration=data)
    assert "aquant{" in image.program.meta["pipeline"]
    assert np.isfinite(image.run({"input": samples[:1]}).outputs["output"]).all()


def test_ranges_are_for_who_lacks_them_before_who_has_samples() -> None:
    own, lacking = 'aquant{data="s.npz",include="a"}', 'quantize{exclude="a"}'
    g = Graph("g", {"x": Type("f32", (1, 2))}, outputs={"x": "x"})
    known = Ranges()
    for text_ in (own, f"{own},{lacking}", lacking):
        options = Request(ranges=known).options(Options(text_), lambda _: g)
        assert options.ranges is known
    found = pipeline.parse(f"{own},{lacking}")
    assert [asks(p) for p in found] == [False, True]
    with pytest.raises(UsageError, match="nothing is quantized"):
        Request(ranges=known).options(Options("fold"), lambda _: g)


def test_a_reader_quantizes_a_model(model: onnx.ModelProto, samples: Array) -> None:
    float32 = knapper.compile(model, precision="fp32")
    rounded = knapper.compile(
        model,
        precision="fp32",
        quantize="i8",
        calibration=Reader([{"input": x[None]} for x in samples]),
    )
    y, r = (
        np.concatenate([i.run({"input": x[None]}).outputs["output"] for x in samples])
        for i in (rounded, float32)
    )
    noise = np.square(y - r).sum()
    assert noise > 0
    assert 10 * np.log10(np.square(r).sum() / noise) > 30
    again = knapper.compile(model, precision="fp32", calibration=of(model, {"input": samples}))
    assert (again.run({"input": samples[:1]}).outputs["output"] == y[:1]).all()
    assert again.program.meta["ranges"]


@pytest.mark.parametrize("target", ["sma3", "tpu-v2", "ampere"])
def test_integers_are_the_same_on_every_machine(
    model: onnx.ModelProto, samples: Array, target: str
) -> None:
    ranges = of(model, {"input": samples})
    here, there = (
        knapper.compile(model, t, quantize="i8", calibration=ranges) for t in ("volta-8tc", target)
    )
    y, r = (i.run({"input": samples[:1]}).outputs["output"] for i in (here, there))
    assert (y == r).all()


def test_weights_alone_are_corrected_by_means(model: onnx.ModelProto, samples: Array) -> None:
    means = {"input": samples}
    plain, corrected = (
        knapper.compile(
            model, precision="fp32", quantize=f"i3,float{more}", calibration=means if more else None
        )
        for more in ("", ",bias_correction=true")
    )
    r, y, z = (
        np.concatenate([i.run({"input": x[None]}).outputs["output"] for x in samples])
        for i in (knapper.compile(model, precision="fp32"), plain, corrected)
    )
    assert np.abs((z - r).mean(0)).sum() < 0.5 * np.abs((y - r).mean(0)).sum()


def test_ranges_without_quantization_are_refused(model: onnx.ModelProto, samples: Array) -> None:
    for options in ({"pipeline": "fp32"}, {"quantize": "i8,float"}):
        with pytest.raises(UsageError, match="nothing is quantized"):
            knapper.compile(model, calibration={"input": samples}, **options)


# --- the commands


def test_calibrate_keeps_ranges_that_compile_reads(run: Knapper, tmp_path: Path) -> None:
    data = ("--data", FASHION_DATA, *NORMAL)
    code, out, err = run("calibrate", FASHION, *data, "--limit", "32", "-o", "r.json", "--json")
    assert code == 0, err
    assert json.loads(out)["values"]["image"]["count"] == 32 * 28 * 28
    assert Ranges.load(tmp_path / "r.json").method == "mse"
    assert (
        run("compile", FASHION, "--ranges", "r.json", "--precision", "fp32", "-o", "a.elf")[0] == 0
    )
    calib = ("--quantize", "i8", "--calib", FASHION_DATA, *NORMAL, "--calib-limit", "32")
    assert run("compile", FASHION, *calib, "--precision", "fp32", "-o", "b.elf")[0] == 0
    assert (tmp_path / "a.elf").read_bytes()[:4] == b"\x7fELF"
    code, out, err = run("eval", "a.elf", *data, "--reference", "b.elf", "--limit", "20", "--json")
    assert code == 0, err
    found = json.loads(out)["metrics"]
    assert found["sqnr"]["equal"]
    assert found["top1"]["right"] >= 17


def test_ranges_of_other_weights_are_refused(samples: Array) -> None:
    one, other = network(), network()
    for t in other.graph.initializer:
        a = onnx.numpy_helper.to_array(t)
        if a.ndim > 1:
            t.CopyFrom(onnx.numpy_helper.from_array(a * np.float32(1.01), t.name))
    ranges = calibrate(Importer(one), BEFORE, Calibration({"input": samples}))
    for precision in ("fp16", "bf16", "fp32"):
        knapper.compile(one, precision=precision, calibration=ranges)
    knapper.compile(network(2), calibration=ranges)  # a batch changes nothing
    with pytest.raises(PassError, match=r"E306.*other weights.*knapper calibrate"):
        knapper.compile(other, calibration=ranges)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("i8",), "--calib DATA, or --ranges FILE.json"),
        (("aquant",), "no samples to learn from (hint: --calib DATA"),
        (("i4,float,bias_correction=true",), "--calib DATA, or --ranges FILE.json"),
        (("aquant,i4,u8", "--calib", FASHION_DATA), "at most 6 bits (hint: --quantize aquant,i4,u4"),
        (("aquant", "--calib", FASHION_DATA, "--calib-limit", "0"), "--calib-limit 0"),
    ],
)  # fmt: skip
def test_what_quantize_lacks_is_said_in_words_of_the_command(
    run: Knapper, words: tuple[str, ...], says: str
) -> None:
    limit = () if "--calib-limit" in words else ("--calib-limit", "8")
    few = limit if len(words) > 1 else ()
    status, _, err = run("compile", FASHION, "--quantize", *words, *few)
    assert status in (1, 2)
    assert says in err


def test_aquant_alone_has_four_bits(samples: Array) -> None:
    image = knapper.compile(network(), quantize="aquant,steps=5,samples=8", calibration=samples_of(samples))  # fmt: skip
    assert "aquant{" in image.program.meta["pipeline"]
    with pytest.raises(UsageError, match="E730: samples do not make up a batch"):
        knapper.compile(network(4), quantize="aquant", calibration=samples_of(samples[:3]))


def samples_of(x: Array) -> dict[str, Array]:
    return {"input": x}


def test_a_folder_of_pictures_calibrates(run: Knapper, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    with np.load(FASHION_DATA) as z:
        for i, (x, k) in enumerate(zip(z["images"][:12], z["labels"], strict=False)):
            (tmp_path / "train" / str(k)).mkdir(parents=True, exist_ok=True)
            image.fromarray(x).save(tmp_path / "train" / str(k) / f"{i}.png")
            arrays = Calibration(
                {"image": (z["images"][:12, None] / 255 - 0.286).astype(np.float32)}
            )
    words = ("--data", "train", "--resize", "28", "--mean", ".286", "-o", "r.json", "-q")
    code, _, err = run("calibrate", FASHION, *words)
    assert code == 0, err
    whole = calibrate(Importer(FASHION), BEFORE, arrays)
    found = Ranges.load(tmp_path / "r.json")
    assert {v: (s.low, s.high) for v, s in found.values.items()} == {
        v: (s.low, s.high) for v, s in whole.values.items()
    }


def test_eval_quantizes_too(run: Knapper) -> None:
    words = (
        "--data",
        FASHION_DATA,
        *NORMAL,
        "--limit",
        "40",
        "--reference",
        "onnxruntime",
        "--json",
    )
    code, out, err = run(
        "eval", FASHION, "--quantize", "i8", "--calib", FASHION_DATA, "--calib-limit", "16", *words
    )
    assert code == 0, err
    found = json.loads(out)["metrics"]
    assert found["top1"]["lost"] <= 0.05
    assert 20 < found["sqnr"]["value"] < 60


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("compile", FASHION, "--mean", "1"), "E704"),
        (("compile", FASHION, "--images", "x"), "E704"),
        (("compile", FASHION, "--calib", FASHION_DATA, "--ranges", "r.json"), "E704"),
        (("compile", FASHION, "--calib-method", "mse"), "E704"),
        (("compile", FASHION, "--calib", FASHION_DATA, "--calib-method", "best"), "E704"),
        (("compile", FASHION, "--calib", FASHION_DATA, "--calib-limit", "0"), "E704"),
        (("compile", FASHION, "--quantize", "i8", "--pipeline", "fp32"), "E704"),
        (("compile", FASHION, "--quantize", "i8"), "E306"),
        (("compile", FASHION, "--ranges", "nowhere.json"), "E306"),
        (("compile", "--from", "m.plan", "--quantize", "i8"), "E704"),
        (("eval", "SHOP/small.elf", "--data", FASHION_DATA, "--quantize", "i8"), "E704"),
        (("calibrate", FASHION, "--data", FASHION_DATA, "--method", "best"), "E704"),
        (("calibrate", FASHION, "--data", FASHION_DATA, "-o", "nowhere/r.json"), "E705"),
    ],
)
def test_commands_refuse_what_does_not_apply(
    run: Knapper, words: tuple[str, ...], code: str
) -> None:
    status, _, err = run(*words)
    assert status in (1, 2)
    assert code in err, err


def test_pixels_of_files_are_scaled(tmp_path: Path, model: onnx.ModelProto) -> None:
    x = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=np.arange(9))  # labels are none of its business
    found = of(
        model,
        tmp_path / "d.npz",
        pixels=Pixels(1.0, (127.0,), (128.0,)),
        choice=Choice(split="train", labelled=False),
    )
    assert (found["input"].low, found["input"].high) == (
        (int(x.min()) - 127) / 128,
        (int(x.max()) - 127) / 128,
    )


# --- trained networks, in integers


@pytest.mark.parametrize("limit", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_resnet20_in_integers_loses_at_most_a_point(run: Knapper, data: Path, limit: int) -> None:
    images, model = str(data / "data/cifar10_small.npz"), str(data / "models/resnet20_cifar10.onnx")
    pixels = ("--mean", ".485,.456,.406", "--std", ".229,.224,.225")
    calib = ("--calib", images, "--calib-engine", "onnxruntime", "--calib-limit", "64")
    code, out, err = run(
        "compile",
        model,
        "--quantize",
        "i8",
        *calib,
        *pixels,
        "--shape",
        "input=1,3,32,32",
        "-o",
        "q.elf",
    )
    assert code == 0, err
    words = ("--data", images, *pixels, "--limit", str(limit), "--reference", model, "--json")
    code, out, err = run("eval", "q.elf", *words)
    assert code == 0, err
    found = json.loads(out)["metrics"]
    assert found["top1"]["lost"] <= 0.01
    assert found["agreement"]["value"] >= 0.97
    assert found["sqnr"]["value"] > 30


@pytest.mark.slow
def test_resnet18_in_integers_has_the_noise_of_its_roundings(
    run: Knapper, data: Path, tmp_path: Path
) -> None:
    """At least 34.4 dB with four inputs, as another compiler of integers has on this network."""
    model = data.parent / "models" / "resnet18.onnx"
    if not model.is_file():
        pytest.skip("no resnet18.onnx (make_models.py writes it)")
    rng = np.random.default_rng(1)
    for name in ("calib", "test"):
        np.savez(tmp_path / f"{name}.npz", input=rng.standard_normal((4, 3, 224, 224), np.float32))
    code, out, err = run(
        "eval", str(model), "--data", "test.npz", "--quantize", "i8", "--calib", "calib.npz", "--reference", "onnxruntime", "--json"
    )  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["metrics"]["sqnr"]["value"] >= 34.4
