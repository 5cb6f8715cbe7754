"""How far two random views of a volume may differ: parameters and presets."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from neurofoundry.params import Section


class AugmentParams(Section):
    """How far two views of a scan may differ. Strengths are drawn uniformly up to these bounds."""

    preset: Literal["robust", "paper"] = "robust"
    """paper: the distribution of 3D-Neuro-SimCLR instead, without further settings. Crops of any
    size and shape from 30 × 40 × 40 mm, flips, rotations of up to 45 degrees about the axis from
    feet to head, gamma 0.5 to 1.5. Its shift of all intensities is left out, as standardization
    undoes it, there as here. What a turn brings in from beyond the crop is shown; there, the edge
    of the crop is repeated. Every view is drawn anew, as its authors meant; their workers repeat
    936 draws."""
    crop: tuple[float, float] = (0.7, 1.0)
    """Smallest and largest edge of the crop, as a share of the box."""
    zoom: bool = True
    """The crop is resized to the box, whereby the size of a head is lost. false: it keeps its
    millimetres, in the middle of an empty box."""
    stretch: float = Field(default=1.1, ge=1, le=1.5)
    """Largest ratio of one edge's share to another's."""
    min_overlap: float = Field(default=0.5, ge=0, lt=1)
    """Smallest share of the smaller crop that two views have in common before they are rotated."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of exchanging left and right."""
    rotation: float = Field(default=15.0, ge=0, le=180)
    """Degrees about each axis, in either direction."""
    gamma: float = Field(default=2.0, ge=1, le=10)
    """Contrast: exponent between 1/gamma and gamma, of the intensities or of their negative."""
    remap: float = Field(default=0.3, ge=0, le=1)
    """Contrast: a random rising curve; standard deviation of the logarithms of its slopes."""
    bias: float = Field(default=0.3, ge=0, le=3)
    """Bias field: largest standard deviation of its logarithm over the box."""
    blur: float = Field(default=1.0, ge=0, le=20)
    """Standard deviation in voxels, drawn for each axis, as slices are thicker than pixels."""
    coarse: float = Field(default=2.0, ge=1, le=8)
    """Largest thickness of slices in voxels: one axis is resampled to that and back."""
    noise: float = Field(default=0.3, ge=0, le=10)
    """Standard deviation of Rician noise, in standard deviations of the brain."""

    lacking: float = Field(default=0.3, ge=0, le=1)
    """Probability that a view lacks a further contrast, where scans have several: an encoder then
    copes with scans that lack it. T1w is always there."""

    @model_validator(mode="after")
    def _crops_fit(self) -> AugmentParams:
        low, high = self.crop
        if not 0.1 <= low <= high <= 1:
            raise ValueError(
                f"crop: found {low} to {high}, expected 0.1 <= smallest <= largest <= 1"
            )
        # Two crops of the same volume, stretched in opposite ways, share no more than this.
        most = self.stretch ** (-4 / 3)
        if self.min_overlap > most:
            raise ValueError(
                f"min_overlap: crops that are stretched by {self.stretch} overlap by {most:.2f} at "
                f"most. Lower it, or lower stretch"
            )
        return self

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> AugmentParams:
        fields_ = type(self).model_fields.items()
        changed = [
            name
            for name, field in fields_
            if name != "lacking" and getattr(self, name) != field.default
        ]
        if self.preset == "paper" and changed != ["preset"]:
            raise ValueError(
                f"{', '.join(changed[1:])}: no effect with the preset 'paper'. Remove them, or set "
                "the preset to 'robust'"
            )
        return self
