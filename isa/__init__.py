"""The contract between compiler and runtime: what the machine is, what its instructions mean, what a program is.

core ── modifiers ── lanes ── functions        how an instruction is declared, and what `execute` is written in
  └── base/ · tensor · conv ── instructions    the instructions: bits, text, operands, meaning, in one body each
machine ── description (targets/, energy/)     a modeled machine and where its numbers are from
program ── verify                              kernels, launches, data; what they must satisfy
  ├── image (elf)                              … as a file
  └── asm (lines, listing, asm.lark)           … as text
manual → MANUAL.md, ENCODINGS.txt              generated from the declarations
generate                                       random instructions and programs, for tests
"""

if __name__ != "knapper.isa":  # the checkout root is on sys.path: refuse the short name
    raise ImportError("import knapper.isa, not isa")
