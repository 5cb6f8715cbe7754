"""What Weights & Biases records of an evaluation, and of the pipeline run that it ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import precision_recall_curve

from neurofoundry.contracts.models import files_of, group_folder, initialization_of, run_folder
from neurofoundry.evaluate import predictions
from neurofoundry.evaluate.evidence import Evidence, Model
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.report import build, headline
from neurofoundry.evaluate.report.figures import Figures
from neurofoundry.evaluate.results import Results
from neurofoundry.runtime.tracking import ENCODER, Answer, Made, Tracker, encoder_artifact
from neurofoundry.tasks import Task

REPORT = (*build.PAGES, "metrics.json", "promotion.json")
MOST_POINTS = 200
"""Points of a curve; more of them cannot be seen."""

MOST_SCANS = 5000
"""Scans of a table of predictions; the others are in predictions.tsv of the models."""


def record(
    tracker: Tracker, folder: Path, models: Path, results: Results, figures: Figures
) -> None:
    """Record the figures of the evaluation in ``folder``, what it has judged, and itself."""
    if not tracker.records:
        return
    for each in results.inputs.encoders:
        if all((each.folder / name).exists() for name in ENCODER):
            tracker.used(encoder_artifact(each.name, each.folder))
    for task, drawn in figures.tasks.items():
        for figure in drawn:
            tracker.figure(f"{task}/{figure.caption.lower()}", figure.svg, step=0)
    registry = tracker.registry
    for made in _judged(models, results, registry):
        tracker.produced(made)
    tracker.produced(
        Made(
            "evaluation",
            "report",
            folder,
            REPORT,
            description=results.decision.reason,
            metadata={"promoted": results.decision.promoted, **headline.numbers(results)},
        )
    )


def _judged(models: Path, results: Results, registry: str) -> Iterator[Made]:
    """Yield the models that the promotion rule names: ensembles, and of others the first seed and
    fold, as `promote` does. fitted.tsv and predictions.tsv name scans and are not sent."""
    rule, decision = results.params.promotion, results.decision
    if rule is None:
        return
    (evidence,) = (each for each in results.tasks if each.name == rule.task)
    for model in evidence.trained:
        if model.name not in (rule.initialization, rule.over) or not model.seeds:
            continue
        promoted = decision.promoted and model.name == rule.initialization
        group = (rule.task, initialization_of(model.name), model.fraction)
        first = run_folder(*group, min(model.seeds), 0 if evidence.fold_of is None else 1)
        folder = models / (group_folder(*group) if model.is_ensemble else first)
        files = files_of(folder)
        if not all((folder / name).is_file() for name in files):
            continue
        scores = headline.scores(results, evidence, model.name)
        yield Made(
            f"model-{rule.task}-{model.name}",
            "model",
            folder,
            files,
            description=f"{rule.task}, from {model.name}. {decision.reason}",
            metadata={"task": rule.task, "initialization": model.name, **scores},
            aliases=["promoted"] if promoted else [],
            registry=f"{registry}/{rule.task}" if promoted and registry else "",
        )


def answer(
    results: Results, params: EvaluateParams, tasks: Mapping[str, Task], seed: int
) -> Answer:
    """Return what W&B is told of the whole pipeline run."""
    config: dict[str, Any] = {"seed": seed}
    for record in results.inputs.records.values():
        for name, section in (record.get("params") or {}).items():
            if isinstance(section, Mapping):
                config[name] = {**config.get(name, {}), **section}
    own = {"evaluate": params, "tasks": tasks}
    config |= {name: _plain(value) for name, value in own.items()}
    return Answer(config, partial(_record_answer, results=results))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return value.model_dump(mode="json", by_alias=True)


def _record_answer(tracker: Tracker, results: Results) -> None:
    """Record the headline numbers, and tables and charts that runs can be compared in."""
    if not tracker.records:
        return
    tracker.summary(headline.numbers(results) | headline.pace(results))
    tracker.summary({"promoted": results.decision.promoted})
    tracker.table("tables/metrics", results.measured.measures, step=0)
    tracker.table("tables/differences", results.measured.differences, step=0)
    for evidence in results.tasks:
        tracker.table(f"tables/predictions_{evidence.name}", _predictions(evidence), step=0)
    for name, (lines, title, labels) in _charts(results).items():
        tracker.lines(name, lines, title=title, labels=labels, step=0)


Chart = tuple[pd.DataFrame, str, tuple[str, str]]


def _charts(results: Results) -> dict[str, Chart]:
    """Return the curves of the test scans by the names of their charts: x, y and line."""
    charts: dict[str, Chart] = {}
    curves = results.curves
    for task in results.tasks:
        kinds = {
            "roc": (curves.roc, "fpr", "tpr", ("1 - specificity", "sensitivity")),
            "calibration": (
                curves.reliability,
                *("stated", "observed", ("stated probability", "share observed")),
            ),
        }
        for kind, (table, x, y, labels) in kinds.items():
            rows = table[(table["task"] == task.name) & (table["split"] == "test")]
            lines = _lines(rows, x, y)
            charts[f"{kind}/{task.name}"] = (lines, f"{task.name}, test: {kind}", labels)
        if len(task.task.classes) == 2:
            title = f"{task.name}, test: precision and recall"
            labels = ("sensitivity (recall)", "precision")
            charts[f"precision_recall/{task.name}"] = (_precision_recall(task), title, labels)
    for encoder in results.inputs.encoders:
        if len(encoder.history) > 1:
            lines = _lines(encoder.history.assign(init=encoder.name), "epoch", "loss")
            title = f"pretraining of {encoder.name}"
            charts[f"pretraining/{encoder.name}"] = (lines, title, ("epoch", "loss"))
    return {name: chart for name, chart in charts.items() if len(chart[0])}


def _lines(rows: pd.DataFrame, x: str, y: str) -> pd.DataFrame:
    """Return x, y and line of at most ``MOST_POINTS`` rows a line: a line an initialization, and
    where there are several a seed and a class."""
    several = [name for name in ("class", "seed") if name in rows and rows[name].nunique() > 1]
    line = rows["init"].astype(str)
    for name in several:
        line += f", {name} " + rows[name].astype(str)
    lines = pd.DataFrame({"x": rows[x], "y": rows[y], "line": line}).dropna()
    return _thin(lines)


def _thin(lines: pd.DataFrame) -> pd.DataFrame:
    """Return points of each line at equal distances in its order, the first and last included."""
    thinned = [
        line.iloc[np.unique(np.linspace(0, len(line) - 1, MOST_POINTS).round().astype(int))]
        for _, line in lines.groupby("line", sort=False)
    ]
    return pd.concat(thinned) if thinned else lines


def _precision_recall(evidence: Evidence) -> pd.DataFrame:
    """Return the curve of each initialization for the last class, the seeds averaged."""
    test = evidence.inside("test")
    drawn = []
    for model in evidence.trained:
        if model.seeds and 0 < evidence.labels[test].sum() < test.sum():
            probability = model.outputs.mean(axis=0)[test, 1]
            precision, recall, _ = precision_recall_curve(evidence.labels[test], probability)
            drawn.append(pd.DataFrame({"x": recall, "y": precision, "line": model.name}))
    return _thin(pd.concat(drawn)) if drawn else pd.DataFrame({"x": [], "y": [], "line": []})


def _predictions(evidence: Evidence) -> pd.DataFrame:
    """Return the outputs of each initialization, seeds averaged, by a hash of each scan."""
    rows = evidence.scans
    classes = evidence.task.classes
    label = [classes[int(value)] for value in evidence.targets] if classes else evidence.targets
    table = pd.DataFrame(
        {
            "scan": [predictions.hash_scan(sha256)[:16] for sha256 in rows["sha256"]],
            "split": rows["split"].to_numpy(str),
            "label": label,
        }
    )
    for model in evidence.trained:
        if model.seeds:
            for name, values in _outputs(model, classes).items():
                table[name] = values
    return table.sort_values("scan").head(MOST_SCANS)


def _outputs(model: Model, classes: tuple[str, ...]) -> dict[str, Any]:
    mean = model.outputs.mean(axis=0)
    if not classes:
        return {model.name: mean}
    shown = range(len(classes)) if len(classes) > 2 else [1]
    return {f"{model.name}, p {classes[place]}": mean[:, place] for place in shown}
