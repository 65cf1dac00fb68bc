"""Compiled units: functions that handlers and the interpreter are made of, built when first needed and kept on disk.

A unit is named after what it is (`FADD.F32 b=reg`, `load.global.16`, `run_warp`); its machine code goes, with that of the other
units that were missing at the time, into one object file of the cache (`isa.caches`), in a folder named after everything that it depends
on: the sources of isa and runtime, LLVM, the processor and its features. A warm start loads machine code and compiles nothing.

`KNAPPER_CPU` (or `NUMBA_CPU_NAME`) names another processor; `generic` uses none but the baseline features. Results do not
depend on it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from knapper.isa import caches, core

from .emit import Require

log = logging.getLogger("knapper.runtime")
Build = Callable[[ir.Module, frozenset[str], Require], None]
"""Writes a unit into a module, given the processor's features; calls back with each unit that it needs."""
Notice = Callable[[int], None]
"""Called before a compilation, with the number of units to compile."""


@dataclass(frozen=True)
class Host:
    """The processor that code is made for."""

    cpu: str
    features: frozenset[str]

    @staticmethod
    def detect() -> Host:
        name = os.environ.get("KNAPPER_CPU") or os.environ.get("NUMBA_CPU_NAME")
        if name:
            return Host(name, frozenset())
        return Host(
            llvm.get_host_cpu_name(),
            frozenset(f for f, on in llvm.get_host_cpu_features().items() if on),
        )


ISA = (
    "core.py",
    "lanes.py",
    "modifiers.py",
    "functions.py",
    "program.py",
    "tensor.py",
    "integer_tensor.py",
    "formats/format.py",
    "formats/packing.py",
    "systolic.py",
    "sparse.py",
    "sparse24.py",
    "conv.py",
    "vector_memory.py",
    "dma.py",
    "gather.py",
)
RUNTIME = ("decode.py", "counters.py", "faults.py", "memory.py", "paths.py")
"""What decides, beside isa/base and this folder, which code a built-in instruction becomes."""


@cache
def source_hash() -> str:
    """Of everything that decides what a built-in unit does."""
    digest = hashlib.sha256(f"llvmlite {llvmlite.__version__} numpy {np.__version__}".encode())
    here, isa = Path(__file__).resolve().parent, Path(str(core.__file__)).resolve().parent
    files = [isa / n for n in ISA] + [here.parent / n for n in RUNTIME]
    for f in [*files, *sorted((isa / "base").glob("*.py")), *sorted(here.glob("*.py"))]:
        digest.update(f.name.encode() + f.read_bytes())
    return digest.hexdigest()[:16]


def cache_directory(host: Host) -> Path:
    """Where this host's machine code lives."""
    key = hashlib.sha256(
        f"{source_hash()} {host.cpu} {' '.join(sorted(host.features))}".encode()
    ).hexdigest()[:16]
    return caches.folder("machine-code") / key


SUFFIX = ".units"


@dataclass(frozen=True)
class ObjectFile:
    """Compiled units on disk: a line of JSON says which units it has, which they call, and the checksum of the code behind it."""

    path: Path
    members: tuple[str, ...]
    needs: tuple[str, ...]
    checksum: str

    @staticmethod
    def read(path: Path) -> ObjectFile:
        """What a file has; an unreadable one has no members."""
        try:
            with path.open("rb") as f:
                entry = json.loads(f.readline())
            return ObjectFile(
                path, tuple(entry["members"]), tuple(entry["needs"]), entry["checksum"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            return ObjectFile(path, (), (), "")

    def code(self) -> bytes | None:
        """The machine code, or None if it is not what was written."""
        try:
            code = self.path.read_bytes().partition(b"\n")[2]
        except OSError:
            return None
        caches.used(self.path)
        return code if hashlib.sha256(code).hexdigest() == self.checksum else None

    @staticmethod
    def write(folder: Path, members: list[str], needs: list[str], code: bytes) -> None:
        """Keep code for later; without a writable cache directory, do without."""
        name = hashlib.sha256("\n".join(members).encode()).hexdigest()[:16]
        entry = {"members": members, "needs": needs, "checksum": hashlib.sha256(code).hexdigest()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as f:
                f.write(json.dumps(entry).encode() + b"\n" + code)
            os.replace(f.name, folder / f"{name}{SUFFIX}")
        except OSError as e:
            log.warning("cannot keep compiled code in %s: %s", folder, e)


@dataclass
class Units:
    """The units of this process: what is loaded, and how to get more."""

    host: Host
    builders: Callable[[str], Build]
    """How to write the unit of a name."""
    engine: Any = None
    machine: Any = None
    symbols: dict[str, str] = field(default_factory=dict)
    """Unit → symbol, of what is loaded."""

    def __post_init__(self) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        features = ",".join(f"+{f}" for f in sorted(self.host.features))
        target = llvm.Target.from_default_triple()
        self.machine = target.create_target_machine(
            cpu=self.host.cpu if self.host.cpu != "generic" else "",
            features=features,
            opt=2,
            jit=True,
            codemodel="jitdefault",
        )
        empty = llvm.parse_assembly(f'target triple = "{llvm.get_default_triple()}"')
        self.engine = llvm.create_mcjit_compiler(empty, self.machine)

    def addresses(self, names: Iterable[str], notice: Notice | None = None) -> dict[str, int]:
        """Machine addresses of units; those not there yet are loaded or compiled first."""
        wanted = list(dict.fromkeys(names))
        self.ensure(wanted, notice)
        return {n: self.engine.get_function_address(self.symbols[n]) for n in wanted}

    def ensure(self, names: Iterable[str], notice: Notice | None = None) -> None:
        missing = [n for n in names if n not in self.symbols]
        if missing:
            self.load(missing)
            missing = [n for n in missing if n not in self.symbols]
        if missing:
            self.compile(missing, notice)

    # --- the disk

    def load(self, names: Iterable[str]) -> None:
        """Load object files that have units of these names."""
        shelf = [ObjectFile.read(f) for f in sorted(cache_directory(self.host).glob(f"*{SUFFIX}"))]
        for name in names:
            self.find(name, shelf)

    def find(
        self, name: str, shelf: list[ObjectFile], on_the_way: frozenset[str] = frozenset()
    ) -> bool:
        """Load the unit, and before it what it needs; whether that worked.

        Processes that compiled at the same time may have left files that need each other: neither can be the first.
        """
        if name in self.symbols:
            return True
        if name in on_the_way:
            return False
        for file in shelf:
            if name not in file.members or any(m in self.symbols for m in file.members):
                continue
            code = file.code()
            if code is not None and all(
                self.find(n, shelf, on_the_way | {*file.members}) for n in file.needs
            ):
                self.adopt(file.members, code)
                return True
        return False

    def adopt(self, members: Iterable[str], code: bytes) -> None:
        """Take an object file in."""
        self.engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        self.engine.finalize_object()
        self.symbols.update({m: symbol(m) for m in members})

    # --- the compiler

    def compile(self, names: list[str], notice: Notice | None = None) -> None:
        """Compile units and what they need, as one module."""
        start = time.perf_counter()
        module = ir.Module()
        module.triple = llvm.get_default_triple()
        todo, members, needs = list(names), list[str](), set[str]()
        while todo:
            name = todo.pop()
            if name in self.symbols:
                needs.add(name)
            elif name not in members:
                members.append(name)
                self.builders(name)(module, self.host.features, todo.append)
        log.info("compiling the emulator core: %s", _parts(len(members)))
        if notice is not None:
            notice(len(members))
        code = self.machine.emit_object(self.optimized(module))
        self.adopt(members, code)
        folder = cache_directory(self.host)
        ObjectFile.write(folder, sorted(members), sorted(needs), code)
        caches.tidy(folder.parent, caches.limit())
        log.info(
            "compiled %s of the emulator core in %.1f s",
            _parts(len(members)),
            time.perf_counter() - start,
        )

    def optimized(self, module: ir.Module) -> Any:
        parsed = llvm.parse_assembly(str(module))
        builder = llvm.create_pass_builder(
            self.machine, llvm.create_pipeline_tuning_options(speed_level=2)
        )
        builder.getModulePassManager().run(parsed, builder)
        return parsed


def _parts(n: int) -> str:
    return f"{n} part{'s' * (n != 1)}"


def symbol(unit: str) -> str:
    """A linker's name for a unit."""
    return "".join(c if c.isalnum() or c in "._" else f"${ord(c):x}" for c in unit)
