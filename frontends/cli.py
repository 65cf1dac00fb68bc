"""The command line: a command is called, and what happens when something goes wrong. What there is to type is in `grammar.py`.

exit code   0  it was done, and the answer is yes
            1  the answer is no: it cannot be compiled, values differ, a number is missed, a file is damaged, the machine stopped
            2  it was asked for wrongly: options, names of nothing, inputs that do not fit, files that the system does not give
            70 a bug in knapper    130 interrupted
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from knapper.isa.errors import KnapperError, Problems, UsageError

from .grammar import parser

Arguments = argparse.Namespace
OK, FAILED, USAGE, INTERNAL, INTERRUPTED = 0, 1, 2, 70, 130
MISNAMED = ("E301", "E302", "E510")
"""Errors of passes and machine descriptions that are wrong use like a UsageError: a name, in an option, of nothing."""


def main() -> NoReturn:
    """What `start` calls."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run a command line; gives the exit code. Errors become one line each on stderr."""
    arguments = parser().parse_args(argv)
    _talk(logging.INFO - 10 * arguments.verbose + 20 * arguments.quiet)
    try:
        return _call(arguments)
    except BrokenPipeError:
        # The reader, such as `head`, has had enough; without this Python complains once more while closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except KnapperError as e:
        return _report(e, arguments)
    except Exception as e:  # the last line of defence: whatever it is, the user gets one line
        if arguments.traceback:
            raise
        summary = f"{type(e).__name__}: {e}".splitlines()[0]
        print(f"internal error: {summary} (please report it, with --traceback)", file=sys.stderr)
        return INTERNAL


def _talk(level: int) -> None:
    """Let knapper's own messages through, to stderr."""
    log = logging.getLogger("knapper")
    log.handlers = [logging.StreamHandler(sys.stderr)]
    log.setLevel(level)


def _call(arguments: Arguments) -> int:
    """Load plugins, then do what the command says."""
    from . import extensions

    extensions.load(arguments.plugin)
    module, function = arguments.action.split(":")
    action: Callable[[Arguments], int | None] = getattr(
        import_module(f"knapper.frontends.{module}"), function
    )
    return action(arguments) or OK


def _report(e: KnapperError, arguments: Arguments) -> int:
    """Print one line a problem, as text or JSON."""
    if arguments.traceback:
        import traceback

        traceback.print_exception(e)
    problems = e.problems if isinstance(e, Problems) else (e,)
    for p in problems:
        if getattr(arguments, "json", False):
            row = {"code": p.code, "where": p.where, "message": p.message, "hint": p.hint}
            print(json.dumps(row), file=sys.stderr)
        else:
            print(f"error {p}", file=sys.stderr)
    return exit_code(problems)


def exit_code(problems: Sequence[KnapperError]) -> int:
    """The rule: 2 if everything that is wrong is how knapper was called, else 1."""
    wrong_use = (isinstance(p, UsageError) or p.code in MISNAMED for p in problems)
    return USAGE if all(wrong_use) else FAILED
