"""Kernels of one warp for tests of `KernelBuilder`: each thread's words in, what is written of them, words out."""

from __future__ import annotations

from typing import Any

import numpy as np

from knapper.compiler.codegen.builder import KernelBuilder, VReg
from knapper.compiler.ir import Array
from knapper.isa.instructions import EXIT, IMUL, LDG, S2R, STG, ULDC
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, IntType, Width
from knapper.isa.program import BASE, Kernel, Launch, Operand, Port, Program
from knapper.runtime.session import Session

MACHINE = Machine.load("volta-8tc")
S32, U32 = IntType.S32, IntType.U32


class Threads:
    """A kernel of 32 threads over x: u32[32, words] and y alike: registers with the thread's words in, its words out."""

    def __init__(self, words: int, machine: Machine = MACHINE) -> None:
        self.words = words
        b = self.b = KernelBuilder("threads", (32, 1, 1), machine)
        self.x, self.y, self.at, tid = b.ureg(2), b.ureg(2), b.reg(), b.reg()
        b.emit(ULDC, Bits32._64, self.x, 0)
        b.emit(ULDC, Bits32._64, self.y, 8)
        b.emit(S2R, SR.TID_X, tid)
        self.tid = tid
        b.emit(IMUL, S32, self.at, tid, 4 * words)

    def load(self, i: int) -> VReg:
        d = self.b.reg()
        self.b.emit(LDG, Width._32, d, self.x, self.at, 4 * i)
        return d

    def store(self, i: int, value: Any) -> None:
        self.b.emit(STG, Width._32, self.y, self.at, 4 * i, value)

    def run(self, x: Array) -> tuple[Array, Kernel]:
        """Ends the kernel and runs it on x[32, words]; gives y and the kernel."""
        self.b.emit(EXIT)
        kernel = self.b.finish()
        nbytes = 32 * self.words * 4
        operands = (Operand("x", BASE, nbytes, "r"), Operand("y", BASE + 4096, nbytes, "w"))
        launch = Launch("threads", (1, 1, 1), (BASE, BASE + 4096), ("n",), operands)
        ports = [Port(n, "u32", (32, self.words), a) for n, a in (("x", BASE), ("y", BASE + 4096))]
        program = Program(
            MACHINE.to_dict(),
            {"threads": kernel},
            (launch,),
            (ports[0],),
            (ports[1],),
            arena_bytes=8192,
        )
        return Session(program).run({"x": x.astype(np.uint32)}, engine="reference").outputs[
            "y"
        ], kernel
