"""Sparse products: SPWMMA on activations under bitmaps and encoded weights. The generator, its kernel, and what it is predicted to take."""
