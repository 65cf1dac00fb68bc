"""compile, dis, asm: between models, levels and images."""

from __future__ import annotations

import argparse
import hashlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from knapper.isa.errors import UsageError

from .. import files
from .options import consts, shapes

if TYPE_CHECKING:
    from knapper.compiler.driver import Dump, Options
    from knapper.compiler.ir import Graph
    from knapper.compiler.plan import Plan
    from knapper.isa.machine import Machine
    from knapper.isa.program import Program

log = logging.getLogger("knapper")
ENDINGS = {"graph": ".ir", "plan": ".plan", "asm": ".s", "image": ".elf"}


def compile_model(a: argparse.Namespace) -> None:
    """`knapper compile`."""
    from knapper.isa.machine import Machine

    if (a.model is None) == (a.source is None):
        raise UsageError("E704", "give a MODEL, or --from FILE")
    output = Path(a.output or Path(Path(a.model or a.source).name).with_suffix(ENDINGS[a.emit]))
    started = time.perf_counter()
    level = _level(a, Machine.load(a.target))
    _save(level, output)
    log.info("%s: %s, %.2f s", output, describe(level), time.perf_counter() - started)


def _level(a: argparse.Namespace, machine: Machine) -> Graph | Plan | Program:
    """The level that --emit asks for, from the model or from the level that --from gives."""
    from knapper.compiler import driver, plan_text

    options = driver.Options(a.pipeline, a.precision or "fp16", meta=_meta(a.model))
    dump = driver.Files(Path(a.dump_dir)) if a.dump_dir else None
    source = Path(a.source) if a.source else None
    ending = source.suffix if source else ""
    if source and ending not in (".ir", ".plan", ".s"):
        raise UsageError("E704", f"--from takes an .ir, .plan or .s file, got {source}")
    if source and list(ENDINGS.values()).index(ending) > list(ENDINGS).index(a.emit):
        raise UsageError("E704", f"--emit {a.emit} comes before what --from {source} gives")
    if source and ending == ".s":
        return read_assembly(a.source)
    if source and ending == ".plan" and a.emit == "plan":
        return plan_text.load(source, machine)
    if source and ending == ".plan":
        return driver.from_plan(source, machine, options, dump)
    if a.emit in ("graph", "plan"):
        return _early(a, machine, options, dump)
    if source:
        return driver.from_ir(source, machine, options, dump)
    return driver.compile_graph(
        read_model(a), machine, a.pipeline, options.precision, dump, meta=options.meta
    )


def _early(
    a: argparse.Namespace, machine: Machine, options: Options, dump: Dump | None
) -> Graph | Plan:
    """The graph after the passes, or the plan, without what comes behind it."""
    from knapper.compiler import driver, text
    from knapper.compiler.schedule import schedule

    graph = text.load(Path(a.source)) if a.source else read_model(a)
    if not (a.source and a.pipeline is None and driver.is_fused(graph)):
        graph = driver.optimize(graph, options, dump)
    return graph if a.emit == "graph" else schedule(graph, machine)


def read_model(a: argparse.Namespace) -> Graph:
    """Import the model with its --shape and --const."""
    from ..onnx import read

    started = time.perf_counter()
    graph = read(a.model, shapes(a.shape), consts(a.const))
    log.debug(
        "imported %s: %d nodes, %.2f s", a.model, len(graph.nodes), time.perf_counter() - started
    )
    return graph


def _meta(model: str | None) -> Mapping[str, str]:
    """The model file's hash, for the image's provenance."""
    if model is None or not Path(model).is_file():
        return {}
    with Path(model).open("rb") as f:
        return {"model": hashlib.file_digest(f, "sha256").hexdigest()}


def _save(level: Graph | Plan | Program, output: Path) -> None:
    from knapper.compiler import plan_text, text
    from knapper.compiler.ir import Graph
    from knapper.compiler.plan import Plan
    from knapper.isa import image

    if isinstance(level, Graph):
        text.save(level, output)
    elif isinstance(level, Plan):
        plan_text.save(level, output)
    elif output.suffix == ".s":
        write_assembly(level, output)
    else:
        files.write(output, image.write(level))


def describe(level: Graph | Plan | Program) -> str:
    """One line about a level."""
    from knapper.compiler.ir import Graph
    from knapper.compiler.plan import Plan

    if isinstance(level, Graph):
        return f"{len(level.nodes)} nodes, {len(level.constants)} constants"
    if isinstance(level, Plan):
        return f"{len(level.steps)} launches"
    instructions = sum(len(k.words) for k in level.kernels.values()) // 16
    return f"{len(level.launches)} launches of {len(level.kernels)} kernels, {instructions:,} instructions"


# --- assembly -----------------------------------------------------------------------------------------------------------


def disassemble(a: argparse.Namespace) -> None:
    """`knapper dis`."""
    from knapper.isa import asm, image

    program = image.read(files.read(a.image), a.image)
    if a.output:
        write_assembly(program, Path(a.output))
    else:
        print(asm.disassemble(program)[0])


def assemble(a: argparse.Namespace) -> None:
    """`knapper asm`."""
    from knapper.isa import image

    program = read_assembly(a.source)
    files.write(a.output, image.write(program))
    log.info("%s: %s", a.output, describe(program))


def write_assembly(program: Program, path: Path) -> None:
    """Write a .s file, and its bulk data beside it."""
    from knapper.isa import asm

    path.parent.mkdir(parents=True, exist_ok=True)
    asm.save(program, path)


def read_assembly(path: str) -> Program:
    """The program of a .s file; IsaError for whatever is wrong with it."""
    from knapper.isa import asm

    return asm.load(path)
