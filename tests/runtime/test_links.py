from __future__ import annotations

import os
from pathlib import Path

import pytest

from neurofoundry.errors import DataError
from neurofoundry.runtime.files import atomic
from neurofoundry.runtime.links import check_links


@pytest.mark.parametrize("name", ["model.safetensors", "a/b/predictions.tsv"])
@pytest.mark.parametrize("target", ["/etc/passwd", "/dev/zero", "nowhere", "model.link"])
def test_no_link_leads_out_of_a_folder(tmp_path: Path, name: str, target: str) -> None:
    link = tmp_path / "models" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    if target == "model.link":
        (link.parent / target).symlink_to(link)  # in a circle
    with pytest.raises(DataError, match=r"(a link out of its folder|a link to nothing)"):
        check_links(tmp_path / "models")


def test_a_pipe_is_refused_before_it_is_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "scans.tsv")
    with pytest.raises(DataError, match="a pipe or device, expected a file"):
        check_links(tmp_path)


def test_links_within_a_folder_and_into_a_cache_of_contents_are_followed(tmp_path: Path) -> None:
    cached = tmp_path / "cache/files/md5/ab" / ("c" * 30)
    cached.parent.mkdir(parents=True)
    cached.write_text("x")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/plan.json").symlink_to(cached)
    (tmp_path / "models/again").symlink_to("plan.json")
    check_links(tmp_path / "models")


def test_a_file_is_never_written_through_a_link(tmp_path: Path) -> None:
    """Neither the file itself nor the temporary one beside it, be it a soft or a hard link."""
    mine = tmp_path / "mine"
    mine.write_text("precious")
    (tmp_path / "scans.tsv").hardlink_to(mine)
    (tmp_path / ".scans.tmp.tsv").symlink_to(mine)
    with atomic(tmp_path / "scans.tsv") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "scans.tsv").read_text() == "new"
    assert mine.read_text() == "precious"
