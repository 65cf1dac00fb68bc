"""What there is to type: every command with its options, and the function in `commands/` that does its work.

Only words are declared here; the function is imported when it is called, so that `knapper --help` takes the time of Python itself. That,
and a syntax that no release moves, is why this is argparse: Typer's help took twice as long here, and its 0.29 no longer has the click
inside on which shared options would have stood.
"""

from __future__ import annotations

import argparse
from typing import Any

from .arguments import (
    as_json,
    as_table,
    compiling,
    images,
    importing,
    jump,
    keeping,
    observing,
    quantizing,
    running,
    samples,
    workers,
)
from .words import Parser

DESCRIPTION = (
    "Compile neural networks to modeled accelerators and run them, instruction by instruction."
)
START = """start here:
  knapper demo                                  a trained network, compiled and run
  knapper compile model.onnx -o model.elf       then: knapper run model.elf --input random:0
  knapper explain E204                          what an error code means
"""
MODEL = "an .onnx file, a .pt2 file of PyTorch, or a .tflite file"


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = Parser("knapper", description=DESCRIPTION, epilog=START)
    root.add_argument("--version", action=_Version, nargs=0, help="show versions and exit")
    commands = root.add_subparsers(metavar="COMMAND", required=True, title="commands")
    for declare in (
        _demo, _compile, _run, _time, _check, _calibrate, _eval, _conformance, _dis, _asm, _inspect, _prune,
        _ops, _passes, _targets, _isa, _explain, _reproduce, _cache,
    ):  # fmt: skip
        declare(commands)
    return root


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from .commands.tables import versions

        print("\n".join(f"{name} {number}" for name, number in versions().items()))
        parser.exit()


def _command(commands: Any, name: str, action: str, help: str, epilog: str = "") -> Any:
    p = commands.add_parser(name, help=help, description=help, epilog=epilog)
    p.set_defaults(action=action)
    shared = p.add_argument_group("on every command")
    shared.add_argument("-v", "--verbose", action="count", default=0, help="say more")
    shared.add_argument("-q", "--quiet", action="count", default=0, help="say errors only")
    shared.add_argument(
        "--traceback", action="store_true", help="show where in knapper an error arose"
    )
    shared.add_argument(
        "--plugin", action="append", default=[], metavar="FILE.py", help="load a plugin first"
    )
    return p


def _demo(commands: Any) -> None:
    p = _command(
        commands, "demo", "demo:demo", "compile and run a small trained network beside onnxruntime"
    )
    p.add_argument(
        "--dir", default="knapper-demo", metavar="DIR", help="where the files go (knapper-demo)"
    )
    p.add_argument(
        "--images", type=int, default=100, metavar="N", help="how many of the 100 images"
    )
    p.add_argument("-t", "--target", default="volta-8tc", metavar="NAME|FILE.toml", help="machine")
    p.add_argument("--precision", metavar="TYPE", help="fp16 (default), bf16 or fp32")
    running(p)


def _compile(commands: Any) -> None:
    p = _command(
        commands, "compile", "commands.build:compile_model", "compile an ONNX or PyTorch model to an ELF image",
        "A level that --dump-dir or --emit wrote can be edited and fed back:\n"
        "  knapper compile --emit plan model.onnx -o m.plan;  knapper compile --from m.plan -o m.elf",
    )  # fmt: skip
    p.add_argument("model", nargs="?", metavar="MODEL", help=MODEL)
    compiling(p)
    keeping(p)
    q = p.add_argument_group("quantization")
    quantizing(q)
    images(q, "train")
    samples(q)
    workers(q)
    p.add_argument(
        "--emit",
        choices=("onnx", "graph", "plan", "asm", "image"),
        default="image",
        help="level to write (image); onnx: the model itself, quantized",
    )
    p.add_argument(
        "--from",
        dest="source",
        metavar="FILE",
        help="start from an .ir, .plan or .s file instead of MODEL",
    )
    p.add_argument("--dump-dir", metavar="DIR", help="write every level there")
    p.add_argument("-o", "--output", metavar="FILE", help="default: MODEL with the level's ending")
    as_json(p)


def _run(commands: Any) -> None:
    p = _command(commands, "run", "commands.execute:run_image", "run an image on the emulator")
    p.add_argument("image", metavar="IMAGE", help="what `knapper compile` wrote")
    p.add_argument(
        "--input", action="append", default=[], metavar="SPEC",
        help="NAME=FILE.npy, FILE.npz or random:SEED; may be repeated",
    )  # fmt: skip
    p.add_argument("-o", "--output", metavar="OUT.npz", help="write the outputs, by name")
    p.add_argument(
        "--stats",
        metavar="FILE",
        help="write every counter: .json; a row a launch: .csv, .md, .tex",
    )
    p.add_argument("--record", metavar="FILE.npz", help="write what `knapper time` needs")
    p.add_argument("--no-timing", action="store_true", help="values and counters only")
    jump(p)
    running(p)
    as_table(p)


def _time(commands: Any) -> None:
    p = _command(
        commands, "time", "commands.timing:time_file", "what a run takes on other machines, without running it again",
        "  knapper run model.elf --input random:0 --record run.npz\n"
        "  knapper time run.npz -t v100-pcie -t ./mine.toml\n\n"
        "cycles    of all launches, one after the other: what launching itself costs, and what computing takes\n"
        "mJ        static is what the chip and its SMs take while time passes, dynamic what instructions and bytes cost\n"
        "busiest   the unit, cache or memory that is busy in most of the cycles of the launches that take most of\n"
        "          the time, and those launches' share of all cycles",
    )  # fmt: skip
    p.add_argument("file", metavar="IMAGE|RECORD", help="an image is run first")
    p.add_argument(
        "-t", "--target", action="append", default=[], metavar="NAME|FILE.toml",
        help="machine to time the same program on, tiles and all, without compiling for it; may be repeated (default: the one it is compiled for)",
    )  # fmt: skip
    p.add_argument(
        "--input", action="append", default=[], metavar="SPEC", help="of an image, as for `run` (random:0)"
    )  # fmt: skip
    jump(p)
    as_table(p)


def _check(commands: Any) -> None:
    p = _command(
        commands, "check", "commands.check:check_model", "compile, run, and compare with onnxruntime",
        "If they differ, the levels are compared one by one: the import with onnxruntime, each pass with the graph before it, each launch\n"
        "with the plan's reference, one engine with the other. The first pass, node and instruction are named at which values go wrong.",
    )  # fmt: skip
    p.add_argument(
        "model", metavar="MODEL", help=f"{MODEL}; an .ir file: against its own reference"
    )  # fmt: skip
    p.add_argument(
        "--input", action="append", default=[], metavar="SPEC", help="as for `run` (random:0)"
    )
    p.add_argument(
        "--tolerance",
        type=float,
        metavar="X",
        help="of max |y-r| / max |r|; default: 1e-4 for fp32, else cosine 0.9995",
    )
    p.add_argument("--nodes", action="store_true", help="show every node, too")
    p.add_argument(
        "--levels",
        action="store_true",
        help="compare all levels, also if the outputs are near enough",
    )
    p.add_argument(
        "--reproducer", metavar="FILE.ir", help="write the smallest graph that shows what is wrong"
    )
    compiling(p)
    keeping(p)
    running(p)
    as_table(p)


def _eval(commands: Any) -> None:
    p = _command(
        commands, "eval", "commands.evaluate:evaluate_file", "how often a network is right about labelled data",
        "  knapper eval model.elf --data test.npz --mean .485,.456,.406 --std .229,.224,.225\n"
        "  knapper eval model.onnx --data imagenet/val --precision fp32 --reference onnxruntime\n\n"
        "A model is compiled first, for as many images at once as keep launches busy. Intervals are of 95 %.",
    )  # fmt: skip
    p.add_argument("file", metavar="IMAGE|MODEL", help="what `compile` wrote, or a model")
    p.add_argument(
        "--data", required=True, metavar="FILE.npz|DIR", help="samples; in a folder, pictures"
    )
    images(p, "test")
    p.add_argument(
        "--labels", metavar="NAME|FILE", help="the array of labels, or a file of lines [NAME] CLASS"
    )
    p.add_argument("--limit", type=int, metavar="N", help="samples, spread over all (default: all)")
    samples(p)
    p.add_argument(
        "--classes", metavar="FILE", help="folders' names in the order of the network's classes"
    )
    p.add_argument("--offset", type=int, default=0, metavar="N", help="to add to labels: 0")
    p.add_argument(
        "--metric", action="append", default=[], choices=("top1", "top5", "agreement", "sqnr"),
        help="may be repeated (default: all that can be told)",
    )  # fmt: skip
    p.add_argument("--scores", metavar="NAME", help="the output that has them (the first)")
    p.add_argument(
        "--reference", metavar="FILE|onnxruntime",
        help="also compare with an image, with a model in onnxruntime, or with MODEL in it",
    )  # fmt: skip
    p.add_argument("--batch", type=int, metavar="N", help="compile MODEL for N samples at once")
    compiling(p)
    quantizing(p)
    p.add_argument("--engine", choices=("fast", "reference"), default="fast", help="default: fast")
    workers(p)
    as_table(p)


def _calibrate(commands: Any) -> None:
    p = _command(
        commands, "calibrate", "commands.calibrate:calibrate_model", "ranges of a network's values over samples",
        "  knapper calibrate model.onnx --data train.npz --mean .485,.456,.406 --std .229,.224,.225 -o ranges.json\n"
        "  knapper compile model.onnx --quantize i8 --ranges ranges.json",
    )  # fmt: skip
    p.add_argument("model", metavar="MODEL", help=MODEL)
    p.add_argument(
        "--data", dest="calib", required=True, metavar="FILE.npz|DIR", help="samples; in a folder, pictures"
    )  # fmt: skip
    images(p, "train")
    samples(p)
    observing(p, "--")
    p.add_argument("-o", "--output", metavar="FILE.json", help="default: MODEL with .ranges.json")
    importing(p)
    workers(p)
    as_table(p)


def _dis(commands: Any) -> None:
    p = _command(commands, "dis", "commands.build:disassemble", "disassemble an image")
    p.add_argument("image", metavar="IMAGE")
    p.add_argument(
        "-o", "--output", metavar="PROG.s", help="also writes the data beside it (default: print)"
    )


def _asm(commands: Any) -> None:
    p = _command(commands, "asm", "commands.build:assemble", "assemble what `dis` wrote")
    p.add_argument("source", metavar="PROG.s")
    p.add_argument("-o", "--output", required=True, metavar="IMAGE")


def _inspect(commands: Any) -> None:
    p = _command(
        commands,
        "inspect",
        "commands.look:inspect",
        "what an image holds: kernels, launches, memory",
    )
    p.add_argument("image", metavar="IMAGE")
    as_table(p)


def _prune(commands: Any) -> None:
    p = _command(
        commands, "prune", "commands.prune:prune", "make the weights of a model zero that matter least",
        "All weights of convolutions and matrix products are ranked together. Compiling finds the zeros; `knapper passes prune` has more options.",
    )  # fmt: skip
    p.add_argument("model", metavar="MODEL", help=MODEL)
    p.add_argument(
        "--pattern", metavar="P", help="ew, vw, nm, bw, tw, tw1, tew or tvw (default: tw)"
    )
    p.add_argument(
        "--sparsity", type=float, metavar="S", help="the share that goes (default: 0.75)"
    )
    p.add_argument(
        "-g", "--granularity", type=int, metavar="G", help="columns of a tile (default: 128)"
    )
    p.add_argument(
        "--mode",
        metavar="M",
        help="exact, or repo: as the authors of tile-wise sparsity rank (default: exact)",
    )
    p.add_argument(
        "--delta", type=float, metavar="D", help="tew: the share that comes back (default: 0.05)"
    )
    p.add_argument(
        "--layers",
        metavar="NAMES",
        help="weights or nodes, patterns with *, between |; ! leaves out (default: *)",
    )
    p.add_argument(
        "--scores", metavar="FILE.npz", help="what counts instead of magnitudes: an array a weight"
    )
    p.add_argument(
        "--apply", dest="masks", metavar="FILE.json", help="ready-made masks instead of ranking"
    )
    p.add_argument(
        "--masks", dest="masks_out", metavar="FILE.json", help="write the masks, for training code"
    )
    p.add_argument("-o", "--output", metavar="FILE.onnx", help="write the pruned model")
    importing(p)
    as_table(p)


def _conformance(commands: Any) -> None:
    p = _command(
        commands, "conformance", "commands.conformance:conformance", "ONNX's own suite, compiled, run and compared",
        "The exit code is 1 if a value is wrong. All 1,900 cases take some minutes.",
    )  # fmt: skip
    p.add_argument(
        "--select",
        action="append",
        default=[],
        metavar="PATTERN",
        help="cases by name or operator, with *; core: the list of docs/conformance.md",
    )
    p.add_argument("-t", "--target", metavar="NAME|FILE.toml", help="machine (volta-8tc)")
    p.add_argument(
        "--pipeline", metavar="TEXT", help="passes; fp16,place{kind=systolic} to choose (fp32)"
    )
    p.add_argument("--markdown", metavar="FILE", help="write the page of the documentation, too")
    as_table(p)


def _ops(commands: Any) -> None:
    p = _command(
        commands, "ops", "commands.ops:ops", "the operators, with types and limits",
        "Types and limits come of the declarations, cases of ONNX's own suite (`knapper conformance`).",
    )  # fmt: skip
    p.add_argument("name", nargs="?", metavar="OP", help="all about one")
    p.add_argument(
        "--onnx", action="store_true", help="ONNX's operators: opsets, how they are served, cases"
    )
    p.add_argument("--markdown", metavar="FILE", help="write the page of the documentation, too")
    as_table(p)


def _passes(commands: Any) -> None:
    p = _command(commands, "passes", "commands.tables:passes", "the passes and pipelines")
    p.add_argument("name", nargs="?", metavar="PASS", help="all about one")
    as_table(p)


def _targets(commands: Any) -> None:
    p = _command(
        commands,
        "targets",
        "commands.tables:targets",
        "the machines, and where their numbers are from",
    )
    p.add_argument("name", nargs="?", metavar="NAME|FILE.toml", help="every number of one")
    as_table(p)


def _isa(commands: Any) -> None:
    p = _command(commands, "isa", "commands.tables:isa", "the instruction set")
    p.add_argument("name", nargs="?", metavar="MNEMONIC", help="all about one")
    as_table(p)


def _explain(commands: Any) -> None:
    p = _command(commands, "explain", "commands.tables:explain", "what an error code means")
    p.add_argument("code", nargs="?", metavar="CODE", help="default: all of them")
    as_table(p)


def _reproduce(commands: Any) -> None:
    p = _command(
        commands, "reproduce", "commands.reproduce:reproduce", "numbers of papers and hardware, ours beside each",
        "The exit code is 1 if a row that counts as evidence fails. All of it takes some minutes.",
    )  # fmt: skip
    p.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="baseline, sma, im2col, tilewise, dstc, ant, squant, aquant, or a row such as S-3 (all)",
    )
    p.add_argument("--markdown", metavar="FILE", help="write the page of the documentation, too")
    p.add_argument(
        "--no-interval", action="store_true", help="leave out how assumed numbers move the rows"
    )
    as_table(p)


def _cache(commands: Any) -> None:
    p = _command(
        commands, "cache", "commands.cache:cache", "what was compiled once and is kept: info, warm, clear",
        "  knapper cache info                      where caches are, and what they hold\n"
        "  knapper cache warm                      compile the emulator and timing cores now, not in the first run\n"
        "  knapper cache warm -t all model.elf     for every target, and what an image takes\n"
        "  knapper cache clear kernels             or all caches; whoever reads meanwhile is not disturbed",
    )  # fmt: skip
    p.add_argument("what", choices=("info", "warm", "clear"), metavar="info|warm|clear")
    p.add_argument(
        "names", nargs="*", metavar="IMAGE|CACHE", help="images to warm, caches to clear"
    )
    p.add_argument(
        "-t", "--target", action="append", default=[], metavar="NAME|FILE.toml",
        help="machine to compile for, all for every built-in one; may be repeated (volta-8tc)",
    )  # fmt: skip
    as_table(p)
