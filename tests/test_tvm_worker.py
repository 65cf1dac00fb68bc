"""The TVM worker: one process, started when it is needed and not before, that no group brings down; and the cache in front of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from knapper.compiler import ops  # noqa: F401  declares them
from knapper.compiler.codegen.generator import Group
from knapper.compiler.ir import Array, Attr, Node, Type, infer
from knapper.compiler.sources import digest
from knapper.compiler.tvm import cache, client
from knapper.isa.errors import CompileError

X = Type("f32", (4, 32))


def group(
    op: str,
    types: tuple[Type, ...] = (X,),
    constants: Mapping[str, Array] | None = None,
    prefix: str = "x",
    **attrs: Attr,
) -> Group:
    """A group of one node."""
    names = tuple(f"{prefix}{i}" for i in range(len(types)))
    made = infer(op, list(types), attrs)
    outs = tuple(f"{prefix}out{i}" for i in range(len(made)))
    node = Node(op, names, outs, made, attrs, loc=f"net/{op}", group="g")
    inputs, outputs = dict(zip(names, types, strict=True)), dict(zip(outs, made, strict=True))
    return Group("g", (node,), inputs, outputs, dict(constants or {}))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and nothing in memory; the worker stays for the next test."""
    monkeypatch.setenv("KNAPPER_CACHE", str(tmp_path))
    client.forget()
    yield tmp_path / "tir"
    client.forget()


@pytest.fixture(autouse=True, scope="module")
def worker() -> Iterator[None]:
    yield
    client.stop()


def entries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.z"))


def test_a_group_becomes_kernels_and_stays_on_disk(folder: Path) -> None:
    made = client.fetch(group("Relu"))
    (kernel,) = made["kernels"]
    assert [b["role"] for b in kernel["buffers"]] == ["i0", "v0"]
    assert np.prod(kernel["grid"]) * np.prod(kernel["block"]) >= X.count / 4
    assert len(entries(folder)) == 1


def test_the_cache_goes_by_structure_and_not_by_names(folder: Path) -> None:
    first = client.fetch(group("Relu", prefix="a"))
    assert client.fetch(group("Relu", prefix="b")) == first
    client.fetch(group("Relu", types=(Type("f32", (4, 33)),)))
    client.fetch(group("Clip", min=0.0, max=6.0))
    client.fetch(group("Clip", min=0.0, max=1.0))
    assert len(entries(folder)) == 4


def test_a_number_belongs_to_the_structure_and_a_weight_does_not(folder: Path) -> None:
    scalar, vector = Type("f32", (1,)), Type("f32", (32,))
    for value in (2, 3):
        client.fetch(group("Mul", (X, scalar), {"x1": np.full(1, value, np.float32)}))
        client.fetch(group("Mul", (X, vector), {"x1": np.full(32, value, np.float32)}))
    assert len(entries(folder)) == 3


def test_a_cached_group_needs_no_worker(folder: Path) -> None:
    """Another process that finds everything on disk starts none and imports no tvm."""
    client.fetch(group("Sigmoid"))
    script = (
        "import sys; from knapper.compiler.tvm import client; from test_tvm_worker import group\n"
        "client.fetch(group('Sigmoid')); print(client.is_running(), 'tvm' in sys.modules)"
    )
    assert python(script).split() == ["False", "False"]


def python(script: str) -> str:
    """What a script prints in a process of its own, which can import this file."""
    here = str(Path(__file__).parent)
    path = f"import sys; sys.path[:0] = {[here, *sys.path]!r}\n"
    done = subprocess.run([sys.executable, "-c", path + script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_client_is_no_reason_to_start(folder: Path) -> None:
    assert python("from knapper.compiler.tvm import client; print(client.is_running())").split() == ["False"]  # fmt: skip


@pytest.mark.parametrize("damage", [b"", b"garbage", None], ids=["empty", "garbage", "cut"])
def test_a_damaged_entry_is_a_miss_and_is_written_anew(folder: Path, damage: bytes | None) -> None:
    want = client.fetch(group("Tanh"))
    (entry,) = entries(folder)
    whole = entry.read_bytes()
    entry.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    client.forget()
    assert client.fetch(group("Tanh")) == want
    assert entry.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    file.write_text("a file where the folder should be")
    monkeypatch.setenv("KNAPPER_CACHE", str(file))
    assert client.fetch(group("Exp"))["kernels"]


def test_a_group_that_tvm_does_not_lower_is_named_and_the_next_one_works() -> None:
    bad = group("Clip", min=0.0)
    broken = replace(bad, nodes=(replace(bad.nodes[0], attrs={"minimum": 0.0}),))
    with pytest.raises(CompileError, match=r"E440: group g: Clip net/Clip: TVM does not lower this: .*minimum"):  # fmt: skip
        client.fetch(broken)
    before = client.processes()
    assert client.fetch(bad)["kernels"]
    assert client.processes() == before


def test_a_result_that_no_facet_makes_is_named() -> None:
    relu = group("Relu")
    more = replace(relu, nodes=(replace(relu.nodes[0], outputs=("xout0", "xout1"), types=(X, X)),))
    with pytest.raises(
        CompileError, match=r"E440: group g: Relu net/Relu: .*no lowering makes %v1"
    ):
        client.fetch(replace(more, outputs={"xout0": X, "xout1": X}))


def test_groups_that_were_prefetched_come_in_any_order() -> None:
    names = ("Abs", "Neg", "Floor", "Ceil")
    client.prefetch(group(n) for n in names)
    made = {n: client.fetch(group(n)) for n in reversed(names)}
    calls = {n: str(made[n]["kernels"][0]["body"]) for n in names}
    assert "floor" in calls["Floor"]
    assert "ceil" in calls["Ceil"]
    assert len(set(calls.values())) == len(names)


def test_a_worker_that_cannot_start_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    client.stop()
    monkeypatch.setattr(
        client, "COMMAND", (sys.executable, "-c", "raise SystemExit('no tvm here')")
    )
    with pytest.raises(CompileError, match=r"E442: the TVM worker ended: no tvm here .*apache-tvm"):
        client.fetch(group("Cos"))
    assert not client.is_running()


def test_what_a_worker_says_at_its_end_is_told_and_not_an_empty_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A C++ exception without a text leaves `what():` as the last line."""
    client.stop()
    script = "import sys; print('terminate called: Overflow', '  what():  ', sep=chr(10), file=sys.stderr)"
    monkeypatch.setattr(client, "COMMAND", (sys.executable, "-c", script))
    with pytest.raises(
        CompileError, match=r"E442: the TVM worker ended: terminate called: Overflow"
    ):
        client.fetch(group("Cos"))


def test_a_worker_that_is_killed_is_replaced() -> None:
    client.fetch(group("Sin"))
    os.kill(client.processes()[0], signal.SIGKILL)
    with pytest.raises(
        CompileError, match=r"E442: the TVM worker ended: .* \(hint: TVM stopped at this launch"
    ):
        client.fetch(group("Tan"))
    assert client.fetch(group("Tan"))["kernels"]


def test_an_installed_torch_is_not_imported(folder: Path, tmp_path: Path) -> None:
    """tvm imports it if it can, which takes seconds."""
    (tmp_path / "torch.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')")
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from knapper.compiler.tvm import client; from test_tvm_worker import group\n"
        "print(len(client.fetch(group('Erf'))['kernels']))"
    )
    assert python(script).split() == ["1"]
    assert not (tmp_path / "imported").exists()


PLUGIN = """
from knapper.compiler.ir import Type, op

@op
def Triple(x: Type) -> Type:
    "Three times x."
    return x

@Triple.reference
def _(x): return x * 3

@Triple.relax
def _(R, x): return R.op.multiply(x, R.const(3, "float32"))
"""


def test_the_ops_of_a_plugin_are_lowered_too(folder: Path, tmp_path: Path) -> None:
    """The worker loads the plugins that its parent has; their sources are part of the key."""
    file = tmp_path / "triple.py"
    file.write_text(PLUGIN)
    script = (
        f"from knapper.compiler import plugins; plugins.load({str(file)!r})\n"
        "from knapper.compiler.tvm import client; from test_tvm_worker import group\n"
        "print(client.fetch(group('Triple'))['kernels'][0]['body'])"
    )
    assert float(3).hex() in python(script)
    file.write_text(PLUGIN.replace("3,", "4,"))
    assert float(4).hex() in python(script)


def test_threads_may_ask_for_the_same_group_and_for_others(folder: Path) -> None:
    names = ["Abs", "Neg", "Floor", "Abs", "Ceil", "Abs", "Neg", "Sqrt"]
    with ThreadPoolExecutor(len(names)) as pool:
        made = dict(zip(names, pool.map(lambda n: client.fetch(group(n)), names), strict=True))
    assert len(entries(folder)) == len(made) == 5
    assert all(client.fetch(group(n)) == found for n, found in made.items())


def test_a_silent_worker_is_one_clear_error_that_names_the_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client.stop()
    with monkeypatch.context() as m:
        m.setattr(client, "COMMAND", (sys.executable, "-c", "input(); input(); input()"))
        m.setattr(client, "TIMEOUT", 0.2)
        with pytest.raises(
            CompileError, match=r"E442: group g: Exp net/Exp: .* no answer in 0.2 s"
        ):
            client.fetch(group("Exp"))
    assert not client.is_running()
    assert client.fetch(group("Exp"))["kernels"]


def test_a_file_counts_by_its_place_and_its_content(tmp_path: Path) -> None:
    for place in ("a/x.py", "b/x.py", "a/sub/y.py", "b/sub/y.py"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(place[2:])
    a, b = ([*(tmp_path / top).rglob("*.py")] for top in "ab")
    assert digest(a) == digest(reversed(b)) != ""
    (tmp_path / "b/sub/y.py").rename(tmp_path / "b/y.py")
    assert digest(a) != digest([tmp_path / "b/x.py", tmp_path / "b/y.py"])
    assert digest([]) == ""


def test_keys_change_with_every_part() -> None:
    assert (
        len({cache.key("ab", "c"), cache.key("a", "bc"), cache.key("abc"), cache.key("ab", "d")})
        == 4
    )
