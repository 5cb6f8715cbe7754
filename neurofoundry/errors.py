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
