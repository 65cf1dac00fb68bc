"""Load plugins: the files that `--plugin` names, and those of installed distributions."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points


def load(files: Iterable[str] = ()) -> None:
    """Load them, each once; UsageError E420 for one that does not load.

    Where none is installed, the compiler's tables, which plugins add to, are not imported.
    """
    installed()
    for file in files:
        from knapper.compiler import plugins

        plugins.load(file)


@cache
def installed() -> None:
    """Load what installed distributions offer under the entry point `knapper.plugins`."""
    if entry_points(group="knapper.plugins"):
        from knapper.compiler import plugins

        plugins.load_installed()
