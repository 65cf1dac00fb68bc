"""Few bits instead of floats: which integers stand for weights, and which scales for activations. numpy on arrays; most needs no graph.

    q = squant.quantize(w, bits=4)                           weights [O, C, …]: SQuant, data-free
    q = ant.quantize(w, bits=4)                              the best of int, flint and pot, a scale a channel
    r = Ranges.observe(batches); r.save("ranges.json")       activations: statistics, of which `choose` makes ranges
    found = aquant.learn([task], grid, Options())            borders between rounding down and up

The passes `quantize`, `squant` and `aquant` do this to networks.
"""
