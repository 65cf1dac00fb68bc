"""From a network to a program, in three levels, each with text, verification and evaluation.

level 1   ir ── ops/ · text (ir.lark)           a Graph: what is computed
          passes/ ── rewrite · axes             … made better, one pass a file
          pipeline                              … by passes in order, watched by hooks
          launches ── groups                    … cut into groups, one a kernel launch
level 2   schedule ── memory · work             which generator and tile serves a group; where values lie
          plan ── plan_text (plan.lark)         a Plan: what runs, in which order, at which addresses
level 3   lower ── structure · cache            kernels of the groups, made once for equal ones and kept on disk
          codegen/ ── tvm/                      … by one generator an engine, on one KernelBuilder
          assemble                              a Program: kernels, launches, data, addresses
driver    the way through all of them, with a door at each
plugins   what others add to the tables
"""

if __name__ != "knapper.compiler":  # the checkout root is on sys.path: refuse the short name
    raise ImportError("import knapper.compiler, not compiler")
