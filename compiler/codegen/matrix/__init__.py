"""Kernels for convolutions and matrix products, one generator an engine of the machine; importing this package registers them.

A new engine is a module here, or in a folder: see `engine`.
"""

import importlib
import pkgutil

for _module in pkgutil.walk_packages(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
