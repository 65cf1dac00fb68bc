"""Plain text tables: columns as wide as they must be, numbers to the right."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(rows: Iterable[Sequence[object]], head: Sequence[str] = (), indent: str = "") -> str:
    """Rows as aligned lines.

    >>> print(table([("HMMA.161616.F32", 1024), ("EXIT", 8)], ["instruction", "executed"]))
    instruction      executed
    HMMA.161616.F32     1,024
    EXIT                    8
    """
    body = [[_cell(c) for c in row] for row in rows]
    lines = ([list(head)] if head else []) + body
    if not lines:
        return ""
    numeric = [
        bool(body) and all(_is_number(row[i]) for row in body if row[i])
        for i in range(len(lines[0]))
    ]
    widths = [max(len(row[i]) for row in lines) for i in range(len(lines[0]))]
    return "\n".join(
        indent
        + "  ".join(
            c.rjust(w) if n else c.ljust(w) for c, w, n in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in lines
    )


def _cell(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
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
