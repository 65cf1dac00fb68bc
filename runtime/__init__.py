"""Runs a program and says what it did. Of the compiler it knows nothing but the binary.

session ── stats                     inputs in, launches in order, outputs and numbers out
  ├── memory · counters · faults     what both engines share: device memory, what is counted, what can go wrong
  ├── paths                          which way warps went, kept once a class of blocks: what timing needs
  ├── energy                         events × picojoules, by launch, node and part of the machine
  ├── decode                         words → records, and refusals, whole kernels at a time
  ├── reference (spaces · words)     the specification: Python over numpy arrays of 32 lanes, always checking
  └── fast/                          the default: the same semantics, traced into vector machine code
        emit ── algebra ── trace     LLVM IR with Python's operators; the lane algebra in it; `execute` traced
        moves · natives · matrix     memory and matrix instructions by hand, where the last factor of speed is
        blocks · interpreter         blocks; warps, divergence, barriers: the compiled loops; `layout`: the structs they share
        accesses                     bank conflicts, sectors, first reads, for timing
        handlers ── units            which code there is to compile; compiling it and keeping it on disk
        engine ── recording          blocks dealt to threads; the paths of classes not seen before
"""

if __name__ != "knapper.runtime":  # the checkout root is on sys.path: refuse the short name
    raise ImportError("import knapper.runtime, not runtime")
