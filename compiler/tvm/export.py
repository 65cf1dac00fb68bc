"""TIR → plain lists, which JSON carries to the code generator. Runs in the worker; needs a tvm that is imported.

A lowered PrimFunc is one or more launch regions, perhaps inside host statements:

    AllocBuffer (global)                 → a scratch buffer
    AttrStmt thread_extent blockIdx.x    → a kernel; everything under it is its body
    For on the host                      → the kernels inside, once an iteration
    BufferStore, and what follows        → a kernel of one thread

What comes out is described in `tir.py`. Whatever is not in the tables below is an error that names it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Json = Any

BINARY = {
    "Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div", "Mod": "mod", "FloorDiv": "floordiv", "FloorMod": "floormod",
    "Min": "min", "Max": "max", "EQ": "eq", "NE": "ne", "LT": "lt", "LE": "le", "GT": "gt", "GE": "ge", "And": "and", "Or": "or",
    "BitwiseAnd": "bitand", "BitwiseOr": "bitor", "BitwiseXor": "bitxor", "LShift": "shl", "RShift": "shr",
}  # fmt: skip
PREFIX = "knapper."
"""Our own operators in TIR (`exact.py`): the operation follows."""
DTYPES = {
    "float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64", "bool": "bool",
    "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
    "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64",
}  # fmt: skip
DIMENSIONS = ("x", "y", "z")
PARALLEL = 1
"""ForKind of a loop whose iterations are independent."""
BLOCK = 256
"""Threads a block for those."""
FOLDS: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b,
    "floordiv": lambda a, b: a // b, "floormod": lambda a, b: a % b, "min": min, "max": max,
    "lt": lambda a, b: a < b, "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b,
    "shr": lambda a, b: a >> b, "shl": lambda a, b: a << b,
}  # fmt: skip


class UnknownTirError(Exception):
    """A TIR node, type or construct that the export does not know."""


def kind(node: Any) -> str:
    """The name of a TIR node's class."""
    return type(node).__name__


def dtype(text: str) -> tuple[str, int]:
    """TVM's `float16x4` as ("f16", 4)."""
    base, _, lanes = text.partition("x")
    if base not in DTYPES:
        raise UnknownTirError(f"type {text}")
    return DTYPES[base], int(lanes or 1)


def constant(e: Json) -> int | None:
    """The value of an exported integer expression, if it has no variables."""
    op, *rest = e
    if op == "int":
        return int(rest[1])
    if op == "cast":
        return constant(rest[1])
    if op not in FOLDS:
        return None
    a, b = constant(rest[1]), constant(rest[2])
    return None if a is None or b is None else int(FOLDS[op](a, b))


@dataclass
class Exporter:
    """Exports one PrimFunc. `roles` says what its parameters are, in order: names of values and scratch buffers."""

    roles: list[str]
    scratch: dict[str, int]
    """Global buffers that the function allocates: name → bytes; filled here."""
    buffers: dict[Any, int] = field(default_factory=dict)
    table: list[Json] = field(default_factory=list)
    numbers: dict[Any, int] = field(default_factory=dict)
    known: dict[Any, Json] = field(default_factory=dict)
    """Variables that the host knows: what stands for them."""
    private: list[Json] = field(default_factory=list)
    """Allocations of local and shared buffers that stand before the kernels."""

    def kernels(self, f: Any, shapes: list[tuple[int, ...]]) -> Iterator[Json]:
        """The launches of a PrimFunc on buffers of these shapes, which it may have as symbols."""
        for parameter, role, shape in zip(f.params, self.roles, shapes, strict=True):
            for dim, n in zip(parameter.ty.shape, shape, strict=True):
                if kind(dim) == "Var":
                    self.known[dim] = ["int", "i64", n]
            self._buffer(parameter, role)
        yield from self._host([f.body])

    # --- host statements

    def _host(self, body: list[Any]) -> Iterator[Json]:
        for i, s in enumerate(body):
            match kind(s):
                case "SeqStmt":
                    yield from self._host([*s.seq, *body[i + 1 :]])
                    return
                case "DeclBuffer":
                    self.buffers[s.buffer] = self.buffers[s.data.args[0]]
                case "AllocBuffer":
                    self._allocate(s.buffer)
                case "Bind":
                    self.known[s.var] = self.expr(s.value)
                case "AttrStmt" if s.attr_key == "thread_extent":
                    yield self._kernel(s)
                case "AttrStmt":
                    yield from self._host([s.body])
                case "For" if int(s.kind) == PARALLEL:
                    yield self._parallel(s)
                case "For":
                    yield from self._host_loop(s)
                case "IfThenElse":
                    yield from self._host_if(s)
                case "BufferStore":
                    yield self._single(body[i:])
                    return
                case "Evaluate":
                    pass
                case other:
                    raise UnknownTirError(f"host statement {other}")

    def _host_loop(self, s: Any) -> Iterator[Json]:
        first, n = self._number(s.min), self._number(s.extent)
        for i in range(first, first + n):
            self.known[s.loop_var] = ["int", "i64", i]
            yield from self._host([s.body])

    def _host_if(self, s: Any) -> Iterator[Json]:
        taken = s.then_case if self._number(s.condition) else s.else_case
        yield from self._host([taken] if taken is not None else [])

    def _number(self, e: Any) -> int:
        value = constant(self.expr(e))
        if value is None:
            raise UnknownTirError(f"a number that is not constant on the host: {e}")
        return value

    def _allocate(self, buffer: Any) -> None:
        """A scratch buffer; or what each of the kernels that follow has for itself, written before them."""
        scope = str(buffer.ty.storage_scope)
        if scope != "global":
            self.private.append(["alloc", self._buffer(buffer, scope=scope)])
            return
        name = f"s{len(self.scratch)}"
        self._buffer(buffer, name)
        row = self.table[-1]
        self.scratch[name] = row["count"] * row["lanes"] * bits(row["dtype"]) // 8

    def _buffer(self, b: Any, role: str = "", scope: str = "global") -> int:
        """Give a buffer variable its row in the table."""
        t = b.ty
        d, lanes = dtype(str(t.dtype))
        count = 1
        for n in t.shape:
            count *= self._number(n)
        if kind(t.elem_offset) == "Var":
            self.known[t.elem_offset] = ["int", "i64", 0]
        self.buffers[b] = len(self.table)
        self.table.append(
            {"role": role, "scope": scope, "dtype": d, "lanes": lanes, "count": count}
        )
        return self.buffers[b]

    # --- kernels

    def _kernel(self, s: Any) -> Json:
        self.threads: dict[str, int] = {}
        self.axes: dict[str, str] = {}
        return self._launch(self.stmt(s))

    def _parallel(self, s: Any) -> Json:
        """A loop whose iterations are independent: one thread each."""
        n = self._number(s.extent)
        threads = min(n, BLOCK)
        self.threads = {"blockIdx.x": -(-n // threads), "threadIdx.x": threads}
        block, thread = (self.number(object()) for _ in range(2))
        self.axes = {str(block): "blockIdx.x", str(thread): "threadIdx.x"}
        start = ["mul", "i32", ["var", "i32", block], ["int", "i32", threads]]
        iteration = ["add", "i32", start, ["var", "i32", thread]]
        bind = ["let", self.number(s.loop_var), ["add", "i32", iteration, self.expr(s.min)]]
        inside = ["lt", "bool", iteration, ["int", "i32", n]]
        return self._launch(["seq", bind, ["if", inside, self.stmt(s.body), ["seq"]]])

    def _single(self, body: list[Any]) -> Json:
        """What TVM leaves of a parallel loop that has one iteration (a scan of one row): the work of one thread."""
        self.threads, self.axes = {}, {}
        return self._launch(["seq", *map(self.stmt, body)])

    def _launch(self, body: Json) -> Json:
        """A kernel of the threads that were found."""
        sizes = {
            axis: [self.threads.get(f"{axis}.{d}", 1) for d in DIMENSIONS]
            for axis in ("blockIdx", "threadIdx")
        }
        table = [dict(row) for row in self.table]
        return {
            "grid": sizes["blockIdx"],
            "block": sizes["threadIdx"],
            "axes": self.axes,
            "buffers": table,
            "body": ["seq", *self.private, body],
        }

    def stmt(self, s: Any) -> Json:
        """A device statement."""
        name = kind(s)
        f = getattr(self, f"_{name.lower()}", None)
        if f is None:
            raise UnknownTirError(f"statement {name}")
        return f(s)

    def _seqstmt(self, s: Any) -> Json:
        return ["seq", *(self.stmt(x) for x in s.seq)]

    def _attrstmt(self, s: Any) -> Json:
        if s.attr_key == "thread_extent":
            tag = str(s.node.thread_tag)
            n = self._number(s.value)
            if self.threads.setdefault(tag, n) != n:
                raise UnknownTirError(f"{tag} of two extents in one kernel")
            self.axes[str(self.number(s.node.var))] = tag
        return self.stmt(s.body)

    def _declbuffer(self, s: Any) -> Json:
        self.buffers[s.buffer] = self.buffers[s.data.args[0]]
        return ["seq"]

    def _allocbuffer(self, s: Any) -> Json:
        scope = str(s.buffer.ty.storage_scope)
        if scope not in ("local", "shared"):
            raise UnknownTirError(f"a buffer in {scope} memory inside a kernel")
        return ["alloc", self._buffer(s.buffer, scope=scope)]

    def _bufferstore(self, s: Any) -> Json:
        return ["store", self._ref(s.buffer), self._index(s.indices), self.expr(s.value)]

    def _bind(self, s: Any) -> Json:
        return ["let", self.number(s.var), self.expr(s.value)]

    def _for(self, s: Any) -> Json:
        return [
            "for",
            self.number(s.loop_var),
            self.expr(s.min),
            self.expr(s.extent),
            self.stmt(s.body),
        ]

    def _ifthenelse(self, s: Any) -> Json:
        other = self.stmt(s.else_case) if s.else_case is not None else ["seq"]
        return ["if", self.expr(s.condition), self.stmt(s.then_case), other]

    def _while(self, s: Any) -> Json:
        return ["while", self.expr(s.condition), self.stmt(s.body)]

    def _evaluate(self, s: Any) -> Json:
        if kind(s.value) == "IntImm":
            return ["seq"]
        call = self.expr(s.value)
        if call[0] != "call" or call[2] != "tvm_storage_sync":
            raise UnknownTirError(f"statement {s.value}")
        return ["sync", str(s.value.args[0].value)]

    # --- expressions

    def expr(self, e: Any) -> Json:
        """An expression: [op, dtype, operands…]; a vector's dtype is `f16x4`."""
        name = kind(e)
        if name in BINARY:
            return [BINARY[name], self._dtype(e), self.expr(e.a), self.expr(e.b)]
        f = getattr(self, f"_{name.lower()}", None)
        if f is None:
            raise UnknownTirError(f"expression {name}")
        return f(e)

    def _dtype(self, e: Any) -> str:
        base, lanes = dtype(str(e.ty.dtype))
        return base if lanes == 1 else f"{base}x{lanes}"

    def _var(self, e: Any) -> Json:
        return self.known.get(e) or ["var", self._dtype(e), self.number(e)]

    def _intimm(self, e: Any) -> Json:
        return ["int", self._dtype(e), int(e.value)]

    def _floatimm(self, e: Any) -> Json:
        return ["float", self._dtype(e), float(e.value).hex()]

    def _cast(self, e: Any) -> Json:
        return ["cast", self._dtype(e), self.expr(e.value)]

    def _not(self, e: Any) -> Json:
        return ["not", self._dtype(e), self.expr(e.a)]

    def _bitwisenot(self, e: Any) -> Json:
        return ["bitnot", self._dtype(e), self.expr(e.a)]

    def _select(self, e: Any) -> Json:
        return [
            "select",
            self._dtype(e),
            self.expr(e.condition),
            self.expr(e.true_value),
            self.expr(e.false_value),
        ]

    def _ramp(self, e: Any) -> Json:
        return ["ramp", self._dtype(e), self.expr(e.base), self.expr(e.stride)]

    def _broadcast(self, e: Any) -> Json:
        return ["broadcast", self._dtype(e), self.expr(e.value)]

    def _shuffle(self, e: Any) -> Json:
        return [
            "shuffle",
            self._dtype(e),
            [self.expr(v) for v in e.vectors],
            [self._number(i) for i in e.indices],
        ]

    def _tensorload(self, e: Any) -> Json:
        return ["load", self._dtype(e), self._ref(e.source), self._index(e.indices)]

    def _call(self, e: Any) -> Json:
        path, _, name = str(getattr(e.op, "name", e.op)).rpartition(".")
        args = e.args
        if f"{path}." == PREFIX:
            return self._ours(name, e)
        if name in ("call_pure_extern", "call_extern"):
            name, args = str(args[0].value), args[1:]
        if name == "tvm_storage_sync":
            return ["call", "i32", name]
        return ["call", self._dtype(e), name, *(self.expr(a) for a in args)]

    def _ours(self, name: str, e: Any) -> Json:
        """One of our operators. TVM narrows indices among its operands to 32 bits, and does not look at the others."""
        d, operands = self._dtype(e), [self.expr(a) for a in e.args]
        if name == "cast":
            return [name, d, *operands]
        if name == "number":
            return self._widened(operands[0], d)
        wide = max((x[1] for x in operands), key=lambda d: bits(d.partition("x")[0]))
        return [name, d, *(self._widened(x, wide) for x in operands)]

    def _widened(self, e: Json, d: str) -> Json:
        return e if e[1] == d else ["cast", d, e]

    def _let(self, e: Any) -> Json:
        return ["bind", self._dtype(e), self.number(e.var), self.expr(e.value), self.expr(e.body)]

    def _index(self, indices: Any) -> Json:
        if len(indices) != 1:
            raise UnknownTirError(f"an access with {len(indices)} indices after flattening")
        return self.expr(indices[0])

    def _ref(self, buffer: Any) -> int:
        if buffer not in self.buffers:
            raise UnknownTirError(f"a buffer of unknown origin: {buffer.name}")
        return self.buffers[buffer]

    def number(self, variable: Any) -> int:
        """A variable's number."""
        return self.numbers.setdefault(variable, len(self.numbers))


def bits(d: str) -> int:
    """Bits that an element takes in memory."""
    return 8 if d == "bool" else int(d.lstrip("bfiu"))
