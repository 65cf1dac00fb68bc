"""`examples/plugin` adds an instruction, an op, a pass, a target and a generator from its own distribution."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from knapper.compiler import driver, plugins
from knapper.compiler.ir import OPS, Array, Graph, Node, Type, evaluate
from knapper.compiler.passes import PASSES
from knapper.compiler.pipeline import PRESETS
from knapper.isa import image, machine
from knapper.isa.core import BY_NAME, TABLE
from knapper.isa.errors import KnapperError, UsageError
from knapper.isa.machine import Machine
from knapper.runtime.session import Session

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples" / "plugin"
FILE = FOLDER / "knapper_sad" / "__init__.py"


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Tables as they were: what a test loads does not stay."""
    plugins.generators()
    before = [(t, dict(t)) for t in (*plugins.TABLES.values(), plugins.LOADED)]
    targets = [*machine.TARGETS]
    yield
    for table, rows in before:
        table.clear()
        table.update(rows)
    machine.TARGETS[:] = targets


def node(op: str, inputs: str, output: str, t: Type, **attrs: object) -> Node:
    return Node(op, tuple(inputs.split()), (output,), (t,), attrs, output)  # type: ignore[arg-type]


def distances(n: int = 3, m: int = 70, k: int = 16) -> Graph:
    """Distances of rows of x to rows of y as a network says them, and their half."""
    rows = np.random.default_rng(1).integers(0, 256, (1, m, k), np.uint8)
    nodes = (
        node("Cast", "x", "xi", Type("i32", (n, 1, k)), to="i32"),
        node("Cast", "rows", "yi", Type("i32", (1, m, k)), to="i32"),
        node("Sub", "xi yi", "difference", Type("i32", (n, m, k))),
        node("Abs", "difference", "far", Type("i32", (n, m, k))),
        node("ReduceSum", "far", "sum", Type("i32", (n, m)), axes=(2,), keepdims=0),
    )
    return Graph("net", {"x": Type("u8", (n, 1, k))}, {"y": "sum"}, nodes, {"rows": rows})


def pixels(g: Graph) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {v: rng.integers(0, 256, t.shape, np.uint8) for v, t in g.inputs.items()}


def pipeline() -> str:
    """The default passes, with the plugin's before the layout is chosen."""
    return "l1," + PRESETS["fp16"]


def test_loading_adds_to_all_five_tables() -> None:
    found = plugins.load(FILE)
    assert found.adds == {
        "instructions": ("SAD4",),
        "opcodes": ("768",),
        "ops": ("L1Distance",),
        "passes": ("l1",),
        "generators": ("sad",),
        "targets": ("volta-8tc-sad",),
    }
    assert Machine.load("volta-8tc-sad").extensions[-1] == "sad"


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_a_network_runs_with_the_plugins_instruction(engine: str, tmp_path: Path) -> None:
    plugins.load(FILE)
    g = distances()
    program = driver.compile_graph(g, Machine.load("volta-8tc-sad"), pipeline(), cache=tmp_path)
    back = image.read(image.write(program), "distances.elf")
    assert "SAD4" in {i.mnemonic for k in back.kernels.values() for i in k.code}
    result = Session(back).run(pixels(g), engine=engine)  # type: ignore[arg-type]
    assert np.array_equal(result.outputs["y"], evaluate(g, pixels(g))["y"])


def test_the_pass_and_the_plan_compute_what_the_network_says() -> None:
    plugins.load(FILE)
    g = distances()
    fused = driver.optimize(g, driver.Options(pipeline()))
    assert "L1Distance" in {n.op for n in fused.nodes}
    plan = driver.schedule(fused, Machine.load("volta-8tc-sad")).verify()
    want = evaluate(g, pixels(g))["y"]
    assert np.array_equal(evaluate(fused, pixels(g))["y"], want)
    assert np.array_equal(plan.evaluate(pixels(g))["y"], want)


def test_a_target_without_the_extension_is_told_so() -> None:
    plugins.load(FILE)
    fused = driver.optimize(distances(), driver.Options(pipeline()))
    with pytest.raises(
        KnapperError,
        match=r"E415.*L1Distance.*volta-8tc has no extension 'sad'.*hint: .*volta-8tc-sad",
    ):
        driver.schedule(fused, Machine.load("volta-8tc"))


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder as an installer leaves it: the package, and its metadata by what pyproject.toml says."""
    project = tomllib.loads((FOLDER / "pyproject.toml").read_text())
    name, version = project["project"]["name"], project["project"]["version"]
    for package in project["tool"]["setuptools"]["packages"]:
        shutil.copytree(FOLDER / package, tmp_path / package)
    info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    groups = project["project"]["entry-points"]
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in rows.items())
        for group, rows in groups.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return tmp_path


def test_the_distribution_is_found_by_its_entry_point(installed: Path) -> None:
    code = "from knapper.compiler import plugins; print(*[p.adds['targets'] for p in plugins.load_installed()])"
    path = os.pathsep.join([str(installed), str(ROOT / ".ns")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout.strip(), done.returncode) == ("('volta-8tc-sad',)", 0), done.stderr


# --- what goes wrong ----------------------------------------------------------------------------------------------------


def test_a_file_is_loaded_once() -> None:
    assert plugins.load(FILE) is plugins.load(FILE)


def test_a_second_plugin_of_the_same_names_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    plugins.load(FILE)
    copy = tmp_path / "copy.py"
    copy.write_text(FILE.read_text())
    with pytest.raises(
        UsageError, match=r"E420: .*copy.py: .*SAD4: opcode 0x300 or name already taken at line \d+"
    ):
        plugins.load(copy)
    assert copy not in plugins.LOADED


INSTRUCTION = """
from knapper.isa.core import Instr
from knapper.isa.operands import Reg, bits
class {name}(Instr, opcode={opcode}, unit="alu"):
    '''Nothing.'''
    d: Reg = bits(26, 19)
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            INSTRUCTION.format(name="BELOW", opcode="0x2ff"),
            "BELOW has opcode 0x2ff; plugins have 0x300 to 0x3ff",
        ),
        (
            INSTRUCTION.format(name="FADD", opcode="0x301"),
            "FADD: opcode 0x301 or name already taken at line 4",
        ),
        (
            "from knapper.compiler.ir import op\n@op\ndef Relu(x): return x",
            "ValueError: op Relu is declared twice at line 2",
        ),
        (
            INSTRUCTION.format(name="LOST", opcode="0x302") + "1 / 0",
            "ZeroDivisionError: division by zero at line 7",
        ),
        ("def", r"SyntaxError: invalid syntax"),
        (
            "import no_such_module",
            "ModuleNotFoundError: No module named 'no_such_module' at line 1",
        ),
    ],
)
def test_a_plugin_that_fails_is_told_with_its_line_and_leaves_no_trace(
    tmp_path: Path, text: str, message: str
) -> None:
    tables = [dict(t) for t in (TABLE, BY_NAME, OPS, PASSES)]
    bad = tmp_path / "bad.py"
    bad.write_text(text)
    with pytest.raises(UsageError, match=rf"E420: .*bad.py: .*{message}"):
        plugins.load(bad)
    assert [dict(t) for t in (TABLE, BY_NAME, OPS, PASSES)] == tables


def test_no_such_file() -> None:
    with pytest.raises(UsageError, match=r"E420: nowhere.py: no such file"):
        plugins.load("nowhere.py")
