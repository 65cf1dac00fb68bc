"""The passes, one a file; importing this package registers them all in `PASSES`."""

import importlib
import pkgutil

from .base import PASSES, Pass

__all__ = ["PASSES", "Pass"]

for _module in pkgutil.iter_modules(__path__, f"{__name__}."):
    importlib.import_module(_module.name)
