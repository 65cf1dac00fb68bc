"""The base extension, one module a family. Field slots are shared so that words read alike in a hex dump:

127     104 103    98 97       64 63   58 57    50 49   42 41   34 33   26 25         14 13  10 9      0
+----------+---------+-----------+-------+--------+-------+-------+-------+-------------+------+--------+
|  offset, |  more   |  b (Src)  | base  | b, pix |   c   |   a   |   d   |  modifiers  | guard| opcode |
|  target  |         | imm: 95:64| (UR)  | (Reg)  | store |       |       |             |      |        |
+----------+---------+-----------+-------+--------+-------+-------+-------+-------------+------+--------+
"""
