"""From a group of nodes to kernels: one generator an engine, all on one KernelBuilder."""
