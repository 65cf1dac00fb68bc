"""Reading one line of assembly: the grammar in asm.lark, asked once for each form of line.

Two lines that differ in numbers alone are of one form: `FADD.F32 R1, R2, R3` and `FADD.F32 R40, R7, R0`. The grammar and the instruction
table vouch for a form; the operands of every line of it are then picked out by a regular expression, ten times as fast.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedToken

from .core import BY_NAME, Instr
from .errors import IsaError
from .operands import Guard, Label

NUMBERS = re.compile(r"0x[0-9a-fA-F]+|[0-9]+")
TOKEN = re.compile(r"!?[A-Za-z_][A-Za-z0-9_]*|-?(?:0x[0-9a-fA-F]+|[0-9]+)")
HEAD = re.compile(r"\s*(?:@(!?P[0-7T])\s*)?([A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)*)?")
"""These three cut a line as the grammar's terminals do."""

EXPECTED = {
    "WORD": "a register, predicate or label", "INTEGER": "a number", "NUMBER": "a number", "NAME": "a name",
    "STRING": "a quoted text", "HASH": "a # and 64 hexadecimal digits", "MNEMONIC": "an instruction", "LABEL": "a label",
    "GUARD": "a guard", "DTYPE": "a dtype", "USE": "r, w or rw", "COMMA": "a comma", "LSQB": "[", "RSQB": "]", "PLUS": "+",
    "NEGATIVE": "- and a number", "$END": "the end of the line", "PORT": "a directive", "DOT": "a dot",
}  # fmt: skip
"""How errors spell the grammar's terminals; the others are directives."""


@lru_cache
def grammar() -> Lark:
    """The parser of one line."""
    return Lark.open("asm.lark", rel_to=__file__, parser="lalr")


def parse_line(text: str) -> Tree[Token]:
    """One line; the error's `where` is the column."""
    try:
        return grammar().parse(text)
    except (UnexpectedCharacters, UnexpectedToken) as e:
        ended = isinstance(e, UnexpectedToken) and e.token.type == "$END"
        column = len(text.rstrip()) + 1 if ended else e.column
        accepted = e.interactive_parser.accepts()  # type: ignore[no-untyped-call]  # lark has no annotation here
        raise IsaError("E530", f"expected {_wanted(accepted)}", where=str(column)) from None


def _wanted(terminals: Iterable[str]) -> str:
    return " or ".join(sorted({EXPECTED.get(t, "a directive") for t in terminals}))


@dataclass(frozen=True)
class Form:
    """What the grammar and the instruction table say of all lines that differ in numbers only."""

    cls: type[Instr]
    suffixes: Mapping[str, Any]
    operands: tuple[tuple[str, Any], ...]
    """Name and kind, in order."""


def form(text: str) -> Form:
    """The form of an instruction line."""
    tree = parse_line(text)
    _, mnemonic, *operands = map(str, tree.children)
    cls, suffixes = _mnemonic(mnemonic)
    names = cls.operands()
    given = [t for t in operands if t != "None"]
    if len(given) != len(names):
        shape = (cls.syntax or ", ".join(f"{{{n}}}" for n in names)).format(**{n: n for n in names})
        usage = f"{mnemonic} {shape}".rstrip()
        raise IsaError(
            "E530",
            f"{len(given)} operands, expected {len(names)}: {usage}",
            where=str(text.find(mnemonic) + 1),
        )
    return Form(cls, suffixes, tuple((name, kind) for name, (kind, _) in names.items()))


def _mnemonic(text: str) -> tuple[type[Instr], dict[str, Any]]:
    """Class and suffixes: the longest name in the table that the text begins with, then one suffix for each modifier."""
    parts = text.split(".")
    cut = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in BY_NAME), 0)
    if not cut:
        near = difflib.get_close_matches(parts[0], list(BY_NAME), 1)
        raise IsaError(
            "E531",
            f"there is no instruction {text}",
            hint=f"did you mean {near[0]}?" if near else "",
        )
    cls = BY_NAME[".".join(parts[:cut])]
    kinds, given = cls.modifiers(), parts[cut:]
    if len(kinds) != len(given):
        usage = cls.mnemonic + "".join(f".<{name}>" for name in kinds)
        raise IsaError("E531", f"{text}: {len(given)} suffixes, expected {len(kinds)}: {usage}")
    try:
        return cls, {
            name: kind.parse(suffix)
            for (name, kind), suffix in zip(kinds.items(), given, strict=True)
        }
    except IsaError as e:
        raise IsaError("E531", f"{text}: {e.message}") from None


@lru_cache(1 << 16)
def _operand(kind: Any, text: str) -> Any:
    return kind.parse(text)


class Lines:
    """Reads instruction lines: each form by the grammar once, and each line without a label once."""

    def __init__(self) -> None:
        self.forms: dict[tuple[bool, str, str], Form] = {}
        self.known: dict[str, Instr] = {}

    def read(self, text: str, labels: Mapping[str, int]) -> Instr:
        """The instruction of a line without its comment; an error's `where` is its column."""
        if (instr := self.known.get(text)) is None:
            instr, named = self._read(text, labels)
            if not named:
                self.known[text] = instr
        return instr

    def _read(self, text: str, labels: Mapping[str, int]) -> tuple[Instr, bool]:
        """The instruction, and whether it names a label."""
        head = HEAD.match(text)
        assert head is not None  # all of it is optional
        guard, mnemonic, rest = head[1], head[2], text[head.end() :]
        key = (guard is None, mnemonic, NUMBERS.sub("0", rest))
        if (known := self.forms.get(key)) is None:
            known = self.forms[key] = form(text)
        fields = dict(known.suffixes)
        if guard is not None:
            fields["guard"] = _operand(Guard, guard)
        for (name, kind), token in zip(known.operands, TOKEN.finditer(rest), strict=True):
            try:
                fields[name] = (
                    _label(labels, token[0]) if kind is Label else _operand(kind, token[0])
                )
            except IsaError as e:
                column = head.end() + token.start() + 1
                raise IsaError(e.code, e.message, where=str(column), hint=e.hint) from None
        return known.cls(**fields), any(kind is Label for _, kind in known.operands)


def _label(labels: Mapping[str, int], name: str) -> Label:
    if name not in labels:
        near = difflib.get_close_matches(name, list(labels), 1)
        hint = f"did you mean {near[0]}?" if near else ""
        raise IsaError("E532", f"there is no label {name} in this kernel", hint=hint)
    return Label(labels[name])
