"""The photomultiplier example: pulls are distributed as errors say, a wrong truth is noticed, targets agree bit for bit."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from knapper.compiler.driver import Options, finish, optimize
from knapper.compiler.schedule import Forced
from knapper.frontends.onnx import read
from knapper.isa.machine import Machine
from knapper.runtime.session import Result, Session
from knapper.runtime.stats import LaunchStats

sys.path.append(str(Path(__file__).parent.parent))  # examples are no part of the package

from examples.pmt import accelerator, conditions, estimate, network, resolution, run, train, tubes
from examples.pmt.plot import svg

TARGETS = "sma3", "tpu-v2", "volta-8tc"
"""The targets that must agree bit for bit. Another one is added here."""
SEEDS = 100, 200
FLASHES = 20_000

Found = dict[str, estimate.Estimate]


def stand(target: str, batch: int = accelerator.BATCH) -> accelerator.Accelerator:
    return accelerator.Accelerator(target, conditions.Conditions(), network.load(), batch)


@pytest.fixture(scope="module")
def found() -> list[Found]:
    """Estimates of both types, a seed each."""
    on = stand(TARGETS[0])
    return [run.characterise(on, FLASHES, seed) for seed in SEEDS]


def product(result: Result, node: str) -> LaunchStats:
    """The launch that multiplies for a node; others change its layout."""
    of = [s for s in result.stats.launches if node in s.launch.nodes]
    return max(of, key=lambda s: s.macs_executed)


def chi_square(found: Sequence[Found], types: Sequence[tubes.Tube]) -> tuple[float, int]:
    """The sum of squared pulls, and how many they are."""
    pulls = [
        run.pull(getattr(f[t.name], q.name), getattr(t, q.name))
        for f in found
        for t in types
        for q in run.QUANTITIES
    ]
    return sum(p * p for p in pulls), len(pulls)


def quantile(n: int, deviations: float) -> float:
    """Of chi-square with n degrees of freedom, by Wilson and Hilferty."""
    return float(n * (1 - 2 / (9 * n) + deviations * sqrt(2 / (9 * n))) ** 3)


def test_estimates_are_off_by_what_their_errors_say(found: list[Found]) -> None:
    chi, n = chi_square(found, tubes.TYPES)
    assert quantile(n, -3) < chi < quantile(n, 3)


@pytest.mark.parametrize(
    ("name", "factor"),
    {
        "pde": 1.15,
        "gain": 1.1,
        "resolution": 1.25,
        "valley": 1.6,
        "tts": 1.2,
        "dark": 1.5,
        "edge": 1.25,
        "transit": 1.05,
    }.items(),
)
def test_a_shifted_truth_is_noticed(found: list[Found], name: str, factor: float) -> None:
    shifted = [replace(t, **{name: getattr(t, name) * factor}) for t in tubes.TYPES]
    chi, n = chi_square(found, shifted)
    assert chi > quantile(n, 3)


def test_energy_resolution_is_within_its_tolerance(found: list[Found]) -> None:
    for f in found:
        assert abs(resolution.resolution(f).value - resolution.EXPECTED) <= resolution.TOLERANCE
    assert resolution.published() == pytest.approx(0.03116, abs=5e-6)


def test_the_estimator_imports_nothing_that_knows_a_tube() -> None:
    for module in (estimate, accelerator, network, conditions):
        assert not {"tubes", "train"} & set(vars(module))
        assert "import tubes" not in inspect.getsource(module)


@pytest.fixture(scope="module")
def pulses() -> dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]]:
    """Charges and times of 128 waveforms, and a histogram of them, by target."""
    given = tubes.measure(tubes.NNVT, 128, 7)
    result = {}
    for target in TARGETS:
        on = stand(target, 64)
        gates = on.find(given)
        result[target] = [a for g in gates for a in (g.charge, g.time)]
        result[target].append(on.histogram(gates[1].charge, 0, 320).astype(np.float64))
    return result


@pytest.mark.parametrize("target", TARGETS[1:])
def test_targets_agree_bit_for_bit(
    pulses: dict[str, list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]], target: str
) -> None:
    for ours, first in zip(pulses[target], pulses[TARGETS[0]], strict=True):
        assert ours.tobytes() == first.tobytes()


def test_a_histogram_is_numpys_and_runs_on_simd_lanes() -> None:
    on = stand(TARGETS[0], 64)
    values = np.random.default_rng(3).integers(-8, 72, 5000) / 4
    counts = on.histogram(values, 0, 16, 64)
    assert counts[1:-1].tolist() == np.histogram(values[values < 16], 64, (0, 16))[0].tolist()
    assert (counts[0], counts[-1]) == ((values < 0).sum(), (values >= 16).sum())
    assert set(on.counting.units) == {"SIMD lanes"}


@pytest.mark.parametrize(
    ("target", "mnemonic"), [("sma3", "LSMA"), ("tpu-v2", "IM2COL.PUSH"), ("volta-8tc", "HMMA")]
)
def test_convolutions_run_on_the_matrix_unit(target: str, mnemonic: str) -> None:
    on = stand(target, 64)
    result = on.finder.run({"wave": np.zeros((64, 1, 512), np.float32)})
    for node in network.FILTERS, "conv1", "conv2":
        assert any(m.startswith(mnemonic) for m in product(result, node).mnemonics())


@pytest.mark.parametrize("taps", [48, 16, 1])
def test_taps_side_by_side_share_a_pass(taps: int) -> None:
    """Of the 48 taps, the array takes as many at once as are beside each other in its 128 rows: at most all of them."""
    on, machine, flashes = stand("tpu-v2", 16), Machine.load("tpu-v2"), 16
    model = read(network.finder(on.weights, on.conditions, flashes))
    graph = optimize(model, Options(accelerator.pipeline(machine)))
    filters = next(n.group for n in graph.nodes if n.loc == network.FILTERS and n.op == "Conv")
    forced: Forced = {filters: {"kind": "channel_first", "multi_tile": taps}}
    waves = {"wave": next(on._waves(tubes.measure(tubes.HPK, flashes, 1)))}
    result = Session(finish(graph, machine, Options(forced=forced))).run(waves, timing=True)
    pushed = int(product(result, network.FILTERS).counts.instructions["rows"].sum())
    assert pushed == 48 // taps * flashes * on.conditions.samples
    for name, output in on.finder.run(waves).outputs.items():
        assert result.outputs[name].tobytes() == output.tobytes()


def test_training_is_deterministic() -> None:
    first, again = (train.train(np.random.default_rng(train.SEED), 5) for _ in range(2))
    assert all(first[name].tobytes() == again[name].tobytes() for name in network.TRAINED)


def test_gradients_are_slopes_of_the_loss() -> None:
    rng = np.random.default_rng(5)
    w = {name: a.astype(np.float64) for name, a in train.initial(rng).items()}
    crops = train.draw(rng, 16)
    _, g = train.gradient(w, crops)  # type: ignore[arg-type]  # in fp64: differences of 1e-5
    for name in network.TRAINED:
        loss: list[float] = []
        direction = rng.standard_normal(w[name].shape)
        for side in (1e-5, -1e-5):
            moved = {**w, name: w[name] + side * direction}
            loss.append(train.gradient(moved, crops)[0])  # type: ignore[arg-type]  # in fp64
        slope = (loss[0] - loss[1]) / 2e-5
        assert (g[name] * direction).sum() == pytest.approx(slope, rel=1e-2, abs=1e-4)


def test_committed_weights_say_what_they_are_and_hold_the_template() -> None:
    weights = network.load()
    assert "synthetic" in str(weights["provenance"])
    assert weights["templates"].tobytes() == train.templates().tobytes()
    crops = train.draw(np.random.default_rng(11), 500)
    trained, _ = train.gradient(weights, crops)
    untrained, _ = train.gradient(train.initial(np.random.default_rng(train.SEED)), crops)
    assert trained < untrained / 10


def test_the_plot_has_a_panel_for_each_histogram(found: list[Found]) -> None:
    root = ElementTree.fromstring(svg(found[0]))
    assert len(root.findall("{*}g")) == 2 * len(tubes.TYPES)


def test_the_command_writes_table_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "pmt.svg"
    assert run.main(["-n", "4000", "--plot", str(plot)]) == 0
    assert "σ/E at 1 MeV" in capsys.readouterr().out
    assert plot.read_text().startswith("<svg")


def test_too_few_flashes_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["-n", "100", "--batch", "64"]) == 1
    assert "take more flashes" in capsys.readouterr().err
