"""Values in memory, put under bitmaps: what the dual-side sparse Tensor Core reads where the launch before could not encode."""

from . import generator

__all__ = ["generator"]
