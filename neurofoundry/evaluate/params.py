"""What the evaluate stage reads from params.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from neurofoundry.params import MANY, Section
from neurofoundry.tasks.base import JUDGED

MetricName = Literal[
    "auc",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "f1",
    "average_precision",
    "brier",
    "ece",
    "calibration_slope",
    "calibration_intercept",
    "mae",
    "rmse",
    "r2",
    "correlation",
    "icc_agreement",
    "icc_consistency",
    "identification",
    "distance_ratio",
    "bias_slope",
]
"""The keys of metrics.METRICS, which would make every command load scipy and scikit-learn."""


class Promotion(Section):
    """When a model is promoted: declared before the numbers are seen."""

    task: str
    initialization: str
    """An initialization, or with -ensemble at its end the models of all its seeds and folds as one,
    such as simclr-ensemble."""
    metric: MetricName
    over: str
    """Another initialization or ensemble, or a baseline: baseline-prevalence (regression:
    baseline-mean), baseline-age-sex-site (without what the task predicts) or
    baseline-morphometry."""
    split: Literal["test", "ood"] = "test"
    champion: Path | None = None
    """The evaluation of the model that was promoted before: this one must be better than it, too,
    on the same scans. `dvc get . evaluation --rev RELEASE --out release` brings one back."""
    margin: float = Field(default=0, ge=0, le=MANY)
    """The whole interval of the paired difference must be better than 'over' by more than this."""
    max_calibration_error: float | None = Field(default=None, gt=0, le=1)
    """Of a classification, on the same split: a larger ECE refuses the model."""
    max_site_accuracy: float | None = Field(default=None, gt=0, le=1)
    """A larger balanced accuracy, with which the site is read from the features of the encoder
    that the model starts from, refuses it. Chance is 1 / number of sites."""


class EvaluateParams(Section):
    """How the models are compared."""

    bootstraps: int = Field(default=2000, ge=100, le=100_000)
    """Resamples of the persons behind the intervals of the calibration error."""
    reference: str
    """The initialization that all others are compared with."""
    min_subjects: int = Field(default=JUDGED, ge=3, le=MANY)
    """Persons that a split must have, of every class, for its numbers to be given."""
    min_subgroup: int = Field(default=20, ge=5, le=MANY)
    """Persons that a subgroup (sex, age band, site, scanner) must have for its numbers to be given:
    smaller ones mislead, and could point to somebody."""
    prevalence: dict[str, Annotated[float, Field(gt=0, lt=1)]] = Field(default_factory=dict)
    """For a task of two classes the share of those with its second class among the people that the
    model is meant for: predictive values (tables/decisions.tsv) and net benefit
    (tables/benefit.tsv) are given at it."""
    combat: tuple[Literal["age", "sex"], ...] | None = None
    """What ComBat keeps when it takes sites out of the features of the frozen encoders; [] keeps
    nothing in particular. The report then shows what it changes: for reading the site, and for a
    linear model of each task (tables/harmonization.tsv). Without it nothing is harmonized."""
    promotion: Promotion | None = None
    """Without it nothing is promoted."""
