"""What ingest tells people: tables of what was left out, a summary, and why there is no cohort."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from neurofoundry.contracts import folds
from neurofoundry.contracts.cohort import EXCLUDED, SPLITS
from neurofoundry.contracts.splits import Splits
from neurofoundry.contracts.tables import write_table
from neurofoundry.errors import DataError, counted
from neurofoundry.ingest import remedies
from neurofoundry.ingest.params import Dataset
from neurofoundry.ingest.scan import Findings
from neurofoundry.runtime.log import LOGGER
from neurofoundry.tasks import Labelled
from neurofoundry.tasks.base import JUDGED

NOTES = ["dataset", "path", "note"]
_SHOWN = 10
"""Notes and reasons that are shown; the tables have all."""


def write_findings(findings: Findings, folder: Path) -> None:
    """Write excluded.tsv and notes.tsv."""
    excluded = pd.DataFrame(sorted(set(findings.excluded)), columns=["dataset", "path", "reason"])
    write_table(excluded, folder / "excluded.tsv", EXCLUDED)
    notes = pd.DataFrame(sorted(set(findings.notes)), columns=NOTES)
    write_table(notes, folder / "notes.tsv")


def gaps(
    scans: pd.DataFrame, tasks: Mapping[str, Labelled], params: Splits, *, seed: int
) -> tuple[list[str], dict[str, str]]:
    """Return why there is no cohort, if so, and why optional tasks cannot be estimated; with what
    would help."""
    if not len(scans):
        return ["not one scan can be used"], {}
    problems = [problem] if (problem := _too_few_to_pretrain(scans, params)) else []
    missing = {name: gap for name, task in tasks.items() if (gap := folds.gap(task, scans))}
    advised = {
        name: f"{gap}. {remedies.find(scans, params, name, tasks, seed=seed)}"
        for name, gap in missing.items()
    }
    problems += [f"task '{name}': {gap}" for name, gap in advised.items() if tasks[name].required]
    return problems, {name: gap for name, gap in advised.items() if not tasks[name].required}


def without_numbers(
    scans: pd.DataFrame, tasks: Mapping[str, Labelled], params: Splits, *, seed: int
) -> list[str]:
    """Return of which tasks evaluate will give no numbers though models can be made, as test has
    too few persons, and what would help."""
    few = {name: folds.unjudged(task, scans) for name, task in tasks.items()}
    return [
        f"task '{name}' will have no numbers, as evaluate.min_subjects is {JUDGED} by default: "
        f"{reason}. {remedies.find(scans, params, name, tasks, seed=seed, judged=True)}"
        for name, reason in few.items()
        if reason and folds.gap(tasks[name], scans) is None
    ]


def _too_few_to_pretrain(scans: pd.DataFrame, params: Splits) -> str | None:
    """Return what is wrong if the shares, or published splits, leave nobody to pretrain on."""
    dealt = params.mode != "published"
    if dealt and not params.pretrain:
        return None
    used = ("pretrain",) if dealt else ("pretrain", "train")
    persons = scans.loc[scans["split"].isin(used), "person"].nunique()
    if persons >= 2:
        return None
    needed = f"split '{' + '.join(used)}' has {counted(persons, 'person')}, 2 are needed"
    return f"{needed}. Raise ingest.splits.pretrain" if dealt else needed


def no_cohort(
    problems: Sequence[str], scans: pd.DataFrame, findings: Findings, folder: Path
) -> DataError:
    """Return the error that says why, and where to read about every file."""
    lines = "".join(f"\n  {problem}" for problem in problems)
    if not len(scans):
        shown = sorted(set(findings.excluded))[:_SHOWN]
        lines += "".join(f"\n  {path or dataset}: {reason}" for dataset, path, reason in shown)
    usable = f"{counted(len(scans), 'scan')} of {counted(scans['person'].nunique(), 'person')}"
    return DataError(
        f"No cohort can be made of this data. {usable} can be used; excluded: "
        f"{_counts(findings)}.{lines}\n"
        f"Every file that was left out, with its reason: {folder.name}/excluded.tsv and "
        f"{folder.name}/notes.tsv, beside the output folder. A task that may go "
        "without an estimate: `required: false`."
    )


def log_summary(
    datasets: Sequence[Dataset],
    scans: pd.DataFrame,
    findings: Findings,
    tasks: Mapping[str, Labelled],
    not_estimable: Mapping[str, str],
) -> None:
    """Log what was read, what was excluded, and how the splits are made up."""
    # The rows of a table may name their own datasets.
    names = dict.fromkeys(dataset.name for dataset in datasets if dataset.kind != "table")
    for name in names | dict.fromkeys(scans["dataset"]):
        used = scans[scans["dataset"] == name]
        LOGGER.info("%s: %d scans of %d persons", name, len(used), used["person"].nunique())
    LOGGER.info("excluded: %s", _counts(findings))
    for name, path, note in sorted(set(findings.notes))[:_SHOWN]:
        LOGGER.info("note: %s: %s", path or name, note)
    if len(findings.notes) > _SHOWN:
        LOGGER.info("… %d more in notes.tsv", len(findings.notes) - _SHOWN)
    for name, gap in not_estimable.items():
        LOGGER.warning("task '%s' cannot be estimated: %s", name, gap)
    columns = dict.fromkeys(task.column for task in tasks.values() if task.classes)
    for line in _splits(scans, [column for column in columns if column in scans]):
        LOGGER.info("%s", line)


def _splits(scans: pd.DataFrame, labels: Sequence[str]) -> list[str]:
    """Return a table of the splits, line by line: persons, scans, and persons by label."""
    rows = []
    for split in SPLITS:
        members = scans[scans["split"] == split]
        if len(members):
            counts = {label: _persons_by_value(members, label) for label in labels}
            persons = members["person"].nunique()
            rows.append({"split": split, "persons": persons, "scans": len(members), **counts})
    return pd.DataFrame(rows).to_string(index=False).splitlines() if rows else []


def _persons_by_value(scans: pd.DataFrame, label: str) -> str:
    named = scans.assign(**{label: scans[label].astype(object).fillna("n/a")})
    persons = named.groupby(label)["person"].nunique()
    return ", ".join(f"{value} {count}" for value, count in persons.items())


def _counts(findings: Findings) -> str:
    """Count the excluded files by category, what precedes the colon of a reason."""
    counts = Counter(reason.partition(":")[0] for _, _, reason in set(findings.excluded))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} × {category}" for category, count in ordered) or "nothing"
