"""Kernels of our own for what detectors do: RoiAlign and NonMaxSuppression, which TVM does not lower."""

from . import generator

__all__ = ["generator"]
