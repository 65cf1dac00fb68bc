"""One kernel of TIR → one kernel of ours: statements, control flow, variables.

    if      same in all lanes        branch around
            everything is under it   the other lanes EXIT
            small                    predication: loads and stores are guarded, variables selected
            else                     BSSY, branch, BSYNC
    for     short, constant          unrolled; indices become constants, local arrays registers
            bounds the same in all   uniform counter; what does not depend on it is computed before
            else                     a counter a lane, inside BSSY/BSYNC

Local variables are values without a place (SSA) until a loop or a branch writes one: then it gets a register of its own, its home.
"""

from __future__ import annotations

from dataclasses import dataclass

from knapper.isa.errors import CompileError
from knapper.isa.instructions import (
    BAR,
    BRA,
    BSSY,
    BSYNC,
    EXIT,
    IADD,
    ISETP,
    S2R,
    S2UR,
    UIADD,
    UISETP,
    ULDC,
    UMOV,
)
from knapper.isa.machine import Machine
from knapper.isa.modifiers import SR, Bits32, Cmp, IntType
from knapper.isa.operands import Convergence
from knapper.isa.program import Kernel

from ..builder import VLabel
from .expr import EVERYWHERE, Expr
from .hoist import Hoisting
from .parse import Buffer, Json, NeedsMemory
from .tree import (
    buffers,
    common_condition,
    flat,
    has,
    mentions,
    nodes,
    unconditional_loads,
    weight,
    without,
)
from .values import Emitter, Value, size

UNROLLED, UNROLLED_FRUGALLY = 400, 64
"""Weight up to which loops are unrolled whole."""
PREDICATED = 48
"""Weight up to which a lane-dependent branch is predication."""
UNPREDICATED = frozenset({"for", "while", "sync", "if"})
"""Statements that are not predicated."""
TID = {"x": SR.TID_X, "y": SR.TID_Y, "z": SR.TID_Z}
CTA = {"x": SR.CTAID_X, "y": SR.CTAID_Y, "z": SR.CTAID_Z}
WARP = 32


@dataclass(frozen=True)
class Translated:
    """A kernel, the roles of its parameters in order, how it uses them, and its work: unit → instructions a warp executes."""

    kernel: Kernel
    params: tuple[str, ...]
    uses: dict[str, str]
    busy: dict[str, float]


def translate(kernel: Json, name: str, machine: Machine) -> Translated:
    """Write a kernel.

    CompileError E441 for TIR that has no translation, E443 if a size is beyond the machine.
    """
    try:
        return _attempt(kernel, name, machine, frugal=False)
    except CompileError as e:
        if e.code != "E432":
            raise
    return _attempt(kernel, name, machine, frugal=True)


def _attempt(kernel: Json, name: str, machine: Machine, *, frugal: bool) -> Translated:
    """`frugal`: with few predicates and little unrolling, for kernels that otherwise need more registers than there are."""
    in_memory: set[int] = set()
    while True:
        try:
            return _Translator(kernel, name, machine, in_memory, frugal).run()
        except NeedsMemory as e:  # start again, with that array in local memory
            in_memory.add(e.buffer)


class _Translator(Hoisting):
    def __init__(
        self, kernel: Json, name: str, machine: Machine, in_memory: set[int], frugal: bool
    ) -> None:
        x, y, z = kernel["block"]
        rows = [
            Buffer(i, r["role"], r["scope"], r["dtype"], r["lanes"], r["count"])
            for i, r in enumerate(kernel["buffers"])
        ]
        super().__init__(Emitter(name, (x, y, z), machine), rows, in_memory, frugal)
        self.kernel = kernel
        self.barriers = 0
        self.threads = x * y * z
        self.loaded, self.stored = (
            set(buffers(kernel["body"], access)) for access in ("load", "store")
        )

    def run(self) -> Translated:
        used = [b for b in self.buffers if b.number in self.loaded | self.stored and b.role]
        self._parameters(used)
        self._axes()
        self._body(flat(self.kernel["body"]))
        self.e.emit(EXIT)
        if self.e.shared_bytes > self.e.machine.shared_bytes_per_block:
            raise CompileError(
                "E443",
                f"needs {self.e.shared_bytes} bytes of shared memory",
                where=f"kernel {self.e.name}",
            )
        uses: dict[str, str] = {}
        for b in used:
            use = ("r" if b.number in self.loaded else "") + (
                "w" if b.number in self.stored else ""
            )
            uses[b.role] = "".join(sorted(set(uses.get(b.role, "") + use)))
        return Translated(self.e.finish(), tuple(uses), uses, self.e.busy)

    def _parameters(self, used: list[Buffer]) -> None:
        for i, role in enumerate(dict.fromkeys(b.role for b in used)):
            self.bases[role] = self.e.ureg(2)
            self.e.emit(ULDC, Bits32._64, self.bases[role], 8 * i)

    def _axes(self) -> None:
        """Where a thread is. Where a row is one warp, a warp's number is its row."""
        x, _, z = self.kernel["block"]
        for variable, tag in self.kernel["axes"].items():
            axis, _, d = tag.partition(".")
            n = self.kernel["grid" if axis == "blockIdx" else "block"]["xyz".index(d)]
            if n == 1:
                self.p.variables[int(variable)] = [self.pool.integer(0)]
            elif axis == "blockIdx":
                self.p.variables[int(variable)] = [self._axis(tag, CTA[d], n, uniform=True)]
            elif d == "y" and x == WARP and z == 1:
                self.p.variables[int(variable)] = [self._axis(tag, SR.WARPID, n, uniform=True)]
            else:
                self.p.variables[int(variable)] = [self._axis(tag, TID[d], n, uniform=False)]

    def _axis(self, tag: str, register: SR, n: int, *, uniform: bool) -> Expr:
        """A special register, read once; TVM may have several variables for it."""
        axis = self.pool.make("axis", "i32", data=tag, range=(0, n - 1), uniform=uniform)
        if axis not in self.leaves:
            d = self.e.ureg() if uniform else self.e.reg()
            self.e.emit(S2UR if uniform else S2R, register, d)
            self.leaves[axis] = Value("i32", d)
        return axis

    # --- statements

    def _body(self, statements: list[Json]) -> None:
        """A kernel. If all it does is under one condition, the lanes for which it does not hold leave there."""
        condition = common_condition(statements)
        for i, s in enumerate(statements):
            if condition is not None and s[0] in ("if", "for") and self.is_known(condition):
                self._leave_unless(self.p.scalar(condition))
                for rest in statements[i:]:
                    self.statement(without(rest, condition))
                return
            self.statement(s)

    def _leave_unless(self, c: Expr) -> None:
        v = self.e.inverse(self.value(c))
        if v.at != 0:
            self.e.emit(EXIT, guard=self.e.predicate(v))

    def statement(self, s: Json) -> None:
        """Translate a statement."""
        getattr(self, f"_{s[0]}")(s)

    def _seq(self, s: Json) -> None:
        for x in s[1:]:
            self.statement(x)

    def _alloc(self, s: Json) -> None:
        b = self.buffers[s[1]]
        nbytes = b.elements * size(b.dtype)
        if b.scope == "shared":
            self.places[b.number] = self.e.shared(nbytes)
        elif b.number in self.p.in_memory:
            self.places[b.number] = self.e.local(nbytes)

    def _sync(self, s: Json) -> None:
        """One warp needs no barrier: its accesses are in order."""
        if self.threads > WARP and s[1] != "warp":
            self.e.emit(BAR, 0)
        self.touched(self.stored)

    def _let(self, s: Json) -> None:
        """Pure values are computed where they are used; what memory or variables give is what they give now."""
        lanes = self.p.expr(s[2])
        if any(x.depth == EVERYWHERE for x in lanes):
            self.together(lanes)
        self.p.variables[s[1]] = [self.settled(x) if x.depth == EVERYWHERE else x for x in lanes]

    # --- stores

    def _store(self, s: Json) -> None:
        b = self.buffers[s[1]]
        places, values = self.p.elements(b, s[2]), self.p.expr(s[3])
        values = values * (len(places) // len(values))
        if b.scope == "local" and b.number not in self.p.in_memory:
            if any(place.op != "int" for place in places):
                raise NeedsMemory(b.number)
            self.assign_all([(b.number, place.offset) for place in places], b.dtype, values)
            return
        if all(x is self.p.load(b, place) for place, x in zip(places, values, strict=True)):
            return  # TVM stores what is there already, which would race with who reads it
        self.store(b, places, values)
        self.touched([b.number])

    # --- if

    def _if(self, s: Json) -> None:
        _, condition, then, other = s
        c = self.p.scalar(condition)
        if c.op == "int":
            self.statement(then if c.data else other)
            return
        v = self.unaliased(self.value(c))
        if c.uniform:
            self._branch(v, then, other)
        elif weight(then) + weight(other) <= PREDICATED and not (
            has(then, UNPREDICATED) or has(other, UNPREDICATED)
        ):
            self._predicated(v, then, other)
        else:
            self._diverging(v, then, other)

    def _predicated(self, v: Value, then: Json, other: Json) -> None:
        for body, condition in ((then, v), (other, self.e.inverse(v))):
            if body != ["seq"]:
                self.open(condition)
                self.statement(body)
                self.close()

    def _branch(self, v: Value, then: Json, other: Json) -> None:
        """Jump over what does not run."""
        self.settle_homes(["seq", then, other])
        otherwise, end = self.e.label(), self.e.label()
        self.e.emit(BRA, otherwise, guard=self.e.predicate(self.e.inverse(v)))
        self._region(then)
        if other != ["seq"]:
            self.e.emit(BRA, end)
        self.e.place(otherwise)
        self._region(other)
        self.e.place(end)

    def _diverging(self, v: Value, then: Json, other: Json) -> None:
        barrier, end = self._barrier()
        self._branch(v, then, other)
        self._converge(barrier, end)

    def _region(self, body: Json) -> None:
        variables = dict(self.p.variables)
        self.open()
        self.statement(body)
        self.close()
        self.p.variables = variables

    def _barrier(self) -> tuple[Convergence, VLabel]:
        """Open a convergence region."""
        barrier, end = Convergence(self.barriers), self.e.label()
        self.barriers += 1
        if self.barriers > 16:
            raise CompileError(
                "E443", "more than 16 nested divergent regions", where=f"kernel {self.e.name}"
            )
        self.e.emit(BSSY, barrier, end)
        return barrier, end

    def _converge(self, barrier: Convergence, end: VLabel) -> None:
        self.e.place(end)
        self.e.emit(BSYNC, barrier)
        self.barriers -= 1

    # --- loops

    def _for(self, s: Json) -> None:
        _, variable, first, count, body = s
        start, n = (self.p.scalar(x) for x in (first, count))
        start, n = (self.pool.narrow(x) for x in (start, n))
        if n.op == "int" and self._unrolls(variable, n.offset, body):
            self._unrolled(variable, start, n.offset, body)
        elif n.op == "int" and n.offset < 1:
            return
        elif start.uniform and n.uniform:
            self._uniform_loop(variable, start, n, body)
        else:
            self._lane_loop(variable, start, n, body)

    def _unrolls(self, variable: int, n: int, body: Json) -> bool:
        w = weight(body)
        limit = UNROLLED_FRUGALLY if self.frugal else UNROLLED
        if self._indexes_registers(variable, body):
            limit = 4 * UNROLLED
        return n <= 1 or n * w <= limit

    def _indexes_registers(self, variable: int, body: Json) -> bool:
        """Whether a local array is indexed by the loop's variable."""
        found = (x for x in nodes(body) if x[0] in ("load", "store"))
        places = ((x[2], x[3]) if x[0] == "load" else (x[1], x[2]) for x in found)
        return any(
            self.buffers[b].scope == "local"
            and self.buffers[b].elements > 1
            and mentions(i, variable)
            for b, i in places
        )

    def _unrolled(self, variable: int, start: Expr, n: int, body: Json) -> None:
        steps = [self.pool.add(start, self.pool.integer(i)) for i in range(n)]
        outer = dict(self.neighbours)
        if n in (2, 4, 8):
            self._note_neighbours(variable, steps, body)
        for i in steps:
            self.p.variables[variable] = [i]
            self.statement(body)
        self.neighbours = outer

    def _note_neighbours(self, variable: int, steps: list[Expr], body: Json) -> None:
        """Loads of successive iterations that one wide access can do, where none of them is conditional."""
        written = set(buffers(body, "store"))
        for x in unconditional_loads(body):
            b = self.buffers[x[2]]
            if (
                b.scope == "local"
                or b.number in written
                or not mentions(x[3], variable)
                or not self._is_parsable(x[3], variable)
            ):
                continue
            lanes = []
            for i in steps:
                self.p.variables[variable] = [i]
                lanes += [self.p.load(b, place) for place in self.p.elements(b, x[3])]
            if len(set(lanes)) == len(steps):
                self.neighbours |= dict.fromkeys(lanes, tuple(lanes))

    def _is_parsable(self, index: Json, variable: int) -> bool:
        """Whether an index is made of nothing that the body has still to define."""
        return all(
            x[0] != "load" and (x[0] != "var" or x[2] == variable or x[2] in self.p.variables)
            for x in nodes(index)
        )

    def _counter(self, n: Expr, start: Expr, *, uniform: bool) -> Expr:
        low, high = start.range or (0, 0), n.range or (0, 0)
        bounds = (low[0], max(low[0], low[1] + high[1] - 1))
        return self.counter(bounds, uniform=uniform, depth=self.depth)

    def _uniform_loop(self, variable: int, start: Expr, n: Expr, body: Json) -> None:
        self.settle_homes(body)
        self.depth += 1
        counter = self._counter(n, start, uniform=True)
        self.hoist(variable, counter, body)
        end = self.value(self.pool.add(start, n))
        u, p, top, after = self.e.ureg(), self.e.pred(), self.e.label(), self.e.label()
        self.e.emit(UMOV, u, self.value(start).at)
        if n.op != "int":
            q = self.e.pred()
            self.e.emit(UISETP, Cmp.GE, IntType.S32, q, u, self.e.source(end))
            self.e.emit(BRA, after, guard=q)
        self.leaves[counter] = Value("i32", u)
        self.e.place(top)
        self.e.weight *= n.offset if n.op == "int" else 8
        self._iteration(variable, counter, body)
        self.e.emit(UIADD, Bits32._32, u, u, 1)
        self.e.emit(UISETP, Cmp.LT, IntType.S32, p, u, self.e.source(end))
        self.e.emit(BRA, top, guard=p)
        self._leave_loop(body, n)
        self.e.place(after)

    def _lane_loop(self, variable: int, start: Expr, n: Expr, body: Json) -> None:
        self.settle_homes(body)
        self.depth += 1
        counter = self._counter(n, start, uniform=False)
        last = self.unaliased(self.value(self.pool.add(start, n)))
        d, p, top = self.e.reg(), self.e.pred(), self.e.label()
        self.e.move(d, self.value(start))
        self.leaves[counter] = Value("i32", d)
        barrier, end = self._barrier()
        self.e.place(top)
        self.e.emit(ISETP, Cmp.GE, IntType.S32, p, d, self.e.source(last))
        self.e.emit(BRA, end, guard=p)
        self.e.weight *= 8
        self._iteration(variable, counter, body)
        self.e.emit(IADD, IntType.S32, d, d, 1)
        self.e.emit(BRA, top)
        self._leave_loop(body, n)
        self._converge(barrier, end)

    def _iteration(self, variable: int, counter: Expr, body: Json) -> None:
        self.p.variables[variable] = [counter]
        self._region(body)

    def _leave_loop(self, body: Json, n: Expr) -> None:
        self.depth -= 1
        self.e.weight /= n.offset if n.op == "int" else 8
        self.touched(buffers(body, "store"))

    def _while(self, s: Json) -> None:
        _, condition, body = s
        self.settle_homes(body)
        self.depth += 1
        barrier, end = self._barrier()
        top = self.e.label()
        self.e.place(top)
        self.open()
        v = self.value(self.p.scalar(condition))
        self.e.emit(BRA, end, guard=self.e.predicate(self.e.inverse(v)))
        self.close()
        self._region(body)
        self.e.emit(BRA, top)
        self.depth -= 1
        self.touched(buffers(body, "store"))
        self._converge(barrier, end)
