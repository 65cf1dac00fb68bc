"""Pruned weights tile by tile: the tables beside A, a block that follows them, what it costs, and the generator for vector memory."""
