"""Trace an instruction's `execute` into a handler: the warp it runs on is this one, and its values emit LLVM vectors.

Register fields of the traced instruction hold stand-ins: field k's first register is numbered 1000·(k+1), so that the
arithmetic of `execute` on register numbers (`d + 1`) still tells which field and which word are meant, while the row itself comes
from the record's slot when the handler runs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from llvmlite import ir

from knapper.isa.core import Instr
from knapper.isa.lanes import B1, F64, U32, U64, LaneType, Value
from knapper.isa.operands import Guard, Pred, Reg, Src, UReg

from ..decode import RECORD, ROW, Variant
from ..faults import READS, WRITES, Kind
from .algebra import Algebra, Traced, element_type
from .emit import FULL, I32, I64, Code, Num, Require, Struct, constant_vector, vector
from .layout import BARRIER, BRANCH, CONVERGE, EXIT, FAULT, NEXT, PUSH, STATE, WORD
from .moves import MOVER, mover

STAND_IN = 1000


def stand_in(variant: Variant) -> Instr:
    """The variant's instruction with stand-ins for registers."""
    numbers: dict[str, Any] = {}
    for name, slot in variant.slots.items():
        kind = variant.instr.layout[name][0]
        number = STAND_IN * (slot + 1)
        if kind is Src:
            source = getattr(variant.instr, name).kind
            numbers[name] = Src(source << 32 | number)
        elif issubclass(kind, (Reg, UReg, Pred, Guard)):
            numbers[name] = kind(number)
    return dataclasses.replace(variant.instr, **numbers)


class TraceWarp:
    """A warp being traced: `knapper.isa.lanes.Warp` for the values of `Algebra`."""

    def __init__(
        self,
        code: Code,
        variant: Variant,
        features: frozenset[str],
        checked: bool,
        require: Require,
    ) -> None:
        self.code, self.variant, self.checked, self.require = code, variant, checked, require
        state, record, mask = code.arguments[:3]
        self.state, self.record = Struct(code, STATE, state), Struct(code, RECORD, record)
        self.mask = code.of(mask)
        self.algebra = Algebra(code, features)
        self.pending: list[tuple[Any, Any]] = []
        """Register writes not yet emitted: rows and their words."""
        self.status: Num | int = NEXT

    def finish(self) -> None:
        """Emit what is left."""
        self.flush()
        self.code.give(self.status)

    # --- faults

    def fault(self, kind: Kind, lane: Num | int = 0, value: Num | int = 0, aux: int = 0) -> None:
        """Stop here."""
        value = value.wide() if isinstance(value, Num) else value
        self.state.fault_lane, self.state.fault_value, self.state.fault_aux = lane, value, aux
        self.code.give(FAULT + kind)

    def written(self, shadow: str, index: Num, kind: Kind) -> None:
        """In the checked engine: fault if an active lane's word was never written; `index` counts words of the shadow."""
        if self.checked:
            have = self.shadow(shadow, index)
            missing = self.mask & ~have.get("x")
            with self.code.when(missing != 0, likely=False):
                self.fault(kind, missing.lowest(), index)

    def shadow(self, name: str, index: Num) -> Struct:
        """A word of a shadow, as `.x`."""
        place = self.code.at(self.state.pointer_to(name), index.wide() * 4)
        return Struct(self.code, WORD, place)

    # --- registers

    def slot(self, number: int) -> tuple[Num, int]:
        """A stand-in: the value of its slot, and the word that is meant."""
        field, word = divmod(int(number), STAND_IN)
        return self.record.get("slot", field - 1), word

    def row(self, number: int) -> Any:
        slot, word = self.slot(number)
        return self.code.at(self.state.pointer_to("regs"), slot + word * ROW)

    def unclaimed(self, index: Num, use: int) -> None:
        """In the checked engine: fault if a pending systolic command writes the register."""
        claimed, warp = self.state.claimed_reg, self.state.get("warp").wide()
        with self.code.when(claimed != 0):
            mine = self.code.pointer(claimed + warp * self.state.has_reg_bytes)
            cell = self.code.of(self.code.load(self.code.at(mine, index.wide() * 4), I32, 4))
            with self.code.when(cell != 0, likely=False):
                self.fault(Kind.ASYNC_REGISTER, 0, index, use)

    def word(self, number: int) -> Any:
        slot, word = self.slot(number)
        if self.checked:
            self.unclaimed((slot + word * ROW) // ROW, READS)
        self.written("has_reg", (slot + word * ROW) // ROW, Kind.UNWRITTEN_REGISTER)
        return self.code.load(self.row(number), vector(I32), 64)

    def read(self, reg: Any, type: LaneType) -> Traced:
        self.flush()
        low = Traced(self.algebra, self.word(reg), U32)
        if type.bits == 64:
            return self.wide(low, Traced(self.algebra, self.word(reg + 1), U32), type)
        return self.narrow(low, type)

    def wide(self, low: Traced, high: Traced, type: LaneType) -> Traced:
        both = low.algebra.convert(low, U64) | low.algebra.shl(low.algebra.convert(high, U64), 32)
        return self.algebra._raw(both, type)

    def narrow(self, word: Traced, type: LaneType) -> Traced:
        """The low bits of a word."""
        if type.bits == 32:
            return self.algebra._raw(word, type)
        return Traced(self.algebra, self.code.b.trunc(word.v, vector(ir.IntType(type.bits))), type)

    def words_of(self, value: Traced) -> list[Any]:
        """A value as it sits in registers."""
        value, b = self.algebra.canonical(value), self.code.b
        if value.type.bits == 64:
            raw = b.bitcast(value.v, vector(I64))
            return [
                b.trunc(raw, vector(I32)),
                b.trunc(b.lshr(raw, constant_vector(I64, [32] * 32)), vector(I32)),
            ]
        if value.type.bits == 32:
            return [b.bitcast(value.v, vector(I32))]
        extend = b.sext if value.type.kind == "s" else b.zext
        return [extend(value.v, vector(I32))]

    def write(self, reg: Any, value: Value) -> None:
        for i, word in enumerate(self.words_of(value)):
            self.mark(reg + i)
            self.pending.append((self.row(reg + i), word))

    def mark(self, number: int) -> None:
        """In the checked engine: the active lanes of a register hold something now."""
        if self.checked:
            slot, word = self.slot(number)
            self.unclaimed((slot + word * ROW) // ROW, WRITES)
            have = self.shadow("has_reg", (slot + word * ROW) // ROW)
            have.x = have.get("x") | self.mask

    def flush(self) -> None:
        """Emit the register writes: plain stores if every lane is active, else blends."""
        if not self.pending:
            return
        writes, self.pending = self.pending, []
        with self.code.either(self.mask == FULL) as (full, partial):
            with full:
                for row, word in writes:
                    self.code.store(word, row, 64)
            with partial:
                lanes = self.code.lane_mask(self.mask)
                for row, word in writes:
                    old = self.code.load(row, vector(I32), 64)
                    self.code.store(self.code.b.select(lanes, word, old), row, 64)

    def source(self, src: Any, type: LaneType) -> Traced:
        if src.kind == Src.REG:
            return self.read(src.payload, type)
        return self.uniform(src, type)

    def uniform(self, reg: Any, type: LaneType) -> Traced:
        if isinstance(reg, Src):
            if reg.kind == Src.IMM:
                return self.immediate(self.slot(reg.payload)[0], type)
            reg = reg.payload
        low = self.uniform_word(reg)
        if type.bits == 64:
            return self.spread(low.wide() | self.uniform_word(reg + 1).wide() << 32, type)
        return self.spread(low, type)

    def uniform_word(self, number: int) -> Num:
        slot, word = self.slot(number)
        if self.checked:
            have = self.shadow("has_ureg", (slot + word * 4) >> 2)
            with self.code.when(have.get("x") == 0, likely=False):
                self.fault(Kind.UNWRITTEN_UNIFORM, 0, (slot + word * 4) >> 2)
        return self.code.of(
            self.code.load(self.code.at(self.state.pointer_to("uregs"), slot + word * 4), I32, 4)
        )

    def uniform_scalar(self, src: Src) -> Num:
        """A uniform register or an immediate, as one number."""
        return self.slot(src.payload)[0] if src.kind == Src.IMM else self.uniform_word(src.payload)

    def immediate(self, payload: Num, type: LaneType) -> Traced:
        if type.bits < 64:
            return self.spread(payload, type)
        return self.spread(payload.wide() << 32 if type is F64 else payload.wide(signed=True), type)

    def spread(self, scalar: Num, type: LaneType) -> Traced:
        """A scalar of raw bits in every lane."""
        value, element = scalar.value, element_type(type)
        if scalar.value.type.width > type.bits:
            value = self.code.b.trunc(value, ir.IntType(type.bits))
        if type.bits > 16:
            value = self.code.b.bitcast(value, element)
        return Traced(self.algebra, self.code.splat(value), type)

    def set_uniform(self, reg: Any, value: Value) -> None:
        slot, first = self.slot(reg)
        for i, word in enumerate(self.words_of(value)):
            place = slot + (first + i) * 4
            self.code.store(
                self.code.element(word, 0), self.code.at(self.state.pointer_to("uregs"), place), 4
            )
            if self.checked:
                self.shadow("has_ureg", place >> 2).x = FULL

    # --- predicates

    def predicate(self, p: Any) -> Traced:
        slot, _ = self.slot(p)
        self.written("has_pred", slot >> 2, Kind.UNWRITTEN_PREDICATE)
        bits = self.code.of(
            self.code.load(self.code.at(self.state.pointer_to("preds"), slot), I32, 4)
        )
        if isinstance(p, Guard):
            bits = bits ^ self.record.get("slot", int(p) // STAND_IN)
        return Traced(self.algebra, self.code.lane_mask(bits), B1)

    def set_predicate(self, p: Any, value: Value) -> None:
        self._set_predicate(p, self.code.bits(value.v), self.mask)

    def set_uniform_predicate(self, p: Any, value: Value) -> None:
        bit = self.code.element(value.v, 0)
        self._set_predicate(p, self.code.of(self.code.b.sext(bit, I32)), self.code.num(FULL))

    def _set_predicate(self, p: Any, bits: Num, mask: Num) -> None:
        slot, _ = self.slot(p)
        place = self.code.at(self.state.pointer_to("preds"), slot)
        old = self.code.of(self.code.load(place, I32, 4))
        self.code.store(((old & ~mask) | (bits & mask)).value, place, 4)
        if self.checked:
            have = self.shadow("has_pred", slot >> 2)
            have.x = have.get("x") | mask

    # --- between lanes

    def lane(self) -> Traced:
        return Traced(self.algebra, constant_vector(I32, range(32)), U32)

    def active(self) -> Traced:
        return Traced(self.algebra, self.code.lane_mask(self.mask), B1)

    def special(self, name: str) -> Traced:
        if name == "LANEID":
            return self.lane()
        if name.startswith("TID"):
            row = self.code.at(self.state.pointer_to("tids"), "XYZ".index(name[-1]) * ROW)
            return Traced(self.algebra, self.code.load(row, vector(I32), 64), U32)
        return self.spread(self.state.get("warp" if name == "WARPID" else name.lower()), U32)

    def shuffle(self, value: Value, lane: Value) -> Traced:
        words = [self.permute(word, lane) for word in self.words_of(value)]
        low = Traced(self.algebra, words[0], U32)
        if len(words) == 2:
            return self.wide(low, Traced(self.algebra, words[1], U32), value.type)
        return self.narrow(low, value.type)

    def permute(self, word: Any, lane: Traced) -> Any:
        """Words picked by lane number modulo 32."""
        code, half = self.code, vector(I32, 16)
        if "avx512f" in self.algebra.features:
            low, high = (code.shuffle(word, word, range(i, i + 16)) for i in (0, 16))
            picked = []
            for i in (0, 16):
                index = code.shuffle(lane.v, lane.v, range(i, i + 16))
                picked.append(
                    code.call(
                        "llvm.x86.avx512.vpermi2var.d.512",
                        ir.FunctionType(half, [half] * 3),
                        low,
                        index,
                        high,
                    )
                )
            return code.shuffle(picked[0], picked[1], range(32))
        place = code.stack(ROW)
        code.store(word, place, 64)
        out = ir.Constant(vector(I32), ir.Undefined)
        for i in range(32):
            index = code.of(code.element(lane.v, i)) & 31
            out = code.b.insert_element(
                out, code.load(code.at(place, index * 4), I32, 4), ir.Constant(I32, i)
            )
        return out

    def ballot(self, value: Value) -> Traced:
        return self.spread(self.code.bits(value.v) & self.mask, U32)

    def first(self, value: Value) -> Traced:
        return Traced(
            self.algebra,
            self.code.splat(self.code.element(value.v, self.mask.lowest())),
            value.type,
        )

    # --- memory

    def addresses(self, address: Traced) -> Any:
        place = self.code.stack(256)
        self.code.store(self.algebra.convert(address, U64).v, place, 64)
        return place

    def load(
        self, space: str, address: Value, type: LaneType, words: int = 1, where: Value | None = None
    ) -> list[Traced]:
        self.flush()
        mask = self.mask if where is None else self.mask & self.code.bits(where.v)
        mask = self.code.num(FULL) if space == "param" else mask
        size = words * type.bits // 8
        rows = self.code.stack(max(size // 4, 1) * ROW)
        self.move(
            mover("load", space, size, self.checked and space != "param"),
            mask,
            self.addresses(address),
            rows,
        )
        values = []
        for i in range(words):
            step = max(type.bits // 32, 1)
            low, high = (
                Traced(
                    self.algebra,
                    self.code.load(self.code.at(rows, (i * step + w) * ROW), vector(I32), 64),
                    U32,
                )
                for w in (0, step - 1)
            )
            values.append(self.wide(low, high, type) if type.bits == 64 else self.narrow(low, type))
        return values

    def store(
        self, space: str, address: Value, values: list[Value], where: Value | None = None
    ) -> None:
        self.flush()
        mask = self.mask if where is None else self.mask & self.code.bits(where.v)
        words = [w for v in values for w in self.words_of(v)]
        rows = self.code.stack(len(words) * ROW)
        for i, word in enumerate(words):
            self.code.store(word, self.code.at(rows, i * ROW), 64)
        size = sum(v.type.bits for v in values) // 8
        self.move(mover("store", space, size, self.checked), mask, self.addresses(address), rows)

    def move(self, name: str, mask: Num, addresses: Any, rows: Any) -> None:
        """Call a mover; stop if it faults."""
        self.require(name)
        status = self.code.of(
            self.code.call(
                name, MOVER, self.state.pointer, self.record.pointer, mask.value, addresses, rows
            )
        )
        with self.code.when(status != 0, likely=False):
            self.code.give(status)

    # --- control: the interpreter acts on the status

    def branch(self, target: Any) -> None:
        self.status = BRANCH

    def push_convergence(self, barrier: Any, target: Any) -> None:
        self.status = PUSH

    def converge(self, barrier: Any) -> None:
        self.status = CONVERGE

    def barrier(self, number: Any) -> None:
        self.status = BARRIER

    def exit(self) -> None:
        self.status = EXIT
