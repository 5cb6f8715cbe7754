"""Report, model card and reporting checklist: all in them is computed from what the stages left."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from PIL import Image

from neurofoundry.contracts.cohort import SPLITS
from neurofoundry.contracts.evaluation import Decision
from neurofoundry.evaluate.inputs import Evidence, Inputs, Pretrained
from neurofoundry.evaluate.measure import baselines, calibration, embeddings
from neurofoundry.evaluate.measure.explanations import SMOOTHING_MM, Explanation
from neurofoundry.evaluate.measure.performance import Measured, persons_per_class
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.evaluate.report import figures, narrative
from neurofoundry.runtime.code import git_commit
from neurofoundry.stats.metrics import METRICS
from neurofoundry.tasks import Condition

PICTURES = 6
"""Scans shown, of which at most two that failed quality control."""

FEW_TO_CHOOSE = 10
"""Validation subjects of a class, below which what they choose is largely chance."""

FEW = 3
"""Persons that a mean age must be of: that of one would be that person's age."""


SPLIT_TITLES = {
    "pretrain": "Pretraining only",
    "train": "Training",
    "val": "Validation",
    "test": "Test, familiar sites",
    "ood": "Test, new sites",
}


@dataclass(frozen=True)
class Curves:
    """The tables behind the figures; ``roc`` with bands."""

    roc: pd.DataFrame
    reliability: pd.DataFrame
    predicted: pd.DataFrame


def write(
    folder: Path,
    *,
    inputs: Inputs,
    tasks: Sequence[Evidence],
    measured: Measured,
    calibrated: pd.DataFrame,
    grouped: pd.DataFrame,
    confused: pd.DataFrame,
    repeated: pd.DataFrame,
    sites: pd.DataFrame,
    recognized: pd.DataFrame,
    mapped: bool,
    curves: Curves,
    explained: Sequence[Explanation],
    decision: Decision,
    params: EvaluateParams,
    seed: int,
    volumes: Path,
) -> None:
    """Write report.html, model_card.md and checklist.md: the same bytes for the same inputs."""
    sections = [
        _task(
            *(number, evidence, inputs, measured, calibrated, grouped, confused),
            *(curves, explained, params),
        )
        for number, evidence in enumerate(tasks, start=1)
    ]
    context = {
        "tasks": sections,
        "title": _title(sections, params.baseline),
        "baseline": params.baseline,
        "bootstraps": params.bootstraps,
        "min_subgroup": params.min_subgroup,
        "smoothing": SMOOTHING_MM,
        "decision": decision,
        "promotion": params.promotion,
        "synthetic": bool(inputs.scans["dataset"].str.startswith("phantom").all()),
        "counts": _counts(inputs),
        "flow": _flow(inputs),
        "splits": _splits(inputs, tasks),
        "sites": _sites(inputs),
        "scanner": {
            "sites": [narrative.find(sites, encoder=name) for name in sites["encoder"]],
            "repeats": _paired(
                repeated, ("task", "init", "sites"), ("icc_agreement", "icc_consistency")
            ),
            "embeddings": _paired(recognized, ("encoder", "sites"), embeddings.NAMES),
            "mapped": mapped,
            "number": lambda row, name: narrative.with_interval(row, name),
        },
        "pictures": _pictures(inputs.scans, volumes),
        "encoders": [_encoder(each) for each in inputs.encoders],
        "provenance": _provenance(inputs, seed),
        "limits": _limits(inputs, tasks, measured, params),
        "declared": _declared(inputs),
        "initializations": _initializations(inputs),
        "lacking": _lacking(inputs.scans[inputs.scans["usable"]]),
        "new_sites": bool((inputs.scans["split"] == "ood").any()),
        "metrics": {name for evidence in tasks for name in evidence.task.metric_names},
        "colours": {"familiar": figures.FAMILIAR, "new": figures.NEW},
    }
    for name in ("report.html", "model_card.md", "checklist.md"):
        render(folder, name, context)


def render(folder: Path, name: str, context: Mapping[str, Any]) -> None:
    """Write the page or text ``name`` whole or not at all."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["html"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    temporary = folder / f".{name}.tmp"
    temporary.write_text(templates.get_template(name).render(context), encoding="utf-8")
    temporary.replace(folder / name)


def _title(sections: Sequence[Mapping[str, Any]], baseline: str) -> str:
    """The answer in one line."""
    compared = [s for s in sections if s["conclusion"].verdict != "nothing"]
    if not sections:
        return "No task is declared: the cohort and the pretraining"
    if not compared:
        measured = [s for s in sections if s["conclusion"].headline != "Not estimable"]
        return "Nothing to compare" if measured else "No task can be estimated in this cohort"
    better = sum(s["conclusion"].verdict == "better" and s["conclusion"].sure for s in compared)
    tasks = f"{len(compared)} {'task' if len(compared) == 1 else 'tasks'}"
    chosen = "the model chosen on validation"
    if not better:
        return f"In none of {tasks} is {chosen} shown to be better than {baseline}"
    return f"In {better} of {tasks} {chosen} is shown to be better than {baseline}"


def _task(
    number: int,
    evidence: Evidence,
    inputs: Inputs,
    measured: Measured,
    calibrated: pd.DataFrame,
    grouped: pd.DataFrame,
    confused: pd.DataFrame,
    curves: Curves,
    explained: Sequence[Explanation],
    params: EvaluateParams,
) -> dict[str, Any]:
    """What the page shows of one task."""
    task, metric = evidence.task, evidence.task.primary
    splits = [split for split in ("test", "ood") if (evidence.scans["split"] == split).any()]
    models = [m for m in evidence.models if m.is_floor or m.fraction == evidence.fraction]
    told = _initializations(inputs)
    rows: list[dict[str, Any]] = []
    for model in models:
        where = {"task": evidence.name, "init": model.name, "fraction": model.fraction}
        values = {
            split: {
                name: narrative.find(measured.measures, metric=name, split=split, **where)
                for name in task.metric_names
            }
            for split in splits
        }
        rows.append(
            {
                "name": narrative.plain(model.name).capitalize() if model.is_floor else model.name,
                "floor": model.is_floor,
                "morphometry": model.name == baselines.MORPHOMETRY,
                "baseline": model.name == params.baseline,
                "told": told.get(model.name, ""),
                "values": values,
                "notes": narrative.note(evidence, measured, model.name, params.baseline),
                "seeds": len(model.seeds),
            }
        )
    subjects = {
        split: {
            "persons": evidence.scans[evidence.scans["split"] == split]["person"].nunique(),
            "classes": list(zip(task.classes, persons_per_class(evidence, split), strict=False)),
        }
        for split in splits
    }
    conclusion = narrative.conclude(evidence, measured, params.baseline)
    return {
        "anchor": f"task-{number}",
        "name": evidence.name,
        "question": _question(evidence),
        "conclusion": conclusion,
        "metric": metric,
        "regression": task.numeric_label,
        "column": task.column,
        "binary": len(task.classes) == 2,
        "seeds": max((row["seeds"] for row in rows), default=0),
        "title": METRICS[metric].title
        + (f",{narrative.unit(evidence)}" if narrative.unit(evidence) else ""),
        "better": "to the right" if METRICS[metric].higher_is_better else "to the left",
        "columns": [(name, METRICS[name]) for name in task.metric_names],
        "reasons": _reasons(
            (row["name"], value)
            for row in rows
            for of_split in row["values"].values()
            for value in of_split.values()
        ),
        "rows": rows,
        "splits": splits,
        "subjects": subjects,
        "scale": _scale(rows, metric, splits),
        "groups": _groups(evidence, measured, grouped, conclusion, params),
        "calibration": _calibration(evidence, calibrated),
        "labels": _labels(evidence, measured, conclusion, params.baseline),
        "confusion": _confusion(evidence, confused, conclusion, params.baseline),
        "panels": panels_of(evidence, measured, curves, params.baseline),
        "maps": maps_of(evidence, measured, explained),
        "number": lambda row, name: narrative.number(row["value"], name),
        "interval": lambda row, name: narrative.interval(row, name),
    }


def _groups(
    evidence: Evidence,
    measured: Measured,
    grouped: pd.DataFrame,
    conclusion: narrative.Conclusion,
    params: EvaluateParams,
) -> dict[str, Any]:
    """The forest plot of subgroups, of the model that the headline is about, with the floors."""
    name = conclusion.candidate[0] if conclusion.candidate else params.baseline
    metric = evidence.task.primary
    below = baselines.names(evidence.task)
    where = {"task": evidence.name, "metric": metric}
    whole = {name: evidence.fraction} | dict.fromkeys(below, 1.0)
    rows: list[dict[str, Any]] = []
    hidden = 0
    for split in ("test", "ood"):
        part = grouped[(grouped["task"] == evidence.name) & (grouped["init"] == name)]
        part = part[part["split"] == split]
        if part["value"].isna().all():
            continue
        everybody = {
            init: narrative.find(
                measured.measures, init=init, split=split, fraction=fraction, **where
            )
            for init, fraction in whole.items()
        }
        found: list[dict[str, Any]] = [{"variable": "", "group": "Everybody", "of": everybody}]
        for variable, group in zip(part["variable"], part["group"], strict=True):
            head = {"variable": variable, "group": group}
            of = {
                init: narrative.find(grouped, init=init, split=split, **head, **where)
                for init in whole
            }
            found.append({**head, "of": of})
        for each in found:
            own = each["of"].pop(name)
            if own is None or own["value"] is None:
                hidden += 1
                continue
            values = {init: row["value"] for init, row in each["of"].items() if row}
            rows.append(
                {
                    **own,
                    "variable": each["variable"],
                    "group": each["group"],
                    "floors": [values.get(init) for init in below],
                    "ahead": narrative.floors_ahead(own["value"], values, metric),
                }
            )
    ends = [row[end] for row in rows for end in ("value", "low", "high")]
    ends += [value for row in rows for value in row["floors"]]
    return {
        "name": name,
        "rows": rows,
        "hidden": hidden,
        "floors": [narrative.plain(init) for init in below],
        "scale": _axis([end for end in ends if end is not None], metric),
    }


def _labels(
    evidence: Evidence, measured: Measured, conclusion: narrative.Conclusion, baseline: str
) -> dict[str, Any]:
    """What fewer labels suffice for, of every initialization, that of the headline first."""
    metric = evidence.task.primary
    names = list(dict.fromkeys(m.name for m in evidence.models if not m.is_floor))
    if conclusion.candidate:
        names = list(dict.fromkeys([conclusion.candidate[0], *names]))
    where = {"task": evidence.name, "split": "test", "metric": metric}
    base = narrative.find(measured.measures, init=baseline, fraction=evidence.fraction, **where)
    rows: list[dict[str, Any]] = []
    for name in names:
        tried = narrative.with_fewer_labels(evidence, measured, name, baseline)
        if tried:
            rows.append(
                {
                    "name": name,
                    "words": narrative.how_few_suffice(tried, metric),
                    "cells": {each.fraction: each for each in tried},
                }
            )
    shares = sorted({fraction for row in rows for fraction in row["cells"]})
    return {
        "rows": rows,
        "shares": [(fraction, f"{fraction:.0%}") for fraction in shares],
        "all": f"{evidence.fraction:.0%}",
        "base": narrative.with_interval(base, metric) if base else "",
        "compared": len(rows) * len(shares),
        "difference": lambda row: narrative.with_interval(row, metric, signed=True),
    }


def _confusion(
    evidence: Evidence, confused: pd.DataFrame, conclusion: narrative.Conclusion, baseline: str
) -> list[dict[str, Any]]:
    """Confusion matrices of the initialization of the headline and of the baseline."""
    shown = dict.fromkeys([*(conclusion.candidate or ())[:1], baseline])
    found = []
    for name in shown:
        for split in ("test", "ood"):
            part = confused[
                (confused["task"] == evidence.name)
                & (confused["init"] == name)
                & (confused["split"] == split)
            ]
            if part.empty:
                continue
            counts = part.pivot(index="true", columns="predicted", values="scans")
            counts = counts.loc[list(evidence.task.classes), list(evidence.task.classes)]
            shares = counts.div(counts.sum(axis=1), axis=0)
            found.append(
                {
                    "name": name,
                    "split": split,
                    "rows": [
                        (true, [*zip(counts.loc[true], shares.loc[true], strict=True)])
                        for true in evidence.task.classes
                    ],
                }
            )
    return found


def _calibration(evidence: Evidence, calibrated: pd.DataFrame) -> dict[str, Any]:
    """Calibration of each initialization at familiar sites, as it is and corrected."""
    part = calibrated[(calibrated["task"] == evidence.name) & (calibrated["split"] == "test")]
    names, corrections = evidence.task.calibration_names, calibration.corrections(evidence)
    rows = [
        {
            "name": init,
            "values": [
                (name, narrative.find(part, init=init, metric=name, corrected=corrected))
                for name in names
                for corrected in corrections
            ],
        }
        for init in dict.fromkeys(part["init"])
    ]
    shown = any(value["value"] is not None for row in rows for _, value in row["values"])
    return {
        "rows": rows if shown else [],
        "columns": [METRICS[name] for name in names],
        "corrections": corrections[1:],
        "reasons": _reasons((row["name"], value) for row in rows for _, value in row["values"]),
    }


def _reasons(cells: Iterable[tuple[str, Mapping[str, Any] | None]]) -> list[str]:
    """Why cells of a table are empty, in words, each once with the rows that it is true of."""
    found: dict[str, dict[str, None]] = {}
    for name, cell in cells:
        if cell and cell["value"] is None and cell["reason"]:
            found.setdefault(str(cell["reason"]), {})[name] = None
    return [f"{reason} ({', '.join(rows)})" for reason, rows in found.items()]


def _question(evidence: Evidence) -> str:
    task = evidence.task
    asked = task.question
    if task.eligible:
        rules = [f"{column} {_condition(rule)}" for column, rule in task.eligible.items()]
        asked += f" Who takes part: {', '.join(rules)}."
    return asked


def _condition(rule: Condition) -> str:
    if rule.one_of is not None:
        return " or ".join(rule.one_of)
    low = f"from {rule.min:g}" if rule.min is not None else ""
    return f"{low} {f'to {rule.max:g}' if rule.max is not None else ''}".strip()


def _initializations(inputs: Inputs) -> dict[str, str]:
    """What each initialization is, in words, from the parameters of finetune."""
    try:
        declared = inputs.records["finetune"]["params"]["finetune"]["initializations"]
        modes = {"finetune": "whole network trained", "probe": "frozen, linear model on top"}
        return {
            name: f"{_origin(start['encoder'])}; {modes[start['mode']]}"
            for name, start in declared.items()
        }
    except (KeyError, TypeError, AttributeError):
        return {}


def _declared(inputs: Inputs) -> dict[str, Any]:
    """What the checklist states of the parameters of earlier stages, as far as they are recorded.

    Chosen by name: others can hold a path.
    """

    def section(name: str) -> Mapping[str, Any]:
        return (inputs.records.get(name, {}).get("params") or {}).get(name) or {}

    def chosen(values: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        return {key: values[key] for key in keys if key in values}

    cohort, learning = section("ingest"), section("finetune")
    return {
        "own_splits": cohort.get("split_column") is not None,
        "splits": chosen(cohort.get("splits", {}), "pretrain", "train", "val", "test"),
        "preprocess": chosen(
            section("preprocess"), "registration", "bias_correction", "normalization"
        ),
        "training": chosen(
            learning,
            *("epochs", "batch_size", "learning_rate", "weight_decay", "layer_decay"),
            *("augmentation", "precision", "fractions", "seeds"),
        ),
        "explain": chosen(learning.get("explain") or {}, "steps", "scans"),
    }


def _lacking(scans: pd.DataFrame) -> int:
    return int(scans[["age", "sex"]].isna().any(axis=1).sum())


def _origin(encoder: str) -> str:
    return "not pretrained" if encoder == "random" else f"pretrained ({encoder})"


def _scale(rows: Sequence[Mapping[str, Any]], metric: str, splits: Sequence[str]) -> dict[str, Any]:
    """The axis of the forest plot: its ends and ticks, wide enough for every interval."""
    ends = [
        row["values"][split][metric][end]
        for row in rows
        for split in splits
        for end in ("value", "low", "high")
        if row["values"][split][metric] and row["values"][split][metric][end] is not None
    ]
    return _axis(ends, metric)


def _axis(ends: Sequence[float], metric: str) -> dict[str, Any]:
    if not ends:
        return {}
    if metric == "auc":
        ticks = figures.ticks(min(0.4, *ends), 1.0)
        ticks = [tick for tick in ticks if tick <= 1]
    else:
        ticks = figures.ticks(0, max(ends))
    low, high = ticks[0], ticks[-1]
    return {
        "ticks": [(f"{tick:g}", 100 * (tick - low) / (high - low)) for tick in ticks],
        "low": low,
        "span": high - low,
        "chance": 100 * (0.5 - low) / (high - low) if metric == "auc" else None,
    }


def panels_of(
    evidence: Evidence, measured: Measured, curves: Curves, baseline: str
) -> dict[str, list[dict[str, str]]]:
    """Captioned SVG figures, one of each initialization: beside each other, as six curves in one
    figure cannot be told apart. Kinds without a figure are empty."""
    models = [model.name for model in evidence.models if not model.is_floor]
    palette = figures.colours(list(dict.fromkeys(models)), baseline)
    unit = f",{narrative.unit(evidence)}" if narrative.unit(evidence) else ""
    metric = METRICS[evidence.task.primary].title
    found: dict[str, list[dict[str, str]]] = {}

    def add(kind: str, rows: pd.DataFrame, what: str, draw: Callable[..., str]) -> None:
        found[kind] = []
        for init, part in rows[rows["task"] == evidence.name].groupby("init", sort=False):
            name, title = str(init), f"{init}: {what}"
            found[kind].append({"name": name, "caption": title, "svg": draw(name, part, title)})

    add("roc", curves.roc, "ROC curve", lambda _, part, title: figures.roc(part, title))
    rows = curves.reliability[curves.reliability["split"] == "test"]
    add(
        *("reliability", rows, "stated and observed risk"),
        lambda name, part, title: figures.reliability(part, palette[name], title),
    )
    rows = curves.predicted[curves.predicted["task"] == evidence.name]
    values = rows[["true", "predicted"]].to_numpy(float)
    limits = (values.min(), values.max()) if len(rows) else (0.0, 1.0)
    add(
        *("predicted", rows, f"predicted and true {evidence.task.column}"),
        lambda _, part, title: figures.predicted_against_true(part, limits, unit, title),
    )
    shares = _primary(evidence, measured).dropna(subset="value")
    add(
        "labels",
        shares if shares["fraction"].nunique() > 1 else shares.iloc[:0],
        f"{metric} by share of the labels",
        lambda name, _, title: figures.label_efficiency(
            *(shares, name, baseline, palette[name], f"{metric}{unit}", title)
        ),
    )
    return found


def maps_of(
    evidence: Evidence, measured: Measured, explained: Sequence[Explanation]
) -> list[dict[str, Any]]:
    """Of every initialization that was explained the maps, and what to think of them."""
    unit = narrative.moves(evidence)
    found = []
    parts = [each for each in explained if each.task == evidence.name]
    for init in dict.fromkeys(each.init for each in parts):
        groups = [each for each in parts if each.init == init]
        limit = max(float(np.abs(each.mean).max()) for each in groups)
        maps = []
        for each in groups:
            of = each.group if each.group == "everybody" else f"{evidence.task.column} {each.group}"
            subjects = "subject" if each.subjects == 1 else "subjects"
            caption = f"{init}: {of}, mean of {each.subjects} {subjects}"
            svg = figures.explanation(each, limit, unit, caption)
            maps.append({"caption": caption, "svg": svg})
        found.append(
            {
                "init": init,
                "maps": maps,
                "groups": groups,
                "doubt": not narrative.beats_a_constant(evidence, measured, init),
                "left_over": max(each.left_over for each in groups),
            }
        )
    return found


def _primary(evidence: Evidence, measured: Measured) -> pd.DataFrame:
    """The metric that a task is judged by, of its trained models at familiar sites."""
    table = measured.measures
    return table[
        (table["task"] == evidence.name)
        & (table["metric"] == evidence.task.primary)
        & (table["split"] == "test")
        & ~table["init"].str.startswith("floor-")
    ]


def _counts(inputs: Inputs) -> dict[str, Any]:
    scans = inputs.scans
    return {
        "scans": len(scans),
        "persons": scans["person"].nunique(),
        "sites": scans.groupby(["dataset", "site"]).ngroups,
        "datasets": scans["dataset"].nunique(),
        "usable": int(scans["usable"].sum()),
        "pretrained": len(inputs.pretrained_on),
        "unknown": [each.name for each in inputs.encoders if each.seen.persons is None],
        "by_image": all(each.seen.images is not None for each in inputs.encoders),
        "held_out": scans[scans["split"].isin(["val", "test", "ood"])]["person"].nunique(),
    }


def _flow(inputs: Inputs) -> dict[str, Any]:
    """From files found to scans used, with everything that fell out and why."""
    scans = inputs.scans
    known = {
        str(name) for column in ("person", "subject", "scan_id", "path") for name in scans[column]
    }
    failed = scans[~scans["usable"]]
    return {
        "found": len(scans) + len(inputs.excluded),
        "excluded": _by_reason(inputs.excluded["reason"], known),
        "excluded_total": len(inputs.excluded),
        "scans": len(scans),
        "persons": scans["person"].nunique(),
        "failed": _by_reason(failed["reason"], known),
        "failed_total": len(failed),
        "usable": int(scans["usable"].sum()),
        "usable_persons": scans[scans["usable"]]["person"].nunique(),
    }


def _by_reason(reasons: pd.Series, known: set[str]) -> list[tuple[str, int]]:
    """How often each kind of reason occurs: what stands before the colon, without names."""
    kinds = Counter(_kind(str(reason), known) for reason in reasons.fillna("no reason given"))
    ordered = sorted(kinds.items(), key=lambda item: (-item[1], item[0]))
    if len(ordered) > 8:
        ordered = [*ordered[:7], ("other reasons", sum(count for _, count in ordered[7:]))]
    return ordered


def _kind(reason: str, known: set[str]) -> str:
    kind = reason.split(":")[0].split(";")[0].split("(")[0].strip()
    tokens = [
        "…" if token in known or "/" in token or re.match(r"(sub|ses)-", token) else token
        for token in kind.split()
    ]
    return " ".join(tokens) or "no reason given"


def _splits(inputs: Inputs, tasks: Sequence[Evidence]) -> dict[str, Any]:
    """Who is in which split: usable scans; age and sex of persons at their first scan."""
    usable = inputs.scans[inputs.scans["usable"]]
    rows = []
    for split in (*SPLITS, "all"):
        part = usable if split == "all" else usable[usable["split"] == split]
        if part.empty:
            continue
        persons = part.sort_values(["person", "age", "session"]).drop_duplicates("person")
        ages, sexes = persons["age"].dropna(), persons["sex"].dropna()
        labels = []
        for evidence in tasks:
            chosen = evidence.task.select(part)
            column = evidence.task.column
            if column in ("age", "sex"):
                labels.append("")
            else:
                labels.append(evidence.task.describe_labels(chosen))
        rows.append(
            {
                "title": SPLIT_TITLES.get(split, "All"),
                "total": split == "all",
                "persons": len(persons),
                "scans": len(part),
                "sites": part.groupby(["dataset", "site"]).ngroups,
                "age": f"{ages.mean():.1f} ± {ages.std(ddof=0):.1f}" if len(ages) >= FEW else "–",
                "age_missing": len(persons) - len(ages),
                "female": f"{100 * (sexes == 'F').mean():.0f} %" if len(sexes) >= FEW else "–",
                "labels": labels,
            }
        )
    shown = [i for i, evidence in enumerate(tasks) if evidence.task.column not in ("age", "sex")]
    return {"rows": rows, "tasks": [(i, tasks[i].name) for i in shown]}


def _sites(inputs: Inputs) -> list[dict[str, Any]]:
    """Persons and scans of each site, and how many failed quality control."""
    rows = []
    for (dataset, site), part in inputs.scans.groupby(["dataset", "site"]):
        strengths = sorted(set(part["field_strength"].dropna()))
        rows.append(
            {
                "dataset": dataset,
                "site": site,
                "persons": part["person"].nunique(),
                "scans": len(part),
                "failed": int((~part["usable"]).sum()),
                "field": " and ".join(f"{tesla:g} T" for tesla in strengths) or "–",
                "new": bool((part["split"] == "ood").all()),
            }
        )
    return rows


def _paired(table: pd.DataFrame, keys: Sequence[str], names: Sequence[str]) -> list[dict[str, Any]]:
    """What is known of two scans of a person, a row a combination of keys that has numbers."""
    rows = []
    for values, part in table.groupby([*keys], sort=False):
        found = [narrative.find(part, metric=name) for name in names]
        if all(each and each["value"] is not None for each in found):
            rows.append(dict(zip(keys, values, strict=True)) | {"found": found})
    return rows


def _pictures(scans: pd.DataFrame, volumes: Path) -> list[dict[str, Any]]:
    """A few scans as preprocess drew them, spread over the table; numbered, never named."""
    drawn = scans.assign(number=range(1, len(scans) + 1))
    drawn = drawn[[(volumes / f"{scan_id}.png").exists() for scan_id in scans["scan_id"]]]
    failed = drawn[~drawn["usable"]].iloc[:2]
    good = drawn[drawn["usable"]]
    wanted = PICTURES - len(failed)
    good = good.iloc[[len(good) * index // wanted for index in range(min(wanted, len(good)))]]
    return [
        {
            "number": scan.number,
            "of": len(scans),
            "reason": None if scan.usable else _kind(str(scan.reason), set()),
            "data": _embed(volumes / f"{scan.scan_id}.png", width=600),
        }
        for scan in pd.concat([good, failed]).itertuples()
    ]


def _embed(path: Path, *, width: int) -> str:
    """A PNG as a data URI, redrawn so that nothing but its pixels is carried over."""
    with Image.open(path) as picture:
        pixels = picture.convert("L" if picture.mode in ("L", "1", "I;16") else "RGB")
    if pixels.width > width:
        pixels = pixels.resize((width, round(pixels.height * width / pixels.width)))
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _encoder(found: Pretrained) -> dict[str, Any]:
    """What the page shows of an encoder and how it was pretrained."""
    history, views = found.history, found.folder / "views.png"
    first, last = (history.iloc[[0, -1]].to_dict("records")) if len(history) else ({}, {})
    return {
        "name": found.name,
        "persons": None if found.seen.persons is None else len(found.seen.persons),
        "views": _embed(views, width=960) if views.exists() else None,
        "svg": figures.pretraining(history) if len(history) > 1 else None,
        "epochs": len(history),
        "first": first.get("loss"),
        "last": last.get("loss"),
        "rank": last.get("effective_rank"),
        "architecture": found.plan.encoder.architecture,
        "method": found.plan.method,
        "licence": found.plan.licence,
    }


def _provenance(inputs: Inputs, seed: int) -> dict[str, Any]:
    rows = []
    for name, record in inputs.records.items():
        hardware = record.get("hardware", {})
        rows.append(
            {
                "stage": name,
                "finished": str(record.get("ended", "")).replace("T", " ")[:16],
                "took": _duration(record),
                "version": record.get("package_version", ""),
                "commit": _short(str(record.get("git_commit", ""))),
                "image": record.get("image", ""),
                "hardware": f"{hardware.get('cpus', '?')} × {hardware.get('processor', '?')}",
                "run": record.get("tracking_run", ""),
            }
        )
    versions = [str(record.get("data_version", "")) for record in inputs.records.values()]
    return {
        "stages": rows,
        "data_version": next((version[:16] for version in versions if version), "unknown"),
        "commit": _short(git_commit()) or "unknown",
        "seed": seed,
    }


def _short(commit: str) -> str:
    """The beginning of a commit, and '+' when files differed from it."""
    return commit[:10] + "+" * commit.endswith("+")


def _duration(record: Mapping[str, Any]) -> str:
    try:
        start, end = (datetime.fromisoformat(record[key]) for key in ("started", "ended"))
    except (KeyError, ValueError, TypeError):
        return ""
    seconds = int((end - start).total_seconds())
    if seconds < 60:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _limits(
    inputs: Inputs, tasks: Sequence[Evidence], measured: Measured, params: EvaluateParams
) -> list[str]:
    """What the numbers cannot bear, from the numbers themselves."""
    limits: list[str] = []
    small: list[str] = []
    choosing: list[str] = []
    for evidence in tasks:
        metric = evidence.task.primary
        rows = _primary(evidence, measured).dropna(subset="low")
        rows = rows[rows["fraction"] == evidence.fraction]
        if rows.empty:
            continue
        width = (rows["high"] - rows["low"]).median()
        fewest = min(persons_per_class(evidence, "test"))
        text = (
            f"{evidence.name}: {rows['subjects'].iloc[0]} test subjects at familiar sites"
            + (f", {fewest} in the smaller group" if evidence.task.classes else "")
            + f"; a typical interval is {narrative.number(width, metric)}"
            + f"{narrative.unit(evidence)} wide."
        )
        if fewest < 20:
            small.append(evidence.name)
        limits.append(text)
        fewest = min(persons_per_class(evidence, "val"))
        if fewest < FEW_TO_CHOOSE:
            choosing.append(f"{evidence.name} {fewest}")
    if choosing:
        limits.append(
            "Models, thresholds and corrections are chosen on few validation subjects in the "
            f"smaller group ({', '.join(choosing)}): others might have chosen otherwise."
        )
    if small:
        limits.append(
            f"With fewer than 20 subjects in a group ({', '.join(small)}) the intervals lean on an "
            "approximation: in simulations they held the truth in 92 to 98 % of cohorts."
        )
    seeds = int(measured.measures["seeds"].max()) if len(measured.measures) else 0
    if seeds == 1:
        limits.append(
            "Each model was trained once: how much the numbers move between two trainings of the "
            "same model is not known."
        )
    elif seeds > 1:
        spread = measured.measures.query("split == 'test' and metric == 'auc'")["seed_sd"].max()
        moved = f", by at most {spread:.2f} AUC (standard deviation)" if spread == spread else ""
        limits.append(
            f"Models were trained up to {seeds} times and their metrics averaged; the intervals "
            f"cover the choice of subjects, not that of training runs{moved}."
        )
    chosen = inputs.scans["usable"] & inputs.scans["split"].isin(["test", "ood"])
    lacking = _lacking(inputs.scans[chosen])
    if lacking:
        limits.append(
            f"{lacking} of {chosen.sum()} test scans lack an age or a sex; the model of age, sex "
            "and site takes the middle for them."
        )
    return limits
