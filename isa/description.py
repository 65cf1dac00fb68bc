"""Read the TOML files of targets and of energy tables into flat keys, bases and tables resolved.

Flat keys are what a file's tables spell with dots: `sms`, `units.tensor.interval`, `energy.rf_read`. A number keeps its own table whole,
as `{ value = …, provenance = … }`. Nothing is checked here but that a file can be read at all: `machine.py` knows what is legal.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from .errors import IsaError, raise_all

TARGETS: list[Path] = [Path(__file__).parent / "targets"]
"""Directories of known targets, `NAME.toml` each; a plugin adds its own with `register`."""
TABLES: list[Path] = [Path(__file__).parent / "energy"]
"""Directories of known energy tables."""
EVENTS = {
    "issue": "a warp instruction: fetch, decode, schedule",
    "rf_read": "a 32-bit word read from the register file",
    "rf_write": "a 32-bit word written to the register file",
    "int_op": "an integer, logic or predicate operation of a lane",
    "imul_op": "an integer multiplication, or multiply-add, of a lane",
    "fp32_op": "an fp32 operation of a lane (a fused multiply-add), or a pair of 16-bit ones",
    "fp64_op": "an fp64 operation of a lane",
    "sfu_op": "a special function of a lane",
    "cvt_op": "a conversion or bit count of a lane",
    "fma16_tensor": "a 16-bit multiply-accumulate of a Tensor Core",
    "mac8_tensor": "a multiply-accumulate of a Tensor Core on integers of 8 bits, or of 8 and 4, into 32",
    "mac4_tensor": "a multiply-accumulate of a Tensor Core on 4 bits, into 32",
    "fma16_systolic": "a 16-bit multiply-accumulate of a processing element",
    "fma32_systolic": "an fp32 multiply-accumulate of a processing element",
    "mac8_systolic": "a multiply-accumulate of a processing element on integers of 8 bits, into 32",
    "pe_hop": "a 32-bit word that a processing element hands to its neighbour",
    "a_broadcast": "a word of A driven along a row of 16 columns",
    "smem_read": "a 32-bit word read from shared memory",
    "smem_write": "a 32-bit word written to shared memory",
    "vector_read": "32 bits of a word read from vector memory",
    "vector_write": "32 bits of a word written to vector memory",
    "accumulator": "a 32-bit access to accumulator memory",
    "bitmap_op": "a shift, mask, count or row of an outer product of a 32-bit bitmap",
    "l1": "a 32-byte sector looked up in L1",
    "l2": "a 32-byte sector moved to or from L2",
    "dram": "a 32-byte sector moved to or from DRAM",
    "host_flop": "an operation of the host",
    "link_byte": "a byte over the link to the host",
}
"""What energy is spent on, and of what a table gives the picojoules. Static power is no event: the machine has it in milliwatts."""


@dataclass(frozen=True)
class Leaf:
    """What one key was given, by which file, and whether that file is a base."""

    value: Any
    where: str
    inherited: bool = False


Flat = dict[str, Leaf]


def register(directory: Path) -> None:
    """Make the TOML files of a directory known as targets, and those in its folder `energy` as energy tables.

    Of two with one name the one registered last counts.
    """
    for known_there, where in ((TARGETS, directory), (TABLES, directory / "energy")):
        if where not in known_there:
            known_there.append(where)


def known() -> dict[str, Path]:
    """The targets by name."""
    return _named(TARGETS)


def known_tables() -> dict[str, Path]:
    """The energy tables by name."""
    return _named(TABLES)


def _named(directories: Iterable[Path]) -> dict[str, Path]:
    return {p.stem: p for d in directories for p in sorted(d.glob("*.toml"))}


def read(name: str, above: tuple[str, ...] = ()) -> Flat:
    """A target with its bases, the nearest last, and the rows of its energy table; IsaError E510, E511 or E512."""
    path = find(name, known(), "target", above)
    if any(path.samefile(other) for other in above if path.exists()):
        raise IsaError("E512", "its bases form a circle", where=" → ".join((*above, str(path))))
    data = parse(path)
    base = data.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise IsaError(
            "E511", f"base: expected a target's name or file, got {brief(base)}", where=str(path)
        )
    inherited = read(base, (*above, str(path))) if base is not None else {}
    inherited.pop("name", None)  # whoever differs has a name of its own
    inherited = {key: replace(leaf, inherited=True) for key, leaf in inherited.items()}
    own = flatten(data, str(path))
    return inherited | rows_of(own, str(path)) | own


def rows_of(flat: Flat, where: str) -> Flat:
    """The rows of the energy table that flat keys name; none if they name no table or give every row themselves."""
    table = flat.get("energy.table")
    if table is None or not isinstance(table.value, str) or flat.keys() >= {*ENERGY_KEYS}:
        return {}
    path = find(table.value, known_tables(), "energy table", (where,) if where else ())
    parsed = parse(path)
    lacking = {
        "no row for": EVENTS.keys() - parsed.keys(),
        "unknown event": parsed.keys() - EVENTS.keys(),
    }
    raise_all(
        IsaError("E511", f"{what} {', '.join(sorted(events))}", where=str(path))
        for what, events in lacking.items()
        if events
    )
    return {f"energy.{event}": Leaf(value, str(path)) for event, value in parsed.items()}


ENERGY_KEYS = tuple(f"energy.{event}" for event in EVENTS)


def parse(path: Path) -> dict[str, Any]:
    """A TOML file; IsaError E510 if there is none, E512 if it is not TOML."""
    try:
        return tomllib.loads(path.read_bytes().decode())
    except OSError as e:
        raise IsaError("E510", f"cannot read the file: {e.strerror}", where=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise IsaError("E512", f"not TOML: {e}", where=str(path)) from None


def comment(path: Path) -> str:
    """The comment at the head of a file, formulas kept apart."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines)


def about(path: Path) -> str:
    """What a file says first of itself, up to where it goes into detail; "" if it says nothing."""
    text = re.sub(r"\s*\([^)]*\)", "", comment(path).replace("\n", " "))
    return re.split(r"[.,:](?= |$)", text)[0]


def find(name: str, names: Mapping[str, Path], kind: str, above: tuple[str, ...] = ()) -> Path:
    """The file of a name; a path is relative to the file that mentions it."""
    if name.endswith(".toml"):
        return Path(above[-1]).parent / name if above else Path(name)
    if name not in names:
        raise IsaError(
            "E510",
            f"unknown {kind} {name!r}: expected {' or '.join(names)}, or a file that ends in .toml",
            where=above[-1] if above else "",
            hint=_not_toml(name) or did_you_mean(name, names),
        )
    return names[name]


def _not_toml(name: str) -> str:
    """A hint for a file that is there, but is not taken for a description."""
    return f"{name} is a file: give it a name that ends in .toml" if Path(name).is_file() else ""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A hint at the nearest of some names, or ""."""
    near = difflib.get_close_matches(name, list(names), 1)
    return f"did you mean {near[0]}?" if near else ""


def flatten(data: Mapping[str, Any], where: str) -> Flat:
    """Nested tables → flat keys; `energy = "horowitz"` is short for `energy.table`."""
    if not isinstance(data, Mapping):
        return {}
    flat = {key: Leaf(value, where) for key, value in data.items() if key not in NESTED}
    for unit, rows in _table(data, "units", flat, where).items():
        if isinstance(rows, Mapping):
            flat |= {f"units.{unit}.{key}": Leaf(value, where) for key, value in rows.items()}
        else:
            flat[f"units.{unit}"] = Leaf(rows, where)
    energy = data.get("energy", {})
    if isinstance(energy, str):
        energy = {"table": energy}
    rows = _table({"energy": energy}, "energy", flat, where)
    return flat | {f"energy.{key}": Leaf(value, where) for key, value in rows.items()}


NESTED = ("units", "energy")


def _table(data: Mapping[str, Any], key: str, flat: Flat, where: str) -> Mapping[str, Any]:
    """A nested table; what is none becomes a key of its own, which nobody knows."""
    table = data.get(key, {})
    if isinstance(table, Mapping):
        return table
    flat[key] = Leaf(table, where)
    return {}
