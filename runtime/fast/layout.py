"""The structs that Python and compiled code share. One `State` a thread, one `Context` a warp."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from knapper.isa.vector_memory import Given, Layout

from ..counters import COUNTER
from ..decode import RECORD

POINTERS = (
    # of the warp that runs
    "regs", "uregs", "preds", "local", "tids",
    # of the block, the launch, the thread
    "shared", "params", "code", "warps",
    # global memory: host address of device address 0; device addresses; touched-sector maps, biased likewise
    "memory", "memory_end", "writable", "touched_read", "touched_write",
    # counters minus code: a record's counters lie at its own address plus this; likewise those that only timing needs
    "counters", "passes",
    # shadows of the checked engine
    "has_reg", "has_ureg", "has_pred", "has_local", "has_shared", "has_memory", "readers", "writers", "operands",
    # where each warp's part begins, and how far apart they are
    "all_regs", "all_uregs", "all_preds", "all_local", "all_tids", "all_has_reg", "all_has_ureg", "all_has_pred", "all_has_local",
    "reg_bytes", "local_bytes_warp", "has_reg_bytes",
    "stop", "limit",
    # sectors touched for the first time in this launch; the map that tells what a block has read (biased), the log of what
    # blocks read first, and up to where it has room for a block
    "dram_read", "dram_write", "fetched", "log", "log_full",
    # events of the block's warps, how far apart the warps' parts are; a hash a block; the table of known ones
    "events", "event_bytes", "hashes", "known",
    # systolic commands: what is cleared for a block (0 bytes: the kernel has none), and what lies in it
    "systolic", "systolic_bytes", "queues", "weights", "accumulators", "descriptors", "claimed_reg", "has_sum",
    # likewise, not cleared: rings of commands, rows of A as fp32, a word's rows; claims, which a block leaves as it finds them
    "commands", "stream", "turned", "gathered", "kept", "claimed_shared", "claimed_filled", "claimed_sum",
    # bytes of shared memory that may hold something, and that the kernel's stores may write; which pages of it were touched
    "shared_used", "shared_stores", "pages",
    # where a command's pieces of shared memory begin
    "pieces",
    # the function that counts the cycles of a buffer's banks
    "bank_cycles",
)  # fmt: skip
WORDS = (
    "warp", "warp_count", "threads", "param_bytes", "shared_bytes", "local_bytes", "operand_count",
    "ntid_x", "ntid_y", "ntid_z", "nctaid_x", "nctaid_y", "nctaid_z", "ctaid_x", "ctaid_y", "ctaid_z",
    "epoch", "target", "barrier", "fault_lane", "fault_aux", "fault_warp", "fault_pc", "fault_block",
    # whether to record for timing; what the block marks in `fetched`; slots of `known` minus one
    "timing", "stamp", "known_mask",
    "array_rows", "array_columns", "accumulator_bytes",
    # of a word of vector memory, in 16-bit elements (0: there is none); of one of `pieces`
    "vector_bytes", "piece_bytes", "collector_window",
)  # fmt: skip
STATE = np.dtype(
    [("zeros", "u1", 512), ("waste", "u1", 512)]
    + [(n, "u8") for n in POINTERS]
    + [("fault_value", "u8")]
    + [(n, "u4") for n in WORDS],
    align=True,
)
"""`zeros` and `waste` are where lanes that are not active load from and store to; first, so that they are aligned as a state is."""

COUNTS = np.dtype([(n, "u8") for n in (COUNTER.names or ())[:8]])
TIMED = (COUNTER.names or ())[8:]
"""Counters that only a run with timing keeps (`sectors` first, of which it keeps those of local memory), and then those of sparse products."""
PASSES = np.dtype({"names": TIMED, "formats": ["u8"] * len(TIMED), "itemsize": 64})
"""The two halves of a `COUNTER`, each as large as a record, so that one distance serves all; the second is for timing and sparse products."""
assert COUNTS.itemsize == PASSES.itemsize == RECORD.itemsize

UREGS, PREDS = 68, 12
"""Words of a warp's uniform and predicate files: URZ is word 63 (64 of a pair), waste 65 and 66; PT is 7, waste 8."""

CONTEXT = np.dtype(
    [(n, "u4") for n in ("pc", "path", "live", "depth", "status", "waits")]
    + [(n, "u8") for n in ("left", "event", "last_event")]
    + [(n, "u4", 16) for n in ("lanes", "parked", "end", "start")]
    + [("paths_pc", "u4", 32), ("paths_mask", "u4", 32)],
    align=True,
)
"""A warp between barriers. `left`: instructions until the limit. `event`: where its newest event is, 0 if none are recorded.
`lanes` … `start` are its convergence barriers (0 lanes: closed)."""
RUNNING, WAITING, DONE = 0, 1, 2

ARRAYS = np.dtype(
    {
        "names": ["flipped", "loaded", "owner", "loaders", "users", "pairs", "nibbles"],
        "formats": ["u4"] * 7,
        "itemsize": 64,
    }
)
"""An SM's systolic units. Bit u of `flipped`: which of its two sets of weights unit u computes with; of `loaded`, bit UNITS · set + u: the set
holds something; of `pairs`, bytes, of `nibbles`, nibbles. Else a bit a warp: who changed weights last, who did and who relied on old
ones since the last barrier."""
RING = np.dtype([(n, "u4") for n in ("head", "tail", "groups", "open")])
"""A warp's queue: commands since it began that were executed, and that were sent; groups pending; commands that no COMMIT follows."""
COMMAND = np.dtype(
    [("source", "u8")]
    + [
        (n, "u4")
        for n in (
            "kind",
            "type",
            "units",
            "m",
            "fresh",
            "space",
            "c",
            "first",
            "pitch",
            "cd",
            "tap",
            "steps",
            "td",
            "part",
            "after",
        )
    ],
    align=True,
)
"""A systolic command. `first`: its first row in shared memory; `fresh`: the chain begins at +0;
`c`: bytes into the warp's registers, or words into accumulator memory. A push: `m` rows of the patch matrix from `first` on; a fill: `m` stored
rows from `first` on; a transfer: `m` bytes to `first`. `steps`: of k, that a product or a push takes. A gathered push: its list begins at `source`
in shared memory, with entry number `pitch` of the tile whose descriptor is `td`; it is looked at in parts: the list, then kept rows one after the
other whose words are those of one tap. `part` tells which, `after` the next one; 0: the list, or none."""
DESCRIPTOR = np.dtype(
    [
        (n, "u8")
        for n in (
            *(f.name for f in (*fields(Given), *fields(Layout))),
            *("kept", "at"),
            *("known", "pending", "changers", "users"),
        )
    ]
)
"""A descriptor: what it says and what follows, whether it says anything, commands that use it; a bit a warp: who changed and used it since
the last barrier."""
KEPT = np.dtype([("down", "u8"), ("along", "u8"), ("offset", "u8")])
"""A kept row of a gathered push: bytes down the ring, columns along a line, and bytes from the word's column to the bank."""
PAGE = 4096
"""Bytes of shared memory in a page."""

# What a handler returns
NEXT, BRANCH, PUSH, CONVERGE, BARRIER, EXIT = range(6)
STOPPED, UNKNOWN, CROWDED = 8, 9, 10
"""What the interpreter returns after an interrupt, after a block whose path is new to its thread, and where the log has no room for a block."""
FAULT = 16
"""Fault kinds count from here."""

WORD = np.dtype([("x", "u4")])
BYTE = np.dtype([("x", "u1")])
