"""Kernels for convolutions and matrix products, one generator an engine of the machine."""

from . import hmma

__all__ = ["hmma"]
