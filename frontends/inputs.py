"""What a user feeds to a network, from files or made up. The session checks that it fits."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from knapper.compiler.ir import DTYPES, Array
from knapper.isa.errors import UsageError
from knapper.isa.program import Port, Program

from . import files

MAGIC = (b"\x93NUMPY", b"PK\x03\x04")
"""How .npy and .npz files begin."""


def gather(ports: Sequence[Port], options: Iterable[str]) -> dict[str, Array]:
    """Arrays from `--input` options: `NAME=FILE.npy`, `FILE.npz`, `random:SEED`; later ones win.

    UsageError E704 for an option of which the later ones leave nothing.
    """
    found: dict[str, Array] = {}
    later: list[str] = []
    for option in reversed(list(options)):
        given = _given(ports, option)
        if given and given.keys() <= found.keys():
            hint = f"leave it out; what comes after it decides: --input {' --input '.join(later)}"
            raise UsageError("E704", f"--input {option}: nothing is left of it", hint=hint)
        found = given | found
        later.insert(0, option)
    return found


def needed(program: Program) -> list[Port]:
    """The inputs that a run must be given: states begin as zeros."""
    kept = {past for past, _ in program.state}
    return [p for p in program.inputs if p.name not in kept]


def show(p: Port) -> str:
    """A port's type, as in `f32[1,3,224,224]`."""
    return f"{p.dtype}[{','.join(map(str, p.shape))}]"


def _given(ports: Sequence[Port], option: str) -> dict[str, Array]:
    name, equals, source = option.partition("=")
    if "random" in (option, source):
        raise UsageError("E704", f"--input {option}: give a seed", hint=f"--input {option}:0")
    if option.startswith("random:"):
        return randoms(ports, _seed(option))
    if equals and source.startswith("random:"):
        return {name: randoms(ports, _seed(source)).get(name, np.zeros(0))}
    if equals:
        return {name: array(source)}
    loaded = _numpy(option)
    if not isinstance(loaded, dict):
        raise UsageError(
            "E704", f"--input {option}: which input is it for?", hint=f"--input NAME={option}"
        )
    return loaded


def array(path: str) -> Array:
    """The array of an .npy file, or of an .npz file that has one."""
    loaded = _numpy(path)
    if isinstance(loaded, dict):
        if len(loaded) != 1:
            raise UsageError("E702", f"has {len(loaded)} arrays, one is wanted", where=path)
        return next(iter(loaded.values()))
    return loaded


def arrays(path: str) -> dict[str, Array]:
    """All arrays of an .npz file by name; that of an .npy file is called after the file."""
    loaded = _numpy(path)
    return loaded if isinstance(loaded, dict) else {Path(path).stem: loaded}


def _seed(text: str) -> int:
    number = text.removeprefix("random:")
    if not number.isdigit():
        raise UsageError("E704", f"{text!r} is no seed", hint="random:0")
    return int(number)


def _numpy(path: str) -> Array | dict[str, Array]:
    """The content of an .npy file, an array, or of an .npz file, a dict; nothing is unpickled."""
    data = io.BytesIO(files.read(path))
    try:
        loaded = np.load(data, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else {n: loaded[n] for n in loaded.files}
    except (ValueError, OSError, EOFError, KeyError, BadZipFile) as e:
        raise UsageError("E702", _reason(data.getvalue(), str(e)), where=path) from None


def _reason(content: bytes, told: str) -> str:
    """Why numpy cannot read a file. It advises to unpickle whatever it does not know, which nobody should."""
    if not content.startswith(MAGIC):
        return "is no .npy or .npz file"
    if "allow_pickle" in told:
        return "holds Python objects, which are not read; save numbers"
    return f"is damaged: {told}"


def randoms(ports: Sequence[Port], seed: int) -> dict[str, Array]:
    """Reproducible values: floats are standard normal, 8-bit integers use their range, wider ones are 0 or 1.

    0 and 1 are legal as token, mask, index and count, whatever the network takes the integer for.
    """
    rng = np.random.default_rng(seed)
    return {p.name: _random(rng, p) for p in ports}


def _random(rng: np.random.Generator, p: Port) -> Array:
    dtype = np.dtype(DTYPES[p.dtype])
    if p.dtype in ("i8", "u8"):
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max + 1, p.shape).astype(dtype)
    if dtype.kind in "iub":
        return rng.integers(0, 2, p.shape).astype(dtype)
    return rng.standard_normal(p.shape, np.float32).astype(dtype)
