"""`knapper run` and `knapper time`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from shop import Knapper, outputs, python

import knapper


def test_run_loads_neither_tvm_nor_onnx(tmp_path: Path, shop: Path) -> None:
    done = python(
        "import sys; from knapper.frontends import cli\n"
        f"code = cli.run(['run', '{shop}/small.elf', '--input', '{shop}/in.npz'])\n"
        "print(code, sorted({'tvm', 'onnx', 'onnxruntime', 'lark', 'networkx', 'rich'} & set(sys.modules)))",
        tmp_path,
    )
    assert done.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize("present", [True, False])
def test_the_first_timed_run_says_that_it_compiles(
    run: Knapper, monkeypatch: pytest.MonkeyPatch, present: bool
) -> None:
    monkeypatch.setattr("knapper.runtime.timing.jit.present", lambda: present)
    code, _, err = run("run", "SHOP/small.elf", "--input", "random:0")
    assert code == 0, err
    assert ("compiling the timing core (first use" in err) is not present


def test_time_says_of_which_program_and_what_cycles_and_energy_are_made_of(run: Knapper) -> None:
    code, out, err = run("time", "SHOP/small.elf", "-t", "volta-8tc", "-t", "v100-pcie")
    assert code == 0, err
    first, _, _, *rows = out.splitlines()
    assert first == "one program on each machine: compiled for volta-8tc, not compiled again"
    for r in rows:
        cycles, launching, computing, _, *energy = (
            float(x.replace(",", "")) for x in r.split()[1:8]
        )
        assert launching + computing == cycles
        assert 0 < launching < cycles
        assert energy[0] == pytest.approx(energy[1] + energy[2], rel=1e-3)
    assert "busiest   the unit" in run("time", "--help")[1]


def test_run_writes_outputs_by_name_and_every_counter(run: Knapper, tmp_path: Path) -> None:
    code, out, _ = run(
        "run", "SHOP/small.elf", "--input", "SHOP/in.npz", "-o", "out.npz", "--stats", "stats.json"
    )
    assert code == 0
    assert {n: (str(a.dtype), a.shape) for n, a in outputs(tmp_path / "out.npz").items()} == {
        "sum": ("float32", (1, 4)),
        "row": ("float32", (1, 4)),
        "best": ("int64", (1, 1)),
    }
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert {
        "schema",
        "provenance",
        "target",
        "instructions",
        "macs",
        "macs_executed",
        "kernels",
        "nodes",
    } <= set(stats)
    assert stats["cycles"] > 0
    assert stats["macs"] == 3 * 9 * 4 * 64
    assert "macs executed" in out


def test_a_run_without_timing_has_no_cycles_rather_than_none_of_them(
    run: Knapper, tmp_path: Path, shop: Path
) -> None:
    words = ("run", "SHOP/small.elf", "--input", "SHOP/in.npz", "--no-timing", "--stats", "s.json")
    code, out, _ = run(*words)
    assert code == 0
    assert "cycles" not in out
    stats = json.loads((tmp_path / "s.json").read_text())
    assert [stats[k] for k in ("cycles", "seconds_at_clock", "energy_pj")] == [None] * 3
    with np.load(shop / "in.npz") as inputs:
        untimed = knapper.load(shop / "small.elf").run(dict(inputs), timing=False).stats
    assert (untimed.cycles, untimed.seconds_at_clock, untimed.energy_pj) == (None, None, {})


def test_inputs_come_from_files_by_name_or_at_random(run: Knapper, tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.ones((1, 3, 8, 8), np.float32))
    np.save(tmp_path / "token.npy", np.array([2]))
    by_name = ["--input", "image=image.npy", "--input", "token=token.npy"]
    for name, words in (("a", by_name), ("b", ["--input", "SHOP/in.npz"]), ("c", ["--input", "random:7"]),
                        ("d", ["--input", "random:7"]), ("e", ["--input", "random:8"])):  # fmt: skip
        assert run("run", "SHOP/small.elf", *words, "-q", "-o", f"{name}.npz") == (0, "", "")
    a, b, c, d, e = (outputs(tmp_path / f"{n}.npz")["sum"] for n in "abcde")
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(c, d)
    assert (c != e).any()


def test_engines_print_the_same_counters(run: Knapper) -> None:
    fast, reference = (
        json.loads(
            run("run", "SHOP/small.elf", "--input", "SHOP/in.npz", "--json", "--engine", e)[1]
        )
        for e in ("fast", "reference")
    )
    for key in ("instructions", "macs", "macs_executed", "dram_bytes", "nodes"):
        assert fast[key] == reference[key]


def test_numpys_advice_to_unpickle_is_not_passed_on(run: Knapper, tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "text.npy").write_text("not numpy")
    for file, said in (
        ("objects", "holds Python objects, which are not read; save numbers"),
        ("text", "is no .npy or .npz file"),
    ):
        code, _, err = run("run", "SHOP/small.elf", "--input", f"image={file}.npy")
        assert (code, err) == (2, f"error E702: {file}.npy: {said}\n")
