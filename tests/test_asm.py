"""Text and program are two spellings of one thing, and a mistake in the text is told by file, line and column."""

from contextlib import suppress
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knapper.isa import asm, image
from knapper.isa.core import BY_NAME, TABLE, Instr
from knapper.isa.errors import IsaError, KnapperError
from knapper.isa.generate import instruction, program
from knapper.isa.lines import Lines
from knapper.isa.machine import Machine
from knapper.isa.operands import Guard, Label
from knapper.isa.program import BASE, Kernel

HAND = """\
// Adds one to 128 numbers.
.target volta-8tc
.arena 1024
.input x i32[128] 0x10000000
.output y i32[4, 32] 0x10000200

.kernel add_one
.block 128 1 1
    S2R.TID_X R0
    SHF.L.U32 R1, R0, 2     // four bytes a lane
    ULDC.64 UR2, [0]
    ULDC.64 UR4, [8]
    ISETP.GE.S32 P0, R0, 128
    @P0 BRA done
    LDG.32 R2, [UR2+R1+0]
    IADD.S32 R2, R2, 1
    STG.32 [UR4+R1+0], R2
done:
    EXIT

.launch add_one 1 1 1
.params 0x10000000 0x10000200
.node Add
"""


def problems(text, blobs=None):
    with pytest.raises(KnapperError) as e:
        asm.assemble(text, blobs, "p.s")
    return str(e.value).splitlines()


def changed(old, new):
    assert HAND.count(old) == 1
    return HAND.replace(old, new)


# --- there and back ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32))
def test_assembling_a_disassembly_gives_the_identical_image(seed):
    rng = Random(seed)
    p = program(
        rng, kernels=rng.randrange(4), length=rng.randrange(1, 40), weights=2 * rng.randrange(200)
    )
    text, blobs = asm.disassemble(p)
    again = asm.assemble(text, blobs)
    assert again == p
    assert image.write(again) == image.write(p)
    assert asm.disassemble(again) == (text, blobs)


@pytest.mark.parametrize("cls", TABLE.values(), ids=lambda c: c.mnemonic)
def test_every_instruction_reads_what_it_prints(cls):
    rng, lines = Random(cls.mnemonic), Lines()
    labels = {f"L{n}": n for n in range(100)}
    for _ in range(60):
        i = instruction(rng, [cls], labels=100)
        assert lines.read(f"    {i}", labels) == i
    assert Lines().read(str(i), labels) == i


def test_weights_outside_of_objects_survive():
    p = replace(program(Random(1)), objects=())
    text, blobs = asm.disassemble(p)
    assert text.count("\n.data ") == 1
    assert asm.assemble(text, blobs) == p


def test_names_of_any_kind_survive():
    names = [
        'a "b" \\',
        "a // b",
        "/a/b.1-c",
        "/a//b",
        "//",
        "/",
        "a/",
        "-a",
        "ä\n\u2028\x85",
        "",
        " ",
        "f32",
        "rw",
        "L1:",
        "日本",
    ]
    p = program(Random(2), kernels=1)
    launch = replace(p.launches[0], nodes=tuple(names), note="\n".join(names))
    kernel = replace(p.kernels["conv_0"], name=names[0])
    p = replace(
        p,
        launches=(replace(launch, kernel=names[0]),),
        kernels={names[0]: kernel},
        meta={"k": names[1]},
    )
    text, blobs = asm.disassemble(p)
    assert asm.assemble(text, blobs) == p


def test_files_hold_text_and_bulk_data_side_by_side(tmp_path):
    p = program(Random(3))
    asm.save(p, tmp_path / "p.s")
    assert sorted(x.suffix for x in tmp_path.iterdir()) == [".blob", ".s"]
    assert asm.load(tmp_path / "p.s") == p


def test_one_error_names_the_file_of_bulk_data_that_is_missing(tmp_path):
    beside = asm.save(program(Random(3), weights=8), tmp_path / "p.s")
    beside.unlink()
    with pytest.raises(IsaError, match=r"No such file.*belongs beside the \.s file") as e:
        asm.load(tmp_path / "p.s")
    assert (e.value.code, e.value.where) == ("E534", str(beside))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("IADD.S32 R2, R2, 0x1", "IADD.S32 R2, R2, 0x2"),
        ("LDG.32 R2", "LDG.32 R1"),
        (".params 0x10000000 0x10000200", ".params 0x10000200 0x10000000"),
        (".node Add", ".node Sub"),
    ],
)
def test_an_image_of_an_edited_text_says_so(old, new):
    text, blobs = asm.disassemble(asm.assemble(HAND))
    assert text.count(old) == 1
    program = asm.assemble(text.replace(old, new), blobs)
    assert program.meta["edited"] == "asm"
    again, blobs = asm.disassemble(program)
    assert asm.assemble(again, blobs) == program


def test_remarks_and_blanks_are_no_edit():
    text, blobs = asm.disassemble(asm.assemble(HAND))
    remarked = text.replace("\n", "  // so\r\n\n")
    assert asm.assemble(remarked, blobs) == asm.assemble(text, blobs)
    assert "edited" not in asm.assemble(text, blobs).meta


def test_a_damaged_blob_file_is_told(tmp_path):
    p = program(Random(3))
    asm.save(p, tmp_path / "p.s")
    blob = next(tmp_path.glob("*.blob"))
    good = blob.read_bytes()
    blob.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(KnapperError, match="have another hash"):
        asm.load(tmp_path / "p.s")
    for bad in (b"", good[:10], b"x" * 100, good[:8] + b"\xff" * 8):
        blob.write_bytes(bad)
        with pytest.raises(KnapperError, match="E534"):
            asm.load(tmp_path / "p.s")


# --- by hand ------------------------------------------------------------------------------------------------------------------


def test_a_program_written_by_hand_assembles():
    p = asm.assemble(HAND)
    kernel = p.kernels["add_one"]
    assert [str(i) for i in kernel.code][5:7] == ["@P0 BRA L9", "LDG.32 R2, [UR2+R1+0]"]
    assert (kernel.registers, kernel.block, kernel.roles) == (3, (128, 1, 1), (0,) * 10)
    assert p.target == Machine.load("volta-8tc").to_dict()
    assert p.outputs[0].shape == (4, 32)


def test_labels_follow_what_is_inserted():
    p = asm.assemble(changed("    S2R.TID_X R0\n", "    NOP\n    S2R.TID_X R0\n"))
    assert p.kernels["add_one"].code[6] == BY_NAME["BRA"](Label(10), guard=Guard(0))


def test_labels_are_printed_where_something_jumps_and_nodes_where_they_change():
    p = asm.assemble(HAND)
    kernel = replace(p.kernels["add_one"], roles=(0,) * 7 + (1,) * 3)
    launch = replace(p.launches[0], nodes=("Conv\n1", "Add"))
    text, _ = asm.disassemble(replace(p, kernels={"add_one": kernel}, launches=(launch,)))
    code = text[text.index(".role") : text.index(".launch")].splitlines()
    assert code[0] == ".role 0  // Conv?1"
    assert code[8:] == [
        ".role 1  // Add",
        "    IADD.S32 R2, R2, 0x1",
        "    STG.32 [UR4+R1+0], R2",
        "L9:",
        "    EXIT",
        "",
    ]


# --- mistakes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("IADD.S32 R2, R2, 1", "IADDD.S32 R2, R2, 1", "E531: p.s:16: there is no instruction IADDD.S32 in `IADDD.S32 R2, R2, 1` (hint: did"),
        ("IADD.S32 R2, R2, 1", "IADD R2, R2, 1", "E531: p.s:16: IADD: 0 suffixes, expected 1: IADD.<type> in"),
        ("IADD.S32 R2, R2, 1", "IADD.F32 R2, R2, 1", "E531: p.s:16: IADD.F32: expected one of .S32 .U32 .S64 .U64, got .F32 in"),
        ("IADD.S32 R2, R2, 1", "IADD.S32 R2, R2", "E530: p.s:16:5: 2 operands, expected 3: IADD.S32 d, a, b in"),
        ("LDG.32 R2, [UR2+R1+0]", "LDG.32 R2, [UR2+R1]", "E530: p.s:15:5: 3 operands, expected 4: LDG.32 d, [base+a+offset] in"),
        ("IADD.S32 R2, R2, 1", "IADD.S32 R2, P2, 1", "E501: p.s:16:18: expected RN, got 'P2' in"),
        ("IADD.S32 R2, R2, 1", "IADD.S32 R2, R2, %", "E530: p.s:16:22: expected [ or a number or a register, predicate or label in"),
        ("IADD.S32 R2, R2, 1", "IADD.S32 R2 R2, 1", "E530: p.s:16:17: expected a comma or the end of the line in"),
        ("IADD.S32 R2, R2, 1", "IADD.S32 R300, R2, 1", "E502: p.s:16: IADD: d: R300 is outside [0, 255] in"),
        ("IADD.S32 R2, R2, 1", "IADD.S32 R2, R2, R256", "E503: p.s:16: IADD: b: not a source operand"),
        ("IADD.S32 R2, R2, 1", "IADD.S32 R2, R2, 0x1ffffffff", "E502: p.s:16:22: 0x1ffffffff does not fit 32 bits in"),
        ("IADD.S32 R2, R2, 1", "IADD.S32 R2, R2, " + "9" * 5000, "E501: p.s:16:22: expected a register"),
        ("IADD.S32 R2, R2, 1", "IADD.S64 R3, R2, 1", "E505: p.s:16: IADD.S64 R3, R2, 0x1: d: R3 is not a multiple of 2 in"),
        ("IADD.S32 R2, R2, 1", "UIADD.32 UR2, UR2, R1", "E505: p.s:16: UIADD.32 UR2, UR2, R1: R1 is not uniform in"),
        ("IADD.S32 R2, R2, 1", "@P9 NOP", "E530: p.s:16:5: expected a directive or a guard or a label or an instruction in"),
        ("@P0 BRA done", "@P0 BRA don", "E532: p.s:14:13: there is no label don in this kernel in `@P0 BRA don` (hint: did you mean done?)"),
        ("done:", "done:\ndone:", "E532: p.s:19: label done is defined twice in this kernel in"),
        ("done:", "done: EXIT", "E530: p.s:18:7: expected the end of the line in"),
        (".block 128 1 1", "", "E533: p.s:7: .kernel add_one has no .block"),
        (".block 128 1 1", ".block 128 1", "E530: p.s:8:13: expected a number in `.block 128 1`"),
        (".block 128 1 1", ".bloc 128 1 1", "E530: p.s:8:1: expected a directive or a guard or a label or an instruction in"),
        (".block 128 1 1", ".block 2048 1 1", "E522: p.s: kernel add_one: a block of (2048, 1, 1) threads, expected 1 to 1024"),
        (".block 128 1 1", ".block 128 1 1\n.registers 2", "E522: p.s:16: d reaches R2, but the kernel has 2 registers in `LDG.32"),
        (".target volta-8tc", "", "E533: p.s:1: .target is missing"),
        (".target volta-8tc", ".target volta-9", "E510: p.s:2: unknown target 'volta-9'"),
        (".target volta-8tc", ".version 2.0", "E533: p.s:2: text format 2.0, this knapper reads 1.x in"),
        (".launch add_one 1 1 1", ".launch add 1 1 1", "E522: p.s: launch 0 of add: there is no kernel 'add'"),
        (".node Add", '.node "Add', 'E530: p.s:23:7: expected a name or a quoted text in `.node "Add`'),
        (".node Add", '.note "\\q"', "E530: p.s:23:7: expected a quoted text as in JSON in"),
        (".node Add", ".node Add\n    EXIT", "E533: p.s:24: expected after a .kernel and before the first .launch in"),
        (".kernel add_one", ".node Add\n.kernel add_one", "E533: p.s:7: expected after a .launch in"),
        (".kernel add_one", ".kernel add_one\n.block 1 1 1\nEXIT\n.kernel add_one", "E533: p.s:10: there is a kernel add_one already in"),
        (".arena 1024", ".rodata 99999999999999999", "E533: p.s:3: .rodata: expected up to 1099511627776 bytes in"),
        (".arena 1024", ".rodata 2000000000", "E533: p.s:1: .rodata is 2000000000 bytes, far more"),
        (".arena 1024", ".rodata 4\n.object w 0x10000000 4 #" + "0" * 64, "E534: p.s:4: there is no data #0000"),
        (".arena 1024", ".arena " + "9" * 5000, "E530: p.s:3:8: a number of more than 40 digits in"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_by_line_and_column(old, new, message):
    told = problems(changed(old, new))
    assert any(line.startswith(message) for line in told), told


def test_data_must_have_the_size_and_the_place_that_the_text_says():
    blob = asm.sha256(b"four")
    object_ = f".rodata 4\n.object w {BASE:#x} 3 #{blob}"
    assert (
        "are 4 bytes, expected 3" in problems(changed(".arena 1024", object_), {blob: b"four"})[0]
    )
    object_ = f".rodata 4\n.object w {BASE + 1:#x} 4 #{blob}"
    assert "not inside the 4 bytes" in problems(changed(".arena 1024", object_), {blob: b"four"})[0]


def test_all_mistakes_are_told_at_once():
    text = HAND.replace(" R2", " Q2").replace(".node Add", ".nod Add").replace("EXIT", "EXITS")
    told = problems(text)
    assert [line.split(":")[2] for line in told] == ["23", "15", "16", "17", "19"]


def test_an_image_with_a_word_that_is_no_instruction_has_no_text():
    p = program(Random(5), kernels=1)
    bad = replace(p.kernels["conv_0"], words=b"\xff" * 16, roles=(0,))
    with pytest.raises(IsaError, match="E503: kernel conv_0: instruction 0"):
        asm.disassemble(replace(p, kernels={"conv_0": bad}))
    jump = replace(bad, words=Kernel.encode([BY_NAME["BRA"](Label(7))]))
    with pytest.raises(IsaError, match="a jump to instruction 7 of 1"):
        asm.disassemble(replace(p, kernels={"conv_0": jump}))


@given(st.text(max_size=60), st.integers(0, 25))
def test_any_line_of_text_is_read_or_told(junk, at):
    lines = HAND.splitlines()
    lines[at:at] = [junk]
    with suppress(KnapperError):
        assert asm.assemble("\n".join(lines)).kernels


@given(st.integers(0, 2**32), st.integers(0, 2**32))
def test_a_line_with_a_few_characters_changed_is_read_as_it_prints_or_told(seed, noise):
    rng, labels = Random(seed), {f"L{n}": n for n in range(10)}
    text = list(str(instruction(rng, labels=10)))
    noise_rng = Random(noise)
    for _ in range(noise_rng.choice((1, 2))):
        text[noise_rng.randrange(len(text))] = noise_rng.choice("0179xRUPZ!@,.+-[] LF_")
    try:
        i = Lines().read("".join(text), labels)
        word = i.encode()
    except IsaError:
        return
    assert Lines().read(str(i), labels) == i == Instr.decode(word)
