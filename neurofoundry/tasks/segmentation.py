"""Segmentation: which class each voxel of a scan belongs to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator

from neurofoundry.errors import counted
from neurofoundry.params import Section
from neurofoundry.tasks.base import Labelled, Values

if TYPE_CHECKING:
    from torch import Tensor

EMPTY = "empty"
"""What a label image shows that outlines nothing."""

WHOLE = 1e-3
"""By how much a value of a label image may differ from a whole number."""

SMOOTH = 1.0
"""Voxels that keep Dice defined where a batch has none of a class."""

MOST = 255
"""Classes: masks are bytes, and 0 is the background."""

ANY = "any"
"""The values of a class that has all that no other class has: lesions that are numbered."""

JOINT = "+"
"""Between the classes that a label image shows."""


class LabelImage(Section):
    """Where the label image of a scan is found, and what its values mean.

    By its name, with ``suffix`` and entities as BIDS derivatives have them, or by a table.
    """

    suffix: str | None = None
    """The last part of the name, such as mask or dseg. The image lies beside the scan, or at its
    place in derivatives/ or in a folder of derivatives/."""
    desc: str | None = None
    label: str | None = None
    seg: str | None = None
    atlas: str | None = None
    space: str | None = None
    """Only where the scan itself has it: a label image must lie on the grid of its scan."""
    res: str | None = None
    acq: str | None = None
    rec: str | None = None
    column: str | None = None
    """The column of the datasets' tables that holds the path, relative to the dataset."""
    values: dict[str, tuple[int, ...] | Literal["any"]] = Field(default_factory=dict)
    """The values of each class, such as {ventricles: [4, 43]}; others are background. {lesion: any}
    is where lesions are numbered: every value but 0. By default the k-th class has the value k; a
    single class may have any one value."""

    @property
    def entities(self) -> dict[str, str]:
        """The entities that the name must have."""
        declared: dict[str, Any] = self.model_dump(exclude={"suffix", "column", "values"})
        return {key: value for key, value in declared.items() if value is not None}

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.suffix is None) == (self.column is None):
            raise ValueError("give either suffix, with entities as in the name, or column")
        if self.column is not None and self.entities:
            raise ValueError(f"{', '.join(self.entities)}: no effect with column. Remove them")
        for key, value in {"suffix": self.suffix or "mask", **self.entities}.items():
            if not re.fullmatch("[A-Za-z0-9]+", value):
                raise ValueError(f"{key}: {value!r} is not letters and digits, as in BIDS")
        return self


class Segmentation(Labelled):
    """Predicts a class for every voxel; what is none of the classes is background."""

    kind: Literal["segmentation"] = "segmentation"
    column: str = ""
    """The column of scans.tsv that tells what the label image shows: the classes, or 'empty'. It
    is the name of the task."""
    label: LabelImage
    """Where the label images are."""

    numeric_label: ClassVar[bool] = False
    primary: ClassVar[str] = "dice"

    @model_validator(mode="after")
    def _named_classes(self) -> Self:
        if not self.classes:
            raise ValueError("a segmentation needs at least one class, such as [lesion]")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes: duplicate among {', '.join(self.classes)}")
        if wrong := [name for name in self.classes if not re.fullmatch(r"[\w.-]+", name)]:
            raise ValueError(f"classes: {wrong[0]!r} is not letters, digits, '_', '.' and '-'")
        if len(self.classes) > MOST:
            raise ValueError(f"{len(self.classes)} classes, expected {MOST} at most")
        if EMPTY in self.classes:
            raise ValueError(f"classes: '{EMPTY}' says that a label image outlines nothing")
        if self.label.values and set(self.label.values) != set(self.classes):
            raise ValueError(
                f"label.values: found {', '.join(self.label.values)}, expected the classes "
                f"{', '.join(self.classes)}"
            )
        if sum(values == ANY for values in self.label.values.values()) > 1:
            raise ValueError(f"label.values: '{ANY}' twice, expected once at most")
        return self

    @property
    def declared_columns(self) -> tuple[str, ...]:
        """Those of ``eligible``: ingest makes the column of the label itself."""
        return tuple(self.eligible)

    def values_in(self, voxels: NDArray[Any]) -> tuple[tuple[int, ...], ...]:
        """Return which values of a label image are each class.

        Raises ValueError that tells what was found and expected.
        """
        present = np.unique(voxels)
        if not np.isfinite(present).all():
            raise ValueError("NaN or infinite values, expected 0 as background. Set them to 0")
        if np.abs(present - np.rint(present)).max(initial=0) >= WHOLE:
            raise ValueError("values that are no whole numbers. Threshold the image")
        present = np.unique(np.rint(present))
        others = tuple(int(value) for value in present[present != 0])
        if self.label.values:
            return self._declared(others)
        if len(self.classes) == 1 and len(others) <= 1 and min(others, default=1) > 0:
            return (others,)
        if set(others) <= set(range(1, len(self.classes) + 1)):
            return tuple((number,) for number in range(1, len(self.classes) + 1))
        meant = "0 and one other" if len(self.classes) == 1 else f"0 to {len(self.classes)}"
        shown = ", ".join(map(str, others[:8])) + (" …" if len(others) > 8 else "")
        fix = f", or '{ANY}' where lesions are numbered" if len(self.classes) == 1 else ""
        raise ValueError(f"values {shown}, expected {meant}. Name them in label.values{fix}")

    def _declared(self, others: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Return the values of each class by label.values, of an image that has ``others``."""
        declared = [self.label.values[name] for name in self.classes]
        taken = {value for values in declared if values != ANY for value in values}
        rest = tuple(value for value in others if value not in taken)
        return tuple(rest if values == ANY else tuple(map(int, values)) for values in declared)

    def shows(self, classes: NDArray[np.uint8]) -> str:
        """Return what a label image shows, as the column of scans.tsv says it."""
        counts = np.bincount(classes.ravel(), minlength=len(self.classes) + 1)
        return JOINT.join(np.array(self.classes)[counts[1:] > 0]) or EMPTY

    # Which scans

    def numbers(self, labels: pd.Series) -> pd.Series:
        """Return 1 for a label image that outlines anything, 0 for an empty one."""
        numbers = labels.ne(EMPTY).astype(float)
        return numbers.where(labels.notna())

    def groups(self, scans: pd.DataFrame) -> dict[str, pd.DataFrame]:
        shown = [str(value).split(JOINT) for value in scans[self.column]]
        return {
            f"{name} outlined": scans[np.array([name in words for words in shown], bool)]
            for name in self.classes
        }

    def persons_per_class(
        self, persons: NDArray[Any], targets: Values, inside: NDArray[np.bool_]
    ) -> list[int]:
        """Return the number of persons of whom anything is outlined."""
        return [len(set(persons[inside & (targets == 1)]))]

    def strata(self, persons: pd.Series[Any]) -> pd.Series:
        """Return for each person whether anything is outlined."""
        return persons.groupby(level=0).max()

    def shortage(self, strata: pd.Series, targets: pd.Series) -> str | None:
        outlined = int((strata == 1).sum())
        if outlined < 2:
            found = counted(outlined, "subject")
            return f"{found} of whom anything is outlined, 2 are needed"
        return None

    # Learning

    def overlap(self, logits: Tensor, classes: Tensor) -> Tensor:
        """Return what `loss` is a function of: sums over voxels that add up over batches.

        ``logits`` are (batch, 1 + classes, z, y, x), ``classes`` (batch, z, y, x). The result is
        (1 + classes, 3): of each class the soft intersection, the sum of the probabilities and the
        number of voxels; in the row of the background cross-entropy, 0 and the number of all.
        """
        import torch
        from torch.nn import functional as F

        probabilities = logits.softmax(1)[:, 1:]
        truth = F.one_hot(classes.long(), logits.shape[1]).movedim(-1, 1)[:, 1:]
        entropy = F.cross_entropy(logits, classes.long(), reduction="sum")
        sums = [
            values.sum((0, 2, 3, 4))
            for values in (probabilities * truth, probabilities, truth.to(logits.dtype))
        ]
        voxels = entropy.new_tensor(float(classes.numel()))
        whole = torch.stack([entropy, torch.zeros_like(entropy), voxels])
        return torch.cat([whole[None], torch.stack(sums, 1)])

    def loss(self, overlap: Tensor) -> Tensor:
        """Return the mean over classes of 1 - soft Dice (Milletari et al. 2016, arXiv 1606.04797),
        of all voxels of a batch together, plus the mean cross-entropy.

        Of a batch, not of each scan: the Dice of an empty label image has no gradient to learn
        from.
        """
        (entropy, _, voxels), of_classes = overlap[0], overlap[1:]
        intersection, predicted, true = of_classes.unbind(1)
        dice = (2 * intersection + SMOOTH) / (predicted + true + SMOOTH)
        loss: Tensor = 1 - dice.mean() + entropy / voxels
        return loss

    # Words

    @property
    def question(self) -> str:
        return f"How well does a model outline {', '.join(self.classes)}?"

    def describe_labels(self, scans: pd.DataFrame) -> str:
        """Return the numbers of persons, in words."""
        counts = [
            f"{rows['person'].nunique()} with {name}" for name, rows in self.groups(scans).items()
        ]
        empty = scans[scans[self.column] == EMPTY]["person"].nunique()
        return ", ".join([*counts, f"{empty} with an empty label image"])
