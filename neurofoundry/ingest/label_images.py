"""Finds the label image of every scan, and checks it as scans are checked.

- **By name**: `suffix` and the entities of `tasks.TASK.label`, the scan's own ``sub`` and ``ses``,
  and no entity that contradicts the scan's (a ``run``, an ``acq``). It lies beside the scan, or in
  ``derivatives/`` or ``derivatives/PIPELINE/`` of its dataset, in folders like those of the scan.
  Of several, the one whose name differs least from the scan's; two that differ alike are none.
- **By table**: the path in a column, relative to the dataset.
- It is sound NIfTI on the grid of its scan: the same voxels in any order of the axes, every corner
  within a tenth of a voxel. Its values are those of the classes. It may outline nothing, but not
  everything, and not voxel for voxel the same as in another person.

A label image that cannot be used costs its scan that label; notes.tsv says why, also of what is
called like one and is of another session, image or space.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from neurofoundry.ingest.bids import IMAGE, OTHER_FORMATS
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
from neurofoundry.ingest.table import locate
from neurofoundry.runtime.files import hash_file
from neurofoundry.runtime.log import LOGGER
from neurofoundry.tasks import Labelled, Segmentation, segmentations
from neurofoundry.tasks.segmentation import ANY, EMPTY, JOINT, LabelImage

_OFF_GRID = 0.1
"""How far, in voxels, a corner of a label image may lie from that of its scan."""
_OF_THE_SCAN = frozenset({"T1w", "orig", "native", "individual", "scanner", "anat"})
"""Spaces that are the scan's own."""
_PERSON = ("sub", "ses")
_BY_CHANCE = 100
"""Voxels that two persons' label images cannot have alike by chance."""

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
    data: Path
    """The root of all data."""


@dataclass(frozen=True)
class _Found:
    """A label image that can be used."""

    file: Path
    content: str
    """Of the values, as `ImageHashes` have it."""
    voxels: int
    """How many are outlined."""
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
        _Sought(
            name,
            task,
            scan,
            tuple(f for f in folders if scan.file.is_relative_to(f)),
            findings.data,
        )
        for name, task in segmentations(tasks).items()
        for scan in scans
    ]
    found: list[tuple[_Sought, _Found]] = []
    listed = cache(_images)
    for each, image in map_in_threads(
        partial(_inspect, images=listed),
        sought,
        what="inspecting label images",
        unit="scans",
        workers=workers,
    ):
        if isinstance(image, UnusableError):
            _note(findings, each, image)
        elif image is not None:
            found.append((each, image))
    rows = []
    for each, image in _without_copies(found, findings):
        path = image.file.relative_to(findings.data).as_posix()
        findings.hashes[findings.name(image.file)] = image.sha256
        row = (image.sha256, image.values, image.shows, image.ml)
        rows.append((each.name, each.scan.scan_id, path, *row))
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


def _note(findings: Findings, of: _Sought, why: object) -> None:
    findings.note(of.scan.dataset, of.scan.origin, f"label image of {of.name}: {why}")


def _without_copies(
    found: Sequence[tuple[_Sought, _Found]], findings: Findings
) -> Iterator[tuple[_Sought, _Found]]:
    """Yield what was found but label images that several persons have alike, which are noted: of
    all but one person they are wrong, and nothing tells of whom."""
    owners: dict[tuple[str, str], dict[tuple[str, str], Path]] = {}
    for each, image in found:
        if image.voxels >= _BY_CHANCE:
            person = (each.scan.dataset, each.scan.subject)
            owners.setdefault((each.name, image.content), {}).setdefault(person, image.file)
    for each, image in found:
        alike = dict(owners.get((each.name, image.content), {}))
        alike.pop((each.scan.dataset, each.scan.subject), None)
        if not alike:
            yield each, image
            continue
        why = f"the same {image.voxels} voxels as in {_shown(next(iter(alike.values())))}, which "
        why += "is of another person. Replace the one that is a copy"
        _note(findings, each, f"{_shown(image.file)}: {why}")


def _log(table: pd.DataFrame, sought: Sequence[_Sought]) -> None:
    for name, count in Counter(each.name for each in sought).items():
        of_task = table[table["task"] == name]
        outlined = of_task[of_task["shows"] != EMPTY]
        LOGGER.info(
            "task '%s': %d of %d scans have a label image, %d of them empty%s",
            name,
            len(of_task),
            count,
            len(of_task) - len(outlined),
            f"; the others outline {outlined['ml'].median():.3g} ml (median)"
            if len(outlined)
            else "",
        )
        _log_absent(of_task, next(each.task for each in sought if each.name == name))


def _log_absent(found: pd.DataFrame, task: Segmentation) -> None:
    """Warn of classes that no label image shows: their values may be others."""
    shown = {name for cell in found["shows"] for name in cell.split(JOINT)}
    for name, values in task.label.values.items():
        if len(found) and name not in shown and values != ANY:
            LOGGER.warning(
                "task '%s': no label image shows %s. Are its values %s in label.values right?",
                task.column,
                name,
                ", ".join(map(str, values)),
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
    voxels = int(np.count_nonzero(classes))
    if voxels == classes.size:
        raise UnusableError(f"{_shown(file)}: every voxel is outlined, expected 0 as background")
    ml = round(voxels * placed.voxel_ml, 4)
    shows = sought.task.shows(classes)
    return _Found(file, hashes.content, voxels, hashes.sha256, values, shows, ml)


def _in_table(sought: _Sought) -> Path | None:
    """Return the file that a table names."""
    column = sought.task.label.column or ""
    named = cell(sought.scan, [column])
    if named is None:
        return None
    for root in sought.roots:
        file, inside = locate(named, root, sought.data)
        if file.exists():
            check_location(file, inside)
            return _nifti(file)
    raise UnusableError(f"the column {column} names no file of the dataset")


def _by_name(sought: _Sought, images: _Images) -> Path | None:
    """Return the file whose name fits best. Raises UnusableError where several do."""
    of_scan = _entities(sought.scan.file)
    if "sub" not in of_scan:
        return None
    near: dict[tuple[int, int], list[Path]] = {}
    unfit = None
    for file in itertools.chain.from_iterable(map(images, _places(sought))):
        if not _is_called_so(file, sought.task.label):
            continue
        if why := _contradiction(file, of_scan, sought.task.label):
            unfit = unfit or f"{_shown(file)}: {why}"
        else:
            near.setdefault(_difference(file, of_scan, sought.task.label), []).append(file)
    if unfit and not near:
        raise UnusableError(unfit)
    best = near[min(near)] if near else []
    best = [file for file in best if file.name.endswith(IMAGE)] or best
    if len(best) > 1 and not _are_copies(best):
        names = " and ".join(_shown(file) for file in best[:2])
        raise UnusableError(
            f"{len(best)} images fit alike: {names}. Name more entities in tasks.{sought.name}."
            "label, or a column of paths"
        )
    for file in best:
        root = next(root for root in sought.roots if file.is_relative_to(root))
        check_location(file, root)
    return _nifti(best[0]) if best else None


def _are_copies(files: Sequence[Path]) -> bool:
    """Return whether files have the same bytes: beside the scan and in derivatives/, too."""
    return len({hash_file(file) for file in files}) == 1


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


def _is_called_so(file: Path, label: LabelImage) -> bool:
    """Return whether an image has the name of a label image, of whichever scan."""
    found = _entities(file)
    suffix = _stem(file).rpartition("_")[2]
    return suffix == label.suffix and label.entities.items() <= found.items()


def _contradiction(file: Path, of_scan: Mapping[str, str], label: LabelImage) -> str | None:
    """Return why a label image is not of this scan, in words; None if it may be."""
    found, others = _entities(file), _others(file, label)
    for key in _PERSON:
        if found.get(key) != of_scan.get(key):
            there, here = (
                f"{key}-{each[key]}" if key in each else f"no {key}" for each in (found, of_scan)
            )
            return f"of {there}, and the scan of {here}"
    if "space" in others and "space" not in of_scan:
        return (
            f"in space-{others['space']}, and the scan is raw. Bring it into the scan's own voxels"
        )
    for key, value in others.items():
        if of_scan.get(key, value) != value:
            return f"of {key}-{value}, and the scan of {key}-{of_scan[key]}"
    return None


def _difference(file: Path, of_scan: Mapping[str, str], label: LabelImage) -> tuple[int, int]:
    """Return how many entities a name has that the scan has not, and the other way round."""
    others, missing = _others(file, label), of_scan.keys() - _entities(file).keys()
    return len(others.keys() - of_scan.keys()), len(missing)


def _others(file: Path, label: LabelImage) -> dict[str, str]:
    """Return what a name says beside whose it is, what is wanted, and that it is in raw space."""
    said = (*label.entities, *_PERSON)
    others = {key: value for key, value in _entities(file).items() if key not in said}
    if others.get("space") in _OF_THE_SCAN:
        del others["space"]
    return others


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
    """Return the images in a folder; of those that are not NIfTI one of each name."""
    files = sorted(folder.glob("*.*"))
    others = {_stem(file): file for file in files if file.name.lower().endswith(OTHER_FORMATS)}
    return (*(file for file in files if file.name.endswith(IMAGE)), *others.values())


def _entities(file: Path) -> dict[str, str]:
    """Return the entities in a name."""
    pairs = (part.partition("-") for part in _stem(file).split("_"))
    return {key: value for key, dash, value in pairs if dash}


def _stem(file: Path) -> str:
    name = unicodedata.normalize("NFC", file.name)
    ends = (end for end in (*IMAGE, *OTHER_FORMATS) if name.lower().endswith(end))
    return name.removesuffix(name[len(name) - len(next(ends, "")) :])


def _shown(file: Path) -> str:
    return printable(file.name)
