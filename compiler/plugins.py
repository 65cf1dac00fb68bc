"""Plugins: a Python file, or a distribution with an entry point, that adds to knapper's tables.

    what                 how                                                        where it goes
    an instruction       class Sad(Instr, opcode=0x300, unit="alu", extension="sad")   isa TABLE, opcodes 0x300 to 0x3ff
    an op                @op                                                         OPS
    a pass               class Cancel(Pass)                                          PASSES
    a kernel generator   register(Rows())                                            GENERATORS
    a target             a .toml file in `targets/` beside the plugin                the names that `Machine.load` knows

Loading is importing. A plugin that fails, or declares what is there already, leaves no trace in the tables. What is loaded stays
until the process ends: kernels and graphs may refer to it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from knapper.isa import core
from knapper.isa import instructions as _instructions  # noqa: F401  what a plugin cannot declare again
from knapper.isa import machine as machines
from knapper.isa.errors import KnapperError, UsageError

from . import ir
from . import ops as _ops  # noqa: F401  what a plugin cannot declare again
from .codegen.generator import GENERATORS, generators
from .passes import PASSES

GROUP = "knapper.plugins"
TABLES: dict[str, MutableMapping[Any, Any]] = {
    "instructions": core.BY_NAME,
    "opcodes": core.TABLE,
    "ops": ir.OPS,
    "passes": PASSES,
    "generators": GENERATORS,
}


@dataclass(frozen=True)
class Plugin:
    """What was loaded: its file, and the names that it added to each table."""

    name: str
    file: Path
    adds: dict[str, tuple[str, ...]]


LOADED: dict[Path, Plugin] = {}
"""By file, in order of loading."""


def load(path: Path | str) -> Plugin:
    """Load a plugin's file; UsageError E420 if it cannot be read, fails, or declares what is declared already.

    A file that is loaded already is not run again.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise UsageError("E420", "no such file", where=str(path), hint="a plugin is a Python file")
    if file in LOADED:
        return LOADED[file]
    return _added(_module_name(file), file, lambda: _run(file))


def load_installed() -> tuple[Plugin, ...]:
    """Load the plugins of installed distributions: entry points of the group `knapper.plugins`."""
    return tuple(_load_entry(e) for e in sorted(entry_points(group=GROUP), key=lambda e: e.name))


def sources() -> tuple[Path, ...]:
    """Files of the loaded plugins: they decide what kernels look like, so the kernel cache asks."""
    return tuple(sorted(f for file in LOADED for f in _files(file)))


def _load_entry(entry: EntryPoint) -> Plugin:
    spec = importlib.util.find_spec(entry.module)
    if spec is None or spec.origin is None:
        raise UsageError(
            "E420",
            f"entry point names module {entry.module}, which is not installed",
            where=entry.name,
        )
    file = Path(spec.origin).resolve()
    return LOADED.get(file) or _added(entry.name, file, entry.load)


def _added(name: str, file: Path, run: Callable[[], object]) -> Plugin:
    """Run a plugin and see what it added; if it fails, the tables are put back."""
    generators()
    before = {table: dict(rows) for table, rows in TABLES.items()}
    try:
        run()
        _check_opcodes(before["opcodes"])
    except BaseException as e:
        for table, rows in TABLES.items():
            rows.clear()
            rows.update(before[table])
        if isinstance(
            e, Exception
        ):  # a plugin is foreign code: whatever it raises is the user's to see
            raise UsageError("E420", _reason(e, file), where=str(file)) from e
        raise
    adds = {
        table: tuple(str(k) for k in rows if k not in before[table])
        for table, rows in TABLES.items()
    }
    targets = file.parent / "targets"
    machines.register(targets)
    LOADED[file] = Plugin(
        name, file, adds | {"targets": tuple(sorted(t.stem for t in targets.glob("*.toml")))}
    )
    return LOADED[file]


def _check_opcodes(before: Mapping[int, object]) -> None:
    for opcode in core.TABLE.keys() - before.keys():
        if opcode not in core.CUSTOM:
            names = f"{core.CUSTOM.start:#x} to {core.CUSTOM.stop - 1:#x}"
            raise UsageError(
                "E420",
                f"{core.TABLE[opcode].mnemonic} has opcode {opcode:#x}; plugins have {names}",
            )


def _run(file: Path) -> None:
    """Import a file under a name of its own."""
    spec = importlib.util.spec_from_file_location(_module_name(file), file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)


def _module_name(file: Path) -> str:
    """A package's `__init__.py` goes by its folder's name."""
    return f"knapper_plugin_{file.parent.name if file.name == '__init__.py' else file.stem}"


def _reason(e: Exception, file: Path) -> str:
    """What went wrong, and at which line of the plugin."""
    lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if Path(f.filename) == file]
    at = f" at line {lines[-1]}" if lines else ""
    return f"{e if isinstance(e, KnapperError) else f'{type(e).__name__}: {e}'}{at}"


def _files(file: Path) -> Iterator[Path]:
    """A plugin's own sources: its file, or everything in its folder if it is a package."""
    if file.name != "__init__.py":
        yield file
        return
    yield from sorted(file.parent.rglob("*.py"))
