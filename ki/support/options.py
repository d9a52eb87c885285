"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Workers = Annotated[int, typer.Option(min=0, help='Processes; 0: one per core.')]
RayAddress = Annotated[
    str,
    typer.Option(
        '--ray',
        metavar='ADDRESS',
        help='Over a Ray cluster instead of processes here: HOST:PORT, auto (the one this machine is in), or local.',
    ),
]
