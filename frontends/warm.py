"""Machine code that is compiled on first use: people are told, it is no part of a run, and it can be made ahead.

The timing core, one for all machines, takes numba many seconds; the emulator core's parts, which instructions ask for, LLVM some.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from knapper.isa.program import Kernel, Launch, Program

if TYPE_CHECKING:
    from .api import Image

log = logging.getLogger("knapper")
Tell = Callable[[float, int, str], None]
DEMO = Path(__file__).parent / "demo" / "fashion.onnx"
PRECISIONS = ("fp16", "fp32")


def timing_core() -> None:
    """See that the timing core is there. It is kept, so that this does nothing the next time."""
    from knapper.runtime.session import Session
    from knapper.runtime.timing import jit

    if jit.present():
        return
    log.info("compiling the timing core (first use; kept for next time) …")
    session = Session(_nothing())
    session.run({}, timing=True)
    session.close()


@dataclass
class Warming:
    """The timing core, and of the emulator core what the demo's network takes on targets, and what images take.

    Kernels of the demo's network are kept on the way, so TVM has been started once, too.
    """

    targets: Sequence[str]
    images: Sequence[str]
    parts: int = 0
    """Parts of the emulator core that were compiled."""

    def run(self, tell: Tell) -> None:
        """Compile what is missing; `tell` hears of each step."""
        steps = [*self._steps()]
        for i, (name, step) in enumerate(steps):
            tell(i, len(steps), name)
            step()

    def _steps(self) -> Iterator[tuple[str, Callable[[], None]]]:
        from . import api

        yield "the timing core", timing_core
        for target in self.targets:
            for precision in PRECISIONS:
                make = partial(api.compile, DEMO, target, precision)
                yield f"{target}, {precision}", partial(self._link, make)
        for path in self.images:
            yield path, partial(self._link, partial(api.load, path))

    def _link(self, image: Callable[[], Image]) -> None:
        """Compile what the engine calls for an image's instructions; nothing is run."""
        from knapper.runtime.budget import LIMIT

        with image().session() as session:
            session.engine("fast", False, 1, LIMIT, self._count)

    def _count(self, parts: int) -> None:
        self.parts += parts


def _nothing() -> Program:
    """The shortest program: whoever times it has the core compiled."""
    from knapper.isa.base.control import EXIT
    from knapper.isa.machine import Machine

    kernel = Kernel("nothing", Kernel.encode([EXIT()]), (0,), (32, 1, 1), registers=0)
    target = Machine.load("volta-8tc").to_dict()
    return Program(target, {kernel.name: kernel}, (Launch(kernel.name, (1, 1, 1), (), ()),), (), ())
