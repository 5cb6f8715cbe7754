"""The folder of a model, or of several that predict as one, checked before anything is used."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from neurofoundry.contracts.models import ModelPlan, files_of, read_ensemble, read_model_plan
from neurofoundry.contracts.origin import check_contents
from neurofoundry.errors import DataError
from neurofoundry.finetune.network import Network, read_network
from neurofoundry.nn.segmenter import Segmenter
from neurofoundry.runtime.files import hash_file
from neurofoundry.runtime.links import check_links
from neurofoundry.tasks import Segmentation, Task


@dataclass(frozen=True)
class ModelFolder:
    """A single trained model."""

    folder: Path
    plan: ModelPlan

    @property
    def weights(self) -> Path:
        """The file of its weights."""
        return self.folder / "model.safetensors"

    @cached_property
    def task(self) -> Task | Segmentation:
        """What it predicts."""
        return self.plan.predicts

    @cached_property
    def sha256(self) -> str:
        """The hash of its weights."""
        return hash_file(self.weights)

    @property
    def mirror(self) -> bool:
        """Whether scans are predicted from their mirror images, too."""
        return self.plan.test_time_augmentation == "mirror"

    def read_network(self) -> Network | Segmenter:
        """Read the network that finetune has trained. Raises DataError."""
        return read_network(self.weights, self.plan)


def read_members(folder: Path) -> tuple[ModelFolder, ...]:
    """Return the model in a folder, or the members of its ensemble, which have all in common but
    what they have learned from. Raises DataError."""
    check_links(folder)  # before anything is hashed: a link may lead to a device
    check_contents(folder, files_of(folder))
    together = read_ensemble(folder)
    places = [folder / name for name in together.members] if together else [folder]
    members = tuple(ModelFolder(place, read_model_plan(place)) for place in places)
    for member in members:
        if _in_common(member.plan) != _in_common(members[0].plan):
            raise DataError(
                f"{member.folder}: not a model of the same task, start and volumes as "
                f"{members[0].folder}, though ensemble.json puts them together. Run finetune again."
            )
    return members


def _in_common(plan: ModelPlan) -> ModelPlan:
    """Return a plan without what members of an ensemble differ in."""
    own = ("fraction", "seed", "fold", "learned_from")
    return plan.model_copy(update=dict.fromkeys(own))
