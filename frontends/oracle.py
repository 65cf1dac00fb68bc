"""onnxruntime, the reference that users know. Loaded only where something is compared with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from knapper.compiler.ir import Array
from knapper.isa.errors import UsageError

NUMPY = {
    "tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16,
    "tensor(int8)": np.int8, "tensor(int16)": np.int16, "tensor(int32)": np.int32, "tensor(int64)": np.int64,
    "tensor(uint8)": np.uint8, "tensor(uint16)": np.uint16, "tensor(uint32)": np.uint32, "tensor(uint64)": np.uint64,
    "tensor(bool)": np.bool_,
}  # fmt: skip

BESIDE = "session.model_external_initializers_file_folder_path"


class Oracle:
    """A model in onnxruntime, on the CPU. `folder`: where the external data of a model is that is given as bytes."""

    def __init__(self, model: str | Path | bytes, threads: int = 1, folder: str = "") -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4  # what goes wrong is raised, and said once, by us
        if folder:
            options.add_session_config_entry(BESIDE, folder)
        from .doors import source

        try:
            self.session = ort.InferenceSession(
                source(model), options, providers=["CPUExecutionProvider"]
            )
        except _errors() as e:
            raise UsageError(
                "E706", f"onnxruntime cannot load the model: {_first_line(e)}"
            ) from None

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Array]:
        """Outputs by name. Values are cast to the input's element type, as `--const` means them."""
        feed = {
            i.name: np.asarray(inputs[i.name], NUMPY.get(i.type)) for i in self.session.get_inputs()
        }
        names = [o.name for o in self.session.get_outputs()]
        try:
            return dict(zip(names, self.session.run(names, feed), strict=True))
        except _errors() as e:
            raise UsageError(
                "E706", f"onnxruntime cannot run the model: {_first_line(e)}"
            ) from None


def _errors() -> tuple[type[Exception], ...]:
    """What onnxruntime's C++ core throws: its status codes have a class each, without a common base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (c for c in vars(state).values() if isinstance(c, type) and issubclass(c, Exception))
    return (RuntimeError, *own)


def _first_line(e: Exception) -> str:
    return str(e).splitlines()[0]
