"""The parser of the command line: argparse, less forgiving and more helpful.

knapper complie model.onnx        there is no command 'complie' … did you mean compile?
knapper compile --shap x=1        there is no option --shap … did you mean --shape?
knapper run m.elf -o a -o b       -o/--output is given twice: nothing is ignored silently
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any


class Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the epilog's lines, and room for long option names."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32, width=110)


class Once(argparse._StoreAction):
    """An option's value. Without `action="append"` an option that is there twice would silently have its last one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: Any,
        values: Any,
        option: str | None = None,
    ) -> None:
        given = vars(namespace).setdefault("given", set())
        if option and self.dest in given:
            parser.error(f"{option} is given twice")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """Says what may have been meant."""

    def __init__(self, *arguments: Any, **how: Any) -> None:
        super().__init__(*arguments, **{"formatter_class": Help, **how})
        for name in (None, "store"):
            self.register("action", name, Once)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [*map(str, action.choices)]
        what = "command" if isinstance(action, argparse._SubParsersAction) else "value"
        close = meant(str(value), known) or f"; there are {', '.join(known)}"
        raise argparse.ArgumentError(action if what == "value" else None, f"there is no {what} {value!r}{close}")  # fmt: skip

    def parse_known_args(  # type: ignore[override]  # as argparse calls it
        self, words: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Refuse unknown options here, where their command is known."""
        found, extra = super().parse_known_args(words, namespace)
        for word in extra:
            if word.startswith("-"):
                name = word.partition("=")[0]
                self.error(f"there is no option {name}{meant(name, self._option_string_actions)}")
        return found, extra


def meant(word: str, known: Iterable[str]) -> str:
    """What to say of the nearest name; nothing if there is none.

    >>> meant("complie", ["compile", "run"])
    '; did you mean compile?'
    """
    near = get_close_matches(word, [*known], 1)
    return f"; did you mean {near[0]}?" if near else ""
