"""Does pretraining pay? Every arm on one cohort of known truth, with the power to tell.

    python benchmarks/learning.py FOLDER [--study third] [--seeds 3]

Which comparisons are claimed, in which order and with which correction was written down before each
of the four studies, in docs/decisions/: claims-of-the-learning-study.md before the first, which
looked at five ways to pretrain, claims-of-the-second-study.md before the second, which asks whether
what looked best holds for other persons and other pretrainings, claims-of-the-third-study.md before
the third, which pretrains four times as long and tests three times as many, and
claims-of-the-fourth-study.md before the fourth, in which every network is fine-tuned at the same
rates. Every step is cached in FOLDER: the same command continues, two of them share the work, and
the last step writes FOLDER/report.json and FOLDER/report.md. --study toy is the fourth in two
minutes, and says nothing.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from learning_study.claims import Study, report
from learning_study.cohort import Counts, paint

from neurofoundry.contracts.encoder import read_plan
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.finetune.run import finetune
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.run import pretrain
from neurofoundry.runtime.files import write_json, write_text
from neurofoundry.runtime.stage import Workspace
from neurofoundry.tasks import parse_task

TASKS = {
    name: parse_task(values)
    for name, values in {
        "alzheimers": {"kind": "classification", "column": "diagnosis", "classes": ["CN", "AD"]},
        "stroke": {"kind": "classification", "column": "stroke", "classes": ["no", "yes"]},
        "sex": {"kind": "classification", "column": "sex", "classes": ["F", "M"]},
        "age": {"kind": "regression", "column": "age"},
    }.items()
}

VIEWS = {
    **{"crop": [0.85, 1.0], "rotation": 10.0, "gamma": 2.0, "remap": 0.0, "bias": 0.15},
    **{"blur": 0.7, "coarse": 1.0, "noise": 0.2},
}
"""Those of the sample's params.yaml."""

MILLIMETRES = {**VIEWS, "zoom": False}

ARMS: dict[str, dict[str, Any]] = {
    "mae": {"methods": ["mae"], "augment": MILLIMETRES},
    "simclr-zoom": {"methods": ["simclr"], "augment": VIEWS},
    "simclr-mm": {"methods": ["simclr"], "augment": MILLIMETRES},
    "simclr-zoom-anatomy": {
        **{"methods": ["simclr"], "augment": VIEWS},
        "simclr": {"anatomy": 1.0},
    },
    "simclr-mm-anatomy": {
        **{"methods": ["simclr"], "augment": MILLIMETRES},
        "simclr": {"anatomy": 1.0},
    },
}
"""What encoders are pretrained with, beside what all have in common."""

FROM_SCRATCH = {"scratch": "random", "sfcn": "sfcn"}
"""Networks that are not pretrained, by the encoder that they start from."""


@dataclass(frozen=True)
class Design:
    """What a study compares, on whom."""

    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    """Of pretraining; that of fine-tuning is the same."""
    phantoms: PhantomParams
    counts: Counts
    fractions: tuple[float, ...]
    """Of the labels: few, some, all."""
    pretraining: Mapping[str, Any]
    tuning: Mapping[str, Any]
    pretrained: Mapping[str, Any] = field(default_factory=dict)
    """How the fine-tuning of pretrained encoders differs."""
    simclr: str | None = None
    """The arm that speaks for SimCLR; None: the one that validation chooses."""
    frozen_claimed: bool = False
    """Whether it is claimed that frozen features tell sex better than scratch, with few labels."""


ENCODER = {"stem_stride": 2, "width": 0.25}

PHANTOMS = PhantomParams(
    subjects=4000,
    seed=2311,
    two_session_fraction=0,
    travelling_fraction=0.3,
    ad_effect=0.7,
    stroke_ml=6.0,
)
"""Effects that leave something to gain: with 200 labels a linear model of the true volumes reaches
an AUC of .85 for Alzheimer's (.90 was aimed at), and simple morphometry .80."""

FIRST = Design(
    arms=tuple(ARMS),
    seeds=(1, 2, 3),
    phantoms=PHANTOMS,
    counts=Counts(pretrain=1000, train=200, val=100, test=320, ood=260),
    fractions=(0.05, 0.25, 1.0),
    pretraining={"encoder": ENCODER, "epochs": 8, "batch_size": 32, "learning_rate": 1e-3},
    tuning={"epochs": 5, "batch_size": 16, "learning_rate": [1e-3, 4e-3], "augmentation": "none"},
)

SECOND = replace(
    FIRST,
    arms=("mae", "simclr-mm"),
    seeds=(21, 22, 23),
    # No network had learned to see strokes of 6 ml; this is the phantom's own size.
    phantoms=PHANTOMS.model_copy(update={"subjects": 6000, "seed": 90417, "stroke_ml": 20.0}),
    counts=Counts(pretrain=1000, train=200, val=100, test=480, ood=390),
    tuning={**FIRST.tuning, "augmentation": "light"},
)

THIRD = replace(
    SECOND,
    arms=("mae", "simclr-mm", "simclr-mm-anatomy"),
    seeds=(31, 32, 33),
    phantoms=SECOND.phantoms.model_copy(update={"subjects": 15_000, "seed": 61729}),
    counts=Counts(pretrain=1000, train=200, val=200, test=1440, ood=1170),
    pretraining={**FIRST.pretraining, "epochs": 32},
    # As many tries as scratch has, at rates that suit weights which are learned already.
    pretrained={"head": "probe", "learning_rate": [1e-4, 1e-3]},
    simclr="simclr-mm",
    frozen_claimed=True,
)

FOURTH = replace(
    THIRD,
    arms=("mae", "simclr-mm"),
    seeds=(41, 42, 43),
    phantoms=THIRD.phantoms.model_copy(update={"seed": 480_211}),
    pretrained={"head": "probe"},
)

TOY = replace(
    FOURTH,
    seeds=(41, 42),
    counts=Counts(pretrain=12, train=24, val=12, test=24, ood=16),
    fractions=(0.25, 0.5, 1.0),
    pretraining={"encoder": {**ENCODER, "width": 0.125}, "epochs": 1, "batch_size": 6},
    tuning={"epochs": 1, "batch_size": 8, "learning_rate": [1e-3, 4e-3], "augmentation": "none"},
)

STUDIES = {"first": FIRST, "second": SECOND, "third": THIRD, "fourth": FOURTH, "toy": TOY}


@dataclass(frozen=True)
class Step:
    """A folder that appears whole, once the folders that it ``needs`` are there."""

    folder: Path
    needs: tuple[Path, ...]
    make: Callable[[Path], None]

    @property
    def done(self) -> bool:
        return (self.folder / "cpu.json").exists()


def steps(root: Path, design: Design, seeds: Sequence[int]) -> Iterator[Step]:
    """Yield the steps in the order in which they are wanted: first all that claims are about."""
    cohort = root / "cohort"
    yield Step(cohort, (), partial(_paint, design=design))
    for seed in seeds:
        for encoder in _encoders(root, design, seed):
            make = partial(_pretrain, cohort=cohort, design=design, seed=seed)
            yield Step(encoder, (cohort,), make)
        yield from _models(root, design, seed, claimed=True)
    for seed in seeds:
        yield from _models(root, design, seed, claimed=False)


def _encoders(root: Path, design: Design, seed: int) -> tuple[Path, ...]:
    return tuple(root / "encoder" / str(seed) / arm for arm in design.arms)


def _models(root: Path, design: Design, seed: int, *, claimed: bool) -> Iterator[Step]:
    """Yield the steps of a seed that make models which claims are about, or all others."""
    encoders, folder = _encoders(root, design, seed), root / "models" / str(seed)
    learn = partial(_finetune, cohort=root / "cohort", encoders=encoders, design=design, seed=seed)
    few, some, everybody = design.fractions
    plain = {name: _tuned(encoder) for name, encoder in FROM_SCRATCH.items()}
    whole = plain | {arm: _tuned(arm) | design.pretrained for arm in design.arms}
    wanted = [(everybody, plain, "alzheimers"), *((some, whole, task) for task in TASKS)]
    frozen = ["sex"] if design.frozen_claimed else []
    wanted += [(few, whole, task) for task in frozen]
    others = [(few, whole, task) for task in TASKS if task not in frozen]
    others += [(everybody, plain, task) for task in TASKS if task != "alzheimers"]
    if claimed:
        probes = {f"{arm}-probe": _probe(arm) for arm in design.arms}
        probes["untrained-probe"] = _probe("random")
        probed = partial(learn, starts=probes, tasks=tuple(TASKS), fractions=design.fractions)
        yield Step(folder / "probes", encoders, probed)
    for fraction, starts, task in wanted if claimed else others:
        tuned = partial(learn, starts=starts, tasks=(task,), fractions=(fraction,))
        yield Step(folder / f"{round(fraction * design.counts.train)}" / task, encoders, tuned)


def _probe(encoder: str) -> dict[str, Any]:
    return {"encoder": encoder, "mode": "probe"}


def _tuned(encoder: str) -> dict[str, Any]:
    return {"encoder": encoder, "mode": "finetune"}


def _paint(folder: Path, design: Design) -> None:
    paint(folder, design.phantoms, design.counts)


def _pretrain(folder: Path, cohort: Path, design: Design, seed: int) -> None:
    arm = ARMS[folder.name]
    params = PretrainParams.model_validate({**design.pretraining, **arm, "probe": None})
    pretrain(Workspace(folder), volumes=cohort, method=arm["methods"][0], params=params, seed=seed)
    plan = read_plan(folder)
    # Several encoders of one method need names of their own.
    write_json(folder / "plan.json", plan.model_copy(update={"name": folder.name}))
    shutil.rmtree(folder / "checkpoint", ignore_errors=True)


def _finetune(
    folder: Path,
    cohort: Path,
    encoders: tuple[Path, ...],
    design: Design,
    seed: int,
    starts: Mapping[str, Any],
    tasks: tuple[str, ...],
    fractions: tuple[float, ...],
) -> None:
    params = FinetuneParams.model_validate(
        {**design.tuning, "initializations": starts, "fractions": fractions, "seeds": [seed]}
    )
    named = {name: TASKS[name] for name in tasks}
    finetune(
        Workspace(folder), volumes=cohort, encoder=encoders, params=params, tasks=named, seed=0
    )


def advance(step: Step) -> bool:
    """Make a step if it can be made and nobody else makes it; return whether it is done."""
    if step.done or not all((folder / "cpu.json").exists() for folder in step.needs):
        return step.done
    step.folder.mkdir(parents=True, exist_ok=True)
    with _alone(step.folder.with_name(f".{step.folder.name}.lock")) as alone:
        if alone and not step.done:
            started = time.process_time()
            step.make(step.folder)
            write_json(step.folder / "cpu.json", {"seconds": time.process_time() - started})
    return step.done


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether this process alone has the lock, which it gives back afterwards."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def main() -> None:
    """Make what is missing, and report what is there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--study", choices=STUDIES, default="fourth")
    parser.add_argument("--seeds", type=int, default=3, help="how many, of pretraining")
    parser.add_argument("--only-report", action="store_true", help="of what is done")
    given = parser.parse_args()
    torch.set_num_threads(1)
    design = STUDIES[given.study]
    planned = list(steps(given.folder, design, design.seeds[: given.seeds]))
    while not given.only_report:
        before = sum(step.done for step in planned)
        if all([advance(step) for step in planned]):
            break
        if sum(step.done for step in planned) == before:
            time.sleep(10)  # another process makes what is next
    hours = sum(_seconds(step) for step in planned) / 3600
    study = Study(
        root=given.folder,
        train=design.counts.train,
        fractions=design.fractions,
        tasks=TASKS,
        arms=design.arms,
        simclr=design.simclr,
        frozen_claimed=design.frozen_claimed,
    )
    text, values = report(study)
    values["cpu_hours"] = hours
    write_json(given.folder / "report.json", values)
    write_text(given.folder / "report.md", f"{text}\n{hours:.2f} CPU hours.\n")
    print(text)


def _seconds(step: Step) -> float:
    path = step.folder / "cpu.json"
    return float(json.loads(path.read_text())["seconds"]) if path.exists() else 0.0


if __name__ == "__main__":
    main()
