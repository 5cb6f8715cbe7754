"""Evaluate: read the predictions, measure and compare them, and write it down for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from neurofoundry.contracts.evaluation import write_decision, write_metrics
from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import Volumes
from neurofoundry.errors import UsageError
from neurofoundry.evaluate import inputs, predictions, promotion
from neurofoundry.evaluate.inputs import Evidence, Inputs
from neurofoundry.evaluate.measure import (
    baselines,
    calibration,
    curves,
    embeddings,
    explanations,
    morphometry,
    performance,
    robustness,
    subgroups,
)
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.report import build, embedding_map, wandb
from neurofoundry.runtime.files import write_json
from neurofoundry.runtime.stage import Workspace
from neurofoundry.tasks import Task


def evaluate(
    work: Workspace,
    *,
    cohort: Path,
    volumes: Path,
    encoder: Sequence[Path],
    models: Path,
    params: EvaluateParams,
    tasks: Mapping[str, Task],
    seed: int,
) -> None:
    """Write metrics.json, tables, plots, promotion.json, and report, model card and checklist."""
    opened = Volumes(volumes)
    found = inputs.read(cohort_dir=cohort, volumes=opened, encoder=encoder, models=models)
    _check(params, tasks, found, models)
    evidence = [inputs.read_evidence(name, tasks[name], found, models) for name in tasks]
    explained = explanations.read(evidence, models)
    sizes = morphometry_of(evidence, found, opened)
    evidence = [with_floors(each, found, sizes) for each in evidence]
    measured = performance.measure(evidence, params=params, seed=seed)
    calibrated = calibration.measure(evidence, params=params, seed=seed)
    grouped = subgroups.measure(evidence, params=params)
    confused = curves.confusion(evidence, min_subjects=params.min_subjects)
    drawn = build.Curves(
        roc=curves.roc_bands(evidence, min_subjects=params.min_subjects, seed=seed),
        reliability=curves.reliability(evidence, min_subjects=params.min_subjects),
        predicted=curves.predicted_against_true(evidence, min_subjects=params.min_subjects),
    )
    fractions = {each.name: each.fraction for each in evidence}
    rule = params.promotion
    features = robustness.read_features(models)
    read_sites = robustness.sites(features, found, tasks, params=params, seed=seed)
    recognized = embeddings.measure(features, found, params=params, seed=seed)
    repeated = robustness.repeats(evidence, params=params)
    decision = promotion.decide(
        rule,
        measured,
        fractions.get(rule.task, 1.0) if rule else 1.0,
        sites=read_sites,
        encoder=found.starts_from(rule.initialization) if rule else None,
    )

    for name, table in (
        ("tables/metrics.tsv", measured.measures),
        ("tables/differences.tsv", measured.differences),
        ("tables/gaps.tsv", measured.gaps),
        ("tables/calibration.tsv", calibrated),
        ("tables/confusion.tsv", confused),
        ("tables/subgroups.tsv", grouped),
        ("tables/repeats.tsv", repeated),
        ("tables/sites.tsv", read_sites),
        ("tables/embeddings.tsv", recognized),
        ("tables/explanations.tsv", explanations.table(explained)),
        ("plots/roc.tsv", curves.roc(evidence, min_subjects=params.min_subjects)),
        ("plots/roc_bands.tsv", drawn.roc),
        ("plots/reliability.tsv", drawn.reliability),
        ("plots/predicted_vs_true.tsv", drawn.predicted),
        ("plots/pretraining.tsv", histories(found)),
    ):
        (work.dir / name).parent.mkdir(exist_ok=True)
        write_table(table, work.dir / name)
    for each in evidence:
        predictions.write(work.dir / "predictions", each)
    explanations.write(work.dir / "explanations", explained)
    write_json(work.dir / "provenance.json", found.provenance())
    write_decision(work.dir, decision)
    mapped = embedding_map.write(
        work.dir, features, inputs=found, tasks=tasks, volumes=opened, params=params
    )
    build.write(
        work.dir,
        inputs=found,
        tasks=evidence,
        measured=measured,
        calibrated=calibrated,
        grouped=grouped,
        confused=confused,
        repeated=repeated,
        sites=read_sites,
        recognized=recognized,
        mapped=mapped,
        curves=drawn,
        explained=explained,
        decision=decision,
        params=params,
        seed=seed,
        volumes=volumes,
    )
    content = nested(measured.measures)
    write_metrics(work.dir, content)
    wandb.record(
        work.tracker,
        work.dir,
        inputs=found,
        tasks=evidence,
        measured=measured,
        curves=drawn,
        explained=explained,
        metrics=content,
        baseline=params.baseline,
    )
    work.summary |= headlines(content, evidence) | {"promoted": decision.promoted}


def _check(params: EvaluateParams, tasks: Mapping[str, Task], found: Inputs, models: Path) -> None:
    initializations = list(dict.fromkeys(found.runs["init"]))
    missing = sorted(set(tasks) - set(found.runs["task"]))
    if missing:
        raise UsageError(
            f"{models / 'runs.tsv'}: no run of the task {', '.join(missing)}. "
            "Run finetune with these parameters first."
        )
    if tasks and params.baseline not in initializations:
        raise UsageError(
            f"evaluate.baseline: '{params.baseline}' is not one of the initializations in "
            f"{models / 'runs.tsv'} ({', '.join(initializations)})."
        )
    if params.promotion:
        promotion.check(params.promotion, tasks, initializations)


def histories(found: Inputs) -> pd.DataFrame:
    """How each encoder was pretrained, one row an epoch."""
    tables = [each.history.assign(encoder=each.name) for each in found.encoders]
    return pd.concat(tables, ignore_index=True)


def morphometry_of(tasks: Sequence[Evidence], found: Inputs, volumes: Volumes) -> pd.DataFrame:
    """Morphometry by scan_id, of all scans that a floor is learned from or judged on."""
    train = _train(found)
    wanted = [table["scan_id"] for each in tasks for table in (each.task.select(train), each.scans)]
    scan_ids = sorted(set(pd.concat(wanted))) if wanted else []
    sizes = morphometry.measure(volumes, scan_ids) if scan_ids else None
    return pd.DataFrame(sizes, index=scan_ids, columns=list(morphometry.FEATURES))


def with_floors(evidence: Evidence, found: Inputs, sizes: pd.DataFrame) -> Evidence:
    """The floors beside the models, fitted on the training scans of the task."""
    fitted = baselines.fit(evidence.task, _train(found), evidence.scans, sizes)
    return replace(evidence, models=(*evidence.models, *fitted))


def _train(found: Inputs) -> pd.DataFrame:
    return found.scans[found.scans["usable"] & (found.scans["split"] == "train")]


def nested(table: pd.DataFrame) -> dict[str, Any]:
    """metrics.json: task, initialization, fraction, split and metric, one inside another."""
    content: dict[str, Any] = {}
    for row in table.astype(object).where(table.notna(), None).to_dict("records"):
        split = content.setdefault(row["task"], {}).setdefault(row["init"], {})
        split = split.setdefault(str(row["fraction"]), {}).setdefault(row["split"], {})
        split |= {"subjects": row["subjects"], "scans": row["scans"]}
        entry = {name: row[name] for name in ("value", "low", "high")}
        entry |= {name: row[name] for name in ("seed_sd", "reason") if row[name] is not None}
        split[row["metric"]] = entry
    return content


def headlines(metrics: Mapping[str, Any], tasks: list[Evidence]) -> dict[str, float]:
    """The metric that each task is judged by, with its interval, by its path in metrics.json."""
    wanted = {
        (evidence.name, str(evidence.fraction), split, evidence.task.primary)
        for evidence in tasks
        for split in ("test", "ood")
    }
    return {
        path: value
        for path, value in wandb.flat(metrics).items()
        for task, init, fraction, split, metric, *end in [path.split("/")]
        if (task, fraction, split, metric) in wanted
        and not init.startswith("floor-")
        and end in (["value"], ["low"], ["high"])
    }
