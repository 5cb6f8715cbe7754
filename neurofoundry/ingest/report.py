"""What ingest tells people: tables of what was left out, a summary, and why there is no cohort."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.table import Table

from neurofoundry.contracts.cohort import EXCLUDED, SPLITS
from neurofoundry.contracts.tables import write_table
from neurofoundry.errors import DataError
from neurofoundry.ingest.params import Dataset
from neurofoundry.ingest.scan import Findings, console
from neurofoundry.tasks import Task

NOTES = ["dataset", "path", "note"]


def write_remarks(found: Findings, folder: Path) -> None:
    """Write excluded.tsv and notes.tsv."""
    excluded = pd.DataFrame(sorted(set(found.excluded)), columns=["dataset", "path", "reason"])
    write_table(excluded, folder / "excluded.tsv", EXCLUDED)
    notes = pd.DataFrame(sorted(set(found.notes)), columns=NOTES)
    write_table(notes, folder / "notes.tsv")


def gaps(scans: pd.DataFrame, tasks: Mapping[str, Task]) -> tuple[list[str], dict[str, str]]:
    """Why there is no cohort, if so; and the tasks that cannot be estimated but may be missing."""
    if not len(scans):
        return ["not one scan can be used"], {}
    problems = []
    found = scans.loc[scans["split"] == "pretrain", "person"].nunique()
    if found < 2:
        problems.append(f"split 'pretrain' has {found} persons, 2 are needed")
    missing = {name: gap for name, task in tasks.items() if (gap := task.gap(scans))}
    problems += [f"task '{name}': {gap}" for name, gap in missing.items() if tasks[name].required]
    return problems, {name: gap for name, gap in missing.items() if not tasks[name].required}


def no_cohort(
    problems: Sequence[str], scans: pd.DataFrame, found: Findings, folder: Path
) -> DataError:
    """The error that says why, and where to read about every file."""
    lines = "".join(f"\n  {problem}" for problem in problems)
    if not len(scans):
        shown = sorted(set(found.excluded))[:10]
        lines += "".join(f"\n  {path or dataset}: {reason}" for dataset, path, reason in shown)
    return DataError(
        f"No cohort can be made of this data. {len(scans)} scans of "
        f"{scans['person'].nunique()} persons can be used; excluded: {_counts(found)}.{lines}\n"
        f"Every file that was left out, with its reason: {folder.name}/excluded.tsv and "
        f"{folder.name}/notes.tsv, beside the output folder. Add scans or labels, change "
        "ingest.splits, or set `required: false` for a task that may stay without an answer."
    )


def show(
    datasets: Sequence[Dataset],
    scans: pd.DataFrame,
    found: Findings,
    tasks: Mapping[str, Task],
    not_estimable: Mapping[str, str],
) -> None:
    """Print the summary to stderr."""
    # The rows of a table may name their own datasets.
    names = dict.fromkeys(dataset.name for dataset in datasets if dataset.kind != "table")
    for name in names | dict.fromkeys(scans["dataset"]):
        used = scans[scans["dataset"] == name]
        console.print(f"{name}: {len(used)} scans of {used['person'].nunique()} persons")
    console.print(f"excluded: {_counts(found)}")
    for name, path, note in sorted(set(found.notes))[:10]:
        console.print(f"note: {path or name}: {note}")
    if len(found.notes) > 10:
        console.print(f"… {len(found.notes) - 10} more in notes.tsv")
    for name, gap in not_estimable.items():
        console.print(f"warning: task '{name}' cannot be estimated: {gap}", style="yellow")
    columns = dict.fromkeys(task.column for task in tasks.values() if task.classes)
    labels = [column for column in columns if column in scans]
    table = Table("split", "persons", "scans", *labels)
    for split in SPLITS:
        rows = scans[scans["split"] == split]
        if len(rows):
            table.add_row(
                split,
                str(rows["person"].nunique()),
                str(len(rows)),
                *(_values(rows, label) for label in labels),
            )
    console.print(table)


def _values(rows: pd.DataFrame, label: str) -> str:
    """Persons by value of a label."""
    named = rows.assign(**{label: rows[label].astype(object).fillna("n/a")})
    persons = named.groupby(label)["person"].nunique()
    return ", ".join(f"{value} {count}" for value, count in persons.items())


def _counts(found: Findings) -> str:
    """Excluded files by category, the part of a reason before its colon."""
    counts = Counter(reason.partition(":")[0] for _, _, reason in set(found.excluded))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} × {category}" for category, count in ordered) or "nothing"
