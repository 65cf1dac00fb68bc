"""Questions about TIR as plain lists (`tvm/tir.py`): what is in a tree, and roughly how many instructions it will be."""

from __future__ import annotations

from collections.abc import Iterator

from .parse import Json, split

FREE = frozenset({"int", "float", "var", "seq", "broadcast", "ramp", "alloc", "let"})
"""Nodes that make no instruction."""
MOVES = frozenset({"load", "store"})
CALL = 8
"""Instructions of a function, on average."""


def flat(s: Json) -> list[Json]:
    """The statements of nested sequences."""
    return [x for y in s[1:] for x in flat(y)] if s[0] == "seq" else [s]


def nodes(j: Json) -> Iterator[Json]:
    """All statements and expressions in a tree."""
    if isinstance(j, list) and j:
        if isinstance(j[0], str):
            yield j
        for x in j:
            if isinstance(x, list):
                yield from nodes(x)


def buffers(j: Json, kind: str) -> Iterator[int]:
    """Buffers that are loaded ("load") or stored ("store") in a tree."""
    at = 2 if kind == "load" else 1
    return (x[at] for x in nodes(j) if x[0] == kind)


def accesses(j: Json) -> Iterator[tuple[int, Json]]:
    """(buffer, index) of every load and store."""
    for x in nodes(j):
        if x[0] == "load":
            yield x[2], x[3]
        elif x[0] == "store":
            yield x[1], x[2]


def unconditional_loads(j: Json) -> Iterator[Json]:
    """Loads that every run of the statement does."""
    if not isinstance(j, list) or not j or j[0] in ("if", "while", "for", "select"):
        return
    if j[:3:2] == ["call", "if_then_else"]:
        return
    if j[0] == "load":
        yield j
    for x in j:
        yield from unconditional_loads(x)


def mentions(j: Json, variable: int) -> bool:
    """Whether a variable occurs."""
    return any(x[0] == "var" and x[2] == variable for x in nodes(j))


def has(j: Json, kinds: frozenset[str]) -> bool:
    """Whether a node of one of these kinds occurs."""
    return any(x[0] in kinds for x in nodes(j))


def weight(j: Json) -> float:
    """Roughly how many instructions a tree is."""
    total = 0.0
    for x in nodes(j):
        if x[0] not in FREE:
            total += _own_weight(x)
        if x[0] == "for" and x[3][0] == "int":
            total += (x[3][2] - 1) * weight(x[4])
    return total


def _own_weight(x: Json) -> float:
    """Of a node without what is below it: neighbours in memory move together, two 16-bit lanes compute together."""
    dtype, lanes = split(x[1]) if isinstance(x[1], str) else ("", 1)
    if x[0] in MOVES:
        return 1 + lanes / 4
    together = lanes / 2 if dtype in ("f16", "bf16") and lanes > 1 else lanes
    return together * (CALL if x[0] == "call" and x[2] != "if_then_else" else 1)


# --- a condition that all of a kernel is under


def common_condition(statements: list[Json]) -> Json | None:
    """The condition under which every store and loop of a kernel is, if there is just one and nothing must be done together."""
    together = (
        x[0] == "sync" or (x[0] == "call" and "warp_shuffle" in str(x[2]))
        for s in statements
        for x in nodes(s)
    )
    conditions: list[Json] = []
    if any(together) or not all(_collect(s, conditions) for s in statements):
        return None
    first = conditions[0] if conditions else None
    stays = all(c == first for c in conditions) and not has(first, MOVES)
    return first if stays else None


def _collect(s: Json, found: list[Json]) -> bool:
    """Whether all that a statement does is under an `if` without `else`; the conditions are added to `found`."""
    match s[0]:
        case "if":
            found.append(s[1])
            return bool(s[3] == ["seq"])
        case "for":
            return _collect(s[4], found)
        case "seq":
            return all(_collect(x, found) for x in s[1:])
    return s[0] in ("let", "alloc")


def without(s: Json, condition: Json) -> Json:
    """The statement where the condition is known to hold."""
    match s[0]:
        case "if" if s[1] == condition:
            return s[2]
        case "for":
            return [*s[:4], without(s[4], condition)]
        case "seq":
            return ["seq", *(without(x, condition) for x in s[1:])]
    return s
