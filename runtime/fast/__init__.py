"""The fast engine: instruction semantics compiled to vector code with LLVM, run by a compiled interpreter loop."""
