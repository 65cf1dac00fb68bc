"""The only place that touches TVM: it makes scheduled SIMT code of groups of nodes, in a process of its own.

    parent: client.py ── groups (JSON lines) ──► worker.py: build.py ─► schedule.py ─► lowering ─► export.py
            ▲ cache.py, by structure   ◄── kernels as JSON (tir.py has the vocabulary) ──┘

`import tvm` takes about a second, and several with torch installed; it replaces `sys.excepthook` and ends child processes on
errors. So it happens in the worker, which is started when the first kernel is missing from the cache and not otherwise. All
knapper targets share one TVM target, so that a group's kernels compute the same bits everywhere.

Numerics: TVM is kept from everything that changes results. FastMath, ToMixedPrecision and BF16ComputeLegalize do not run;
roundings are the Graph's Cast nodes; the code generator fuses no multiply-add; TVM's simplifier sees indices and no values
(`exact.py`).
"""
