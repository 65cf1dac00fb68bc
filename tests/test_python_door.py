"""`import knapper`: the same from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from shop import ROOT, SHAPE, Knapper, outputs, python, small_model

import knapper
from knapper.isa.errors import KnapperError, UsageError


def test_both_doors_say_which_model_an_image_is_of(run: Knapper, shop: Path) -> None:
    run("compile", "SHOP/small.onnx", *SHAPE, "-o", "m.elf")
    typed = json.loads(run("inspect", "m.elf", "--json")[1])["meta"]
    for model in (shop / "small.onnx", str(shop / "small.onnx"), onnx.load(shop / "small.onnx")):
        assert knapper.compile(model, shapes={"N": 1}).program.meta == typed


def test_python_binds_symbolic_dimensions_by_name(shop: Path) -> None:
    image = knapper.compile(shop / "small.onnx", shapes={"N": 3})
    assert image.program.inputs[0].shape == (3, 3, 8, 8)
    with pytest.raises(
        KnapperError,
        match=r"E701: .*names 'M'; the model's inputs and open dimensions are: N, image, token",
    ):
        knapper.compile(shop / "small.onnx", shapes={"M": 3})


def test_the_public_names_can_be_listed_before_they_are_imported(tmp_path: Path) -> None:
    done = python("import knapper; print(dir(knapper)); print(knapper.Result.__name__)", tmp_path)
    for name in ("Image", "KnapperError", "Result", "compile", "load"):
        assert repr(name) in done.stdout


def test_the_python_door_does_the_same(shop: Path, tmp_path: Path) -> None:
    image = knapper.compile(small_model(), target="volta-8tc", precision="fp32", shapes={"N": (1,)})
    image.save(tmp_path / "model.elf")
    inputs = outputs(shop / "in.npz")
    result = knapper.load(tmp_path / "model.elf").run(inputs)
    direct = image.run(inputs, engine="reference")
    np.testing.assert_array_equal(result.outputs["sum"], direct.outputs["sum"])
    assert result.stats.to_dict()["macs"] == 3 * 9 * 4 * 64


def test_an_image_shows_what_it_is(shop: Path) -> None:
    shown = repr(knapper.load(shop / "small.elf"))
    assert shown.startswith("Image(image: f32[1,3,8,8], token: i64[1] -> sum: f32[1,4], row:")
    assert shown.endswith(" launches for volta-8tc)")


def test_importing_knapper_loads_nothing(tmp_path: Path) -> None:
    done = python(
        "import sys, knapper; print('numpy' in sys.modules, knapper.__version__)", tmp_path
    )
    assert done.stdout == f"False {knapper.__version__}\n"


def test_the_version_is_said_once() -> None:
    assert f'version = "{knapper.__version__}"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("thing", [{"weight": np.zeros(3)}, None, np.zeros(3)])
def test_what_is_no_model_is_refused(thing: Any) -> None:
    with pytest.raises(UsageError, match=r"E704: .*this is no model"):
        knapper.compile(thing)
