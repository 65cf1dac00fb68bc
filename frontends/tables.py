"""Tables: aligned text for people, and the same rows as CSV, Markdown or LaTeX for whatever comes next.

Every command that prints a table builds `Table`s and gives them to `show` with what `--json` prints; no command knows the formats.

    knapper time run.npz -t sma3 -t volta-8tc --format latex > table.tex

CSV has numbers as they are; all other formats have them as the table on the terminal has them.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from knapper.isa.errors import UsageError

FORMATS = ("table", "csv", "markdown", "latex", "json")
ENDINGS = {".csv": "csv", ".md": "markdown", ".tex": "latex"}
"""Files that are tables, by their ending."""
SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{c: "\\" + c for c in "&%$#_{}"},
}  # fmt: skip
"""What LaTeX takes for something else."""


@dataclass(frozen=True)
class Table:
    """Rows under a head. A cell is a number, a text, a truth value, or None for nothing."""

    rows: Sequence[Sequence[object]]
    head: Sequence[str]
    title: str = ""
    bare: bool = False
    """On the terminal without the head: what is in the columns is plain to see."""

    def text(self) -> str:
        """Aligned, and below a title indented."""
        return f"{self.title}\n{self.plain('  ')}" if self.title else self.plain()

    def plain(self, indent: str = "") -> str:
        """Without the title."""
        return table(self.rows, () if self.bare else self.head, indent)

    def csv(self) -> str:
        """Comma-separated values, as spreadsheets and pandas read them."""
        import csv  # and not for every `--help`

        out = io.StringIO()
        lines = csv.writer(out, lineterminator="\n")
        lines.writerow(self.head)
        lines.writerows([_cell(c, raw=True) for c in row] for row in self.rows)
        return out.getvalue().rstrip("\n")

    def markdown(self) -> str:
        """A table of GitHub's Markdown.

        >>> print(Table([("a|b", 1024)], ["name", "bytes"]).markdown())
        | name | bytes |
        |---|---:|
        | a\\|b | 1,024 |
        """
        body = [[_cell(c) for c in row] for row in self.rows]
        rule = "".join("|---:" if n else "|---" for n in _numeric(body, len(self.head)))
        lines = [_piped(self.head), f"{rule}|", *map(_piped, body)]
        return "\n".join([f"**{self.title}**", "", *lines] if self.title else lines)

    def latex(self) -> str:
        r"""A tabular that needs no package.

        >>> print(Table([("conv_1", 0.5)], ["node", "share"]).latex())
        \begin{tabular}{lr}
        \hline
        node & share \\
        \hline
        conv\_1 & 0.5 \\
        \hline
        \end{tabular}
        """
        body = [[_cell(c) for c in row] for row in self.rows]
        columns = "".join("r" if n else "l" for n in _numeric(body, len(self.head)))
        rows = [" & ".join(_escaped(c) for c in row) + r" \\" for row in body]
        head = " & ".join(_escaped(c) for c in self.head) + r" \\"
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\hline", head, r"\hline", *rows, r"\hline", r"\end{tabular}"]  # fmt: skip
        return "\n".join([f"% {self.title}", *lines] if self.title else lines)


def show(
    a: argparse.Namespace,
    facts: Callable[[], object],
    tables: Sequence[Table],
    text: Callable[[], str] | None = None,
) -> None:
    """Print what `--format` or `--json` asks for.

    Args:
        a: what was typed.
        facts: what JSON is made of.
        tables: what the other formats show.
        text: what the terminal shows, where that is more than the tables.
    """
    if a.json:
        print(json.dumps(facts(), indent=1, default=str))
    elif a.format == "table" and text is not None:
        print(text())
    else:
        print(joined(tables, a.format))


def joined(tables: Sequence[Table], format: str) -> str:
    """Tables in a format, an empty line between two. Of several in CSV each has its title above it, after a #."""
    if format == "table":
        return "\n\n".join(t.text() for t in tables)
    if format == "csv" and len(tables) > 1:
        return "\n\n".join(f"# {t.title}\n{t.csv()}" for t in tables)
    return "\n\n".join(getattr(t, format)() for t in tables)


def check_ending(path: str, others: Iterable[str]) -> None:
    """UsageError E704 for a file that is no table by its ending, and none of the others."""
    if Path(path).suffix not in (known := [*others, *ENDINGS]):
        raise UsageError("E704", f"{path}: which format? Endings are {', '.join(known)}")


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = (), indent: str = "") -> str:
    """Rows as aligned lines, numbers to the right.

    >>> print(table([("HMMA.161616.F32", 1024), ("EXIT", 8)], ["instruction", "executed"]))
    instruction      executed
    HMMA.161616.F32     1,024
    EXIT                    8
    """
    body = [[_cell(c) for c in row] for row in rows]
    lines = ([list(head)] if head else []) + body
    if not lines:
        return ""
    numeric = _numeric(body, len(lines[0]))
    widths = [max(len(row[i]) for row in lines) for i in range(len(lines[0]))]
    return "\n".join(
        indent
        + "  ".join(
            c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in lines
    )


def _numeric(body: Sequence[Sequence[str]], columns: int) -> list[bool]:
    """Which columns have nothing but numbers."""
    return [
        bool(body) and all(_is_number(row[i]) for row in body if row[i]) for i in range(columns)
    ]


def _piped(cells: Sequence[str]) -> str:
    return "| " + " | ".join(re.sub(r"([|\\])", r"\\\1", c) for c in cells) + " |"


def _escaped(cell: str) -> str:
    return "".join(SPECIAL.get(c, c) for c in cell)


def _cell(value: object, raw: bool = False) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, int):
        return str(value) if raw else f"{value:,}"
    if isinstance(value, float):
        return str(value) if raw else f"{value:.4g}"
    return str(value)


def _is_number(text: str) -> bool:
    return text[:1] in "-0123456789" and (text[-1:].isdigit() or text[-1:] == "%")


def plural(count: int, word: str) -> str:
    """A number of things.

    >>> plural(1, "launch"), plural(2, "launch"), plural(1234, "kernel")
    ('1 launch', '2 launches', '1,234 kernels')
    """
    ending = "" if count == 1 else "es" if word.endswith(("ch", "s")) else "s"
    return f"{count:,} {word}{ending}"


def size(count: int) -> str:
    """Bytes for people.

    >>> size(1536), size(10), size(3 << 30)
    ('1.5 KiB', '10 B', '3.0 GiB')
    """
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
