"""A program as a file: ELF64, deterministic to the byte, checked to the byte.

    .note.knapper      VERSION  format major, minor and ISA version
                       CHECKSUM CRC-32 of the whole file, its own four bytes taken as zero
                       PROGRAM  JSON: the whole resolved target and its hash, inputs, outputs, states, provenance
    .rodata            weights, in their encoded form, at BASE
    .arena             NOBITS: where inputs, outputs and scratch will be
    .text.<kernel>     128-bit instructions; addresses count from 0 in each kernel, instruction memory is a space of its own
    .knapper.kernels   a line of JSON a kernel: block, registers, shared and local bytes, …
    .knapper.launches  a line of JSON a launch, in order (`readelf -p .knapper.launches` prints the plan)
    .knapper.line      the line table: for each instruction of each kernel, which of the launch's nodes it works for (u32)
    .symtab, .strtab   kernels as FUNC, rodata objects as OBJECT

Versions: a reader takes every minor of its major. A minor may add sections, notes and JSON keys, which older readers pass over;
a number that it adds to machine descriptions has a value that stands for it in older images (`machine.NEUTRAL`).
JSON is canonical (sorted keys, no spaces) and read only if it is. The checksum finds damage; it keeps nobody out, so what
passes it is checked again, as a stranger's (`verify.problems`). Instructions are decoded when first asked for, not here.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from reprlib import repr as brief
from typing import Any

import numpy as np

from . import elf, files, verify
from .elf import Section, Symbol
from .errors import IsaError, KnapperError, Problems
from .machine import Machine, digest
from .program import ALIGN, BASE, Kernel, Launch, Object, Offload, Operand, Port, Program

FORMAT = (1, 3)
"""Major and minor of the file format. 1.1: vector memory and arrays of their own in the description. 1.2: a kernel's accumulators.
1.3: states."""
ISA = (1, 0)
"""Major and minor of the instruction set: ENCODINGS.txt."""
OWNER = b"knapper"
VERSION, CHECKSUM, PROGRAM = 1, 0x101, 0x102
"""Note types: 1 is ELF's own NT_VERSION, the others are ours."""
NOTES = 3
"""Which of the pieces has the notes: those of section 1."""
TEXT = ".text."


# --- writing -----------------------------------------------------------------------------------------------------------


def write(program: Program) -> bytes:
    """The image of a program. IsaError E522 if it is not a valid one."""
    return b"".join(pieces(program))


def save(program: Program, path: str | Path) -> None:
    """Write the image to a file; the weights are not copied for it."""
    found = pieces(program)
    files.write(path, lambda f: f.writelines(found))


def pieces(program: Program) -> list[bytes | memoryview]:
    """The image, one piece behind the other."""
    if found := list(verify.problems(program)):
        raise found[0] if len(found) == 1 else Problems(found)
    head = [
        Section(".note.knapper", elf.NOTE, _notes(program), align=4),
        Section(".rodata", elf.PROGBITS, program.rodata, elf.ALLOC, BASE, ALIGN),
        Section(
            ".arena",
            elf.NOBITS,
            b"",
            elf.ALLOC | elf.WRITE,
            program.arena_address,
            ALIGN,
            size=program.arena_bytes,
        ),
    ]
    kernels = [
        Section(TEXT + name, elf.PROGBITS, k.words, elf.ALLOC | elf.CODE, align=16)
        for name, k in program.kernels.items()
    ]
    tables = [
        Section(
            ".knapper.kernels", elf.PROGBITS, _lines(map(_kernel_record, program.kernels.values()))
        ),
        Section(".knapper.launches", elf.PROGBITS, _lines(map(_launch_record, program.launches))),
        Section(".knapper.line", elf.PROGBITS, _line_table(program.kernels.values()), align=4),
    ]
    first = len(head) + 1
    symbols = elf.symbol_table(_symbols(program, first), first + len(kernels) + len(tables))
    parts = elf.pieces([*head, *kernels, *tables, *symbols])
    checksum = 0
    for piece in parts:
        checksum = zlib.crc32(piece, checksum)
    notes = bytearray(parts[NOTES])
    (at,) = (at for kind, at, _ in elf.notes(memoryview(notes), OWNER) if kind == CHECKSUM)
    struct.pack_into("<I", notes, at, checksum)
    return [*parts[:NOTES], bytes(notes), *parts[NOTES + 1 :]]


def seal(image: bytearray) -> bytearray:
    """Put the checksum into its note."""
    at = _checksum_place(elf.parse(memoryview(image)))
    struct.pack_into("<I", image, at, _checksum(memoryview(image), at))
    return image


def _symbols(program: Program, first: int) -> Iterable[Symbol]:
    for i, kernel in enumerate(program.kernels.values()):
        yield Symbol(kernel.name, elf.FUNC, first + i, 0, len(kernel.words))
    for o in program.objects:
        yield Symbol(o.name, elf.OBJECT, 2, o.address, o.bytes)


def _notes(program: Program) -> bytes:
    machine = Machine.from_dict(program.target)
    record = {
        "target": machine.to_dict(),
        "target_hash": machine.hash,
        "inputs": [_port_record(p) for p in program.inputs],
        "outputs": [_port_record(p) for p in program.outputs],
        "meta": program.meta,
        **({"state": program.state} if program.state else {}),
    }
    version = struct.pack("<4I", *FORMAT, *ISA)
    parts = ((VERSION, version), (CHECKSUM, bytes(4)), (PROGRAM, _canonical(record)))
    return b"".join(elf.note(OWNER, kind, content) for kind, content in parts)


def _port_record(p: Port) -> dict[str, Any]:
    return {"name": p.name, "dtype": p.dtype, "shape": p.shape, "address": p.address}


def _kernel_record(k: Kernel) -> dict[str, Any]:
    return {
        "name": k.name,
        "block": k.block,
        "registers": k.registers,
        "shared_bytes": k.shared_bytes,
        "local_bytes": k.local_bytes,
        "modes": (k.mode_entry, k.mode_exit),
        "matrix": k.matrix,
        **({"accumulators": k.accumulators} if k.accumulators else {}),
    }


def _launch_record(x: Launch) -> dict[str, Any]:
    return {
        "kernel": x.kernel,
        "grid": x.grid,
        "params": x.params,
        "nodes": x.nodes,
        "operands": [[o.value, o.address, o.bytes, o.use] for o in x.operands],
        "macs": x.macs,
        "note": x.note,
        **({"host": [x.host.sent, x.host.received, x.host.asked]} if x.host else {}),
    }


def _line_table(kernels: Iterable[Kernel]) -> bytes:
    return b"".join(np.array(k.roles, "<u4").tobytes() for k in kernels)


def _lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    return b"".join(_canonical(r) + b"\n" for r in records)


def _canonical(record: Any) -> bytes:
    try:
        text = json.dumps(
            record, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
        return text.encode()
    except (TypeError, ValueError) as e:
        raise IsaError("E522", f"not plain data: {e}") from None


# --- reading -----------------------------------------------------------------------------------------------------------


def load(path: str | Path) -> Program:
    """Read an image file."""
    return read(files.read(path), str(path))


def read(data: bytes | memoryview, where: str = "image") -> Program:
    """The program in an image, or one IsaError that names the file. `rodata` stays a view of `data`."""
    try:
        program = _read(memoryview(data).toreadonly().cast("B"))
        found = list(verify.problems(program))
    except KnapperError as e:
        raise _one(e, where) from None
    if found:
        raise _one(found[0], where, len(found) - 1)
    return program


def _one(e: KnapperError, where: str, more: int = 0) -> IsaError:
    """One short line, whatever names a stranger's file holds."""
    place = f"{where}: {e.where}" if e.where else where
    message = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in e.message[:300])
    return IsaError(
        e.code, message + (f" (and {more} more problems)" if more else ""), where=place, hint=e.hint
    )


def _read(data: memoryview) -> Program:
    sections = elf.parse(data)
    newer = _minor(sections) > FORMAT[1]
    at = _checksum_place(sections)
    if struct.unpack_from("<I", data, at)[0] != _checksum(data, at):
        raise elf.damaged("its checksum does not match its content")
    record = _json(bytes(_note(sections, PROGRAM)), "the program note")
    target = _target(record, newer)
    rodata, arena = _section(sections, ".rodata"), _section(sections, ".arena", elf.NOBITS)
    kernels, symbols = _kernels(sections), _symbol_list(sections)
    if [(s.name, s.size) for s in symbols if s.kind == elf.FUNC] != [
        (k.name, len(k.words)) for k in kernels.values()
    ]:
        raise IsaError("E522", "the symbols do not match the kernels")
    program = Program(
        target=target.to_dict(),
        kernels=kernels,
        launches=tuple(_launch(r) for r in _records(sections, ".knapper.launches")),
        inputs=_ports(record, "inputs"),
        outputs=_ports(record, "outputs"),
        rodata=memoryview(rodata.data),
        objects=tuple(Object(s.name, s.value, s.size) for s in symbols if s.kind == elf.OBJECT),
        arena_bytes=arena.bytes,
        meta=_meta(record),
        state=_state(record),
    )
    if (rodata.address, arena.address) != (BASE, program.arena_address):
        raise IsaError(
            "E522", f"rodata and arena begin at {rodata.address:#x} and {arena.address:#x}"
        )
    return program


def _target(record: Mapping[str, Any], newer: bool) -> Machine:
    """The machine, with every number that there is now; the hash is of what was stored."""
    stored = _get(record, "target", dict, "the program note")
    machine = Machine.from_stored(stored, "its target", newer)
    if _get(record, "target_hash", str, "the program note") != digest(stored):
        raise IsaError("E522", "the target's hash does not match the target")
    return machine


def _section(sections: Sequence[Section], name: str, kind: int | None = None) -> Section:
    found = [s for s in sections if s.name == name]
    if len(found) != 1:
        raise elf.damaged(f"{len(found)} sections are called {name}, expected one")
    if (found[0].type == elf.NOBITS) != (kind == elf.NOBITS):
        raise elf.damaged(f"section {name} is of type {found[0].type}")
    return found[0]


def _note(sections: Sequence[Section], kind: int) -> memoryview:
    section = memoryview(_section(sections, ".note.knapper").data)
    found = [content for k, _, content in elf.notes(section, OWNER) if k == kind]
    if len(found) != 1:
        raise elf.damaged(f"{len(found)} notes of type {kind}, expected one")
    return found[0]


def _minor(sections: Sequence[Section]) -> int:
    """The file format's minor; IsaError E523 for another major, of the format or of the ISA."""
    content = _note(sections, VERSION)
    if len(content) != 16:
        raise elf.damaged(f"a version note of {len(content)} bytes")
    major, minor, isa_major, isa_minor = struct.unpack("<4I", content)
    for what, got, ours in (
        ("format", (major, minor), FORMAT),
        ("ISA", (isa_major, isa_minor), ISA),
    ):
        if got[0] != ours[0]:
            raise IsaError(
                "E523",
                f"{what} version {got[0]}.{got[1]}, this knapper reads {ours[0]}.x",
                hint="compile the model again",
            )
    return int(minor)


def _checksum_place(sections: Sequence[Section]) -> int:
    """Where in the file the checksum's four bytes are."""
    section = _section(sections, ".note.knapper")
    found = [
        (at, len(content))
        for k, at, content in elf.notes(memoryview(section.data), OWNER)
        if k == CHECKSUM
    ]
    if len(found) != 1 or found[0][1] != 4:
        raise elf.damaged("it has no checksum")
    return section.offset + found[0][0]


def _checksum(data: memoryview, at: int) -> int:
    return zlib.crc32(data[at + 4 :], zlib.crc32(bytes(4), zlib.crc32(data[:at])))


def _symbol_list(sections: Sequence[Section]) -> list[Symbol]:
    return list(elf.symbols(_section(sections, ".symtab"), _section(sections, ".strtab")))


def _kernels(sections: Sequence[Section]) -> dict[str, Kernel]:
    """Code, resources and roles come from three sections; kernels are in one order in all of them."""
    code = [s for s in sections if s.name.startswith(TEXT)]
    records = _records(sections, ".knapper.kernels")
    names = [_get(r, "name", str, "a kernel") for r in records]
    if names != [s.name.removeprefix(TEXT) for s in code] or len({*names}) != len(names):
        raise IsaError("E522", "the list of kernels and the sections of code do not match")
    line = _section(sections, ".knapper.line").data
    if len(line) * 4 != sum(len(s.data) for s in code):
        raise IsaError("E522", f"a line table of {len(line)} bytes does not fit the code")
    roles, at, kernels = np.frombuffer(line, "<u4"), 0, {}
    for section, record in zip(code, records, strict=True):
        count = len(section.data) // 16
        kernel = _kernel(record, bytes(section.data), tuple(roles[at : at + count].tolist()))
        kernels[kernel.name], at = kernel, at + count
    return kernels


def _kernel(r: Mapping[str, Any], words: bytes, roles: tuple[int, ...]) -> Kernel:
    where = f"kernel {r['name']}"
    entry, leave = _list(r, "modes", str, where, 2)
    x, y, z = _list(r, "block", int, where, 3)
    return Kernel(
        name=r["name"],
        words=words,
        roles=roles,
        block=(x, y, z),
        registers=_get(r, "registers", int, where),
        shared_bytes=_get(r, "shared_bytes", int, where),
        local_bytes=_get(r, "local_bytes", int, where),
        mode_entry=entry,
        mode_exit=leave,
        matrix=_get(r, "matrix", bool, where),
        accumulators=_get(r, "accumulators", int, where) if "accumulators" in r else 0,
    )


def _launch(r: Mapping[str, Any]) -> Launch:
    where = "a launch"
    x, y, z = _list(r, "grid", int, where, 3)
    return Launch(
        kernel=_get(r, "kernel", str, where),
        grid=(x, y, z),
        params=_list(r, "params", int, where),
        nodes=_list(r, "nodes", str, where),
        operands=tuple(map(_operand, _list(r, "operands", list, where))),
        macs=_get(r, "macs", int, where),
        note=_get(r, "note", str, where),
        host=_offload(r["host"]) if "host" in r else None,
    )


def _offload(fields: Any) -> Offload:
    if not isinstance(fields, list) or [type(f) for f in fields] != [int, int, bool]:
        raise IsaError("E522", "the host of a launch is not [bytes sent, bytes received, asked]")
    return Offload(*fields)


def _operand(fields: list[Any]) -> Operand:
    if [type(f) for f in fields] != [str, int, int, str]:
        raise IsaError("E522", "an operand of a launch is not [value, address, bytes, use]")
    return Operand(*fields)


def _ports(record: Mapping[str, Any], key: str) -> tuple[Port, ...]:
    return tuple(_port(r, key) for r in _list(record, key, dict, "the program note"))


def _port(r: Mapping[str, Any], where: str) -> Port:
    shape = _list(r, "shape", int, where)
    return Port(
        _get(r, "name", str, where),
        _get(r, "dtype", str, where),
        shape,
        _get(r, "address", int, where),
    )


def _meta(record: Mapping[str, Any]) -> dict[str, str]:
    meta: dict[str, str] = _get(record, "meta", dict, "the program note")
    if not all(isinstance(v, str) for v in meta.values()):
        raise IsaError("E522", "meta: expected text only")
    return meta


def _state(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    pairs = _list(record, "state", list, "the program note") if "state" in record else ()
    if not all([type(name) for name in p] == [str, str] for p in pairs):
        raise IsaError("E522", "state: expected pairs of an input's and an output's name")
    return tuple((past, present) for past, present in pairs)


def _records(sections: Sequence[Section], name: str) -> list[dict[str, Any]]:
    return [_json(line, name) for line in bytes(_section(sections, name).data).splitlines()]


def _json(raw: bytes, where: str) -> dict[str, Any]:
    """One canonical JSON object."""
    try:
        record = json.loads(raw)
        canonical = _canonical(record) == raw
    except (ValueError, RecursionError):
        canonical = False
    if not canonical or not isinstance(record, dict):
        raise IsaError("E522", f"{where}: not an object in canonical JSON: {raw[:40]!r}")
    return record


def _get(record: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """A value of exactly that type: JSON's true is no number."""
    if type(value := record.get(key)) is not kind:
        raise IsaError("E522", f"{where}: {key}: expected {kind.__name__}, got {brief(value)}")
    return value


def _list(
    record: Mapping[str, Any], key: str, kind: type, where: str, length: int | None = None
) -> tuple[Any, ...]:
    values = _get(record, key, list, where)
    if any(type(v) is not kind for v in values) or (length is not None and len(values) != length):
        expected = f"{'' if length is None else f'{length} '}{kind.__name__}"
        raise IsaError("E522", f"{where}: {key}: expected a list of {expected}")
    return tuple(values)
