"""A modeled machine: a TOML file in which every number says where it is from.

    name = "mine"
    base = "volta-8tc"                      # optional: only what differs needs to be written
    sms = { value = 40, provenance = "assumed", note = "half a die" }

    [units.tensor]
    interval = { value = 20, provenance = "assumed" }

A description is flat inside: keys such as `sms` or `units.tensor.interval`, each with a value, a provenance and the file that
gave it. A base is read first and overwritten key by key. All problems of a file are reported at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from reprlib import repr as brief
from typing import Any, Self

from .core import TABLE
from .errors import IsaError, raise_all

PROVENANCES = ("published", "silicon", "derived", "recalled", "assumed", "fitted")
"""By whom: a paper or data sheet; a measurement on hardware; arithmetic on those; memory, unchecked; us; a fit to some result."""

EXTENSIONS = (
    "base",
    "async",
    "tensor",
    "systolic",
    "sparse",
    "conv",
    "gather",
    "types",
    "dual",
    "custom",
)
"""The built-in ones; a plugin's instruction may bring another."""
UNITS = (
    "control", "sreg", "uniform", "alu", "imul", "fma", "fp64", "sfu", "cvt", "lsu_global", "lsu_shared", "lsu_local",
    "tensor", "barrier",
)  # fmt: skip
SCOPES = ("subcore", "sm")
NONMATRIX = ("simt", "vector", "host")
LARGEST = 1 << 62

TARGETS: list[Path] = [Path(__file__).parent / "targets"]
"""Directories of known targets, `NAME.toml` each; a plugin adds its own with `register`."""


def register(directory: Path) -> None:
    """Make the TOML files of a directory known by name. Of two with one name the one registered last counts."""
    if directory not in TARGETS:
        TARGETS.append(directory)


def known() -> dict[str, Path]:
    """The targets by name."""
    return {p.stem: p for d in TARGETS for p in sorted(d.glob("*.toml"))}


def number(doc: str, least: int = 1) -> Any:
    """A field of Machine that the TOML file must give, with its meaning and its smallest legal value."""
    return field(metadata={"doc": doc, "least": least})


@dataclass(frozen=True)
class Provenance:
    """Where a number is from: one of PROVENANCES, and a note for people."""

    kind: str
    note: str = ""


@dataclass(frozen=True)
class Unit:
    """A functional unit. A result is ready `latency` cycles after issue; the next instruction can issue `interval` cycles later.

    `per` is "subcore" if each sub-core has one, "sm" if the SM's sub-cores share it. For load/store units `interval` is per 128 bytes.
    """

    latency: int
    interval: int
    per: str = "subcore"


@dataclass(frozen=True, eq=False)
class Machine:
    """A machine description with every number resolved. Two are equal if their hashes are."""

    name: str
    extensions: tuple[str, ...]
    nonmatrix: str
    """What runs operators that are no matrix product: simt, vector or host."""
    units: Mapping[str, Unit]
    provenance: Mapping[str, Provenance]
    """By key: `sms`, `units.fma.latency`, …"""

    sms: int = number("streaming multiprocessors")
    subcores: int = number("sub-cores an SM, each with a scheduler and a set of units")
    clock_hz: int = number("core clock")
    warps_per_sm: int = number("resident warps an SM")
    blocks_per_sm: int = number("resident blocks an SM")
    registers_per_sm: int = number("32-bit registers an SM")
    registers_per_thread: int = number("registers a thread can name")
    shared_bytes_per_sm: int = number("shared memory an SM", 0)
    shared_bytes_per_block: int = number("shared memory that one block can have", 0)
    shared_banks: int = number("banks of shared memory, 4 bytes wide")
    tensor_units: int = number("Tensor Core units an SM", 0)
    launch_cycles: int = number("cycles from one kernel launch to its first instruction", 0)
    l1_latency: int = number("cycles of a load that hits L1")
    l2_latency: int = number("cycles of a load that hits L2")
    l2_bytes: int = number("capacity of L2")
    l2_bytes_per_second: int = number("bandwidth of L2, the whole chip")
    dram_latency: int = number("cycles of a load from DRAM")
    dram_bytes_per_second: int = number("bandwidth of DRAM, the whole chip")

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> Self:
        """A known target by name, or a TOML file by path (it ends in `.toml`)."""
        return cls._build(_read(str(name_or_path)), str(name_or_path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "target") -> Self:
        """The inverse of `to_dict`; every problem of `data` is an IsaError."""
        return cls._build(_flatten(data, where), where)

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the shape of the TOML file, without `base`."""
        out: dict[str, Any] = {
            "name": self.name,
            "extensions": list(self.extensions),
            "nonmatrix": self.nonmatrix,
        }
        out |= {key: self._number(key, getattr(self, key)) for key in NUMBERS}
        out["units"] = {
            name: {
                k: self._number(f"units.{name}.{k}", getattr(unit, k))
                for k in ("latency", "interval")
            }
            | {"per": unit.per}
            for name, unit in self.units.items()
        }
        return out

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the canonical JSON of `to_dict`."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Machine) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def _number(self, key: str, value: int) -> dict[str, Any]:
        p = self.provenance[key]
        return {"value": value, "provenance": p.kind} | ({"note": p.note} if p.note else {})

    @classmethod
    def _build(cls, flat: Flat, where: str) -> Self:
        raise_all(_problems(flat, where))
        names = dict.fromkeys(key.split(".")[1] for key in flat if UNIT_NUMBER.fullmatch(key))
        numbers = {key: leaf.value["value"] for key, leaf in flat.items() if _is_number(key)}
        units = {
            n: Unit(numbers[f"units.{n}.latency"], numbers[f"units.{n}.interval"], _per(flat, n))
            for n in names
        }
        given = {key: leaf.value for key, leaf in flat.items() if _is_number(key)}
        return cls(
            name=flat["name"].value,
            extensions=tuple(flat["extensions"].value),
            nonmatrix=flat["nonmatrix"].value,
            units=units,
            provenance={
                key: Provenance(v["provenance"], v.get("note", "")) for key, v in given.items()
            },
            **{key: numbers[key] for key in NUMBERS},
        )


NUMBERS: dict[str, dict[str, Any]] = {
    f.name: dict(f.metadata) for f in dataclasses.fields(Machine) if "doc" in f.metadata
}
TEXTS = ("name", "extensions", "nonmatrix")
UNIT_NUMBER = re.compile(r"units\.[A-Za-z_]\w*\.(latency|interval)", re.ASCII)


# --- reading -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leaf:
    """What one key was given, and by which file."""

    value: Any
    where: str


Flat = dict[str, Leaf]


def _read(name: str, above: tuple[str, ...] = ()) -> Flat:
    """A target with its bases, the nearest last."""
    path = _find(name, above)
    if any(path.samefile(other) for other in above if path.exists()):
        raise IsaError("E512", "its bases form a circle", where=" → ".join((*above, str(path))))
    try:
        data = tomllib.loads(path.read_bytes().decode())
    except OSError as e:
        raise IsaError("E510", f"cannot read the file: {e.strerror}", where=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as e:
        raise IsaError("E512", f"not TOML: {e}", where=str(path)) from None
    base = data.pop("base", None)
    if base is not None and not isinstance(base, str):
        raise IsaError(
            "E511", f"base: expected a target's name or file, got {brief(base)}", where=str(path)
        )
    inherited = _read(base, (*above, str(path))) if base is not None else {}
    inherited.pop("name", None)  # whoever differs has a name of its own
    return inherited | _flatten(data, str(path))


def _find(name: str, above: tuple[str, ...]) -> Path:
    """A path is relative to the file that names it as its base."""
    if name.endswith(".toml"):
        return Path(above[-1]).parent / name if above else Path(name)
    targets = known()
    if name not in targets:
        raise IsaError(
            "E510",
            f"unknown target {name!r}: expected {' or '.join(targets)}, or a file that ends in .toml",
            where=above[-1] if above else "",
            hint=_did_you_mean(name, targets),
        )
    return targets[name]


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), 1)
    return f"did you mean {near[0]}?" if near else ""


def _flatten(data: Mapping[str, Any], where: str) -> Flat:
    """Nested tables → flat keys; a number's own table stays whole."""
    if not isinstance(data, Mapping):
        return {}
    flat = {key: Leaf(value, where) for key, value in data.items() if key != "units"}
    units = data.get("units", {})
    if not isinstance(units, Mapping):
        return flat | {"units": Leaf(units, where)}
    for unit, rows in units.items():
        if isinstance(rows, Mapping):
            flat |= {f"units.{unit}.{key}": Leaf(value, where) for key, value in rows.items()}
        else:
            flat[f"units.{unit}"] = Leaf(rows, where)
    return flat


def _per(flat: Flat, unit: str) -> str:
    leaf = flat.get(f"units.{unit}.per")
    return "subcore" if leaf is None else str(leaf.value)


def _is_number(key: str) -> bool:
    return key in NUMBERS or UNIT_NUMBER.fullmatch(key) is not None


# --- checking: every problem, with the file and the key ------------------------------------------------------------------


def _problems(flat: Flat, where: str) -> Iterator[IsaError]:
    for key in sorted(_required(flat) - flat.keys()):
        yield IsaError("E511", f"{key} is missing", where=where, hint=_meaning(key))
    for key, leaf in flat.items():
        if reason := _reason(key, leaf.value):
            hint = _did_you_mean(key, _required(flat)) if reason == "unknown key" else ""
            yield IsaError("E511", f"{key}: {reason}", where=leaf.where, hint=hint)


def _required(flat: Flat) -> set[str]:
    """Keys that must be there: for every unit that is mentioned both its numbers."""
    units = {*UNITS, *(key.split(".")[1] for key in flat if UNIT_NUMBER.fullmatch(key))}
    return {*TEXTS, *NUMBERS, *(f"units.{u}.{k}" for u in units for k in ("latency", "interval"))}


def _meaning(key: str) -> str:
    return str(NUMBERS[key]["doc"]) if key in NUMBERS else ""


def _reason(key: str, value: Any) -> str:
    """What is wrong with one key, or ""."""
    if _is_number(key):
        return _number_reason(value, NUMBERS.get(key, {"least": 1})["least"])
    if key == "name":
        return "" if isinstance(value, str) and value else f"expected a name, got {brief(value)}"
    if key == "extensions":
        return _extensions_reason(value)
    if key == "nonmatrix":
        return (
            "" if value in NONMATRIX else f"expected {' or '.join(NONMATRIX)}, got {brief(value)}"
        )
    if key.startswith("units.") and key.endswith(".per") and key.count(".") == 2:
        return "" if value in SCOPES else f"expected {' or '.join(SCOPES)}, got {brief(value)}"
    if (key.startswith("units.") and key.count(".") == 1) or key == "units":
        return "expected a table with latency and interval"
    return "unknown key"


def _extensions_reason(value: Any) -> str:
    if not isinstance(value, list) or "base" not in value:
        return f'expected a list with "base" in it, got {brief(value)}'
    legal = dict.fromkeys((*EXTENSIONS, *(i.extension for i in TABLE.values())))
    bad = [e for e in value if e not in legal]
    return f"expected some of {', '.join(legal)}, got {brief(bad[0])}" if bad else ""


def _number_reason(given: Any, least: int) -> str:
    if not isinstance(given, Mapping) or "value" not in given:
        return f"expected {{ value = …, provenance = … }}, got {brief(given)}"
    value, provenance, note = given["value"], given.get("provenance"), given.get("note", "")
    if extra := given.keys() - {"value", "provenance", "note"}:
        return f"expected value, provenance and note, got {brief(min(extra))}"
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= LARGEST:
        return f"expected a whole number from {least} on, got {brief(value)}"
    if provenance not in PROVENANCES:
        return f"expected a provenance ({', '.join(PROVENANCES)}), got {brief(provenance)}"
    return "" if isinstance(note, str) else f"expected a note that is text, got {brief(note)}"
