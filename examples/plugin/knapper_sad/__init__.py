"""A knapper plugin that does all five: distances without multiplications (as in AdderNet layers and block matching).

    model          Sub ─ Abs ─ ReduceSum            what a network says
    pass           l1                               sees that in the graph and writes
    op             L1Distance                       which the
    generator      sad                              turns into a kernel of
    instruction    SAD4                             four bytes at a time, on
    target         volta-8tc-sad                    a Volta that has it

Use it by `knapper compile … --plugin examples/plugin/knapper_sad/__init__.py`, or install it: its entry point is found by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from knapper.compiler.codegen.builder import RZ, KernelBuilder
from knapper.compiler.codegen.generator import Emitted, Group, Lowered, Options, register
from knapper.compiler.ir import Array, Graph, Type, op, require
from knapper.compiler.passes import Pass
from knapper.compiler.rewrite import P, Var, Writer, rewrite
from knapper.isa.core import Instr
from knapper.isa.instructions import (
    BRA,
    EXIT,
    IADD,
    IMAD,
    ISETP,
    LDG,
    MOV,
    S2R,
    S2UR,
    STG,
    UIADD,
    UISETP,
    ULDC,
    UMOV,
)
from knapper.isa.lanes import U32, select, shr
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Cmp, IntType, Width
from knapper.isa.operands import READ, WRITE, Reg, Src, bits
from knapper.isa.program import Kernel

S32 = IntType.S32


# --- the instruction ----------------------------------------------------------------------------


class SAD4(Instr, opcode=0x300, unit="sad", extension="sad"):
    """d = c + |a0 - b0| + |a1 - b1| + |a2 - b2| + |a3 - b3|, over the unsigned bytes of a and b; wraps."""

    d: Reg = bits(33, 26, use=WRITE)
    a: Reg = bits(41, 34, use=READ)
    b: Src = bits(97, 64, use=READ)
    c: Reg = bits(49, 42, use=READ)

    def execute(self, m: Any) -> None:
        a, b, total = m.read(self.a, U32), m.source(self.b, U32), m.read(self.c, U32)
        for shift in (0, 8, 16, 24):
            x, y = shr(a, shift) & 0xFF, shr(b, shift) & 0xFF
            total = total + select(x < y, y - x, x - y)
        m.write(self.d, total)


# --- the op -------------------------------------------------------------------------------------


@op
def L1Distance(x: Type, y: Type) -> Type:
    """Sum over k of |x[n,k] - y[m,k]|: u8[N,K] and u8[M,K] give i32[N,M]."""
    require(x.dtype == y.dtype == "u8", f"L1Distance takes u8, got {x.dtype} and {y.dtype}")
    require(
        x.rank == y.rank == 2 and x.shape[1] == y.shape[1],
        f"L1Distance takes [N,K] and [M,K], got {x} and {y}",
    )
    return Type("i32", (x.shape[0], y.shape[0]))


@L1Distance.reference
def _(x: Array, y: Array) -> Array:
    total = np.zeros((len(x), len(y)), np.int32)
    for k in range(x.shape[1]):
        total += np.abs(x[:, k, None].astype(np.int32) - y[None, :, k].astype(np.int32))
    return total


@L1Distance.example
def _(rng: np.random.Generator) -> tuple[list[Array], dict[str, Any]]:
    return [rng.integers(0, 256, (3, 8), np.uint8), rng.integers(0, 256, (5, 8), np.uint8)], {}


# --- the pass -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class L1(Pass):
    """Write L1Distance where a network sums |x - y| over the last axis, for x u8[N,1,K] and y u8[1,M,K]."""

    name = "l1"

    def run(self, g: Graph) -> Graph:
        return rewrite(g, [_DISTANCE])


def _distance(w: Writer, x: str, y: str) -> str | None:
    a, b = w.type(x), w.type(y)
    rows, columns = a.rank == 3 and a.shape[1] == 1, b.rank == 3 and b.shape[0] == 1
    if not (a.dtype == b.dtype == "u8" and rows and columns):
        return None
    left = w.op("Reshape", x, shape=(a.shape[0], a.shape[2]))
    right = w.op("Reshape", y, shape=(b.shape[1], b.shape[2]))
    return w.op("L1Distance", left, right)


_x, _y = (P.Cast(Var(v), to="i32") for v in "xy")
_DISTANCE = P.ReduceSum(P.Abs(P.Sub(_x, _y)), axes=(2,), keepdims=False) >> _distance


# --- the kernel generator -----------------------------------------------------------------------


class Sad:
    """One thread a distance, one block `threads` columns of a row."""

    kind = "sad"

    def serves(self, group: Group, machine: Machine) -> str | None:
        """A lone L1Distance of whole words, on a machine that has the instruction."""
        if [n.op for n in group.nodes] != ["L1Distance"]:
            return "it computes L1Distance alone"
        if SAD4.extension not in machine.extensions:
            return f"{machine.name} has no extension {SAD4.extension!r}"
        k = _sizes(group)[2]
        return None if k % 4 == 0 else f"K = {k} is no multiple of 4"

    def candidates(self, group: Group, machine: Machine) -> Iterable[Options]:
        """Blocks of one, two or four warps."""
        return [{"threads": n} for n in (128, 64, 32)]

    def cost(self, group: Group, options: Options, machine: Machine) -> float:
        """Waves of blocks, each as long as its loads and sums take to issue."""
        n, m, k = _sizes(group)
        threads = int(options["threads"])
        blocks = n * -(-m // threads)
        turn = sum(
            machine.units[u].interval for u in ("lsu_global", "lsu_global", "sad", "alu", "alu")
        )
        return -(-blocks // machine.sms) * (threads // 32) * turn * (k // 4)

    def prefetch(self, groups: Sequence[Group], machine: Machine) -> None:
        """Nothing is slow here."""

    def pack(self, group: Group, options: Options, machine: Machine) -> dict[str, Array]:
        """Nothing is packed: the rows of y are read as they are, so one kernel serves all weights."""
        return {}

    def lower(self, group: Group, options: Options, machine: Machine) -> Lowered:
        """One kernel."""
        n, m, k = _sizes(group)
        threads = int(options["threads"])
        node = group.nodes[0]
        x, y, z = *node.inputs, *node.outputs
        kernel = _kernel(m, k, threads, machine)
        uses = {x: "r", y: "r"} | {z: "w"}
        return Lowered((Emitted(kernel, (-(-m // threads), n, 1), (x, y, z), uses, (node.loc,)),))

    def evaluate(self, group: Group, options: Options, env: dict[str, Array]) -> dict[str, Array]:
        """Block by block, four bytes at a time, as the kernel goes."""
        node, threads = group.nodes[0], int(options["threads"])
        x, y = (env[v].astype(np.int32) for v in node.inputs)
        out = np.zeros((len(x), len(y)), np.int32)
        for start in range(0, len(y), threads):
            block = y[start : start + threads]
            for word in range(0, x.shape[1], 4):
                part = slice(word, word + 4)
                out[:, start : start + threads] += np.abs(
                    x[:, None, part] - block[None, :, part]
                ).sum(2, np.int32)
        return {node.outputs[0]: out}


def _sizes(group: Group) -> tuple[int, int, int]:
    """N, M, K."""
    x, y = (group.inputs[v] for v in group.nodes[0].inputs)
    return x.shape[0], y.shape[0], x.shape[1]


def _kernel(m: int, k: int, threads: int, machine: Machine) -> Kernel:
    """z[row, column] for row = CTAID.Y, column = CTAID.X * threads + TID.X."""
    b = KernelBuilder(f"sad_{m}x{k}", (threads, 1, 1), machine)
    x, y, z = (b.ureg(2) for _ in range(3))
    for i, pointer in enumerate((x, y, z)):
        b.emit(ULDC, Bits32._64, pointer, 8 * i)
    row, column, at_x, at_y, at_z = (b.reg() for _ in range(5))
    inside = b.pred()
    _coordinates(b, row, column, threads)
    b.emit(ISETP, Cmp.LT, S32, inside, column, m)
    b.emit(IMAD, S32, at_x, row, k, RZ)
    b.emit(IMAD, S32, at_y, column, k, RZ)
    total = _sum(b, x, y, at_x, at_y, inside, k // 4)
    b.emit(IMAD, S32, at_z, row, m, column)
    b.emit(IMAD, S32, at_z, at_z, 4, RZ)
    b.emit(STG, Width._32, z, at_z, 0, total, guard=inside)
    b.emit(EXIT)
    return b.finish()


def _coordinates(b: KernelBuilder, row: Any, column: Any, threads: int) -> None:
    block_x, block_y, thread = b.ureg(), b.ureg(), b.reg()
    b.emit(S2UR, SR.CTAID_X, block_x)
    b.emit(S2UR, SR.CTAID_Y, block_y)
    b.emit(S2R, SR.TID_X, thread)
    b.emit(MOV, row, block_y)
    b.emit(MOV, column, block_x)
    b.emit(IMAD, S32, column, column, threads, thread)


def _sum(b: KernelBuilder, x: Any, y: Any, at_x: Any, at_y: Any, inside: Any, words: int) -> Any:
    """The loop over K, a word of four bytes a turn; gives the register of the sum."""
    total, left, right = (b.reg() for _ in range(3))
    turn, more, loop = b.ureg(), b.pred(), b.label()
    b.emit(MOV, total, 0)
    b.emit(UMOV, turn, 0)
    b.place(loop)
    b.emit(LDG, Width._32, left, x, at_x, 0, guard=inside)
    b.emit(LDG, Width._32, right, y, at_y, 0, guard=inside)
    b.emit(SAD4, total, left, right, total, guard=inside)
    for at in (at_x, at_y):
        b.emit(IADD, S32, at, at, 4)
    b.emit(UIADD, Bits32._32, turn, turn, 1)
    b.emit(UISETP, Cmp.LT, S32, more, turn, words)
    b.emit(BRA, loop, guard=more)
    return total


register(Sad())
