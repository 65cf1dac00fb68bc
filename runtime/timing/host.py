"""The time and energy of a launch that the host computes: link there, operations, link back.

    seconds = asked · host_microseconds + (sent + received) / link_bytes_per_second + operations / (host_clock_hz · host_flops_per_cycle)

The emulator gets the values by running the SIMD kernel of the launch, and what that kernel executed is the work of the host as well: an
operation is one lane of an integer, floating-point, conversion or special-function instruction, those that compute addresses included.
Loads and stores are none, and the host's own memory is taken for fast enough. The host is asked once for launches that follow each other, and
nothing overlaps: the accelerator waits, which costs its constant power.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from knapper.isa.machine import Machine
from knapper.isa.program import Kernel, Launch, Offload

from ..counters import Counts
from ..energy import offload
from ..stats import Measured
from .report import Roofline, Timing
from .state import REASONS
from .tables import Costs

ARITHMETIC = ("alu", "imul", "fma", "fp64", "sfu", "cvt")
"""Units whose instructions are work for the host."""


def measured(costs: Costs, launch: Launch, host: Offload, counts: Counts) -> Measured:
    """What a launch of the host takes."""
    machine, kernel = costs.machine, costs.kernels[launch.kernel]
    done = operations(costs, kernel, counts)
    timing = _timing(machine, host, counts, int(done.sum()))
    nodes, roles = tuple(launch.nodes) or ("",), np.array(kernel.roles, np.int64)
    by_node = np.bincount(roles, done if done.any() else timing.by_pc, len(nodes))
    energy = offload(machine, nodes[0], 0, host.sent + host.received)
    result = Measured(timing, energy, by_node)
    flops = np.bincount(roles, done, len(nodes)).tolist()
    for node, count, cycles in zip(nodes, flops, result.node_cycles, strict=True):
        energy = energy + offload(machine, node, int(count), 0, cycles)
    return Measured(timing, energy, by_node)


def operations(costs: Costs, kernel: Kernel, counts: Counts) -> NDArray[np.int64]:
    """Operations by instruction."""
    s = costs.structure
    counted = np.array([name in ARITHMETIC for name in s.units])[s.unit[s.spans[kernel.name]]]
    lanes: NDArray[np.int64] = np.where(counted, counts.instructions["lanes"], 0).astype(np.int64)
    return lanes


def _timing(machine: Machine, host: Offload, counts: Counts, operations: int) -> Timing:
    speed = machine.host_clock_hz * machine.host_flops_per_cycle
    parts = {
        "ask": host.asked * machine.host_microseconds * 1e-6,
        "link": (host.sent + host.received) / machine.link_bytes_per_second,
        "host": operations / speed,
    }
    seconds = sum(parts.values())
    moved = host.sent + host.received
    return Timing(
        cycles=math.ceil(seconds * machine.clock_hz),
        stalls=dict.fromkeys(REASONS, 0),
        busy={name: part / seconds for name, part in parts.items() if part},
        occupancy=0.0,
        blocks_per_sm=0,
        limited_by="host",
        active_sms=0,
        l2_sectors=0,
        dram_sectors=0,
        array_cycles=0,
        port_stalls=0,
        by_pc=counts.instructions["executed"].astype(np.int64),
        roofline=Roofline(
            operations / moved if moved else 0.0,
            operations / seconds if seconds else 0.0,
            float(speed),
            max(parts, key=lambda name: parts[name]),
        ),
    )
