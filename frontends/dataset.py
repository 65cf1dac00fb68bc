"""Labelled samples from a file or a folder, as they lie there: `feed.py` makes of them what a network takes.

    test.npz                             images and labels, or inputs by their names: all with samples along the first axis
        test_images u8[2000,32,32,3]     names are read in words: x, data, image, input; y, label, target, class;
        test_labels u8[2000]             train, val, test. Evaluation takes test before the others, calibration train
    val/n01440764/….JPEG                 a folder a class, in order of their names, which are ImageNet's classes in their order
    val/….JPEG and a file of labels      lines `NAME CLASS`, or `CLASS` in the order of the names
    t10k-images-idx3-ubyte.gz, …         MNIST's files: as an .npz file with test_images, test_labels, train_images, train_labels

Pictures are read by Pillow (`pip install 'knapper[images]'`), when they are needed: shorter side to 8/7 of the network's, middle cut out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from knapper.compiler.ir import NAMES, Array, Type
from knapper.isa.errors import UsageError

from . import files, idx
from .inputs import arrays as read_arrays
from .tables import plural

Split = Literal["test", "train"]
MOST = 1e9
"""The greatest class."""
ENDINGS = (".bmp", ".jpeg", ".jpg", ".npy", ".png", ".ppm", ".webp")
"""Of pictures, in small letters."""
ROLES = {
    "images": {"data", "feature", "features", "image", "images", "img", "imgs", "input", "inputs", "pixels", "x"},
    "labels": {"class", "classes", "label", "labels", "target", "targets", "y"},
}  # fmt: skip
"""Words in the names of arrays."""
SPLITS = {"test": "test", "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}  # fmt: skip
ORDER: dict[Split, tuple[str, ...]] = {
    "test": ("test", "val", "", "train"),
    "train": ("train", "", "val", "test"),
}


@dataclass(frozen=True)
class Choice:
    """What the user says about data, where its names do not."""

    images: str = ""
    """The array of an .npz file."""
    labels: str = ""
    """The array of an .npz file, or a file of labels."""
    split: Split = "test"
    limit: int | None = None
    """How many samples, spread evenly over all: folders are in order of their classes."""
    classes: str = ""
    """A file: the folders' names, in the order of the network's classes."""
    offset: int = 0
    """What to add to labels: 1 for networks whose class 0 is the background."""
    resize: int | None = None
    """Shorter side of a picture before its middle is cut out; 0: to the network's size, whatever its sides."""
    labelled: bool = True
    """Whether labels are looked for."""


class Data(Protocol):
    """Samples, some of them at a time."""

    @property
    def labels(self) -> Array | None:
        """int64[n]."""

    @property
    def about(self) -> str:
        """What and how many, in words."""

    def __len__(self) -> int: ...

    def take(self, which: Sequence[int]) -> dict[str, Array]:
        """Samples by input's name, along the first axis."""


@dataclass(frozen=True)
class Arrays:
    """Samples in memory."""

    arrays: Mapping[str, Array]
    about: str
    labels: Array | None = None

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def take(self, which: Sequence[int]) -> dict[str, Array]:
        return {name: a[np.asarray(which, np.intp)] for name, a in self.arrays.items()}


@dataclass(frozen=True)
class Pictures:
    """Samples in files, each read when it is asked for."""

    name: str
    files: Sequence[Path]
    shape: tuple[int, int, int]
    """Height, width, channels."""
    resize: int | None
    about: str
    labels: Array | None = None

    def __len__(self) -> int:
        return len(self.files)

    def take(self, which: Sequence[int]) -> dict[str, Array]:
        pictures = [picture(self.files[i], self.shape, self.resize) for i in which]
        if len({p.shape for p in pictures}) > 1:
            shapes = " and ".join(sorted({f"{p.dtype}{[*p.shape]}" for p in pictures}))
            raise UsageError("E730", f"pictures of several shapes: {shapes}")
        return {self.name: np.stack(pictures)}


@dataclass(frozen=True)
class Some:
    """Some samples of others."""

    data: Data
    which: Array
    about: str
    labels: Array | None = field(default=None)

    def __len__(self) -> int:
        return len(self.which)

    def take(self, which: Sequence[int]) -> dict[str, Array]:
        return self.data.take([int(self.which[i]) for i in which])


def open_data(path: str | Path, inputs: Mapping[str, Type], choice: Choice = Choice()) -> Data:
    """The samples of a file or a folder for a network with these inputs; UsageError E730 to E733 if they are none."""
    if not inputs:
        raise UsageError("E730", "the network has no inputs")
    found = (
        _folder(Path(path), inputs, choice)
        if Path(path).is_dir()
        else _arrays(str(path), read_arrays(str(path)), inputs, choice)
    )
    if not len(found):
        raise UsageError("E730", "holds no samples", where=str(path))
    return limited(found, choice.limit)


def limited(data: Data, limit: int | None) -> Data:
    """So many samples, spread evenly over all."""
    if limit is None or limit >= len(data):
        return data
    which = np.arange(limit) * len(data) // limit
    labels = None if data.labels is None else data.labels[which]
    return Some(data, which, f"{limit:,} of {data.about}", labels)


# --- .npz ---------------------------------------------------------------------------------------------------------------


def _arrays(
    path: str, known: Mapping[str, Array], inputs: Mapping[str, Type], choice: Choice
) -> Data:
    chosen = _inputs(path, known, inputs, choice)
    if single := [a for a in chosen.values() if not known[a].ndim]:
        raise UsageError("E730", f"array {single[0]!r} is one number, no samples", where=path)
    counts = {name: len(known[a]) for name, a in chosen.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{chosen[n]!r} {c:,}" for n, c in counts.items())
        raise UsageError(
            "E730", f"has as many samples in one array as in another? {said}", where=path
        )
    arrays = {name: known[a] for name, a in chosen.items()}
    for name, x in arrays.items():
        if x.dtype not in NAMES:
            problem = f"array {chosen[name]!r} has elements of {x.dtype}"
            raise UsageError("E722", problem, where=path)
    count = len(next(iter(arrays.values())))
    label = choice.labels or _beside([*chosen.values()], known, count)
    about = ", ".join(f"{a} {Type.of(known[a])}" for a in chosen.values())
    if not label or not choice.labelled:
        return Arrays(arrays, about)
    labels = known[label] if label in known else _label_file(label, [])
    return Arrays(arrays, f"{about}, {label}", _labels(labels, count, choice, path))


def _inputs(
    path: str, known: Mapping[str, Array], inputs: Mapping[str, Type], choice: Choice
) -> dict[str, str]:
    """Which array is each input's."""
    if choice.images:
        if choice.images not in known:
            raise UsageError(
                "E730", f"has no array {choice.images!r}", where=path, hint=_has(known)
            )
        return (
            {next(iter(inputs)): choice.images}
            if len(inputs) == 1
            else _by_name(path, known, inputs)
        )
    if inputs.keys() <= known.keys():
        return {name: name for name in inputs}
    if len(inputs) > 1:
        return _by_name(path, known, inputs)
    (name,) = inputs
    for split in ORDER[choice.split]:
        found = [n for n in known if _role(n) == ("images", split)]
        if len(found) == 1:
            return {name: found[0]}
    wide = [n for n, a in known.items() if a.ndim > 1 and _role(n)[0] != "labels"]
    if len(wide) != 1:
        raise UsageError(
            "E730", "which array has the samples?", where=path, hint=f"--images NAME; {_has(known)}"
        )
    return {name: wide[0]}


def _by_name(path: str, known: Mapping[str, Array], inputs: Mapping[str, Type]) -> dict[str, str]:
    if missing := [n for n in inputs if n not in known]:
        problem = f"has no array for input {', '.join(map(repr, missing))}"
        raise UsageError("E730", problem, where=path, hint=_has(known))
    return {name: name for name in inputs}


def _beside(chosen: Sequence[str], known: Mapping[str, Array], count: int) -> str:
    """The labels of samples: an array of the same split, or the only one there is for so many."""
    fits = [
        n for n, a in known.items() if _role(n)[0] == "labels" and len(np.atleast_1d(a)) == count
    ]
    splits = {_role(n)[1] for n in chosen}
    same = [n for n in fits if _role(n)[1] in splits and n not in chosen]
    return (same or fits or [""])[0] if len(same or fits) <= 1 else ""


def _role(name: str) -> tuple[str, str]:
    """(images, labels or nothing; the split or nothing) of an array by its name.

    >>> _role("test_images"), _role("y_train"), _role("X"), _role("weights")
    (('images', 'test'), ('labels', 'train'), ('images', ''), ('', ''))
    """
    words = re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    role = next((r for r, known in ROLES.items() if known & {*words}), "")
    return role, next((SPLITS[w] for w in words if w in SPLITS), "")


def _has(known: Mapping[str, Array]) -> str:
    return f"it has {', '.join(f'{n} {a.dtype}{[*a.shape]}' for n, a in known.items()) or 'none'}"


def _labels(found: Array, count: int, choice: Choice, where: str) -> Array:
    """Labels as class numbers; UsageError E731 if they are none, or not one a sample."""
    if found.dtype.kind not in "biuf":
        raise UsageError("E731", f"labels are {found.dtype}, not numbers", where=where)
    flat = found.reshape(len(found), -1) if found.ndim and found.size else found.reshape(-1, 1)
    if len(flat) != count:
        raise UsageError("E731", f"{len(flat):,} labels for {plural(count, 'sample')}", where=where)
    one = (
        flat[:, 0] if flat.shape[1] == 1 else flat.argmax(1)
    )  # a column a class: the largest is meant
    if not (np.abs(one.astype(np.float64)) <= MOST).all() or not (one == np.rint(one)).all():
        raise UsageError("E731", "labels are not whole numbers of classes", where=where)
    labels: Array = one.astype(np.int64) + choice.offset
    return labels


# --- folders ------------------------------------------------------------------------------------------------------------


def _folder(path: Path, inputs: Mapping[str, Type], choice: Choice) -> Data:
    if known := idx.listed(path):
        return _arrays(str(path), {n: idx.array(f) for n, f in known.items()}, inputs, choice)
    if len(inputs) != 1:
        raise UsageError(
            "E730", "a folder has one input's pictures", where=str(path), hint="use an .npz file"
        )
    ((name, t),) = inputs.items()
    shape = picture_shape(t)
    flat = sorted(f for f in path.iterdir() if f.suffix.lower() in ENDINGS)
    folders = sorted(f for f in path.iterdir() if f.is_dir())
    if flat:
        labels = _label_file(choice.labels, [f.name for f in flat]) if choice.labels else None
        made = None if labels is None else _labels(labels, len(flat), choice, choice.labels)
        about = f"{plural(len(flat), 'picture')} in {path}"
        return Pictures(name, flat, shape, choice.resize, about, made)
    numbers = (
        _numbers(folders, choice)
        if choice.labelled
        else dict.fromkeys((d.name for d in folders), 0)
    )
    found = [
        (f, numbers[d.name])
        for d in folders
        for f in sorted(d.iterdir()) if f.suffix.lower() in ENDINGS
    ]  # fmt: skip
    labels = np.array([k for _, k in found], np.int64) + choice.offset
    about = f"{plural(len(found), 'picture')} of {plural(len(folders), 'class')} in {path}"
    pictures = [f for f, _ in found]
    return Pictures(
        name, pictures, shape, choice.resize, about, labels if choice.labelled else None
    )


def _numbers(folders: Sequence[Path], choice: Choice) -> dict[str, int]:
    """The class of each folder: its place in --classes, its name if all are numbers, or its place among all."""
    names = [d.name for d in folders]
    if choice.classes:
        order = files.read(choice.classes).decode(errors="replace").split()
        if missing := [n for n in names if n not in order]:
            raise UsageError("E731", f"folder {missing[0]!r} is no class of {choice.classes}")
        return {n: order.index(n) for n in names}
    if all(n.isdecimal() for n in names):
        return {n: int(n) for n in names}
    return {n: i for i, n in enumerate(names)}


def _label_file(path: str, names: Sequence[str]) -> Array:
    """The labels of an .npy file, or of text: lines `NAME CLASS` for these names, or `CLASS` in their order."""
    if path.endswith(".npy"):
        from .inputs import array

        return array(path)
    lines = [
        line.replace(",", " ").split()
        for line in files.read(path).decode(errors="replace").splitlines()
    ]
    rows = [r for r in lines if r]
    if not all(1 <= len(r) <= 2 and re.fullmatch("-?[0-9]{1,9}", r[-1]) for r in rows):
        raise UsageError("E731", "expected lines of NAME CLASS, or of CLASS", where=path)
    if all(len(r) == 1 for r in rows):
        return np.array([int(r[0]) for r in rows], np.int64)
    if not names:
        raise UsageError("E731", "expected lines of CLASS: samples have no names", where=path)
    by_name = {Path(r[0]).name: int(r[-1]) for r in rows}
    if missing := [n for n in names if n not in by_name]:
        raise UsageError("E731", f"has no label for {missing[0]!r}", where=path)
    return np.array([by_name[n] for n in names], np.int64)


def picture_shape(t: Type) -> tuple[int, int, int]:
    """Height, width and channels of the pictures that an input is for; UsageError E730 if it is for none."""
    if t.rank == 4 and t.shape[1] in (1, 3):
        return t.shape[2], t.shape[3], t.shape[1]
    if t.rank == 4 and t.shape[3] in (1, 3):
        return t.shape[1], t.shape[2], t.shape[3]
    raise UsageError("E730", f"an input {t} is not for pictures", hint="use an .npz file")


def picture(path: Path, shape: tuple[int, int, int], resize: int | None) -> Array:
    """A picture, u8[height, width, channels]: made smaller or larger, and its middle."""
    if path.suffix == ".npy":
        from .inputs import array

        return array(str(path))
    height, width, channels = shape
    try:
        with pillow().open(path) as opened:
            image = opened.convert("RGB" if channels == 3 else "L")
    except OSError as e:
        raise UsageError("E733", f"cannot be read: {e}", where=str(path)) from None
    bilinear = pillow().Resampling.BILINEAR
    if resize == 0:
        return np.asarray(image.resize((width, height), bilinear)).reshape(shape)
    shorter = resize or max(height, width) * 8 // 7
    factor = shorter / min(image.size)
    w, h = (
        max(round(factor * n), least) for n, least in zip(image.size, (width, height), strict=True)
    )
    left, top = (w - width) // 2, (h - height) // 2
    cut = image.resize((w, h), bilinear).crop((left, top, left + width, top + height))
    return np.asarray(cut).reshape(shape)


def pillow() -> Any:
    """The module PIL.Image; UsageError E733 where it is not installed."""
    try:
        return import_module("PIL.Image")
    except ImportError:
        raise UsageError(
            "E733", "pictures need Pillow", hint="pip install 'knapper[images]'"
        ) from None
