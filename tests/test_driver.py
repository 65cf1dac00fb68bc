"""From plan to program: kernels are lowered once and kept, constants and kernels are merged, names become addresses.

`Marked` lowers a group to kernels that do nothing but carry a mark, so that the program can be looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest

from knapper.compiler import driver
from knapper.compiler import ops as _ops  # noqa: F401  declares the op set
from knapper.compiler.assemble import Rodata, assemble
from knapper.compiler.cache import KernelCache, folder
from knapper.compiler.codegen.generator import (
    Emitted,
    Group,
    Lowered,
    Options,
    generators,
    register,
)
from knapper.compiler.ir import Array, Graph, Node, Type
from knapper.compiler.lower import Report, lower
from knapper.compiler.plan import Plan
from knapper.compiler.schedule import schedule
from knapper.isa import image
from knapper.isa.errors import CompileError, Problems, UsageError, raise_all
from knapper.isa.instructions import EXIT, UMOV
from knapper.isa.machine import Machine
from knapper.isa.operands import Src, UReg
from knapper.isa.program import ALIGN, BASE, Kernel, Program

T = Type("f32", (4, 64))


@dataclass
class Marked:
    """One kernel an op kind. `lowered` and `fetched` tell what was asked of it."""

    kind: str = "marked"
    scratch: int = 0
    odd: dict[str, object] = field(default_factory=dict)
    lowered: list[str] = field(default_factory=list)
    fetched: list[int] = field(default_factory=list)

    def serves(self, group: Group, machine: Machine) -> str | None:
        return None

    def candidates(self, group: Group, machine: Machine) -> Iterator[Options]:
        yield {"mark": 7}
        yield {"mark": 8}

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        return float(options["mark"])

    def prefetch(self, groups: Sequence[Group], machine: Machine) -> None:
        self.fetched.append(len(groups))

    def lower(self, group: Group, options: Options, machine: Machine) -> Lowered:
        self.lowered.append(group.name)
        code = [UMOV(UReg(0), Src.of(int(options["mark"]))), EXIT()]
        kernel = Kernel("marked", Kernel.encode(code), (0, 0), (32, 1, 1), 1)
        scratch = {"sums": self.scratch} if self.scratch else {}
        uses = (
            dict.fromkeys(group.inputs, "r")
            | dict.fromkeys(group.outputs, "w")
            | dict.fromkeys(scratch, "rw")
        )
        emitted = Emitted(kernel, (1, 1, 1), (*uses, 5), uses, (group.nodes[0].loc,))
        return Lowered((replace(emitted, **self.odd),), scratch=scratch)  # type: ignore[arg-type]

    def evaluate(self, group: Group, options: Options, env: dict[str, Array]) -> dict[str, Array]:
        return {v: np.zeros(t.shape, np.float32) for v, t in group.outputs.items()}


class Packing(Marked):
    """Its kernels do not depend on weights; it packs them, doubled."""

    def pack(self, group: Group, options: Options, machine: Machine) -> dict[str, Array]:
        return {f"{v}.packed": a * 2 for v, a in group.constants.items()}

    def lower(self, group: Group, options: Options, machine: Machine) -> Lowered:
        made = super().lower(group, options, machine)
        packed = self.pack(group, options, machine)
        uses = {
            f"{v}.packed" if v in group.constants else v: use
            for v, use in made.launches[0].uses.items()
        }
        return Lowered((replace(made.launches[0], params=tuple(uses), uses=uses),), packed)


@pytest.fixture
def marked() -> Iterator[Marked]:
    yield from only(Marked())


@pytest.fixture
def packing() -> Iterator[Marked]:
    yield from only(Packing())


def only(generator: Marked) -> Iterator[Marked]:
    """The table of generators with this one alone."""
    table = generators()
    real = dict(table)
    table.clear()
    yield register(generator)
    table.clear()
    table.update(real)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine.load("volta-8tc")


@pytest.fixture
def cache(tmp_path: Path) -> KernelCache:
    return KernelCache(tmp_path / "kernels")


def relu(x: str, y: str) -> Node:
    return Node("Relu", (x,), (y,), (T,), loc=f"node_{y}", group=y)


def add(x: str, w: str, y: str) -> Node:
    return Node("Add", (x, w), (y,), (T,), loc=f"node_{y}", group=y)


def weights(n: float) -> Array:
    return np.full(T.shape, n, np.float32)


CHAIN = Graph(
    "chain", {"x": T}, {"y": "y"}, (relu("x", "a"), add("a", "w", "b"), add("b", "same", "c"), add("c", "other", "y")),
    {"w": weights(1), "same": weights(1), "other": weights(2)},
)  # fmt: skip


def build(graph: Graph, machine: Machine, cache: KernelCache) -> Program:
    plan = schedule(graph, machine).verify()
    return assemble(plan, lower(plan, cache), {})


# --- the program --------------------------------------------------------------------------------------------------------


def test_equal_kernels_and_equal_constants_are_there_once(
    marked: Marked, machine: Machine, cache: KernelCache
) -> None:
    p = build(CHAIN, machine, cache)
    assert [launch.kernel for launch in p.launches] == ["marked"] * 4
    assert [(o.name, o.bytes) for o in p.objects] == [("w", 1024), ("other", 1024)]
    assert np.array_equal(
        np.frombuffer(p.rodata, np.float32).reshape(2, *T.shape), [weights(1), weights(2)]
    )


def test_kernels_that_differ_get_names_that_differ(
    marked: Marked, machine: Machine, cache: KernelCache
) -> None:
    plan = schedule(CHAIN, machine, {"b": {"mark": 8}})
    p = assemble(plan, lower(plan, cache), {})
    assert [launch.kernel for launch in p.launches] == ["marked", "marked_2", "marked", "marked"]
    assert list(p.kernels) == ["marked", "marked_2"] == [k.name for k in p.kernels.values()]


def test_parameters_and_operands_are_the_plans_addresses(
    marked: Marked, machine: Machine, cache: KernelCache
) -> None:
    p = build(CHAIN, machine, cache)
    a, x, w = schedule(CHAIN, machine).buffers["a"], p.inputs[0], p.objects[0]
    first, second = p.launches[:2]
    assert first.params == (x.address, p.arena_address + a.offset, 5)
    assert [(o.value, o.address, o.bytes, o.use) for o in second.operands[:2]] == [
        ("a", p.arena_address + a.offset, 1024, "r"), ("w", w.address, 1024, "r"),
    ]  # fmt: skip
    assert p.launches[-1].operands[-1].address == p.outputs[0].address
    assert [launch.nodes for launch in p.launches] == [
        ("node_a",),
        ("node_b",),
        ("node_c",),
        ("node_y",),
    ]


def test_constants_of_one_name_are_laid_out_under_others() -> None:
    rodata = Rodata()
    addresses = [rodata.add("w", np.array([n])) for n in range(1000)]
    assert len(set(addresses)) == len({o.name for o in rodata.objects}) == 1000
    assert [o.name for o in rodata.objects[:3]] == ["w", "w_2", "w_3"]


def test_the_program_is_a_valid_image(marked: Marked, machine: Machine, cache: KernelCache) -> None:
    data = image.write(build(CHAIN, machine, cache))
    assert (
        data
        == image.write(image.read(data, "chain.elf"))
        == image.write(build(CHAIN, machine, cache))
    )


def test_scratch_lies_where_nothing_is_needed(
    marked: Marked, machine: Machine, cache: KernelCache
) -> None:
    marked.scratch = 1000
    p = build(CHAIN, machine, cache)
    plan = schedule(CHAIN, machine)
    for i, launch in enumerate(p.launches):
        scratch = launch.operands[-1]
        assert (scratch.value, scratch.bytes, scratch.use) == (
            f"{plan.steps[i].name}.sums",
            1000,
            "rw",
        )
        offset = scratch.address - p.arena_address
        assert 0 <= offset <= p.arena_bytes - 1000
        for b in plan.buffers.values():
            assert not b.first <= i <= b.last or offset >= b.end or offset + 1000 <= b.offset


def test_outputs_that_no_launch_writes_have_the_address_of_what_they_show(
    marked: Marked, machine: Machine, cache: KernelCache
) -> None:
    flat = Type("f32", (256,))
    views = tuple(
        Node("Reshape", (v,), (f"{v}v",), (flat,), {"shape": (256,)}) for v in ("x", "w", "a")
    )
    g = Graph(
        "g",
        {"x": T},
        {v: v for v in ("x", "xv", "w", "wv", "a", "av")},
        (relu("x", "a"), *views),
        {"w": weights(3)},
    )
    p = build(g, machine, cache)
    at = {port.name: port.address for port in p.outputs}
    assert at["x"] == at["xv"] == p.inputs[0].address
    assert at["w"] == at["wv"] == p.objects[0].address == BASE
    assert at["a"] == at["av"] == p.launches[0].operands[-1].address
    assert {port.name: port.shape for port in p.outputs}["wv"] == (256,)


def test_everything_is_aligned(marked: Marked, machine: Machine, cache: KernelCache) -> None:
    p = build(CHAIN, machine, cache)
    addresses = [o.address for launch in p.launches for o in launch.operands] + [
        o.address for o in p.objects
    ]
    assert not any(address % ALIGN for address in addresses)


@pytest.mark.parametrize(
    ("odd", "message"),
    [
        (
            {"params": ("i0", "nowhere"), "uses": {"i0": "r", "nowhere": "r"}},
            "takes the address of 'nowhere', which is nothing in its group",
        ),
        ({"params": ("i0", "v0"), "uses": {"i0": "r"}}, "takes 'v0' without saying how it uses it"),
        ({"macs": 12}, "its kernels count 12 multiply-accumulates, the graph 0"),
    ],
)
def test_a_generator_that_breaks_its_contract_is_told(
    marked: Marked, machine: Machine, cache: KernelCache, odd: dict[str, object], message: str
) -> None:
    marked.odd = odd
    with pytest.raises(CompileError, match=rf"E414: launch a \(marked\): .*{message}"):
        build(replace(CHAIN, nodes=CHAIN.nodes[:1], outputs={"a": "a"}), machine, cache)


def test_every_launch_that_cannot_be_lowered_is_named(
    marked: Marked, machine: Machine, cache: KernelCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(group: Group, options: Options, machine: Machine) -> Lowered:
        raise_all(CompileError("E432", f"{group.name} wants {n}00 registers") for n in (3, 4))
        raise AssertionError

    monkeypatch.setattr(marked, "lower", fail)
    with pytest.raises(Problems) as e:
        build(replace(CHAIN, nodes=CHAIN.nodes[:2], outputs={"b": "b"}), machine, cache)
    assert [str(p) for p in e.value.problems] == [
        f"E432: launch {v}: {op} wants {n}00 registers" for v, op in (("a", "Relu"), ("b", "Add")) for n in (3, 4)
    ]  # fmt: skip


# --- the cache ----------------------------------------------------------------------------------------------------------


def lowered(plan: Plan, cache: KernelCache) -> Report:
    report = Report()
    lower(plan, cache, report)
    return report


def test_a_second_compile_lowers_nothing_and_gives_the_same(
    marked: Marked, machine: Machine, cache: KernelCache
) -> None:
    first = build(CHAIN, machine, cache)
    asked = len(marked.lowered)
    assert build(CHAIN, machine, cache) == first
    assert len(marked.lowered) == asked == 3  # Relu; Add with ones, twice the same; Add with twos
    assert marked.fetched == [3]


def test_kernels_that_do_not_depend_on_weights_are_lowered_once(
    packing: Marked, machine: Machine, cache: KernelCache
) -> None:
    first = build(CHAIN, machine, cache)
    assert packing.lowered == ["Relu", "Add"]
    assert np.array_equal(
        np.frombuffer(first.rodata, np.float32).reshape(2, *T.shape), [weights(2), weights(4)]
    )
    assert build(CHAIN, machine, cache) == first
    assert packing.lowered == ["Relu", "Add"]


def test_other_names_hit_the_cache_and_other_options_or_machines_do_not(
    marked: Marked, machine: Machine, cache: KernelCache
) -> None:
    g = Graph("g", {"x": T}, {"y": "y"}, (relu("x", "y"),))
    renamed = Graph("h", {"in": T}, {"out": "r"}, (relu("in", "r"),))
    faster = Machine.from_dict(
        machine.to_dict() | {"clock_hz": {"value": 10**9, "provenance": "assumed"}}
    )
    assert lowered(schedule(g, machine), cache) == Report(hits=0, lowered=1)
    assert lowered(schedule(renamed, machine), cache) == Report(hits=1, lowered=0)
    assert lowered(schedule(g, machine, {"*": {"mark": 8}}), cache) == Report(hits=0, lowered=1)
    assert lowered(schedule(g, faster), cache) == Report(hits=0, lowered=1)


@pytest.mark.parametrize("damage", [b"", b"x" * 40, b"\xff\xfe", b"{}"])
def test_a_damaged_entry_is_lowered_again(
    marked: Marked, machine: Machine, cache: KernelCache, damage: bytes
) -> None:
    first = build(CHAIN, machine, cache)
    for f in cache.folder.rglob("*.json"):
        f.write_bytes(f.read_bytes()[:-20] if damage == b"{}" else damage)
    assert build(CHAIN, machine, cache) == first
    assert len(marked.lowered) == 6


def test_a_folder_that_cannot_be_written_costs_time_only(
    marked: Marked, machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    assert build(CHAIN, machine, KernelCache(tmp_path / "file" / "kernels")).launches


def test_a_plugins_source_is_part_of_the_key(tmp_path: Path) -> None:
    source = tmp_path / "plugin.py"
    source.write_text("one")
    first = KernelCache(tmp_path, (source,)).key("a")
    source.write_text("two")
    assert (
        len({first, KernelCache(tmp_path, (source,)).key("a"), KernelCache(tmp_path).key("a")}) == 3
    )


def test_the_folder_is_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNAPPER_CACHE", "/somewhere")
    assert folder() == Path("/somewhere/kernels")
    monkeypatch.delenv("KNAPPER_CACHE")
    assert folder().parts[-2:] == ("knapper", "kernels")


def test_a_compile_trims_what_it_filled(
    marked: Marked, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, options = schedule(CHAIN, machine), driver.Options(cache=tmp_path / "kernels")
    monkeypatch.setenv("KNAPPER_CACHE", str(tmp_path))
    driver.generate(plan, options)
    assert len(list(options.cache.rglob("*.json"))) == 3
    monkeypatch.setenv("KNAPPER_CACHE_MB", "0")
    driver.generate(plan, options)  # nothing is lowered, nothing trimmed
    assert len(list(options.cache.rglob("*.json"))) == 3
    driver.generate(schedule(CHAIN, machine, {"*": {"mark": 8}}), options)
    assert len(list(options.cache.rglob("*.json"))) == 6, "within the hour nobody looks again"
    os.utime(options.cache / ".trimmed", (0, 0))
    for entry in options.cache.rglob("*.json"):
        entry.unlink()  # so that something is lowered
    driver.generate(plan, options)
    assert not list(options.cache.rglob("*.json"))
    monkeypatch.setenv("KNAPPER_CACHE_MB", "much")
    with pytest.raises(UsageError, match=r"E704: \$KNAPPER_CACHE_MB is 'much'"):
        driver.generate(plan, options)


# --- the way through ----------------------------------------------------------------------------------------------------


def test_a_fused_graph_needs_no_passes() -> None:
    assert driver.is_fused(CHAIN)
    assert not driver.is_fused(
        replace(CHAIN, nodes=(replace(CHAIN.nodes[0], group=""), *CHAIN.nodes[1:]))
    )
