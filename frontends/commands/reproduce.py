"""reproduce: what papers and hardware say, ours beside it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence

from knapper.isa.errors import KnapperError, raise_all

from .. import files, tables
from ..progress import Progress
from ..reproduce import claims
from ..reproduce.claims import Claim, Lab, Row
from ..reproduce.report import HEAD, cells, markdown

WIDTH = 120
"""Columns of a table that no terminal shows."""


def reproduce(a: argparse.Namespace) -> None:
    """`knapper reproduce`."""
    if a.markdown:
        files.check_place(a.markdown)
    chosen = claims(a.names)
    rows, broken = measured(chosen, Lab(), not a.no_interval, a.quiet)
    if a.markdown:
        files.write(a.markdown, markdown(rows).encode())
    if a.json:
        print(json.dumps([r.to_dict() for r in rows], indent=1))
    else:
        show(rows)
    raise_all([*broken, *failures(rows)])


def measured(
    chosen: Sequence[Claim], lab: Lab, interval: bool, quiet: int
) -> tuple[list[Row], list[KnapperError]]:
    """The rows of claims, and why there is none of some, told about as they come."""
    rows, broken = list[Row](), list[KnapperError]()
    with Progress("reproduce", bool(quiet)) as progress:
        for i, c in enumerate(chosen):
            progress(i, len(chosen), c.name)
            try:
                rows.append(c.row(lab, interval))
            except KnapperError as e:
                broken.append(unmeasured(c, e))
    return rows, broken


def unmeasured(c: Claim, why: KnapperError) -> KnapperError:
    """The error of a row whose programs cannot be made or run."""
    return KnapperError("E708", f"no row: {why.code}: {why.where}: {why.message}", where=c.name)


def show(rows: Sequence[Row]) -> None:
    """A table on the terminal; a row that fails stands out."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in HEAD:
        table.add_column(
            name, justify="left" if name in ("claim", "class", "") else "right", no_wrap=True
        )
    for r in rows:
        table.add_row(*cells(r), style="red" if r.fails else None if r.passes else "yellow")
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)
    for r in (r for r in rows if r.parts):
        titles, *lines = r.parts
        print(f"\n{r.claim.name}: {r.claim.what}")
        print(tables.table(lines, [str(t) for t in titles]))


def failures(rows: Sequence[Row]) -> Iterator[KnapperError]:
    """An E708 for every row that counts as evidence and is missed; one as well if there is no row."""
    if not rows:
        yield KnapperError("E708", "nothing was compared")
    for r in rows:
        if r.fails:
            low, high = r.claim.paper
            problem = f"expected {low:g}{f' to {high:g}' if high != low else ''} ± {r.claim.tolerance:.0%}, got {r.ours:g}"
            yield KnapperError("E708", problem, where=r.claim.name)
