"""params.yaml as a whole: one section a stage, and what several stages must agree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from pydantic import Field, create_model, model_validator

from neurofoundry.contracts.cohort import SCANS
from neurofoundry.evaluate.params import EvaluateParams
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.ingest.params import IngestParams
from neurofoundry.params import Name, Section, load_text
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.runtime.tracking import TrackingParams
from neurofoundry.tasks import AnyTask

SECTIONS = {
    "ingest": ("ingest", "tasks", "seed"),
    "preprocess": ("preprocess",),
    "pretrain": ("pretrain", "seed"),
    "finetune": ("finetune", "tasks", "seed"),
    "evaluate": ("evaluate", "tasks", "seed"),
}
"""The sections that each stage reads: it runs again when one of them changes, and only then."""


class Params(Section):
    """Everything that params.yaml holds."""

    seed: int = Field(ge=0)
    """Every random draw of every stage derives from it."""
    tasks: dict[Name, AnyTask]
    """Name (of a folder and in every table) to what is predicted. A cohort may have none: then
    only pretraining is evaluated."""
    ingest: IngestParams
    preprocess: PreprocessParams
    pretrain: PretrainParams
    finetune: FinetuneParams
    evaluate: EvaluateParams
    tracking: TrackingParams = TrackingParams()

    @model_validator(mode="after")
    def _sections_agree(self) -> Params:
        known = {*SCANS.columns, *self.ingest.columns}
        for name, task in self.tasks.items():
            for column in (task.column, *task.eligible):
                if column not in known:
                    raise ValueError(
                        f"tasks.{name}: no column '{column}'; ingest.columns declares "
                        f"{', '.join(sorted(self.ingest.columns))}"
                    )
        if self.evaluate.baseline not in self.finetune.initializations:
            raise ValueError(
                f"evaluate.baseline: '{self.evaluate.baseline}' is not one of "
                f"finetune.initializations ({', '.join(self.finetune.initializations)})"
            )
        promotion = self.evaluate.promotion
        if promotion and promotion.task not in self.tasks:
            raise ValueError(f"evaluate.promotion.task: no task '{promotion.task}'")
        if promotion and promotion.initialization not in self.finetune.initializations:
            raise ValueError(f"evaluate.promotion: no initialization '{promotion.initialization}'")
        return self


def load_sections(stage: str, document: str, overrides: Sequence[str] = ()) -> Params:
    """Read a document that holds only the sections of ``stage``, as `configure` writes it.

    The result has these sections and no other. Raises UsageError.
    """
    fields: dict[str, Any] = {
        name: (Params.model_fields[name].annotation, Params.model_fields[name])
        for name in (*SECTIONS[stage], "tracking")
    }
    model = create_model("Sections", __base__=Section, **fields)
    return cast(Params, load_text(document, model, overrides, origin="--params"))
