"""Mass testing of photomultipliers on an accelerator: `python -m examples.pmt` (docs/pmt.md).

tubes ── waveforms ──► accelerator: finder, histograms ──► estimate ──► table, resolution, plot
(the truth)            (compiled networks, emulated)       (fits)
"""
