"""TIR by hand: a kernel over one row of threads, t, that reads i0, i1, … and writes out.

As `compiler/tvm/tir.py` describes it; tests of the translation write it with these, and need no TVM.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from knapper.compiler import ops  # noqa: F401  declares them
from knapper.compiler.codegen.simd.translate import Translated, translate
from knapper.compiler.driver import Options, finish
from knapper.compiler.ir import Array, Graph, Type
from knapper.isa.machine import Machine
from knapper.isa.program import ALIGN, BASE, Launch, Operand, Port, Program
from knapper.runtime.session import EngineName, Session

MACHINE = Machine.load("volta-8tc")
EPSILON = {"f16": 2.0**-10, "bf16": 2.0**-7, "f32": 2.0**-23, "f64": 2.0**-52}
Json = Any


def var(n: int, dtype: str = "i32") -> Json:
    return ["var", dtype, n]


def num(n: int, dtype: str = "i32") -> Json:
    return ["int", dtype, n]


def op(name: str, a: Json, b: Json, dtype: str = "i32") -> Json:
    return [name, dtype, a, b]


T, BX = 0, 1
"""Variables: the thread, the block."""
THREAD = op("add", op("mul", var(BX), num(64)), var(T))
"""The number of a thread in blocks of 64."""


def kernel(
    body: Json,
    inputs: list[Array],
    out: tuple[str, int],
    blocks: int = 1,
    extra: Sequence[Json] = (),
) -> Json:
    """Buffers 0 … are the inputs, then the output, then `extra` ones."""
    rows = [(f"i{i}", Type.of(a).dtype, a.size) for i, a in enumerate(inputs)] + [("out", *out)]
    table = [{"role": r, "scope": "global", "dtype": d, "lanes": 1, "count": n} for r, d, n in rows]
    return {
        "grid": [blocks, 1, 1],
        "block": [64, 1, 1],
        "axes": {str(T): "threadIdx.x", str(BX): "blockIdx.x"},
        "buffers": [*table, *extra],
        "body": body,
    }


def local(dtype: str, count: int, scope: str = "local") -> Json:
    return {"role": "", "scope": scope, "dtype": dtype, "lanes": 1, "count": count}


def program(t: Translated, grid: list[int], arrays: dict[str, Type]) -> Program:
    """One launch over buffers that follow each other in the arena."""
    at, address = BASE, {}
    for name, type_ in arrays.items():
        address[name] = at
        at += -(-type_.bytes // ALIGN) * ALIGN
    operands = tuple(Operand(v, address[v], arrays[v].bytes, use) for v, use in t.uses.items())
    params = tuple(address[v] for v in t.params)
    launch = Launch(t.kernel.name, (grid[0], grid[1], grid[2]), params, ("node",), operands)
    ports = {v: Port(v, type_.dtype, type_.shape, address[v]) for v, type_ in arrays.items()}
    ins = tuple(p for v, p in ports.items() if v != "out")
    return Program(MACHINE.to_dict(), {t.kernel.name: t.kernel}, (launch,), ins, (ports["out"],), arena_bytes=at - BASE)  # fmt: skip


def run(k: Json, inputs: list[Array], engine: EngineName = "reference") -> Array:
    t = translate(k, "k", MACHINE)
    rows = {b["role"]: Type(b["dtype"], (b["count"],)) for b in k["buffers"] if b["role"]}
    feeds = {f"i{i}": a.reshape(-1) for i, a in enumerate(inputs)}
    return Session(program(t, k["grid"], rows)).run(feeds, engine=engine).outputs["out"]


def code(k: Json) -> list[type]:
    return [type(i) for i in translate(k, "k", MACHINE).kernel.code]


def each(value: Json, *inputs: Array, dtype: str) -> Array:
    """out[t] = value for 64 threads."""
    return run(
        kernel(["store", len(inputs), var(T), value], list(inputs), (dtype, 64)), list(inputs)
    )


def compiled(graph: Graph, cache: Path) -> Program:
    """A graph of launches, by SIMD kernels."""
    return finish(graph, MACHINE, Options(cache=cache))
