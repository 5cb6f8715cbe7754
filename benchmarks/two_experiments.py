"""Two experiments that differ in one parameter, seen in W&B, in DVC and in `neurofoundry compare`.

    python benchmarks/two_experiments.py FOLDER

clones this repository into a new FOLDER, makes a small cohort, runs `dvc exp run` twice, and prints
three tables that must name the same parameter and agree on the numbers: what W&B has kept offline,
read back from its files; `dvc exp show --only-changed` in 120 columns, with `dvc metrics diff`; and
`neurofoundry compare`. It ends with exit code 1 where they do not. Six minutes on two cores;
nothing leaves the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[1]
PARAMETER = "pretrain.epochs"
EXPERIMENTS = {"short": 1, "longer": 3}
BASELINE = "short"
"""The experiment that is committed: `dvc exp show` and `dvc metrics diff` compare with the last
commit, which must have results."""

sys.path.insert(0, str(ROOT))


def main() -> None:
    """Make the experiments, print the tables, and compare them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder.resolve() / "neurofoundry"
    begin(folder)
    for name, value in EXPERIMENTS.items():
        parameter = f"{PARAMETER}={value}"
        call("dvc", "exp", "run", "--quiet", "--name", name, "-S", parameter, at=folder)
        if name == BASELINE:
            call("dvc", "exp", "apply", name, at=folder)
            commit(folder, "what the others are compared with")
    wandb = from_wandb(folder)
    print("\n1. W&B, the runs 'pipeline' of wandb/offline-run-*\n")
    print(wandb.to_string())
    print("\n2. dvc exp show --only-changed, 120 columns\n")
    print(shown := call("dvc", "exp", "show", "--only-changed", "--no-pager", at=folder))
    print(call("dvc", "metrics", "diff", at=folder))
    print("3. neurofoundry compare\n")
    for name in EXPERIMENTS:
        call("dvc", "get", "-q", ".", "evaluation", "--rev", name, "--out", name, at=folder)
    print(
        compared := call("neurofoundry", "compare", *EXPERIMENTS, "--out", "comparison", at=folder)
    )
    problems = list(disagreements(folder, wandb, shown, compared))
    print("\n".join(problems) or "All three name the parameter and agree on the numbers.")
    sys.exit(bool(problems))


def begin(folder: Path) -> None:
    """Clone, with parameters and a cohort that cost a minute, and commit."""
    call("git", "clone", "--quiet", str(ROOT), str(folder), at=ROOT)
    params = folder / "params.yaml"
    values = yaml.safe_load(params.read_text())
    for task in values["tasks"].values():
        task["required"] = False
    values["preprocess"] = {"grid": {"spacing": 6.0}, "registration_spacing": 6.0}
    values["pretrain"]["batch_size"] = 8
    values["pretrain"]["encoder"]["width"] = 0.125
    values["finetune"] |= {"epochs": 2, "explain": None}
    for name in ("small", "small-probe"):  # it is bound to 3 mm
        del values["finetune"]["initializations"][name]
    values["evaluate"]["promotion"]["initialization"] = "simclr"
    values["evaluate"]["bootstraps"] = 500
    params.write_text(yaml.safe_dump(values, sort_keys=False))
    for name in ("data.dvc", "dvc.lock"):
        (folder / name).unlink(missing_ok=True)
    call(
        "neurofoundry", "phantom", "--out", "data", "--subjects", "60", "--spacing", "5", at=folder
    )
    call("dvc", "add", "--quiet", "data", at=folder)
    commit(folder, "a small cohort")


def commit(folder: Path, message: str) -> None:
    """Commit everything."""
    call("git", "add", "--all", at=folder)
    call("git", "commit", "--quiet", "--message", message, at=folder)


def call(*words: str, at: Path) -> str:
    """Run a command as after `. .venv/bin/activate`, with the code there; return its output."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    who = {
        f"GIT_{role}_{what}": "neurofoundry@example.org"
        for role in ("AUTHOR", "COMMITTER")
        for what in ("NAME", "EMAIL")
    }
    settings = {"PATH": path, "COLUMNS": "120", "WANDB_MODE": "offline"}
    settings["PYTHONPATH"] = str(ROOT if at == ROOT else at)
    done = subprocess.run(
        words, cwd=at, env={**ours, **who, **settings}, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def from_wandb(folder: Path) -> pd.DataFrame:
    """Return the parameters that differ and the headline numbers, a column an experiment."""
    from tests.support import wandb_file

    runs = {}
    for file in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        records = list(wandb_file.read(file))
        (run,) = wandb_file.of_kind(records, "run")
        if run.job_type == "pipeline":
            config = dict(flat(wandb_file.config(records)))
            summary = wandb_file.summary(records)
            runs[run.run_group] = config | {
                name: value for name, value in summary.items() if re.fullmatch(r"[a-z]\w*", name)
            }
    table = pd.DataFrame(runs, dtype=object)
    own = table.index.isin(["git_commit", "pipeline_run"]) | table.index.str.startswith("_wandb")
    return table[~own & (table.astype(str).nunique(axis="columns") > 1)]


def flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield nested values by their names, joined as W&B shows them."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def disagreements(folder: Path, wandb: pd.DataFrame, shown: str, compared: str) -> Iterator[str]:
    """Yield what a table lacks, or has and another has not."""
    parameters = [name for name in wandb.index if "." in name]
    if parameters != [PARAMETER]:
        yield f"W&B: the parameters that differ are {parameters}."
    told = pd.read_csv(folder / "comparison/parameters.tsv", sep="\t")["parameter"].tolist()
    if told != [PARAMETER]:
        yield f"compare: the parameters that differ are {told}."
    header = next(line for line in shown.splitlines() if "Experiment" in line)
    if PARAMETER not in header:
        yield f"dvc exp show: no column {PARAMETER}."
    values = pd.read_csv(folder / "comparison/values.tsv", sep="\t")
    for letter, name in zip("AB", EXPERIMENTS, strict=True):
        headline = json.loads((folder / name / "headline.json").read_text())
        for task, value in headline.items():
            (number,) = {
                row.value
                for row in values.itertuples()
                if (row.evaluation, row.task, row.init) == (letter, task, "simclr")
                and (row.split, row.metric) == ("test", {"age": "mae"}.get(task, "auc"))
            }
            metric = {"age": "mae"}.get(task, "auc")
            kept = wandb[name].get(f"{task}_{metric}_test_simclr", value)
            if not (abs(number - value) < 1e-6 and abs(kept - value) < 1e-6):
                yield f"{task}, {name}: {value} in DVC, {kept} in W&B, {number} in compare."
            if f"{value:.5g}" not in shown:
                yield f"dvc exp show: no {value:.5g} ({task}, {name})."


if __name__ == "__main__":
    main()
