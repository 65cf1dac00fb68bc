"""Cycles: what execution recorded, replayed on a machine's numbers. Imported when a run is to be timed; needs numba."""
