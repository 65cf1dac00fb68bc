"""Does the emulator compute what onnxruntime computes, and if not, where does it start: level, pass, node, instruction.

model ─ import ─► graph ─ pass ─► graph ─ … ─► graph ─ schedule ─► plan ─ generate ─► program ─► emulator
         │                 │                             │             │                 │
    node by node      the graph before             op's reference   launch by launch   the other engine,
    against           against that                 against the      against the plan   instruction by
    onnxruntime       behind each pass             tiling           (what it reads     instruction
                                                                    is what was there)
subject.py            what is checked, and how it is compiled
nodes.py              the import
passes.py             the passes
launches.py           the plan, its memory, the program
instructions.py       one launch: who wrote the first wrong element, and do the engines agree
search.py             all of that in order: the first Finding
reproducer.py         the smallest graph that still shows it
"""
