"""compile, dis, asm: between models, levels and images."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from knapper.isa.errors import UsageError

from .. import files
from ..origin import origin
from ..progress import Progress
from ..tables import plural
from .options import TARGET, consts, quantize, refuse_samples, request, shapes, states

if TYPE_CHECKING:
    from knapper.compiler.driver import Dump, Options
    from knapper.compiler.ir import Graph
    from knapper.compiler.plan import Plan
    from knapper.isa.machine import Machine
    from knapper.isa.program import Program

    Level = bytes | Graph | Plan | Program
    """A model, or what it became."""

log = logging.getLogger("knapper")
ENDINGS = {"onnx": ".onnx", "graph": ".ir", "plan": ".plan", "asm": ".s", "image": ".elf"}

BESIDE = {
    "graph": "its constants, by hash: keep the two together",
    "plan": "its constants, by hash: keep the two together",
    "asm": "weights and machine description, by hash: `knapper asm` looks for it there",
}
"""What the second file of a level is."""


def compile_model(a: argparse.Namespace) -> None:
    """`knapper compile`."""
    from knapper.isa.machine import Machine

    if (a.model is None) == (a.source is None):
        raise UsageError("E704", "give a MODEL, or --from FILE")
    _refuse_idle(a)
    named = Path(a.model or a.source).name
    if not named:
        raise UsageError("E704", f"{a.model or a.source} is a folder, expected a file")
    output = Path(a.output or Path(named).with_suffix(ENDINGS[a.emit]))
    files.check_place(output)
    if a.model and output.exists() and Path(a.model).exists() and output.samefile(a.model):
        raise UsageError("E704", f"-o {output}: that is the model")
    started = time.perf_counter()
    with Warnings() as warnings:
        machine = Machine.load(a.target or _planned(a) or TARGET)
        level = _level(a, machine)
        beside = _save(level, output)
    seconds = time.perf_counter() - started
    if a.json:
        facts = {"data": str(beside) if beside else None, "seconds": seconds}
        print(json.dumps(summary(level, output) | facts | {"warnings": warnings.lines}))
        return
    log.info("%s: %s, %.2f s", output, describe(level), seconds)
    if beside:
        log.info("%s: %s", beside, BESIDE.get(a.emit, BESIDE["asm"]))


QUANTIZING = ("quantize", "calib", "ranges")
IDLE: Mapping[str, tuple[str, ...]] = {
    ".ir": ("shape", "const", "state", *QUANTIZING),
    ".plan": ("precision", "pipeline", "shape", "const", "state", *QUANTIZING),
    ".s": ("target", "precision", "pipeline", "shape", "const", "state", "dump_dir", *QUANTIZING),
}
"""The options that have nothing to decide any more, by what `--from` starts with."""


def _refuse_idle(a: argparse.Namespace) -> None:
    """UsageError E704 for a file that `--from` does not take, and for options that could only be ignored."""
    source = Path(a.source or a.model)
    if a.source and source.suffix not in IDLE:
        raise UsageError("E704", f"--from takes an .ir, .plan or .s file, got {source}")
    if a.source and [*ENDINGS.values()].index(source.suffix) > [*ENDINGS].index(a.emit):
        raise UsageError("E704", f"--emit {a.emit} comes before what --from {source} gives")
    for option in IDLE[source.suffix] if a.source else ():
        if getattr(a, option):
            name = f"--{option.replace('_', '-')}"
            raise UsageError("E704", f"{name} does not apply: {source} has it decided already")
    if a.emit == "onnx" and a.state:
        raise UsageError("E704", "--state does not apply: an ONNX file cannot say it")
    refuse_both(a)
    refuse_samples(a)


def refuse_both(a: argparse.Namespace) -> None:
    """UsageError E704 if both --precision and --pipeline are given."""
    if a.precision and a.pipeline is not None:
        hint = f'the pass says it: precision{{type="{a.precision}"}}'
        raise UsageError("E704", "--precision does not apply: --pipeline decides it", hint=hint)


def _planned(a: argparse.Namespace) -> str:
    """The machine that a plan was made for; the caller's --target comes first."""
    from knapper.compiler import plan_text

    return plan_text.target(a.source) if a.source and a.source.endswith(".plan") else ""


def _level(a: argparse.Namespace, machine: Machine) -> Level:
    """The level that --emit asks for, from the model or from the level that --from gives."""
    from knapper.compiler import driver, plan_text

    options = replace(how(a, a.model, machine, a.images or ""), state=states(a.state))
    dump = driver.Files(files.make_folder(a.dump_dir)) if a.dump_dir else None
    ending = Path(a.source).suffix if a.source else ""
    if ending == ".s":
        return read_assembly(a.source)
    if ending == ".plan":
        plan = plan_text.load(a.source, machine)
        return _planned_on(plan, a, options, dump)
    if a.emit == "onnx":
        return _quantized(a, options)
    graph = _graph(a, options, dump)
    if a.emit == "graph":
        return graph
    return _planned_on(driver.plan(graph, machine, options, dump), a, options, dump)


def how(a: argparse.Namespace, model: str | None, machine: Machine, images: str = "") -> Options:
    """The options of compiling, with ranges if --calib or --ranges ask for quantization."""
    from knapper.compiler import driver

    from ..batches import Importer
    from ..quantizing import passes

    precision = a.precision or "fp16"
    text = passes(precision, a.pipeline, quantize(a))
    options = driver.Options(text, precision, meta=origin(model), machine=machine)
    if model is None:
        return options
    importer = Importer(model, shapes(a.shape), consts(a.const))
    with Progress("calibrating", quiet=a.quiet > 0) as progress:
        return request(a, images, progress).options(options, importer, model)


def _graph(a: argparse.Namespace, options: Options, dump: Dump | None) -> Graph:
    """The graph behind the passes."""
    from knapper.compiler import driver, text

    graph = text.load(a.source) if a.source else read_model(a)
    if not a.source or options.pipeline is not None or not driver.is_fused(graph):
        return driver.optimize(graph, options, dump)
    if a.precision:
        hint = "it is behind the passes already; --pipeline runs others on it"
        problem = f"--precision does not apply: {a.source} has it decided already"
        raise UsageError("E704", problem, hint=hint)
    return graph


def _quantized(a: argparse.Namespace, options: Options) -> bytes:
    """The model behind `quantize` and the passes before it, as ONNX."""
    from knapper.compiler import driver, pipeline

    from ..onnx.export import to_onnx
    from ..quantizing import behind_quantization

    graph = pipeline.run(read_model(a), behind_quantization(driver.passes(options)))
    return bytes(to_onnx(graph).SerializeToString())


def _planned_on(
    plan: Plan, a: argparse.Namespace, options: Options, dump: Dump | None
) -> Plan | Program:
    from knapper.compiler import driver

    return plan if a.emit == "plan" else driver.generate(plan, options, dump)


def read_model(a: argparse.Namespace) -> Graph:
    """Import the model with its --shape and --const."""
    from ..doors import opened
    from ..onnx import read

    started = time.perf_counter()
    graph = read(opened(a.model), shapes(a.shape), consts(a.const))
    log.debug(
        "imported %s: %d nodes, %.2f s", a.model, len(graph.nodes), time.perf_counter() - started
    )
    return graph


def _save(level: Level, output: Path) -> Path | None:
    """Write a level; gives the path of the file beside it, if it has one."""
    from knapper.compiler import plan_text, text
    from knapper.compiler.ir import Graph
    from knapper.compiler.plan import Plan
    from knapper.isa import image

    with files.told(output):
        if isinstance(level, Graph):
            return text.save(level, output)
        if isinstance(level, Plan):
            return plan_text.save(level, output)
        if not isinstance(level, bytes) and output.suffix != ".s":
            image.save(level, output)
            return None
    if isinstance(level, bytes):
        files.write(output, level)
        return None
    return write_assembly(level, output)


def describe(level: Level) -> str:
    """One line about a level."""
    from knapper.compiler.ir import Graph
    from knapper.compiler.plan import Plan

    if isinstance(level, bytes):
        return f"{len(level) / 1024:,.1f} KiB of ONNX"
    if isinstance(level, Graph):
        return f"{plural(len(level.nodes), 'node')}, {plural(len(level.constants), 'constant')}"
    if isinstance(level, Plan):
        return plural(len(level.steps), "launch")
    instructions = sum(len(k.words) for k in level.kernels.values()) // 16
    return ", ".join([
        f"{plural(len(level.launches), 'launch')} of {plural(len(level.kernels), 'kernel')}",
        plural(instructions, "instruction"),
    ])  # fmt: skip


def summary(level: Level, path: Path) -> dict[str, Any]:
    """What `compile --json` prints of a level and its file; None for what the level does not know yet."""
    from knapper.compiler.ir import Graph
    from knapper.compiler.plan import Plan

    data = files.read(path)
    facts: dict[str, Any] = {"path": str(path), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}  # fmt: skip
    if isinstance(level, bytes):
        rest: tuple[Any, ...] = (None, None, None, None)
    elif isinstance(level, Graph):
        rest = (None, level.meta.get("precision"), None, None)
    elif isinstance(level, Plan):
        macs = sum(s.macs for s in level.steps)
        rest = (level.machine.name, level.graph.meta.get("precision"), len(level.steps), macs)
    else:
        macs = sum(n.macs for n in level.launches)
        rest = (level.target["name"], level.meta.get("precision"), len(level.launches), macs)
    return facts | dict(zip(("target", "precision", "launches", "macs"), rest, strict=True))


class Warnings(logging.Handler):
    """Keeps what knapper warns of while it is entered."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self) -> Self:
        log.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        log.removeHandler(self)


# --- assembly -----------------------------------------------------------------------------------------------------------


def disassemble(a: argparse.Namespace) -> None:
    """`knapper dis`."""
    from knapper.isa import asm, image

    program = image.read(files.read(a.image), a.image)
    if a.output:
        beside = write_assembly(program, Path(a.output))
        log.info("%s: %s\n%s: %s", a.output, describe(program), beside, BESIDE["asm"])
    else:
        print(asm.disassemble(program)[0])


def assemble(a: argparse.Namespace) -> None:
    """`knapper asm`."""
    from knapper.isa import image

    files.check_place(a.output)
    program = read_assembly(a.source)
    files.write(a.output, image.write(program))
    log.info("%s: %s", a.output, describe(program))


def write_assembly(program: Program, path: Path) -> Path:
    """Write a .s file, and its bulk data beside it, in a file whose path this gives."""
    from knapper.isa import asm

    with files.told(path):
        return asm.save(program, path)


def read_assembly(path: str) -> Program:
    """The program of a .s file; IsaError for whatever is wrong with it."""
    from knapper.isa import asm

    return asm.load(path)
