"""The parent's side: groups in, kernels as plain lists out, from the cache or from the one worker.

    prefetch(groups) ─► what is not cached goes to the worker, which starts now and imports tvm while the caller goes on
    fetch(group)     ─► waits for that group only

Two threads serve the worker's pipes, so that neither side ever waits for the other with a full pipe.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any

from knapper.isa.errors import CompileError

from ..codegen.generator import Group
from ..ir import Node, Type
from ..plugins import LOADED, sources
from ..sources import digest
from ..structure import Canonical
from . import cache
from .tir import Json

COMMAND = (sys.executable, "-P", "-m", "knapper.compiler.tvm.worker")
EMPTY = ("what():",)
"""Last lines of a process that say nothing."""
LITERAL = 1
"""Constants of up to this many elements are written into the code; the kernels of others take an address."""


class Worker:
    """The process, its pipes, and what is on its way."""

    def __init__(self) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the worker
        path = os.pathsep.join(p for p in sys.path if p)
        self.process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        self.pending: dict[int, Future[Json]] = {}
        self.outbox: SimpleQueue[str | None] = SimpleQueue()
        self.lock = threading.Lock()
        self.asked = 0
        self.is_ready = False
        for serve in (self._write, self._read):
            threading.Thread(target=serve, daemon=True).start()

    def ask(self, group: Json) -> Future[Json]:
        """Send a group; the reply comes in the future."""
        future: Future[Json] = Future()
        with self.lock:
            self.asked += 1
            self.pending[self.asked] = future
            self.outbox.put(json.dumps({"id": self.asked, "group": group}, separators=(",", ":")))
        if self.process.poll() is not None:
            self._fail()
        return future

    def stop(self) -> None:
        """End the process."""
        self.outbox.put(None)
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.log):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what it did not read any more
                    pipe.close()

    def _write(self) -> None:
        assert self.process.stdin is not None
        while (line := self.outbox.get()) is not None:
            try:
                self.process.stdin.write(line + "\n")
                self.process.stdin.flush()
            except (OSError, ValueError):  # it has ended; the reader sees that too and says so
                return

    def _read(self) -> None:
        assert self.process.stdout is not None
        try:
            for line in self.process.stdout:
                reply = json.loads(line)
                self.is_ready = self.is_ready or "ready" in reply
                if (future := self.pending.pop(reply.get("id", 0), None)) is not None:
                    future.set_result(reply)
        except ValueError:  # closed by stop, or half a line of a process that died
            pass
        self._fail()

    def _fail(self) -> None:
        """The process has ended: nobody shall wait for it."""
        for i in list(self.pending):
            if (future := self.pending.pop(i, None)) is not None:
                future.set_exception(
                    CompileError(
                        "E442", f"the TVM worker ended: {self._last_words()}", hint=self._hint()
                    )
                )

    def _last_words(self) -> str:
        try:
            self.log.seek(0)
            lines = self.log.read().decode(errors="replace").strip().splitlines()
        except ValueError:  # closed
            return "stopped"
        told = [line for line in lines if line.strip() not in EMPTY]
        if told:
            return told[-1].strip()[:300]
        code = self.process.wait()
        return f"by signal {-code}" if code < 0 else f"with code {code}, and said nothing"

    def _hint(self) -> str:
        if not self.is_ready:
            return "is apache-tvm installed?"
        return "TVM stopped at this launch; --pipeline without fuse makes smaller ones"


TIMEOUT = 600.0
"""Seconds that a group may take, those before it included; the largest seen take a few."""

_lock = threading.RLock()
"""Held by whoever looks at or changes the three tables, and not while waiting."""
_state: dict[str, Worker] = {}
_memory: dict[str, Json] = {}
_asked: dict[str, Future[Json]] = {}


def stop() -> None:
    """End the worker, if there is one, and forget what is in memory; the disk cache stays."""
    _dismiss()
    forget()


def forget() -> None:
    """Forget what is in memory."""
    with _lock:
        _memory.clear()
        _asked.clear()


atexit.register(stop)


def is_running() -> bool:
    """Whether there is a worker."""
    return bool(_state)


def processes() -> list[int]:
    """The worker's process number, if there is one."""
    return [worker.process.pid for worker in _state.values()]


def prefetch(groups: Iterable[Group]) -> None:
    """Start work on the groups that are not cached."""
    for group in groups:
        _ask(*_request(group))


def fetch(group: Group) -> Json:
    """`{"kernels": …, "scratch": …, "constants": …}` of a group in canonical names (`structure.Canonical`).

    CompileError E440 if TVM does not lower it, E441 if its TIR has something unknown, E442 if there is no worker, or it is silent
    for `TIMEOUT` seconds. Any number of threads may ask, for the same group too.
    """
    name, request = _request(group)
    with _lock:
        pending = _ask(name, request)
        if pending is None:
            return _memory[name]
    try:
        reply = _answer(group, pending)
        _check(group, reply)
    except CompileError:
        with _lock:
            _asked.pop(name, None)
        raise
    made = {k: reply[k] for k in ("kernels", "scratch", "constants")}
    with _lock:
        _memory[name] = made
        first = _asked.pop(name, None) is not None
    if first:
        cache.put(name, made)
    return made


def _ask(name: str, request: Json) -> Future[Json] | None:
    """The reply that is on its way, asked for now if nobody has; None if it is in memory."""
    with _lock:
        if name in _memory or (name not in _asked and _cached(name)):
            return None
        if name not in _asked or (_asked[name].done() and _asked[name].exception()):
            _asked[name] = _worker().ask(request)
        return _asked[name]


def _answer(group: Group, pending: Future[Json]) -> Json:
    """Wait for a reply. A worker that has ended, or says nothing, makes place for another."""
    try:
        return pending.result(TIMEOUT)
    except TimeoutError:
        _dismiss()
        why = f"the TVM worker gave no answer in {TIMEOUT:g} s"
        raise CompileError("E442", why, where=_where(group, group.nodes)) from None
    except CompileError:
        _dismiss()
        raise


def _dismiss() -> None:
    """End the worker; the next request starts another."""
    with _lock:
        while _state:
            _state.popitem()[1].stop()


def _cached(name: str) -> bool:
    found = cache.get(name)
    if found is not None:
        _memory[name] = found
    return found is not None


def _worker() -> Worker:
    if "it" not in _state:
        _state["it"] = Worker()
    return _state["it"]


def _check(group: Group, reply: Mapping[str, Any]) -> None:
    if "error" not in reply and "unknown" not in reply:
        return
    where = _where(group, [group.nodes[reply["node"]]])
    if "unknown" in reply:
        raise CompileError(
            "E441", f"TVM made a kernel with something unknown: {reply['unknown']}", where=where
        )
    raise CompileError("E440", f"TVM does not lower this: {reply['error']}", where=where)


def _where(group: Group, nodes: Iterable[Node]) -> str:
    named = ", ".join(f"{n.op} {n.loc or '%' + n.outputs[0]}" for n in nodes)
    return f"group {group.name}: {named}"


# --- requests


def _request(group: Group) -> tuple[str, Json]:
    """The cache key and what the worker is asked."""
    g = Canonical.of(group).group
    literal = {
        v: base64.b64encode(a.tobytes()).decode()
        for v, a in g.constants.items()
        if 0 < a.size <= LITERAL
    }
    inputs = [_input(v, t, literal) for v, t in g.inputs.items()]
    outputs = [v for v, t in g.outputs.items() if t.count]  # an empty one is never written
    request = {"inputs": inputs, "nodes": [_node(n) for n in g.nodes], "outputs": outputs}
    foreign = {op for plugin in LOADED.values() for op in plugin.adds["ops"]}
    if foreign.isdisjoint(n.op for n in g.nodes):
        return cache.key(json.dumps(request)), request
    key = cache.key(json.dumps(request), digest(sources()))
    return key, request | {"plugins": [str(file) for file in LOADED]}


def _input(name: str, t: Type, literal: Mapping[str, str]) -> Json:
    data = {"data": literal[name]} if name in literal else {}
    return {"name": name, "dtype": t.dtype, "shape": t.shape, **data}


def _node(n: Node) -> Json:
    return {
        "op": n.op,
        "inputs": n.inputs,
        "outputs": n.outputs,
        "attrs": dict(sorted(n.attrs.items())),
    }
