"""What reading and writing the forms of a program takes: text of a graph, assembly, ELF images, constants; CPU milliseconds, the least of three.

PYTHONPATH=.ns python tests/bench/bench_formats.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from random import Random

import numpy as np

from knapper.compiler import ops, text  # noqa: F401  declares the ops
from knapper.compiler.assemble import Rodata
from knapper.compiler.ir import Graph, Node, Type
from knapper.isa import asm, image
from knapper.isa.generate import program
from knapper.isa.program import Program


def least(work: Callable[[], object]) -> float:
    """CPU milliseconds."""
    found = []
    for _ in range(3):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return 1e3 * min(found)


def graph(n: int = 2000) -> Graph:
    """A chain of so many nodes."""
    t = Type("f32", (1, 64, 56, 56))
    nodes = tuple(
        Node("Clip", (f"v{i}",), (f"v{i + 1}",), (t,), {"min": 0.0, "max": 6.0}, f"/layer1/Clip_{i}", "g1")
        for i in range(n)
    )  # fmt: skip
    return Graph("g", {"v0": t}, {"y": f"v{n}"}, nodes)


def heavy() -> Program:
    """50 MB of constants, 60 kernels of 1,000 instructions."""
    p = program(Random(4), kernels=1, length=20)
    big = replace(p, rodata=bytes(50_000_000), inputs=(), launches=(), objects=(), outputs=())
    k = next(iter(big.kernels.values()))
    names = (f"k{i}" for i in range(60))
    return replace(big, kernels={n: replace(k, name=n, words=k.words[:16] * 1000, roles=(0,) * 1000) for n in names})  # fmt: skip


def launched() -> Program:
    """2,000 launches of a kernel of 20,000 instructions: reading checks each kernel once."""
    p = program(Random(4), kernels=1, length=20)
    (name, k), *_ = p.kernels.items()
    long = replace(k, words=bytes(16) * 20_000, roles=(0,) * 20_000)
    return replace(p, kernels={name: long}, launches=p.launches[:1] * 2_000)


def constants() -> None:
    """Lay out 10,000 of one name."""
    rodata = Rodata()
    for n in range(10_000):
        rodata.add("w", np.array([n]))


def main() -> None:
    """Print a row a form."""
    printed, code = text.show(graph()), program(Random(4), kernels=3, length=10_000)
    shown, big, many = asm.disassemble(code), image.write(heavy()), image.write(launched())
    works: dict[str, Callable[[], object]] = {
        "graph text of 2,000 nodes, read": lambda: text.parse(printed),
        "assembly of 30,000 instructions, written": lambda: asm.disassemble(code),
        "assembly of 30,000 instructions, read": lambda: asm.assemble(*shown),
        "image of 50 MB and 60 kernels, read": lambda: image.read(big),
        "image of 2,000 launches, read": lambda: image.read(many),
        "10,000 constants, laid out": constants,
    }
    for name, work in works.items():
        print(f"{name:<42} {least(work):8.1f} ms")


if __name__ == "__main__":
    main()
