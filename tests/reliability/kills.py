"""kill -9 at a system call that writes, for every command, and what the same command then makes.

`python -m tests.reliability.kills [COMMAND…]` kills at every call of every command, which takes
hours; `test_kill.py` at some of each kind.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from neurofoundry.cli.options import load_sections
from neurofoundry.contracts.cohort import SCANS
from neurofoundry.contracts.tables import read_table
from neurofoundry.contracts.volumes import VolumesRecord, write_record
from neurofoundry.preprocess import template
from neurofoundry.preprocess.verdict import decisions
from neurofoundry.project import PreprocessSections
from neurofoundry.runtime import stage
from tests.reliability.calls import Call, Watch
from tests.reliability.warm import ROOT, Done, Warm
from tests.support import tiny
from tests.support.building import bids

SPLITS = {"pretrain": 0.3, "train": 0.3, "val": 0.2, "test": 0.2, "mode": "stratified"}
PAIR = {"pretrain": 1, "train": 0, "val": 0, "test": 0}
EVERYTHING = "--cohort cohort --volumes volumes --encoder encoder --models models"


ONE_START = {"scratch": {"encoder": "random", "mode": "finetune"}}
ONE_MODEL = (
    f"--set finetune.initializations={json.dumps(ONE_START, separators=(',', ':'))} "
    "--set finetune.explain=null"
)
"""One model a task, without explanations: CI has not the time for more."""


@dataclass(frozen=True)
class Command:
    """A command, and what it reads of the project that `prepare` makes."""

    words: str
    reads: tuple[str, ...] = ()


COMMANDS = {
    "ingest": Command("ingest --data data --out new/cohort", ("data",)),
    "preprocess": Command(
        "preprocess --params pair.yaml --data pair --cohort cohort-of-pair --out new/volumes",
        ("pair", "cohort-of-pair"),
    ),
    "pretrain": Command(
        "pretrain --volumes volumes --method simclr --out new/encoder/simclr", ("volumes",)
    ),
    "finetune": Command(
        "finetune --volumes volumes --encoder encoder --out new/models", ("volumes", "encoder")
    ),
    "finetune one": Command(
        f"finetune --volumes volumes --encoder encoder --out new/models {ONE_MODEL}",
        ("volumes", "encoder"),
    ),
    "evaluate": Command(
        f"evaluate {EVERYTHING} --out new/evaluation", ("cohort", "volumes", "encoder", "models")
    ),
    "export": Command("export encoder/simclr --out new/exported", ("encoder",)),
    "import": Command("import exported --as other --out new/imported", ("exported",)),
    "embed": Command(
        "embed pair --weights encoder/simclr --out new/features.tsv", ("pair", "encoder")
    ),
    "predict": Command(
        "predict pair --model models/age/simclr/1.0/0 --out new/predictions.tsv",
        ("pair", "models"),
    ),
    "phantom": Command("phantom --subjects 4 --spacing 5 --two-sessions 0 --out new/data"),
    "compare": Command(
        "compare evaluation evaluation --out new/comparison",
        ("evaluation",),
    ),
    "run": Command("run --data data --out study", ("data", "study")),
    # In place of an earlier output, of other parameters.
    "ingest again": Command("ingest --data data --out cohort --set seed=1", ("data", "cohort")),
    "evaluate again": Command(
        f"evaluate {EVERYTHING} --out evaluation --set evaluate.bootstraps=120",
        ("cohort", "volumes", "encoder", "models", "evaluation"),
    ),
}


def prepare(project: Path, warm: Warm) -> None:
    """Make a project in an empty folder: data, parameters, and an output of every stage.

    All is real but the volumes, which preprocessing would take a minute to make: they are painted,
    and published under the key that real ones would have.
    """
    values = _parameters()
    (project / "params.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    del values["evaluate"]["promotion"]
    pair = {**values, "tasks": {}, "ingest": {**values["ingest"], "splits": PAIR}}
    (project / "pair.yaml").write_text(yaml.safe_dump(pair, sort_keys=False))
    bids(project / "data", 24)
    must(warm.run("phantom --out phantoms --subjects 4 --spacing 5 --two-sessions 0", project))
    for subject in sorted((project / "phantoms").glob("*/sub-*"))[:2]:
        shutil.copytree(subject, project / "pair" / subject.name)
    must(warm.run("ingest --params pair.yaml --data pair --out cohort-of-pair", project))
    must(warm.run("ingest --data data --out cohort", project))
    _paint(project)
    shutil.copytree(project / "cohort", project / "study/cohort")
    shutil.copytree(project / "volumes", project / "study/volumes")
    must(warm.run("run --data data --out study", project))
    for name in ("encoder", "models", "evaluation"):
        (project / "study" / name).rename(project / name)
    must(warm.run("export encoder/simclr --out exported", project))


def _parameters() -> dict[str, Any]:
    """Return the parameters of the repository, at the smallest size that is real."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    kept = {"min_subjects": 1, "required": False}
    values["tasks"] = {name: values["tasks"][name] | kept for name in ("sex", "age")}
    values["ingest"]["splits"] = SPLITS
    values["preprocess"].update(grid={"spacing": 6.0}, registration_spacing=6.0)
    values["pretrain"].update(epochs=1, batch_size=4)
    values["pretrain"]["encoder"]["width"] = 0.125
    values["pretrain"]["probe"] = {"every": 1, "columns": {"age": "regression"}}
    for name in ("small", "small-probe", "frozen-random"):  # small is bound to 3 mm
        del values["finetune"]["initializations"][name]
    values["finetune"].update(epochs=1, batch_size=4)
    values["finetune"]["explain"].update(initializations=["simclr"], scans=2, steps=4)
    values["evaluate"].update(bootstraps=100)
    values["evaluate"]["promotion"].update(task="sex", initialization="simclr")
    values["tracking"]["mode"] = "disabled"
    return values


def _paint(project: Path) -> None:
    """Publish painted heads as the output of preprocess."""
    values = load_sections(PreprocessSections, str(project / "params.yaml"), None)
    data, cohort = project / "data", project / "cohort"
    scans = read_table(cohort / "scans.tsv", SCANS)
    usable = scans.assign(diagnosis=scans["sex"].map({"F": "AD", "M": "CN"}), usable=True)

    def paint(work: stage.Workspace) -> None:
        tiny.write_volumes(work.dir / "painted", usable.assign(reason=None))
        record = VolumesRecord(
            grid=tiny.GRID.describe(), params=values.preprocess.model_dump(mode="json")
        )
        write_record(work.dir / "painted", record)
        (work.dir / "painted/stage.json").unlink()
        for file in (work.dir / "painted").iterdir():
            file.rename(work.dir / file.name)
        (work.dir / "painted").rmdir()

    stage.run(
        "preprocess",
        paint,
        to=stage.Destination(project / "volumes"),
        params=values.deciding()
        | decisions(values.preprocess, data)
        | template.fingerprint(template.find(values.preprocess, data)),
        inputs={"ingest": cohort},
    )


def must(done: Done) -> None:
    """Fail with what a command has said, unless it has ended well."""
    assert done.code == 0, done.said


@dataclass(frozen=True)
class Bench:
    """Where commands are run and killed: each in a copy of what it reads."""

    project: Path
    place: Path
    warm: Warm
    known: dict[str, tuple[list[Call], dict[str, bytes]]] = field(default_factory=dict)

    def run(self, name: str, watch: Watch | None = None) -> Done:
        """Run a command where it was run before."""
        return self.warm.run(COMMANDS[name].words, self.place / name, watch)

    def undisturbed(self, name: str) -> tuple[list[Call], dict[str, bytes]]:
        """Run a command that nothing kills; return its calls that change a file, and all files."""
        if name not in self.known:
            watch = Watch(self.begin(name))
            must(self.run(name, watch))
            self.known[name] = watch.calls, self.made(name)
        return self.known[name]

    def kill(self, name: str, at: int, *, everyone: bool) -> Call | None:
        """Kill a command at a call, and run it again; return the call, if it came to that."""
        watch = Watch(self.begin(name), kill_at=at, everyone=everyone)
        self.run(name, watch)
        must(self.run(name))  # at once: what the killed one has left may still be running
        return watch.killed

    def interrupt(self, name: str, at: int) -> Done:
        """Press Ctrl-C at a call of a command; return how it has ended."""
        return self.run(name, Watch(self.begin(name), kill_at=at, signal=signal.SIGINT))

    def fail(self, name: str, at: int, error: int) -> Done:
        """Let the disk fail a command from a call on; return how it has ended."""
        return self.run(name, Watch(self.begin(name), kill_at=at, error=error))

    def made(self, name: str) -> dict[str, bytes]:
        """Return all files of a command's folder; of what is dated, only that it is there."""
        folder = self.place / name
        return {
            str(file.relative_to(folder)): b"" if DATED.search(file.name) else file.read_bytes()
            for file in sorted(folder.rglob("*"))
            if not file.is_dir()
        }

    def begin(self, name: str) -> Path:
        """Make the folder in which a command is run, with what it reads."""
        folder = self.place / name
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "new").mkdir(parents=True)
        for read in ("params.yaml", "pair.yaml", *COMMANDS[name].reads):
            copy = shutil.copytree if (self.project / read).is_dir() else shutil.copy
            copy(self.project / read, folder / read)
        return folder


DATED = re.compile(r"^\..*\.run\.json$")
"""Files beside an output that say when and where it was made."""


def sample(calls: Sequence[Call], most: int) -> list[int]:
    """Choose calls, numbered from 1, so that kinds and files differ as much as may be.

    The last of each kind for a file: what comes late has most to lose.
    """
    groups: dict[tuple[str, str], int] = {}
    for number, call in enumerate(calls, 1):
        groups[call.kind, re.sub(r"[0-9]+", "#", Path(call.paths[-1]).name)] = number
    chosen: list[tuple[str, str]] = []
    while groups.keys() - set(chosen) and len(chosen) < most:
        kinds, files = Counter(kind for kind, _ in chosen), Counter(file for _, file in chosen)
        left = [group for group in groups if group not in chosen]
        chosen.append(min(left, key=lambda group: (files[group[1]], kinds[group[0]])))
    return sorted(groups[group] for group in chosen)


def sweep(bench: Bench, name: str, every: int) -> bool:
    """Kill a command at each ``every``-th call; print what came of it; return whether all held."""
    started = time.monotonic()
    calls, whole = bench.undisturbed(name)
    numbers = range(1, len(calls) + 1, every)
    killed: Counter[str] = Counter()
    failed = []
    for number in numbers:
        try:
            call = bench.kill(name, number, everyone=number % 2 == 0)
            killed[call.kind if call else "not reached"] += 1
            made = bench.made(name)
            differ = sorted(k for k in whole.keys() | made.keys() if whole.get(k) != made.get(k))
        except AssertionError as error:
            differ = [str(error)[-300:]]
        if differ:
            failed.append(number)
            print(f"{name}: call {number}, {calls[number - 1]}: {differ}", flush=True)
    kinds = ", ".join(f"{count} {kind}" for kind, count in killed.most_common())
    print(
        f"{name}: {len(calls)} calls, {sum(killed.values())} kills ({kinds}), {len(failed)} wrong, "
        f"{time.monotonic() - started:.0f} s",
        flush=True,
    )
    return not failed


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=", ".join(COMMANDS))
    parser.add_argument("--every", type=int, default=1, help="only each so-manieth call")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Warm() as warm:
        project, place = Path(folder) / "project", Path(folder) / "place"
        project.mkdir()
        prepare(project, warm)
        bench = Bench(project, place, warm)
        return int(not all([sweep(bench, n, given.every) for n in given.commands or COMMANDS]))


if __name__ == "__main__":
    sys.exit(main())
