"""Graphs as text: `show` prints, `parse` reads, `parse(show(g)) == g`.

One node a line, its type before the `=`, attributes sorted, floats in their shortest form that
reads back, names quoted where they are not plain words. Constants of up to 16 elements are part of
the text; larger ones stand beside it, under the hash of their content:

    graph @net(%x: f32[1,3,8,8]) {
      const %w: f32[4,3,1,1] = #51c0de0fa1b2c3d4
      %0: f32[1,4,8,8] = Conv %x, %w {strides=[1,1]} loc("Conv_0")
      return %0 as %prob
    }

`save` writes net.ir and net.ir.data, an .npz file by its format, `load` reads them; `blobs` gives what the latter holds. A file
begins with where it is from, lines that the grammar takes for comments (`provenance` reads them):

    //! model 52b9d9bf7edc3716
    //! pipeline fold,dead
    //! text 7f1c0de0fa1b2c3d          of what follows: whether somebody has edited it

The grammar is `ir.lark`; the parser builds nodes as it reads, without a tree between.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from knapper.isa import files
from knapper.isa.errors import IRError, UsageError

from .encoding import Encoding
from .ir import DTYPES, NAMES, Array, Attr, Graph, Node, Type

if TYPE_CHECKING:
    from lark import Lark, Token  # the parser is imported when something is parsed

HEAD = "//! "
INLINE = 16  # constants of so many elements are part of the text
VALUE = re.compile(r'%(?:"(?:\\.|[^"\\])*"|[^,\s]+)|_')
DATA = ".data"
"""What the name of the file with the larger constants has behind that of the text."""
MARK = "knapper-constants"
"""The entry by which `save` knows its own files again."""
NAMED = re.compile(r"^  const .* = #[0-9a-f]{16}$", re.MULTILINE)
"""A constant that is not in the text."""
PLAIN = re.compile(r"[\w.$/-]+", re.ASCII)


# --- printing -----------------------------------------------------------------------------------


def show(g: Graph) -> str:
    """The graph as text. Constants of more than 16 elements appear by hash; see `blobs`."""
    inputs = ", ".join(f"{name(v)}: {t}" for v, t in g.inputs.items())
    renamed = ((name(v), "" if v == o else f" as {name(o)}") for o, v in g.outputs.items())
    outputs = ", ".join(map("".join, renamed))
    return "\n".join([
        f"graph {name(g.name, '@')}({inputs}) {{",
        *(f"  const {name(v)}: {g.constant_type(v)} = {_content(a)}" for v, a in g.constants.items()),
        *(f"  {show_node(n)}" for n in g.nodes),
        f"  return {outputs}".rstrip(),
        *(f"  state {name(past)} = {name(present)}" for past, present in g.state.items()),
        "}\n",
    ])  # fmt: skip


def headed(text: str, meta: Mapping[str, str]) -> str:
    """A text under the lines that say where it is from."""
    lines = [f"{HEAD}{key} {value}\n" for key, value in meta.items()]
    return "".join([*lines, f"{HEAD}text {_digest(text)}\n", text])


def provenance(text: str, level: str) -> dict[str, str]:
    """Where a text is from, as `headed` wrote it; with "edited": `level` if what follows was changed since.

    >>> provenance(headed("graph …", {"model": "52b9"}), "graph")
    {'model': '52b9'}
    >>> provenance(headed("graph …", {"model": "52b9"}).replace("…", "@g"), "plan")
    {'model': '52b9', 'edited': 'plan'}
    >>> provenance("graph …", "graph")
    {}
    """
    lines = text.splitlines(keepends=True)
    head = list(takewhile(lambda line: line.startswith(HEAD), lines))
    found = dict(line.removeprefix(HEAD).rstrip().partition(" ")[::2] for line in head)
    digest = found.pop("text", "")
    if digest and digest != _digest("".join(lines[len(head) :])):
        found["edited"] = level
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def show_node(n: Node) -> str:
    """One node as a line of text."""
    results = ", ".join(f"{name(v)}: {t}" for v, t in zip(n.outputs, n.types, strict=True))
    operands = "".join(f"{', ' if i else ' '}{name(v)}" for i, v in enumerate(n.inputs))
    loc = f" loc({quoted(n.loc)})" if n.loc else ""
    group = f" group({quoted(n.group)})" if n.group else ""
    place = f" place({quoted(n.place)})" if n.place else ""
    return f"{results} = {n.op}{operands}{show_attrs(n.attrs, ' ')}{loc}{group}{place}"


def show_attrs(attrs: Mapping[str, Attr], before: str = "") -> str:
    """`{a=1,b=[2,3]}` in the order of names; nothing for no attributes."""
    items = ",".join(f"{k}={show_value(v)}" for k, v in sorted(attrs.items()))
    return f"{before}{{{items}}}" if items else ""


def show_value(v: Attr) -> str:
    """An attribute's value.

    >>> show_value((1, 0.5, "same", True, float("inf")))
    '[1,0.5,"same",true,inf]'
    """
    if isinstance(v, bool):
        return "true" if v else "false"
    if isinstance(v, int | float):
        return repr(v)
    if isinstance(v, str):
        return quoted(v)
    return f"[{','.join(map(show_value, v))}]"


def name(v: str, sigil: str = "%") -> str:
    """A value's name with its sigil, quoted where it is not plain; "_" for an absent operand.

    >>> name("conv/Relu"), name("a:0"), name("")
    ('%conv/Relu', '%"a:0"', '_')
    """
    if not v and sigil == "%":
        return "_"
    return sigil + (v if PLAIN.fullmatch(v) else quoted(v))


def quoted(s: str) -> str:
    """A string in quotes with JSON's escapes; printable Unicode stays readable."""
    return json.dumps(s, ensure_ascii=not s.isprintable())


def digest(a: Array) -> str:
    """The content hash of an array: type, shape and bytes.

    >>> digest(np.zeros(3, np.float32))
    'cbd2c0c14db6e61b'
    """
    h = hashlib.sha256(f"{Type.of(a)}".encode())
    h.update(np.ascontiguousarray(a).reshape(-1).view(np.uint8).data)
    return h.hexdigest()[:16]


def blobs(g: Graph) -> dict[str, Array]:
    """The constants that the graph's text names by hash."""
    return {digest(a): a for a in g.constants.values() if _inline(a) is None}


def _content(a: Array) -> str:
    return _inline(a) or f"#{digest(a)}"


def _inline(a: Array) -> str | None:
    """The elements as text; None if there are too many, or a NaN has bits that text cannot tell."""
    if a.size > INLINE:
        return None
    items = [_element(x) for x in a.reshape(-1)]
    if "nan" in items and np.array([*map(float, items)], a.dtype).tobytes() != a.tobytes():
        return None
    return items[0] if a.ndim == 0 else f"[{','.join(items)}]"


def _element(x: Any) -> str:
    """An element in its own type's shortest form: 0.1, not 0.10000000149011612."""
    if not NAMES[x.dtype].startswith(("f", "bf")):
        return str(x).lower()
    short = str(x)
    exact = float(x) == float(x.dtype.type(float(short)))  # text is read as f64, then rounded
    text = short if exact or x != x else repr(float(x))
    return text if re.search(r"[.en]", text) else f"{text}.0"


# --- parsing ------------------------------------------------------------------------------------


def parse(text: str, where: str = "<text>", blobs: Mapping[str, Array] = {}) -> Graph:
    """Read a graph and verify it.

    Constants named by hash come from `blobs`. Errors: E101 for what cannot be read, with file,
    line, column and the line itself; E102 for a wrong graph, with the place of each wrong node.
    """
    source = _Source(text, where)
    symbol, inputs, body, outputs, states = source.read("graph")
    typed = [x for x in body if isinstance(x[1], Type)]
    constants = [(x[0], source.constant(x, blobs)) for x in typed]
    g = Graph(
        _plain(symbol),
        source.unique(inputs),
        source.unique(outputs),
        tuple(x[1] for x in body if isinstance(x[1], Node)),
        source.unique(constants),
        provenance(text, "graph"),
        {_plain(v): t.encoding for v, t, _ in typed if t.encoding},
        source.unique([(past, _plain(present)) for past, present in states]),
    )
    return g.verify({_plain(x[0]): source.place(x[0]) for x in body})


def parse_passes(text: str) -> list[tuple[str, dict[str, Attr]]]:
    """Read `fold,squant{bits=4}` as names and options; `pipeline.parse` makes the passes."""
    found: list[tuple[str, dict[str, Attr]]] = _Source(text, "pipeline").read("pipeline")
    return found


@dataclass(frozen=True)
class _Source:
    """A text and its name, for reading it and for saying where something is."""

    text: str
    where: str

    def read(self, start: str) -> Any:
        from lark.exceptions import UnexpectedInput

        try:
            return _parser(start).parse(self.text)
        except UnexpectedInput as e:
            token = getattr(e, "token", None)
            if token is not None and token.type == "$END":
                raise self.error("the text ends too early", self.text.count("\n") + 1, 1) from None
            raise self.error("cannot read this", e.line, e.column) from None

    def error(self, message: str, line: int, column: int) -> IRError:
        shown = [*self.text.split("\n"), ""][line - 1] + "\n" + " " * (column - 1) + "^"
        return IRError("E101", f"{message}\n{shown}", where=f"{self.where}:{line}:{column}")

    def place(self, token: Token) -> str:
        return f"{self.where}:{token.line}:{token.column}: "

    def unique(self, pairs: list[tuple[Token, Any]]) -> dict[str, Any]:
        """Names to things; E101 at the second definition of a name."""
        found: dict[str, Any] = {}
        for token, thing in pairs:
            if _plain(token) in found:
                raise self.at(token, f"{token} is there twice")
            found[_plain(token)] = thing
        return found

    def at(self, token: Token, message: str) -> IRError:
        assert token.line is not None
        assert token.column is not None
        return self.error(message, token.line, token.column)

    def constant(self, read: tuple[Token, Type, Any], blobs: Mapping[str, Array]) -> Array:
        v, t, content = read
        if getattr(content, "type", "") != "HASH":
            return self._inline(v, t, content)
        a = blobs.get(content[1:])
        if a is None:
            raise self.at(v, f"no data for {v}: nothing beside the text has the hash {content}")
        if Type.of(a) != t.dense:
            raise self.at(v, f"the data of {v} is {Type.of(a)}, but the text says {t}")
        return a

    def _inline(self, v: Token, t: Type, content: Any) -> Array:
        items = content if isinstance(content, tuple) else (content,)
        if len(items) != t.count:
            raise self.at(v, f"{v} is {t} and has {len(items)} elements, not {t.count}")
        try:
            return np.array(items, DTYPES[t.dtype]).reshape(t.shape)
        except (ValueError, TypeError, OverflowError):
            raise self.at(v, f"the elements of {v} are not {t.dtype}") from None


@cache
def _parser(start: str) -> Lark:
    from lark import Lark

    grammar = Path(__file__).with_name("ir.lark").read_text()
    return Lark(grammar, parser="lalr", start=start, transformer=_Actions())


class _Actions:
    """What lark calls for a rule (with its children) or a terminal; no tree is built."""

    def graph(self, read: list[Any]) -> list[Any]:
        return read

    inputs = outputs = states = body = results = graph

    def pair(self, read: list[Any]) -> tuple[Any, ...]:
        return tuple(read)

    input = const = result = attr = items = step = state = pair

    def output(self, read: list[Any]) -> tuple[Token, str]:
        value, name = read
        return name or value, _plain(value)

    def node(self, read: list[Any]) -> tuple[Token, Node]:
        results, op, operands, attrs, *marks = read
        names = tuple(_plain(v) for v, _ in results)
        types = tuple(t for _, t in results)
        loc, group, place = (mark or "" for mark in marks)
        node = Node(str(op), operands or (), names, types, attrs or {}, loc, group, place)
        return results[0][0], node

    def attrs(self, read: list[Any]) -> dict[str, Attr]:
        return dict(read)

    def pipeline(self, read: list[Any]) -> list[Any]:
        return [(str(name), options or {}) for name, options in read]

    def OPERANDS(self, token: Token) -> tuple[str, ...]:
        return tuple(map(_plain, VALUE.findall(token)))

    def KEY(self, token: Token) -> str:
        return str(token[:-1].rstrip())

    def encoded(self, read: list[Any]) -> Type:
        t: Type = read[0]
        return replace(t, encoding=Encoding(str(read[1]), read[2] or {}))

    def TYPE(self, token: Token) -> Type:
        return _type(str(token))

    def STRING(self, token: Token) -> str:
        return str(json.loads(token))

    def LOC(self, token: Token) -> str:
        return str(json.loads(token[token.index('"') : -1]))

    GROUP = PLACE = LOC

    def WORD(self, token: Token) -> str:
        return str(token)

    def INT(self, token: Token) -> int:
        return int(token)

    def FLOAT(self, token: Token) -> float:
        return float(token)

    def TRUE(self, token: Token) -> bool:
        return True

    def FALSE(self, token: Token) -> bool:
        return False

    def INTS(self, token: Token) -> tuple[int, ...]:
        return tuple(map(int, token[1:-1].split(",")))


@cache
def _type(text: str) -> Type:
    dtype, _, sizes = text[:-1].partition("[")
    return Type(dtype, tuple(map(int, sizes.split(","))) if sizes else ())


def _plain(token: str) -> str:
    """The name behind a sigil; "" for "_"."""
    return json.loads(token[1:]) if token[1:2] == '"' else token[1:]


# --- files --------------------------------------------------------------------------------------


def save(g: Graph, path: Path | str, header: str = "") -> Path | None:
    """Write a graph's text to `path`, and its larger constants beside it, in a file whose path this gives.

    Above it goes where it is from, or the `header`, whose lines must be comments. UsageError E709 as for `save_text`.
    """
    return save_text(header + show(g) if header else headed(show(g), g.meta), g, path)


def save_text(text: str, g: Graph, path: Path | str) -> Path | None:
    """Write a text that holds `g`'s, such as a plan's, and beside it the constants that it names: into a file whose path this gives.

    Each file appears whole or not at all; the text comes last, so that it never lacks its data. UsageError E709 if another file
    has the place of the data.
    """
    place = None
    if found := blobs(g):
        packed: dict[str, Any] = {MARK: np.uint8(1), **dict(map(_packed, found.items()))}
        place = beside(path)
        files.refuse_stranger(place, _ours)
        files.write(place, lambda f: np.savez(f, **packed))
    files.write(path, text.encode())
    return place


def beside(path: Path | str) -> Path:
    """Where the larger constants of a text are: `net.ir.data` for `net.ir`.

    >>> beside("levels/net.plan").as_posix()
    'levels/net.plan.data'
    """
    return Path(f"{path}{DATA}")


def _ours(file: IO[bytes]) -> bool:
    """Whether a file is one that `save_text` wrote."""
    try:
        with zipfile.ZipFile(file) as archive:
            return f"{MARK}.npy" in archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False


def load(path: Path | str) -> Graph:
    """Read what `save` wrote; UsageError E705 for a file that is not there, or is no text."""
    text = read(path)
    return parse(text, str(path), load_blobs(path, text))


def read(path: Path | str) -> str:
    """A text file's content."""
    try:
        return Path(path).read_text()
    except OSError as e:
        raise UsageError("E705", f"cannot read: {e.strerror}", where=str(path)) from None
    except UnicodeDecodeError:
        raise UsageError("E705", "cannot read: it is not text", where=str(path)) from None


def load_blobs(path: Path | str, text: str) -> dict[str, Array]:
    """The constants beside a text; UsageError E705 if it names some and their file is missing or damaged."""
    place = beside(path)
    if not place.exists() and not NAMED.search(text):
        return {}
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as f:
            return dict(_unpacked(k, f[k]) for k in f.files if k != MARK)
    except FileNotFoundError:
        problem = "the constants of the text are missing: there is no such file"
        hint = f"it belongs to {path}: whoever moves or renames one takes the other along"
        raise UsageError("E705", problem, where=str(place), hint=hint) from None
    except (
        OSError,
        ValueError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        KeyError,
    ):
        # whatever numpy says of a file that `save` did not write: no archive, a damaged one, one array, pickles
        raise UsageError(
            "E705", "cannot read the constants: the file is damaged", where=str(place)
        ) from None


def _packed(item: tuple[str, Array]) -> tuple[str, Array]:
    """numpy's file format has no bf16: it goes as u16, and the key says so."""
    key, a = item
    return (f"{key}.bf16", a.view(np.uint16)) if NAMES[a.dtype] == "bf16" else item


def _unpacked(key: str, a: Array) -> tuple[str, Array]:
    digest, _, dtype = key.partition(".")
    return digest, a.view(DTYPES[dtype]) if dtype else a
