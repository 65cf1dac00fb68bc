"""Write LLVM IR as if it were Python: unsigned numbers with operators, structs with fields, `if` and `while` as contexts.

    with c.when(warp.path == 0):        # a branch
        warp.pc = warp.pc + 1           # a load, an add, a store

Layouts are numpy dtypes, so Python and the compiled code share one declaration of every struct.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import ir

from knapper.isa.lanes import LANES

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
FLOAT, DOUBLE, HALF = ir.FloatType(), ir.DoubleType(), ir.HalfType()
PTR, VOID = ir.PointerType(), ir.VoidType()
HANDLER = ir.FunctionType(I32, [PTR, PTR, I32])
"""status handler(state, record, mask): 0 to go on, a control code, or a fault."""
Require = Callable[[str], None]
"""Asks for the unit of a symbol: who calls it, needs it."""

FULL = 0xFFFFFFFF


def vector(element: Any, count: int = LANES) -> Any:
    """The type of `count` lanes."""
    return ir.VectorType(element, count)


class Num:
    """An unsigned scalar in emitted code. Python integers beside it take its width."""

    def __init__(self, code: Code, value: Any) -> None:
        self.code, self.value = code, value

    def _with(self, other: Num | int, emit: Callable[[Any, Any], Any]) -> Num:
        right = other.value if isinstance(other, Num) else ir.Constant(self.value.type, other)
        return Num(self.code, emit(self.value, right))

    def __add__(self, other: Num | int) -> Num:
        return self._with(other, self.code.b.add)

    def __sub__(self, other: Num | int) -> Num:
        return self._with(other, self.code.b.sub)

    def __mul__(self, other: Num | int) -> Num:
        return self._with(other, self.code.b.mul)

    def __floordiv__(self, other: Num | int) -> Num:
        return self._with(other, self.code.b.udiv)

    def __mod__(self, other: Num | int) -> Num:
        return self._with(other, self.code.b.urem)

    def __and__(self, other: Num | int) -> Num:
        return self._with(other, self.code.b.and_)

    def __or__(self, other: Num | int) -> Num:
        return self._with(other, self.code.b.or_)

    def __xor__(self, other: Num | int) -> Num:
        return self._with(other, self.code.b.xor)

    def __lshift__(self, other: Num | int) -> Num:
        return self._with(other, self.code.b.shl)

    def __rshift__(self, other: Num | int) -> Num:
        return self._with(other, self.code.b.lshr)

    def __invert__(self) -> Num:
        return Num(self.code, self.code.b.not_(self.value))

    def _compare(self, op: str, other: Num | int) -> Num:
        return self._with(other, lambda x, y: self.code.b.icmp_unsigned(op, x, y))

    def __eq__(self, other: Num | int) -> Num:  # type: ignore[override]  # a comparison in emitted code
        return self._compare("==", other)

    def __ne__(self, other: Num | int) -> Num:  # type: ignore[override]  # likewise
        return self._compare("!=", other)

    __hash__ = None  # type: ignore[assignment]  # equality is emitted, so a Num is no key

    def __lt__(self, other: Num | int) -> Num:
        return self._compare("<", other)

    def __le__(self, other: Num | int) -> Num:
        return self._compare("<=", other)

    def __gt__(self, other: Num | int) -> Num:
        return self._compare(">", other)

    def __ge__(self, other: Num | int) -> Num:
        return self._compare(">=", other)

    def wide(self, signed: bool = False) -> Num:
        """As 64 bits."""
        extend = self.code.b.sext if signed else self.code.b.zext
        return Num(self.code, extend(self.value, I64)) if self.value.type.width < 64 else self

    def low(self, type: Any = I32) -> Num:
        """The low bits."""
        return Num(self.code, self.code.b.trunc(self.value, type))

    def flag(self, type: Any = I32) -> Num:
        """A truth value as 0 or 1."""
        return Num(self.code, self.code.b.zext(self.value, type))

    def popcount(self) -> Num:
        return Num(self.code, self.code.intrinsic("llvm.ctpop", self.value.type, [self.value]))

    def lowest(self) -> Num:
        """The number of the lowest set bit; the width if there is none."""
        return Num(
            self.code,
            self.code.intrinsic("llvm.cttz", self.value.type, [self.value, ir.Constant(I1, 0)]),
        )


class Struct:
    """A struct in memory by its numpy dtype: reading a field loads it, assigning one stores."""

    code: Code
    dtype: np.dtype[Any]
    pointer: Any

    def __init__(self, code: Code, dtype: np.dtype[Any], pointer: Any) -> None:
        self.__dict__.update(code=code, dtype=dtype, pointer=pointer)

    def _place(self, name: str, index: Num | int = 0) -> tuple[Any, Any]:
        assert self.dtype.fields is not None
        field, offset = self.dtype.fields[name][:2]
        base = field.base
        where = self.code.at(self.pointer, offset)
        if not isinstance(index, int) or index:
            where = self.code.at(
                where,
                index * base.itemsize if isinstance(index, int) else index.wide() * base.itemsize,
            )
        return where, ir.IntType(base.itemsize * 8)

    def address(self, name: str, index: Num | int = 0) -> Any:
        """Where a field is."""
        return self._place(name, index)[0]

    def get(self, name: str, index: Num | int = 0) -> Num:
        """An element of an array field."""
        where, type = self._place(name, index)
        return Num(self.code, self.code.b.load(where, typ=type))

    def set(self, name: str, value: Num | int, index: Num | int = 0) -> None:
        where, type = self._place(name, index)
        self.code.b.store(
            value.value if isinstance(value, Num) else ir.Constant(type, value), where
        )

    def pointer_to(self, name: str) -> Any:
        """The pointer that a 64-bit field holds."""
        return self.code.b.load(self._place(name)[0], typ=PTR)

    def __getattr__(self, name: str) -> Num:
        return self.get(name)

    def __setattr__(self, name: str, value: Num | int) -> None:
        self.set(name, value)


class Code:
    """A function being written."""

    def __init__(self, module: ir.Module, name: str, type: Any = HANDLER, inline: str = "") -> None:
        self.module = module
        self.function = function(module, name, type)
        if inline:
            self.function.attributes.add(inline)
        self.b = ir.IRBuilder(self.function.append_basic_block("entry"))

    @property
    def arguments(self) -> Sequence[Any]:
        return tuple(self.function.args)

    # --- scalars and memory

    def num(self, x: int, type: Any = I32) -> Num:
        """A constant."""
        return Num(self, ir.Constant(type, x))

    def of(self, value: Any) -> Num:
        """A scalar IR value as a number."""
        return Num(self, value)

    def at(self, pointer: Any, offset: Num | int) -> Any:
        """A pointer `offset` bytes on."""
        if isinstance(offset, int) and offset == 0:
            return pointer
        step = ir.Constant(I64, offset) if isinstance(offset, int) else offset.wide().value
        return self.b.gep(pointer, [step], source_etype=I8)

    def load(self, pointer: Any, type: Any, align: int = 1) -> Any:
        value = self.b.load(pointer, typ=type)
        value.align = align
        return value

    def store(self, value: Any, pointer: Any, align: int = 1) -> None:
        self.b.store(value, pointer).align = align

    def move(self, target: Any, source: Any, size: Num) -> None:
        """Copy bytes to a place that does not overlap."""
        arguments = [target, source, size.value, ir.Constant(I1, 0)]
        self.intrinsic("llvm.memcpy", VOID, arguments, [PTR, PTR, I64])

    def pointer(self, address: Num) -> Any:
        """A host address as a pointer."""
        return self.b.inttoptr(address.value, PTR)

    def table(self, words: Sequence[int]) -> Any:
        """Constant words in memory, of which a function has one table."""
        type = ir.ArrayType(I32, len(words))
        place = ir.GlobalVariable(self.module, type, f"{self.function.name}.table")
        place.global_constant, place.linkage, place.align = True, "internal", 64
        place.initializer = ir.Constant(type, [int(w) for w in words])
        return self.b.bitcast(place, PTR)

    def stack(self, size: int, align: int = 64) -> Any:
        """`size` bytes of the function's frame."""
        return self._frame(ir.ArrayType(I8, size), align)

    def _frame(self, type: Any, align: int) -> Any:
        with self.b.goto_entry_block():
            place = self.b.alloca(type)
        place.align, place.type = align, PTR  # llvmlite still gives it a typed pointer
        return place

    def variable(self, start: Num | int, type: Any = I32) -> Struct:
        """A mutable number: `v.x`."""
        place = self._frame(type, type.width // 8)
        v = Struct(self, np.dtype([("x", f"u{type.width // 8}")]), place)
        v.x = start
        return v

    def intrinsic(
        self, name: str, result: Any, args: Sequence[Any], overloads: Sequence[Any] | None = None
    ) -> Any:
        """Call an LLVM intrinsic; it is named after its overloads (by default its result's type)."""
        suffix = "".join(
            f".{mangled(t)}" for t in (overloads if overloads is not None else [result])
        )
        return self.b.call(
            function(self.module, name + suffix, ir.FunctionType(result, [a.type for a in args])),
            args,
        )

    def call(self, name: str, type: Any, *args: Any) -> Any:
        """Call a function of the runtime by name."""
        return self.b.call(function(self.module, name, type), args)

    # --- control

    @contextmanager
    def when(self, condition: Num, likely: bool | None = None) -> Iterator[None]:
        """`if`."""
        with self.b.if_then(condition.value, likely=likely):
            yield

    @contextmanager
    def either(self, condition: Num, likely: bool | None = None) -> Iterator[tuple[Any, Any]]:
        """`if` with `else`: two contexts."""
        with self.b.if_else(condition.value, likely=likely) as pair:
            yield pair

    @contextmanager
    def loop(self, condition: Callable[[], Num]) -> Iterator[None]:
        """`while`; `condition` is emitted at the head."""
        head, body, after = (self.b.append_basic_block(n) for n in ("head", "body", "after"))
        self.b.branch(head)
        self.b.position_at_end(head)
        self.b.cbranch(condition().value, body, after)
        self.b.position_at_end(body)
        yield
        if not self.b.block.is_terminated:
            self.b.branch(head)
        self.b.position_at_end(after)

    @contextmanager
    def each(self, count: Num) -> Iterator[Num]:
        """`for i in range(count)`."""
        i = self.variable(0, count.value.type)
        with self.loop(lambda: i.x < count):
            yield i.x
            i.x = i.x + 1

    @contextmanager
    def lanes(self, mask: Num) -> Iterator[Num]:
        """For every set bit, lowest first: its number."""
        rest = self.variable(mask)
        with self.loop(lambda: rest.x != 0):
            yield rest.x.lowest()
            rest.x = rest.x & (rest.x - 1)

    def give(self, status: Num | int) -> None:
        """`return`."""
        self.b.ret(
            status.value
            if isinstance(status, Num)
            else ir.Constant(self.function.function_type.return_type, status)
        )

    # --- vectors

    def splat(self, scalar: Any, count: int = LANES) -> Any:
        """A scalar in every lane."""
        one = self.b.insert_element(
            ir.Constant(vector(scalar.type, count), ir.Undefined), scalar, ir.Constant(I32, 0)
        )
        return self.b.shuffle_vector(one, one, ir.Constant(vector(I32, count), [0] * count))

    def shuffle(self, a: Any, b: Any, order: Iterable[int]) -> Any:
        """Elements of a and b, numbered through."""
        order = list(order)
        return self.b.shuffle_vector(a, b, ir.Constant(vector(I32, len(order)), order))

    def lane_mask(self, mask: Num) -> Any:
        """32 bits as booleans."""
        return self.b.bitcast(mask.value, vector(I1))

    def bits(self, booleans: Any) -> Num:
        """Booleans as 32 bits."""
        return self.of(self.b.bitcast(booleans, I32))

    def element(self, v: Any, lane: Num | int) -> Any:
        return self.b.extract_element(
            v, ir.Constant(I32, lane) if isinstance(lane, int) else lane.value
        )


def constant_vector(element: Any, values: Sequence[Any]) -> Any:
    """A constant with one value a lane."""
    return ir.Constant(vector(element, len(values)), list(values))


def function(module: ir.Module, name: str, type: Any) -> Any:
    """The function of that name, declared if it is not there."""
    known = module.globals.get(name)
    return known if known is not None else ir.Function(module, type, name)


def mangled(type: Any) -> str:
    """A type as intrinsic names spell it."""
    if isinstance(type, ir.VectorType):
        return f"v{type.count}{mangled(type.element)}"
    if isinstance(type, ir.PointerType):
        return "p0"
    return {"float": "f32", "double": "f64", "half": "f16"}.get(str(type), str(type))
