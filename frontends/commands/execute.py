"""run: an image on the emulator, and a table of what happened."""

from __future__ import annotations

import argparse
import io
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from knapper.compiler.ir import Array
from knapper.isa.errors import UsageError

from .. import files
from ..api import Image, load
from ..inputs import gather, needed, show
from ..progress import Progress
from ..tables import ENDINGS, Table, check_ending, joined, plural, size, table
from ..tables import show as show_tables
from ..warm import timing_core

if TYPE_CHECKING:
    from knapper.runtime.session import Result
    from knapper.runtime.stats import Stats

log = logging.getLogger("knapper")


def run_image(a: argparse.Namespace) -> None:
    """`knapper run`."""
    if a.record and a.no_timing:
        raise UsageError(
            "E704", "--record keeps what timing needs: it does not go with --no-timing"
        )
    for written in filter(None, (a.output, a.stats, a.record)):
        files.check_place(written)
    if a.stats:
        check_ending(a.stats, (".json",))
    image = load(a.image)
    if (ports := needed(image.program)) and not a.input:
        wanted = ", ".join(f"{p.name} {show(p)}" for p in ports)
        hint = "--input random:0, --input NAME=FILE.npy or --input FILE.npz"
        raise UsageError("E701", f"no inputs given; the network takes {wanted}", hint=hint)
    image.default_session  # noqa: B018  memory is asked for before inputs are made up to fill it
    arrays = gather(ports, a.input)
    if not a.no_timing:
        timing_core()
    started = time.perf_counter()
    result = run(image, arrays, a, timing=not a.no_timing, jump=not a.no_jump)
    seconds = time.perf_counter() - started
    if a.output:
        files.write(a.output, npz(result.outputs))
    if a.record:
        from knapper.runtime.timing.record import Record

        files.write(a.record, Record.of(image.program, result.stats).to_bytes())
    if a.stats:
        files.write(a.stats, stats_file(result.stats, a.stats) + "\n")
    if a.quiet and not a.json and a.format == "table":
        return
    outputs = outputs_table(result.outputs)
    show_tables(
        a,
        result.stats.to_dict,
        [outputs, totals_table(result.stats, seconds)],
        lambda: f"{outputs.plain()}\n\n{counts_table(result.stats, seconds)}",
    )


def stats_file(stats: Stats, path: str) -> str:
    """Every counter as JSON, or by the file's ending a table of the launches."""
    format = ENDINGS.get(Path(path).suffix)
    if format is None:
        return json.dumps(stats.to_dict(), indent=1)
    rows = stats.rows("launch")
    head = list(dict.fromkeys(name for row in rows for name in row))
    return joined([Table([[row.get(n) for n in head] for row in rows], head)], format)


def run(image: Image, arrays: dict[str, Array], a: argparse.Namespace, **timing: Any) -> Result:
    """Run with a progress line on a terminal; `timing` and `jump` as a session takes them."""
    with Progress("running", quiet=a.quiet > 0) as progress:
        return image.default_session.once(arrays, **how(a), **timing, progress=progress)


def how(a: argparse.Namespace) -> dict[str, Any]:
    """The options of a run, as a session takes them; UsageError E704 for a number that is none."""
    for option in ("threads", "limit"):
        if getattr(a, option) is not None and getattr(a, option) < 1:
            raise UsageError("E704", f"--{option} {getattr(a, option)}: expected 1 or more")
    given = {"engine": a.engine, "checked": a.checked, "threads": a.threads}
    return given if a.limit is None else given | {"limit": a.limit, "work": a.limit}


def npz(arrays: dict[str, Array]) -> bytes:
    """Arrays as an .npz file. bf16, which numpy cannot name in a file, is widened to float32."""
    data = io.BytesIO()
    named: dict[str, Any] = {
        n: a.astype(np.float32) if a.dtype.kind == "V" else a for n, a in arrays.items()
    }
    np.savez(data, **named)
    return data.getvalue()


def outputs_table(outputs: dict[str, Array]) -> Table:
    """Name, type, and how the values are spread."""
    rows = [_summary(n, a) for n, a in outputs.items()]
    return Table(rows, ("output", "type", "min", "max", "mean"), "outputs")


def _summary(name: str, a: Array) -> tuple[object, ...]:
    shown = f"{a.dtype}[{','.join(map(str, a.shape))}]"
    if a.size == 0:
        return name, shown, None, None, None
    wide = a.astype(np.float64)
    return name, shown, float(wide.min()), float(wide.max()), float(wide.mean())


def totals_table(stats: Stats, seconds: float) -> Table:
    """The run's totals, a number a row."""
    dram = stats.bytes("dram_bytes")
    rows: list[tuple[str, object]] = [
        ("launches", len(stats.launches)),
        ("instructions", sum(stats.instructions.values())),
        ("macs", stats.macs),
        ("macs executed", stats.macs_executed),
        ("DRAM bytes read", dram["read"]),
        ("DRAM bytes written", dram["write"]),
    ]
    if stats.cycles is not None:
        rows += [
            ("cycles", stats.cycles),
            (f"ms on {stats.target}", 1e3 * stats.cycles / stats.clock_hz),
            ("energy, mJ", 1e-9 * stats.energy_pj["total"]),
        ]
    return Table([*rows, ("seconds on this computer", seconds)], ("counter", "value"), "totals")


def counts_table(stats: Stats, seconds: float) -> str:
    """The run's totals, for the terminal."""
    total = sum(stats.instructions.values())
    read, written = (stats.bytes("dram_bytes")[use] for use in ("read", "write"))
    counted = sum(s.launch.macs for s in stats.launches if s.macs_executed)
    share = f" ({counted / stats.macs_executed:.0%} useful)" if stats.macs_executed else ""
    if rest := stats.macs - counted:
        share += f"; {rest:,} macs are in kernels that do not count theirs"
    rows = [
        ("launches", f"{len(stats.launches):,}"),
        (
            "instructions",
            f"{plural(total, 'warp instruction')} of {plural(len(stats.instructions), 'kind')}",
        ),
        ("macs", f"{stats.macs:,}"),
        ("macs executed", f"{stats.macs_executed:,}{share}"),
        ("DRAM", f"{size(read)} read, {size(written)} written"),
        *_measured(stats),
        ("time", f"{seconds:.3f} s on this computer"),
    ]
    return "\n".join(f"{name:<14}{text}" for name, text in rows)


def _measured(stats: Stats) -> list[tuple[str, str]]:
    """Cycles and energy, of a run that was timed."""
    if stats.cycles is None:
        return []
    cycles = f"{stats.cycles:,}, {1e3 * stats.cycles / stats.clock_hz:.4g} ms on {stats.target}"
    return [("cycles", cycles), ("energy", f"{1e-9 * stats.energy_pj['total']:.4g} mJ")]


def mnemonics_table(stats: Stats, most: int = 10) -> str:
    """The instructions that were executed most, and all of those that the base ISA lacks."""
    from knapper.isa.core import BY_NAME

    total = sum(stats.instructions.values()) or 1
    common = stats.instructions.most_common()
    shown = [x for i, x in enumerate(common) if i < most or BY_NAME[x[0]].extension != "base"]
    rows: list[tuple[object, ...]] = [(m, n, f"{n / total:.1%}") for m, n in shown]
    if rest := total - sum(n for _, n in shown):
        rows.append((f"{len(common) - len(shown)} others", rest, f"{rest / total:.1%}"))
    return table(rows, ["instruction", "executed", "share"])
