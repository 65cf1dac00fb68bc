"""Kernels for convolutions and matrix products, one generator an engine of the machine; importing this package registers them.

A new engine is a module here: see `engine`.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
