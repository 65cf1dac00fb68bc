"""`knapper dis`, `asm` and `inspect`: an image looked at."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

from shop import SHAPE, Knapper


def test_an_image_of_edited_assembly_says_so_wherever_it_is_looked_at(
    run: Knapper, tmp_path: Path
) -> None:
    run("dis", "SHOP/small.elf", "-o", "m.s")
    text = (tmp_path / "m.s").read_text()
    (tmp_path / "m.s").write_text(re.sub(r"^    EXIT$", "    NOP\n    EXIT", text, flags=re.M))
    assert run("asm", "m.s", "-o", "m.elf")[0] == 0
    assert "\n  edited " in run("inspect", "m.elf")[1]
    words = ("--input", "random:0", "--no-timing", "--stats", "stats.json")
    assert run("run", "m.elf", *words)[0] == 0
    assert json.loads((tmp_path / "stats.json").read_text())["provenance"]["edited"] == "asm"


def test_dis_then_asm_gives_the_same_file(run: Knapper, tmp_path: Path, shop: Path) -> None:
    code, _, err = run("dis", "SHOP/small.elf", "-o", "prog.s")
    (blob,) = tmp_path.glob("*.blob")
    assert (code, err.splitlines()[1].split(": ")[0]) == (0, blob.name)
    assert run("asm", "prog.s", "-o", "again.elf")[0] == 0
    assert (tmp_path / "again.elf").read_bytes() == (shop / "small.elf").read_bytes()


def test_an_image_for_a_tpu_reads_like_any_other(run: Knapper, tmp_path: Path) -> None:
    """The listing gives the same bytes, `inspect` tells of both memories, and binutils has nothing to complain of."""
    assert run("compile", "SHOP/small.onnx", *SHAPE, "-t", "tpu-v2", "-o", "tpu.elf")[0] == 0
    assert run("dis", "tpu.elf", "-o", "tpu.s")[0] == 0
    assert re.search(r"^    LSMA\S*\.ACC ", (tmp_path / "tpu.s").read_text(), re.MULTILINE)
    assert run("asm", "tpu.s", "-o", "again.elf")[0] == 0
    assert (tmp_path / "again.elf").read_bytes() == (tmp_path / "tpu.elf").read_bytes()
    code, out, _ = run("inspect", "tpu.elf")
    assert code == 0
    assert out.splitlines()[0].endswith(", for tpu-v2")
    if tool := shutil.which("readelf"):
        read = subprocess.run([tool, "-a", "tpu.elf"], capture_output=True, text=True, check=True)
        assert (read.stderr, "Warning" in read.stdout) == ("", False)


def test_dis_prints_without_a_file(run: Knapper, tmp_path: Path) -> None:
    code, out, _ = run("dis", "SHOP/small.elf")
    assert code == 0
    assert "EXIT" in out
    assert not list(tmp_path.iterdir())


def test_inspect_shows_what_there_is(run: Knapper) -> None:
    code, out, _ = run("inspect", "SHOP/small.elf")
    assert code == 0
    for word in (
        "volta-8tc",
        "provenance",
        "f32[1,3,8,8]",
        "i64[1]",
        "kernels",
        "launches",
        "arena",
        "argmax",
    ):
        assert word in out
