"""Rows as text: for a terminal, and as a page of the documentation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from .claims import CLASSES, EVIDENCE, UNSURE, Row

HEAD = ("claim", "theirs", "ours", "ratio", "class", "±", "", "interval")
INTRODUCTION = """\
# Reproduced numbers

`knapper reproduce --markdown docs/reproduce-table.md` writes this page. Every number of ours comes from programs that were compiled and executed,
every instruction of them, and timed on the target's description, but where its row says otherwise; none is fitted to a row. Rows of the
classes {evidence} are evidence, and the command's exit code is 1 if one of them fails; the others are shown for what they are:

{classes}

*ratio*: ours by the nearest end of theirs, 1 inside their range. *±*: by how much it may differ. *interval*: the range of ours as each number of the
machines that is {unsure} moves by ±30 %, one at a time (whole numbers outward to the next one, switches flipped), and the numbers that
make its ends. Execution and plan stay the same; numbers that decide which programs there are (the shape of an array) stay where they are.

"""


def cells(row: Row) -> tuple[str, ...]:
    """A row of the terminal's table."""
    verdict = "ok" if row.passes else "FAIL" if row.fails else "differs"
    c = row.claim
    return (
        c.name, span(*c.paper), short(row.ours), f"{row.ratio:.3f}", c.kind, f"{c.tolerance:.0%}", verdict,
        span(row.interval.low, row.interval.high) if row.interval else "",
    )  # fmt: skip


def short(x: float) -> str:
    """Four digits.

    >>> short(1061.04), short(0.90780), short(54.0)
    ('1,061', '0.9078', '54')
    """
    if abs(x) >= 1000:
        return f"{x:,.0f}"
    return f"{x:.4g}"


def span(low: float, high: float) -> str:
    """A range, or a number.

    >>> span(1, 1), span(832, 874), span(1, math.inf)
    ('1', '832 … 874', '≥ 1')
    """
    if high == math.inf:
        return f"≥ {short(low)}"
    return short(low) if short(low) == short(high) else f"{short(low)} … {short(high)}"


def markdown(rows: Sequence[Row]) -> str:
    """The page."""
    listed = "\n".join(f"- `{kind}`: {what}" for kind, what in CLASSES.items())
    head = INTRODUCTION.format(
        evidence=" and ".join(f"`{e}`" for e in EVIDENCE),
        classes=listed,
        unsure=" or ".join(UNSURE),
    )
    return head + "\n".join([*_table(rows), "", "## How", "", *_how(rows), *_parts(rows)]) + "\n"


def _table(rows: Iterable[Row]) -> Iterator[str]:
    titles = ("claim", "what", *HEAD[1:6], "result", "interval", "ends by")
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for r in rows:
        name, *rest = cells(r)
        yield f"| {' | '.join((name, r.claim.what, *rest, _ends(r)))} |"


def _ends(row: Row) -> str:
    """The numbers that make an interval's ends."""
    keys = (row.interval.low_by, row.interval.high_by) if row.interval else ()
    return ", ".join(dict.fromkeys(f"`{k}`" for k in keys if k))


def _how(rows: Iterable[Row]) -> Iterator[str]:
    for r in rows:
        still = f" {r.claim.still[0].upper()}{r.claim.still[1:]}." if r.claim.still else ""
        yield f"- **{r.claim.name}** {r.claim.how}.{still}"


def _parts(rows: Iterable[Row]) -> Iterator[str]:
    """A table of what a number is made of, for each row that has one."""
    for r in (r for r in rows if r.parts):
        yield from (
            "",
            f"## {r.claim.name}",
            "",
            f"{r.claim.what[0].upper()}{r.claim.what[1:]}.",
            "",
        )
        titles, *lines = r.parts
        yield f"| {' | '.join(map(str, titles))} |"
        yield "|---" * len(titles) + "|"
        for line in lines:
            yield f"| {' | '.join(x if isinstance(x, str) else short(x) for x in line)} |"
