"""What `learning.py` found: a table of every arm, and of the claims that were written down before.

The comparisons are those of docs/decisions/claims-of-the-learning-study.md; the second study has
the same of its arms, and the third one claim more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from neurofoundry import morphometry
from neurofoundry.contracts.models import run_folder
from neurofoundry.contracts.volumes import Volumes
from neurofoundry.evaluate.inputs import Features, Inputs, read_features
from neurofoundry.evaluate.measure import baselines, embeddings, robustness
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.finetune import runs
from neurofoundry.finetune.runs import Run
from neurofoundry.stats import comparisons, intervals
from neurofoundry.stats.intervals import Estimate, Jackknife
from neurofoundry.stats.metrics import METRICS, Values
from neurofoundry.tasks import Task

SPLITS = {"test": "familiar", "ood": "new"}
SITES = ("Familiar sites", "New site")
ENDS = ("", "_low", "_high")
LINEAR = ("morphometry", "true volumes", "same for all")
NOT_WORSE = 0.02
"""AUC that 'at least as good' allows for."""


@dataclass(frozen=True)
class Judged:
    """A metric of one arm on one split, and its jackknife over persons."""

    sample: Jackknife
    persons: list[int]
    of_seeds: list[float]


@dataclass(frozen=True)
class Study:
    """What the steps have left."""

    root: Path
    train: int
    """Labelled persons to learn from, of whom ``fractions`` are used."""
    fractions: tuple[float, ...]
    tasks: Mapping[str, Task]
    arms: tuple[str, ...]
    """Names of pretrained encoders."""
    simclr: str | None
    """The arm that speaks for SimCLR; None: the one that validation chooses."""
    frozen_claimed: bool
    """Whether it is claimed that frozen features tell sex better than scratch, with few labels."""

    @cached_property
    def volumes(self) -> Volumes:
        return Volumes(self.root / "cohort")

    @cached_property
    def truth(self) -> pd.DataFrame:
        return pd.read_csv(self.root / "cohort" / "truth.tsv", sep="\t", index_col="scan_id")

    @cached_property
    def sizes(self) -> pd.DataFrame:
        """Morphometry of all labelled persons."""
        scans = self.volumes.scans
        names = list(scans["scan_id"][scans["split"] != "pretrain"])
        values = morphometry.measure(self.volumes, names)
        return pd.DataFrame(values, names, list(morphometry.SIZES))

    def labels(self, fraction: float) -> int:
        """How many labelled persons a fraction is."""
        return round(fraction * self.train)

    def outputs(self, task: str, arm: str, fraction: float, split: str) -> list[pd.DataFrame]:
        """The predictions of each seed's model for first sessions of a split, by scan."""
        if arm in LINEAR:
            return self._linear(task, arm, fraction, split)
        step = "probes" if arm.endswith("-probe") else f"{self.labels(fraction)}/{task}"
        tables = []
        for done in sorted((self.root / "models").glob(f"*/{step}/cpu.json")):
            seed = int(done.relative_to(self.root / "models").parts[0])
            path = done.parent / run_folder(task, arm, fraction, seed) / "predictions.tsv"
            if path.exists():
                table = pd.read_csv(path, sep="\t", dtype={"session": str, "label": str})
                first = (table["split"] == split) & (table["session"] == "1")
                tables.append(table[first].sort_values("scan_id").set_index("scan_id"))
        return tables

    def _linear(self, task: str, arm: str, fraction: float, split: str) -> list[pd.DataFrame]:
        """A linear model of sizes, learned from the same persons as seed 1's models."""
        kind, scans = self.tasks[task], self.volumes.scans
        rows = runs.labelled(scans[scans["session"] == "1"], kind)
        learn = runs.learned_from(rows, Run(task, "", fraction, 1), kind, 0)
        held = rows[rows["split"] == split].sort_values("scan_id")
        made = baselines.fit(kind, learn, held, self.truth if arm == "true volumes" else self.sizes)
        model = made[0] if arm == "same for all" else made[2]
        columns = dict(zip(kind.output_columns, np.atleast_2d(model.outputs[0].T), strict=True))
        table = held[["scan_id", "person"]].assign(label=held["label"].astype(str), **columns)
        return [table.set_index("scan_id")]

    def judge(self, task: str, arm: str, fraction: float, split: str) -> Judged | None:
        """Measure an arm, if it is there."""
        tables = self.outputs(task, arm, fraction, split)
        if not tables:
            return None
        kind = self.tasks[task]
        classes = {name: str(index) for index, name in enumerate(kind.classes)}
        labels = kind.typed(tables[0]["label"].replace(classes).astype(float).to_numpy())
        outputs = [_outputs(kind, table) for table in tables]

        def measure(weights: Values) -> Values:
            return np.stack([kind.measure(labels, o, weights)[kind.primary] for o in outputs])

        strata = labels if kind.classes else None
        found = intervals.jackknife(measure, tables[0]["person"].to_numpy(str), strata)
        persons = np.bincount(labels).tolist() if kind.classes else [len(labels)]
        return Judged(found.mean(), persons, [float(row[0]) for row in found.values])


def _outputs(task: Task, table: pd.DataFrame) -> Values:
    values = table[list(task.output_columns)].to_numpy(float)
    return values if task.classes else values[:, 0]


@dataclass(frozen=True)
class Pair:
    """One comparison: ours less theirs."""

    claim: str
    task: str
    split: str
    ours: tuple[str, float]
    theirs: tuple[str, float]


def chosen_arm(study: Study) -> str:
    """The SimCLR arm with the best mean rank on the validation persons, with some labels."""
    names = [arm for arm in study.arms if arm.startswith("simclr")]
    ranks = []
    for task, kind in study.tasks.items():
        sign = 1 if METRICS[kind.primary].higher_is_better else -1
        scores = [study.judge(task, arm, study.fractions[1], "val") for arm in names]
        values = [sign * each.sample.value if each else -np.inf for each in scores]
        ranks.append(pd.Series(values, names).rank(ascending=False))
    return str(pd.concat(ranks, axis=1).mean(axis=1).idxmin())


def pairs(study: Study, arm: str) -> list[Pair]:
    """All comparisons of claims a to d and, if it is one, f, in their order."""
    few, some, everybody = study.fractions
    cells = [(task, split) for task in study.tasks for split in SPLITS]
    found = [
        Pair("a", *cell, (arm, some), (other, some))
        for cell in cells
        for other in ("scratch", "sfcn")
    ]
    found += [Pair("b", *cell, (arm, some), ("mae", some)) for cell in cells]
    found += [
        Pair("c", "alzheimers", split, (arm, some), ("scratch", everybody)) for split in SPLITS
    ]
    found += [
        Pair("d", *cell, (f"{arm}-probe", everybody), (other, everybody))
        for cell in cells
        for other in ("untrained-probe", "morphometry")
    ]
    frozen = (few, some) if study.frozen_claimed else ()
    return found + [
        Pair("f", "sex", split, (f"{arm}-probe", fraction), ("scratch", fraction))
        for fraction in frozen
        for split in SPLITS
    ]


def unregistered(study: Study, arm: str) -> list[Pair]:
    """Comparisons that nobody claimed: with few labels, and of the frozen encoder with scratch."""
    few, some, _ = study.fractions
    cells = [(task, split) for task in study.tasks for split in SPLITS]
    found = [
        Pair("few labels", *cell, (arm, few), (other, few))
        for cell in cells
        for other in ("scratch", "sfcn", "mae")
    ]
    return found + [
        Pair("frozen", *cell, (f"{arm}-probe", fraction), ("scratch", fraction))
        for fraction in (few, some)
        for cell in cells
        if not (study.frozen_claimed and cell[0] == "sex")
    ]


def compare(study: Study, pair: Pair) -> tuple[Estimate, list[float]] | None:
    """The difference of a pair, and those of its seeds; None until both have the same seeds.

    Positive: ours is better.
    """
    both = [
        study.judge(pair.task, arm, fraction, pair.split)
        for arm, fraction in (pair.ours, pair.theirs)
    ]
    if both[0] is None or both[1] is None:
        return None
    if pair.theirs[0] not in LINEAR and len(both[0].of_seeds) != len(both[1].of_seeds):
        return None
    metric = study.tasks[pair.task].primary
    better = METRICS[metric].higher_is_better
    first, second = (each for each in (both if better else both[::-1]) if each)
    found = comparisons.difference(first.sample, second.sample, metric, first.persons)
    # What is linear is one model: it is compared with that of every seed.
    return found, np.subtract(*np.broadcast_arrays(first.of_seeds, second.of_seeds)).tolist()


def claims(study: Study, wanted: Iterable[Pair]) -> pd.DataFrame:
    """A row a comparison, with Holm's p-values within each claim."""
    rows: list[dict[str, Any]] = []
    for pair in wanted:
        found, of_seeds = compare(study, pair) or (None, [])
        if found and found.value is not None:
            row = {"claim": pair.claim, "task": pair.task, "sites": SPLITS[pair.split]}
            row |= {"ours": pair.ours[0], "labels": study.labels(pair.ours[1])}
            row |= {"theirs": pair.theirs[0], "their_labels": study.labels(pair.theirs[1])}
            row |= {n: getattr(found, n) for n in ("value", "low", "high", "p")}
            rows.append(row | {"of_seeds": of_seeds, "seeds": sum(each > 0 for each in of_seeds)})
    table = pd.DataFrame(rows)
    if not len(table):
        return table
    table["p"] = table["p"].fillna(1.0)
    table["p_holm"] = table.groupby("claim")["p"].transform(lambda p: comparisons.holm(list(p)))
    table["shown"] = (table["p_holm"] < 0.05) & (table["value"] > 0)
    not_worse = table["claim"] == "c"
    table.loc[not_worse, "shown"] = table.loc[not_worse, "low"] > -NOT_WORSE
    return table


def arms_table(study: Study) -> pd.DataFrame:
    """A row for every arm, floor and ceiling of every task, labelled set and split."""
    tuned = ["scratch", "sfcn", *study.arms]
    probed = [f"{arm}-probe" for arm in ("untrained", *study.arms)]
    rows = []
    for task, kind in study.tasks.items():
        for fraction in study.fractions:
            for arm in (*tuned, *probed, *LINEAR):
                row: dict[str, Any] = {"task": task, "labels": study.labels(fraction), "arm": arm}
                for split, sites in SPLITS.items():
                    judged = study.judge(task, arm, fraction, split)
                    if judged is None:
                        continue
                    found = intervals.estimate(judged.sample, kind.primary, judged.persons)
                    row |= {sites: found.value, f"{sites}_low": found.low}
                    row |= {f"{sites}_high": found.high, f"{sites}_seeds": judged.of_seeds}
                if "familiar" in row:
                    rows.append(row)
    return pd.DataFrame(rows)


def features_table(study: Study) -> pd.DataFrame:
    """Claim e: the ICC of features of two scanners, and how well they tell the site, by seed."""
    rows = []
    for done in sorted((study.root / "models").glob("*/probes/cpu.json")):
        seed = int(done.relative_to(study.root / "models").parts[0])
        found = {n.replace("random", "untrained"): f for n, f in read_features(done.parent).items()}
        features: dict[str, Features] = {
            n: found[n] for n in ("untrained", *study.arms) if n in found
        }
        inputs = Inputs(study.volumes.scans, pd.DataFrame(), (), pd.DataFrame(), {})
        same = embeddings.measure(features, inputs, params=EvaluateParams(reference="scratch"))
        same = same[(same["sites"] == "two") & (same["metric"] == "icc_consistency")]
        told = robustness.sites(features, inputs, study.tasks).set_index("encoder")
        for row in same.itertuples():
            site = told.loc[row.encoder]
            rows.append(
                {"encoder": row.encoder, "seed": seed}
                | {"icc": row.value, "icc_low": row.low, "icc_high": row.high}
                | {"site": site["value"], "site_low": site["low"], "site_high": site["high"]}
                | {"persons": row.subjects}
            )
    return pd.DataFrame(rows)


def report(study: Study) -> tuple[str, dict[str, Any]]:
    """The tables as text, and as plain values."""
    arm = study.simclr or chosen_arm(study)
    others = [each for each in study.arms if each.startswith("simclr") and each != arm]
    tables = {
        "arms": arms_table(study),
        "claims": claims(study, pairs(study, arm)),
        "features": features_table(study),
        "unregistered": claims(study, unregistered(study, arm)),
    }
    by = "as registered" if study.simclr else "which validation chose"
    text = [f"SimCLR is spoken for by `{arm}`, {by}.", ""]
    text += [*claims_in_markdown(study, tables["claims"]), "", *arms_in_markdown(tables["arms"])]
    text += [
        "",
        *features_in_markdown(tables["features"]),
        "",
        "What nobody registered:",
        "",
        *claims_in_markdown(study, tables["unregistered"]),
    ]
    if others:
        every = [pair for each in (arm, *others) for pair in pairs(study, each)]
        tables["every_arm"] = claims(study, every)
        text += ["", "Every SimCLR arm, Holm over all:", ""]
        text += claims_in_markdown(study, tables["every_arm"])
    values = {name: table.to_dict("records") for name, table in tables.items()}
    return "\n".join(text), {"speaks_for_simclr": arm, **values}


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:]]


def numbers(value: float, low: float, high: float, *, digits: int) -> str:
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def claims_in_markdown(study: Study, table: pd.DataFrame) -> list[str]:
    """A row for each claim, task and rival; both kinds of sites beside each other, each with the
    number of seeds whose difference is positive."""
    rows = []
    keys = ["claim", "task", "ours", "labels", "theirs", "their_labels"]
    for key, of_sites in table.groupby(keys, sort=False):
        claim, task, ours, labels, theirs, their_labels = key
        digits = 3 if study.tasks[str(task)].classes else 2
        row = [claim, task, f"{ours}, {labels}", f"{theirs}, {their_labels}"]
        for sites in SPLITS.values():
            for found in of_sites[of_sites["sites"] == sites].to_dict("records"):
                shown = numbers(found["value"], found["low"], found["high"], digits=digits)
                p = "" if claim == "c" else f", p {found['p_holm']:.2g}"
                p += f", {found['seeds']}/{len(found['of_seeds'])}"
                row.append(f"**{shown}**{p}" if found["shown"] else f"{shown}{p}")
        rows.append(row)
    return markdown(["Claim", "Task", "Ours, labels", "Theirs, labels", *SITES], rows)


def arms_in_markdown(table: pd.DataFrame) -> list[str]:
    """A table for each task: a row an arm."""
    lines: list[str] = []
    for task, of_task in table.groupby("task", sort=False):
        counts = sorted(of_task["labels"].unique())
        rows = []
        for arm, of_arm in of_task.groupby("arm", sort=False):
            cells = {int(row["labels"]): row for row in of_arm.to_dict("records")}
            digits = 1 if task == "age" else 3
            rows.append(
                [arm]
                + [
                    numbers(*(cells[n][f"{s}{end}"] for end in ENDS), digits=digits)
                    if n in cells
                    else ""
                    for n in counts
                    for s in SPLITS.values()
                ]
            )
        head = [f"{n} labels, {s}" for n in counts for s in SPLITS.values()]
        lines += [*markdown([str(task), *head], rows), ""]
    return lines


def features_in_markdown(table: pd.DataFrame) -> list[str]:
    """Claim e."""
    rows = [
        [row["encoder"], row["seed"]]
        + [numbers(*(row[f"{name}{end}"] for end in ENDS), digits=2) for name in ("icc", "site")]
        for row in table.to_dict("records")
    ]
    return markdown(["Encoder", "Seed", "Median feature ICC(3,1)", "Site read"], rows)
