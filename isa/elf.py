"""ELF64, as much of it as an image needs: little-endian, sections, symbols, notes, program headers. Nothing here knows of kernels.

    ┌────────┬─────────────────┬──────────────────────────────────────────┬─────────────────┐
    │ header │ program headers │ sections, each at its alignment          │ section headers │
    └────────┴─────────────────┴──────────────────────────────────────────┴─────────────────┘

The reader takes bytes from anywhere: every offset, size and string is checked before use, nothing is copied, and what is
wrong ends in `IsaError` E520 (no ELF of ours) or E521 (damaged).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .errors import IsaError

MAGIC = b"\x7fELF\x02\x01\x01" + bytes(9)
"""64 bits, little-endian, version 1, System V, padding."""
MACHINE = 0x4B4E
"""e_machine "KN": among the values that the ELF registry leaves free; other tools show it as unknown."""
EXEC = 2

PROGBITS, SYMTAB, STRTAB, NOTE, NOBITS = 1, 2, 3, 7, 8
WRITE, ALLOC, CODE = 1, 2, 4
PT_LOAD, PT_NOTE = 1, 4
OBJECT, FUNC = 1, 2
GLOBAL = 1 << 4

HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
PROGRAM = struct.Struct("<IIQQQQQQ")
SECTION = struct.Struct("<IIQQQQIIQQ")
SYMBOL = struct.Struct("<IBBHQQ")
NOTE_HEADER = struct.Struct("<III")


@dataclass(frozen=True)
class Section:
    """One section. `data` is empty for NOBITS, which has a `size` of its own."""

    name: str
    type: int
    data: bytes | memoryview = b""
    flags: int = 0
    address: int = 0
    align: int = 1
    entry: int = 0
    link: int = 0
    info: int = 0
    size: int = -1
    offset: int = 0
    """Where it lies in the file, for one that was read."""

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return len(self.data) if self.size < 0 else self.size


@dataclass(frozen=True)
class Symbol:
    """A named range: `kind` is OBJECT or FUNC, `section` the index of the section that it lies in."""

    name: str
    kind: int
    section: int
    value: int
    size: int


class Strings:
    """A string table under construction: name → offset."""

    def __init__(self) -> None:
        self.data = bytearray(1)
        self.offsets = {"": 0}

    def add(self, text: str) -> int:
        """The offset of a string; IsaError for one that no string table can hold."""
        if text not in self.offsets:
            self.offsets[text] = len(self.data)
            self.data += encode(text) + b"\0"
        return self.offsets[text]


def encode(text: str) -> bytes:
    """UTF-8, without NUL."""
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise IsaError("E522", f"a name is not Unicode text: {text!r}") from None
    if 0 in raw:
        raise IsaError("E522", f"a name holds a NUL: {text!r}")
    return raw


# --- writing -----------------------------------------------------------------------------------------------------------


def symbol_table(symbols: Iterable[Symbol], section: int) -> tuple[Section, Section]:
    """`.symtab` as section number `section`, and the `.strtab` that follows it. All symbols are global."""
    names, table = Strings(), bytearray(SYMBOL.size)
    for s in symbols:
        table += SYMBOL.pack(names.add(s.name), GLOBAL | s.kind, 0, s.section, s.value, s.size)
    return (
        Section(
            ".symtab", SYMTAB, bytes(table), align=8, entry=SYMBOL.size, link=section + 1, info=1
        ),
        Section(".strtab", STRTAB, bytes(names.data)),
    )


def note(owner: bytes, kind: int, content: bytes) -> bytes:
    """One entry of a note section."""
    return (
        NOTE_HEADER.pack(len(owner) + 1, len(content), kind)
        + _pad(owner + b"\0", 4)
        + _pad(content, 4)
    )


def _pad(data: bytes, align: int) -> bytes:
    return data + bytes(-len(data) % align)


def pieces(sections: Iterable[Section]) -> list[bytes | memoryview]:
    """A whole file, one piece behind the other; a section's data are a piece of their own, number 2 n + 1 for section n, and not copied.

    Sections get the numbers 1, 2, …; a `.shstrtab` comes last. Those with ALLOC, and notes, become segments.
    """
    names = Strings()
    listed = [Section("", 0), *sections, Section(".shstrtab", STRTAB)]
    starts = [names.add(s.name) for s in listed]
    listed[-1] = Section(".shstrtab", STRTAB, bytes(names.data))
    segments = [
        i
        for i, s in enumerate(listed)
        if s.type == NOTE or (s.flags & ALLOC and not s.flags & CODE)
    ]
    end = HEADER.size + PROGRAM.size * len(segments)
    out: list[bytes | memoryview] = []
    offsets = []
    for s in listed:
        out += [bytes(-end % s.align), s.data]
        end += len(out[-2])
        offsets.append(end if s.type else 0)
        end += len(s.data)
    out.append(bytes(-end % 8))
    end += len(out[-1])
    out += map(_section_header, listed, starts, offsets)
    head = [HEADER.pack(*_header(len(segments), end, len(listed)))]
    head += (PROGRAM.pack(*_segment(listed[i], offsets[i])) for i in segments)
    return [b"".join(head), *out[1:]]


def build(sections: Iterable[Section]) -> bytearray:
    """A whole file."""
    return bytearray().join(pieces(sections))


def _header(segments: int, section_table: int, sections: int) -> tuple[bytes | int, ...]:
    table = HEADER.size if segments else 0
    sizes = (HEADER.size, PROGRAM.size, segments, SECTION.size, sections, sections - 1)
    return (MAGIC, EXEC, MACHINE, 1, 0, table, section_table, 0, *sizes)


def _section_header(s: Section, name: int, offset: int) -> bytes:
    align = s.align if s.type else 0
    return SECTION.pack(
        name, s.type, s.flags, s.address, offset, s.bytes, s.link, s.info, align, s.entry
    )


def _segment(s: Section, offset: int) -> tuple[int, ...]:
    kind = PT_NOTE if s.type == NOTE else PT_LOAD
    rights = 6 if s.flags & WRITE else 4
    return (kind, rights, offset, s.address, s.address, len(s.data), s.bytes, s.align)


# --- reading -----------------------------------------------------------------------------------------------------------


def damaged(message: str) -> IsaError:
    """The error for a file that is cut short or was altered."""
    return IsaError("E521", message)


def parse(data: memoryview) -> list[Section]:
    """The sections of a file, number 0 included; their data are views."""
    if len(data) < HEADER.size or bytes(data[:4]) != MAGIC[:4]:
        raise IsaError("E520", "not an ELF file")
    magic, _, machine, _, _, _, table, _, _, _, _, entry, count, names = HEADER.unpack_from(data)
    if bytes(magic) != MAGIC or machine != MACHINE:
        raise IsaError(
            "E520",
            f"an ELF file, but not one of knapper's: its machine is {machine:#x}, expected {MACHINE:#x}",
        )
    if entry != SECTION.size or count * SECTION.size > len(data) - table:
        raise damaged(f"{len(data)} bytes, but {count} section headers begin at byte {table}")
    if names >= count:
        raise damaged(f"section names are in section {names} of {count}")
    headers = [SECTION.unpack_from(data, table + i * SECTION.size) for i in range(count)]
    strings = _content(data, headers[names], names)
    return [_section(data, h, i, strings) for i, h in enumerate(headers)]


def _section(data: memoryview, header: tuple[int, ...], i: int, strings: memoryview) -> Section:
    name, kind, flags, address, offset, size, link, info, align, entry = header
    content = _content(data, header, i)
    return Section(
        text(strings, name), kind, content, flags, address, align, entry, link, info, size, offset
    )


def _content(data: memoryview, header: tuple[int, ...], i: int) -> memoryview:
    _, kind, _, _, offset, size, *_ = header
    if kind in (0, NOBITS):
        return data[:0]
    if offset > len(data) or size > len(data) - offset:
        raise damaged(
            f"section {i} is {size} bytes from byte {offset} on, but the file has {len(data)}"
        )
    return data[offset : offset + size]


def text(strings: memoryview, offset: int) -> str:
    """The string at an offset of a string table."""
    if offset >= len(strings):
        raise damaged(f"a name is at byte {offset} of {len(strings)} bytes of names")
    raw = bytes(strings[offset : offset + 4096])
    end = raw.find(b"\0")
    if end < 0:
        raise damaged("a name has no end, or more than 4095 bytes")
    try:
        return raw[:end].decode()
    except UnicodeDecodeError:
        raise damaged(f"a name is not UTF-8: {raw[:end][:40]!r}") from None


def symbols(table: Section, strings: Section) -> Iterator[Symbol]:
    """The symbols of a table, the null symbol left out."""
    if len(table.data) % SYMBOL.size:
        raise damaged(f"a symbol table of {len(table.data)} bytes")
    names = memoryview(strings.data)
    for name, info, _, section, value, size in list(SYMBOL.iter_unpack(table.data))[1:]:
        yield Symbol(text(names, name), info & 15, section, value, size)


def notes(section: memoryview, owner: bytes) -> Iterator[tuple[int, int, memoryview]]:
    """(type, offset in the section, content) of the owner's notes."""
    at = 0
    while at < len(section):
        if len(section) - at < NOTE_HEADER.size:
            raise damaged("a note is cut short")
        names, size, kind = NOTE_HEADER.unpack_from(section, at)
        content = at + NOTE_HEADER.size + names + -names % 4
        end = content + size
        if end > len(section):
            raise damaged(f"a note of {size} bytes reaches past its section")
        if bytes(section[at + NOTE_HEADER.size :][:names]) == owner + b"\0":
            yield kind, content, section[content:end]
        at = end + -end % 4
