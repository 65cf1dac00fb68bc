"""A modeled machine: a TOML file in which every number says where it is from.

    name = "mine"
    base = "volta-8tc"                      # optional: only what differs needs to be written
    energy = "horowitz"                     # a table of picojoules; single rows can be given beside it, in [energy]
    sms = { value = 40, provenance = "assumed", note = "half a die" }

    [units.tensor]
    interval = { value = 20, provenance = "assumed" }

A description is flat inside: keys such as `sms`, `units.tensor.interval` or `energy.rf_read`, each with a value, a provenance and the
file that gave it. A base is read first and overwritten key by key (`description.py`). A number that belongs to an extension is
there exactly if the machine has that extension: a base's other numbers are left behind. All problems of a file are reported at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from .description import ENERGY_KEYS, EVENTS, Flat, Leaf, flatten, read, rows_of
from .description import TARGETS as TARGETS
from .description import known as known
from .description import register as register
from .errors import raise_all
from .legal import UNKNOWN, belongs, features_of, owner_of, problems, reason_of, relevant, required
from .parameters import (
    CHOICES,
    NEUTRAL,
    NUMBERS,
    UNITS,
    Numbers,
    Provenance,
    Unit,
    is_number,
    provenance_of,
    unit_names,
    unit_of,
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Machine(Numbers):
    """A machine description with every number resolved. Two are equal if their hashes are."""

    name: str
    extensions: tuple[str, ...]
    nonmatrix: str
    """What runs operators that are no matrix product: simt, vector or host."""
    dataflow: str
    """How the systolic units move data: weight stationary with A broadcast along the rows (sbws), passed along (ws), output
    stationary (os); none without the systolic extension."""
    energy_table: str
    """The name of the table that `energy` began as."""
    energy: Mapping[str, float]
    """Picojoules by event, for every one of EVENTS."""
    units: Mapping[str, Unit]
    provenance: Mapping[str, Provenance]
    """By key: `sms`, `units.fma.latency`, `energy.rf_read`, …"""

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> Self:
        """A known target by name, or a TOML file by path (it ends in `.toml`)."""
        return cls._build(read(str(name_or_path)), str(name_or_path))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "target") -> Self:
        """The inverse of `to_dict`; every problem of `data` is an IsaError."""
        return cls._build(flatten(data, where), where)

    @classmethod
    def from_stored(cls, data: Mapping[str, Any], where: str, newer: bool = False) -> Self:
        """The machine of a description that an image or a listing holds, which another version of knapper may have written.

        A number that was added since (NEUTRAL) may be missing. In a file of a `newer` minor, keys that nobody here knows are passed over.
        """
        flat = flatten(data, where)
        if newer:
            flat = {
                key: leaf
                for key, leaf in flat.items()
                if reason_of(key, leaf.value, flat) != UNKNOWN
            }
        absent = NEUTRAL.keys() & required(flat) - flat.keys()
        return cls._build(flat | {key: _neutral(key, where) for key in absent}, where)

    def with_(self, **values: Any) -> Self:
        """The machine with other numbers or texts: `m.with_(sms=40, dataflow="ws", **{"units.fma.latency": 5})`, all by flat key.

        Such a number is assumed, and its note says what it replaces. `energy="aladdin"` takes another table whole. IsaError E511
        for a key or a value that is not legal.
        """
        where = f"{self.name} with_"
        own = self._flat()
        flat = {key: dataclasses.replace(leaf, inherited=True) for key, leaf in own.items()}
        if "energy" in values:
            values["energy.table"] = values.pop("energy")
            flat |= rows_of({"energy.table": Leaf(values["energy.table"], where)}, "")
        flat |= {key: Leaf(_instead(own.get(key), value), where) for key, value in values.items()}
        return self._build(flat, where)

    def to_dict(self) -> dict[str, Any]:
        """Plain data in the shape of the TOML file, without `base` and with every row of the energy table."""
        out: dict[str, Any] = {
            "name": self.name,
            "extensions": list(self.extensions),
            **{key: getattr(self, key) for key in CHOICES},
        }
        features = features_of(self.extensions, self.nonmatrix)
        out |= {
            key: self._number(key, getattr(self, key))
            for key in NUMBERS
            if belongs(owner_of(key), features)
        }
        out["units"] = {
            name: self._unit(name) for name in self.units if belongs(UNITS.get(name, ""), features)
        }
        out["energy"] = {"table": self.energy_table} | {
            event: self._number(f"energy.{event}", value, "source")
            for event, value in self.energy.items()
        }
        return out

    @property
    def vector_bytes(self) -> int:
        """Bytes of a word of vector memory, all banks: what its port moves in a cycle. 0 without vector memory."""
        return 2 * self.vector_word * self.array_rows

    @property
    def provenances(self) -> Counter[str]:
        """How many numbers there are of each provenance."""
        return Counter(p.kind for p in self.provenance.values())

    @property
    def assumed(self) -> int:
        """How many numbers nobody but us stands for."""
        return self.provenances["assumed"]

    @cached_property
    def hash(self) -> str:
        """`digest` of `to_dict`."""
        return digest(self.to_dict())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Machine) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)

    def _flat(self) -> Flat:
        return flatten(self.to_dict(), self.name)

    def _unit(self, name: str) -> dict[str, Any]:
        unit = self.units[name]
        numbers = {
            k: self._number(f"units.{name}.{k}", getattr(unit, k)) for k in ("latency", "interval")
        }
        port = {"port": unit.port} if unit.port != name else {}
        return numbers | {"per": unit.per} | port

    def _number(self, key: str, value: float, note: str = "note") -> dict[str, Any]:
        p = self.provenance[key]
        return {"value": value, "provenance": p.kind} | ({note: p.note} if p.note else {})

    @classmethod
    def _build(cls, flat: Flat, where: str) -> Self:
        flat = relevant(flat)
        raise_all(problems(flat, where))
        given = {key: leaf.value for key, leaf in flat.items() if is_number(key)}
        numbers = {key: value["value"] for key, value in given.items()}
        return cls(
            name=flat["name"].value,
            extensions=tuple(flat["extensions"].value),
            energy_table=flat["energy.table"].value,
            energy={event: float(numbers[f"energy.{event}"]) for event in EVENTS},
            units={n: unit_of(n, flat) for n in unit_names(flat)},
            provenance={key: provenance_of(value) for key, value in given.items()},
            **{key: flat[key].value for key in CHOICES},
            **{key: numbers.get(key, 0) for key in NUMBERS},
        )


def digest(description: Mapping[str, Any]) -> str:
    """SHA-256 of a description's canonical JSON."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _instead(old: Leaf | None, value: Any) -> Any:
    """A key's new value: as it is for a text, else in a number's table that says what it replaces."""
    if old is None or not isinstance(old.value, Mapping) or isinstance(value, Mapping):
        return value
    before = provenance_of(old.value)
    note = f"instead of {old.value['value']}, {before.kind}" + (before.note and f": {before.note}")
    return {"value": value, "provenance": "assumed", _note(old.value): note}


def _neutral(key: str, where: str) -> Leaf:
    note = "source" if key in ENERGY_KEYS else "note"
    row = {"value": NEUTRAL[key], "provenance": "derived", note: "older than this number"}
    return Leaf(row, where)


def _note(row: Mapping[str, Any]) -> str:
    return "source" if "source" in row else "note"
