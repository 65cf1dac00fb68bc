"""Descriptors of convolutions in compiled code. The rules and sizes are those of `isa/vector_memory.py`, written out by its own functions.

A descriptor's fields and what follows from them lie beside each other in 64-bit words, with a bit a warp for who changed and used it since the last
barrier, and the number of commands that wait with it.
"""

from __future__ import annotations

from knapper.isa.vector_memory import Broken

from ..faults import Kind
from .emit import I64, Code, Num, Struct
from .layout import DESCRIPTOR
from .queues import fault
from .trace import TraceWarp


def descriptor(code: Code, state: Struct, number: Num) -> Struct:
    """One of the block's."""
    place = number.wide() * DESCRIPTOR.itemsize
    return Struct(code, DESCRIPTOR, code.at(state.pointer_to("descriptors"), place))


def me(code: Code, state: Struct) -> Num:
    """The bit of the warp that runs."""
    return code.num(1, I64) << state.get("warp").wide()


def clash(code: Code, state: Struct, warps: Num, number: Num) -> None:
    """Fault if other warps are among them."""
    others = warps & ~me(code, state)
    with code.when(others != 0, likely=False):
        fault(code, state, Kind.DESCRIPTOR_RACE, 0, number, others.lowest().low())


def use(m: TraceWarp, number: Num) -> Struct:
    """The descriptor that a command names."""
    code, state = m.code, m.state
    d = descriptor(code, state, number)
    if m.checked:
        clash(code, state, d.changers, number)
    with code.when(d.known == 0, likely=False):
        fault(code, state, Kind.NO_DESCRIPTOR, 0, number)
    if m.checked:
        d.users = d.users | me(code, state)
    return d


def refuse(code: Code, state: Struct, bad: Num, rule: Broken, operand: Num) -> None:
    """A command's operands break a rule."""
    with code.when(bad, likely=False):
        fault(code, state, Kind.BAD_COMMAND, 0, int(rule), operand)
