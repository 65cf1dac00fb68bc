"""python -m knapper.frontends.networks NAME -o FILE.onnx: write a network to a file that `knapper compile` takes."""

from __future__ import annotations

import argparse

from . import NETWORKS, write


def main() -> None:
    """Read the command line and write the file."""
    p = argparse.ArgumentParser(prog="python -m knapper.frontends.networks", description=__doc__)
    p.add_argument("name", choices=NETWORKS)
    p.add_argument("-o", "--output", metavar="FILE.onnx", required=True)
    p.add_argument("--batch", type=int, default=1)
    p.add_argument("--size", type=int, help="side of the images, length of the sequences")
    a = p.parse_args()
    write(a.name, a.output, a.batch, a.size)


if __name__ == "__main__":
    main()
