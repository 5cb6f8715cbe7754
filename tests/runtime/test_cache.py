from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neurofoundry.runtime.cache import take


def key_of_file(item: Path) -> str | None:
    return item.read_text() if item.is_file() else None


def key_of_folder(item: Path) -> str | None:
    return key_of_file(item / "key")


def folder(path: Path, key: str) -> Path:
    """A folder of a few files, the key in the last."""
    (path / "inner").mkdir(parents=True)
    for name in ("inner/a", "b"):
        (path / name).write_text(f"{name} of {key}")
    (path / "key").write_text(key)
    return path


def files(item: Path) -> dict[str, str]:
    paths = [path for path in item.rglob("*") if path.is_file()]
    return {path.relative_to(item).as_posix(): path.read_text() for path in paths}


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_what_has_the_key_stays_as_it_is(tmp_path: Path) -> None:
    item = folder(tmp_path / "item", "k1")
    inode = (item / "b").stat().st_ino
    other = folder(tmp_path / "earlier", "k1")
    assert take(item, "k1", earlier=[other], key_of=key_of_folder)
    assert (item / "b").stat().st_ino == inode


def test_a_file_of_another_key_is_replaced_by_the_first_that_has_it(tmp_path: Path) -> None:
    item = tmp_path / "new/item"
    item.parent.mkdir()
    item.write_text("k0")
    (tmp_path / "a").write_text("k2")
    for name in ("b", "c"):
        (tmp_path / name).write_text("k1")
    earlier = [tmp_path / name for name in ("gone", "a", "b", "c")]
    assert take(item, "k1", earlier=earlier, key_of=key_of_file)
    assert item.samefile(tmp_path / "b")
    assert (tmp_path / "b").read_text() == "k1"


def test_a_folder_is_taken_with_all_that_is_in_it(tmp_path: Path) -> None:
    item = folder(tmp_path / "models/item", "k0")
    (item / "left over").write_text("of k0")
    source = folder(tmp_path / "earlier", "k1")
    assert take(item, "k1", earlier=[source], key_of=key_of_folder)
    assert files(item) == files(source)
    assert (item / "inner/a").samefile(source / "inner/a")
    assert names(item.parent) == ["item"]


@pytest.mark.parametrize("earlier", [[], ["gone"], ["other"]])
def test_what_nobody_has_is_gone_and_to_be_made(tmp_path: Path, earlier: list[str]) -> None:
    folder(tmp_path / "other", "k2")
    (tmp_path / "file").write_text("k0")
    item = folder(tmp_path / "item", "k0")
    paths = [tmp_path / name for name in earlier]
    assert not take(item, "k1", earlier=paths, key_of=key_of_folder)
    assert not take(tmp_path / "file", "k1", earlier=[], key_of=key_of_file)
    assert names(tmp_path) == ["other"]


def test_the_folder_above_is_made_for_what_is_taken_only(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("k1")
    item = tmp_path / "deep/er/item"
    assert not take(item, "k2", earlier=[tmp_path / "source"], key_of=key_of_file)
    assert names(tmp_path) == ["source"]
    assert take(item, "k1", earlier=[tmp_path / "source"], key_of=key_of_file)
    assert item.read_text() == "k1"


TAKE = """
import os, signal, sys
from pathlib import Path
from neurofoundry.runtime.cache import take
from tests.runtime.test_cache import key_of_folder

links = 0
def link(source, target, os_link=os.link):
    global links
    links += 1
    if links == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    os_link(source, target)

os.link = link
root = Path(sys.argv[1])
take(root / "item", "k1", earlier=[root / "earlier"], key_of=key_of_folder)
"""


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_kill_while_a_folder_is_taken_leaves_no_half_item(tmp_path: Path, at: int) -> None:
    source = folder(tmp_path / "earlier", "k1")
    root = Path(__file__).resolve().parents[2]
    killed = subprocess.run([sys.executable, "-c", TAKE, tmp_path, str(at)], cwd=root)
    assert killed.returncode == -9
    item = tmp_path / "item"
    assert not item.exists()
    assert take(item, "k1", earlier=[source], key_of=key_of_folder)
    assert files(item) == files(source)
    assert names(tmp_path) == ["earlier", "item"]
    assert os.stat(item / "b").st_nlink == 2
