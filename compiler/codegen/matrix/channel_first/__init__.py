"""Convolutions on an array that is fed from vector memory, channel first. The generator, its kernel, and what its walks cost."""
