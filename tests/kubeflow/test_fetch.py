from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from neurofoundry.errors import DataError, UsageError
from neurofoundry.kubeflow.fetch import fetch

FILES = {"dataset_description.json": b"{}", "sub-01/anat/a.nii.gz": bytes(range(256)) * 100}


def run(*words: str | Path, cwd: Path) -> None:
    subprocess.run([str(word) for word in words], cwd=cwd, check=True, capture_output=True)


def dvc(*words: str | Path, cwd: Path) -> None:
    run(sys.executable, "-m", "dvc", *words, "--quiet", cwd=cwd)


def commit(repository: Path, tag: str) -> None:
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    run(*git, "add", "-A", cwd=repository)
    run(*git, "commit", "-qm", tag, cwd=repository)
    run(*git, "tag", tag, cwd=repository)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of data in a folder that is a remote, one elsewhere, and a commit without."""
    folder = tmp_path_factory.mktemp("origin") / "study"
    run("git", "init", "-q", "-b", "main", folder, cwd=folder.parent)
    dvc("init", cwd=folder)
    dvc("remote", "add", "--default", "store", folder.parent / "remote", cwd=folder)
    for name, content in FILES.items():
        (folder / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "data" / name).write_bytes(content)
    for tag in ("v1", "v2"):
        (folder / "data/version.txt").write_text(tag)
        dvc("add", "data", cwd=folder)
        dvc("push", cwd=folder)
        commit(folder, tag)
    dvc("remote", "modify", "store", "url", "s3://bucket/study", cwd=folder)
    commit(folder, "s3")
    (folder / "data.dvc").write_text("outs: []\n")
    commit(folder, "broken")
    return folder


def version_of(repository: Path, tag: str) -> str:
    shown = ["git", "-C", str(repository), "show", f"{tag}:data.dvc"]
    said = subprocess.run(shown, check=True, capture_output=True, text=True).stdout
    return str(yaml.safe_load(said)["outs"][0]["md5"])


def bring(store: Path, repository: Path | str = "", revision: str = "", version: str = "") -> Path:
    return fetch(store, version=version, repository=str(repository), revision=revision)


def left(store: Path) -> list[str]:
    """What is in the folder of versions, but for the cache."""
    return sorted(path.name for path in (store / "data").iterdir() if path.name != ".cache")


def test_a_revision_arrives_whole_and_once(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository.parent)
    first = bring(tmp_path, repository.name, "v1")
    assert first == tmp_path / "data" / version_of(repository, "v1")
    files = {
        path.relative_to(first).as_posix(): path.read_bytes()
        for path in first.rglob("*")
        if path.is_file()
    }
    assert files == FILES | {"version.txt": b"v1"}
    second = bring(tmp_path, repository, "v2", version_of(repository, "v2"))
    assert (second / "version.txt").read_text() == "v2"
    assert (first / "version.txt").read_text() == "v1"
    # What two versions have in common was downloaded once and lies there once.
    scan = "sub-01/anat/a.nii.gz"
    assert (first / scan).stat().st_ino == (second / scan).stat().st_ino
    assert left(tmp_path) == sorted([first.name, second.name])

    inode = first.stat().st_ino
    assert bring(tmp_path, repository, "v1") == first  # reads data.dvc only
    assert bring(tmp_path, "/nowhere", "v1", first.name) == first  # asks nobody
    assert first.stat().st_ino == inode


def test_a_download_says_once_a_minute_that_it_goes_on(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logged: io.StringIO
) -> None:
    monkeypatch.setattr("neurofoundry.kubeflow.fetch.LINE_EVERY_S", 0.1)
    folder = bring(tmp_path, repository, "v1")
    lines = logged.getvalue().splitlines()
    assert any(line.endswith(f"{folder}: 3 files, 0.0 GB") for line in lines)
    assert any(line.endswith("dvc pull --force data.dvc: 0 min") for line in lines)


def test_data_that_a_remote_lacks_leaves_nothing_and_is_fetched_once_it_is_there(
    repository: Path, tmp_path: Path
) -> None:
    remote = repository.parent / "remote"
    (scan,) = (path for path in remote.rglob("*") if path.is_file() and path.stat().st_size > 9999)
    scan.rename(tmp_path / "lost")
    try:
        with pytest.raises(UsageError, match=r"`dvc pull .*No such file"):
            bring(tmp_path, repository, "v1")
        assert left(tmp_path) == []
    finally:
        (tmp_path / "lost").rename(scan)
    assert (bring(tmp_path, repository, "v1") / "version.txt").read_text() == "v1"


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"revision": "v9"}, UsageError, "unknown Git revision 'v9'"),
        ({"repository": "/nowhere"}, UsageError, "No git repository was found at /nowhere"),
        (
            {"revision": "v1", "version": "abc.dir"},
            UsageError,
            r"found data \w+\.dir, expect",
        ),
        ({"revision": "s3"}, UsageError, r"failed to connect to s3 .*Unable to locate credentials"),
        ({"revision": "broken"}, DataError, "not what `dvc add data` writes"),
        ({"repository": "", "version": "abc.dir"}, DataError, "data/abc.dir: no raw data there"),
    ],
)
def test_what_cannot_be_fetched_is_said_in_one_line(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, str],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))  # nobody's keys
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "data").mkdir()
    with pytest.raises(error, match=message) as raised:
        bring(tmp_path, **{"repository": str(repository), **asked})
    assert "\n" not in str(raised.value)
    assert left(tmp_path) == []
