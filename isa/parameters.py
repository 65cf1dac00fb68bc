"""What a machine is described by: its numbers, each declared once with its meaning and range; its units; where a number may be from.

`machine.py` builds machines of them, `legal.py` says what is wrong with a description.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .description import ENERGY_KEYS, Flat

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
    """A field that the TOML file must give, with its meaning and its legal values.

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


@dataclass(frozen=True, eq=False, kw_only=True)
class Numbers:
    """Every number of a machine but those of its units and its energy table; 0 for what belongs to an extension that it lacks."""

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


NUMBERS: dict[str, dict[str, Any]] = {
    f.name: dict(f.metadata) for f in dataclasses.fields(Numbers) if "doc" in f.metadata
}
TEXTS = ("name", "extensions", *CHOICES, "energy.table")
UNIT_NUMBER = re.compile(r"units\.[A-Za-z_]\w*\.(latency|interval)", re.ASCII)
UNIT_TEXT = re.compile(r"units\.[A-Za-z_]\w*\.(per|port)", re.ASCII)


def is_number(key: str) -> bool:
    """Whether the key's value is a number with a provenance."""
    return key in NUMBERS or key in ENERGY_KEYS or UNIT_NUMBER.fullmatch(key) is not None


def unit_names(flat: Flat) -> list[str]:
    """Units that some number is given of."""
    return list(dict.fromkeys(key.split(".")[1] for key in flat if UNIT_NUMBER.fullmatch(key)))


def unit_of(name: str, flat: Flat) -> Unit:
    """The unit of that name."""
    latency, interval = (flat[f"units.{name}.{k}"].value["value"] for k in ("latency", "interval"))
    per, port = flat.get(f"units.{name}.per"), flat.get(f"units.{name}.port")
    return Unit(latency, interval, per.value if per else "subcore", port.value if port else name)


def provenance_of(value: Mapping[str, Any]) -> Provenance:
    """Where a number's table says that it is from."""
    return Provenance(value["provenance"], value.get("note", value.get("source", "")))
