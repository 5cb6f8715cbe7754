"""`neurofoundry verify` on the folders of a person."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from neurofoundry.cli.main import main
from tests.support import tiny


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.write_volumes(tmp_path / "volumes", tiny.scans_table(4))
    tiny.write_encoder(tmp_path / "encoder/simclr")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def verify(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["neurofoundry", "verify", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_all_outputs_here_are_verified_with_their_volumes(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify(monkeypatch) == 0
    said = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert said == ["volumes: 6 files as written", "encoder/simclr: 1 files as written"]
    volume = folders / "volumes/sub-001_ses-1.nii"
    volume.write_bytes(volume.read_bytes()[:-1] + b"!")
    assert verify(monkeypatch, "encoder") == 0
    assert verify(monkeypatch) == 3
    told = capsys.readouterr()
    assert verify(monkeypatch, "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert found["encoder/simclr"] == []
    assert found["volumes"][0].startswith("sub-001_ses-1.nii has changed")
    assert "volumes: sub-001_ses-1.nii has changed (SHA-256 " in told.out
    assert "1 of 2 outputs are not what was written" in told.err


def test_a_folder_without_outputs_is_exit_2(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folders / "empty").mkdir()
    assert verify(monkeypatch, "empty") == 2
    assert "empty: no output of a stage" in capsys.readouterr().err
