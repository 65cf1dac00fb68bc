"""`knapper ops` and docs/ops.md: generated of the declarations and of the stored results of ONNX's suite, and so never another story."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from shop import Knapper

from knapper.compiler.ir import DTYPES, OPS, Type, op, require
from knapper.compiler.ops.shapes import of_kind
from knapper.frontends.commands.ops import page
from knapper.frontends.operators import conditions, examples, operator, spellings, types
from knapper.frontends.tally import results

PAGE = Path(__file__).parents[1] / "docs" / "ops.md"


def test_the_page_is_what_the_command_writes(request: pytest.FixtureRequest) -> None:
    made = page()
    if request.config.getoption("--bless"):
        PAGE.write_text(made)
    assert PAGE.read_text() == made, "`pytest --bless tests/test_ops_page.py` accepts this"


@pytest.mark.parametrize("name", sorted(OPS))
def test_an_op_takes_what_its_examples_are(name: str) -> None:
    found = types(OPS[name])
    for operands, _ in examples(OPS[name]):
        given = {Type.of(np.asarray(x)).dtype for x in operands if x is not None}
        assert given <= {d for t in found.values() for d in t}


def test_types_and_limits_are_those_of_the_declaration(monkeypatch: pytest.MonkeyPatch) -> None:
    def Halve(x: Type, *, times: int = 1) -> Type:
        """Half of it."""
        of_kind("Halve", ("f16", "f32"), x)
        require(times > 0, f"Halve: {times} halves of {x} and {x.rank + 1} more")
        return x

    monkeypatch.delitem(OPS, "Halve", raising=False)
    declared = op(Halve)
    try:
        declared.example(lambda rng: ([rng.standard_normal(3, np.float32)], {}))
        said = operator(declared)
        assert (said.operands, said.attributes) == ("x", "times=1")
        assert said.types == {"x": ("f16", "f32")}
        assert said.limits == ("{times} halves of {x} and … more",)
        assert list(conditions(OPS["Relu"])) == list(operator(OPS["Relu"]).limits)
    finally:
        del OPS["Halve"]


def test_what_is_served_has_cases_that_pass_and_nothing_else_has() -> None:
    """The two tables that the page is made of agree."""
    for s in spellings():
        if s.tally is None or not (done := {v for v, n in s.tally.counts.items() if n} - {"scope"}):
            continue
        right = bool(done & {"passed", "folded", "disputed"})
        assert right == bool(s.how), f"{s.name}: served as {s.how!r}, cases {s.tally.cases}"


def test_every_case_of_the_suite_is_in_the_page() -> None:
    stored = results()
    shown = [s.tally for s in spellings() if s.tally]
    assert {t.op for t in shown} == stored.keys()
    assert len(shown) == len(stored)


def test_opsets_are_those_of_the_onnx_package() -> None:
    known = {s.name: s for s in spellings() if not s.domain}
    assert known["Upsample"].opsets == "1-9"
    assert known["Gelu"].opsets.startswith("20-")
    assert known["Resize"].versions[:3] == (10, 11, 13)


def test_the_command_tells_all_about_one(run: Knapper) -> None:
    code, out, _ = run("ops", "resize", "--json")
    told = json.loads(out)
    assert code == 0
    graph, onnx = told
    assert (graph["op"], onnx["operator"]) == ("Resize", "Resize")
    assert set(graph["types"]["x"]) <= set(DTYPES)
    assert sum(onnx["cases"].values()) == 39
    code, out, _ = run("ops", "resize")
    assert "refuses" in out
    assert "served as" in out
    code, out, _ = run("ops", "--onnx")
    assert code == 0
    assert len(out.splitlines()) == len(spellings()) + 1
    code, _, err = run("ops", "Rezise")
    assert (code, "did you mean Resize" in err) == (2, True)
    code, _, err = run("ops", "--markdown", "no/ops.md")
    assert (code, "E705" in err) == (2, True)
