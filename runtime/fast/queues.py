"""Where systolic commands live: buffers of a launch, and the structs in them as emitted code sees them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knapper.isa.core import CUSTOM, TABLE
from knapper.isa.dma import LINE
from knapper.isa.instructions import BMENC, STS
from knapper.isa.modifiers import Beside, Element
from knapper.isa.program import Kernel
from knapper.isa.systolic import QUEUE, VECTOR, WORD, Array
from knapper.isa.vector_memory import DESCRIPTORS, MOST

from ..decode import SPARE
from ..faults import Kind
from .emit import Code, Num, Struct
from .layout import ARRAYS, BYTE, COMMAND, DESCRIPTOR, FAULT, KEPT, PAGE, RING

CHUNK = 64
"""Rows of A that are widened at a time."""
COMMIT, LDB, SWAP, PRODUCTS, PATCHES, GATHERED, LIST, FILL, COPY = range(9)
"""What a command is: the end of a group, an SMA.LDB, SMA.SWAP, LSMA, IM2COL.PUSH, GATHK.PUSH (and its list alone, to be looked at),
FILL.DUP, DMA.LD. The last two write shared memory."""
POINTERS = (
    "systolic", "systolic_bytes", "claimed_reg", "claimed_shared", "claimed_filled", "claimed_sum",
)  # fmt: skip
"""Of a state, what says that a launch has no systolic commands by being 0."""
CLAIMS = ("claimed_shared", "claimed_filled", "claimed_sum")
"""Buffers that are zeros whenever no command is pending."""
OWN = [
    cls.opcode
    for cls in TABLE.values()
    if cls.extension in ("systolic", "fusion", "async", "gather", "sparse")
]
STORES = [STS.opcode, BMENC.opcode, *CUSTOM]
"""What may write shared memory by itself."""


def concerns(records: NDArray[Any]) -> bool:
    """Whether a kernel has anything to do with the systolic units."""
    return bool(np.isin(records["kind"], OWN).any())


def stores(records: NDArray[Any]) -> bool:
    """Whether a kernel has stores to shared memory."""
    return bool(np.isin(records["kind"], STORES).any())


def prepare(
    state: Any, kernel: Kernel, array: Array, buffer: Callable[[str, int], int], checked: bool
) -> None:
    """Lay out what a block's systolic commands need: one piece that is cleared when a block begins, rings, a buffer for A."""
    size = kernel.warps, 4 * (kernel.registers + 2 * SPARE)
    sums = WORD * array.accumulators
    parts = {
        "queues": RING.itemsize * kernel.warps,
        "weights": 2 * array.units * array.rows * row_words(array.columns) * 4,
        "accumulators": sums,
        "descriptors": 2 * DESCRIPTORS * DESCRIPTOR.itemsize,
    }
    if checked:
        parts |= {"claimed_reg": size[0] * size[1], "has_sum": sums}
        shared = kernel.shared_bytes
        for name, cells in zip(CLAIMS, (shared, shared, sums), strict=True):
            state[name] = buffer(name, 4 * cells)
        state["pieces"] = buffer("pieces", 4 * max(MOST, shared // LINE))
    starts = np.cumsum([ARRAYS.itemsize, *(-(-n // 64) * 64 for n in parts.values())])
    state["systolic"] = buffer("systolic", int(starts[-1]))
    state["systolic_bytes"] = int(starts[-1])
    for name, start in zip(parts, starts.tolist(), strict=False):
        state[name] = state["systolic"] + start
    state["commands"] = buffer("commands", kernel.warps * QUEUE * COMMAND.itemsize)
    state["stream"] = buffer("stream", CHUNK * array.rows * 4)
    state["turned"] = buffer("turned", 4 * VECTOR * array.rows)
    state["gathered"] = buffer("gathered", CHUNK * array.rows * 4)
    state["kept"] = buffer("kept", KEPT.itemsize * array.rows)
    state["array_rows"], state["array_columns"] = array.rows, array.columns
    state["vector_bytes"] = 2 * array.rows * array.word
    state["accumulator_bytes"] = sums


# --- structs -----------------------------------------------------------------------------------------------------------------


def arrays(code: Code, state: Struct) -> Struct:
    """The units."""
    return Struct(code, ARRAYS, state.pointer_to("systolic"))


def ring(code: Code, state: Struct) -> Struct:
    """The queue of the warp that runs."""
    place = code.at(state.pointer_to("queues"), state.get("warp").wide() * RING.itemsize)
    return Struct(code, RING, place)


def entry(code: Code, state: Struct, number: Num) -> Struct:
    """The n-th command of the warp that runs, since it began."""
    index = (state.get("warp") * QUEUE + (number & (QUEUE - 1))).wide()
    return Struct(code, COMMAND, code.at(state.pointer_to("commands"), index * COMMAND.itemsize))


def element_bytes(command: Struct) -> Num:
    """Of A, B: 2 or 4."""
    return (command.type == int(Element.F32)).flag() * 2 + 2


def rows_of(code: Code, state: Struct, command: Struct) -> tuple[Num, Num]:
    """Rows that an LDB or LSMA reads, and bytes of one. A unit's row of W has the same bytes in every type."""
    product = command.kind == PRODUCTS
    rows = code.of(code.b.select(product.value, command.m.value, state.array_rows.value))
    size = code.b.select(
        product.value,
        (state.array_rows * element_bytes(command)).value,
        (command.units * state.array_columns * 2).value,
    )
    return rows, code.of(size)


def columns_of(state: Struct, command: Struct) -> Num:
    """Columns of C."""
    nibbles = ~(command.type < Beside.S8.number)
    return command.units * state.array_columns * 2 // element_bytes(command) << nibbles.flag()


def row_words(columns: Any) -> Any:
    """Words that a row of a unit's weights takes: nibbles have twice as many columns as elements of 16 bits."""
    return columns * 2


def fault(
    code: Code, state: Struct, kind: Kind, lane: Num | int = 0, value: Any = 0, aux: Any = 0
) -> None:
    """Stop here."""
    state.fault_lane, state.fault_aux = lane, aux
    state.fault_value = value.wide() if isinstance(value, Num) else value
    code.give(FAULT + kind)


def weights(code: Code, state: Struct, unit: Num, half: Num) -> Any:
    """Where a unit's active (half = 0) or shadow (1) weights are."""
    which = (arrays(code, state).flipped >> unit & 1) ^ half
    size = (state.array_rows * row_words(state.array_columns) * 4).wide()
    return code.at(state.pointer_to("weights"), (unit * 2 + which).wide() * size)


def closed(code: Code, state: Struct, queue: Struct) -> None:
    """No command waits for a COMMIT."""
    with code.when(queue.open != 0, likely=False):
        fault(code, state, Kind.ASYNC_OPEN, 0, queue.open)


def touch_page(code: Code, state: Struct, byte: Num) -> None:
    """Note that readers and writers of a byte of shared memory are to be forgotten at the next barrier."""
    page = byte >> PAGE.bit_length() - 1
    Struct(code, BYTE, code.at(state.pointer_to("pages"), page)).x = 1
