"""Control flow, divergence, barriers, and what a warp knows of itself.

A warp has one program counter. Of its live lanes, those on the current path are active; an instruction acts on the active lanes that its
guard picks, and if the guard picks none it does nothing.

    BRA L      Of the active lanes, the guard's go to L, the others fall through. If both groups have lanes, the warp has diverged:
               the ones that fall through are pushed on the warp's stack, as (program counter, lanes), the others run on.
    BSSY Bn, L The region Bn opens: it records the active lanes, and that L is its BSYNC.
    BSYNC Bn   The active lanes park. When every live lane that Bn recorded is parked, the region closes and all of them go
               on together behind the BSYNC. Until then the path on top of the stack runs.
    EXIT       The lanes end. If no lane is left on this path, the path on top of the stack runs.

Paths on the stack are disjoint sets of lanes, so it is at most 32 deep. Lanes that never meet at a BSYNC never rejoin: each path runs
to its EXIT by itself.

         ISETP.LT.S32 P0, R0, 5                      lanes 0–4         lanes 5–31
         BSSY B0, L9                                     │  B0 = all lanes │
         @P0 BRA L6                                      ├────────────────▶│ pushed
         …  lanes 5–31, then BRA L9 or fall to it        │                 │
     L6: …  lanes 0–4                                    │                 │
     L9: BSYNC B0                                        └─── together ────┘

Faults: a BSSY whose region is open already; a BSYNC of a region that is not open, that names another BSYNC, or by lanes that the region
did not record; a guard that parts the active lanes at BSSY or BSYNC; an EXIT of some live lanes inside an open region that
recorded them; lanes that wait at a BSYNC for others that can no longer come; a BAR with fewer than all live lanes of the warp, or when a warp
of the block has exited; running past the last instruction.
"""

from __future__ import annotations

from typing import Any

from ..core import Instr
from ..lanes import U32, constant
from ..modifiers import SR, UNIFORM_SR, Bits32
from ..operands import READ, WRITE, Convergence, Label, Reg, Unsigned, UReg, bits
from .algebra import by_width


class NOP(Instr, opcode=0x000, unit="control"):
    """Do nothing for one issue slot."""

    def execute(self, m: Any) -> None:
        pass


class EXIT(Instr, opcode=0x001, unit="control"):
    """End the lanes that execute it.

    An open region must not have recorded them, unless all live lanes of the warp end together.
    """

    def execute(self, m: Any) -> None:
        m.exit()


class BRA(Instr, opcode=0x002, unit="control"):
    """Jump: the guard's lanes go to `target`, the others fall through and, if there are both, wait on the warp's stack."""

    target: Label = bits(127, 104)

    def execute(self, m: Any) -> None:
        m.branch(int(self.target))


class BSSY(Instr, opcode=0x003, unit="control"):
    """Open a region: `b` records the active lanes; `target` is the BSYNC that closes it."""

    b: Convergence = bits(29, 26, use=WRITE)
    target: Label = bits(127, 104)

    def execute(self, m: Any) -> None:
        m.push_convergence(int(self.b), int(self.target))


class BSYNC(Instr, opcode=0x004, unit="control"):
    """Close a region: lanes park until every live lane that `b` recorded is here, then go on together."""

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
