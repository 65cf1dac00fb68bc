"""ops: every operator with types and limits, as declared and as ONNX's suite found them.

knapper ops                     the Graph's ops
knapper ops --onnx              ONNX's operators: opsets, how they are served, what became of their cases
knapper ops Resize              all about one
knapper ops --markdown FILE     both tables, docs/ops.md
"""

from __future__ import annotations

import argparse
import inspect
from typing import Any

from .. import files
from ..tables import Table, show, table
from .tables import first_line, matching

GRAPH = ("op", "operands", "attributes", "types")
ONNX = ("operator", "opsets", "served as", "cases")
HEAD = """# Operators

`knapper ops --markdown docs/ops.md` writes this page: types come of the ops' own declarations, asked for every dtype; limits are the
conditions in those declarations and the refusals of the importer, with names in place of {values}; cases are what `knapper conformance`
stored, as in [conformance.md](conformance.md). `pytest tests/test_ops_page.py` guards it.

## ONNX's operators

*op*: an op of the Graph has its name; *written as others*: the importer writes it as other ops, or computes it; *ONNX's own definition*: ONNX
defines it as a function of others. *opsets*: those of ONNX that have the operator.
*types*: of an op, as below.
"""
MIDDLE = """
## The Graph's ops

What networks are made of behind the importer, and what a `.ir` file holds. *types*: of each operand, with those that must be
like it.
"""


def ops(a: argparse.Namespace) -> None:
    """`knapper ops`."""
    from knapper.compiler.ir import OPS

    from ..operators import Operator, Spelling, operator, spellings

    if a.markdown:
        files.check_place(a.markdown)
        files.write(a.markdown, page())
    known: dict[str, list[Operator | Spelling]] = {}
    for s in spellings():
        known.setdefault(s.name, []).append(s)
    for o in OPS.values():
        known.setdefault(o.name, []).append(operator(o))
    found = [x for _, v in sorted(matching("operator", a.name, known).items()) for x in v]
    graph = [x for x in found if isinstance(x, Operator)]
    onnx = [x for x in found if isinstance(x, Spelling)]
    if a.name and len({x.name if isinstance(x, Spelling) else x.op.name for x in found}) == 1:
        facts = [*map(_facts, graph), *(s.to_dict() for s in onnx)]
        show(a, lambda: facts, [_one(graph, onnx)], lambda: _about(graph, onnx))
    elif a.onnx:
        show(a, lambda: [s.to_dict() for s in onnx], [Table([_onnx_row(s) for s in onnx], ONNX)])
    else:
        show(a, lambda: [*map(_facts, graph)], [Table([_row(o) for o in graph], GRAPH)])


def _facts(o: Any) -> dict[str, Any]:
    return {
        "op": o.op.name,
        "domain": o.op.domain,
        "operands": o.operands,
        "attributes": o.attributes,
        "types": {n: list(t) for n, t in o.types.items()},
        "limits": list(o.limits),
        "about": first_line(o.op.infer.__doc__),
        "facets": sorted(o.op.facets),
    }


def _row(o: Any) -> tuple[str, ...]:
    from ..operators import spelled

    return o.op.name, o.operands, o.attributes, spelled(o.types)


def _onnx_row(s: Any) -> tuple[str, ...]:
    name = f"{s.domain}::{s.name}" if s.domain else s.name
    return name, s.opsets, s.how or "not served", s.tally.cases if s.tally else ""


def _one(graph: list[Any], onnx: list[Any]) -> Table:
    """All about an operator, a fact a line."""
    from ..operators import spelled

    rows: list[tuple[str, str]] = []
    for o in graph:
        facts = _facts(o) | {"types": spelled(o.types)}
        rows += [(k, v if isinstance(v, str) else ", ".join(v)) for k, v in facts.items() if k != "limits"]  # fmt: skip
        rows += [("refuses", x) for x in o.limits]
    for s in onnx:
        name, opsets, how, cases = _onnx_row(s)
        versions = ", ".join(map(str, s.versions))
        rows += [("ONNX", name), ("opsets", f"{opsets} (changed in {versions})"), ("served as", how)]  # fmt: skip
        rows += [("cases", cases)] if cases else []
        rows += [("refuses", x) for x in s.limits]
        rows += [("why not", x) for x in (s.tally.reasons if s.tally else ())]
    return Table(rows, ("what", "is"))


def _about(graph: list[Any], onnx: list[Any]) -> str:
    """The facts, and what the op says of itself."""
    text = [table(_one(graph, onnx).rows)]
    text += [str(inspect.getdoc(o.op.infer)) for o in graph]
    return "\n\n".join(text)


def page() -> str:
    """The page of the documentation."""
    from knapper.compiler.ir import OPS

    from ..operators import operator, spelled, spellings

    own = [operator(o) for _, o in sorted(OPS.items())]
    known = {o.op.name: spelled(o.types) for o in own if not o.op.domain}
    theirs = [
        (*_onnx_row(s), known[s.name] if s.how == "op" else "", "; ".join(_limits(s)))
        for s in spellings()
    ]
    graph = [(*_row(o), "; ".join(o.limits)) for o in own]
    tables = [Table(theirs, (*ONNX, "types", "limits")), Table(graph, (*GRAPH, "refuses"))]
    return "\n".join([HEAD, tables[0].markdown(), MIDDLE, tables[1].markdown(), ""])


def _limits(s: Any) -> list[str]:
    """What the importer refuses, and why cases of the suite did not pass, each once."""
    told = s.tally.reasons if s.tally and s.how else ()
    rest = (x for x in s.limits if not any(t.startswith(x) for t in told))
    return list(dict.fromkeys((*rest, *told)))
