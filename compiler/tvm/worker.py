"""The worker process: `python -m knapper.compiler.tvm.worker`. One JSON request a line in, one JSON reply a line out.

    {"id": 3, "group": {"inputs": […], "nodes": […], "outputs": […]}}   →   {"id": 3, "kernels": […], "scratch": {…}}
                                                                    or   {"id": 3, "error": "…", "node": 0}

A group with ops of plugins names the plugins' files, which are loaded here too.

It ends when its input does. torch is hidden from tvm, which would otherwise import it: that takes seconds and gives nothing here.
Everything that tvm prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, TextIO

FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def main() -> None:
    """Serve until end of input."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.modules["torch"] = None  # type: ignore[assignment]  # the documented way to make an import fail
    from .. import plugins
    from ..ops import reducers
    from . import build, exact

    reducers.register()
    exact.register()
    _say(replies, {"ready": build.VERSION})
    for line in sys.stdin:
        _say(replies, _reply(build, plugins, json.loads(line)))
    os._exit(
        0
    )  # tvm keeps the registered reducers longer than Python lives, and would free them after it


def _say(replies: TextIO, message: dict[str, Any]) -> None:
    replies.write(json.dumps(message, separators=(",", ":")) + "\n")
    replies.flush()


def _reply(build: Any, plugins: Any, request: dict[str, Any]) -> dict[str, Any]:
    """One group's kernels, or why there are none. No error of a group ends the worker."""
    try:
        _load(plugins, request["group"].get("plugins", []))
        return {"id": request["id"], **build.kernels(request["group"])}
    except build.GroupError as e:
        return {"id": request["id"], "error": str(e), "node": e.node}
    except build.UnknownTirError as e:
        return {"id": request["id"], "unknown": str(e), "node": 0}
    except plugins.KnapperError as e:
        return {"id": request["id"], "error": str(e), "node": 0}
    except FAILURES as e:  # TVM reports what it cannot do by whatever comes to hand
        return {"id": request["id"], "error": build.brief(e), "node": 0}


def _load(plugins: Any, files: list[str]) -> None:
    """Declare the ops that the parent's plugins declare."""
    if files:
        plugins.load_installed()
    for file in files:
        plugins.load(file)


if __name__ == "__main__":
    main()
