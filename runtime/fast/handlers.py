"""How to write each unit, by name: the interpreter, movers, and a handler for every variant."""

from __future__ import annotations

import hashlib
import inspect
import sys
from functools import cache

from llvmlite import ir

from knapper.isa.lanes import TYPES

from ..decode import Variant
from ..faults import Kind
from . import groups, integer_matrix
from .accesses import TALLY, WAVEFRONTS, Tally, Wavefronts
from .algebra import Algebra
from .blocks import RUN_BLOCKS, Blocks
from .emit import Code, Require
from .interpreter import RUN_WARP, Warp
from .layout import FAULT
from .matrix import WIDEN, emit_widen
from .moves import MOVER, Move
from .natives import NATIVE
from .sparse import EVENT_UNIT, RECORD_EVENT, Event
from .trace import TraceWarp, stand_in
from .units import Build, symbol

CHECKED, END = "checked.", "off_the_end"


def unit_of(variant: Variant, checked: bool) -> str:
    """The unit that runs a variant. A plugin's carries the hash of its source, of which the cache's key knows nothing."""
    return f"{CHECKED * checked}{variant.key}{origin(type(variant.instr).__module__)}"


@cache
def origin(module: str) -> str:
    """ "" for the module of a built-in instruction, else a hash of its source."""
    if module.startswith("knapper.isa."):
        return ""
    source = inspect.getsource(sys.modules[module])
    return " @" + hashlib.sha256(source.encode()).hexdigest()[:16]


class Builders:
    """Knows the variants that were asked for, and so how to write any unit."""

    def __init__(self) -> None:
        self.variants: dict[str, Variant] = {}

    def add(self, variant: Variant, checked: bool) -> str:
        """Make a variant known; its unit."""
        name = unit_of(variant, checked)
        self.variants.setdefault(name, variant)
        return name

    def __call__(self, name: str) -> Build:
        if name in self.variants:
            return lambda module, features, require: self.handler(name, module, features, require)
        head, *rest = name.removeprefix(CHECKED).split(".")
        if head in ("load", "store"):
            space, size = rest
            return lambda module, features, require: Move(
                Code(module, symbol(name), MOVER),
                head,
                space,
                int(size),
                name.startswith(CHECKED),
                require,
            ).write()
        if head == "wavefronts":
            return lambda module, features, require: Wavefronts(
                Code(module, name, WAVEFRONTS, inline="noinline"), int(rest[0])
            ).write()
        if head == "tally":
            return lambda module, features, require: Tally(Code(module, name, TALLY)).write()
        if head == EVENT_UNIT:
            return lambda module, features, require: Event(
                Code(module, name, RECORD_EVENT, inline="noinline")
            ).write()
        if head == "systolic":
            unit = name.removeprefix(CHECKED).removeprefix("systolic.")
            return lambda module, features, require: groups.build(
                unit, module, features, require, name.startswith(CHECKED)
            )
        if head == "widen":
            return lambda module, features, require: self.widen(
                rest[0], name, module, features, require
            )
        if head == "integers":
            return lambda module, features, require: integer_matrix.build(
                ".".join(rest), module, features
            )
        return lambda module, features, require: self.interpreter(name, module, require)

    def handler(
        self, name: str, module: ir.Module, features: frozenset[str], require: Require
    ) -> None:
        variant = self.variants[name]
        m = TraceWarp(
            Code(module, symbol(name)), variant, features, name.startswith(CHECKED), require
        )
        instr = stand_in(variant)
        native = NATIVE.get(type(instr))
        if native is None:
            instr.execute(m)
        else:
            native(m, instr)
        m.finish()

    def widen(
        self, type: str, name: str, module: ir.Module, features: frozenset[str], require: Require
    ) -> None:
        code = Code(module, name, WIDEN, inline="noinline")
        emit_widen(Algebra(code, features), TYPES[type.upper()])

    def interpreter(self, name: str, module: ir.Module, require: Require) -> None:
        head, _, checked = name.partition(".")
        if head == END:
            return Code(module, name).give(FAULT + Kind.OFF_THE_END)
        if head == "run_warp":
            Warp(Code(module, name, RUN_WARP), bool(checked)).write()
        else:
            require(name.replace("run_blocks", "run_warp"))
            Blocks(Code(module, name, RUN_BLOCKS), bool(checked)).write()
        return None
