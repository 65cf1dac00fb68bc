"""The timing core is machine code that numba compiles on first use, which takes many seconds: they are told, and are no part of a run."""

from __future__ import annotations

import logging

from knapper.isa.program import Kernel, Launch, Program

log = logging.getLogger("knapper")


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


def _nothing() -> Program:
    """The shortest program: whoever times it has the core compiled."""
    from knapper.isa.base.control import EXIT
    from knapper.isa.machine import Machine

    kernel = Kernel("nothing", Kernel.encode([EXIT()]), (0,), (32, 1, 1), registers=0)
    target = Machine.load("volta-8tc").to_dict()
    return Program(target, {kernel.name: kernel}, (Launch(kernel.name, (1, 1, 1), (), ()),), (), ())
