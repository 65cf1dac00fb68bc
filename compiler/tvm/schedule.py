"""How the blocks of a group are spread over threads: our own rule, in the place of TVM's default GPU schedules.

A group arrives as one PrimFunc, a sequence of loop nests. Elementwise ones are inlined into their readers; each reduction goes
into the nest of the block that reads its result. Four shapes of kernel come of it:

    elementwise   thread ── 2, 4 or 8 neighbours of the last axis, vectorized
    sequential    thread ── one result (or a vector of neighbours), all of its reduction, in row-major order
    cooperative   warp ──── one result: lanes take neighbours of the reduced axis, then a shuffle tree; 256 threads from 2049 on
    columns       block ─── up to 32 results side by side: of each, up to 16 threads take elements in turn, then a tree

Order of summation is a function of the reduced extents alone, never of the batch or of how many results there are: batch 8
equals eight runs of batch 1 bit for bit. TVM's rules do not keep that (they fall back by the number of outer dimensions), take a
block of 256 threads and a shared-memory exchange for a row of 64, and do not vectorize.

Blocks with an iteration space of their own making (sort, scans) are left to TVM's fallback rule.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from math import gcd, prod
from typing import Any

WARP, BLOCK = 32, 256
WARP_LIMIT = 2048
"""Reduced extent up to which one warp reduces."""
ROWS = 4
"""Warps a block where each has its own row."""
COLUMNS, SHARERS = 32, 16
"""Results of a block that reduces along an axis whose elements lie apart, and threads that share one."""
AT_ONCE = 16
"""Steps of a thread that are written out."""
PARALLEL, REDUCE = 0, 2
"""IterVar.iter_type."""


def scheduled(f: Any, target: Any) -> Any:
    """The PrimFunc with every block bound to threads."""
    from tvm.s_tir import Schedule

    if ready_made(f):
        return _fallback(f, target)
    sch = Schedule(f)
    rule = _Rule(sch)
    if all(rule.is_number(b) or rule.is_simple(b) for b in rule.all()):
        rule.apply()
        return sch.mod["main"]
    return _fallback(f, target)


def ready_made(f: Any) -> bool:
    """Whether a PrimFunc says by itself what its threads do."""
    text = f.script()
    return "launch_thread" in text or "T.parallel" in text


def _fallback(f: Any, target: Any) -> Any:
    import tvm
    from tvm.s_tir import dlight

    text = f.script()
    if "sblock" not in text or "T.parallel" in text:
        return f
    with target:
        mod = dlight.ApplyDefaultSchedule(dlight.gpu.Fallback())(tvm.IRModule({"main": f}))
    return mod["main"]


class _Blocks:
    """What a schedule says about its blocks."""

    def __init__(self, sch: Any) -> None:
        self.sch = sch

    def all(self) -> list[Any]:
        return list(self.sch.get_child_blocks(self.sch.get_sblock("root")))

    def kinds(self, b: Any) -> list[int]:
        return [v.iter_type for v in self.sch.get(b).iter_vars]

    def extents(self, b: Any, kind: int) -> list[int]:
        return [int(v.dom.extent) for v in self.sch.get(b).iter_vars if v.iter_type == kind]

    def is_simple(self, b: Any) -> bool:
        """One loop for each iterator, with constant extents, reduced ones last."""
        kinds, loops = self.kinds(b), self.sch.get_loops(b)
        ordered = kinds == sorted(kinds) and set(kinds) <= {PARALLEL, REDUCE}
        return (
            ordered
            and len(loops) == len(kinds)
            and all(hasattr(self.sch.get(x).extent, "value") for x in loops)
        )

    def is_number(self, b: Any) -> bool:
        """A constant, which has no loops."""
        return not self.sch.get_loops(b) and not self.sch.get(b).reads

    def is_elementwise(self, b: Any) -> bool:
        return REDUCE not in self.kinds(b)

    def is_contiguous(self, b: Any) -> bool:
        """Whether the innermost reduced iterator walks neighbours of some operand, however a reshape that was inlined words its indices."""
        from tvm.sym import Analyzer, detect_linear_equation

        block, analyzer = self.sch.get(b), Analyzer()
        for v in block.iter_vars:
            analyzer.bind(v.var, v.dom)
        innermost = block.iter_vars[-1].var
        for read in block.reads:
            offset, stride = 0, 1
            for span, n in zip(reversed(read.region), reversed(read.source.shape), strict=True):
                offset, stride = offset + span.min * stride, stride * int(n)
            found = detect_linear_equation(analyzer.simplify(offset), [innermost])
            if found and analyzer.can_prove(found[0] == 1):
                return True
        return False

    def reads_once(self, b: Any) -> bool:
        """Whether no element is reduced into two results, as the windows of a pool do."""
        from tvm.tirx.analysis import undefined_vars

        block = self.sch.get(b)
        extents = {v.var: int(v.dom.extent) for v in block.iter_vars}
        return all(
            prod(extents[v] for v in {v for s in read.region for v in undefined_vars(s.min)})
            <= prod(map(int, read.source.shape))
            for read in block.reads
        )

    def result_bits(self, b: Any) -> int:
        from .export import bits, dtype

        return max(bits(dtype(str(w.source.dtype))[0]) for w in self.sch.get(b).writes)


class _Rule(_Blocks):
    def apply(self) -> None:
        self.inline(self.is_elementwise)
        waiting: list[Any] = []
        for b in (b for b in self.all() if prod(self.extents(b, PARALLEL))):  # others make nothing
            if self.is_elementwise(b):
                outputs = [r for r in waiting if not self.sch.get_consumers(r)]
                self._nest([r for r in waiting if self.sch.get_consumers(r)], b)
                waiting = outputs
            else:
                waiting.append(b)
        for b in waiting:
            self._alone(b)

    def inline(self, kind: Callable[[Any], bool]) -> None:
        """Write blocks of a kind into those that read them."""
        from tvm.s_tir import ScheduleError

        for b in self.all():
            if kind(b) and len(self.sch.get(b).writes) == 1:
                try:
                    self.sch.compute_inline(b)
                except ScheduleError:  # an output, or read in a way that cannot be inlined: it stays a kernel of its own
                    continue

    def _nest(self, reductions: list[Any], final: Any) -> None:
        """Reductions together with the block that reads their results, if they fit into one loop nest."""
        rows = self._rows(reductions, final) if reductions else None
        if rows is None:
            for r in reductions:
                self._alone(r)
            self._elementwise(final)
            return
        if not self._is_shared(reductions):
            self._sequential(reductions, final, rows)
        elif all(self.is_contiguous(r) for r in reductions):
            self._cooperative(reductions, final, rows)
        else:
            self._columns(reductions, final, rows)

    def _alone(self, r: Any) -> None:
        """A reduction whose result goes to memory: it gets a copying block to be nested in."""
        if len(self.sch.get(r).writes) == 1:
            final = self.sch.cache_write(r, 0, "local")
            self._nest([r], final)
        else:
            self._tuple(r)

    def _rows(self, reductions: list[Any], final: Any) -> list[int] | None:
        """The loops of `final` that walk the reductions' results, in the result's order; None if that is not how it reads."""
        shape = self.extents(reductions[0], PARALLEL)
        results = [w.source for r in reductions for w in self.sch.get(r).writes]
        if any(self.extents(r, PARALLEL) != shape for r in reductions) or self._read_elsewhere(
            reductions, final
        ):
            return None
        block = self.sch.get(final)
        loops = {v.var: i for i, v in enumerate(block.iter_vars)}
        rows: list[int | None] = [None] * len(shape)
        for read in block.reads:
            if any(read.source.same_as(x) for x in results):
                for i, span in enumerate(read.region):
                    rows[i] = loops.get(span.min) if type(span.min).__name__ == "Var" else None
        found = [i for i in rows if i is not None]
        extents = [int(v.dom.extent) for v in block.iter_vars]
        whole = prod(extents[i] for i in found) == prod(shape) and len(set(found)) == len(found)
        return found if whole else None

    def _read_elsewhere(self, reductions: list[Any], final: Any) -> bool:
        inside = {self.sch.get(b).name_hint for b in (*reductions, final)}
        return any(
            self.sch.get(c).name_hint not in inside
            for r in reductions
            for c in self.sch.get_consumers(r)
        )

    def _is_shared(self, reductions: list[Any]) -> bool:
        """Whether several threads share a reduction."""
        length = min(prod(self.extents(r, REDUCE)) for r in reductions)
        return length >= WARP and all(self.reads_once(r) for r in reductions)

    # --- the four shapes

    def _elementwise(self, b: Any) -> None:
        n = prod(self.extents(b, PARALLEL))
        width = self._width(b, n)
        inner = self._spread(b, self.sch.get_loops(b), n, width)[2]
        if width in (2, 4, 8):
            self.sch.vectorize(inner)
        else:
            self.sch.unroll(inner)

    def _sequential(self, reductions: list[Any], final: Any, rows: list[int]) -> None:
        n = prod(self.extents(reductions[0], PARALLEL))
        inner = [i for i, e in enumerate(self.extents(final, PARALLEL)) if i not in rows and e > 1]
        single = len(reductions) == 1 and len(self.sch.get(reductions[0]).writes) == 1
        if single and not inner:
            self._one_sequential(reductions[0], final, n)
            return
        loops = self._reordered(final, rows)
        thread = self._spread(final, loops[: len(rows)], n, 1)[1]
        for r in reversed(reductions):
            self._under(r, thread)
            self._initialised(r, self.sch.get_loops(r)[2])

    def _one_sequential(self, r: Any, final: Any, n: int) -> None:
        """A reduction and what is made of each result, neighbouring results in one thread.

        The threads are bound in the reduction's own nest: moved into another its indices would not be affine, which vectors need.
        """
        sch, reduced = self.sch, len(self.extents(r, REDUCE))
        width = min(self._width(r, n), 4)
        if width == 3 or (n // width) % _threads(n // width):
            width = 1  # TVM loses the bounds check of what follows a vectorized reduction
        loops = sch.get_loops(r)
        block, thread, lanes = self._spread(r, loops[:-reduced], n, width)
        sch.reorder(block, thread, *loops[-reduced:], lanes)
        sch.set_scope(r, 0, "local")
        if width > 1:
            sch.vectorize(lanes)
        sch.reverse_compute_at(final, thread, preserve_unit_loops=True)
        if width > 1:
            sch.vectorize(sch.fuse(*sch.get_loops(final)[2:]))
        self._initialised(r, sch.get_loops(r)[2])

    def _initialised(self, r: Any, loop: Any) -> None:
        """Set a reduction's result to its start before the loop, not in its first step, where TVM can see that this is the same."""
        from tvm.s_tir import ScheduleError

        with contextlib.suppress(ScheduleError):
            self.sch.decompose_reduction(r, loop)

    def _cooperative(self, reductions: list[Any], final: Any, rows: list[int]) -> None:
        sch = self.sch
        n, length = (
            prod(self.extents(reductions[0], PARALLEL)),
            prod(self.extents(reductions[0], REDUCE)),
        )
        threads = _lanes(length)
        loops = self._reordered(final, rows)
        row = sch.fuse(*loops[: len(rows)]) if rows else self._around(final)
        block, group = sch.split(row, [None, gcd(n, ROWS) if threads == WARP else 1])
        sch.bind(block, "blockIdx.x")
        sch.bind(group, "threadIdx.y")
        others = loops[len(rows) :]
        self._across(
            sch.fuse(*others) if others else sch.add_unit_loop(final), threads, vectorize=True
        )
        for r in reversed(reductions):
            self._under(r, group)
            self._across(
                sch.fuse(*sch.get_loops(r)[2:][-len(self.extents(r, REDUCE)) :]),
                threads,
                vectorize=False,
            )

    def _columns(self, reductions: list[Any], final: Any, rows: list[int]) -> None:
        """Neighbouring results lie side by side in memory, so a warp takes as many of them, and warps share what is reduced."""
        sch = self.sch
        n = prod(self.extents(reductions[0], PARALLEL))
        threads = _sharers(prod(self.extents(reductions[0], REDUCE)))
        loops = self._reordered(final, rows)
        row = sch.fuse(*loops[: len(rows)]) if rows else self._around(final)
        width = largest_divisor(n, COLUMNS)
        block, column = sch.split(row, [None, width])
        sch.bind(block, "blockIdx.x")
        sch.bind(column, "threadIdx.x")
        others = loops[len(rows) :]
        self._dealt(sch.fuse(*others) if others else sch.add_unit_loop(final), threads)
        for r in reversed(reductions):
            self._under(r, column)
            self._dealt(sch.fuse(*sch.get_loops(r)[2:][-len(self.extents(r, REDUCE)) :]), threads)

    def _dealt(self, loop: Any, threads: int) -> None:
        """Deal a loop out to threadIdx.y; a few steps at a time are written out, so that their loads pass together."""
        n = -(-int(self.sch.get(loop).extent) // threads)
        steps, few, thread = self.sch.split(loop, [None, largest_divisor(n, AT_ONCE), threads])
        self.sch.reorder(thread, steps, few)
        self.sch.bind(thread, "threadIdx.y")
        self.sch.unroll(few)

    def _tuple(self, r: Any) -> None:
        """A reduction of several values at once, such as argmax, whose results go to memory."""
        sch, loops = self.sch, self.sch.get_loops(r)
        reduced = len(self.extents(r, REDUCE))
        n, length = prod(self.extents(r, PARALLEL)), prod(self.extents(r, REDUCE))
        rows = loops[:-reduced] or [self._around(r)]
        if self._is_shared([r]) and self.is_contiguous(r):
            threads = _lanes(length)
            block, group = sch.split(
                sch.fuse(*rows), [None, gcd(n, ROWS) if threads == WARP else 1]
            )
            sch.bind(block, "blockIdx.x")
            sch.bind(group, "threadIdx.y")
            self._across(sch.fuse(*loops[-reduced:]), threads, vectorize=False)
        else:
            self._spread(r, rows, n, 1)
            self._initialised(r, sch.get_loops(r)[3])

    # --- pieces

    def _reordered(self, b: Any, rows: list[int]) -> list[Any]:
        """The block's loops with the rows outermost."""
        loops = self.sch.get_loops(b)
        order = [loops[i] for i in rows] + [x for i, x in enumerate(loops) if i not in rows]
        if len(order) > 1:
            self.sch.reorder(*order)
        return order

    def _around(self, b: Any) -> Any:
        """A loop of one iteration around all of a block's loops: the row where there is only one."""
        loops = self.sch.get_loops(b)
        return self.sch.add_unit_loop(loops[0] if loops else b)

    def _under(self, r: Any, loop: Any) -> None:
        """Compute a reduction where its result is needed, into registers."""
        self.sch.compute_at(r, loop, preserve_unit_loops=True)
        for i in range(len(self.sch.get(r).writes)):
            self.sch.set_scope(r, i, "local")

    def _across(self, loop: Any, threads: int, *, vectorize: bool) -> None:
        """Deal a loop out to threadIdx.x: each takes 4 or 2 neighbours at a time where that comes out even."""
        n = int(self.sch.get(loop).extent)
        width = next((w for w in (4, 2) if n % (w * threads) == 0), 1)
        few = 1 if vectorize else largest_divisor(-(-n // (width * threads)), AT_ONCE // width)
        steps, at_once, thread, inner = self.sch.split(loop, [None, few, threads, width])
        self.sch.reorder(thread, steps, at_once, inner)
        self.sch.bind(thread, "threadIdx.x")
        if vectorize and width > 1:
            self.sch.vectorize(inner)
        elif few > 1:
            self.sch.unroll(at_once)

    def _spread(self, b: Any, loops: list[Any], n: int, width: int) -> tuple[Any, Any, Any]:
        """Bind loops to blocks and threads, with `width` neighbours of the last axis in each: (block, thread, inner)."""
        sch = self.sch
        loops = list(loops) or [self._around(b)]
        long = (i for i in reversed(range(len(loops))) if int(sch.get(loops[i]).extent) > 1)
        last = next(long, len(loops) - 1)
        outer, inner = sch.split(loops[last], [None, width])
        rest = [*loops[:last], outer, *loops[last + 1 :]]
        sch.reorder(*rest, inner)
        block, thread = sch.split(sch.fuse(*rest), [None, _threads(n // width)])
        sch.bind(block, "blockIdx.x")
        sch.bind(thread, "threadIdx.x")
        return block, thread, inner

    def _width(self, b: Any, n: int) -> int:
        """Neighbours for one thread: whole vectors of up to 16 bytes, or all of a very short axis."""
        last = next((e for e in reversed(self.extents(b, PARALLEL)) if e > 1), 1)
        bits = self.result_bits(b)
        for width in (8, 4, 2):
            if last % width == 0 and width * bits <= 128 and n // width >= 4096 * (width // 4):
                return width
        return last if last <= 4 else 1


def steps(length: int, *, side_by_side: bool) -> int:
    """Elements that a thread takes of a reduction of so many, which lie side by side in memory or apart."""
    if length < WARP:
        return length
    return -(-length // (_lanes(length) if side_by_side else _sharers(length)))


def _lanes(length: int) -> int:
    """Threads that share a reduction of elements side by side."""
    return WARP if length <= WARP_LIMIT else BLOCK


def _sharers(length: int) -> int:
    """Threads that share one of elements that lie apart: a divisor, so that none has to ask whether it takes part."""
    even = largest_divisor(length, SHARERS)
    return even if even >= 4 else SHARERS


def largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of n up to a limit."""
    return next(d for d in range(min(n, limit), 0, -1) if n % d == 0)


def _threads(n: int) -> int:
    """Threads a block for n threads in all: all of them, or a divisor of n near 256, best of whole warps; else 256 and a bounds check."""
    if n <= BLOCK:
        return n
    near = range(BLOCK, BLOCK // 2 - 1, -1)
    even = [t for t in near if n % t == 0]
    return next((t for t in even if t % WARP == 0), even[0] if even else BLOCK)
