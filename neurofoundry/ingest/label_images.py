"""Finds the label image of every scan, and checks it as scans are checked.

- **By name**: `suffix` and the entities of `tasks.TASK.label`, the scan's own ``sub`` and ``ses``,
  and no entity that contradicts the scan's (a ``run``, an ``acq``). It lies beside the scan, or in
  ``derivatives/`` or ``derivatives/PIPELINE/`` of its dataset, in folders like those of the scan.
  Of several, the one whose name differs least from the scan's; two that differ alike are none.
- **By table**: the path in a column, relative to the dataset.
- It is sound NIfTI on the grid of its scan: the same voxels in any order of the axes, every corner
  within a tenth of a voxel. Its values are those of the classes. It may outline nothing.

A label image that cannot be used costs its scan that label; notes.tsv says why.
"""

from __future__ import annotations

import itertools
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import apply_affine, voxel_sizes

from neurofoundry.contracts.labels import (
    LABELS,
    classify,
    describe_values,
    geometry,
    read_placed,
)
from neurofoundry.ingest.bids import IMAGE
from neurofoundry.ingest.image import inspect_image
from neurofoundry.ingest.labels import cell
from neurofoundry.ingest.params import Dataset
from neurofoundry.ingest.scan import (
    Findings,
    Scan,
    UnusableError,
    check_location,
    map_in_threads,
    printable,
)
from neurofoundry.runtime.log import LOGGER
from neurofoundry.tasks import Labelled, Segmentation, segmentations
from neurofoundry.tasks.segmentation import EMPTY, LabelImage

_OFF_GRID = 0.1
"""How far, in voxels, a corner of a label image may lie from that of its scan."""
_OF_THE_SCAN = frozenset({"T1w", "orig", "native", "individual", "scanner", "anat"})
"""Spaces that are the scan's own."""
_PERSON = ("sub", "ses")

_Images = Callable[[Path], tuple[Path, ...]]
"""A function that lists the images in a folder."""


@dataclass(frozen=True)
class _Sought:
    """A scan whose label image a task asks for."""

    name: str
    task: Segmentation
    scan: Scan
    roots: tuple[Path, ...]
    """The folders of the datasets in which the scan lies, the innermost first."""


@dataclass(frozen=True)
class _Found:
    """A label image that can be used."""

    file: Path
    sha256: str
    values: str
    shows: str
    ml: float


def find(
    scans: Sequence[Scan],
    datasets: Sequence[Dataset],
    tasks: Mapping[str, Labelled],
    findings: Findings,
    *,
    workers: int,
) -> pd.DataFrame:
    """Return the rows of labels.tsv; what cannot be used is noted in ``findings``."""
    folders = [findings.data / dataset.path for dataset in datasets]
    folders = sorted({each.parent if each.is_file() else each for each in folders}, reverse=True)
    sought = [
        _Sought(name, task, scan, tuple(f for f in folders if scan.file.is_relative_to(f)))
        for name, task in segmentations(tasks).items()
        for scan in scans
    ]
    rows = []
    images = cache(_images)
    for each, found in map_in_threads(
        partial(_inspect, images=images),
        sought,
        what="inspecting label images",
        unit="scans",
        workers=workers,
    ):
        if isinstance(found, UnusableError):
            note = f"label image of {each.name}: {found}"
            findings.note(each.scan.dataset, each.scan.origin, note)
        elif found is not None:
            path = found.file.relative_to(findings.data).as_posix()
            findings.hashes[findings.name(found.file)] = found.sha256
            rows.append((each.name, each.scan.scan_id, path, *astuple(found)[1:]))
    table = pd.DataFrame(rows, columns=list(LABELS.columns))
    used = set(table["path"])  # beside scans, where the reader of the dataset found no T1w
    findings.excluded = [each for each in findings.excluded if each[1] not in used]
    _log(table, sought)
    return table


def add_columns(
    rows: pd.DataFrame, labels: pd.DataFrame, tasks: Mapping[str, Labelled]
) -> pd.DataFrame:
    """Return the rows of the cohort with what the label images of each task show."""
    for name, task in segmentations(tasks).items():
        shows = labels[labels["task"] == name].set_index("scan_id")["shows"]
        rows = rows.assign(**{task.column: rows["scan_id"].map(shows).astype(object)})
    return rows


def _log(table: pd.DataFrame, sought: Sequence[_Sought]) -> None:
    for name, count in Counter(each.name for each in sought).items():
        of_task = table[table["task"] == name]
        empty = int((of_task["shows"] == EMPTY).sum())
        LOGGER.info(
            "task '%s': %d of %d scans have a label image, %d of them empty",
            name,
            len(of_task),
            count,
            empty,
        )


def _inspect(sought: _Sought, images: _Images) -> _Found | None:
    """Return the label image of a scan, None where there is none. Raises UnusableError."""
    label = sought.task.label
    file = _in_table(sought) if label.column is not None else _by_name(sought, images)
    if file is None:
        return None
    hashes = inspect_image(file, may_be_empty=True)
    if isinstance(hashes, UnusableError):
        raise UnusableError(f"{_shown(file)}: {hashes}")
    _check_grid(file, sought.scan.file)
    placed = read_placed(file)
    try:
        values = describe_values(sought.task.values_in(placed.voxels))
    except ValueError as error:
        raise UnusableError(f"{_shown(file)}: {error}") from None
    classes = classify(placed.voxels, values)
    ml = int(np.count_nonzero(classes)) * placed.voxel_ml
    return _Found(file, hashes.sha256, values, sought.task.shows(classes), round(ml, 4))


def _in_table(sought: _Sought) -> Path | None:
    """Return the file that a table names."""
    column = sought.task.label.column or ""
    named = cell(sought.scan, [column])
    if named is None:
        return None
    inside = posixpath.normpath(named)
    for root in sought.roots:
        file = root / inside
        if not inside.startswith(("..", "/")) and file.exists():
            check_location(file, root)
            return _nifti(file)
    raise UnusableError(f"the column {column} names no file of the dataset")


def _by_name(sought: _Sought, images: _Images) -> Path | None:
    """Return the file whose name fits best. Raises UnusableError where several do."""
    of_scan = _entities(sought.scan.file)
    if "sub" not in of_scan:
        return None
    near: dict[tuple[int, int], list[Path]] = {}
    for file in itertools.chain.from_iterable(map(images, _places(sought))):
        if (difference := _difference(file, of_scan, sought.task.label)) is not None:
            near.setdefault(difference, []).append(file)
    best = near[min(near)] if near else []
    if len(best) > 1:
        names = " and ".join(_shown(file) for file in best[:2])
        raise UnusableError(
            f"{len(best)} images fit alike: {names}. Name more entities in tasks.{sought.name}."
            "label, or a column of paths"
        )
    for file in best:
        root = next(root for root in sought.roots if file.is_relative_to(root))
        check_location(file, root)
    return best[0] if best else None


def _places(sought: _Sought) -> Iterator[Path]:
    """Yield the folders in which the label image of a scan may lie."""
    folder = sought.scan.file.parent
    if sought.roots:
        yield folder
    for root in sought.roots:
        inside = folder.relative_to(root)
        derivatives = root / "derivatives"
        yield derivatives / inside
        yield from (pipeline / inside for pipeline in sorted(derivatives.glob("[!.]*/")))


def _difference(
    file: Path, of_scan: Mapping[str, str], label: LabelImage
) -> tuple[int, int] | None:
    """Return how many entities a name has that the scan has not, and the other way round; None
    where it is no label image of this scan."""
    found = _entities(file)
    suffix = _stem(file).rpartition("_")[2]
    if suffix != label.suffix or any(found.get(key) != of_scan.get(key) for key in _PERSON):
        return None
    wanted = label.entities
    if any(found.get(key) != value for key, value in wanted.items()):
        return None
    others = {key: value for key, value in found.items() if key not in (*wanted, *_PERSON)}
    if others.get("space") in _OF_THE_SCAN:
        del others["space"]
    if "space" in others and "space" not in of_scan:
        return None
    if any(key in of_scan and of_scan[key] != value for key, value in others.items()):
        return None
    missing = of_scan.keys() - found.keys()
    return len(others.keys() - of_scan.keys()), len(missing)


def _check_grid(file: Path, scan: Path) -> None:
    """Raise UnusableError unless an image has the voxels of its scan, in whatever order."""
    (shape, affine), (of_scan, onto) = geometry(file), geometry(scan)
    if shape != of_scan:
        by, expected = (" × ".join(map(str, each)) for each in (shape, of_scan))
        raise UnusableError(
            f"{_shown(file)}: another grid than the scan's: {by} voxels, expected {expected}. "
            "Resample it to the scan, to the nearest voxel"
        )
    corners = np.array(list(itertools.product(*((0, size - 1) for size in shape))))
    apart = np.linalg.norm(apply_affine(affine, corners) - apply_affine(onto, corners), axis=1)
    if apart.max() > _OFF_GRID * voxel_sizes(onto).min():
        raise UnusableError(
            f"{_shown(file)}: another grid than the scan's: a corner lies {apart.max():.3g} mm "
            "from the scan's. Resample it to the scan, to the nearest voxel"
        )


def _nifti(file: Path) -> Path:
    if not file.name.endswith(IMAGE):
        raise UnusableError(f"{_shown(file)}: not NIfTI: expected .nii or .nii.gz. Convert it")
    return file


def _images(folder: Path) -> tuple[Path, ...]:
    """Return the images in a folder."""
    return tuple(sorted(file for file in folder.glob("*.nii*") if file.name.endswith(IMAGE)))


def _entities(file: Path) -> dict[str, str]:
    """Return the entities in a name."""
    pairs = (part.partition("-") for part in _stem(file).split("_"))
    return {key: value for key, dash, value in pairs if dash}


def _stem(file: Path) -> str:
    return unicodedata.normalize("NFC", file.name).removesuffix(".gz").removesuffix(".nii")


def _shown(file: Path) -> str:
    return printable(file.name)
