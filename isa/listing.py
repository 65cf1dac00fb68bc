"""A program → text and bulk data: the printing half of asm.py, whose docstring shows the format."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache

from .core import Instr
from .errors import IsaError
from .operands import Label
from .program import BASE, Kernel, Launch, Program

DIGEST = ".digest"
"""The directive that has the hash of the text as it was printed."""
VERSION = (1, 2)
"""Major and minor of the text format. 1.2: states."""
COMMENT = re.compile(r'("(?:\\.|[^"\\])*")|//.*')
"""A quoted name, which is kept, or a comment."""
BARE = re.compile(r"/?[A-Za-z_][A-Za-z0-9_.-]*(/[A-Za-z0-9_.-]+)*")
"""A name that needs no quotes."""


def sha256(data: bytes | memoryview) -> str:
    """The name of a blob."""
    return hashlib.sha256(data).hexdigest()


def disassemble(program: Program) -> tuple[str, dict[str, bytes]]:
    """The text of a program, and its bulk data by hash. IsaError if a kernel has a word that is no instruction."""
    blobs: dict[str, bytes] = {}

    def blob(data: bytes | memoryview) -> str:
        blobs[name := sha256(data)] = bytes(data)
        return f"#{name}"

    head = list(_head(program, blob))
    kernels = [
        line
        for k in program.kernels.values()
        for line in _kernel_lines(k, _nodes_of(program, k.name))
    ]
    launches = [line for launch in program.launches for line in _launch_lines(launch)]
    first = [f".version {VERSION[0]}.{VERSION[1]}"]
    if blobs:
        first.append(f".blobs #{bundle(blobs)}")
    text = "\n".join([*first, *head, *kernels, *launches]) + "\n"
    return text.replace("\n", f"\n{DIGEST} #{digest(text)}\n", 1), blobs


def digest(text: str) -> str:
    """The hash of what a text says: blanks, comments and an earlier hash do not count.

    >>> digest("EXIT  // done") == digest("    EXIT") != digest("BRA L1")
    True
    """
    said = (line for line in map(_said, text.split("\n")) if line and not line.startswith(DIGEST))
    return sha256("\n".join(said).encode())


def _said(line: str) -> str:
    return (COMMENT.sub(r"\1", line) if "//" in line else line).strip()


def bundle(blobs: Mapping[str, bytes]) -> str:
    """The name of the file that holds several blobs."""
    return sha256("".join(sorted(blobs)).encode())


def quote(name: str) -> str:
    """A name as the grammar takes it."""
    return name if BARE.fullmatch(name) else json.dumps(name, ensure_ascii=False)


def _head(p: Program, blob: Callable[[bytes | memoryview], str]) -> Iterator[str]:
    target = json.dumps(p.target, sort_keys=True, indent=1, ensure_ascii=False).encode()
    yield f".target {quote(str(p.target.get('name')))} {blob(target)}"
    for key, value in sorted(p.meta.items()):
        yield f".meta {quote(key)} {json.dumps(value, ensure_ascii=False)}"
    yield f".arena {p.arena_bytes}"
    yield f".rodata {len(p.rodata)}"
    view = memoryview(p.rodata)
    for o in p.objects:
        yield f".object {quote(o.name)} {o.address:#x} {o.bytes} {blob(view[o.address - BASE :][: o.bytes])}"
    for start, end in _gaps(p):
        if any(view[start:end]):
            yield f".data {BASE + start:#x} {end - start} {blob(view[start:end])}"
    for kind, ports in (("input", p.inputs), ("output", p.outputs)):
        yield from (
            f".{kind} {quote(x.name)} {x.dtype}{list(x.shape)} {x.address:#x}" for x in ports
        )
    yield from (f".state {quote(past)} {quote(present)}" for past, present in p.state)


def _gaps(p: Program) -> Iterator[tuple[int, int]]:
    """The ranges of rodata that no object covers."""
    at = 0
    for start, size in sorted((o.address - BASE, o.bytes) for o in p.objects):
        if start > at:
            yield at, start
        at = max(at, start + size)
    if at < len(p.rodata):
        yield at, len(p.rodata)


def _nodes_of(p: Program, kernel: str) -> tuple[str, ...]:
    """The nodes of the first launch of a kernel, for comments."""
    return next((launch.nodes for launch in p.launches if launch.kernel == kernel), ())


def _kernel_lines(k: Kernel, nodes: Sequence[str]) -> Iterator[str]:
    yield f"\n.kernel {quote(k.name)}"
    yield ".block {} {} {}".format(*k.block)
    yield f".registers {k.registers}"
    if k.shared_bytes:
        yield f".shared {k.shared_bytes}"
    if k.local_bytes:
        yield f".local {k.local_bytes}"
    if k.accumulators:
        yield f".accumulators {k.accumulators}"
    if (k.mode_entry, k.mode_exit) != ("simd", "simd"):
        yield f".modes {k.mode_entry} {k.mode_exit}"
    if k.matrix:
        yield ".matrix"
    yield from _code_lines(k, nodes)


def _code_lines(k: Kernel, nodes: Sequence[str]) -> Iterator[str]:
    labels = {int(getattr(i, name)) for i in k.code for name in label_fields(type(i))}
    if beyond := [x for x in labels if x >= len(k.code)]:
        raise IsaError(
            "E522", f"kernel {k.name}: a jump to instruction {beyond[0]} of {len(k.code)}"
        )
    before = None
    for n, (instr, role) in enumerate(zip(k.code, k.roles, strict=True)):
        if role != before:
            node = f"  // {_printable(nodes[role])}" if role < len(nodes) else ""
            yield f".role {role}{node}"
            before = role
        if n in labels:
            yield f"L{n}:"
        yield f"    {_spell(instr)}"


_spell = lru_cache(1 << 16)(str)


def label_fields(cls: type[Instr]) -> tuple[str, ...]:
    """The fields of a class that name an instruction."""
    return tuple(name for name, (kind, _) in cls.layout.items() if kind is Label)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _launch_lines(launch: Launch) -> Iterator[str]:
    yield "\n.launch {} {} {} {}".format(quote(launch.kernel), *launch.grid)
    if launch.note:
        yield f".note {json.dumps(launch.note, ensure_ascii=False)}"
    if launch.params:
        yield f".params {' '.join(map(hex, launch.params))}"
    yield from (f".node {quote(n)}" for n in launch.nodes)
    yield from (
        f".operand {o.use} {quote(o.value)} {o.address:#x} {o.bytes}" for o in launch.operands
    )
    if launch.macs:
        yield f".macs {launch.macs}"
    if h := launch.host:
        yield f".host {h.sent} {h.received} {int(h.asked)}"
