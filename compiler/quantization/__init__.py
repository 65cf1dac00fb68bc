"""Few bits instead of floats: which integers stand for weights, and which scales for activations. numpy on arrays; no graph is needed.

q = squant.quantize(w, bits=4)                   weights [O, C, …]: SQuant, data-free
q = ant.quantize(w, bits=4)                      the best of int, flint and pot, a scale a channel
r = Observer("mse"); r.add(x); r.range("u8")     activations: ranges from batches
"""
