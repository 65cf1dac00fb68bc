"""Whether a program that was recorded on one machine could have run on another, instruction by instruction.

A record holds what one program did. Another machine's numbers change how long that takes, as long as the machine can run the program at all and
every command means the same there: an LSMA multiplies by as many rows and columns as the array has. What the compiler would have
done otherwise for the other machine (another tile, say) is not asked: the program stays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from knapper.isa import verify
from knapper.isa.core import Instr
from knapper.isa.errors import UsageError
from knapper.isa.machine import Machine
from knapper.isa.parameters import HOST
from knapper.isa.program import Program
from knapper.isa.sparse import SPWMMA
from knapper.isa.systolic import LSMA, SMA_LDB, Array, Transfer

from ..decode import Decoded


def misfits(program: Program, decoded: Decoded, machine: Machine) -> Iterator[UsageError]:
    """Everything that a machine lacks to run a program as it was recorded, E726 each."""
    for text in _lacks(program, machine):
        yield UsageError("E726", f"{machine.name} {text}")
        return  # what else differs only follows from that
    instrs = [v.instr for v in decoded.variants]
    texts = [
        *_array(instrs, decoded.array, machine), *_banks(program, instrs, machine), *_blocks(program, machine),
    ]  # fmt: skip
    for text in dict.fromkeys(texts):
        yield UsageError(
            "E726",
            f"the recorded program does not fit {machine.name}: {text}",
            hint=f"compile the model for {machine.name}",
        )


def _lacks(program: Program, machine: Machine) -> Iterator[str]:
    """Parts of the machine it was compiled for."""
    if missing := {*program.target["extensions"]} - {*machine.extensions} - {"custom"}:
        yield f"lacks {' and '.join(sorted(missing))}, which the recorded program is compiled for"
    if machine.nonmatrix != HOST and any(x.host for x in program.launches):
        yield "has no host, which computes recorded launches"


def _array(instrs: list[Instr], own: Array, machine: Machine) -> Iterator[str]:
    """Systolic units: commands mean the same on units of one shape only, and need as many as they name."""
    theirs = Array.of(machine.to_dict())
    commands = [i for i in instrs if isinstance(i, (LSMA, SMA_LDB, Transfer))]
    if not commands:
        return
    if (own.rows, own.columns) != (theirs.rows, theirs.columns):
        yield f"its commands are for units of {own.rows} × {own.columns}, the machine's have {theirs.rows} × {theirs.columns}"
    yield from filter(None, map(theirs.refusal, commands))
    if theirs.accumulators < own.accumulators and any(
        not isinstance(i, Transfer) for i in commands
    ):
        yield f"it has {own.accumulators} words of accumulators to use, the machine has {theirs.accumulators}"


def _banks(program: Program, instrs: list[Instr], machine: Machine) -> Iterator[str]:
    """The cycles that SPWMMAs' sums take in the accumulation buffer are recorded as they were, for one window of its collector."""
    if not any(isinstance(i, SPWMMA) for i in instrs):
        return
    own = int(program.target["collector_window"]["value"])
    if machine.collector_window != own:
        yield f"bank cycles were recorded with a collector_window of {own}, the machine's is {machine.collector_window}"


def _blocks(program: Program, machine: Machine) -> Iterator[str]:
    """What an SM must hold: what an image for this machine must satisfy, and a whole block of every kernel."""
    there = replace(program, target=machine.to_dict())
    yield from (problem.message for problem in verify.problems(there))
    for name, k in program.kernels.items():
        for what, needs, has in (
            ("warps", k.warps, machine.warps_per_sm),
            ("bytes of shared memory", k.shared_bytes, machine.shared_bytes_per_sm),
        ):
            if needs > has:
                yield f"kernel {name}: a block has {needs} {what}, an SM {has}"
