"""Control flow, divergence, barriers, and what a warp knows of itself."""

from __future__ import annotations

from typing import Any

from ..core import READ, WRITE, Convergence, Instr, Label, Reg, Unsigned, UReg, bits
from ..lanes import U32, constant
from ..modifiers import SR, UNIFORM_SR, Bits32
from .algebra import by_width


class NOP(Instr, opcode=0x000, unit="control"):
    """Do nothing for one issue slot."""

    def execute(self, m: Any) -> None:
        pass


class EXIT(Instr, opcode=0x001, unit="control"):
    """End the lanes that execute it.

    If only some live lanes of the warp exit, no convergence barrier that names them may be open: that is a fault.
    """

    def execute(self, m: Any) -> None:
        m.exit()


class BRA(Instr, opcode=0x002, unit="control"):
    """Jump: the guard's lanes go to `target`, the others fall through.

    If both groups are non-empty the warp has diverged: the lanes that fall through wait on the warp's stack until the
    jumping ones end, reach their convergence barrier, or exit.
    """

    target: Label = bits(127, 104)

    def execute(self, m: Any) -> None:
        m.branch(int(self.target))


class BSSY(Instr, opcode=0x003, unit="control"):
    """Open a convergence region: barrier `b` records the active lanes; `target` is the BSYNC that closes it."""

    b: Convergence = bits(29, 26, use=WRITE)
    target: Label = bits(127, 104)

    def execute(self, m: Any) -> None:
        m.push_convergence(int(self.b), int(self.target))


class BSYNC(Instr, opcode=0x004, unit="control"):
    """Close a convergence region: lanes park until every live lane that barrier `b` recorded is here, then go on together."""

    b: Convergence = bits(29, 26, use=READ)

    def execute(self, m: Any) -> None:
        m.converge(int(self.b))


class BAR(Instr, opcode=0x005, unit="barrier"):
    """Wait until every live warp of the block has come to barrier `id`.

    All live lanes of the warp must be active, and no warp of the block may have exited: anything else is a fault. Shared
    and global memory written before it is seen by the block after it.
    """

    id: Unsigned = bits(29, 26)

    def execute(self, m: Any) -> None:
        m.barrier(int(self.id))


class S2R(Instr, opcode=0x006, unit="sreg"):
    """d = a special register, as an unsigned number."""

    sr: SR = bits(17, 14)
    d: Reg = bits(33, 26, use=WRITE)

    def execute(self, m: Any) -> None:
        m.write(self.d, m.special(self.sr.name))


class S2UR(Instr, opcode=0x007, unit="sreg"):
    """d = a special register that all lanes of a warp share."""

    sr: SR = bits(17, 14, only=UNIFORM_SR)
    d: UReg = bits(31, 26, use=WRITE)

    def execute(self, m: Any) -> None:
        m.set_uniform(self.d, m.special(self.sr.name))


class ULDC(Instr, opcode=0x008, unit="uniform"):
    """d = 4 or 8 bytes of the launch parameters, from byte `offset` on. Parameters are 64-bit words, read-only."""

    width: Bits32 = bits(14)
    d: UReg = bits(31, 26, use=WRITE, words=by_width)
    offset: Unsigned = bits(127, 104)

    syntax = "{d}, [{offset}]"

    def execute(self, m: Any) -> None:
        address = constant(m.lane(), int(self.offset), U32)
        m.set_uniform(self.d, m.load("param", address, self.width.lane)[0])
