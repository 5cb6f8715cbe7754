"""The preprocess section of params.yaml."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from neurofoundry.contracts.recipe import LONGEST
from neurofoundry.contracts.volumes import Grid
from neurofoundry.params import Section


class Bounds(Section):
    """The range that a measure must lie in; an end that is left out is open."""

    min: float | None = None
    max: float | None = None

    @model_validator(mode="after")
    def _check_order(self) -> Bounds:
        if self.min is None and self.max is None:
            raise ValueError("give min, max or both")
        if self.min is not None and self.max is not None and self.min >= self.max:
            raise ValueError("min must be less than max")
        return self


class QualityParams(Section):
    """A scan out of any of these bounds is not usable. quality.py says how each is measured."""

    coverage: Bounds = Bounds(min=0.9)
    """Share of the template's brain that lies within the scan's field of view."""
    in_box: Bounds = Bounds(min=0.9)
    """Share of the brain's surface that lies within the standard box."""
    brighter_grey: Bounds = Bounds(max=0.1)
    """Share of grey matter brighter than the white matter around it. T1w images have 0.01 to 0.05,
    FLAIR 0.16 and more, T2w and PD most of it."""
    contrast: Bounds = Bounds(min=0.1)
    """(white - grey) / (their standard deviations, summed): 0.3 to 1 in T1w, lowest where shrunken
    grooves mix fluid into grey and infarcts into white matter. Images of another contrast are
    recognized by brighter_grey."""
    mask_ml: Bounds = Bounds(min=850, max=2000)
    """Volume of the brain mask in ml."""
    mask_dice: Bounds = Bounds(min=0.6)
    """Overlap (Dice), after affine registration, of the template's brain with the brain as the scan
    alone shows it. Loose, because atrophy and infarcts lower it and the template then corrects the
    mask."""
    template_correlation: Bounds = Bounds(min=0.2)
    """Correlation of intensities with the template's, over the template's brain. Loose: atrophy
    lowers it to 0.37 in scans that are registered right, and wrong fits reach 0.48."""
    local_correlation: Bounds = Bounds(min=0.22)
    """Mean correlation with the template within windows of 20 mm that lie 8 mm and more inside its
    brain. Right registrations have 0.29 and more, also of shrunken brains with large ventricles,
    and wrong ones at most 0.16."""
    cnr: Bounds = Bounds(min=1.5)
    """Difference of white and grey matter over the noise between neighbouring voxels. Clinical
    scans with slices of 3 mm have 3.8 and more."""
    bias: Bounds = Bounds(max=0.4)
    """Standard deviation of the shading left in white matter, as a share; scans have 0.03 to 0.13
    before any correction."""
    ghosting: Bounds = Bounds(max=0.04)
    """Range of the air's brightness beside and above the head, in means over 20 mm, as a share of
    white matter's. Motion and ghosts leave 0.03 to 0.2 there; clean air has at most 0.013."""
    spike: Bounds = Bounds(max=4.2)
    """How far one spatial frequency stands out from those beside it, as stripes do that a spike in
    k-space has left: 4.5 to 15 where they change the head by a tenth, at most 3.8 without any."""
    rotation_deg: Bounds = Bounds(max=60)
    """How far the scan had to be rotated from what its header says. Heads are tilted by up to 40°
    in clinics. A header that is wrong by 90° can be corrected, but then nobody knows left from
    right."""
    determinant: Bounds = Bounds(min=0.5, max=1.08)
    """Volume of the brain relative to the template's, by the affine registration."""
    stretch: Bounds = Bounds(max=1.28)
    """The largest scale of the affine registration over the smallest."""
    jacobian_min: Bounds = Bounds(min=0.01)
    """syn: the smallest factor by which the warp changes a volume; folds would be negative."""
    jacobian_max: Bounds = Bounds(max=20)
    """syn: the largest factor by which the warp changes a volume."""


class CoregistrationParams(Section):
    """What a further contrast, such as FLAIR, must show of its session's T1w image. One that does
    not is left out; where ingest says that no session may lack it, so is the session."""

    coverage: Bounds = Bounds(min=0.9)
    """Share of the brain that lies within its field of view."""
    peak: Bounds = Bounds(min=1.4)
    """How much more parallel its edges are to those of the T1w image, within the brain, than 6 mm
    aside, as a ratio: 1.5 and more where both are of one person, also with strong noise or slices
    of 5 mm, at most 1.3 where they are of two."""
    edges: Bounds = Bounds(min=0.1)
    """How parallel they are, 0 to 1. Strong noise lowers it as far as another head does: 0.12."""
    likeness: Bounds = Bounds(max=0.95)
    """Correlation of its intensities with those of the T1w image: it is no other contrast where
    they are the same."""


class MaskParams(Section):
    """A program that finds the brain instead of ours, such as SynthStrip or HD-BET."""

    command: str
    """{input} and {output} stand for the files of the scan and of the mask (.nii.gz), such as
    `mri_synthstrip -i {input} -m {output}`. It runs once a scan, and its mask is used as it is.
    Cached scans depend on the text of the command, not on the program: put its version in the
    path."""
    timeout: float = Field(default=600, gt=0, le=LONGEST)
    """Seconds after which the command is stopped and the scan is unusable."""

    @field_validator("command")
    @classmethod
    def _names_both_files(cls, command: str) -> str:
        parts = shlex.split(command)
        try:
            filled = [part.format(input="scan", output="mask") for part in parts]
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(f"only {{input}} and {{output}} can be in braces: {error}") from error
        for name in ("{input}", "{output}"):
            if not any(name in part for part in parts):
                raise ValueError(f"it must contain {name}")
        if filled[0] != parts[0]:
            raise ValueError("it must start with a program")
        return command


class PreprocessParams(Section):
    """From a head in its scanner's space to a brain on the standard grid."""

    grid: Grid = Grid()
    bias_correction: Literal["none", "n4"] = "none"
    """n4 removes shading inside the brain, for 0.7 s of CPU a scan; registration does without it
    in any case."""
    mask: MaskParams | None = None
    """null: the brain's surface grows in the scan, and the template corrects it."""
    registration: Literal["rigid", "affine", "syn"] = "rigid"
    """rigid keeps the brain's own size and shape; affine scales it to the template's size; syn
    warps it to the template's shape, symmetrically and without folds, for half a minute of CPU a
    scan with registration_spacing 2."""
    template: Path | None = None
    """A folder with a template other than nilearn's (ICBM 2009a nonlinear symmetric), in MNI152
    space, such as 2009c: t1.nii.gz, mask.nii.gz, gm.nii.gz, wm.nii.gz. A relative path starts at
    the raw data's folder, with which it is versioned and copied to a cluster."""
    registration_spacing: float = Field(default=2.0, ge=1, le=6)
    """mm; the finest resolution at which scan and template are compared. Beyond 4, the measure
    local_correlation comes near its bound."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where scans are registered. cuda: on a GPU, in batches; the rest, five sixths of a rigid
    scan's time and a seventh of a syn one's, stays with the workers. Volumes are not the same bytes
    in every run: a GPU adds up in any order."""
    batch: int = Field(default=1, ge=1, le=1024)
    """Scans that a worker registers together, for device cuda: all workers share the GPU. A killed
    run loses this many scans a worker."""
    normalization: Literal["zscore", "whitestripe", "nyul"] = "zscore"
    """zscore: mean 0 and standard deviation 1 within the brain. whitestripe: white matter at 0.
    nyul: the histogram's landmarks at those of the scans of the splits pretrain and train."""
    quality: QualityParams = QualityParams()
    coregistration: CoregistrationParams = CoregistrationParams()
    outliers: float | None = Field(default=6.0, ge=3, le=1000)
    """A scan is not usable when its fit or its contrast lies this many robust standard deviations
    below the median of its site, where at least 20 scans are usable, and nearer, as a ratio, to the
    bound than to that median. null: compare none."""
    overrides: Path | None = None
    """A table (scan_id, decision: keep or exclude, reason), as qc.html exports it: a person's
    decisions override every bound. By default qc_overrides.tsv at the root of the raw data, if it
    exists: steps on a cluster see only that one."""

    @model_validator(mode="after")
    def _check_batch(self) -> PreprocessParams:
        if self.batch > 1 and self.device == "cpu":
            raise ValueError(
                "batch: a cpu is fastest with one scan at a time; set device to cuda, or no batch"
            )
        return self

    def of_one_scan(self) -> dict[str, Any]:
        """Return what the files of one scan depend on: not what is decided when all are done. The
        template counts by its content, not by its path."""
        left_out = {"quality", "coregistration", "outliers", "overrides", "batch", "template"}
        return self.model_dump(mode="json", exclude=left_out)
