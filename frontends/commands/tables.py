"""ops, passes, targets, isa, explain: the tables that knapper is made of, printed."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from knapper.isa.errors import CODES, UsageError

from ..tables import Table, show


def versions() -> dict[str, str]:
    """knapper's version and those of what it stands on."""
    import knapper

    found = {"knapper": knapper.__version__}
    for name in ("numpy", "onnx", "onnxruntime", "llvmlite", "apache-tvm"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def matching(kind: str, name: str | None, known: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of that name, whatever the case, or those that begin with it; UsageError E704 with the nearest names."""
    wanted = (name or "").lower()
    exact = {k: v for k, v in known.items() if k.lower() == wanted}
    if found := exact or {k: v for k, v in known.items() if k.lower().startswith(wanted)}:
        return found
    by_lower = {k.lower(): k for k in known}
    close = [by_lower[c] for c in get_close_matches(wanted, by_lower, 3)]
    hint = f"did you mean {', '.join(close)}?" if close else ""
    raise UsageError("E704", f"there is no {kind} {name!r}", hint=hint)


def _print(a: argparse.Namespace, rows: list[dict[str, Any]], shown: list[str]) -> None:
    """The rows, of which tables have the shown columns."""
    show(a, lambda: rows, [Table([[r[c] for c in shown] for r in rows], shown)])


def first_line(doc: str | None) -> str:
    """The first sentence of a docstring."""
    return (doc or "").strip().split("\n")[0]


# --- passes -------------------------------------------------------------------------------------------------------------


def passes(a: argparse.Namespace) -> None:
    """`knapper passes`."""
    from knapper.compiler.passes import PASSES
    from knapper.compiler.pipeline import PRESETS

    chosen = matching("pass", a.name, PASSES)
    rows: list[dict[str, Any]] = [
        {
            "pass": name,
            "options": {n: f.default for n, f in p.declared().items()},
            "about": first_line(p.__doc__),
        }
        for name, p in sorted(chosen.items())
    ]
    everything = {"passes": rows, "presets": PRESETS}
    if len(chosen) == 1:
        ((name, found),) = chosen.items()
        options = [(n, f.type, f.default) for n, f in found.declared().items()]
        one = Table(options, ("option", "type", "default"))
        about = f"{name}\n\n{inspect.getdoc(found)}\n"
        show(a, lambda: everything, [one], lambda: f"{about}\n{one.text()}")
        return
    shown = [
        (r["pass"], ", ".join(f"{k}={v}" for k, v in r["options"].items()), r["about"])
        for r in rows
    ]
    tables = [
        Table(shown, ("pass", "options", "about"), "passes"),
        Table([*PRESETS.items()], ("precision", "pipeline"), "presets"),
    ]
    show(a, lambda: everything, tables, lambda: "\n\n".join(t.plain() for t in tables))


# --- targets ------------------------------------------------------------------------------------------------------------


def targets(a: argparse.Namespace) -> None:
    """`knapper targets`."""
    from knapper.isa.description import about
    from knapper.isa.machine import Machine, known

    if a.name is None:
        machines = [(Machine.load(name), path) for name, path in sorted(known().items())]
        rows = [
            {
                "target": m.name,
                "sms": m.sms,
                "MHz": m.clock_hz // 1_000_000,
                "extensions": " ".join(m.extensions),
                "hash": m.hash[:12],
                "about": about(path),
            }
            for m, path in machines
        ]
        _print(a, rows, list(rows[0]) if rows else [])
        return
    described = Machine.load(a.name)
    first = f"{described.name}  {' '.join(described.extensions)}  {described.hash}\n"
    numbers = Table(_numbers(described.to_dict()), ("number", "value", "provenance", "note"))
    show(a, described.to_dict, [numbers], lambda: f"{first}\n{numbers.text()}")


def _numbers(description: Mapping[str, Any], path: str = "") -> list[tuple[str, object, str, str]]:
    """Every number of a description with where it is from."""
    rows = []
    for key, value in description.items():
        if not isinstance(value, Mapping):
            continue
        if "provenance" in value:
            note = value.get("note", value.get("source", ""))
            rows.append((path + key, value["value"], value["provenance"], note))
        else:
            rows += _numbers(value, f"{path}{key}.")
    return rows


# --- isa ----------------------------------------------------------------------------------------------------------------


def isa(a: argparse.Namespace) -> None:
    """`knapper isa`."""
    from knapper.isa import instructions as _declared  # noqa: F401  the instruction set
    from knapper.isa.core import BY_NAME

    chosen = matching("instruction", a.name, BY_NAME)
    rows = [
        {
            "mnemonic": c.mnemonic,
            "opcode": f"{c.opcode:#05x}",
            "extension": c.extension,
            "unit": c.unit,
            "suffixes": {n: [str(m) for m in kind] for n, kind in c.modifiers().items()},
            "operands": list(c.operands()),
            "about": first_line(c.__doc__),
        }
        for c in sorted(chosen.values(), key=lambda c: c.opcode)
    ]
    if len(rows) > 1 or a.json:
        _print(a, rows, ["mnemonic", "opcode", "extension", "unit", "about"])
        return
    (cls,) = chosen.values()
    about = f"{cls.mnemonic}  opcode {cls.opcode:#05x}, extension {cls.extension}, unit {cls.unit}\n\n{inspect.getdoc(cls)}\n"
    fields = Table(
        [_field(n, kind, b) for n, (kind, b) in cls.layout.items()],
        ("field", "bits", "kind", "use", "values"),
    )
    show(a, list, [fields], lambda: f"{about}\n{fields.text()}")


def _field(name: str, kind: Any, b: Any) -> tuple[str, str, str, str, str]:
    from knapper.isa.operands import Modifier

    values = " ".join(map(str, kind)) if issubclass(kind, Modifier) else ""
    return name, f"{b.hi}:{b.lo}", kind.__name__, b.use, values


# --- errors -------------------------------------------------------------------------------------------------------------


def explain(a: argparse.Namespace) -> None:
    """`knapper explain`."""
    chosen = matching("error code", a.code, CODES)
    _print(
        a, [{"code": c, "meaning": text} for c, text in sorted(chosen.items())], ["code", "meaning"]
    )
