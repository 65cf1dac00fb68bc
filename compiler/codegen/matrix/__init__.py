"""Kernels for convolutions and matrix products, one generator an engine of the machine."""

from . import direct, ffma, hmma

__all__ = ["direct", "ffma", "hmma"]
