"""A machine description is a file whose every number says where it is from, and whose mistakes are told all at once."""

import json
import re
from random import Random

import pytest

from knapper.isa import description, machine
from knapper.isa.core import TABLE
from knapper.isa.errors import IsaError, KnapperError
from knapper.isa.generate import instruction
from knapper.isa.machine import Machine
from knapper.isa.parameters import CYCLES, NUMBERS, PROVENANCES, Unit

TARGETS = {name: Machine.load(name) for name in machine.known()}
VOLTA = TARGETS["volta-8tc"]
OWN = 'name = "mine"\nbase = "volta-8tc"\n'


@pytest.fixture
def mine(tmp_path):
    """Loads a file with this text."""

    def load(text, name="mine.toml"):
        (tmp_path / name).write_text(text)
        return Machine.load(tmp_path / name)

    return load


def test_volta_8tc_is_the_machine_of_the_papers():
    assert (VOLTA.sms, VOLTA.subcores, VOLTA.tensor_units, VOLTA.warps_per_sm) == (80, 4, 8, 64)
    assert VOLTA.shared_bytes_per_sm == 96 * 1024
    assert VOLTA.units["tensor"] == Unit(latency=54, interval=40, port="tensor")
    assert VOLTA.units["tensor_f16"] == Unit(latency=64, interval=40, port="tensor")
    assert VOLTA.units["lsu_shared"] == Unit(23, 1, per="sm", port="lsu_shared")
    assert VOLTA.extensions == ("base", "tensor", "conv", "custom")


@pytest.mark.parametrize("m", TARGETS.values(), ids=TARGETS.keys())
def test_every_number_says_where_it_is_from(m):
    numbers = {
        *(key for key in NUMBERS if key in m.to_dict()),
        *(f"units.{u}.{k}" for u in m.units for k in ("latency", "interval")),
        *(f"energy.{event}" for event in m.energy),
    }
    assert m.provenance.keys() == numbers
    for key, p in m.provenance.items():
        assert p.kind in PROVENANCES, key
        assert p.note or p.kind == "assumed", f"{key} is {p.kind}: by whom?"
    assert sum(m.provenances.values()) == len(numbers)
    assert m.assumed == m.provenances["assumed"] > 0


def test_every_instruction_has_its_unit_in_every_machine_with_its_extension():
    for cls in TABLE.values():
        rng = Random(cls.mnemonic)
        units = {instruction(rng, [cls]).resource() for _ in range(20)}
        able = [m for m in TARGETS.values() if cls.extension in m.extensions]
        assert able, cls.mnemonic
        for m in able:
            assert units <= m.units.keys(), (m.name, cls.mnemonic)


@pytest.mark.parametrize("m", TARGETS.values(), ids=TARGETS.keys())
def test_plain_data_and_back(m):
    data = m.to_dict()
    assert Machine.from_dict(data) == m
    assert Machine.from_dict(json.loads(json.dumps(data))).hash == m.hash
    assert Machine.from_dict(data).to_dict() == data
    assert re.fullmatch("[0-9a-f]{64}", m.hash)


def test_no_two_targets_are_the_same_machine():
    assert len({m.hash for m in TARGETS.values()}) == len(TARGETS)
    assert all(name == m.name for name, m in TARGETS.items())


def test_a_file_writes_only_what_differs(mine):
    m = mine(
        OWN
        + 'sms = { value = 40, provenance = "fitted" }\n[units.fma]\nlatency = { value = 9, provenance = "assumed" }'
    )
    assert (m.name, m.sms, m.units["fma"], m.clock_hz) == (
        "mine",
        40,
        Unit(9, 2, port="fma"),
        VOLTA.clock_hz,
    )
    assert m.provenance["sms"].kind == "fitted"
    assert m != VOLTA
    assert m.hash != VOLTA.hash


def test_a_base_may_be_a_file_beside(mine):
    mine(OWN + 'sms = { value = 40, provenance = "assumed" }')
    m = mine(
        'name = "its-child"\nbase = "mine.toml"\nsubcores = { value = 2, provenance = "assumed" }',
        "child.toml",
    )
    assert (m.name, m.sms, m.subcores, m.l2_bytes) == ("its-child", 40, 2, VOLTA.l2_bytes)


def test_a_number_of_an_extension_is_there_exactly_if_the_extension_is(mine):
    sma = TARGETS["sma3"]
    assert (sma.tensor_units, sma.systolic_units, sma.array_rows) == (0, 3, 8)
    assert {"tensor", "tensor_f16"} & sma.units.keys() == set()
    assert {"systolic", "mode"} <= sma.units.keys()
    assert VOLTA.systolic_units == VOLTA.array_rows == VOLTA.host_clock_hz == 0
    assert "systolic" not in VOLTA.units
    assert TARGETS["systolic-host"].host_clock_hz > 0
    with pytest.raises(KnapperError) as e:
        mine(OWN + 'extensions = ["base", "systolic"]\ndataflow = "ws"')
    assert "systolic_units is missing (hint: systolic units an SM)" in str(e.value)
    assert "units.mode.latency is missing" in str(e.value)
    number = '{ value = 1, provenance = "assumed" }'
    with pytest.raises(
        IsaError, match="systolic_units: belongs to systolic, which the machine lacks"
    ):
        mine(OWN + f"systolic_units = {number}")
    with pytest.raises(IsaError, match="link_bytes_per_second: belongs to host, which the machine"):
        mine(OWN + f"link_bytes_per_second = {number}")


def test_accumulator_memory_belongs_to_two_extensions(mine):
    dstc = TARGETS["dstc"]
    assert (dstc.accumulator_bytes, dstc.collector_window, dstc.array_rows) == (32 << 10, 0, 0)
    assert {"outer", "bitmap", "systolic"} <= dstc.units.keys()
    assert dstc.units["tensor"] == VOLTA.units["tensor"], "the baseline's issue pitch"
    assert {dstc.provenance[k].kind for k in ("collector_window", "bohmma_percent")} == {"fitted"}
    number = 'accumulator_bytes = { value = 1, provenance = "assumed" }'
    with pytest.raises(IsaError, match="accumulator_bytes: belongs to systolic or sparse, which"):
        mine(OWN + number)


def test_a_dataflow_needs_something_that_flows(mine):
    with pytest.raises(IsaError, match="dataflow: expected none, got 'ws'"):
        mine(OWN + 'dataflow = "ws"')
    with pytest.raises(IsaError, match="dataflow: expected sbws or ws or os, got 'none'"):
        mine('name = "mine"\nbase = "sma2"\ndataflow = "none"')


def test_two_units_may_share_a_port(mine):
    assert VOLTA.units["tensor_f16"].port == VOLTA.units["tensor"].port == "tensor"
    assert mine(OWN + 'units.imul.port = "alu"').units["imul"].port == "alu"
    with pytest.raises(IsaError, match=r"units\.imul\.port: expected .*fma.*, got 'aluu'"):
        mine(OWN + 'units.imul.port = "aluu"')


# --- other numbers: what sweeps are made of ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["volta-4tc", "sma3", "systolic-host", "dstc"])
@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_every_number_can_be_swept(name, factor):
    m = TARGETS[name]
    flat = {key: leaf.value for key, leaf in description.flatten(m.to_dict(), "").items()}
    for key, p in m.provenance.items():
        value = flat[key]["value"] * factor
        if not key.startswith("energy."):
            bounds = NUMBERS.get(key, {"least": 1, "most": CYCLES})
            value = min(max(round(value), bounds["least"]), bounds["most"])
        swept = m.with_(**{key: value})
        assert swept.provenance.keys() == m.provenance.keys()
        assert swept.provenance[key].kind == "assumed"
        assert p.note in swept.provenance[key].note
        assert Machine.from_dict(swept.to_dict()) == swept
        assert (value == flat[key]["value"]) or swept.to_dict() != m.to_dict()


def test_with_changes_numbers_and_texts_by_flat_key():
    m = VOLTA.with_(sms=40, **{"units.fma.latency": 5, "units.imul.port": "alu"})
    assert (m.sms, m.units["fma"].latency, m.units["imul"].port) == (40, 5, "alu")
    assert m.provenance["sms"].note == "instead of 80, published: V100; GPGPU-Sim QV100"
    assert VOLTA.sms == 80
    assert m.with_(sms=80).sms == 80
    ablation = TARGETS["sma3"].with_(dataflow="ws")
    assert ablation.to_dict() | {"name": ""} == TARGETS["sma3-ws"].to_dict() | {"name": ""}
    plain = VOLTA.with_(extensions=["base"])
    assert (plain.tensor_units, plain.units.keys() & {"tensor"}) == (0, set())


def test_with_refuses_what_a_file_could_not_say():
    with pytest.raises(KnapperError) as e:
        VOLTA.with_(smz=1, sms=0, dataflow="ws", **{"units.fma.latency": 2.5})
    assert sorted(str(e.value).splitlines()) == [
        "E511: volta-8tc with_: dataflow: expected none, got 'ws'",
        "E511: volta-8tc with_: sms: expected a whole number from 1 on, got 0",
        "E511: volta-8tc with_: smz: unknown key (hint: did you mean sms?)",
        "E511: volta-8tc with_: units.fma.latency: expected a whole number from 1 to 1073741824, got 2.5",
    ]
    with pytest.raises(IsaError, match="unknown energy table 'nuclear'"):
        VOLTA.with_(energy="nuclear")


@pytest.mark.parametrize(
    "key", ["accumulator_bytes", "lsma_queue", "dram_latency", "units.systolic.latency"]
)
def test_what_no_host_could_model_is_refused(key):
    """Memory and queues that are allocated as they are, waits behind the end of the model's time."""
    with pytest.raises(
        IsaError, match=rf"E511: .*: {key}: expected a whole number from \d to \d+,"
    ):
        TARGETS["tpu-v2"].with_(**{key: 1 << 40})


def test_a_unit_of_ones_own_needs_both_numbers(mine):
    m = mine(
        OWN
        + 'units.ant.latency = { value = 3, provenance = "assumed" }\nunits.ant.interval = { value = 1, provenance = "assumed" }'
    )
    assert m.units["ant"] == Unit(3, 1, port="ant")
    with pytest.raises(IsaError, match=r"mine\.toml: units\.ant\.interval is missing"):
        mine(OWN + 'units.ant.latency = { value = 3, provenance = "assumed" }')


def test_all_problems_are_told_at_once_with_file_and_key(mine, tmp_path):
    text = """
        base = "volta-8tc"
        smz = { value = 3, provenance = "assumed" }
        sms = 3
        clock_hz = { value = 2 }
        l2_bytes = { value = -2, provenance = "assumed" }
        l2_latency = { value = true, provenance = "assumed" }
        dram_latency = { value = 4.5, provenance = "assumed" }
        subcores = { value = 4, provenance = "guessed" }
        shared_banks = { value = 4, provenance = "assumed", by = "me" }
        extensions = ["base", "warp"]
        nonmatrix = "magic"
        units.alu = 3
        units.fma.latensy = { value = 3, provenance = "assumed" }
        units.sfu.per = "chip"
    """
    with pytest.raises(KnapperError) as e:
        mine(text)
    told = str(e.value).replace(f"{tmp_path}/", "").splitlines()
    assert len(told) == 14
    assert {*told} == {
        "E511: mine.toml: name is missing",
        "E511: mine.toml: smz: unknown key (hint: did you mean sms?)",
        "E511: mine.toml: sms: expected { value = …, provenance = … }, got 3",
        "E511: mine.toml: clock_hz: expected a provenance (published, silicon, derived, recalled, assumed, fitted), got None",
        "E511: mine.toml: l2_bytes: expected a whole number from 0 on, got -2",
        "E511: mine.toml: l2_latency: expected a whole number from 1 to 1073741824, got True",
        "E511: mine.toml: dram_latency: expected a whole number from 1 to 1073741824, got 4.5",
        "E511: mine.toml: subcores: expected a provenance (published, silicon, derived, recalled, assumed, fitted), got 'guessed'",
        "E511: mine.toml: shared_banks: expected value, provenance and note, got 'by'",
        "E511: mine.toml: extensions: expected some of base, async, tensor, systolic, sparse, sparse24, conv, gather, types, fusion, dual, custom, got 'warp'",  # noqa: E501
        "E511: mine.toml: nonmatrix: expected simt or vector or host, got 'magic'",
        "E511: mine.toml: units.alu: expected a table with latency and interval",
        "E511: mine.toml: units.fma.latensy: unknown key (hint: did you mean units.fma.latency?)",
        "E511: mine.toml: units.sfu.per: expected subcore or sm, got 'chip'",
    }


def test_a_missing_number_says_what_it_would_mean():
    data = VOLTA.to_dict()
    del data["launch_cycles"], data["units"]["fp64"]
    with pytest.raises(KnapperError) as e:
        Machine.from_dict(data, "net.elf")
    assert str(e.value).splitlines() == [
        "E511: net.elf: launch_cycles is missing (hint: cycles from one kernel launch to its first instruction)",
        "E511: net.elf: units.fp64.interval is missing",
        "E511: net.elf: units.fp64.latency is missing",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "volta-8t",
            r"E510: unknown target 'volta-8t': expected .*volta-8tc.*, or a file .* \(hint: did you mean volta-8tc\?\)",
        ),
        (
            "./nowhere.toml",
            r"E510: \./nowhere\.toml|E510: nowhere\.toml: cannot read the file: No such file",
        ),
        ("volta-8tc.toml/x.toml", r"E510: .*cannot read the file"),
    ],
)
def test_an_unknown_target_is_told_with_the_known_ones(name, message):
    with pytest.raises(IsaError, match=message):
        Machine.load(name)


@pytest.mark.parametrize("text", ["name = ", "\xff", "[" * 10_000, "a = 1\na = 2"])
def test_what_is_no_toml_is_told(tmp_path, text):
    (tmp_path / "x.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(IsaError, match=r"E512: .*x\.toml: not TOML"):
        Machine.load(tmp_path / "x.toml")


def test_bases_in_a_circle_are_told(mine):
    with pytest.raises(IsaError, match=r"a\.toml: cannot read"):
        mine('name = "b"\nbase = "a.toml"', "b.toml")
    with pytest.raises(
        IsaError, match=r"E512: .*a\.toml → .*b\.toml → .*a\.toml: its bases form a circle"
    ):
        mine('name = "a"\nbase = "b.toml"', "a.toml")
    with pytest.raises(IsaError, match="base: expected a target's name or file, got 3"):
        mine('name = "a"\nbase = 3', "a.toml")


def test_a_plugin_registers_a_directory_of_targets_and_tables(tmp_path, monkeypatch):
    for name in ("TARGETS", "TABLES"):
        monkeypatch.setattr(description, name, list(getattr(description, name)))
    (tmp_path / "energy").mkdir()
    table = (description.TABLES[0] / "horowitz.toml").read_text()
    (tmp_path / "energy" / "own.toml").write_text(
        re.sub("issue = .*value = 4.0", "issue = { value = 5", table)
    )
    (tmp_path / "toy.toml").write_text('name = "toy"\nbase = "volta-8tc"\nenergy = "own"')
    machine.register(tmp_path)
    machine.register(tmp_path)
    assert description.TARGETS.count(tmp_path) == 1
    assert machine.known()["toy"] == tmp_path / "toy.toml"
    toy = Machine.load("toy")
    assert (toy.name, toy.energy_table, toy.energy["issue"]) == ("toy", "own", 5)


def test_a_file_that_does_not_end_in_toml_is_told_so(tmp_path):
    (tmp_path / "mine").write_text('base = "volta-8tc"')
    with pytest.raises(
        IsaError, match=r"E510: unknown target .*mine is a file: give it a name that ends in \.toml"
    ):
        Machine.load(str(tmp_path / "mine"))
