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
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from reprlib import repr as brief
from typing import Any, Self

from .core import TABLE
from .description import ENERGY_KEYS, EVENTS, Flat, Leaf, did_you_mean, flatten, read, rows_of
from .description import TARGETS as TARGETS
from .description import known as known
from .description import register as register
from .errors import IsaError, raise_all

PROVENANCES = ("published", "silicon", "derived", "recalled", "assumed", "fitted")
"""By whom: a paper or data sheet; a measurement on hardware; arithmetic on those; memory, unchecked; us; a fit to some result."""

EXTENSIONS = (
    "base",
    "async",
    "tensor",
    "systolic",
    "sparse",
    "sparse24",
    "conv",
    "gather",
    "types",
    "fusion",
    "dual",
    "custom",
)
"""The built-in ones; a plugin's instruction may bring another."""
UNITS = dict.fromkeys(
    ("control", "sreg", "uniform", "alu", "imul", "fma", "fp64", "sfu", "cvt", "lsu_global", "lsu_shared", "lsu_local", "barrier"), ""
) | {
    "tensor": "tensor", "tensor_f16": "tensor", "tensor_int": "tensor", "systolic": "systolic or sparse", "mode": "systolic", "dma": "async",
    "outer": "sparse", "bitmap": "sparse",
}  # fmt: skip
"""Rows of the unit table, each with the extensions that it belongs to, if to any. In `systolic` accumulator memory is read and written, which the
sparse extension has as well."""
SCOPES = ("subcore", "sm")
CHOICES = {
    "nonmatrix": ("simt", "vector", "host"),
    "dataflow": ("none", "sbws", "ws", "os"),
}
"""The legal values of a text."""
NEUTRAL: Mapping[str, float] = {
    "separate_array": 0,
    "vector_word": 0,
    "energy.vector_read": 0,
    "energy.vector_write": 0,
    "energy.bitmap_op": 0,
    "energy.mac8_tensor": 0,
    "energy.mac4_tensor": 0,
    "energy.mac8_systolic": 0,
    "units.tensor_int.latency": 1,
    "units.tensor_int.interval": 1,
}
"""The numbers that format 1.0 did not have, with what one means that a stored description lacks: nothing of the kind was there."""
HOST = "host"
"""Numbers `of` it are there if `nonmatrix` is "host"."""
LARGEST = 1 << 62
CYCLES = 1 << 30
"""A wait, at most: a kernel's many waits must end before the timing model's end of time."""


def number(doc: str, least: int = 1, most: int = LARGEST, of: str = "") -> Any:
    """A field of Machine that the TOML file must give, with its meaning and its legal values.

    One `of` an extension (or of the host; of "a or b") is given exactly by machines that have it, and is 0 in others.
    """
    return field(metadata={"doc": doc, "least": least, "most": most, "of": of})


@dataclass(frozen=True)
class Provenance:
    """Where a number is from: one of PROVENANCES, and a note for people."""

    kind: str
    note: str = ""


@dataclass(frozen=True)
class Unit:
    """A functional unit. A result is ready `latency` cycles after issue; the next instruction can issue `interval` cycles later.

    `per` is "subcore" if each sub-core has one, "sm" if the SM's sub-cores share it. For load/store units `interval` is per 128 bytes.
    Two units with one `port` are one as far as issue goes: its name, the unit's own if the file says nothing.
    """

    latency: int
    interval: int
    per: str = "subcore"
    port: str = ""


@dataclass(frozen=True, eq=False)
class Machine:
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

    sms: int = number("streaming multiprocessors")
    subcores: int = number("sub-cores an SM, each with a scheduler and a set of units")
    clock_hz: int = number("core clock")
    warps_per_sm: int = number("resident warps an SM")
    blocks_per_sm: int = number("resident blocks an SM")
    registers_per_sm: int = number("32-bit registers an SM")
    registers_per_thread: int = number("registers a thread can name")
    register_banks: int = number(
        "banks of a sub-core's register file; register r lies in bank r mod banks"
    )
    register_bank_reads: int = number(
        "registers a bank delivers an issue; each further one costs a cycle"
    )
    shared_bytes_per_sm: int = number("shared memory an SM", 0)
    shared_bytes_per_block: int = number("shared memory that one block can have", 0)
    shared_banks: int = number("banks of shared memory, 4 bytes wide")
    launch_cycles: int = number("cycles from one kernel launch to its first instruction", 0, CYCLES)
    l1_bytes: int = number("memory an SM that L1 and shared memory have together", 0)
    l1_latency: int = number("cycles of a load that hits L1", most=CYCLES)
    l2_latency: int = number("cycles of a load that hits L2", most=CYCLES)
    l2_bytes: int = number("capacity of L2; 0: there is none", 0)
    l2_bytes_per_second: int = number("bandwidth of L2, the whole chip")
    sm_bytes_per_cycle: int = number("bytes a cycle that L2 can deliver to one SM")
    dram_latency: int = number("cycles of a load from DRAM", most=CYCLES)
    dram_bytes_per_second: int = number("bandwidth of DRAM, the whole chip")
    constant_milliwatts: int = number("power of the chip that nothing switches off", 0)
    sm_milliwatts: int = number("static power of an SM that has work", 0)

    tensor_units: int = number("Tensor Core units an SM", of="tensor")
    tensor_operand_words: int = number(
        "words of A and B that one HMMA reads from the register file", of="tensor"
    )
    tensor_accumulator_words: int = number(
        "words of C that one HMMA with fp32 accumulators reads, and of D that it writes (half with fp16 ones)",
        of="tensor",
    )

    systolic_units: int = number("systolic units an SM", of="systolic")
    array_rows: int = number("rows of a systolic unit: steps of k", of="systolic")
    array_columns: int = number(
        "columns of a systolic unit, of 16-bit elements; in fp32 half as many", 2, of="systolic"
    )
    accumulator_bytes: int = number(
        "accumulator memory an SM; without, C lies in registers",
        0, 1 << 28, of="systolic or sparse",
    )  # fmt: skip
    weight_double_buffer: int = number(
        "1 if the next weights load while the last ones are used", 0, 1, of="systolic"
    )
    lsma_bubble: int = number(
        "cycles a systolic operation needs beyond its rows, for addresses", 0, CYCLES, of="systolic"
    )
    lsma_fill: int = number(
        "cycles from an idle unit's first row of A to its first row of C", 0, CYCLES, of="systolic"
    )
    lsma_queue: int = number("groups that a unit's queue holds", most=1 << 16, of="systolic")
    systolic_banks: int = number("banks of shared memory that stream A", of="systolic")
    mode_switch_cycles: int = number(
        "cycles of a change of mode after the drain", 0, CYCLES, of="systolic"
    )
    separate_array: int = number(
        "1 if the arrays are not made of the vector units' lanes, so that both run at once",
        0, 1, of="systolic",
    )  # fmt: skip
    vector_word: int = number(
        "16-bit elements in a word of a vector memory's bank, one bank a row of the array; 0: shared memory is no vector memory",
        0, 64, of="systolic",
    )  # fmt: skip

    collector_window: int = number(
        "OHMMAs in a row whose accesses to the accumulation buffer are combined; 0: all of an SPWMMA",
        0, 128, of="sparse",
    )  # fmt: skip
    pred_off_percent: int = number(
        "time that an OHMMA which is left out takes, in percent of one that is not", 0, 10_000, of="sparse"
    )  # fmt: skip
    bohmma_percent: int = number(
        "time that an SPWMMA needs for the bitmap of a step of k, in percent of an OHMMA's", 0, 10_000, of="sparse"
    )  # fmt: skip

    host_clock_hz: int = number("clock of the host that runs what is no matrix product", of=HOST)
    host_flops_per_cycle: int = number("operations a cycle of the host, all cores", of=HOST)
    host_microseconds: int = number(
        "time from asking the host, or the accelerator, to its first operation", 0, of=HOST
    )
    link_bytes_per_second: int = number("bandwidth of the link to the host", of=HOST)

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
                key: leaf for key, leaf in flat.items() if _reason(key, leaf.value, flat) != UNKNOWN
            }
        absent = NEUTRAL.keys() & _required(flat) - flat.keys()
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
        features = _features(self.extensions, self.nonmatrix)
        out |= {
            key: self._number(key, getattr(self, key))
            for key in NUMBERS
            if _belongs(_owner(key), features)
        }
        out["units"] = {
            name: self._unit(name) for name in self.units if _belongs(UNITS.get(name, ""), features)
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
        flat = _relevant(flat)
        raise_all(_problems(flat, where))
        given = {key: leaf.value for key, leaf in flat.items() if _is_number(key)}
        numbers = {key: value["value"] for key, value in given.items()}
        return cls(
            name=flat["name"].value,
            extensions=tuple(flat["extensions"].value),
            energy_table=flat["energy.table"].value,
            energy={event: float(numbers[f"energy.{event}"]) for event in EVENTS},
            units={n: _unit(n, flat) for n in _unit_names(flat)},
            provenance={key: _provenance(value) for key, value in given.items()},
            **{key: flat[key].value for key in CHOICES},
            **{key: numbers.get(key, 0) for key in NUMBERS},
        )


def digest(description: Mapping[str, Any]) -> str:
    """SHA-256 of a description's canonical JSON."""
    text = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


NUMBERS: dict[str, dict[str, Any]] = {
    f.name: dict(f.metadata) for f in dataclasses.fields(Machine) if "doc" in f.metadata
}
TEXTS = ("name", "extensions", *CHOICES, "energy.table")
UNKNOWN = "unknown key"
UNIT_NUMBER = re.compile(r"units\.[A-Za-z_]\w*\.(latency|interval)", re.ASCII)
UNIT_TEXT = re.compile(r"units\.[A-Za-z_]\w*\.(per|port)", re.ASCII)


def _is_number(key: str) -> bool:
    return key in NUMBERS or key in ENERGY_KEYS or UNIT_NUMBER.fullmatch(key) is not None


def _unit_names(flat: Flat) -> list[str]:
    """Units that some number is given of."""
    return list(dict.fromkeys(key.split(".")[1] for key in flat if UNIT_NUMBER.fullmatch(key)))


def _unit(name: str, flat: Flat) -> Unit:
    latency, interval = (flat[f"units.{name}.{k}"].value["value"] for k in ("latency", "interval"))
    per, port = flat.get(f"units.{name}.per"), flat.get(f"units.{name}.port")
    return Unit(latency, interval, per.value if per else "subcore", port.value if port else name)


def _provenance(value: Mapping[str, Any]) -> Provenance:
    return Provenance(value["provenance"], value.get("note", value.get("source", "")))


def _instead(old: Leaf | None, value: Any) -> Any:
    """A key's new value: as it is for a text, else in a number's table that says what it replaces."""
    if old is None or not isinstance(old.value, Mapping) or isinstance(value, Mapping):
        return value
    before = _provenance(old.value)
    note = f"instead of {old.value['value']}, {before.kind}" + (before.note and f": {before.note}")
    return {"value": value, "provenance": "assumed", _note(old.value): note}


def _neutral(key: str, where: str) -> Leaf:
    note = "source" if key in ENERGY_KEYS else "note"
    row = {"value": NEUTRAL[key], "provenance": "derived", note: "older than this number"}
    return Leaf(row, where)


def _note(row: Mapping[str, Any]) -> str:
    return "source" if "source" in row else "note"


# --- numbers of extensions -------------------------------------------------------------------------------------------------


def _features(extensions: Any, nonmatrix: Any) -> set[str]:
    """What numbers of a machine can be `of`; "" is all machines."""
    listed = (
        [e for e in extensions if isinstance(e, str)]
        if isinstance(extensions, (list, tuple))
        else []
    )
    return {"", *listed} | ({HOST} if nonmatrix == HOST else set())


def _owner(key: str) -> str:
    """The extension that a key belongs to, "a or b" if to several, or ""."""
    if key in NUMBERS:
        return str(NUMBERS[key]["of"])
    return UNITS.get(key.split(".")[1], "") if key.startswith("units.") else ""


def _belongs(owner: str, features: set[str]) -> bool:
    """Whether a machine of these features has what is an owner's."""
    return not features.isdisjoint(owner.split(" or "))


def _features_of(flat: Flat) -> set[str]:
    return _features(*(flat[k].value if k in flat else "" for k in ("extensions", "nonmatrix")))


def _relevant(flat: Flat) -> Flat:
    """Without what a base gave for extensions that the machine lacks."""
    features = _features_of(flat)
    return {
        k: leaf for k, leaf in flat.items() if not leaf.inherited or _belongs(_owner(k), features)
    }


# --- checking: every problem, with the file and the key ------------------------------------------------------------------


def _problems(flat: Flat, where: str) -> Iterator[IsaError]:
    for key in sorted(_required(flat) - flat.keys()):
        yield IsaError("E511", f"{key} is missing", where=where, hint=_meaning(key))
    for key, leaf in flat.items():
        if reason := _reason(key, leaf.value, flat):
            hint = did_you_mean(key, _required(flat)) if reason == UNKNOWN else ""
            yield IsaError("E511", f"{key}: {reason}", where=leaf.where, hint=hint)


def _required(flat: Flat) -> set[str]:
    """Keys that must be there: for every unit that is mentioned both its numbers."""
    features = _features_of(flat)
    units = {*(u for u in UNITS if _belongs(UNITS[u], features)), *_unit_names(flat)}
    return {
        *TEXTS,
        *(key for key in NUMBERS if _belongs(_owner(key), features)),
        *(f"units.{u}.{k}" for u in units for k in ("latency", "interval")),
        *ENERGY_KEYS,
    }


def _meaning(key: str) -> str:
    return (
        str(NUMBERS[key]["doc"]) if key in NUMBERS else EVENTS.get(key.removeprefix("energy."), "")
    )


def _reason(key: str, value: Any, flat: Flat) -> str:
    """What is wrong with one key, or ""."""
    if not _belongs(owner := _owner(key), _features_of(flat)):
        return f"belongs to {owner}, which the machine lacks"
    if _is_number(key):
        return _number_reason(key, value)
    if key == "extensions":
        return _extensions_reason(value)
    if key in ("name", "energy.table"):
        return "" if isinstance(value, str) and value else f"expected a name, got {brief(value)}"
    if (legal := _choices(key, flat)) is not None:
        return "" if value in legal else f"expected {' or '.join(legal)}, got {brief(value)}"
    if (key.startswith("units.") and key.count(".") == 1) or key == "units":
        return "expected a table with latency and interval"
    if key == "energy":
        return "expected a table's name, or rows"
    return UNKNOWN


def _choices(key: str, flat: Flat) -> tuple[str, ...] | None:
    """The legal values of a text, or None."""
    if key == "dataflow":  # systolic units without a dataflow, or the other way round, mean nothing
        none, *some = CHOICES[key]
        return tuple(some) if "systolic" in _features_of(flat) else (none,)
    if UNIT_TEXT.fullmatch(key):
        return SCOPES if key.endswith("per") else tuple(_unit_names(flat))
    return CHOICES.get(key)


def _extensions_reason(value: Any) -> str:
    if not isinstance(value, list) or "base" not in value:
        return f'expected a list with "base" in it, got {brief(value)}'
    legal = dict.fromkeys((*EXTENSIONS, *(i.extension for i in TABLE.values())))
    bad = [e for e in value if e not in legal]
    return f"expected some of {', '.join(legal)}, got {brief(bad[0])}" if bad else ""


def _number_reason(key: str, given: Any) -> str:
    """What is wrong with a number's table, or ""."""
    note = "source" if key in ENERGY_KEYS else "note"
    if not isinstance(given, Mapping) or "value" not in given:
        return f"expected {{ value = …, provenance = … }}, got {brief(given)}"
    value, provenance, text = given["value"], given.get("provenance"), given.get(note, "")
    if extra := given.keys() - {"value", "provenance", note}:
        return f"expected value, provenance and {note}, got {brief(min(extra))}"
    if reason := _value_reason(key, value):
        return reason
    if provenance not in PROVENANCES:
        return f"expected a provenance ({', '.join(PROVENANCES)}), got {brief(provenance)}"
    if key in ENERGY_KEYS and not text:
        return "expected a source"
    return "" if isinstance(text, str) else f"expected a {note} that is text, got {brief(text)}"


def _value_reason(key: str, value: Any) -> str:
    if key in ENERGY_KEYS:
        return "" if _is_energy(value) else f"expected picojoules from 0 on, got {brief(value)}"
    least, most = (NUMBERS.get(key, {"least": 1, "most": CYCLES})[k] for k in ("least", "most"))
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return ""
    upper = "on" if most == LARGEST else f"to {most}"
    return f"expected a whole number from {least} {upper}, got {brief(value)}"


def _is_energy(value: Any) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and 0 <= value <= LARGEST  # which neither NaN nor infinity is
