"""Block after block in compiled code: empty memories, warps from barrier to barrier, a hash of the path that a block took.

status run_blocks(state, first, count)      status 0, or a fault
  └ run_warp(state, warp)                   `interpreter.py`
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from knapper.isa.vector_memory import DESCRIPTORS

from ..faults import Kind
from ..paths import END, EVENT
from .accesses import note_block
from .descriptors import descriptor
from .emit import FULL, I8, I32, I64, PTR, VOID, Code, Num, Struct
from .interpreter import RUN_WARP, fill, stopped
from .layout import (
    ARRAYS,
    BYTE,
    CONTEXT,
    CROWDED,
    DONE,
    FAULT,
    PAGE,
    PREDS,
    STATE,
    STOPPED,
    UNKNOWN,
    UREGS,
    WAITING,
)

RUN_BLOCKS = ir.FunctionType(I32, [PTR, I32, I32])
MIX = 0x9E3779B97F4A7C15
"""An odd number with no pattern: 2^64 over the golden ratio."""


class Blocks:
    """`run_blocks` being written."""

    def __init__(self, code: Code, checked: bool) -> None:
        self.code, self.checked = code, checked
        state, self.first, self.count = code.arguments
        self.state = Struct(code, STATE, state)

    def write(self) -> None:
        code = self.code
        with code.each(code.of(self.count)) as i:
            with code.when(stopped(code, self.state), likely=False):
                code.give(STOPPED)
            number = code.of(self.first) + i
            self.state.fault_block = number
            self.begin(number)
            self.rounds()
            with code.when(self.state.timing != 0):
                self.classify(number)
                with code.when(self.state.log > self.state.log_full, likely=False):
                    code.give(CROWDED)
        code.give(0)

    def classify(self, number: Num) -> None:
        """Note the hash of the block's path; return UNKNOWN if this thread meets it for the first time."""
        code, state = self.code, self.state
        hash = self.hash()
        code.store(hash.value, code.at(state.pointer_to("hashes"), number.wide() * 8), 8)
        place = code.variable(hash.low() & state.known_mask)

        def known() -> Num:
            entry = code.at(state.pointer_to("known"), place.x.wide() * 8)
            return code.of(code.load(entry, I64, 8))

        with code.loop(lambda: (known() != 0) & (known() != hash)):
            place.x = (place.x + 1) & state.known_mask
        with code.when(known() == 0, likely=False):
            code.give(UNKNOWN)

    def hash(self) -> Num:
        """Of the events of all warps, one after the other; not 0. END tells where a warp's events end."""
        code, total = self.code, self.code.variable(1, I64)
        with code.each(self.state.warp_count) as warp:
            end, at = self.context(warp).event, code.variable(self.trail(warp), I64)
            with code.loop(lambda: at.x != end):
                at.x = at.x + EVENT.itemsize
                event = Struct(code, EVENT, code.pointer(at.x))
                for word in (event.pc.wide() | event.get("next").wide() << 32, event.count.wide()):
                    mixed = (total.x ^ word) * MIX
                    total.x = mixed ^ mixed >> 32
        return total.x | (total.x == 0).flag(I64)

    def trail(self, warp: Num) -> Num:
        """Where a warp's events begin: an entry that is none, then they."""
        return self.state.events + warp.wide() * self.state.event_bytes

    def begin(self, number: Num) -> None:
        """Coordinates, empty memories, warps at the start."""
        code, state = self.code, self.state
        state.ctaid_x = number % state.nctaid_x
        state.ctaid_y = number // state.nctaid_x % state.nctaid_y
        state.ctaid_z = number // (state.nctaid_x * state.nctaid_y)
        with code.when(state.timing != 0):
            state.stamp = state.stamp + 1
            note_block(code, state, number)
        self.clear(state.pointer_to("shared"), state.shared_used)
        state.shared_used = state.shared_stores
        self.clear(state.pointer_to("systolic"), state.systolic_bytes)
        if self.checked:
            self.clear(state.pointer_to("has_shared"), state.shared_bytes.wide())
            self.forget()
        with code.each(state.warp_count) as warp:
            self.enter(warp)
            self.clear(state.pointer_to("regs"), state.reg_bytes)
            self.clear(state.pointer_to("local"), state.local_bytes_warp)
            self.clear(state.pointer_to("uregs"), code.num(UREGS * 4, I64))
            self.clear(state.pointer_to("preds"), code.num(PREDS * 4, I64))
            code.store(ir.Constant(I32, FULL), code.at(state.pointer_to("preds"), 7 * 4), 4)
            if self.checked:
                self.unwritten()
            self.start(warp)

    def clear(self, place: Any, size: Num, byte: int = 0) -> None:
        code = self.code
        arguments = [place, ir.Constant(I8, byte), size.value, ir.Constant(ir.IntType(1), 0)]
        code.intrinsic("llvm.memset", VOID, arguments, [PTR, I64])

    def forget(self) -> None:
        """A barrier: who touched shared memory before it no longer matters."""
        code, state = self.code, self.state
        with code.each((state.shared_bytes + (PAGE - 1)) // PAGE) as page:
            touched = Struct(code, BYTE, code.at(state.pointer_to("pages"), page))
            with code.when(touched.get("x") != 0):
                touched.x = 0
                for shadow in ("readers", "writers"):
                    place = code.at(state.pointer_to(shadow), page.wide() * (4 * PAGE))
                    self.clear(place, code.num(4 * PAGE, I64))
        with code.when(state.systolic_bytes != 0):
            arrays = Struct(code, ARRAYS, state.pointer_to("systolic"))
            arrays.loaders = arrays.users = 0
            for number in range(2 * DESCRIPTORS):
                d = descriptor(code, state, code.num(number))
                d.changers = d.users = 0

    def unwritten(self) -> None:
        """Nothing is written but what stands for RZ, URZ and PT."""
        code, state = self.code, self.state
        registers = state.has_reg_bytes - 16 * 4
        self.clear(state.pointer_to("has_reg"), registers)
        self.clear(code.at(state.pointer_to("has_reg"), registers), code.num(16 * 4, I64), 255)
        self.clear(state.pointer_to("has_local"), state.local_bytes_warp)
        for shadow, count, first, last in (("has_ureg", UREGS, 63, 65), ("has_pred", PREDS, 7, 8)):
            self.clear(state.pointer_to(shadow), code.num(count * 4, I64))
            self.clear(
                code.at(state.pointer_to(shadow), first * 4), code.num((last - first) * 4, I64), 255
            )

    def enter(self, warp: Num) -> Struct:
        """Point the state at a warp's registers; its context."""
        code, state = self.code, self.state
        state.warp = warp
        strides: dict[str, Num | int] = {
            "regs": state.reg_bytes, "uregs": UREGS * 4, "preds": PREDS * 4, "local": state.local_bytes_warp, "tids": 384,
        }  # fmt: skip
        if self.checked:
            strides |= {
                "has_reg": state.has_reg_bytes,
                "has_ureg": UREGS * 4,
                "has_pred": PREDS * 4,
                "has_local": state.local_bytes_warp,
            }
        for name, stride in strides.items():
            state.set(name, state.get(f"all_{name}") + warp.wide() * stride)
        return Struct(
            code, CONTEXT, code.at(state.pointer_to("warps"), warp.wide() * CONTEXT.itemsize)
        )

    def start(self, warp: Num) -> None:
        """A fresh context: the threads that the block has, at the first instruction."""
        code, state = self.code, self.state
        w = Struct(
            code, CONTEXT, code.at(state.pointer_to("warps"), warp.wide() * CONTEXT.itemsize)
        )
        self.clear(w.pointer, code.num(CONTEXT.itemsize, I64))
        rest = state.threads - warp * 32
        some = (code.num(1) << (rest & 31)) - 1
        w.live = code.of(code.b.select((rest >= 32).value, code.num(FULL).value, some.value))
        w.path = w.live
        w.left = state.limit
        with code.when(state.timing != 0):
            w.event = self.trail(warp)
            w.last_event = w.event + state.event_bytes - EVENT.itemsize
            fill(Struct(code, EVENT, code.pointer(w.event)), END, END, 0)

    def rounds(self) -> None:
        """Run all warps to a barrier, again and again, until all are done."""
        code, state = self.code, self.state
        running = code.variable(1)
        with code.loop(lambda: running.x != 0):
            with code.each(state.warp_count) as warp:
                w = self.enter(warp)
                with code.when(w.status != DONE):
                    status = code.of(
                        code.call(
                            "run_warp" + ".checked" * self.checked,
                            RUN_WARP,
                            state.pointer,
                            w.pointer,
                        )
                    )
                    with code.when(status != 0, likely=False):
                        state.fault_warp, state.fault_pc = warp, w.pc
                        code.give(status)
            running.x = self.meet()

    def context(self, warp: Num) -> Struct:
        return Struct(
            self.code,
            CONTEXT,
            self.code.at(self.state.pointer_to("warps"), warp.wide() * CONTEXT.itemsize),
        )

    def meet(self) -> Num:
        """Every warp has stopped: 0 if all are done; else all must wait at one barrier, and go on."""
        code, state = self.code, self.state
        waiting = code.variable(FULL)
        with (
            code.each(state.warp_count) as warp,
            code.when((waiting.x == FULL) & (self.context(warp).status == WAITING)),
        ):
            waiting.x = warp
        with code.when(waiting.x != FULL):
            with code.each(state.warp_count) as warp:
                self.compare(waiting.x, warp)
            with code.each(state.warp_count) as warp:
                w = self.context(warp)
                w.pc = w.pc + 1
            if self.checked:
                self.forget()
        return (waiting.x != FULL).flag()

    def compare(self, first: Num, other: Num) -> None:
        """Two warps at a barrier: both there, at the same one."""
        code, state = self.code, self.state
        mine, its = self.context(first), self.context(other)
        for wrong, kind in (
            (its.status == DONE, Kind.BARRIER_EXITED),
            (its.waits != mine.waits, Kind.BARRIER_OTHER),
        ):
            with code.when(wrong, likely=False):
                state.fault_warp, state.fault_pc = first, mine.pc
                state.fault_lane, state.fault_value, state.fault_aux = 0, mine.waits.wide(), other
                code.give(FAULT + kind)
