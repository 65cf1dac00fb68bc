"""An image is an ELF file that other tools read, that comes back equal, and that no damage and no stranger can break."""

import json
import shutil
import struct
import subprocess
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from random import Random

import pytest
from elftools.elf.elffile import ELFFile

from knapper.isa import asm, elf, image
from knapper.isa.errors import CODES, IsaError, KnapperError, UsageError
from knapper.isa.generate import program
from knapper.isa.machine import Machine, digest
from knapper.isa.program import BASE, Kernel, Launch, Object, Operand, Port

PROGRAM = program(Random(1), kernels=2, length=8, weights=512)
IMAGE = image.write(PROGRAM)
STORED = Path(__file__).parent / "stored"
"""Descriptions as older versions stored them."""


def refused(data, *codes):
    """The one error that reading ends in."""
    with pytest.raises(IsaError) as e:
        image.read(bytes(data), "net.elf")
    assert e.value.code in (codes or CODES)
    assert e.value.where.startswith("net.elf")
    assert str(e.value).isprintable()
    return e.value


def edited(section, change):
    """The image with one section's bytes changed, and everything else made to fit, the checksum too."""
    sections = elf.parse(memoryview(IMAGE))[1:-1]
    assert sum(s.name == section for s in sections) == 1
    swapped = [
        replace(s, data=change(bytes(s.data)), size=-1) if s.name == section else s
        for s in sections
    ]
    return image.seal(elf.build(swapped))


# --- what it is ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_program_comes_back_equal_and_writes_the_same_bytes(seed):
    p = program(Random(seed), kernels=seed, weights=2 * seed)
    data = image.write(p)
    assert image.read(data) == p
    assert (
        image.write(image.read(data))
        == data
        == image.write(program(Random(seed), kernels=seed, weights=2 * seed))
    )


def test_instructions_are_decoded_only_when_asked_for():
    bad = Kernel("k", b"\xff" * 16, (0,), (32, 1, 1), 4)
    p = image.read(image.write(replace(PROGRAM, kernels={"k": bad}, launches=())))
    with pytest.raises(IsaError, match="kernel k: instruction 0: not an instruction"):
        _ = p.kernels["k"].code


def test_readelf_has_no_complaint(tmp_path):
    if shutil.which("readelf") is None:
        pytest.skip("readelf is not installed")
    (tmp_path / "x.elf").write_bytes(IMAGE)
    done = subprocess.run(
        ["readelf", "-a", "-W", tmp_path / "x.elf"],
        capture_output=True,
        text=True,
        check=True,
        errors="replace",
    )
    assert done.stderr == ""
    assert "arning" not in done.stdout
    assert all(
        word in done.stdout
        for word in (".text.conv_1", "FUNC    GLOBAL DEFAULT", "conv.weight", "NOBITS")
    )


def test_pyelftools_finds_kernels_weights_and_notes():
    f = ELFFile(BytesIO(IMAGE))
    symbols = {s.name: s for s in f.get_section_by_name(".symtab").iter_symbols()}
    assert symbols["conv_0"]["st_info"]["type"] == "STT_FUNC"
    assert symbols["conv_0"]["st_size"] == len(PROGRAM.kernels["conv_0"].words)
    weight = symbols["conv.weight"]
    rodata = f.get_section(weight["st_shndx"])
    assert (rodata.name, weight["st_info"]["type"]) == (".rodata", "STT_OBJECT")
    at = weight["st_value"] - rodata["sh_addr"]
    assert rodata.data()[at : at + weight["st_size"]] == PROGRAM.rodata[:512]
    notes = [n["n_name"] for n in f.get_section_by_name(".note.knapper").iter_notes()]
    assert notes == ["knapper"] * 3


def test_a_reader_passes_over_what_a_later_minor_adds():
    def newer(raw):
        assert raw.count(struct.pack("<2I", *image.FORMAT)) >= 1
        return raw.replace(
            struct.pack("<2I", *image.FORMAT), struct.pack("<2I", image.FORMAT[0], 99), 1
        ) + elf.note(b"knapper", 77, b"news")

    assert image.read(bytes(edited(".note.knapper", newer))) == PROGRAM
    with_key = edited(
        ".knapper.kernels", lambda raw: raw.replace(b'{"block"', b'{"attic":1,"block"')
    )
    assert image.read(bytes(with_key)) == PROGRAM
    sections = elf.parse(memoryview(IMAGE))[1:-1]
    more = image.seal(elf.build([*sections, elf.Section(".knapper.later", elf.PROGBITS, b"?")]))
    assert image.read(bytes(more)) == PROGRAM


def in_format(minor, target):
    """PROGRAM's image with a description as another minor's knapper stored it."""

    def change(raw):
        kinds = {kind: content for kind, _, content in elf.notes(memoryview(raw), b"knapper")}
        record = json.loads(bytes(kinds[image.PROGRAM]))
        record |= {"target": target, "target_hash": digest(target)}
        kinds[image.VERSION] = struct.pack("<4I", 1, minor, *image.ISA)
        kinds[image.PROGRAM] = image._canonical(record)
        return b"".join(elf.note(b"knapper", k, bytes(content)) for k, content in kinds.items())

    return bytes(edited(".note.knapper", change))


@pytest.mark.parametrize("name", ["volta-8tc", "systolic-host"])
def test_an_image_of_format_1_0_is_read_with_what_it_lacks_in_its_neutral_value(name):
    """The descriptions are those of 1.0, so a number that is added without a neutral value fails here."""
    stored = json.loads((STORED / f"{name}-1.0.json").read_text())
    machine = Machine.from_dict(image.read(in_format(0, stored)).target)
    added = {"vector_read": 0.0, "vector_write": 0.0}
    assert added.items() <= machine.energy.items()
    assert not added.keys() & stored["energy"].keys()
    assert (machine.separate_array, machine.vector_word) == (0, 0)
    assert machine.provenance["energy.vector_read"].kind == "derived"
    now = machine.to_dict()
    assert stored.keys() <= now.keys()
    tables = ("energy", "units")
    assert all(now[k] == v for k, v in stored.items() if k not in tables)
    for table in tables:
        assert {k: now[table][k] for k in stored[table]} == stored[table]
    again = image.write(image.read(in_format(0, stored)))
    assert image.read(again).target == now


def test_a_listing_of_an_older_description_assembles():
    stored = json.loads((STORED / "volta-8tc-1.0.json").read_text())
    text, blobs = asm.disassemble(replace(PROGRAM, target=stored))
    assert asm.assemble(text, blobs).target == image.read(in_format(0, stored)).target


def test_a_number_that_1_0_had_is_not_made_up():
    stored = json.loads((STORED / "volta-8tc-1.0.json").read_text())
    del stored["launch_cycles"]
    with pytest.raises(IsaError, match=r"E511: net\.elf: its target: launch_cycles is missing"):
        image.read(in_format(0, stored), "net.elf")


def test_numbers_of_a_later_minor_are_passed_over_but_only_of_one():
    target = PROGRAM.target | {"warp_drives": {"value": 1, "provenance": "assumed"}}
    assert image.read(in_format(99, target)).target == PROGRAM.target
    with pytest.raises(IsaError, match=r"E511: net\.elf: its target: warp_drives: unknown key"):
        image.read(in_format(image.FORMAT[1], target), "net.elf")


def test_another_major_is_refused():
    major = edited(
        ".note.knapper",
        lambda raw: raw.replace(struct.pack("<2I", *image.FORMAT), struct.pack("<2I", 9, 0), 1),
    )
    assert "version 9.0, this knapper reads 1.x" in str(refused(major, "E523"))


def test_a_large_image_is_read_without_a_copy():
    big = replace(PROGRAM, rodata=bytes(50_000_000), inputs=(), launches=(), objects=(), outputs=())
    data = image.write(big)
    assert image.read(data).rodata.obj is data


# --- damage -------------------------------------------------------------------------------------------------------------


def test_cut_anywhere_it_is_refused():
    for length in (*range(300), *range(300, len(IMAGE), 37), len(IMAGE) - 1):
        refused(IMAGE[:length], "E520", "E521")


def test_one_flipped_bit_anywhere_is_refused():
    rng = Random(2)
    for byte in (
        *range(400),
        *rng.sample(range(len(IMAGE)), 600),
        *range(len(IMAGE) - 1000, len(IMAGE)),
    ):
        bad = bytearray(IMAGE)
        bad[byte] ^= 1 << rng.randrange(8)
        refused(bad, "E520", "E521", "E523")


def test_what_is_no_image_at_all_says_so():
    assert "not an ELF file" in str(refused(b"", "E520"))
    assert "not an ELF file" in str(refused(b"PK\3\4" + bytes(100), "E520"))
    assert "its machine is 0x3e" in str(refused(IMAGE[:18] + b"\x3e\0" + IMAGE[20:], "E520"))
    with pytest.raises(UsageError, match=r"E705: nowhere\.elf: cannot read: No such file"):
        image.load("nowhere.elf")


# --- strangers: the checksum is right, the content is not -----------------------------------------------------------------


def resealed(data):
    try:
        return image.seal(data)
    except KnapperError:
        return data


def reads(data):
    """Whether it is read; if not, it must have ended in one clear error."""
    try:
        image.read(bytes(data), "net.elf")
    except IsaError:
        refused(data)
        return False
    return True


def test_random_edits_under_a_right_checksum_never_crash_the_reader():
    rng, read = Random(3), 0
    for _ in range(1500):
        bad = bytearray(IMAGE)
        for _ in range(rng.choice((1, 1, 4))):
            at = (
                rng.randrange(len(bad))
                if rng.random() < 0.5
                else len(bad) - 1 - rng.randrange(1000)
            )
            bad[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        read += reads(resealed(bad))
    assert 0 < read < 1500  # weights and code may be anything, headers may not


def test_every_header_field_set_to_extremes_never_crashes_the_reader():
    table = struct.unpack_from("<Q", IMAGE, 40)[0]
    places = [*range(0, 64, 2), *range(table, len(IMAGE), 4)]
    for at in places:
        for value in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80"):
            bad = bytearray(IMAGE)
            bad[at : at + 4] = value[: len(bad) - at]
            reads(resealed(bad))


def json_lines(section, change):
    """The image with the first record of a section changed."""

    def on(raw):
        first, *rest = raw.splitlines()
        record = json.loads(first)
        change(record)
        return image._canonical(record) + b"\n" + b"".join(line + b"\n" for line in rest)

    return edited(section, on)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        (".knapper.launches", "kernel", "conv_9", "there is no kernel 'conv_9'"),
        (".knapper.launches", "grid", [0, 1, 1], "a grid of (0, 1, 1) blocks"),
        (".knapper.launches", "grid", [1, 1], "grid: expected a list of 3 int"),
        (".knapper.launches", "grid", [True, 1, 1], "grid: expected a list of 3 int"),
        (".knapper.launches", "grid", [1, 1, 2**70], "a grid of"),
        (".knapper.launches", "params", [-1], "unsigned 64-bit words"),
        (".knapper.launches", "params", [0] * 5000, "up to 4096"),
        (".knapper.launches", "nodes", [], "the launch has 0"),
        (".knapper.launches", "operands", [["a", 0, 4, "r"]], "4 bytes at 0x0 are not inside"),
        (
            ".knapper.launches",
            "operands",
            [["a", BASE, 4, "w"]],
            "4 bytes at 0x10000000 are not inside",
        ),
        (".knapper.launches", "operands", [["a", BASE, -4, "r"]], "-4 bytes"),
        (".knapper.launches", "operands", [["a", BASE, 4, "x"]], "use 'x'"),
        (".knapper.launches", "operands", [["a", BASE, 4]], "is not [value, address, bytes, use]"),
        (".knapper.launches", "macs", 1.5, "macs: expected int, got 1.5"),
        (".knapper.launches", "note", None, "note: expected str"),
        (".knapper.kernels", "registers", 256, "256 registers, expected 0 to 255"),
        (
            ".knapper.kernels",
            "shared_bytes",
            1 << 40,
            "bytes of shared memory, expected 0 to 98304",
        ),
        (".knapper.kernels", "local_bytes", -1, "-1 bytes of local memory"),
        (".knapper.kernels", "block", [1024, 1024, 64], "expected 1 to 1024"),
        (".knapper.kernels", "block", [0, 1, 1], "expected 1 to 1024"),
        (".knapper.kernels", "modes", ["simd", "warp9"], "expected simd"),
        (".knapper.kernels", "matrix", 1, "matrix: expected bool, got 1"),
        (".knapper.kernels", "name", "other", "do not match"),
    ],
)
def test_a_record_that_makes_no_sense_is_named(section, key, value, message):
    error = refused(json_lines(section, lambda r: r.update({key: value})), "E522")
    assert message in str(error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["inputs"][0].update(address=BASE), "input x: its data"),
        (lambda r: r["inputs"][0].update(address=2**80), "input x: its data"),
        (lambda r: r["outputs"][0].update(shape=[2**39, 2**39]), "output probabilités: its data"),
        (lambda r: r["outputs"][0].update(shape=[-1]), "none negative"),
        (lambda r: r["outputs"][0].update(shape=[1] * 65), "expected up to 64"),
        (lambda r: r["inputs"][0].update(dtype="complex"), "dtype 'complex'"),
        (lambda r: r["inputs"].append(r["inputs"][0]), "two of that name"),
        (lambda r: r.update(target_hash="0"), "hash does not match"),
        (lambda r: r["target"]["sms"].update(value=0), "sms: expected a whole number from 1 on"),
        (lambda r: r["target"].pop("units"), "units.alu.interval is missing"),
        (lambda r: r.update(target=[]), "target: expected dict"),
        (lambda r: r.update(meta={"a": 1}), "meta: expected text only"),
    ],
)
def test_a_program_note_that_makes_no_sense_is_named(change, message):
    def on(raw):
        parts = [(k, bytes(c)) for k, _, c in elf.notes(memoryview(raw), b"knapper")]
        record = json.loads(parts[-1][1])
        change(record)
        parts[-1] = (parts[-1][0], image._canonical(record))
        return b"".join(elf.note(b"knapper", k, c) for k, c in parts)

    assert message in str(refused(edited(".note.knapper", on)))


@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 100_000,
        b'{"a":1e999}\n',
        b'{"name": 1}\n',
        b'{"a":1,"a":2}\n',
        b"\xff\n",
        b"{}\n" * 9,
        b"1\n",
    ],
)
def test_text_that_is_no_canonical_json_is_refused(raw):
    refused(edited(".knapper.launches", lambda _: raw), "E522")


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        (".text.conv_0", lambda raw: raw[:-1], "line table"),
        (".text.conv_0", lambda raw: b"", "line table"),
        (".knapper.line", lambda raw: b"\xff" * len(raw), "works for node 4294967295"),
        (".strtab", lambda raw: b"\xff" * len(raw), "a name"),
        (".strtab", lambda raw: b"", "a name is at byte"),
        (".symtab", lambda raw: raw[:-5], "a symbol table of"),
        (".symtab", lambda raw: b"", "symbols do not match"),
        (".note.knapper", lambda raw: raw[:4] + b"\xff" * 4 + raw[8:], "note"),
    ],
)
def test_a_section_that_makes_no_sense_is_named(section, change, message):
    sections = elf.parse(memoryview(IMAGE))[1:-1]
    swapped = [
        replace(s, data=change(bytes(s.data)), size=-1) if s.name == section else s
        for s in sections
    ]
    assert message in str(refused(resealed(elf.build(swapped)), "E521", "E522"))


def test_a_huge_arena_is_refused_before_anything_is_allocated():
    sections = elf.parse(memoryview(IMAGE))[1:-1]
    huge = image.seal(
        elf.build([replace(s, size=1 << 62) if s.name == ".arena" else s for s in sections])
    )
    assert "arena" in str(refused(huge, "E522"))


# --- the writer takes the same care ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"launches": (Launch("k", (1, 1, 1), (), ("n",)),)}, "there is no kernel 'k'"),
        ({"objects": (Object("o", BASE, 1 << 20),)}, "object o: 1048576 bytes"),
        ({"inputs": (Port("x", "f32", (1,), 0),)}, "input x: its data"),
        ({"arena_bytes": -1}, "arena: -1 bytes"),
        ({"meta": {"a": object()}}, "not plain data"),
        ({"objects": (Object("a\0b", BASE, 1),)}, "holds a NUL"),
        ({"objects": (Object("a\ud800", BASE, 1),)}, "not Unicode"),
        ({"target": {}}, "sms is missing"),
    ],
)
def test_a_program_that_makes_no_sense_is_not_written(change, message):
    with pytest.raises(KnapperError) as e:
        image.write(replace(PROGRAM, **change))
    assert message in str(e.value)


def test_all_problems_of_a_program_are_told_at_once():
    bad = Launch("conv_0", (0, 1, 1), (1 << 64,), ("a", "b"), (Operand("v", 0, 1, "r"),))
    with pytest.raises(KnapperError) as e:
        image.write(replace(PROGRAM, launches=(bad,), arena_bytes=-1))
    assert str(e.value).count("E522") >= 4
