"""Take synthetic waveforms of each type of tube, characterise it on an accelerator, and compare with the truth.

Exit codes: 0, every estimate is within the bound of the truth; 1, one is not, or something cannot be estimated; 2, it was asked
for wrongly.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import knapper

from . import network, resolution, tubes
from .accelerator import BATCH, Accelerator
from .conditions import Conditions
from .estimate import Estimate, EstimationError, Value, estimate
from .plot import svg
from .resolution import EXPECTED, TOLERANCE

BOUND = 3.5
"""Standard deviations. One of sixteen good estimates is beyond it in one of 134 runs."""


@dataclass(frozen=True)
class Quantity:
    """A row of the table: a parameter of `tubes.Tube` and of `Estimate`."""

    name: str
    label: str
    scale: float
    digits: int


QUANTITIES = (
    Quantity("pde", "PDE, %", 100, 2),
    Quantity("edge", "PDE at edge by axis, %", 100, 1),
    Quantity("gain", "gain, 10⁶", 1e-6, 2),
    Quantity("resolution", "charge resolution, %", 100, 1),
    Quantity("valley", "P/V", 1, 2),
    Quantity("tts", "TTS, ns", 1, 2),
    Quantity("transit", "transit time, ns", 1, 2),
    Quantity("dark", "dark rate, kHz", 1e-3, 1),
)


def pull(found: Value, truth: float) -> float:
    """How many standard deviations an estimate is off."""
    return (found.value - truth) / found.error


def rows(tube: tubes.Tube, found: Estimate) -> Iterator[tuple[str, float]]:
    """Lines of the table and their pulls."""
    for q in QUANTITIES:
        value, truth = getattr(found, q.name), getattr(tube, q.name)
        off = pull(value, truth)
        shown = (f"{x * q.scale:.{q.digits}f}" for x in (truth, value.value, value.error))
        a, b, c = shown
        yield f"{tube.name:<12}{q.label:<24}{a:>8}{b:>10} ± {c:<7}{off:>+6.2f}", off


def table(found: Mapping[str, Estimate]) -> tuple[str, bool]:
    """The characterisation, truth beside estimate, and whether all of it is within the bound."""
    lines = [f"{'tube':<12}{'parameter':<24}{'truth':>8}{'estimate':>10}{'':<10}{'pull':>6}"]
    pulls = []
    for tube in tubes.TYPES:
        for line, off in rows(tube, found[tube.name]):
            lines.append(line)
            pulls.append(off)
    return "\n".join(lines), max(map(abs, pulls)) <= BOUND


def energy(found: Mapping[str, Estimate]) -> tuple[str, bool]:
    """The check of the energy resolution, and whether it is within its tolerance."""
    value = resolution.resolution(found)
    text = (
        f"σ/E at 1 MeV  {value.value:.2%} ± {value.error:.2%} with these tubes; "
        f"expected {EXPECTED:.2%} ± {TOLERANCE:.2%}; the aim is 3 %\n"
        f"              {resolution.published():.3%} from the published terms, at 1.022 MeV"
    )
    return text, abs(value.value - EXPECTED) <= TOLERANCE


def work(on: Accelerator) -> str:
    """What the accelerator executed."""
    lines = [f"on {on.target}"]
    done_by = {"finder": on.finding, "histogram": on.counting, "logarithm": on.taking_logs}
    for name, done in done_by.items():
        units = ", ".join(f"{n:,} on {unit}" for unit, n in sorted(done.units.items()))
        share = f", {done.macs / done.macs_executed:.0%} of those executed" if done.macs else ""
        lines.append(
            f"  {name:<10}{done.runs:>4} runs, {done.macs:,} MACs{share}; launches: {units}"
        )
    cycles, joule = on.finding.cycles / on.batch, on.finding.joule / on.batch
    lines.append(f"  a waveform takes the finder {cycles:,.0f} cycles and {joule * 1e6:,.1f} µJ")
    return "\n".join(lines)


def characterise(
    on: Accelerator, flashes: int, seed: int, types: Sequence[tubes.Tube] = tubes.TYPES
) -> dict[str, Estimate]:
    """Estimates by type, each from a run of its own."""
    return {
        t.name: estimate(tubes.measure(t, flashes, seed + i, on.conditions), on)
        for i, t in enumerate(types)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; gives the exit code."""
    a = options(arguments)
    try:
        on = Accelerator(a.target, Conditions(), network.load(), a.batch)
        found = characterise(on, a.flashes, a.seed)
    except (knapper.KnapperError, EstimationError) as e:
        print(e, file=sys.stderr)
        return 1
    (report, good), (check, fine) = table(found), energy(found)
    print(f"{a.flashes:,} flashes a tube, seed {a.seed}\n")
    print(report, check, work(on), sep="\n\n")
    if a.plot:
        a.plot.write_text(svg(found))
        print(f"\nplot: {a.plot}")
    if not good:
        print(f"a pull is beyond {BOUND}", file=sys.stderr)
    if not fine:
        print("the energy resolution is beyond its tolerance", file=sys.stderr)
    return 0 if good and fine else 1


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What was asked for."""
    p = argparse.ArgumentParser(prog="python -m examples.pmt", description=__doc__)
    p.add_argument("-t", "--target", default="sma3", help="a target's name or .toml file (sma3)")
    p.add_argument("-n", "--flashes", type=_positive, default=20_000, help="a tube (20,000)")
    p.add_argument("--batch", type=_positive, default=BATCH, help=f"waveforms a run ({BATCH})")
    p.add_argument("--seed", type=int, default=1, help="of the waveforms (1)")
    p.add_argument("--plot", type=Path, metavar="FILE.svg", help="write histograms and fits")
    return p.parse_args(arguments)


def _positive(text: str) -> int:
    n = int(text)
    if n < 1:
        raise argparse.ArgumentTypeError(f"{n}: expected at least 1")
    return n
