"""Quantization with learned borders: `quantize`, then AQuant (`quantization/aquant.py`) on samples of the network's input.

    aquant{data="samples.npz"}                                  4 bits both
    aquant{data="samples.npz",weights=i2,activations=u4}
    aquant{data="samples.npz",weights=i3,activations=u3,learn_weights=true,steps=1000}

The file has an array for each input of the network, by its name, [N, …]: as the network takes them. Ranges are observed on the same samples if
there are no others. All other options are `quantize`'s; borders are learned of activations of at most six bits that only products read, and a
network that has none is refused.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from knapper.isa.errors import PassError, reason

from ..ir import DTYPES, Array, Graph
from ..quantization.aquant import Options
from ..quantization.borders import MOST_BITS, learn_borders
from ..quantization.datafree import observe
from .quantize import Quantize

log = logging.getLogger("knapper")
Batch = Mapping[str, Array]


@dataclass(frozen=True)
class AQuant(Quantize):
    """Round to few bits, activations by learned borders."""

    name = "aquant"
    weights: str = "i4"
    activations: str = "u4"
    data: str = ""
    samples: int = 2048
    steps: int = 600
    rate: float = 1e-2
    degree: int = 2
    learn_weights: bool = False
    seed: int = 0
    batches: Sequence[Batch] | None = field(default=None, repr=False, compare=False)
    """Samples that are at hand, instead of a file."""

    def run(self, g: Graph) -> Graph:
        """Round, then learn."""
        if self.degree not in (0, 1, 2) or self.samples < 4 or self.steps < 1:
            raise PassError(
                "E306",
                f"aquant: degree={self.degree}, samples={self.samples}, steps={self.steps}",
                hint="degree 0, 1 or 2; samples from 4",
            )
        batches = read(self.data, g) if self.batches is None else list(self.batches)
        if not batches:
            hint = "as many as the network takes at once, or more"
            raise PassError("E306", "aquant: samples do not make up a batch", hint=hint)
        ranges = self.held(g) or observe(g, batches, self.wanted(g))
        rounded = Quantize.run(replace(self, observed=ranges), g)
        options = Options(
            self.steps,
            rate=self.rate,
            degree=self.degree,
            seed=self.seed,
            weights=self.learn_weights,
        )
        made, learned = learn_borders(g, rounded, batches, options, self.samples)
        if not learned:
            problem = f"aquant: only products read no activation of at most {MOST_BITS} bits"
            raise PassError("E306", problem, hint="--quantize aquant,i4,u4; to the nearest: i4")
        active = sum(found.border is not None for found in learned.values())
        log.info("aquant: %d of %d layers have a border of their own", active, len(learned))
        return made


def read(path: str, g: Graph) -> list[dict[str, Array]]:
    """Batches of the network's own size from a file; PassError E306 for what does not fit."""
    if not path:
        raise PassError(
            "E306",
            "aquant: there are no samples to learn from",
            hint='--calib DATA, or data="FILE.npz"',
        )
    try:
        with np.load(path, allow_pickle=False) as held:
            arrays = {name: held[name] for name in g.inputs}
    except (OSError, ValueError, KeyError, EOFError) as e:
        raise PassError("E306", f"aquant: no samples: {reason(e)}", where=path) from None
    sizes = {name: t.shape[0] if t.shape else 1 for name, t in g.inputs.items()}
    batches: list[dict[str, Array]] = [
        {}
        for _ in range(
            min(len(a) // sizes[n] if a.ndim and sizes[n] else 0 for n, a in arrays.items())
        )
    ]
    for name, t in g.inputs.items():
        a = arrays[name]
        if a.ndim != t.rank or a.shape[1:] != t.shape[1:] or not batches:
            want = f"{t.dtype}[{','.join(map(str, ('N', *t.shape[1:])))}]"
            raise PassError(
                "E306", f"aquant: {name} is {a.dtype}{list(a.shape)}, not {want}", where=path
            )
        for i, batch in enumerate(batches):
            batch[name] = a[i * sizes[name] : (i + 1) * sizes[name]].astype(DTYPES[t.dtype])
    return batches
