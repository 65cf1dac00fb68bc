"""The compiled interpreter: a warp's instructions and control flow. `reference.py` is its specification, and reads better.

status run_blocks(state, first, count)      `blocks.py`
  └ run_warp(state, warp)                   to the next barrier or the end; status 0, or a fault
      └ handler(state, record, mask)        one instruction
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from ..decode import RECORD
from ..faults import Kind
from ..paths import END, EVENT, MOST
from .emit import HANDLER, I32, I64, PTR, Code, Num, Struct, vector
from .layout import (
    BARRIER,
    BRANCH,
    CONTEXT,
    CONVERGE,
    COUNTS,
    DONE,
    EXIT,
    FAULT,
    NEXT,
    PUSH,
    STATE,
    STOPPED,
    WAITING,
    WORD,
)

RUN_WARP = ir.FunctionType(I32, [PTR, PTR])
REGIONS = 16


def stopped(code: Code, state: Struct) -> Num:
    """Whether somebody wants the run to end: an interrupt, or a limit that was reached."""
    return code.of(code.load(state.pointer_to("stop"), I32, 4)) != 0


class Warp:
    """`run_warp` being written. Where the warp is lives in variables, hence in machine registers; leaving writes it back."""

    def __init__(self, code: Code, checked: bool) -> None:
        self.code, self.checked = code, checked
        self.state, self.w = (
            Struct(code, STATE, code.arguments[0]),
            Struct(code, CONTEXT, code.arguments[1]),
        )
        self.pc, self.path = code.variable(self.w.pc), code.variable(self.w.path)
        self.left = code.variable(self.w.left, I64)
        self.running = code.variable(1)

    def write(self) -> None:
        """Fetch, count, execute, until the warp stops."""
        code = self.code
        with code.loop(lambda: self.running.x != 0):
            record, mask = self.fetch()
            with code.either(mask != 0, likely=True) as (some, none):
                with some:
                    status = self.execute(record, mask)
                    with code.either(status == NEXT, likely=True) as (onward, control):
                        with onward:
                            self.pc.x = self.pc.x + 1
                        with control:
                            self.control(status, record, mask)
                with none:
                    counts = self.counts(record)
                    counts.skipped = counts.skipped + 1
                    self.record(self.pc.x + 1)
                    self.pc.x = self.pc.x + 1
        self.leave(0)

    def leave(self, status: Num | int) -> None:
        """Return to the block."""
        self.w.pc, self.w.path, self.w.left = self.pc.x, self.path.x, self.left.x
        self.code.give(status)

    def fault(
        self, kind: Kind, lane: Num | int = 0, value: Num | int = 0, aux: Num | int = 0
    ) -> None:
        value = value.wide() if isinstance(value, Num) else value
        self.state.fault_lane, self.state.fault_value, self.state.fault_aux = lane, value, aux
        self.leave(FAULT + kind)

    def counts(self, record: Struct) -> Struct:
        return Struct(self.code, COUNTS, self.code.at(record.pointer, self.state.get("counters")))

    def fetch(self) -> tuple[Struct, Num]:
        """The next record and the lanes that execute it, counted."""
        code, state = self.code, self.state
        with code.when(self.left.x == 0, likely=False):
            self.fault(Kind.LIMIT, 0, state.limit)
        self.left.x = self.left.x - 1
        record = Struct(
            code, RECORD, code.at(state.pointer_to("code"), self.pc.x.wide() * RECORD.itemsize)
        )
        path = self.path.x
        self.guard_written(record, path)
        preds = code.at(state.pointer_to("preds"), record.guard)
        mask = path & (code.of(code.load(preds, I32, 4)) ^ record.flip)
        self.count(record, mask)
        return record, mask

    def count(self, record: Struct, mask: Num) -> None:
        """executed += 1, lanes += their number, in one vector addition."""
        code, pair = self.code, vector(I64, 2)
        one = ir.Constant(pair, [1, 0])
        step = code.b.insert_element(one, mask.popcount().wide().value, ir.Constant(I32, 1))
        place = self.counts(record).address("executed")
        code.store(code.b.add(code.load(place, pair, 16), step), place, 16)

    def guard_written(self, record: Struct, path: Num) -> None:
        if self.checked:
            place = self.code.at(self.state.pointer_to("has_pred"), record.guard)
            missing = path & ~Struct(self.code, WORD, place).get("x")
            with self.code.when(missing != 0, likely=False):
                self.fault(Kind.UNWRITTEN_PREDICATE, missing.lowest(), record.guard >> 2)

    def execute(self, record: Struct, mask: Num) -> Num:
        handler = self.code.b.load(record.address("handler"), typ=PTR)
        arguments = [self.state.pointer, record.pointer, mask.value]
        return self.code.of(self.code.b.call(_Callee(handler), arguments))

    def control(self, status: Num, record: Struct, mask: Num) -> None:
        """A control code or a fault."""
        acts: dict[int, Callable[[Struct, Num], None]] = {
            BRANCH: self.branch, PUSH: self.push, CONVERGE: self.converge, BARRIER: self.barrier, EXIT: self.exit,
        }  # fmt: skip
        for number, act in acts.items():
            with self.code.when(status == number):
                act(record, mask)
        with self.code.when(status >= FAULT, likely=False):
            self.leave(status)

    def record(self, to: Num | int) -> None:
        """An event of the path: from here the warp goes to `to`."""
        code, w, pc = self.code, self.w, self.pc.x
        with code.when(w.event != 0):
            last = Struct(code, EVENT, code.pointer(w.event))
            again = (last.pc == pc) & (last.get("next") == to) & (last.get("count") != MOST)
            with code.either(again) as (same, new):
                with same:
                    last.count = last.get("count") + 1
                with new:
                    with code.when(w.event == w.last_event, likely=False):
                        self.fault(Kind.PATH, 0, self.state.event_bytes // EVENT.itemsize - 1)
                    w.event = w.event + EVENT.itemsize
                    fill(Struct(code, EVENT, code.pointer(w.event)), pc, to, 1)

    # --- control flow, as in RefWarp

    def park(self, pc: Num, mask: Num) -> None:
        """Put a path on the stack."""
        w = self.w
        depth = w.depth
        w.set("paths_pc", pc, depth)
        w.set("paths_mask", mask, depth)
        w.depth = depth + 1

    def branch(self, record: Struct, mask: Num) -> None:
        rest = self.path.x & ~mask
        with self.code.when(rest != 0):
            self.park(self.pc.x + 1, rest)
        target = record.get("slot", 0)
        with self.code.when(target != self.pc.x + 1, likely=True):
            self.record(target)
        self.pc.x = target
        self.path.x = mask
        with self.code.when(stopped(self.code, self.state), likely=False):
            self.leave(STOPPED)

    def together(self, mask: Num) -> None:
        out = self.path.x & ~mask
        with self.code.when(out != 0, likely=False):
            self.fault(Kind.REGION_SPLIT, out.lowest())

    def push(self, record: Struct, mask: Num) -> None:
        w, b = self.w, record.get("slot", 0)
        self.together(mask)
        with self.code.when(w.get("lanes", b) != 0, likely=False):
            self.fault(Kind.REGION_OPEN, 0, b, w.get("start", b))
        for name, value in (
            ("lanes", self.path.x),
            ("parked", 0),
            ("end", record.get("slot", 1)),
            ("start", self.pc.x),
        ):
            w.set(name, value, b)
        self.pc.x = self.pc.x + 1

    def converge(self, record: Struct, mask: Num) -> None:
        code, w, b = self.code, self.w, record.get("slot", 0)
        self.together(mask)
        lanes = w.get("lanes", b)
        named = code.of(
            code.b.select((w.get("end", b) == self.pc.x).value, lanes.value, code.num(0).value)
        )
        strangers = self.path.x & ~named
        with code.when(strangers != 0, likely=False):
            self.fault(Kind.REGION_CLOSED, strangers.lowest(), b)
        parked = w.get("parked", b) | self.path.x
        w.set("parked", parked, b)
        with code.either(parked == (lanes & w.live)) as (all_here, some):
            with all_here:
                w.set("lanes", 0, b)
                w.set("parked", 0, b)
                self.path.x = parked
                self.pc.x = self.pc.x + 1
            with some:
                self.resume()

    def resume(self) -> None:
        """Take the path on top of the stack."""
        code, w = self.code, self.w
        with code.either(w.depth != 0) as (more, none):
            with more:
                w.depth = w.depth - 1
                self.record(w.get("paths_pc", w.depth))
                self.pc.x, self.path.x = w.get("paths_pc", w.depth), w.get("paths_mask", w.depth)
            with none:
                with code.when(w.live != 0, likely=False):
                    self.stuck()
                self.record(END)
                self.stop(DONE)

    def stop(self, status: int) -> None:
        self.w.status = status
        self.running.x = 0

    def stuck(self) -> None:
        """No path is left, but lanes live: they are parked. Tell of the lowest barrier with parked lanes."""
        code, w = self.code, self.w
        with code.each(code.num(REGIONS)) as b, code.when(w.get("parked", b) != 0):
            self.fault(
                Kind.REGION_STUCK, (w.get("lanes", b) & w.live & ~w.get("parked", b)).lowest(), b
            )

    def exit(self, record: Struct, mask: Num) -> None:
        code, w = self.code, self.w
        with code.when(w.live & ~mask != 0), code.each(code.num(REGIONS)) as b:
            lost = w.get("lanes", b) & mask
            with code.when(lost != 0, likely=False):
                self.fault(Kind.REGION_EXIT, lost.lowest(), b)
        w.live = w.live & ~mask
        self.path.x = self.path.x & ~mask
        with code.either(self.path.x != 0) as (some, none):
            with some:
                self.pc.x = self.pc.x + 1
            with none:
                self.resume()

    def barrier(self, record: Struct, mask: Num) -> None:
        w, number = self.w, record.get("slot", 0)
        missing = w.live & ~mask
        with self.code.when(missing != 0, likely=False):
            self.fault(Kind.BARRIER_DIVERGED, missing.lowest(), number)
        w.waits = number
        self.stop(WAITING)


def fill(event: Struct, pc: Num | int, to: Num | int, count: int) -> None:
    """Write an event."""
    event.pc = pc
    event.set("next", to)
    event.set("count", count)


class _Callee:
    """What `IRBuilder.call` needs of a function, for a pointer loaded at run time."""

    def __init__(self, pointer: Any) -> None:
        self.pointer, self.function_type, self.type = pointer, HANDLER, pointer.type

    @property
    def args(self) -> tuple[Any, ...]:
        return tuple(self.function_type.args)

    def get_reference(self) -> str:
        return str(self.pointer.get_reference())
