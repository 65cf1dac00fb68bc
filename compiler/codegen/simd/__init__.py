"""SIMD kernels: every operator that is not a matrix product, written by TVM and translated to our ISA.

    group ─► tvm/ (worker, cache) ─► TIR as lists ─ parse ─► expressions ─ evaluate, memory, translate ─► KernelBuilder ─► kernel

`expr.py` has the algebra of indices, `values.py` typed emission, `intrinsics.py` the functions, `translate.py` statements and
control flow, `generator.py` what the plan talks to.
"""

from . import generator as _generator  # noqa: F401  importing registers it
