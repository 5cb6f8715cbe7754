from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from neurofoundry.errors import UsageError
from neurofoundry.runtime.files import write_json
from neurofoundry.runtime.output import (
    Output,
    hand_over,
    hash_name,
    names_of,
    remove_temporaries,
)
from neurofoundry.runtime.store import locate, recorded_key


def write(folder: Path, key: str) -> None:
    """Write what a stage leaves: its files, and its record last."""
    (folder / "scans.tsv").write_text(f"made under {key}")
    write_json(folder / "stage.json", {"key": key})


def publish(out: Path, key: str, *, keep: bool = False) -> list[str]:
    """Publish under ``key``; what the partial folder held when it was locked."""
    output = Output(out)
    with output.lock(key, keep=keep) as partial:
        left = names(partial)
        write(partial, key)
        output.publish(out)
    return left


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def begin(out: Path, key: str) -> Path:
    """A partial folder that a killed run of ``key`` has left."""
    with Output(out).lock(key, keep=False) as partial:
        (partial / "work").write_text(key)
    return partial


def test_what_kills_have_left_hidden_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".key", "nifti/a.nii.gz", "nifti/.a.tmp.nii.gz", "nifti/.convert-x/in/1.dcm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert names_of(tmp_path) == [".key", "nifti/a.nii.gz"]


class TestPublish:
    def test_an_output_holds_what_was_made_and_nothing_else(self, tmp_path: Path) -> None:
        out = tmp_path / "deep/cohort"
        assert publish(out, "k1") == [".key"]
        assert names(out) == ["scans.tsv", "stage.json"]
        assert names(out.parent) == ["cohort"]

    def test_the_new_takes_the_place_of_the_old_as_a_whole(self, tmp_path: Path) -> None:
        out = tmp_path / "cohort"
        publish(out, "k1")
        (out / "only in k1").touch()
        publish(out, "k2")
        assert names(out) == ["scans.tsv", "stage.json"]
        assert (out / "scans.tsv").read_text() == "made under k2"
        assert names(tmp_path) == ["cohort"]

    def test_the_folder_may_be_known_only_at_the_end(self, tmp_path: Path) -> None:
        output = Output(tmp_path / "store/a")
        with output.lock("k1", keep=False) as partial:
            write(partial, "k1")
            output.publish(tmp_path / "store/b")
        assert names(tmp_path / "store") == ["b"]
        assert names(tmp_path / "store/b") == ["scans.tsv", "stage.json"]


class TestLock:
    @pytest.mark.parametrize(("key", "keep"), [("k1", False), ("k1", True), ("k2", True)])
    def test_work_of_the_same_key_is_kept_and_other_work_for_who_asks(
        self, tmp_path: Path, key: str, keep: bool
    ) -> None:
        begin(tmp_path / "cohort", "k1")
        assert publish(tmp_path / "cohort", key, keep=keep) == [".key", "work"]

    def test_work_of_another_key_is_thrown_away(self, tmp_path: Path) -> None:
        begin(tmp_path / "cohort", "k1")
        assert publish(tmp_path / "cohort", "k2") == [".key"]

    def test_work_that_was_kept_belongs_to_the_new_key(self, tmp_path: Path) -> None:
        out = tmp_path / "cohort"
        begin(out, "k1")
        with Output(out).lock("k2", keep=True) as partial:
            pass
        with Output(out).lock("k2", keep=False):
            assert (partial / "work").exists()
        with Output(out).lock("k1", keep=False):
            assert not (partial / "work").exists()

    def test_a_finished_partial_folder_is_finished_for_its_own_key_alone(
        self, tmp_path: Path
    ) -> None:
        output = Output(tmp_path / "cohort")
        write(begin(tmp_path / "cohort", "k1"), "k1")
        with output.lock("k1", keep=False) as partial:
            assert recorded_key(partial) == "k1"
        (partial / ".key").unlink()  # killed while publishing
        with output.lock("k1", keep=False) as partial:
            assert recorded_key(partial) == "k1"
        with output.lock("k2", keep=True) as partial:
            assert names(partial) == [".key", "scans.tsv", "work"]

    def test_there_is_one_writer_and_the_lock_ends_with_it(self, tmp_path: Path) -> None:
        output = Output(tmp_path / "cohort")
        with (
            output.lock("k1", keep=False),
            pytest.raises(UsageError, match=r"cohort: another process is writing"),
            output.lock("k1", keep=True),
        ):
            pass
        with pytest.raises(ZeroDivisionError), output.lock("k1", keep=False):
            raise ZeroDivisionError
        assert publish(tmp_path / "cohort", "k1") == [".key"]


PUBLISH = """
import os, signal, sys
from pathlib import Path
from tests.runtime.test_output import publish

calls = 0
def rename(path, target, path_rename=Path.rename):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    if calls == 2 and int(sys.argv[2]) == 3:
        path_rename(path, target)
        os.kill(os.getpid(), signal.SIGKILL)
    return path_rename(path, target)

Path.rename = rename
publish(Path(sys.argv[1]), "k2")
"""


@pytest.mark.parametrize(("at", "survivor"), [(1, "k1"), (2, "k1"), (3, "k2")])
def test_a_kill_while_publishing_leaves_the_old_output_or_the_new_one(
    tmp_path: Path, at: int, survivor: str
) -> None:
    """Killed before the old is put away, before the new takes its place, or right after."""
    out = tmp_path / "cohort"
    publish(out, "k1")
    root = Path(__file__).resolve().parents[2]
    killed = subprocess.run([sys.executable, "-c", PUBLISH, out, str(at)], cwd=root)
    assert killed.returncode == -9
    output = Output(out)
    assert output.find(survivor)
    assert output.current(survivor)
    assert (out / "scans.tsv").read_text() == f"made under {survivor}"
    if survivor == "k1":  # what was made is whole, and need not be made again
        with output.lock("k2", keep=False) as partial:
            assert recorded_key(partial) == "k2"
            output.publish(out)
    else:
        publish(out, "k2")
    assert (out / "scans.tsv").read_text() == "made under k2"
    assert names(out) == ["scans.tsv", "stage.json"]
    assert names(tmp_path) == ["cohort"]


def test_an_output_is_current_under_its_own_key_alone(tmp_path: Path) -> None:
    output = Output(tmp_path / "cohort")
    assert not output.current("k1")
    publish(tmp_path / "cohort", "k1")
    assert output.current("k1")
    assert not output.current("k2")
    assert output.find("k1") == tmp_path / "cohort"
    assert not output.find("k2")


def test_an_output_elsewhere_is_handed_over_by_a_manifest(tmp_path: Path) -> None:
    folder = tmp_path / "store/ingest/abc"
    folder.mkdir(parents=True)
    record = {"stage": "ingest", "schema_version": 2, "key": "abc", "data_version": "v1"}
    write_json(folder / "stage.json", {**record, "summary": {}})
    assert hand_over(folder, folder) == folder
    manifest = tmp_path / "run/cohort"
    assert hand_over(folder, manifest) == folder
    assert json.loads(manifest.read_text()) == {"folder": str(folder), **record}
    assert locate(manifest) == folder
    assert names(manifest.parent) == ["cohort"]


@pytest.mark.parametrize("refused", [1, 2])
def test_a_rename_that_is_refused_leaves_the_old_output_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    out = tmp_path / "cohort"
    publish(out, "k1")
    rename, calls = os.rename, []

    def refusing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == refused:
            raise OSError(errno.EBUSY, "Device or resource busy")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refusing)
    with pytest.raises(UsageError, match="cohort: the new output is whole"):
        publish(out, "k2")
    assert (out / "scans.tsv").read_text() == "made under k1"
    monkeypatch.setattr(os, "rename", rename)
    publish(out, "k2")
    assert (out / "scans.tsv").read_text() == "made under k2"
    assert names(tmp_path) == ["cohort"]


def test_what_a_kill_late_in_publish_leaves_is_removed_by_the_next_run(tmp_path: Path) -> None:
    out = tmp_path / "cohort"
    publish(out, "k2")
    (tmp_path / ".cohort.replaced").mkdir()
    write(tmp_path / ".cohort.replaced", "k1")
    assert Output(out).current("k2")
    assert names(tmp_path) == ["cohort"]


def test_an_output_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    disk, out = tmp_path / "disk/cohort", tmp_path / "cohort"
    publish(disk, "k1")
    out.symlink_to(disk)
    publish(out, "k2")
    assert out.is_symlink()
    assert (disk / "scans.tsv").read_text() == "made under k2"
    assert names(disk.parent) == ["cohort"]


class TestNothingIsLost:
    """Of somebody's own: in an output that is replaced, or under the name of a folder of work."""

    @staticmethod
    def finish(out: Path, key: str) -> None:
        output = Output(out)
        output.guard()
        with output.lock(key, keep=False) as partial:
            (partial / "plots").mkdir()
            (partial / "plots/roc.png").write_text(key)
            (partial / "scans.tsv").write_text(key)
            files = " ".join(map(hash_name, names_of(partial)))
            write_json(partial / "stage.json", {"key": key, "files": files})
            output.publish(out)

    @pytest.mark.parametrize(
        "name",
        ["thesis.docx", "plots/mine.png", "new/folder/x", ".hidden", "plots/.notes", ".git/config"],
    )
    def test_a_file_in_a_finished_output(self, tmp_path: Path, name: str) -> None:
        out = tmp_path / "evaluation"
        self.finish(out, "k1")
        for left in (".DS_Store", "._scans.tsv", "Thumbs.db", "desktop.ini", ".nfs00ab"):
            (out / left).touch()  # what systems leave stops nothing
        self.finish(out, "k2")
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("precious")
        with pytest.raises(UsageError, match=rf"no run has written \({name}\)\. Move that"):
            self.finish(out, "k3")
        assert (out / name).read_text() == "precious"
        assert (out / "scans.tsv").read_text() == "k2"
        (out / name).rename(tmp_path / "elsewhere")  # the remedy
        self.finish(out, "k3")
        assert (out / "scans.tsv").read_text() == "k3"

    def test_a_link_in_a_finished_output(self, tmp_path: Path) -> None:
        self.finish(tmp_path / "cohort", "k1")
        (tmp_path / "cohort/mine").symlink_to(tmp_path)
        with pytest.raises(UsageError, match=r"no run has written \(mine\)"):
            self.finish(tmp_path / "cohort", "k2")

    def test_a_file_that_comes_while_the_work_is_done(self, tmp_path: Path) -> None:
        out = tmp_path / "evaluation"
        self.finish(out, "k1")
        output = Output(out)
        with output.lock("k2", keep=False) as partial:
            write(partial, "k2")
            (out / "notes.txt").write_text("precious")
            with pytest.raises(UsageError, match=r"notes\.txt"):
                output.publish(out)
        assert (out / "notes.txt").read_text() == "precious"
        assert recorded_key(partial) == "k2"  # the same command publishes what is whole

    @pytest.mark.parametrize("name", [".cohort.partial", ".cohort.replaced"])
    @pytest.mark.parametrize("what", ["folder", "file", "link"])
    def test_the_name_of_a_folder_of_work(self, tmp_path: Path, name: str, what: str) -> None:
        mine = tmp_path / ("mine" if what == "link" else name)
        if what == "file":
            mine.write_text("precious")
        else:
            mine.mkdir()
            (mine / "thesis.docx").write_text("precious")
        if what == "link":
            (tmp_path / name).symlink_to(mine)
        before = sorted(map(str, tmp_path.rglob("*")))
        with pytest.raises(UsageError, match=rf"{name}: work on .* needs this name"):
            self.finish(tmp_path / "cohort", "k1")
        assert sorted(map(str, tmp_path.rglob("*"))) == before
        (tmp_path / name).rename(tmp_path / "elsewhere")
        self.finish(tmp_path / "cohort", "k1")

    def test_what_a_kill_at_the_very_beginning_leaves_is_known(self, tmp_path: Path) -> None:
        (tmp_path / ".cohort.partial").mkdir()
        (tmp_path / ".cohort.partial/..tmp.key").write_text("k")
        self.finish(tmp_path / "cohort", "k1")
        assert names(tmp_path) == ["cohort"]
        assert "..tmp.key" not in names(tmp_path / "cohort")

    def test_what_a_kill_in_the_removal_of_the_old_output_leaves_is_known(
        self, tmp_path: Path
    ) -> None:
        self.finish(tmp_path / "cohort", "k1")
        self.finish(tmp_path / ".cohort.replaced", "k0")
        (tmp_path / ".cohort.replaced/scans.tsv").unlink()
        self.finish(tmp_path / "cohort", "k2")
        assert Output(tmp_path / "cohort").current("k2")
        assert names(tmp_path) == ["cohort"]
