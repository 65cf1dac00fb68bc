"""Tell of matrix units that no generator has a kernel for: a network would run on the lanes, correct, slow, and without a word.

Whether there is one is asked of a product that all of them take, and so does not depend on the network, or on what its caller forces.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from knapper.isa.machine import Machine

from .codegen.generator import Group, generators
from .codegen.matrix.engine import Engine
from .ir import Node, Type

UNITS = {"tensor": "Tensor Cores", "systolic": "systolic array"}
"""What an extension of a machine multiplies matrices with."""


def idle_units(machine: Machine) -> Iterator[str]:
    """A line for each kind of matrix unit that would stand idle, with every engine's reason, and what sizes it takes."""
    for extension, units in UNITS.items():
        if extension not in machine.extensions:
            continue
        engines = [
            g for g in generators().values() if isinstance(g, Engine) and extension in g.extensions
        ]
        reasons = {e.kind: e.serves(_product(), machine) for e in engines}
        if None not in reasons.values():
            shown = "; ".join(f"{kind}: {why}" for kind, why in reasons.items())
            yield f"no kernel uses the {units} of {machine.name}, products run on its lanes ({shown})"


def _product() -> Group:
    """x · w of 256×256 in f16, with constant w."""
    t = Type("f16", (256, 256))
    node = Node("MatMul", ("x", "w"), ("y",), (t,), {}, "probe")
    return Group("probe", (node,), {"x": t, "w": t}, {"y": t}, {"w": np.zeros(t.shape, np.float16)})
