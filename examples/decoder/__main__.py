"""Generate tokens, one after the other, from a cache that stays on the accelerator.

    python -m examples.decoder [--tokens 8] [--target sma3] [--precision fp16]

The decoder is one of GPT's kind with random weights (`knapper.frontends.networks.decoder`): it shows what a step costs, and says
nothing. Each step is a run of the same session, which keeps keys and values on the device: it is given a token and a position, writes one
row of each cache, and gives back logits.
"""

from __future__ import annotations

import argparse

import numpy as np

import knapper
from knapper.frontends.networks.decoder import Decoder

PROMPT = (332, 461, 275)


def main() -> None:
    """The command."""
    p = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    p.add_argument("--tokens", type=int, default=8)
    p.add_argument("--target", default="sma3")
    p.add_argument("--precision", default="fp16")
    a = p.parse_args()

    decoder = Decoder(seed=3)
    image = knapper.compile(decoder.step(), a.target, a.precision, state=decoder.state)
    print(f"{image.program.target['name']}, {a.precision}, caches of {decoder.room} tokens")
    print("position  token  next   cycles  DRAM read  written")
    with image.session() as session:
        token = PROMPT[0]
        for at in range(len(PROMPT) + a.tokens - 1):
            feed = {"tokens": np.array([[token]]), "position": np.array([at])}
            result = session.run(feed, timing=True)
            guess = int(result.outputs["logits"].argmax())
            moved = result.stats.bytes("dram_bytes")
            print(f"{at:8}  {token:5}  {guess:4}  {result.stats.cycles:7,}  {moved['read']:9,}  {moved['write']:7,}")  # fmt: skip
            token = PROMPT[at + 1] if at + 1 < len(PROMPT) else guess
        rows = session.state["past.k0"][0, 0].any(1).sum()
    print(f"{rows} rows of each cache are full")


if __name__ == "__main__":
    main()
