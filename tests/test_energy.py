"""Energy: a table's rows say where they are from, and a launch's energy is what one would add up by hand."""

from __future__ import annotations

import re
from collections import Counter
from itertools import chain
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapper.isa import asm, generate
from knapper.isa.core import Instr
from knapper.isa.description import EVENTS, known_tables
from knapper.isa.errors import KnapperError
from knapper.isa.instructions import EXIT, SPWMMA
from knapper.isa.lines import Lines
from knapper.isa.machine import Machine
from knapper.isa.modifiers import Half
from knapper.isa.operands import Reg, Src
from knapper.isa.parameters import UNITS
from knapper.isa.program import Kernel
from knapper.isa.systolic import Array
from knapper.runtime import energy
from knapper.runtime.counters import Counts, counters
from knapper.runtime.decode import decode
from knapper.runtime.energy import COLUMN, NAMES, Rates, Usage, cost, offload
from knapper.runtime.session import Session

VOLTA, SMA = Machine.load("volta-4tc"), Machine.load("sma3")
HOROWITZ = VOLTA.energy
IDLE = Usage(cycles=0, active_sms=0, l2_sectors=0, dram_sectors=0)


def instr(text: str) -> Instr:
    """An instruction as assembly spells it."""
    return Lines().read(f"    {text}", {})


# --- tables -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", known_tables())
def test_a_row_that_is_derived_is_what_its_formula_gives(table):
    m = VOLTA.with_(energy=table)
    assert m.energy_table == table
    assert m.energy.keys() == EVENTS.keys()
    for event, value in m.energy.items():
        p = m.provenance[f"energy.{event}"]
        formula = re.match(r"[-(0-9][-0-9. ()×+/]*(?=:)", p.note)
        assert formula or p.kind == "assumed", (event, p)
        if formula:
            assert value == pytest.approx(eval(formula[0].replace("×", "*")), rel=0.01), event


def test_tables_differ_where_their_sources_do():
    aladdin, accelwattch = (VOLTA.with_(energy=t).energy for t in ("aladdin", "accelwattch"))
    assert aladdin["fp32_op"] > accelwattch["fp32_op"] > HOROWITZ["fp32_op"]
    assert aladdin["smem_read"] == HOROWITZ["smem_read"] > accelwattch["smem_read"]


def test_a_target_takes_a_table_by_name_by_file_or_row_by_row(tmp_path):
    def load(text):
        (tmp_path / "mine.toml").write_text(f'name = "mine"\nbase = "volta-4tc"\n{text}')
        return Machine.load(tmp_path / "mine.toml")

    table = known_tables()["aladdin"].read_text()
    (tmp_path / "own.toml").write_text(table.replace("14.56,", "15,"))
    assert load('energy = "aladdin"').energy == VOLTA.with_(energy="aladdin").energy
    assert load('energy = "own.toml"').energy["fp32_op"] == 15
    row = '[energy]\nfp32_op = { value = 2, provenance = "assumed", source = "me" }'
    assert load(row).energy == {**HOROWITZ, "fp32_op": 2}
    with pytest.raises(KnapperError, match=r"E510: .*unknown energy table 'aladin'.*did you mean"):
        load('energy = "aladin"')


def test_a_table_names_all_that_it_lacks_and_all_that_nobody_knows(tmp_path):
    lines = known_tables()["horowitz"].read_text().splitlines()
    mine = tmp_path / "mine.toml"
    mine.write_text('name = "mine"\nbase = "volta-4tc"\nenergy = "rows.toml"')

    def load(rows):
        (tmp_path / "rows.toml").write_text("\n".join(rows))
        return Machine.load(mine)

    with pytest.raises(KnapperError) as e:
        load(re.sub("^(l1|l2) ", r"new_\1 ", x) for x in lines)
    assert str(e.value).replace(f"{tmp_path}/", "").splitlines() == [
        "E511: rows.toml: no row for l1, l2",
        "E511: rows.toml: unknown event new_l1, new_l2",
    ]
    with pytest.raises(KnapperError) as e:
        load(
            x.replace("value = 1.15", "value = -1.15").replace("value = 0.05", 'value = "much"')
            for x in lines
        )
    assert "energy.int_op: expected picojoules from 0 on, got 'much'" in str(e.value)
    assert "energy.fp32_op: expected picojoules from 0 on, got -1.15" in str(e.value)
    with pytest.raises(KnapperError, match=r"energy\.issue: expected a source"):
        load(re.sub("^(issue.*)source = .* }", '\\1source = "" }', x) for x in lines)


@pytest.mark.parametrize("value", [-1, 10**400, float("inf"), float("nan"), True, "3", None])
def test_picojoules_are_finite_numbers_from_0_on(value):
    data = VOLTA.to_dict()
    data["energy"]["dram"]["value"] = value
    with pytest.raises(KnapperError, match=r"energy\.dram: expected picojoules from 0 on, got"):
        Machine.from_dict(data)


def test_an_image_needs_no_table():
    data = VOLTA.to_dict()
    data["energy"]["table"] = "gone"
    assert Machine.from_dict(data).energy == HOROWITZ


# --- a launch -----------------------------------------------------------------------------------------------------------------


def measured(
    code: list[str],
    rows: list[dict[str, int]],
    machine: Machine = VOLTA,
    usage: Usage = IDLE,
    roles: tuple[int, ...] = (),
) -> energy.Energy:
    """The energy of a kernel whose instructions were counted so."""
    roles = roles or (0,) * len(code)
    kernel = Kernel("k", Kernel.encode(map(instr, code)), roles, (32, 1, 1), registers=64)
    decoded = decode([kernel], machine.extensions)
    counted = counters(len(code))
    for n, row in enumerate(rows):
        for name, value in row.items():
            counted[name][n] = value
    nodes = [f"n{r}" for r in range(max(roles) + 1)]
    rates = Rates.of(machine, [kernel], decoded)
    return energy.energy(rates, kernel, nodes, Counts(counted, 0, 0), usage)


FFMA = "FFMA.F32 R4, R0, R1, R2"


def test_three_instructions_by_hand():
    rows = [
        {"executed": 10, "lanes": 300, "skipped": 2},
        {"executed": 10, "lanes": 320, "smem_read": 320 * 4},
        {"executed": 10, "lanes": 320},
    ]
    usage = Usage(cycles=100, active_sms=3, l2_sectors=7, dram_sectors=5)
    got = measured([FFMA, "LDS.32 R5, [UR0+R4+0]", "EXIT"], rows, usage=usage)
    e = HOROWITZ
    assert got.events == pytest.approx(
        {
            "issue": 30 * e["issue"],  # a warp that skips an instruction has issued it
            "rf_read": (3 * 300 + 320) * e["rf_read"],
            "rf_write": (300 + 320) * e["rf_write"],
            "fp32_op": 300 * e["fp32_op"],
            "int_op": 320 * e["int_op"],
            "smem_read": 320 * e["smem_read"],
            "l2": 7 * e["l2"],
            "dram": 5 * e["dram"],
            "static_sm": 0.300 * 3 * 100 / 1.53e9 * 1e12,
            "constant": 32.3 * 100 / 1.53e9 * 1e12,
        }
    )
    assert got.total == pytest.approx(sum(got.events.values()))
    assert got.by_node == {"n0": pytest.approx(got.total)}


def test_an_executed_program_by_hand():
    text = """\
.target volta-4tc
.arena 256
.input x f32[32] 0x10000000
.output y f32[32] 0x10000080

.kernel twice
.block 32 1 1
    ULDC.64 UR2, [0]
    LDG.32 R2, [UR2+RZ+0]
    FADD.F32 R3, R2, R2
    EXIT

.launch twice 2 1 1
.params 0x10000000
.node Double
"""
    p = asm.assemble(text)
    session = Session(p)
    done = session.run({"x": np.zeros(32, np.float32)}, engine="reference", timing=True)
    (launch,) = done.stats.launches
    rates = Rates.of(VOLTA, list(p.kernels.values()), session.decoded)
    got = energy.energy(rates, launch.kernel, launch.launch.nodes, launch.counts, IDLE)
    e = HOROWITZ
    assert got.events == pytest.approx(
        {
            "issue": 2 * 4 * e["issue"],
            "int_op": (2 + 64) * e["int_op"],  # ULDC once a warp, the load's address in each lane
            "fp32_op": 64 * e["fp32_op"],
            "rf_read": 2 * 64 * e["rf_read"],  # RZ is no register
            "rf_write": 2 * 64 * e["rf_write"],
            "l1": 2 * e["l1"],  # all lanes want one word
        }
    )


def test_an_instruction_that_is_skipped_costs_its_issue_once():
    code = """\
.target volta-4tc
.arena 256
.input x f32[32] 0x10000000
.output y f32[32] 0x10000080

.kernel skips
.block 32 1 1
    ISETP.LT.S32 P0, RZ, 0
    @P0 FADD.F32 R3, RZ, RZ
    EXIT

.launch skips 2 1 1
.node Nothing
"""
    session = Session(asm.assemble(code))
    x = {"x": np.zeros(32, np.float32)}
    for engine in ("reference", "fast"):
        (launch,) = session.run(x, engine=engine, timing=True).stats.launches
        assert launch.counts.instructions["executed"].tolist() == [2, 2, 2]
        assert launch.counts.instructions["skipped"].tolist() == [0, 2, 0]
        assert launch.measured is not None
        assert launch.measured.energy.events["issue"] == 2 * 3 * HOROWITZ["issue"]
        assert "fp32_op" not in launch.measured.energy.events


def test_nodes_get_what_they_caused():
    rows = [
        {"executed": 3, "lanes": 96, "sectors": 12},
        {"executed": 1, "lanes": 32, "sectors": 4},
    ]
    usage = Usage(cycles=10, active_sms=1, l2_sectors=8, dram_sectors=4, node_cycles=(1, 4))
    got = measured([FFMA, FFMA], rows, usage=usage, roles=(0, 1))
    assert got.counts[:, COLUMN["fp32_op"]].tolist() == [96, 32]
    assert got.counts[:, COLUMN["l2"]].tolist() == [6, 2]
    assert got.counts[:, COLUMN["dram"]].tolist() == [3, 1]
    assert got.counts[:, COLUMN["constant"]].tolist() == [2, 8]
    both = got + got
    assert both.total == pytest.approx(2 * got.total)
    assert both.by_node == pytest.approx({n: 2 * pj for n, pj in got.by_node.items()})


def test_the_same_events_at_other_prices():
    got = measured([FFMA], [{"executed": 1, "lanes": 32}])
    other = VOLTA.with_(energy="aladdin")
    assert got.priced(other).events["fp32_op"] == pytest.approx(32 * 14.56)
    assert got.priced(VOLTA.with_(**{"energy.fp32_op": 2.3})).events["fp32_op"] == 32 * 2.3
    hot = VOLTA.with_(constant_milliwatts=64600)
    idle = measured([FFMA], [{}], usage=Usage(50, 0, 0, 0))
    assert idle.priced(hot).total == pytest.approx(2 * idle.total)


def test_static_power_costs_by_time_and_not_by_clock():
    usage = Usage(cycles=1000, active_sms=80, l2_sectors=0, dram_sectors=0)
    slow = VOLTA.with_(clock_hz=VOLTA.clock_hz // 2)
    fast, half = (measured([FFMA], [{}], m, usage) for m in (VOLTA, slow))
    assert half.total == pytest.approx(2 * fast.total)


def test_a_host_costs_its_operations_and_the_link():
    got = offload(VOLTA, "nms", 1000, 64)
    assert got.by_node == {"nms": 1000 * HOROWITZ["host_flop"] + 64 * HOROWITZ["link_byte"]}
    assert got.components["host"] == got.total


# --- matrix products ------------------------------------------------------------------------------------------------------------


def register_bytes(text: str, machine: Machine) -> float:
    """Bytes to and from the register file for each multiply-accumulate."""
    events = cost(instr(text), machine).issue
    macs = sum(n for name, n in events.items() if name.startswith("fma"))
    return 4 * (events.get("rf_read", 0) + events.get("rf_write", 0)) / macs


def lsma(units: int = 3, m: int = 64, kind: str = "F16.ADD.REG", c: str = "R0") -> str:
    return f"LSMA.{kind} {c}, {units}, {m}, [UR0+0], 32"


def test_a_tensor_core_moves_2_5_bytes_a_mac_and_a_systolic_unit_1():
    assert register_bytes("HMMA.161616.F32.F16 R8, R0, R4, R8", VOLTA) == 2.5
    assert register_bytes("HMMA.161616.F32.F16 R8, R0, R4, RZ", VOLTA) == 1.5  # no C to read
    assert register_bytes("HMMA.161616.F16 R8, R0, R4, R8", VOLTA) == 1.5  # C and D are half
    assert register_bytes(lsma(), SMA) == 1.0


PRODUCT = """\
.target {target}
.arena 256
.input x f32[32] 0x10000000
.output y f32[32] 0x10000080

.kernel product
.block 32 1 1
.shared 4096
{code}
    EXIT

.launch product 4 1 1
.node Gemm
"""
SYSTOLIC = """\
    MODE.SYSTOLIC
    SMA.LDB.F16 2, [URZ+2048], 64
    SMA.SWAP 2
    LSMA.F16.ADD.REG R0, 2, 64, [URZ+0], 16
    SMA.COMMIT
    SMA.WAIT 0
    MODE.SIMD"""


def executed(target: str, code: str) -> dict[str, float]:
    """Events of a program that the reference engine ran, registers and shared memory full of zeros."""
    fill = "\n".join(f"    MOV R{r}, 0" for r in range(64))
    rows = "    S2R.TID_X R64\n    SHF.L.U32 R64, R64, 4\n" + "\n".join(
        f"    STS.128 [URZ+R64+{n}], R0" for n in range(0, 4096, 512)
    )
    p = asm.assemble(PRODUCT.format(target=target, code=f"{fill}\n{rows}\n    BAR 0\n{code}"))
    m = Machine.from_dict(p.target)
    session = Session(p)
    done = session.run({"x": np.zeros(32, np.float32)}, engine="reference", timing=True)
    (launch,) = done.stats.launches
    rates = Rates.of(m, list(p.kernels.values()), session.decoded)
    got = energy.energy(rates, launch.kernel, launch.launch.nodes, launch.counts, IDLE)
    return dict(zip(NAMES, got.counts.sum(axis=0).tolist(), strict=True))


def bytes_a_mac(target: str, code: str) -> tuple[float, float]:
    """(register file, shared memory read) of some code that is executed, without what prepares it."""
    with_, without = executed(target, code), executed(target, "")
    more = {name: with_[name] - without[name] for name in NAMES}
    macs = more["fma16_tensor"] + more["fma16_systolic"]
    return 4 * (more["rf_read"] + more["rf_write"]) / macs, 4 * more["smem_read"] / macs


def test_executed_products_move_2_5_and_1_0_bytes_of_registers_a_mac():
    assert bytes_a_mac("volta-4tc", "    HMMA.161616.F32.F16 R16, R0, R4, R16") == (2.5, 0)
    registers, shared = bytes_a_mac("sma2", SYSTOLIC)
    a, b, macs = 64 * 8 * 2, 8 * 32 * 2, 64 * 8 * 32
    assert registers == 1.0
    assert shared == (a + b) / macs  # both units share A; one alone would take 0.125 bytes a MAC


def test_an_lsma_by_hand():
    words, macs = 64 * 48, 64 * 48 * 8
    events = {
        "fma16_systolic": macs,
        "rf_read": words,
        "rf_write": words,
        "pe_hop": macs,
        "a_broadcast": 3 * 64 * 8 / 2,  # two elements of A a word, past three units
    }
    assert events_of(lsma(), SMA) == events
    assert events_of(lsma(kind="F16.SET.REG"), SMA) == {**events, "rf_read": 0}
    in_fp32 = events_of(lsma(units=2, kind="F32.ADD.REG"), SMA)
    assert in_fp32["fma32_systolic"] == 64 * 8 * 16
    assert in_fp32["a_broadcast"] == 2 * 64 * 8  # words, along as long a wire


def test_a_dataflow_shows_in_what_moves():
    macs, words = 64 * 48 * 8, 64 * 48
    handed = events_of(lsma(), Machine.load("sma3-ws"))
    assert handed["pe_hop"] == macs + macs / 2  # sums down, 16-bit A along
    assert handed["smem_read"] == handed["smem_write"] == words
    assert "a_broadcast" not in handed
    still = events_of(lsma(1, 64, "F16.ADD.ACC", "0x0"), Machine.load("systolic-os"))
    assert still["pe_hop"] == 64 * 16 * 16  # 16-bit A along and B down
    assert still["accumulator"] == 2 * 64 * 16
    assert "rf_read" not in still


def test_weights_and_accumulators_cost_too():
    assert events_of("SMA.LDB.F16 3, [UR0+0], 96", SMA) == {"pe_hop": 8 * 48 / 2}
    assert cost(instr("ACC.LD 4, R0, [UR0+0]"), SMA).lane == {
        "accumulator": 4,
        "rf_write": 4,
        "rf_read": 0,
    }


def events_of(text: str, machine: Machine) -> dict[str, float]:
    """Events of one issue."""
    return dict(cost(instr(text), machine).issue)


# --- everything has a price, and arrays agree with a loop ---------------------------------------------------------------------------


def test_every_event_is_in_one_component_and_every_unit_has_one_price():
    assert Counter(chain(*energy.COMPONENTS.values())) == Counter(NAMES)
    priced = [*energy.LANE_EVENT, *energy.WARP_EVENT, *energy.ISSUE_ONLY, *energy.TENSOR]
    assert Counter(priced) == Counter(UNITS.keys())


def test_products_of_condensed_vectors_cost_what_is_multiplied():
    """1,000 products in two SPWMMAs: each one multiply-accumulate, a sum read and one written."""
    m = Machine.load("dstc")
    at = {"type": Half.F16, "c": Src.of(0), "start": Reg(2), "bm": Reg(4)}
    code = [SPWMMA(**at), EXIT()]
    k = Kernel("k", Kernel.encode(code), (0, 0), (32, 1, 1), 8, accumulators=1024)
    counted = counters(2)
    counted["executed"], counted["lanes"], counted["products"] = 2, 64, (1000, 0)
    rates = Rates.of(m, [k], decode([k], m.extensions, Array.of(m.to_dict())))
    got = energy.energy(rates, k, ["node"], Counts(counted, 0, 0), IDLE)
    events = dict(zip(NAMES, got.counts.sum(axis=0).tolist(), strict=True))
    expected = {"fma16_tensor": 1000, "accumulator": 2000, "rf_read": 3 * 64, "issue": 4, "bitmap_op": 2 * 17 * 32}  # fmt: skip
    assert {name: n for name, n in events.items() if n} == expected
    assert {"fma16_tensor", "accumulator", "bitmap_op"} <= {*energy.COMPONENTS["matrix"]}


@given(st.integers(0, 2**32))
def test_arrays_agree_with_a_loop_over_instructions(seed):
    rng = Random(seed)
    m = Machine.load("volta-8tc")
    p = generate.program(rng, kernels=2, length=40)
    kernels = list(p.kernels.values())
    rates = Rates.of(m, kernels, decode(kernels, m.extensions))
    for kernel in kernels:
        counted = counters(len(kernel.code))
        for name in ("executed", "lanes", "skipped"):
            counted[name] = [rng.randrange(99) for _ in kernel.code]
        nodes = [f"n{r}" for r in range(max(kernel.roles, default=0) + 1)]
        got = energy.energy(rates, kernel, nodes, Counts(counted, 0, 0), IDLE)
        by_hand = np.zeros(len(NAMES))
        for i, row in zip(kernel.code, counted, strict=True):
            c = cost(i, m)
            by_hand[COLUMN["issue"]] += row["executed"]
            for events, times in ((c.issue, row["executed"]), (c.lane, row["lanes"])):
                for name, n in events.items():
                    by_hand[COLUMN[name]] += n * int(times)
        assert np.allclose(got.counts.sum(axis=0), by_hand)
