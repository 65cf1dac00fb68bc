"""The structs that Python and compiled code share. One `State` a thread, one `Context` a warp."""

from __future__ import annotations

import numpy as np

POINTERS = (
    # of the warp that runs
    "regs", "uregs", "preds", "local", "tids",
    # of the block, the launch, the thread
    "shared", "params", "code", "warps",
    # global memory: host address of device address 0; device addresses; touched-sector maps, biased likewise
    "memory", "memory_end", "writable", "touched_read", "touched_write",
    # counters minus code: a record's counters lie at its own address plus this
    "counters",
    # shadows of the checked engine
    "has_reg", "has_ureg", "has_pred", "has_local", "has_shared", "has_memory", "readers", "writers", "operands",
    # where each warp's part begins, and how far apart they are
    "all_regs", "all_uregs", "all_preds", "all_local", "all_tids", "all_has_reg", "all_has_ureg", "all_has_pred", "all_has_local",
    "reg_bytes", "local_bytes_warp", "has_reg_bytes",
    "stop", "limit",
    # sectors touched for the first time in this launch
    "dram_read", "dram_write",
)  # fmt: skip
WORDS = (
    "warp", "warp_count", "threads", "param_bytes", "shared_bytes", "local_bytes", "operand_count",
    "ntid_x", "ntid_y", "ntid_z", "nctaid_x", "nctaid_y", "nctaid_z", "ctaid_x", "ctaid_y", "ctaid_z",
    "epoch", "target", "barrier", "fault_lane", "fault_aux", "fault_warp", "fault_pc", "fault_block",
)  # fmt: skip
STATE = np.dtype(
    [("zeros", "u1", 512), ("waste", "u1", 512)]
    + [(n, "u8") for n in POINTERS]
    + [("fault_value", "u8")]
    + [(n, "u4") for n in WORDS],
    align=True,
)
"""`zeros` and `waste` are where lanes that are not active load from and store to; first, so that they are aligned as a state is."""

UREGS, PREDS = 68, 12
"""Words of a warp's uniform and predicate files: URZ is word 63 (64 of a pair), waste 65 and 66; PT is 7, waste 8."""

CONTEXT = np.dtype(
    [(n, "u4") for n in ("pc", "path", "live", "depth", "status", "waits")]
    + [("left", "u8")]
    + [(n, "u4", 16) for n in ("lanes", "parked", "end", "start")]
    + [("paths_pc", "u4", 32), ("paths_mask", "u4", 32)],
    align=True,
)
"""A warp between barriers. `left`: instructions until the limit. `lanes` … `start` are its convergence barriers (0 lanes: closed)."""
RUNNING, WAITING, DONE = 0, 1, 2

# What a handler returns
NEXT, BRANCH, PUSH, CONVERGE, BARRIER, EXIT = range(6)
STOPPED = 8
"""What the interpreter returns after an interrupt."""
FAULT = 16
"""Fault kinds count from here."""

WORD = np.dtype([("x", "u4")])
BYTE = np.dtype([("x", "u1")])
