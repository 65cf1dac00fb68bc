"""A warp with nothing but registers, which notes what an instruction touches: the least that instructions, here `ALL`, need to run on."""

import numpy as np

from knapper.isa import instructions as I
from knapper.isa.core import TABLE
from knapper.isa.lanes import canonical
from knapper.isa.modifiers import Space, Start
from knapper.isa.operands import Guard, Src

ALL = sorted(TABLE.values(), key=lambda c: c.opcode)
LANE = np.arange(32, dtype=np.uint32)


class Bare:
    """A warp of 32 active lanes over one flat memory; `read_set` and `write_set` note registers as `accesses` spells them."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.regs = rng.integers(0, 2**32, (256, 32), np.uint32)
        self.uregs = rng.integers(0, 2**32, 64, np.uint32)
        self.preds = rng.integers(0, 2, (8, 32)).astype(bool)
        self.regs[255], self.uregs[63], self.preds[7] = 0, 0, True
        self.mask = np.ones(32, bool)
        self.memory = rng.integers(0, 256, 1 << 16).astype(np.uint8)
        self.read_set, self.write_set = set(), set()

    def note(self, to, prefix, n, words, zero):
        to |= {f"{prefix}{n + k}" for k in range(words) if n != zero}

    def value(self, words, type):
        low = words[0].astype(np.uint64)
        wide = low | words[1].astype(np.uint64) << np.uint64(32) if len(words) > 1 else low
        return (wide & np.uint64(2**type.bits - 1)).astype(f"u{type.bits // 8}").view(type.dtype)

    def read(self, reg, type):
        words = max(type.bits // 32, 1)
        self.note(self.read_set, "R", int(reg), words, 255)
        return self.value([self.regs[reg if reg == 255 else reg + k] for k in range(words)], type)

    def uniform(self, src, type):
        if isinstance(src, Src) and src.kind == Src.IMM:
            raw = (
                src.payload << 32
                if type.name == "F64"
                else src.payload - (1 << 32) * (src.payload >> 31 and type.bits == 64)
            )
            return np.full(32, raw & 2**type.bits - 1, f"u{type.bits // 8}").view(type.dtype)
        reg, words = int(src.value if isinstance(src, Src) else src), max(type.bits // 32, 1)
        self.note(self.read_set, "UR", reg, words, 63)
        return self.value(
            [np.full(32, self.uregs[reg if reg == 63 else reg + k]) for k in range(words)], type
        )

    def source(self, src, type):
        return self.read(src.value, type) if src.kind == Src.REG else self.uniform(src, type)

    def words(self, value):
        value = canonical(value)
        size = value.dtype.itemsize
        if size == 8:
            return list(np.ascontiguousarray(value).view(np.uint32).reshape(32, 2).T)
        signed = value.dtype.kind == "i"
        return [
            value.astype(np.int32).view(np.uint32)
            if signed
            else value.view(f"u{size}").astype(np.uint32)
        ]

    def write(self, reg, value):
        words = self.words(value)
        self.note(self.write_set, "R", int(reg), len(words), 255)
        for k, w in enumerate(words):
            if reg != 255:
                self.regs[reg + k] = np.where(self.mask, w, self.regs[reg + k])

    def set_uniform(self, reg, value):
        words = self.words(value)
        self.note(self.write_set, "UR", int(reg), len(words), 63)
        for k, w in enumerate(words):
            if reg != 63:
                self.uregs[reg + k] = w[0]

    def predicate(self, p):
        n, negated = (p.pred, p.negated) if isinstance(p, Guard) else (p, False)
        self.note(self.read_set, "P", int(n), 1, 7)
        return self.preds[n] ^ negated

    def set_predicate(self, p, value):
        assert value.dtype == bool
        self.note(self.write_set, "P", int(p), 1, 7)
        if p != 7:
            self.preds[p] = np.where(self.mask, value, self.preds[p])

    set_uniform_predicate = set_predicate

    def send(self, command, address=0, c=0):
        """What an LSMA will do to registers once its group is executed."""
        if isinstance(command, I.LSMA) and command.space is Space.REG:
            reads = [self.read_set] if command.start is Start.ADD else []
            steps = 16 if isinstance(command, I.ILSMA) else 8
            words = -(-command.macs(32) // (steps * 32))
            for to in [self.write_set, *reads]:
                self.note(to, "R", c, words, None if c != 255 else c)

    commit = wait = switch = describe = describe_tile = fill = push = copy = lambda self, *operand: (
        None
    )

    def load(self, space, address, type, words=1, where=None):
        lanes = self.mask if where is None else self.mask & where
        size, out = type.bits // 8, []
        for k in range(words):
            raw = np.zeros((32, size), np.uint8)
            for lane in np.flatnonzero(lanes):
                start = int(address[lane]) % (len(self.memory) - 64) + k * size
                raw[lane] = self.memory[start : start + size]
            out.append(raw.view(type.dtype)[:, 0])
        return out

    def store(self, space, address, values, where=True):
        for k, v in enumerate(values):
            size = v.dtype.itemsize
            for lane in np.flatnonzero(self.mask & where):
                start = int(address[lane]) % (len(self.memory) - 64) + k * size
                self.memory[start : start + size] = v[lane : lane + 1].view(np.uint8)

    def whole(self): ...
    def tile(self, word): ...

    def lane(self):
        return LANE.copy()

    def active(self):
        return self.mask

    def special(self, name):
        return LANE + np.uint32(100)

    def shuffle(self, value, lane):
        return value[lane]

    def ballot(self, value):
        return np.full(32, np.packbits(value & self.mask, bitorder="little").view(np.uint32)[0])

    def first(self, value):
        return np.full(32, value[np.flatnonzero(self.mask)[0]])

    def branch(self, target): ...
    def exit(self): ...
    def barrier(self, number): ...

    def push_convergence(self, barrier, target):
        self.write_set.add(f"B{barrier}")

    def converge(self, barrier):
        self.read_set.add(f"B{barrier}")
