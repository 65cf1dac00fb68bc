"""IDX, the format of MNIST and of what came after it: a folder of it is read as if it were an .npz file.

train-images-idx3-ubyte.gz      00 00 08 03 │ 0000ea60 │ 0000001c │ 0000001c │ pixels, a byte each
train-labels-idx1-ubyte.gz           │  │     60,000     28         28
t10k-images-idx3-ubyte.gz            │  └ axes, each 4 bytes, big-endian
t10k-labels-idx1-ubyte.gz            └ bytes without sign
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from knapper.compiler.ir import Array
from knapper.isa.errors import UsageError

from . import files

ENDINGS = ("-ubyte", "-ubyte.gz")
SPLITS = {"train": "train", "t10k": "test"}
"""Beginning of a file's name → of an array's."""
UBYTE = b"\0\0\x08"


def listed(folder: Path) -> dict[str, Path]:
    """Array's name → file: `train_images`, `test_labels`, …; nothing if the folder holds none."""
    found = sorted(f for f in folder.iterdir() if f.name.endswith(ENDINGS))
    parts = [(f.name.split("-"), f) for f in found]
    return {f"{SPLITS.get(p[0], p[0])}_{p[1]}": f for p, f in parts}


def array(path: Path) -> Array:
    """A file's bytes; UsageError E730 if it is not as long as it says, or no IDX of bytes."""
    held = files.read(str(path))
    try:
        content = gzip.decompress(held) if path.suffix == ".gz" else held
    except (OSError, EOFError, zlib.error) as e:
        raise UsageError("E730", f"is no gzip: {e}", where=str(path)) from None
    rank = content[3] if content[:3] == UBYTE and len(content) > 3 else 0
    start = 4 + 4 * rank
    shape = np.frombuffer(content[4:start], ">u4").tolist() if len(content) >= start else []
    if not rank or len(shape) != rank or len(content) - start != math.prod(shape):
        raise UsageError("E730", "is no IDX file of bytes, or not all of one", where=str(path))
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
