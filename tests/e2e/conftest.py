from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

Run = Callable[..., subprocess.CompletedProcess[str]]


def environment() -> dict[str, str]:
    """As after `. .venv/bin/activate`, with nothing of the person's own accounts."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ours = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return {**ours, "PATH": path, "COLUMNS": "200", "WANDB_BASE_URL": "http://127.0.0.1:9"}


@pytest.fixture(scope="session")
def command() -> Run:
    """Run a command as a user does; a failure shows all that it printed."""

    def run(
        *words: str | Path, cwd: Path, code: int = 0, **env: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(word) for word in words],
            cwd=cwd,
            env={**environment(), **env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


def shrink(params: Path) -> None:
    """The parameters of the repository, at the smallest size that is still the real thing."""
    values = yaml.safe_load(params.read_text())
    for task in values["tasks"].values():
        task.update(min_subjects=1, required=False)
    values["preprocess"].update(grid={"spacing": 6.0}, registration_spacing=6.0)
    values["pretrain"].update(epochs=2, batch_size=8)
    values["pretrain"]["encoder"]["width"] = 0.125
    values["finetune"].update(epochs=2, batch_size=8)
    for name in ("small", "small-probe"):  # it is bound to 3 mm
        del values["finetune"]["initializations"][name]
    values["finetune"]["explain"].update(initializations=["simclr"], scans=2, steps=4)
    values["evaluate"]["promotion"]["initialization"] = "simclr"
    values["evaluate"].update(bootstraps=200)
    params.write_text(yaml.safe_dump(values, sort_keys=False))


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, command: Run) -> Path:
    """A clone of this checkout with a small cohort in data/, and `dvc repro` run once.

    Every process of the tests has a copy of the one that the first has made.
    """
    folder = tmp_path_factory.mktemp("clone") / "neurofoundry"
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (shared / "project.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "project").exists():
            make_project(shared / "project.partial", command)
            (shared / "project.partial").rename(shared / "project")
    shutil.copytree(shared / "project", folder, symlinks=True)
    return folder


def make_project(folder: Path, command: Run) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    for name in filter(None, listed):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    shrink(folder / "params.yaml")
    for name in ("data.dvc", "dvc.lock"):
        (folder / name).unlink(missing_ok=True)
    command("neurofoundry", "phantom", "--out", "data", "--subjects", "60", cwd=folder)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.org"]
    command(*git, "init", "-q", "-b", "main", cwd=folder)
    command("dvc", "add", "-q", "data", cwd=folder)
    command("dvc", "repro", cwd=folder)
    command(*git, "add", "-A", cwd=folder)
    command(*git, "commit", "-qm", "the cohort and its results", cwd=folder)
