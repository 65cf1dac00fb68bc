"""knapper: compile a network to a modeled accelerator, run it instruction by instruction, look inside."""
