"""knapper: compile a network to a modeled accelerator, run it instruction by instruction, look inside.

image = knapper.compile("model.onnx", target="volta-8tc", precision="fp16")
image.save("model.elf")
result = knapper.load("model.elf").run({"input": x})
result.outputs["output"], result.stats.to_dict()
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from knapper.frontends.api import Image, compile, load
    from knapper.isa.errors import KnapperError
    from knapper.runtime.session import Result

__version__ = "0.1.0"
__all__ = ["Image", "KnapperError", "Result", "__version__", "compile", "load"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are asked for: `import knapper` costs nothing."""
    if name in ("Image", "compile", "load"):
        from knapper.frontends import api

        return getattr(api, name)
    if name == "KnapperError":
        from knapper.isa.errors import KnapperError

        return KnapperError
    if name == "Result":
        from knapper.runtime.session import Result

        return Result
    raise AttributeError(f"module 'knapper' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, those that are not imported yet as well."""
    return __all__
