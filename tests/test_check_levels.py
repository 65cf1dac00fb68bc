"""`knapper check` names what is wrong: a pass, a node's reference, a kernel, an instruction of the emulator, each broken on purpose.

Every reproducer is read back, and shows the same with the command that was printed with it.
"""

from __future__ import annotations

import ctypes
import json
import random
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import random_models
from onnx import TensorProto, helper, numpy_helper
from random_programs import Writer, numbers
from shop import SHAPE, Knapper

from knapper.compiler import driver, text
from knapper.compiler.ir import OPS, Graph, evaluate
from knapper.compiler.passes import PASSES, Pass
from knapper.compiler.pipeline import PRESETS
from knapper.compiler.plan import Plan
from knapper.frontends.checking.search import check, first_divergence
from knapper.frontends.checking.subject import REFERENCE, Subject, Way
from knapper.frontends.onnx import read
from knapper.isa import instructions as i
from knapper.isa.core import Instr
from knapper.isa.machine import Machine
from knapper.isa.program import BASE, Kernel, Program
from knapper.runtime.fast.engine import FastEngine
from knapper.runtime.fast.layout import STATE
from knapper.runtime.lockstep import HANDLER, Lockstep
from knapper.runtime.memory import Memory
from knapper.runtime.session import Session

CHECK = ("check", "SHOP/small.onnx", *SHAPE)
Told = dict[str, Any]


def first(run: Knapper, *words: str) -> tuple[Told, str]:
    """What `check --json` says is the first to go wrong, and what it logs."""
    code, out, err = run(*CHECK, "--json", "--reproducer", "fault.ir", *words)
    assert code == 1, err
    assert "Traceback" not in err
    return json.loads(out)["first"], err


def again(run: Knapper, log: str) -> tuple[Told, Graph]:
    """What the printed command says of the reproducer, and the reproducer."""
    (command,) = re.findall(r"^  (knapper check .*)$", log, re.MULTILINE)
    code, out, err = run(*shlex.split(command)[1:], "--json")
    assert code == 1, err
    return json.loads(out)["first"], text.load("fault.ir")


# --- a pass -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Forgets(Pass):
    """Forgets which half of the numbers Relu keeps."""

    name = "forgets"

    def run(self, g: Graph) -> Graph:
        return g.with_(nodes=tuple(n.with_(op="Neg") if n.op == "Relu" else n for n in g.nodes))


def test_a_broken_pass_is_named(run: Knapper, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PASSES, "forgets", Forgets)
    broken = PRESETS["fp32"].replace("fold,dead,simplify", "fold,forgets,dead,simplify", 1)
    told, log = first(run, "--pipeline", broken)
    assert (told["level"], told["pass"], told["node"], told["op"]) == ("pass", "forgets", "relu", "Relu")  # fmt: skip
    repeated, graph = again(run, log)
    assert (repeated["level"], repeated["pass"]) == ("pass", "forgets")
    assert [n.op for n in graph.nodes] == ["Relu"]
    assert sum(t.count for t in graph.inputs.values()) < 16


# --- the import ---------------------------------------------------------------------------------------------------------


def test_a_broken_reference_is_named(run: Knapper, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the op says of itself is not what ONNX says: no compiled level can be blamed."""
    monkeypatch.setitem(OPS["GlobalAveragePool"].facets, "reference", lambda x: x.max((2, 3), keepdims=True))  # fmt: skip
    code, out, err = run(*CHECK, "--json", "--levels", "--reproducer", "fault.ir")
    assert code == 1, err
    told = json.loads(out)["first"]
    assert (told["level"], told["node"], told["op"]) == ("import", "gap", "GlobalAveragePool")
    repeated, graph = again_expected(run, err)
    assert (repeated["level"], repeated["op"]) == ("import", "GlobalAveragePool")
    assert sorted(graph.outputs) == ["g", "g#expected"]


def again_expected(run: Knapper, log: str) -> tuple[Told, Graph]:
    """Of a reproducer that compiles to what is right: only its levels show it."""
    (command,) = re.findall(r"^  (knapper check .*)$", log, re.MULTILINE)
    assert "--levels" in command
    return again(run, log)


# --- a kernel -----------------------------------------------------------------------------------------------------------


def patched(change: Callable[[Instr], Instr | None]) -> Callable[..., Program]:
    """`assemble`, with the first instruction of each kernel that `change` takes another one."""
    real = driver.assemble

    def assemble(plan: Plan, made: Any, meta: Any) -> Program:
        program = real(plan, made, meta)
        kernels = {n: replace(k, words=Kernel.encode(other(k.code))) for n, k in program.kernels.items()}  # fmt: skip
        return replace(program, kernels=kernels)

    def other(code: tuple[Instr, ...]) -> list[Instr]:
        at = next((n for n, x in enumerate(code) if change(x)), None)
        return [change(x) or x if n == at else x for n, x in enumerate(code)]

    return assemble


def test_a_broken_kernel_is_named(run: Knapper, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Relu that adds 0: both engines run what they are given, so the instruction is the one that stores what is wrong."""

    def added(x: Instr) -> Instr | None:
        return i.FADD(x.type, x.d, x.a, x.b, guard=x.guard) if isinstance(x, i.FMNMX) else None

    monkeypatch.setattr(driver, "assemble", patched(added))
    told, log = first(run)
    assert (told["level"], told["node"], told["op"], told["launch"]) == ("program", "relu", "Relu", "conv_1")  # fmt: skip
    assert "STG" in told["instruction"]
    assert "both engines agree" in told["text"]
    repeated, graph = again(run, log)
    assert (repeated["level"], repeated["node"]) == ("program", "relu")
    assert {n.op for n in graph.nodes} <= {"Conv", "Relu", "Cast"}


def test_a_broken_memory_plan_is_named(run: Knapper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two values in one place, of which the first is still to be read."""
    real = Plan.build

    def build(graph: Graph, machine: Any, steps: Any) -> Plan:
        plan = real(graph, machine, steps)
        row = replace(plan.buffers["row.f16"], offset=plan.buffers["g.f16"].offset)
        return replace(plan, buffers={**plan.buffers, "row.f16": row})

    monkeypatch.setattr(Plan, "build", staticmethod(build))
    code, out, err = run(*CHECK, "--json")
    assert code == 1, err
    told = json.loads(out)["first"]
    assert (told["level"], told["launch"]) == ("memory", "add_4")
    assert "launch gather_3 has written over %mean" in told["text"]


# --- the emulator -------------------------------------------------------------------------------------------------------


def flipping(mnemonic: str, lane: int, bit: int, kept: list[Any]) -> Callable[..., Any]:
    """`FastEngine._link`, whose handler of the first such instruction of a kernel flips a bit of what it has written."""
    real = FastEngine._link

    def link(self: FastEngine, notice: Any) -> Any:
        entry = real(self, notice)
        for name, records in self.code.items():
            code = self.program.kernels[name].code
            at = next((n for n, x in enumerate(code) if x.mnemonic == mnemonic), None)
            if at is not None:
                kept.append(handler(int(records["handler"][at]), 128 * int(code[at].d) + 4 * lane))  # type: ignore[attr-defined]
                records["handler"][at] = ctypes.cast(kept[-1], ctypes.c_void_p).value
        return entry

    def handler(address: int, offset: int) -> Any:
        own = HANDLER(address)

        def broken(state: int, record: int, mask: int) -> int:
            status: int = own(state, record, mask)
            regs = ctypes.c_uint64.from_address(state + STATE.fields["regs"][1]).value  # type: ignore[index]
            ctypes.c_uint32.from_address(regs + offset).value ^= 1 << bit
            return status

        return HANDLER(broken)

    return link


def test_a_broken_emulator_is_named(run: Knapper, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(FastEngine, "_link", flipping("FMNMX", 3, 30, kept))
    told, log = first(run)
    assert (told["level"], told["node"], told["op"], told["launch"]) == ("emulator", "relu", "Relu", "conv_1")  # fmt: skip
    assert "FMNMX" in told["instruction"]
    assert re.search(r"R\d+ of lane 3 is 0x\w+ in the fast engine, 0x\w+ in the reference", told["text"])  # fmt: skip
    repeated, _ = again(run, log)
    assert (repeated["level"], "FMNMX" in repeated["instruction"]) == ("emulator", True)


def test_an_error_that_outputs_hide_is_seen_at_its_level(
    run: Knapper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wrong element of hundreds leaves a cosine of 0.99999."""
    kept: list[Any] = []
    monkeypatch.setattr(FastEngine, "_link", flipping("FMNMX", 3, 23, kept))
    code, _, err = run(*CHECK)
    assert code == 0, err
    code, _, err = run(*CHECK, "--levels")
    assert code == 1
    assert "E706: " in err
    assert "the outputs are near enough, but launch conv_1" in err
    assert "the engines part at kernel" in err


def test_a_graph_that_its_references_do_not_take_is_one_error(run: Knapper, tmp_path: Path) -> None:
    (tmp_path / "outside.ir").write_text(
        "graph @outside(%x: f32[4], %i: i64[1]) {\n"
        "  %y: f32[1] = Gather %x, %i {axis=0}\n"
        "  return %y\n}\n"
    )
    np.savez(tmp_path / "in.npz", x=np.zeros(4, np.float32), i=np.array([9]))
    code, _, err = run("check", "outside.ir", "--input", "in.npz")
    assert (code, "E706: outside.ir: the references of its ops do not take" in err) == (2, True)
    code, out, err = run("check", "outside.ir", "--input", "in.npz", "--input", "i=random:0")
    assert code == 0, err
    assert out.splitlines()[1].split()[0] == "y"


# --- nothing is broken --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(9))
def test_levels_of_what_is_right_are_within_what_they_may(seed: int) -> None:
    """Passes that lay values out in another way, merge nodes or fold them are none that change values."""
    case = random_models.draw(random.Random(seed))
    graph = read(case.model, {n: a.shape for n, a in case.inputs.items()})
    feed = {n: np.asarray(case.inputs[n]) for n in graph.inputs}
    way = Way(Machine.load("volta-8tc"))
    subject = Subject("random", graph, feed, evaluate(graph, feed), REFERENCE)
    verdict = check(subject, way, lambda levels, fed: Session(levels.program).run(fed).outputs)
    found = first_divergence(verdict)
    assert (found.level, verdict.problems) == ("none", []), found.text


def test_states_are_what_the_model_says_they_are(run: Knapper, tmp_path: Path) -> None:
    """They begin as zeros, and are stored in 16 bits."""
    node = helper.make_node
    nodes = [node("MatMul", ["x", "w"], ["m"], "product"), node("Add", ["m", "past"], ["present"], "add")]  # fmt: skip
    ports = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 4]) for n in ("x", "past", "present")}  # fmt: skip
    w = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = helper.make_graph(nodes, "kept", [ports["x"], ports["past"]], [ports["present"]], [w])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, tmp_path / "kept.onnx")
    for more in ((), ("--levels",), ("--input", "random:1")):
        code, out, err = run("check", "kept.onnx", "--state", "past=present", *more)
        assert code == 0, err
        assert re.search(r"^present +16 ", out, re.MULTILINE)


# --- both engines, side by side -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_engines_that_agree_agree_instruction_by_instruction(seed: int) -> None:
    program = Writer(seed).program(100)
    memory = Memory(program)
    memory.put(program.inputs[0], numbers(seed))
    site = Lockstep(program, program.launches[0], memory)
    assert site.compare(0) is None
    assert site.compare(1) is None


def test_who_stores_an_address() -> None:
    program = Writer(1).program(100)
    memory = Memory(program)
    memory.put(program.inputs[0], numbers(1))
    site = Lockstep(program, program.launches[0], memory)
    (written,) = (o for o in program.launches[0].operands if "w" in o.use)
    session = Session(program)
    session.run({"x": numbers(1)}, engine="reference")
    start = written.address - BASE
    there = session.memory.written[start : start + written.bytes]
    address = written.address + int(np.flatnonzero(there)[0])
    block = site.writer(address, 4)
    assert block is not None
    found = site.store(block, address, 4)
    assert found is not None
    place, value = found
    assert place.instr.mnemonic in ("STG", "BMENC")
    assert len(value) == 4
    assert site.writer(program.inputs[0].address, 4) is None
