"""inspect: what an image holds."""

from __future__ import annotations

import argparse
from typing import Any

from knapper.isa import image as elf
from knapper.isa.program import BASE, Program

from .. import files
from ..inputs import show
from ..tables import Table, joined, size
from ..tables import show as show_tables


def inspect(a: argparse.Namespace) -> None:
    """`knapper inspect`."""
    data = files.read(a.image)
    program = elf.read(data, a.image)
    first = f"{a.image}: {size(len(data))}, for {program.target['name']}"
    tables = _tables(program)
    show_tables(a, lambda: facts(program), tables, lambda: f"{first}\n\n{joined(tables, 'table')}")


def facts(p: Program) -> dict[str, Any]:
    """What `inspect --json` prints."""
    return {
        "target": dict(p.target),
        "meta": dict(p.meta),
        "inputs": [
            {"name": i.name, "dtype": i.dtype, "shape": i.shape, "address": i.address}
            for i in p.inputs
        ],
        "outputs": [
            {"name": o.name, "dtype": o.dtype, "shape": o.shape, "address": o.address}
            for o in p.outputs
        ],
        "state": dict(p.state),
        "kernels": [_kernel_facts(p, name) for name in p.kernels],
        "launches": [
            {"kernel": n.kernel, "grid": n.grid, "nodes": n.nodes, "macs": n.macs}
            for n in p.launches
        ],
        "memory": {
            "rodata": {"address": BASE, "bytes": len(p.rodata), "objects": len(p.objects)},
            "arena": {"address": p.arena_address, "bytes": p.arena_bytes},
        },
    }


def _kernel_facts(p: Program, name: str) -> dict[str, Any]:
    k = p.kernels[name]
    return {
        "name": name,
        "instructions": len(k.words) // 16,
        "block": k.block,
        "registers": k.registers,
        "shared_bytes": k.shared_bytes,
        "local_bytes": k.local_bytes,
        "launches": sum(n.kernel == name for n in p.launches),
    }


def _tables(p: Program) -> list[Table]:
    ports = [("in", i.name, show(i), hex(i.address)) for i in p.inputs]
    ports += [("out", o.name, show(o), hex(o.address)) for o in p.outputs]
    ports += [("state", f"{past} = {present}", "", "") for past, present in p.state]
    kernels = [tuple(_kernel_facts(p, name).values()) for name in p.kernels]
    launches = [
        (i, n.kernel, "x".join(map(str, n.grid)), n.macs, ", ".join(dict.fromkeys(n.nodes)))
        for i, n in enumerate(p.launches)
    ]
    memory = [
        ("weights", hex(BASE), size(len(p.rodata)), f"{len(p.objects)} tensors"),
        ("arena", hex(p.arena_address), size(p.arena_bytes), "inputs, outputs, scratch"),
    ]
    return [
        Table([*p.meta.items()], ("key", "value"), "provenance", bare=True),
        Table(ports, ("", "name", "type", "address"), "inputs and outputs", bare=True),
        Table(memory, ("", "address", "size", "holds"), "memory"),
        Table([(k[0], k[1], "x".join(map(str, k[2])), *k[3:]) for k in kernels],
              ("name", "instructions", "block", "registers", "shared", "local", "launches"), "kernels"),
        Table(launches, ("", "kernel", "grid", "macs", "nodes"), "launches"),
    ]  # fmt: skip
