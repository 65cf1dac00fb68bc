"""Where `knapper` begins: an interrupt is one word from here on, also while the command line itself is imported."""

import sys


def main() -> None:
    """The console script."""
    try:
        from .cli import main

        main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
