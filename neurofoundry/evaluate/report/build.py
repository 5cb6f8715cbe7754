"""Report, model card and reporting checklist: all in them is computed from what the stages left."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from neurofoundry.evaluate.measure import embeddings
from neurofoundry.evaluate.measure.explanations import SMOOTHING_MM
from neurofoundry.evaluate.measure.outlines import Outlines
from neurofoundry.evaluate.report import (
    clinic,
    cohort,
    embedding_map,
    glossary,
    headline,
    narrative,
    outlined,
    plots,
    provenance,
    task,
)
from neurofoundry.evaluate.report.figures import Figures
from neurofoundry.evaluate.report.limits import limits
from neurofoundry.evaluate.report.references import only_cited
from neurofoundry.evaluate.results import Results
from neurofoundry.evaluate.rows import find_row
from neurofoundry.runtime.files import write_text
from neurofoundry.runtime.templates import render
from neurofoundry.weights.hub import front_matter

PAGES = ("report.html", "model_card.md", "checklist.md", "methods.md")
"""Names of the templates, and of the files that are made from them."""

TASKS_OF_HUB = {"classification": "image-classification", "regression": "image-regression"}


def write(folder: Path, results: Results, figures: Figures, outlines: Outlines | None) -> None:
    """Write the pages, and embeddings.html and outlines.html beside them: the same bytes for the
    same results."""
    mapped = embedding_map.write(folder, results)
    if outlines is not None:
        outlined.write(folder, outlines, synthetic=results.inputs.synthetic)
    for name, text in pages(results, figures, mapped=mapped, outlines=outlines).items():
        write_text(folder / name, f"{text}\n")


def pages(
    results: Results, figures: Figures, *, mapped: bool, outlines: Outlines | None = None
) -> dict[str, str]:
    """Return the text of each of ``PAGES``; ``mapped`` says whether there is an embedding map, and
    ``outlines`` are those of segmentations, where any are declared."""
    context = _context(results, figures, mapped=mapped, outlines=outlines)
    return {name: only_cited(render(Path(__file__).with_name(name), context)) for name in PAGES}


def _context(
    results: Results, figures: Figures, *, mapped: bool, outlines: Outlines | None
) -> dict[str, Any]:
    """Return what the templates name."""
    inputs = results.inputs
    initializations = provenance.initializations(inputs)
    tasks = [
        task.describe(number, each, results, figures.tasks[each.name], initializations)
        for number, each in enumerate(results.tasks, start=1)
    ]
    return {
        **cohort.describe(results),
        **provenance.describe(results, figures),
        "front_matter": _front_matter(results),
        "tasks": tasks,
        "outlined": outlined.describe(outlines) if outlines else [],
        "ensembles": [
            {"task": each["name"], "name": row["name"], "words": row["origin"]}
            for each in tasks
            for row in each["rows"]
            if row["ensemble"]
        ],
        "title": _title(tasks, results.params.reference, outlines),
        "reference": results.params.reference,
        "bootstraps": results.params.bootstraps,
        "min_subgroup": results.params.min_subgroup,
        "smoothing": SMOOTHING_MM,
        "decision": results.decision,
        "promotion": results.params.promotion,
        "scanner": _scanner(results, mapped=mapped),
        "kept": results.params.combat or (),
        "harmonization": clinic.harmonization(results),
        "limits": limits(results),
        "glossary": glossary.glossary(results),
        "whom": glossary.whom_it_is_for(results),
        "colours": {"familiar": plots.FAMILIAR, "new": plots.NEW},
    }


def _front_matter(results: Results) -> str:
    """Return what the Hugging Face hub reads of the model card: the model that stands for the run,
    with its results on the test scans."""
    init = headline.initialization(results)
    licences = dict.fromkeys(each.plan.licence for each in results.inputs.encoders)
    synthetic = results.inputs.synthetic
    where = {"type": "synthetic" if synthetic else "private", "name": "test scans of this cohort"}
    kinds = {each.name: each.task for each in results.tasks}
    scored = [
        {
            "task": {"type": TASKS_OF_HUB[kinds[name].kind], "name": name},
            "dataset": where,
            "metrics": [{"type": kinds[name].primary, "value": round(value, 4)}],
        }
        for name, value in headline.primary(results).items()
    ]
    index = {"model-index": [{"name": init, "results": scored}]} if scored else {}
    return front_matter(licence=" and ".join(licences), synthetic=synthetic, **index)


def _title(tasks: Sequence[Mapping[str, Any]], reference: str, outlines: Outlines | None) -> str:
    """Return the answer in one line."""
    compared = [each for each in tasks if each["conclusion"].verdict != "nothing"]
    if not tasks and outlines is not None:
        return "; ".join(each["headline"] for each in outlined.describe(outlines))
    if not tasks:
        return "No task is declared: the cohort and the pretraining"
    if not compared:
        estimable = [each for each in tasks if each["conclusion"].headline != "Not estimable"]
        return "Nothing to compare" if estimable else "No task can be estimated in this cohort"
    better = sum(
        each["conclusion"].verdict == "better" and each["conclusion"].sure for each in compared
    )
    rest = ""
    if none := sum(each["conclusion"].headline == "Not estimable" for each in tasks):
        rest = f" ({none} more cannot be estimated)"
    chosen = f"the model {_how_chosen({each['conclusion'].candidate[1] for each in compared})}"
    if len(compared) == 1:
        shown = "is shown" if better else "is not shown"
        only = f" in the one task of {len(tasks)} that can be estimated" if none else ""
        return f"T{chosen[1:]} {shown} to be better than {reference}{only}"
    count = f"{len(compared)} tasks{rest}"
    if not better:
        return f"In none of {count} is {chosen} shown to be better than {reference}"
    return f"In {better} of {count} {chosen} is shown to be better than {reference}"


def _how_chosen(reasons: Collection[str]) -> str:
    if all(reason == narrative.CHOSEN for reason in reasons):
        return "chosen on validation"
    if all(reason.startswith(narrative.FIRST) for reason in reasons):
        return "declared first of the others"
    return "that was compared"


def _scanner(results: Results, *, mapped: bool) -> dict[str, Any]:
    """Return what is known of robustness to the scanner."""
    agreement = ("icc_agreement", "icc_consistency")
    return {
        "sites": [find_row(results.sites, encoder=name) for name in results.sites["encoder"]],
        "repeats": _scanned_twice(results.repeats, ("task", "init", "sites"), agreement),
        "embeddings": _scanned_twice(results.recognized, ("encoder", "sites"), embeddings.NAMES),
        "mapped": mapped,
        "number": lambda row, name: narrative.with_interval(row, name),
        "changed": narrative.changed,
    }


def _scanned_twice(
    table: pd.DataFrame, keys: Sequence[str], metrics: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a row for each combination of ``keys`` in which all ``metrics`` have numbers."""
    rows = []
    for values, group in table.groupby([*keys], sort=False):
        cells = [find_row(group, metric=name) for name in metrics]
        if all(cell and cell["value"] is not None for cell in cells):
            rows.append(dict(zip(keys, values, strict=True)) | {"cells": cells})
    return rows
