"""What a thread keeps from launch to launch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from numpy.typing import NDArray

from ..memory import aligned
from .layout import STATE


class Scratch:
    """One thread's buffers, grown as kernels need them."""

    def __init__(self) -> None:
        self.state = aligned(1, STATE)[0:1]
        self.buffers: dict[str, NDArray[Any]] = {}

    def buffer(self, name: str, size: int) -> int:
        """The address of a buffer of at least `size` bytes, zeros when new."""
        if name not in self.buffers or len(self.buffers[name]) < size:
            self.buffers[name] = aligned(size + 1024)
        return int(self.buffers[name].ctypes.data)

    def drop(self, names: Iterable[str]) -> None:
        """Forget buffers: they are zeros again."""
        for name in names:
            self.buffers.pop(name, None)
