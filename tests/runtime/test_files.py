from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neurofoundry.runtime.files import (
    atomic,
    hash_file,
    hash_json,
    link,
    spelled,
    to_plain,
    write_json,
)
from neurofoundry.tasks import Regression


@pytest.mark.parametrize(
    ("name", "suffixes"),
    [("scans.tsv", ".tsv"), ("sub-01_ses-1.5_warp.nii.gz", ".nii.gz"), ("LICENSE", "")],
)
def test_a_file_appears_whole_under_a_temporary_name_of_its_kind(
    tmp_path: Path, name: str, suffixes: str
) -> None:
    path = tmp_path / name
    path.write_text("old")
    with atomic(path) as temporary:
        assert temporary.name.endswith(suffixes)
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_content_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "scans.tsv"
    path.write_text("old")

    def fail() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_while_writing_leaves_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "scans.tsv"
    path.write_text("old")
    script = (
        "import os, signal, sys; from pathlib import Path;"
        "from neurofoundry.runtime.files import atomic\n"
        "with atomic(Path(sys.argv[1])) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(path)]).returncode == -9
    assert path.read_text() == "old"
    with atomic(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"value": 1, "name": "Müller"})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"value": float("nan")})
    assert path.read_text(encoding="utf-8") == '{\n  "value": 1,\n  "name": "Müller"\n}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_the_file_under_another_name_and_a_copy_where_there_are_no_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "symbolic").symlink_to("file")
    (tmp_path / "linked").write_text("older")
    link(tmp_path / "symbolic", tmp_path / "linked")
    assert (tmp_path / "linked").samefile(tmp_path / "file")
    assert not (tmp_path / "linked").is_symlink()

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuse)
    link(tmp_path / "file", tmp_path / "copied")
    assert (tmp_path / "copied").read_text() == "content"
    assert not (tmp_path / "copied").samefile(tmp_path / "file")
    assert not list(tmp_path.glob(".*"))


def test_hashes_are_of_content_and_not_of_names_or_the_order_of_keys(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("abc")
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_file(tmp_path / "a") == sha256
    assert hash_json({"a": 1, "b": [2]}) == hash_json({"b": [2], "a": 1})
    assert hash_json({"a": 1, "b": [2]}) != hash_json({"a": 1, "b": [3]})


def test_models_and_numbers_of_numpy_have_a_json_form_and_nothing_else_has() -> None:
    values = {"task": Regression(column="age"), "loss": np.float32(0.5)}
    plain = json.loads(json.dumps(values, default=to_plain))
    assert (plain["task"]["column"], plain["loss"]) == ("age", 0.5)
    with pytest.raises(TypeError, match="Path has no JSON form"):
        json.dumps(Path("a"), default=to_plain)


def test_a_path_is_found_in_whatever_form_the_disk_has_it(tmp_path: Path) -> None:
    composed, apart = "\u00e9", "e\u0301"  # é as one letter, and as two
    (tmp_path / apart).mkdir()
    (tmp_path / apart / composed).touch()
    for name in (f"{composed}/{composed}", f"{apart}/{apart}", Path(composed, apart)):
        assert spelled(tmp_path, name) == tmp_path / apart / composed
    assert spelled(tmp_path, f"{composed}/x") == tmp_path / apart / "x"
    (tmp_path / composed).touch()
    assert spelled(tmp_path, composed) == tmp_path / composed
    assert spelled(tmp_path, apart) == tmp_path / apart
