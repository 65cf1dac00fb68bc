"""Which nodes one kernel launch computes: the one predicate that `precision` and `fuse` share.

A launch is a matrix product with its epilogue, or a chain of elementwise ops around at most one
anchor (a reduction, a pool, a transpose, …):

    Conv ─ Add(bias) ─ Add(residual) ─ Relu ─ Cast        Cast ─ Add ─ Softmax ─ Cast
    └──────────── one launch ───────────────┘             └───── one launch ─────┘

Every launch has a single sink: all its nodes lead to one node, and only that node's results are read
elsewhere. So launches can always be ordered. If A read from B and B from A, a node of A would come
before B's sink, that before a node of A, that before A's sink; and B's read from A would come before
B's sink, which closes a circle in the graph of nodes, and there is none.

A product takes besides what the other operand of an epilogue is made of, as long as that comes from 8 bits in
memory: no fp32 residual is stored.

    Conv ─ Cast(f32) ─ Mul ─ Add ─ Relu ─ Round ─ Clip ─ Cast(u8)
    Cast(f32) ─ Sub ─ Mul ──┘          one launch

A Cast that rounds is part of what it rounds, one that widens part of what reads it, so a pair of them
between two launches moves no boundary: `precision` puts them where the boundaries of the float32
graph are, and `fuse` finds the same boundaries again.

Views (Reshape) are no launches: their result is their operand's memory. Only one that makes a network
output of a network input copies, and is one.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from .ir import Graph, Node, Type


def _ops(names: str) -> set[str]:
    return set(names.split())


MATRIX = _ops("Conv MatMul")
QUANTIZE = "QuantizeLinear"
"""The last op of a product of integers whose results are no plain integers: values of a format, or rounded by a border."""
ENCODE, SPARSE = "BitmapEncode", "spwmma"
"""The last op of a launch, if its product is placed as this kind; otherwise a launch by itself."""
VIEWS = _ops("Reshape Flatten Squeeze Unsqueeze Identity")
CHEAP = _ops("""
    Abs Add And BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Clip Div Equal Floor
    Greater GreaterOrEqual HardSigmoid HardSwish IsInf IsNaN LeakyRelu Less LessOrEqual Max Min Mul Neg
    Not Or PRelu Relu Round Shrink Sign Sub Sum ThresholdedRelu Where Xor
""")
ELEMENTWISE = CHEAP | _ops("""
    Acos Acosh Asin Asinh Atan Atanh Celu Cos Cosh Elu Erf Exp Gelu Log Mean Mish Mod Pow Reciprocal
    Selu Sigmoid Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh
""")
"""Ops whose element i depends on element i of their (broadcast) operands only."""
EPILOGUE = ELEMENTWISE & _ops("""
    Abs Add Cast Ceil Clip Cos Div Elu Erf Exp Floor Gelu HardSigmoid HardSwish LeakyRelu Log Max Min
    Mish Mul Neg PRelu Reciprocal Relu Round Sigmoid Sin Softplus Softsign Sqrt Sub Swish Tanh
    ThresholdedRelu
""")
"""Those that a matrix kernel can do to its accumulators, …"""
INTEGERS = _ops("Abs Add Cast Clip Max Min Mul Neg Relu Sub")
"""… to i32, …"""
CHOOSING = _ops("Cast Clip Max Min Relu")
"""… and to narrower integers."""
MOVES = _ops("Slice Pad")
"""Read at most as much as they write of each operand: they go with anything elementwise."""
INJECTIVE = _ops("Concat DepthToSpace Expand Gather SpaceToDepth Split Tile Transpose Trilu")
"""Anchors that copy elements: elementwise ops go before and after them."""
ONCE = _ops("""
    GlobalAveragePool GlobalMaxPool ReduceL1 ReduceL2 ReduceLogSum ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare
""")
"""Anchors that read each element once: elementwise ops go before and after them."""
OFTEN = _ops("""
    GroupNormalization InstanceNormalization LayerNormalization LogSoftmax LpNormalization
    RMSNormalization ReduceLogSumExp Softmax
""")
"""Anchors that read an element a few times: only cheap ops go before them."""
WINDOWS = _ops("AveragePool BatchNormalization LRN LpPool MaxPool Resize")
"""Anchors that read an element many times: nothing but an exact Cast goes before them."""
ANCHORS = INJECTIVE | ONCE | OFTEN | WINDOWS
"""Any other op is a launch by itself."""

FLOATS = ("f16", "bf16", "f32", "f64")
REGISTER = ("f16", "bf16", "f32")
"""Stored types that an epilogue reads and writes."""
BYTES = ("i8", "u8")
"""Those that it reads and writes by a Cast; a product of integers has them besides, and i32."""
OTHER = 100
"""The width of what is no float: neither narrower nor wider."""
LARGEST = 32
"""Nodes of a launch; TVM's time grows faster than their number."""


@dataclass(eq=False)
class Cell:
    """A node with the Casts that belong to it. `nodes` are indices into the graph's."""

    index: int
    core: Node
    nodes: list[int]
    reads: set[str] = field(default_factory=set)
    makes: set[str] = field(default_factory=set)

    @property
    def shape(self) -> tuple[int, ...]:
        """The result's sizes."""
        return self.core.types[0].shape


@dataclass(frozen=True)
class Launch:
    """The nodes of one launch, as indices into the graph's, and the node that names it."""

    nodes: tuple[int, ...]
    root: Node


def launches(g: Graph) -> tuple[Launch, ...]:
    """The launches of a graph in an order in which they can run; views are in none."""
    p = _Partition(g)
    p.matrices()
    p.chains()
    return tuple(p.ordered())


def rounds(n: Node, source: Type) -> bool:
    """Whether a node is a Cast from a float to a narrower one."""
    return n.op == "Cast" and _width(n.types[0]) < _width(source) < OTHER


def widens(n: Node, source: Type) -> bool:
    """Whether a node is a Cast from a float to a wider one, which is exact."""
    return n.op == "Cast" and 0 < _width(source) < _width(n.types[0]) < OTHER


def _width(t: Type) -> int:
    """Bits of a float, or `OTHER`."""
    return {"f16": 16, "bf16": 16, "f32": 32, "f64": 64}.get(t.dtype, OTHER)


class _Partition:
    """Cells, who reads what, and the launches found so far."""

    def __init__(self, g: Graph) -> None:
        self.g, self.types = g, g.types()
        self.outputs = set(g.outputs.values())
        self.readers: dict[str, list[int]] = {}
        for i, n in enumerate(g.nodes):
            for v in dict.fromkeys(n.inputs):
                self.readers.setdefault(v, []).append(i)
        self.maker = {v: i for i, n in enumerate(g.nodes) for v in n.outputs if v}
        self.copies = set(self._copies())
        self.cell_of: dict[int, Cell] = {}
        for i, n in enumerate(g.nodes):
            if not self._is_view(i) and not self._belongs(n):
                self.cell_of[i] = Cell(i, n, [i])
        self._attach()
        self.cells = [c for i, c in sorted(self.cell_of.items()) if i == c.index]
        self.launch_of: dict[int, int] = {}  # cell index → launch
        self.found: list[tuple[list[Cell], Cell]] = []

    # --- cells

    def _is_view(self, i: int) -> bool:
        return self.g.nodes[i].op in VIEWS and i not in self.copies

    def _copies(self) -> Iterator[int]:
        """Views that end at a network output and begin at what no launch writes."""
        written = {v for n in self.g.nodes if n.op not in VIEWS for v in n.outputs}
        for i, n in enumerate(self.g.nodes):
            if n.op in VIEWS and n.inputs[0] not in written:
                if self.outputs.isdisjoint(n.outputs):
                    continue
                yield i
            if n.op in VIEWS:
                written.update(n.outputs)

    def _belongs(self, n: Node) -> bool:
        """Whether a node is a Cast that is part of another cell."""
        return n.op == "Cast" and (self._of_reader(n) is not None or self._of_maker(n) is not None)

    def _of_reader(self, n: Node) -> int | None:
        """The one node that reads a widening Cast; no product, which widens nothing that it reads."""
        readers = self.readers.get(n.outputs[0], [])
        if not widens(n, self.types[n.inputs[0]]) or len(readers) != 1:
            return None
        if self._escapes(n.outputs[0]):
            return None
        r = readers[0]
        return None if self._is_view(r) or self.g.nodes[r].op in MATRIX | {"Cast"} else r

    def _of_maker(self, n: Node) -> int | None:
        """The node whose result a rounding Cast alone reads."""
        source = n.inputs[0]
        m = self.maker.get(source)
        alone = len(self.readers[source]) == 1 and not self._escapes(source)
        if m is None or not alone or not rounds(n, self.types[source]) or self._is_view(m):
            return None
        return None if self.g.nodes[m].op == "Cast" and self._belongs(self.g.nodes[m]) else m

    def _escapes(self, v: str) -> bool:
        return v in self.outputs

    def _attach(self) -> None:
        for i, n in enumerate(self.g.nodes):
            if i in self.cell_of or self._is_view(i):
                continue
            owner = self._of_reader(n)
            owner = self._of_maker(n) if owner is None else owner
            assert owner is not None
            self.cell_of[i] = self.cell_of[owner]
            self.cell_of[i].nodes.append(i)
        for i, c in self.cell_of.items():
            c.reads.update(v for v in self.g.nodes[i].inputs if v)
            c.makes.update(v for v in self.g.nodes[i].outputs if v)
        for c in self.cell_of.values():
            c.nodes.sort()
            c.reads -= c.makes

    # --- who reads what

    def users(self, region: Iterable[Cell], makers: Iterable[Cell]) -> list[int]:
        """Nodes outside a region of cells that read what some of them make."""
        inside = {id(c) for c in region}
        found = {
            i
            for c in makers
            for v in c.makes
            for i in self.readers.get(v, ())
            if i not in self.cell_of or id(self.cell_of[i]) not in inside
        }
        return sorted(found)

    def shown(self, cells: Iterable[Cell]) -> bool:
        """Whether a network output is made here."""
        return any(not self.outputs.isdisjoint(c.makes) for c in cells)

    def free(self, c: Cell) -> bool:
        """Whether a cell is in no launch yet."""
        return c.index not in self.launch_of

    def launch(self, region: list[Cell], root: Cell) -> None:
        """Make a launch of a region."""
        for c in region:
            self.launch_of[c.index] = len(self.found)
        self.found.append((region, root))

    # --- matrix products

    def matrices(self) -> None:
        """Products with their epilogues; the last of two that meet in an Add takes it."""
        for root in reversed(self.cells):
            if root.core.op in MATRIX:
                region = [root]
                while (more := self._epilogue(region, root)) is not None:
                    region = more
                self.launch(region, root)

    def _epilogue(self, region: list[Cell], root: Cell) -> list[Cell] | None:
        """The region with the next cells up to where it has one sink again."""
        grown = list(region)
        for _ in range(8):
            outside = self.users(grown, grown)
            if not outside or outside[0] not in self.cell_of:
                return None
            c = self.cell_of[outside[0]]
            ended = self.shown(grown) or grown[-1].core.op == ENCODE
            if ended or (feeders := self._joins_epilogue(c, root, grown)) is None:
                return None
            grown += [*feeders, c]
            if not self.users(grown, grown[:-1]):
                return grown
        return None

    def _joins_epilogue(self, c: Cell, root: Cell, region: list[Cell]) -> list[Cell] | None:
        """The cells that join with this one, which make its operands for it alone; None: it does not join."""
        if c.core.op == ENCODE:
            return [] if self.free(c) and self._encodes(c.core, root.core) else None
        fits = c.shape == root.shape and self._computes(c, root)
        return self._feeders(c, root, region) if fits else None

    def _computes(self, c: Cell, root: Cell) -> bool:
        """Whether a matrix kernel can compute a cell beside its product."""
        types = [self.types[v] for v in (*c.reads, *c.makes)]
        if c.core.op == QUANTIZE:
            return self.free(c) and self._whole(root) and self._quantizes(c.core)
        return (
            c.core.op in EPILOGUE
            and self.free(c)
            and all(self._in_register(t, c.core.op, root) for t in types)
            and all(self._lies_over(self.types[v], root.core) for v in c.reads)
        )

    def _quantizes(self, n: Node) -> bool:
        """Whether its numbers lie along the last axis, or there is one for all."""
        x, *numbers = (self.types[v] for v in n.inputs[:3] if v)
        borders = [self.types[v] for v in n.inputs[3:]]
        along = n.attr("axis") % max(x.rank, 1) == x.rank - 1
        single = all(t.count == 1 for t in numbers) and all(t.rank == 1 for t in borders)
        return x.dtype in ("f32", "i32") and not n.attr("block_size") and (along or single)

    def _in_register(self, t: Type, op: str, root: Cell) -> bool:
        if t.dtype in REGISTER:
            return True
        if t.dtype in BYTES:
            return op == "Cast" or (op in CHOOSING and self._whole(root))
        return t.dtype == "i32" and op in INTEGERS and self._whole(root)

    def _whole(self, root: Cell) -> bool:
        """Whether a product is one of integers."""
        return root.core.types[0].dtype == "i32"

    def _feeders(self, c: Cell, root: Cell, region: list[Cell]) -> list[Cell]:
        """The cells that make operands of a cell from bytes in memory, for it alone."""
        found: list[Cell] = []
        for v in sorted(c.reads):
            f = self.cell_of.get(self.maker.get(v, -1))
            if f is None or f in region or self.shown([f]) or self.users([f, c], [f]):
                continue
            if self._computes(f, root):
                own = [*self._feeders(f, root, region), f]
                made = {v for x in own for v in x.makes} | self.g.constants.keys()
                begins = [self.types[v].dtype for x in own for v in x.reads - made]
                found += own if {*begins} <= {*BYTES} else []
        return found

    def _encodes(self, n: Node, root: Node) -> bool:
        """Whether a product puts its own result under bitmaps: a sparse one, whose stream of positions is that of what it reads."""
        mine, read = n.types[1].encoding, self.types[root.inputs[0]].encoding
        return root.place == SPARSE and bool(mine and read and mine["pad"] == read["pad"])

    def _lies_over(self, t: Type, root: Node) -> bool:
        """Whether a matrix kernel can address an operand while it walks over its result.

        The kernel walks over rows [N,H,W] and columns [C]: rows all together, or a batch of them.
        """
        y, b = root.types[0].shape, self.types[root.inputs[1]]
        if root.op == "MatMul" and math.prod(b.shape[:-2]) > 1:
            return True
        columns = 1 if root.op == "Conv" or b.rank > 1 else 0
        missing = len(y) - columns - max(0, t.rank - columns)
        rows = math.prod(t.shape[: max(0, t.rank - columns)])
        return rows == 1 or (missing >= 0 and rows == math.prod(y[: len(y) - columns]))

    # --- chains

    def chains(self) -> None:
        """Everything else, from the sinks up."""
        for sink in reversed(self.cells):
            if self.free(sink):
                region = [sink]
                while (c := self._joins_chain(region)) is not None:
                    region.append(c)
                self.launch(region, self._root(region))

    def _joins_chain(self, region: list[Cell]) -> Cell | None:
        """A cell that makes what the region reads, and only for it."""
        made = {i for c in region for v in c.reads if (i := self.maker.get(v)) is not None}
        for i in sorted(made, reverse=True):
            c = self.cell_of.get(i)
            if c is None or c in region or not self.free(c) or self.shown([c]):
                continue
            readers = [r for v in c.makes for r in self.readers.get(v, ())]
            inside = [self.cell_of.get(r) for r in readers if r not in c.nodes]
            users = {u.index: u for u in inside if u in region}
            if all(u in region for u in inside) and self._fits(c, region, users):
                return c
        return None

    def _fits(self, c: Cell, region: list[Cell], users: dict[int, Cell]) -> bool:
        """Whether a maker can be computed inside the kernel of its readers."""
        if sum(len(r.nodes) for r in region) + len(c.nodes) > LARGEST:
            return False
        if c.core.op in ANCHORS:
            simple = all(r.core.op in ELEMENTWISE | MOVES and r.shape == c.shape for r in region)
            return simple and len(c.core.outputs) == 1
        return c.core.op in ELEMENTWISE | MOVES and all(self._feeds(c, u) for u in users.values())

    def _feeds(self, c: Cell, user: Cell) -> bool:
        """Whether an elementwise op may be recomputed each time that its reader reads an element."""
        op = user.core.op
        if op in ELEMENTWISE:
            return c.shape == user.shape or _count(c) == _count(user)
        return op in MOVES | INJECTIVE | ONCE or (op in OFTEN and c.core.op in CHEAP)

    def _root(self, region: list[Cell]) -> Cell:
        """The anchor, or the sink."""
        return next((c for c in region if c.core.op not in ELEMENTWISE | MOVES), region[0])

    # --- order

    def ordered(self) -> Iterator[Launch]:
        """Launches, each after those whose results it reads, otherwise as the graph has them."""
        owner = {i: self.launch_of[c.index] for i, c in self.cell_of.items()}
        waits = [self._waits(region, owner) for region, _ in self.found]
        followers: dict[int, list[int]] = {}
        for k, before in enumerate(waits):
            for b in before:
                followers.setdefault(b, []).append(k)
        first = [min(i for c in region for i in c.nodes) for region, _ in self.found]
        ready = [(first[k], k) for k, before in enumerate(waits) if not before]
        heapq.heapify(ready)
        while ready:
            _, k = heapq.heappop(ready)
            region, root = self.found[k]
            yield Launch(tuple(sorted(i for c in region for i in c.nodes)), root.core)
            for f in followers.get(k, ()):
                waits[f].discard(k)
                if not waits[f]:
                    heapq.heappush(ready, (first[f], f))

    def _waits(self, region: list[Cell], owner: dict[int, int]) -> set[int]:
        """The launches that make what a region reads, through views too."""
        mine = self.launch_of[region[0].index]
        makers = {self._source(v) for c in region for v in c.reads}
        return {owner[m] for m in makers if m is not None} - {mine}

    def _source(self, v: str) -> int | None:
        m = self.maker.get(v)
        while m is not None and m not in self.cell_of:
            m = self.maker.get(self.g.nodes[m].inputs[0])
        return m


def _count(c: Cell) -> int:
    return c.core.types[0].count
