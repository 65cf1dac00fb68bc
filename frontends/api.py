"""The Python door: compile a model, save it, load it, run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from knapper.isa import image as elf
from knapper.isa.errors import UsageError
from knapper.isa.program import Program

from . import extensions, files
from .inputs import show
from .origin import origin
from .tables import plural

if TYPE_CHECKING:
    from onnx import ModelProto
    from torch import Tensor
    from torch.export import ExportedProgram
    from torch.nn import Module

    from knapper.compiler.driver import Options
    from knapper.compiler.ir import Array
    from knapper.compiler.quantization.ranges import Ranges
    from knapper.runtime.session import Result, Session

    from .batches import Importer
    from .calibrate import Calibration, Source

    Example: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]


class Image:
    """A compiled network: what `knapper compile` writes and `knapper run` runs."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def __repr__(self) -> str:
        p = self.program
        inputs, outputs = (
            ", ".join(f"{x.name}: {show(x)}" for x in ports) for ports in (p.inputs, p.outputs)
        )
        return f"Image({inputs} -> {outputs}; {plural(len(p.launches), 'launch')} for {p.target.get('name')})"

    def _repr_html_(self) -> str:
        """In a notebook: inputs and outputs, and the launches."""
        from knapper.runtime import html

        p = self.program
        facts = {
            "target": p.target.get("name"),
            **{f"input {i.name}": show(i) for i in p.inputs},
            **{f"output {o.name}": show(o) for o in p.outputs},
        }
        rows = [(n.kernel, ", ".join(dict.fromkeys(n.nodes)), n.macs) for n in p.launches]
        return html.page(facts, html.Table(("kernel", "nodes", "macs"), rows))

    def save(self, path: str | Path) -> None:
        """Write the ELF file."""
        with files.told(path):
            elf.save(self.program, path)

    def session(self) -> Session:
        """A new emulator with this program loaded, which keeps the network's states from run to run: `with image.session() as s: …`."""
        from knapper.runtime.session import Session

        return Session(self.program)

    @cached_property
    def default_session(self) -> Session:
        """The session that `run` uses."""
        return self.session()

    def run(
        self,
        inputs: Mapping[str, Array],
        *,
        engine: Literal["fast", "reference"] = "fast",
        checked: bool = False,
        limit: int | None = None,
        timing: bool = False,
    ) -> Result:
        """Execute on the emulator: `result.outputs` by name, `result.stats` with every counter.

        States begin as zeros each time, unless an input sets them; `session` keeps them.

        Args:
            inputs: an array for each network input, of its exact shape and dtype.
            engine: "fast", or "reference" (the specification, in plain Python).
            checked: also detect races and reads of memory that was never written.
            limit: warp instructions that the run may execute; a block counts as 256, at least. None: what no honest network meets.
            timing: also cycles and energy: `result.stats.cycles`, and more in `result.stats.to_dict()`.

        Raises UsageError E720 to E722 for inputs that do not fit, MachineFault if the program does something illegal.
        """
        return self.default_session.once(
            inputs, engine=engine, checked=checked, work=limit, timing=timing
        )


def compile(
    model: str | Path | ModelProto | Module | ExportedProgram,
    example_or_target: Example | str | Path | None = None,
    precision: str = "fp16",
    pipeline: str | None = None,
    shapes: Mapping[str, Sequence[int] | int] | None = None,
    consts: Mapping[str, Any] | None = None,
    *,
    target: str | Path | None = None,
    example_inputs: Example | None = None,
    quantize: str | None = None,
    calibration: Source | Calibration | Ranges | None = None,
    state: Mapping[str, str] | None = None,
) -> Image:
    """Compile an ONNX, PyTorch or TFLite model for a target.

    compile("model.onnx", "sma3")              compile("model.pt2", "sma3")
    compile(module, (x,), target="sma3")       compile(exported_program, "sma3")

    Args:
        model: the path of an .onnx or .tflite file, or of a .pt2 file of `torch.export.save`; a loaded ModelProto; a `torch.nn.Module`, which
            is exported in eval mode, or a `torch.export.ExportedProgram`.
        example_or_target: the second thing to say of a model: example inputs of a module, else the target.
        target: the name of a built-in target, or the path of a .toml file. Default: volta-8tc.
        example_inputs: a module's: a tensor, a tuple of them, or a dict by argument. Their sizes are what is compiled for.
        precision: how float32 tensors are stored: fp16, bf16 or fp32. Inputs and outputs keep the model's types.
        pipeline: passes as text, in place of the preset of `precision`.
        shapes: input name → shape, for symbolic dimensions, and in place of fixed ones (another batch size); or the name of a
            symbolic dimension → its size.
        consts: input name → value, for inputs that decide shapes.
        quantize: "i8", or more as `--quantize` takes it: formats of weights and activations, options of the pass `quantize`.
        calibration: what the network shall be observed on, for the ranges of activations: an object with `get_next()`, as
            onnxruntime's calibrators read, an iterable of dicts, a dict of arrays, a file, a folder; a `Calibration`, which says more;
            or ranges that are known. Alone it means quantize="i8".
        state: input name → output name of the same type: the output is the input's next value, which a session keeps on the device
            from run to run, stored as `precision` says. A scatter into it (a KV cache) writes in place.

    Raises KnapperError with everything that is wrong, one line each.
    """
    from knapper.compiler import driver
    from knapper.isa.machine import Machine

    from .batches import Importer
    from .doors import opened

    extensions.installed()
    if isinstance(example_or_target, str | Path):
        if target is not None:
            raise UsageError("E704", f"two targets: {example_or_target} and {target}")
        target = example_or_target
    elif example_or_target is not None:
        if example_inputs is not None:
            raise UsageError("E704", "example inputs are given twice")
        example_inputs = example_or_target
    machine = Machine.load(str(target or "volta-8tc"))
    read_as = opened(model, example_inputs)
    bound = {n: (s,) if isinstance(s, int) else s for n, s in (shapes or {}).items()}
    read = Importer(read_as, bound, consts or {}, replace_fixed=True)
    options = driver.Options(
        pipeline,
        precision,
        meta=origin(model if isinstance(model, str | Path) else read_as),
        machine=machine,
        state=state or {},
    )
    if quantize or calibration is not None:
        options = _quantizing(options, read, quantize, calibration)
    return Image(driver.finish(driver.optimize(read(), options), machine, options))


def _quantizing(
    options: Options,
    read: Importer,
    quantize: str | None,
    calibration: Source | Calibration | Ranges | None,
) -> Options:
    """With the pass, and the ranges that it asks for."""
    from knapper.compiler.quantization.ranges import Ranges

    from .calibrate import Calibration
    from .doors import source
    from .quantizing import USUAL, Request, passes

    usual = USUAL if calibration is not None and options.pipeline is None else None
    text = passes(options.precision, options.pipeline, quantize or usual)
    options = replace(options, pipeline=text)
    if isinstance(calibration, Ranges):
        return Request(ranges=calibration).options(options, read)
    if calibration is not None and not isinstance(calibration, Calibration):
        calibration = Calibration(calibration)
    return Request(calibration).options(options, read, source(read.model))


def load(path: str | Path) -> Image:
    """Read a compiled image; IsaError names what is wrong with a damaged one, UsageError E704 for a model."""
    extensions.installed()
    if Path(path).suffix in (".onnx", ".pt2", ".tflite"):
        hint = f"compile it first: knapper compile {path} -o {Path(path).with_suffix('.elf')}"
        raise UsageError("E704", "is a model, not an image", where=str(path), hint=hint)
    return Image(elf.read(files.mapped(path), str(path)))
