"""`benchsr train` on several devices: `torchrun --nproc-per-node N -m benchsr.train RECIPE ...`."""

import sys

import typer

from benchsr.base.errors import BenchsrError
from benchsr.train.cli import train

if __name__ == "__main__":
    try:
        typer.run(train)
    except BenchsrError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
