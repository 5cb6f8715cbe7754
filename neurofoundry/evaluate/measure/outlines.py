"""Segmentations: how well each model and each floor outlines held-out scans, and what differs.

Floors need no network. **baseline-otsu** outlines the darker, or the brighter, part of the brain by
Otsu's threshold (IEEE Trans. SMC 9, 1979), whichever fits the training scans better; only of one
class. **baseline-atlas** outlines the same for everyone: where the class is in so many training
scans that its overlap with them is largest. A cross-validation has no floors.

The models of several seeds or folds are one more row, as `predict` makes one model of them: by the
mean of their probabilities, and compared with those of the reference as one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import SimpleITK
from numpy.typing import NDArray
from scipy import stats

from neurofoundry.contracts import folds
from neurofoundry.contracts.cohort import TESTED
from neurofoundry.contracts.labels import CARRIED, FILE, open_classes, read_labels
from neurofoundry.contracts.masks import MASKS, open_masks
from neurofoundry.contracts.models import (
    DONE,
    ENSEMBLE,
    PREDICTIONS,
    counterpart,
    group_folder,
    run_folder,
)
from neurofoundry.contracts.tables import read_table, write_table
from neurofoundry.contracts.volumes import Grid, Volumes
from neurofoundry.evaluate.measure.subgroups import groups
from neurofoundry.evaluate.rows import table_of
from neurofoundry.stats import intervals
from neurofoundry.stats.comparisons import t_test
from neurofoundry.stats.outlines import OUTLINE_METRICS, compare
from neurofoundry.tasks import Segmentation
from neurofoundry.tasks.base import BASELINE

OUTLINES = (
    *("task", "class", "init", "fraction", "split", "metric", "value", "low", "high"),
    *("persons", "scans", "reason"),
)
"""Columns of tables/outlines.tsv."""

OUTLINE_DIFFERENCES = (
    *("task", "class", "init", "versus", "fraction", "split", "metric"),
    *("value", "low", "high", "p", "persons", "scans", "reason"),
)
"""Columns of tables/outline_differences.tsv."""

OUTLINE_VOLUMES = (
    *("task", "class", "init", "fraction", "split", "bias", "low", "high"),
    *("limit_low", "limit_high", "correlation", "correlation_low", "correlation_high"),
    *("persons", "scans", "reason"),
)
"""Columns of tables/outline_volumes.tsv: the outlined less the true volume in ml, its mean with
the interval, and the limits that 95 % of scans lie within (Bland and Altman, Lancet 1986); the
correlation of the two over persons."""

OUTLINE_SUBGROUPS = (
    *("task", "class", "init", "split", "variable", "group", "metric", "value", "low", "high"),
    *("persons", "reason"),
)
"""Columns of tables/outline_subgroups.tsv: Dice in groups of people, of floors and of models of all
labels."""

ML = ("true_ml", "found_ml")
"""Volumes in the size of the scan."""

SCANS = ("task", "class", "init", "fraction", "scan_id", "person", "split", *OUTLINE_METRICS, *ML)
"""Columns of the table of single scans; it stays in memory, as it names scans."""

OTSU, ATLAS = f"{BASELINE}otsu", f"{BASELINE}atlas"
SHARES = ("dice", "lesion_f1", "nothing_found")
"""Metrics that end at 0 and 1, beside the sensitivities."""

Reader = Callable[[str], NDArray[np.uint8]]
"""A function from a scan id to classes (z, y, x)."""


@dataclass(frozen=True, eq=False)
class Example:
    """A test scan with both of its outlines, (z, y, x) on the standard grid."""

    task: str
    name: str
    """The class."""
    init: str
    place: str
    """best, median or worst, by Dice."""
    dice: float
    true_ml: float
    found_ml: float
    volume: NDArray[np.int16]
    truth: NDArray[np.bool_]
    found: NDArray[np.bool_]
    grid: Grid


@dataclass(frozen=True, eq=False)
class Outlines:
    """What is measured of all segmentations."""

    tasks: Mapping[str, Segmentation]
    reference: str
    measures: pd.DataFrame
    """``OUTLINES``."""
    differences: pd.DataFrame
    """``OUTLINE_DIFFERENCES``."""
    volumes: pd.DataFrame
    """``OUTLINE_VOLUMES``."""
    subgroups: pd.DataFrame
    """``OUTLINE_SUBGROUPS``."""
    scans: pd.DataFrame
    """``SCANS``."""
    chosen: Mapping[str, str]
    """The initialization of each task with the least loss on val, where anything was trained."""
    examples: tuple[Example, ...]
    """Of the chosen initializations, with all labels."""


def measure(
    tasks: Mapping[str, Segmentation],
    runs: pd.DataFrame,
    volumes: Volumes,
    models: Path,
    *,
    reference: str,
    fewest: int,
    fewest_in_group: int,
) -> Outlines:
    """Measure every model and floor of every segmentation.

    Splits with fewer than ``fewest`` persons for a metric get a reason instead of a number, groups
    of people with fewer than ``fewest_in_group`` not even their count.
    """
    studies = [_Study(name, task, volumes, models) for name, task in tasks.items()]
    rows = [row for each in studies for row in each.scans(_done(runs, each.name))]
    scans = pd.DataFrame(rows, columns=list(SCANS))
    keys = ["task", "class", "init", "fraction", "scan_id", "person", "split"]
    # A scan that several seeds or folds have predicted counts once.
    scans = scans.groupby(keys, sort=False)[[*OUTLINE_METRICS, *ML]].mean().reset_index()
    count = folds.count(volumes.scans)
    widening = intervals.widening(count) if count else 1.0
    chosen = {each.name: init for each in studies if (init := each.chosen(_done(runs, each.name)))}
    return Outlines(
        tasks=tasks,
        reference=reference,
        measures=pd.DataFrame(_measures(scans, fewest, widening), columns=list(OUTLINES)),
        differences=pd.DataFrame(
            _differences(scans, reference, fewest, widening), columns=list(OUTLINE_DIFFERENCES)
        ),
        volumes=pd.DataFrame(_agreement(scans, fewest), columns=list(OUTLINE_VOLUMES)),
        subgroups=table_of(
            list(_subgroups(scans, volumes.scans, fewest_in_group, widening)), OUTLINE_SUBGROUPS
        ),
        scans=scans,
        chosen=chosen,
        examples=tuple(
            example
            for each in studies
            if each.name in chosen
            for example in each.examples(scans, _done(runs, each.name), chosen[each.name])
        ),
    )


def _done(runs: pd.DataFrame, task: str) -> pd.DataFrame:
    return runs[(runs["task"] == task) & (runs["status"] == DONE)]


def write(folder: Path, measured: Outlines) -> None:
    """Write tables/outlines.tsv and its siblings: differences, volumes and subgroups."""
    (folder / "tables").mkdir(exist_ok=True)
    write_table(measured.measures, folder / "tables/outlines.tsv")
    write_table(measured.differences, folder / "tables/outline_differences.tsv")
    write_table(measured.volumes, folder / "tables/outline_volumes.tsv")
    write_table(measured.subgroups, folder / "tables/outline_subgroups.tsv")


def describe(measured: Outlines) -> Iterator[str]:
    """Yield a line for the Dice of every model and floor."""
    table = measured.measures
    for row in table[table["metric"] == "dice"].to_dict("records"):
        about = f"{row['task']} ({row['class']}), {row['split']}, {row['init']}"
        if pd.isna(row["value"]):
            yield f"{about}: {row['reason']}"
        elif pd.isna(row["low"]):
            yield f"{about}: Dice {row['value']:.2f}"
        else:
            interval = f"({row['low']:.2f} to {row['high']:.2f})"
            yield f"{about}: Dice {row['value']:.2f} {interval}, {row['persons']} persons"


@dataclass(frozen=True)
class _Study:
    """One task, with what it was learned from and is judged on."""

    name: str
    task: Segmentation
    volumes: Volumes
    models: Path

    def scans(self, runs: pd.DataFrame) -> Iterator[tuple[object, ...]]:
        """Yield the rows of ``SCANS`` of ``runs``, which are done, then of the floors."""
        for run in runs.to_dict("records"):
            yield from self._found(self._folder(run), str(run["init"]), float(run["fraction"]))
        yield from self._together(runs)
        if folds.count(self.volumes.scans):
            return
        chosen = self.task.select(self.volumes.usable)
        learn, judged = (chosen[chosen["split"].isin(names)] for names in (["train"], TESTED))
        floors = {ATLAS: self._atlas(learn)}
        if len(self.task.classes) == 1:
            floors[OTSU] = self._otsu(learn)
        for init, read in floors.items():
            yield from self._compared(init, 1.0, judged, read)

    def _together(self, runs: pd.DataFrame) -> Iterator[tuple[object, ...]]:
        """Yield the rows of the models of several seeds or folds as one."""
        for init, fraction in runs[["init", "fraction"]].drop_duplicates().itertuples(index=False):
            folder = self.models / group_folder(self.name, init, fraction)
            if (folder / MASKS).exists():
                yield from self._found(folder, f"{init}{ENSEMBLE}", fraction)

    def _found(self, folder: Path, init: str, fraction: float) -> Iterator[tuple[object, ...]]:
        """Yield the rows of what a model, or several as one, outlined: the masks in ``folder``."""
        table = read_table(folder / "predictions.tsv", PREDICTIONS)
        read = open_masks(folder / MASKS, self.volumes.grid)
        yield from self._compared(init, fraction, table, read)

    def chosen(self, runs: pd.DataFrame) -> str | None:
        """Return the initialization whose models have the least loss on val, with all labels."""
        largest = runs[runs["fraction"] == runs["fraction"].max()]
        losses = [
            pd.read_csv(self._folder(run) / "history.tsv", sep="\t")["val_loss"].min()
            for run in largest.to_dict("records")
        ]
        means = pd.Series(losses, dtype=float).groupby(largest["init"].to_numpy()).mean()
        return None if means.empty else str(means.idxmin())

    def examples(self, scans: pd.DataFrame, runs: pd.DataFrame, init: str) -> Iterator[Example]:
        """Yield the test scans that an initialization outlines best, at the median and worst, of
        each class, as its first model does."""
        largest = runs["fraction"].max()
        of_init = runs[(runs["init"] == init) & (runs["fraction"] == largest)]
        rows = scans[
            (scans["task"] == self.name)
            & (scans["init"] == init)
            & (scans["fraction"] == largest)
            & (scans["split"] == "test")
        ]
        for number, name in enumerate(self.task.classes, 1):
            ranked = rows[rows["class"] == name].dropna(subset="dice")
            # Of scans where nothing fits, the largest that was missed is the worst.
            ranked = ranked.sort_values(
                ["dice", "true_ml", "scan_id"], ascending=[False, True, True]
            )
            for place, row in _places(ranked):
                yield self._example(row["scan_id"], of_init, number, place)

    def _example(self, scan_id: str, runs: pd.DataFrame, number: int, place: str) -> Example:
        folder = next(
            folder
            for folder in map(self._folder, runs.to_dict("records"))
            if scan_id in set(read_table(folder / "predictions.tsv", PREDICTIONS)["scan_id"])
        )
        found = open_masks(folder / MASKS, self.volumes.grid)(scan_id) == number
        truth, voxel_ml = self.truth(scan_id) == number, self.voxel_ml[scan_id]
        return Example(
            task=self.name,
            name=self.task.classes[number - 1],
            init=str(runs["init"].iloc[0]),
            place=place,
            dice=2 * int((found & truth).sum()) / int(found.sum() + truth.sum()),
            true_ml=float(truth.sum() * voxel_ml),
            found_ml=float(found.sum() * voxel_ml),
            volume=self.volumes.open(scan_id),
            truth=truth,
            found=found,
            grid=self.volumes.grid,
        )

    def _folder(self, run: Mapping[Hashable, Any]) -> Path:
        where = (self.name, run["init"], run["fraction"], run["seed"], run.get("fold", 0))
        return self.models / run_folder(*where)

    @cached_property
    def voxel_ml(self) -> pd.Series[float]:
        """The volume of a voxel of the grid in each scan."""
        labels = read_labels(self.volumes.folder, CARRIED)
        of_task = labels[labels["task"] == self.name]
        return of_task.set_index("scan_id")["voxel_ml"].astype(float)

    def _compared(
        self, init: str, fraction: float, table: pd.DataFrame, read: Reader
    ) -> Iterator[tuple[object, ...]]:
        for scan in table[table["split"].isin(TESTED)].to_dict("records"):
            found, truth = read(scan["scan_id"]), self.truth(scan["scan_id"])
            for number, name in enumerate(self.task.classes, 1):
                masks, voxel_ml = (truth == number, found == number), self.voxel_ml[scan["scan_id"]]
                compared = compare(
                    *reversed(masks), spacing=self.volumes.grid.spacing, voxel_ml=voxel_ml
                )
                about = (self.name, name, init, fraction, scan["scan_id"], scan["person"])
                metrics = (compared[each] for each in OUTLINE_METRICS)
                yield (*about, scan["split"], *metrics, *(m.sum() * voxel_ml for m in masks))

    def truth(self, scan_id: str) -> NDArray[np.uint8]:
        """Return the label image of a scan."""
        path = self.volumes.folder / FILE.format(scan_id=scan_id, task=self.name)
        return open_classes(path, self.volumes.grid)

    def _otsu(self, learn: pd.DataFrame) -> Reader:
        """Return what outlines one side of Otsu's threshold."""

        def side(scan_id: str, dark: bool) -> NDArray[np.bool_]:
            volume = self.volumes.open(scan_id)
            below = volume <= otsu(np.asarray(volume[volume != 0]))
            chosen: NDArray[np.bool_] = (volume != 0) & (below == dark)
            return chosen

        def fit(dark: bool) -> float:
            inside = [
                (side(scan_id, dark), self.truth(scan_id) > 0) for scan_id in learn["scan_id"]
            ]
            return sum(float((found & true).sum() / found.sum()) for found, true in inside)

        dark = fit(True) >= fit(False)
        return lambda scan_id: side(scan_id, dark).astype(np.uint8)

    def _atlas(self, learn: pd.DataFrame) -> Reader:
        """Return what outlines the same for everyone."""
        atlas = np.zeros(self.volumes.grid.shape[::-1], np.uint8)
        for number in range(1, len(self.task.classes) + 1):
            there = [self.truth(scan_id) == number for scan_id in learn["scan_id"]]
            share: NDArray[np.float32] = np.stack(there).mean(axis=0, dtype=np.float32)
            levels = np.unique(share[share > 0])
            if len(levels):
                # The Dice of the sums over all training scans.
                fits = [
                    2 * share[share >= level].sum() / ((share >= level).sum() + share.sum())
                    for level in levels
                ]
                atlas[share >= levels[int(np.argmax(fits))]] = number
        return lambda _: atlas


def otsu(values: NDArray[np.generic]) -> float:
    """Return Otsu's threshold of values (n,)."""
    otsu = SimpleITK.OtsuThresholdImageFilter()
    otsu.Execute(SimpleITK.GetImageFromArray(values.astype(np.float32)[None]))
    return float(otsu.GetThreshold())


def _measures(scans: pd.DataFrame, fewest: int, widening: float) -> Iterator[tuple[object, ...]]:
    for key, rows in scans.groupby(["task", "class", "init", "fraction", "split"], sort=False):
        for metric in OUTLINE_METRICS:
            value, low, high, _ = _estimated(rows, metric, fewest, widening)
            yield (*key, metric, value, low, high, *_counted(rows, metric, fewest))


def _differences(
    scans: pd.DataFrame, reference: str, fewest: int, widening: float
) -> Iterator[tuple[object, ...]]:
    keys = ["task", "class", "fraction", "split", "scan_id", "person"]
    for init, rows in scans.groupby("init", sort=False):
        versus = counterpart(str(init), reference)
        against = scans[scans["init"] == versus].drop(columns="init")
        if init == versus or against.empty:
            continue
        pairs = rows.merge(against, on=keys, suffixes=("", "_reference"))
        for metric in OUTLINE_METRICS:
            pairs[metric] = pairs[metric] - pairs[f"{metric}_reference"]
        for key, of_split in pairs.groupby(["task", "class", "fraction", "split"], sort=False):
            task, name, fraction, split = key
            for metric in OUTLINE_METRICS:
                about = (task, name, init, versus, fraction, split, metric)
                value, low, high, p = _estimated(of_split, metric, fewest, widening, paired=True)
                yield (*about, value, low, high, p, *_counted(of_split, metric, fewest))


def _places(ranked: pd.DataFrame) -> Iterator[tuple[str, dict[Hashable, Any]]]:
    """Yield the best, the median and the worst of ranked scans, each once."""
    rows = ranked.to_dict("records")
    if rows:
        yield "best", rows[0]
    if len(rows) > 2:
        yield "median", rows[len(rows) // 2]
    if len(rows) > 1:
        yield "worst", rows[-1]


def _agreement(scans: pd.DataFrame, fewest: int) -> Iterator[tuple[object, ...]]:
    """Yield the rows of ``OUTLINE_VOLUMES``."""
    for key, rows in scans.groupby(["task", "class", "init", "fraction", "split"], sort=False):
        counted = (rows["person"].nunique(), len(rows))
        if counted[0] < max(fewest, 4):
            reason = f"{counted[0]} persons, {max(fewest, 4)} are needed"
            yield (*key, *[None] * 8, *counted, reason)
            continue
        apart = (rows["found_ml"] - rows["true_ml"]).to_numpy(float)
        found = intervals.mean_with_error(apart, rows["person"].to_numpy())
        bias = t_test(float(found[0]), float(found[1]), [counted[0]])
        reach = 1.96 * float(apart.std(ddof=1))
        limits = (float(found[0]) - reach, float(found[0]) + reach)
        yield (
            *key,
            *(bias.value, bias.low, bias.high),
            *limits,
            *_correlation(rows.groupby("person")[[*ML]].mean()),
            *counted,
            None,
        )


def _subgroups(
    scans: pd.DataFrame, persons: pd.DataFrame, fewest: int, widening: float
) -> Iterator[dict[str, object]]:
    """Yield the rows of ``OUTLINE_SUBGROUPS``; ``persons`` is the table of all volumes."""
    known = persons[["scan_id", "sex", "age", "site", "scanner"]]
    largest = scans.groupby(["task", "init"])["fraction"].transform("max")
    judged = scans[scans["fraction"] == largest].dropna(subset="dice").merge(known, on="scan_id")
    keys = ["task", "class", "init", "split"]
    for key, rows in judged.groupby(keys, sort=False):
        for variable, group, inside in groups(rows, np.ones(len(rows), bool)):
            value, low, high, _ = _estimated(rows[inside], "dice", fewest, widening)
            head = dict(zip(keys, key, strict=True)) | {"variable": variable, "group": group}
            count = rows["person"][inside].nunique()
            few = count < fewest  # their number could point to somebody
            yield {
                **head,
                **{"metric": "dice", "value": value, "low": low, "high": high},
                "persons": np.nan if few else count,
                "reason": f"fewer than {fewest} persons" if few else None,
            }


def _correlation(volumes: pd.DataFrame) -> tuple[float | None, float | None, float | None]:
    """Return Pearson's correlation with its interval by Fisher's transformation; None where either
    is the same for everybody."""
    if (volumes.nunique() < 2).any():
        return None, None, None
    found = stats.pearsonr(volumes["true_ml"], volumes["found_ml"])
    ends = found.confidence_interval(0.95)
    return float(found.statistic), float(ends.low), float(ends.high)


def _estimated(
    rows: pd.DataFrame, metric: str, fewest: int, widening: float, *, paired: bool = False
) -> tuple[float | None, float | None, float | None, float | None]:
    """Return mean, interval and p-value of a metric over scans, clustered by person."""
    known = rows.dropna(subset=metric)
    if known["person"].nunique() < fewest:
        return None, None, None, None
    found = intervals.mean_with_error(known[metric].to_numpy(float), known["person"].to_numpy())
    value, error = map(float, found)
    factor = widening if (rows["split"] == "test").all() else 1.0
    estimate = t_test(value, error * factor, [known["person"].nunique()])
    low, high = estimate.low, estimate.high
    if low is not None and high is not None and not paired:
        share = metric in SHARES or metric.startswith("sensitivity")
        low, high = max(0.0, low), min(1.0, high) if share else high
    return value, low, high, estimate.p


def _counted(rows: pd.DataFrame, metric: str, fewest: int) -> tuple[int, int, str | None]:
    known = rows.dropna(subset=metric)
    persons = known["person"].nunique()
    reason = None if persons >= fewest else f"{persons} persons, {fewest} are needed"
    return persons, len(known), reason
