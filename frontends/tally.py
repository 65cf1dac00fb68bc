"""What ONNX's own suite gave, operator by operator: one file that `knapper ops`, docs/ops.md and docs/conformance.md are made of.

knapper conformance ─► [Outcome] ─ tally ─► [Tally] ─► conformance_results.json ─┬─► docs/conformance.md
                                                                                 └─► docs/ops.md, knapper ops
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .conformance import VERDICTS, Outcome, core

RESULTS = Path(__file__).with_name("conformance_results.json")
"""Of the whole suite on volta-8tc, float32 stored as fp32."""
TOLD = ("wrong", "disputed", "crashed", "refused")
"""Verdicts that have a reason."""


@dataclass(frozen=True)
class Tally:
    """What became of an operator's cases."""

    op: str
    counts: Mapping[str, int]
    """Cases by verdict."""
    core: Mapping[str, int]
    """Those of the core list."""
    reasons: tuple[str, ...] = ()
    """Why cases did not pass, each reason once."""

    @property
    def cases(self) -> str:
        """The counts in words: `8 passed, 2 folded`."""
        return ", ".join(f"{n:,} {v}" for v in VERDICTS if (n := self.counts.get(v, 0)))


def tally(found: Sequence[Outcome]) -> list[Tally]:
    """Outcomes by operator."""
    listed = core()
    rows = []
    for op in sorted({o.op for o in found}):
        own = [o for o in found if o.op == op]
        counts = Counter[str](o.verdict for o in own)
        named = Counter[str](o.verdict for o in own if o.name in listed)
        reasons = {reason(o) for o in own if o.verdict in TOLD}
        rows.append(Tally(op, counts, named, tuple(sorted(reasons))))
    return rows


def reason(o: Outcome) -> str:
    """What is the matter and what helps, without the case's and the node's own names."""
    said, _, hint = o.why.split("): ", 1)[-1].replace(f"{o.name}: ", "").partition(" (hint: ")
    return f"{said}; {hint.removesuffix(')')}" if hint else said


def total(counts: Iterable[Mapping[str, int]]) -> str:
    """One line about all.

    >>> total([{"passed": 2}, {"passed": 1, "refused": 1}])
    '4 cases: 3 passed, 1 refused'
    """
    found = sum((Counter(c) for c in counts), Counter[str]())
    said = ", ".join(f"{n:,} {v}" for v in VERDICTS if (n := found[v]))
    return f"{found.total():,} cases: {said}"


def dumps(rows: Sequence[Tally]) -> str:
    """As text, an operator a line."""
    lines = (
        f"{json.dumps(r.op)}: {json.dumps({'counts': _told(r.counts), 'core': _told(r.core), 'reasons': r.reasons})}"
        for r in rows
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _told(counts: Mapping[str, int]) -> dict[str, int]:
    return {v: n for v in VERDICTS if (n := counts.get(v, 0))}


def results(path: Path = RESULTS) -> dict[str, Tally]:
    """The stored ones, by operator."""
    stored = json.loads(path.read_text())
    return {op: Tally(op, r["counts"], r["core"], tuple(r["reasons"])) for op, r in stored.items()}
