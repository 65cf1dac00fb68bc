"""Launches that a host core computes, on machines whose arrays can do nothing but matrix products."""

from . import generator

__all__ = ["generator"]
