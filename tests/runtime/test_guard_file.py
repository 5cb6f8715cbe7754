"""Single files that commands write: copies, compiled pipelines, what a step tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from neurofoundry.errors import UsageError
from neurofoundry.kubeflow import executor
from neurofoundry.runtime.guard import guard_file
from pipelines import compiled


def test_a_file_that_somebody_else_has_written_is_kept(tmp_path: Path) -> None:
    mine = tmp_path / "neurofoundry.yaml"
    mine.write_text("precious")
    with pytest.raises(UsageError, match="a file that this command has not written"):
        guard_file(mine, option="--copy")
    with pytest.raises(UsageError, match="a file that this command has not written"):
        executor.tell("all is well", mine, "")
    with pytest.raises(UsageError, match="a file that this command has not written"):
        compiled.write(tmp_path)
    with pytest.raises(UsageError, match="a folder, and a file is written"):
        guard_file(tmp_path)
    assert mine.read_text() == "precious"


def test_what_a_command_has_written_it_writes_again(tmp_path: Path) -> None:
    out = tmp_path / "told.txt"
    for _ in range(2):
        executor.tell("all is well", out, "")
    guard_file(tmp_path / "new")
    (tmp_path / "empty").touch()
    guard_file(tmp_path / "empty")
    (tmp_path / "made").write_text(f"{compiled.MADE}\nx")
    guard_file(tmp_path / "made", begins=compiled.MADE.encode())
