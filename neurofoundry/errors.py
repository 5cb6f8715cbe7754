"""The two errors a person can mend; everything else is a defect of ours (exit code 1)."""

from __future__ import annotations


class NeurofoundryError(Exception):
    """One readable message: what was found, what was expected, and how to mend it."""

    exit_code = 1


class UsageError(NeurofoundryError):
    """The parameters or the command line cannot be used."""

    exit_code = 2


class DataError(NeurofoundryError):
    """The input data cannot be used."""

    exit_code = 3


def complain(message: str) -> None:
    """Say on stderr what a person has to mend."""
    from rich.console import Console
    from rich.markup import escape

    text = f"[bold red]error:[/] {escape(message)}"
    Console(stderr=True).print(text, highlight=False, soft_wrap=True)
