"""A user whom nobody knows, without a home, to whom the data are closed for writing; and a machine
without a place for temporary files, or without shared memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml

from tests.support import bare
from tests.support.building import ALL_PRETRAIN, bids

NOWHERE = {"TMPDIR": "/nowhere"}


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that everybody can reach, which those of pytest are not, with data of root in it."""
    bare.skip_unless_possible()
    values = yaml.safe_load((bare.ROOT / "params.yaml").read_text())
    values["ingest"]["splits"] = ALL_PRETRAIN
    values["tasks"] = {}
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "params.yaml").write_text(yaml.safe_dump(values))
        bids(folder / "data", 3)
        (folder / "own").mkdir()
        os.chown(folder / "own", bare.USER, bare.USER)
        yield folder


def test_an_unknown_user_without_a_home_or_a_place_for_temporary_files_can_work(
    folder: Path,
) -> None:
    done = bare.run(["ingest", "--data=data", "--out=own/cohort"], folder, environment=NOWHERE)
    assert done.returncode == 0, done.stderr
    assert (folder / "own/cohort/stage.json").stat().st_uid == bare.USER
    refused = bare.run(["ingest", "--data=data", "--out=cohort"], folder, environment=NOWHERE)
    assert refused.returncode == 2
    assert "Permission denied" in refused.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr + refused.stderr


@pytest.mark.parametrize(
    ("option", "why"), [("ro", "Read-only file system"), ("size=4k", "No space left on device")]
)
def test_without_shared_memory_it_is_said_what_is_missing_and_how_to_give_it(
    option: str, why: str, folder: Path
) -> None:
    words = ["phantom", "--subjects=4", "--spacing=5", "--out=own/data"]
    done = bare.run(words, folder, mounts=f"mount -t tmpfs -o {option} tmpfs /dev/shm")
    assert done.returncode == 2, done.stderr
    assert f"error: /dev/shm: {why}. Worker processes need" in done.stderr
    assert "Traceback" not in done.stderr
