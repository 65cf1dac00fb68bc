"""Prune a network until a quarter of its weights is left, and keep its accuracy: `python -m examples.prune` (docs/prune.md).

Fashion-MNIST ─► dense ─┬─ EW ──► mask 50 % ─ train ─► mask 75 % ─ train ─► … ─► masked ONNX ─► emulator
                        ├─ VW         (each stage ranks anew: magnitudes, or Taylor scores of the stage before)
                        ├─ …
                        └─ TVW
"""
