"""How far two random views of a volume may differ: parameters of augment.py, and presets."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from neurofoundry.params import Section


class AugmentParams(Section):
    """How far two views of a scan may differ. Strengths are drawn uniformly up to these bounds."""

    preset: Literal["robust", "paper"] = "robust"
    """paper: the law of 3D-Neuro-SimCLR instead, without further settings. Crops of any size and
    shape from 30 × 40 × 40 mm, flips, turns of 45 degrees about one axis, gamma 0.5 to 1.5. Its
    shift of all intensities is left out, as standardisation undoes it, there as here; its draws
    are as many as its authors meant, not the 936 that their workers repeat."""
    crop: tuple[float, float] = (0.7, 1.0)
    """Least and greatest edge of the crop, as a share of the box; it is resized to the box."""
    stretch: float = Field(default=1.1, ge=1, le=1.5)
    """Greatest ratio of an edge's share to another's."""
    min_overlap: float = Field(default=0.5, ge=0, lt=1)
    """Least share of the smaller crop that two views have in common, before they are rotated."""
    flip: float = Field(default=0.5, ge=0, le=1)
    """Probability of exchanging left and right."""
    rotation: float = Field(default=15.0, ge=0, le=180)
    """Degrees about each axis, either way."""
    gamma: float = Field(default=2.0, ge=1)
    """Exponent between 1/gamma and gamma, of the intensities or of their negative: the contrast."""
    remap: float = Field(default=0.3, ge=0, le=1)
    """Contrast by a random rising curve: standard deviation of the logarithms of its slopes."""
    bias: float = Field(default=0.3, ge=0)
    """Bias field: greatest standard deviation of its logarithm over the box."""
    blur: float = Field(default=1.0, ge=0)
    """Standard deviation in voxels, drawn for each axis, as slices are thicker than in-plane."""
    coarse: float = Field(default=2.0, ge=1, le=8)
    """Greatest thickness of slices in voxels: along one axis, resampled to that and back."""
    noise: float = Field(default=0.3, ge=0)
    """Standard deviation of Rician noise, in standard deviations of the brain."""

    @model_validator(mode="after")
    def _crops_fit(self) -> AugmentParams:
        low, high = self.crop
        if not 0.1 <= low <= high <= 1:
            raise ValueError("crop: expected 0.1 <= least <= greatest <= 1")
        # Two crops of the same volume, stretched in opposite ways, share no more than this.
        if self.min_overlap > self.stretch ** (-4 / 3):
            raise ValueError("min_overlap: crops so different in shape cannot overlap so much")
        return self

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> AugmentParams:
        fields_ = type(self).model_fields.items()
        changed = [name for name, field in fields_ if getattr(self, name) != field.default]
        if self.preset == "paper" and changed != ["preset"]:
            raise ValueError(
                f"{', '.join(changed[1:])}: no effect, as the preset is 'paper'. Remove them, or "
                "take the preset 'robust'"
            )
        return self
