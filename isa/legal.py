"""What is wrong with a machine's description: every problem, with the file and the key; and which numbers a machine has at all.

A number that belongs to an extension is there exactly if the machine has that extension.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from reprlib import repr as brief
from typing import Any

from .core import TABLE
from .description import ENERGY_KEYS, EVENTS, Flat, did_you_mean
from .errors import IsaError
from .parameters import (
    CHOICES,
    CYCLES,
    EXTENSIONS,
    HOST,
    LARGEST,
    NUMBERS,
    PROVENANCES,
    SCOPES,
    TEXTS,
    UNIT_TEXT,
    UNITS,
    is_number,
    unit_names,
)

UNKNOWN = "unknown key"


def features_of(extensions: Any, nonmatrix: Any) -> set[str]:
    """What numbers of a machine can be `of`; "" is all machines."""
    listed = (
        [e for e in extensions if isinstance(e, str)]
        if isinstance(extensions, (list, tuple))
        else []
    )
    return {"", *listed} | ({HOST} if nonmatrix == HOST else set())


def owner_of(key: str) -> str:
    """The extension that a key belongs to, "a or b" if to several, or ""."""
    if key in NUMBERS:
        return str(NUMBERS[key]["of"])
    return UNITS.get(key.split(".")[1], "") if key.startswith("units.") else ""


def belongs(owner: str, features: set[str]) -> bool:
    """Whether a machine of these features has what is an owner's."""
    return not features.isdisjoint(owner.split(" or "))


def features_in(flat: Flat) -> set[str]:
    """Those of a description, which may lack what says them."""
    return features_of(*(flat[k].value if k in flat else "" for k in ("extensions", "nonmatrix")))


def relevant(flat: Flat) -> Flat:
    """Without what a base gave for extensions that the machine lacks."""
    features = features_in(flat)
    return {
        k: leaf for k, leaf in flat.items() if not leaf.inherited or belongs(owner_of(k), features)
    }


# --- checking: every problem, with the file and the key ------------------------------------------------------------------


def problems(flat: Flat, where: str) -> Iterator[IsaError]:
    """An E511 for every key that is missing, unknown or has no legal value."""
    for key in sorted(required(flat) - flat.keys()):
        yield IsaError("E511", f"{key} is missing", where=where, hint=_meaning(key))
    for key, leaf in flat.items():
        if reason := reason_of(key, leaf.value, flat):
            hint = did_you_mean(key, required(flat)) if reason == UNKNOWN else ""
            yield IsaError("E511", f"{key}: {reason}", where=leaf.where, hint=hint)


def required(flat: Flat) -> set[str]:
    """Keys that must be there: for every unit that is mentioned both its numbers."""
    features = features_in(flat)
    units = {*(u for u in UNITS if belongs(UNITS[u], features)), *unit_names(flat)}
    return {
        *TEXTS,
        *(key for key in NUMBERS if belongs(owner_of(key), features)),
        *(f"units.{u}.{k}" for u in units for k in ("latency", "interval")),
        *ENERGY_KEYS,
    }


def _meaning(key: str) -> str:
    return (
        str(NUMBERS[key]["doc"]) if key in NUMBERS else EVENTS.get(key.removeprefix("energy."), "")
    )


def reason_of(key: str, value: Any, flat: Flat) -> str:
    """What is wrong with one key, or ""."""
    if not belongs(owner := owner_of(key), features_in(flat)):
        return f"belongs to {owner}, which the machine lacks"
    if is_number(key):
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
        return tuple(some) if "systolic" in features_in(flat) else (none,)
    if UNIT_TEXT.fullmatch(key):
        return SCOPES if key.endswith("per") else tuple(unit_names(flat))
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
