"""Options that several commands have, declared once. Nothing is imported here that takes time: `--help` needs no more."""

from __future__ import annotations

import argparse
import os
from typing import Any

from .tables import FORMATS


def compiling(p: Any) -> None:
    """The options of every command that compiles."""
    p.add_argument(
        "-t",
        "--target",
        metavar="NAME|FILE.toml",
        help="machine (default: volta-8tc, or what a plan was made for)",
    )
    p.add_argument(
        "--precision",
        metavar="TYPE",
        help="stored type of float32 tensors: fp16 (default), bf16, fp32",
    )
    p.add_argument(
        "--pipeline", metavar="TEXT", help="passes to run instead of the precision's preset"
    )
    importing(p)


def importing(p: Any) -> None:
    """The options of every command that reads a model."""
    p.add_argument(
        "--shape", action="append", default=[], metavar="NAME=1,3,224,224",
        help="shape of an input, or size of a symbolic dimension",
    )  # fmt: skip
    p.add_argument(
        "--const", action="append", default=[], metavar="NAME=VALUE|FILE.npy",
        help="fix an input that decides a shape or an attribute",
    )  # fmt: skip


def keeping(p: Any) -> None:
    """What a network keeps from run to run."""
    p.add_argument(
        "--state", action="append", default=[], metavar="INPUT=OUTPUT",
        help="the output is the input's next value, kept on the device from run to run",
    )  # fmt: skip


def running(p: Any) -> None:
    """The options of every command that runs."""
    p.add_argument("--engine", choices=("fast", "reference"), default="fast", help="default: fast")
    p.add_argument(
        "--checked",
        action="store_true",
        help="fast engine: find races and reads of unwritten memory too",
    )
    p.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="default: all cores"
    )
    p.add_argument(
        "--limit",
        type=int,
        metavar="N",
        help="warp instructions a run may execute; a block counts as 256, at least "
        "(default: 2^36, and 2^32 in one warp; reference: 2^30)",
    )


def as_json(p: Any) -> None:
    """Whether a command prints JSON."""
    p.add_argument("--json", action="store_true", help="print JSON")


class _Format(argparse.Action):
    """--format json is --json."""

    def __call__(self, parser: Any, namespace: Any, value: Any, *_: Any) -> None:
        namespace.format, namespace.json = value, value == "json"


def as_table(p: Any) -> None:
    """How a command prints its tables: `tables.show` does."""
    one = p.add_mutually_exclusive_group()
    one.add_argument(
        "--format", action=_Format, choices=FORMATS, default="table", metavar="FORMAT",
        help=f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}",
    )  # fmt: skip
    as_json(one)


def jump(p: Any) -> None:
    """How steady loops are timed."""
    p.add_argument(
        "--no-jump", action="store_true", help="time steady loops cycle by cycle, to the same end"
    )


def samples(p: Any) -> None:
    """What becomes of the values of files of samples."""
    p.add_argument("--mean", default="0", metavar="X[,Y,Z]", help="(scale · pixel − mean) / std: 0")
    p.add_argument("--std", default="1", metavar="X[,Y,Z]", help="1")
    p.add_argument("--scale", metavar="X", help="1/255 for 8-bit pixels, 1 for all else")
    p.add_argument("--bgr", action="store_true", help="swap the colours")
    p.add_argument(
        "--resize", type=int, metavar="N",
        help="shorter side of a picture before its middle is cut out: 8/7 of the network's; 0: no cutting",
    )  # fmt: skip


def images(p: Any, split: str) -> None:
    """Which array of an .npz file is meant."""
    p.add_argument(
        "--images",
        metavar="NAME",
        help=f"the samples, where names do not tell; {split} comes first",
    )


def quantizing(p: Any) -> None:
    """The options of every command that can quantize: what the pass is asked for, and what is observed for it."""
    p.add_argument(
        "--quantize", metavar="TEXT",
        help="i8, or WEIGHTS[,ACTIVATIONS][,OPTION=…] of the pass `quantize` (u8); `knapper passes quantize`",
    )  # fmt: skip
    p.add_argument(
        "--calib", metavar="FILE.npz|DIR", help="samples that ranges of activations come from"
    )
    p.add_argument("--ranges", metavar="FILE.json", help="what `knapper calibrate` wrote, instead")
    observing(p, "--calib-")


def observing(p: Any, prefix: str) -> None:
    """How samples become ranges."""
    p.add_argument(
        f"{prefix}method", dest="calib_method", metavar="M",
        help="minmax, moving, percentile, entropy, mse or gauss (default: mse, or what --ranges says)",
    )  # fmt: skip
    p.add_argument(
        f"{prefix}engine", dest="calib_engine", choices=("emulator", "onnxruntime"), default="emulator",
        help="what computes them in fp32 (emulator)",
    )  # fmt: skip
    p.add_argument(
        f"{prefix}limit", dest="calib_limit", type=int, default=256, metavar="N", help="samples, spread over all (256)"
    )  # fmt: skip


def workers(p: Any) -> None:
    """How many threads."""
    p.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, metavar="N", help="default: all cores"
    )
