"""`python -m knapper.frontends.tflite`: the operators that are served."""

from . import opened  # noqa: F401  registers them
from .convert import CONVERTERS

print(*sorted(CONVERTERS), sep="\n")
