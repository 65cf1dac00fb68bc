"""Sparse weights: which elements a network can do without, and where its zeros are."""
