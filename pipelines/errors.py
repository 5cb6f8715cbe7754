"""Errors that a person can mend, each with an exit code of its own."""

from __future__ import annotations


class PipelineError(Exception):
    """One readable line: what was found, what was expected, and how to mend it."""

    exit_code = 1


class UsageError(PipelineError):
    """The command line, a parameter or a file of ours cannot be used."""

    exit_code = 2


class RunFailedError(PipelineError):
    """The pipeline ran, and a step failed."""

    exit_code = 4


class RefusedError(PipelineError):
    """The cluster does not let us in."""

    exit_code = 5


class UnreachableError(PipelineError):
    """The cluster does not answer."""

    exit_code = 6


def one_line(error: Exception) -> str:
    """What an error says, without the pictures that YAML draws of it."""
    return " ".join(str(error).split())
