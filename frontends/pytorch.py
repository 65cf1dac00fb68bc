"""The PyTorch door: an exported program becomes an opened ONNX model, and goes in where those do.

    nn.Module + example ─ torch.export ─► ExportedProgram ─ torch.onnx, in memory ─► Model ─ frontends/onnx ─► Graph
    model.pt2 ─────────── torch.export.load ──────┘

TVM's Relax importer is the other way. It knows 317 operators, makes an LSTM of 64 steps 752 calls, does not have `nms`, and what it
gives would be walked into the Graph by a second front end. PyTorch's own exporter keeps LSTM, GRU and normalizations whole, and what
it gives is what `frontends/onnx` is tested on: one set of operators, one set of errors. It needs `onnxscript`, which the extra
`torch` installs beside `torch`; nothing else in knapper imports either.

Nodes are called after the module that they compute, `layer1.0.conv1`; with several operators in it, `encoder.self_attn/view_3`:

    pkg.torch.onnx.name_scopes ["", "layer1", "layer1.0", "layer1.0.conv1", "conv2d_2"]

Of the exporter's two optimizers one is asked, that which computes constants: it makes tensors of sequences of known length. The other
merges a normalization into the convolution before it, under the normalization's name; passes of the compiler do that, and keep names.

An export is for the sizes that it was made for: Python has computed with them. So only dimensions that it left open can be chosen,
within what it was checked for.
"""

from __future__ import annotations

import ast
import io
import logging
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from onnx import ModelProto, NodeProto

from knapper.isa.errors import FrontendError, KnapperError, UsageError
from knapper.isa.files import unreadable

from .names import unique
from .onnx.file import Model

ENDING = ".pt2"
EXTRA = "pip install 'knapper[torch]'"
SCOPES = "pkg.torch.onnx.name_scopes"
PROGRAM = re.compile(r"(?:[^/]+/)?(?:models/[^/]+\.json|serialized_exported_program\.json)")
"""Where an archive has the program: since PyTorch 2.8, and before."""
NATIVE = re.compile(r"(?:[^/]+/)?data/aotinductor/.*")
"""Compiled code in an archive, which loading it would run."""
AT_NODE = re.compile(r"translating node %(\w+) : .*?target=(?:torch\.ops\.)?([\w.]+)")


def _torch(where: str) -> Any:
    """PyTorch with what its exporter needs; FrontendError E210 without."""
    try:
        import_module("onnxscript")
        return import_module("torch")
    except ImportError as e:
        problem = f"PyTorch models need {e.name or 'torch'}, which is not installed"
        raise FrontendError("E210", problem, where=where, hint=EXTRA) from None


# --- files --------------------------------------------------------------------------------------------------------------


def exported_file(path: Path) -> Model:
    """A file of `torch.export.save`; FrontendError E201 for what is none, E210 without PyTorch."""
    _check_archive(path)
    torch = _torch(str(path))
    with _quietly(), _no_pickles():
        try:
            program = torch.export.load(path)
        except Exception as e:  # whatever a file can make of a deserializer
            problem = f"PyTorch {torch.__version__} cannot load it: {_first_line(e)}"
            hint = "export it again with this version of PyTorch"
            raise FrontendError("E201", problem, where=str(path), hint=hint) from None
    return converted(program, str(path))


def _check_archive(path: Path) -> None:
    """FrontendError E201 for what is no archive of an exported program, or not a sound one."""
    where = str(path)
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
            damaged = archive.testzip()  # PyTorch does not compare checksums
    except OSError as e:
        raise unreadable(path, e) from None
    except (BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as e:
        problem = f"this is no file of torch.export.save, or not all of one: {_first_line(e)}"
        hint = "is the download complete?"
        raise FrontendError("E201", problem, where=where, hint=hint) from None
    if damaged:
        raise FrontendError("E201", f"is damaged: {damaged} has another checksum", where=where)
    if any(map(NATIVE.fullmatch, names)):
        problem = "holds compiled code (AOTInductor), which is not run"
        raise FrontendError("E201", problem, where=where, hint="torch.export.save writes programs")
    if not any(map(PROGRAM.fullmatch, names)):
        problem = "this is an archive without an exported program (a state_dict, TorchScript?)"
        hint = "torch.export.save(torch.export.export(module, inputs), 'model.pt2')"
        raise FrontendError("E201", problem, where=where, hint=hint)


@contextmanager
def _no_pickles() -> Iterator[None]:
    """Tensors are read from a file, and no other objects: those could run code."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    others = os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
        if others is not None:
            os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = others


# --- modules ------------------------------------------------------------------------------------------------------------


def of_module(module: Any, example: Any) -> Model:
    """A module, as it computes in eval mode; its own mode is left as it is."""
    name = type(module).__name__
    torch = _torch(name)
    if example is None:
        hint = "knapper.compile(module, (x,))"
        raise UsageError("E704", "a module needs example inputs", where=name, hint=hint)
    named = dict(example) if isinstance(example, Mapping) else {}
    given = () if named else tuple(example) if isinstance(example, tuple | list) else (example,)
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with _quietly():
            program = torch.export.export(module, given, named)
    except Exception as e:  # the user's own forward runs in there
        problem = f"torch.export cannot export it: {type(e).__name__}: {_first_line(e)}"
        raise FrontendError("E211", problem, where=name) from e
    finally:
        for m in training:
            m.training = True
    return converted(program, name)


# --- programs -----------------------------------------------------------------------------------------------------------


def converted(program: Any, name: str) -> Model:
    """An exported program as ONNX."""
    torch = _torch(name)
    try:
        with _quietly():
            made = torch.onnx.export(
                program, (), dynamo=True, optimize=False, verbose=False, external_data=False
            )
            scopes = {v.name: _scopes(n) for n in made.model.graph for v in n.outputs}
            _fold(made.model)
            found = made.model_proto
    except Exception as e:  # the exporter lets through whatever its many passes raise
        raise _not_converted(e, name) from e
    _check_pure(made.exported_program, name)
    _rename(found, scopes)
    found.graph.name = Path(name).stem
    ranges = program.range_constraints.items()
    limits = {str(s): (_number(r.lower) or 0, _number(r.upper)) for s, r in ranges}
    return Model(found, name, limits=limits, fixed=True)


def _number(bound: Any) -> int | None:
    """The end of a range; None if it is an infinity of sympy's."""
    return int(text) if (text := str(bound)).isdigit() else None


def _fold(model: Any) -> None:
    """Compute constants."""
    optimizer = import_module("onnxscript.optimizer")
    optimizer.fold_constants_ir(model, onnx_shape_inference=True)
    optimizer.remove_unused_nodes(model)


def _check_pure(program: Any, name: str) -> None:
    """FrontendError E203 for a program that writes what a compiled network holds constant, or its inputs."""
    signature = program.graph_signature
    written = [*signature.buffers_to_mutate.values()]
    written += signature.user_inputs_to_mutate.values()
    if written:
        shown = ", ".join(map(repr, written[:3])) + (", …" if written[3:] else "")
        hint = "export it in eval mode: module.eval(); a cache is an input and an output"
        raise FrontendError("E203", f"the program writes {shown}", where=name, hint=hint)


def _not_converted(e: BaseException, name: str) -> KnapperError:
    """Which module's operator the exporter does not know, if that is what it says."""
    chain = [e]
    while following := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(following)
    at = next((m for c in chain if (m := AT_NODE.search(str(c)))), None)
    if at is None:
        problem = f"PyTorch's exporter to ONNX fails: {_first_line(chain[-1])}"
        return FrontendError("E211", problem, where=name)
    where = f"{name}: node {_path(chain, at[1])!r} ({at[2]})"
    if any("No ONNX function found" in str(c) for c in chain):
        hint = "compute it of others, or outside of the network"
        return FrontendError("E203", f"operator {at[2]} is not supported", where=where, hint=hint)
    problem = f"PyTorch's exporter to ONNX fails: {_first_line(chain[-1])}"
    return FrontendError("E203", problem, where=where)


def _path(chain: Sequence[BaseException], node: str) -> str:
    """The module path of the node that a frame of the exporter was at."""
    for e in chain:
        trace = e.__traceback__
        while trace is not None:
            found: Any = trace.tb_frame.f_locals.get("node")
            if getattr(found, "name", None) == node and hasattr(found, "meta"):
                stack = found.meta.get("nn_module_stack") or {}
                scopes = [s[0] for s in stack.values()]
                return _joined([*scopes, node])
            trace = trace.tb_next
    return node


def _joined(scopes: Sequence[str]) -> str:
    return "/".join(s for s in scopes[-2:] if s)


# --- names --------------------------------------------------------------------------------------------------------------


def _rename(model: ModelProto, known: Mapping[str, list[str]]) -> None:
    """Call nodes after modules, and drop the exporter's notes: they have paths of the machine that it ran on.

    `known`: value → modules around the node that made it, before folding replaced some.
    """
    nodes = enumerate(model.graph.node)
    scopes = {i: _scopes(n) or known.get(n.output[0], []) for i, n in nodes}
    operators = defaultdict[str, set[str]](set)
    parts = defaultdict[str, list[int]](list)
    for i, s in scopes.items():
        operators[_joined(s[-2:-1])].add(_joined(s[-1:]))
        parts[_joined(s)] += [i] * (model.graph.node[i].op_type != "Constant")
    for i, s in scopes.items():
        n = model.graph.node[i]
        if s:
            alone = len(s) > 1 and s[-2] and len(operators[s[-2]]) == 1
            path = s[-2] if alone else _joined(s)
            n.name = path if len(parts[_joined(s)]) == 1 else f"{path}/{n.op_type}"
    _tell_apart(model.graph.node)
    g = model.graph
    for noted in (model, g, *g.node, *g.initializer, *g.value_info, *g.input, *g.output):
        del noted.metadata_props[:]


def _tell_apart(nodes: Iterable[NodeProto]) -> None:
    """Number nodes of one name from the second on: onnxruntime loads no model that has two."""
    taken = set[str]()
    for n in nodes:
        n.name = n.name and unique(n.name, taken)


def _scopes(n: Any) -> list[str]:
    """The modules around a node, of a ModelProto or of onnx_ir, from the outermost, and its operator; [] if nothing is said."""
    notes = n.metadata_props
    pairs = {p.key: p.value for p in notes} if isinstance(n, NodeProto) else notes
    text = pairs.get(SCOPES, "[]")
    try:
        return [str(s) for s in ast.literal_eval(text)]
    except (SyntaxError, ValueError):
        return []


# --- PyTorch's manners --------------------------------------------------------------------------------------------------


@contextmanager
def _quietly() -> Iterator[None]:
    """Without PyTorch's warnings and log: what goes wrong is raised, and said once, by us."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    ignored = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(ignored), redirect_stderr(ignored):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _first_line(e: BaseException) -> str:
    return next(iter(str(e).splitlines()), "") or type(e).__name__
