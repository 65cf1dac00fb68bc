"""Convolutions whose image waits in shared memory, a patch of it a block. The generator, tiles, phases, and what they cost."""
