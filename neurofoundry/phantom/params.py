"""The parameters of a synthetic cohort."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from neurofoundry.params import Section, Seed


class PhantomParams(Section):
    """A cohort of synthetic heads: how many, at what resolution, with how strong effects."""

    subjects: int = Field(default=100, ge=4, le=9999)
    """Subjects over all four sites; every fourth one belongs to the external site."""
    seed: Seed = 0
    """Determines everything random."""
    spacing_mm: float | None = Field(default=None, ge=0.7, le=5)
    """Isotropic voxel size of all T1w scans, mm; by default each site has its own (2.2 to 3.6 mm).
    Slices of further contrasts are twice as thick."""
    contrasts: tuple[Literal["T1w", "FLAIR", "T2w"], ...] = ("T1w",)
    """What every session is scanned with; T1w comes first. Further contrasts have thick slices of
    their own, and the head has moved a little between them."""
    two_session_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of subjects scanned a second time at their site, 1 to 3 years later."""
    travelling_fraction: float = Field(default=0.3, ge=0, le=1)
    """Share of subjects of the three familiar sites scanned a second time within two months at
    another of the three, and not also years later. Nobody travels to or from the external site:
    its subjects stay apart."""
    ad_effect: float = Field(default=1.0, ge=0, le=3)
    """Strength of Alzheimer's-like atrophy; 0 leaves nothing to learn about the diagnosis."""
    stroke_ml: float = Field(default=20.0, gt=0, le=150)
    """Median volume of a stroke lesion, ml."""
    lesion_load: float = Field(default=1.0, ge=0, le=3)
    """Amount of age-related white matter lesions; 0 for none."""

    @field_validator("contrasts")
    @classmethod
    def _t1w_first(cls, contrasts: tuple[str, ...]) -> tuple[str, ...]:
        if contrasts[:1] != ("T1w",) or len(set(contrasts)) < len(contrasts):
            raise ValueError("expected T1w first, then FLAIR and T2w at most once")
        return contrasts

    @model_validator(mode="after")
    def _nobody_comes_thrice(self) -> PhantomParams:
        if self.two_session_fraction + self.travelling_fraction > 1:
            raise ValueError(
                f"two_session_fraction + travelling_fraction is "
                f"{self.two_session_fraction + self.travelling_fraction:g}, expected 1 or less"
            )
        return self
