"""What can be predicted from a scan: each kind of task is one class, in a file of its own."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter

from neurofoundry.params import Name
from neurofoundry.tasks.base import Condition, Labelled, Task
from neurofoundry.tasks.classification import Classification
from neurofoundry.tasks.regression import Regression
from neurofoundry.tasks.segmentation import Segmentation

AnyTask = Annotated[Classification | Regression | Segmentation, Field(discriminator="kind")]
"""A task as params.yaml declares it; ``kind`` selects the class."""

PRIMARY_METRICS = frozenset({Classification.primary, Regression.primary})
"""The metrics by which models are compared."""


def _with_columns(tasks: Any) -> Any:
    """Let a task whose labels are images have the column of its own name."""
    if not isinstance(tasks, Mapping):
        return tasks
    return {
        name: {"column": name, **task}
        if isinstance(task, Mapping) and task.get("kind") == "segmentation"
        else task
        for name, task in tasks.items()
    }


Tasks = Annotated[dict[Name, AnyTask], BeforeValidator(_with_columns)]
"""The section `tasks` of params.yaml."""


def parse_task(values: Any) -> Task | Segmentation:
    """Make a task from plain values. Raises pydantic's ValidationError."""
    return TypeAdapter[Task | Segmentation](AnyTask).validate_python(values)


def of_one_label(tasks: Mapping[str, Labelled]) -> dict[str, Task]:
    """Return the tasks that predict one label a scan."""
    return {name: task for name, task in tasks.items() if isinstance(task, Task)}


def segmentations(tasks: Mapping[str, Labelled]) -> dict[str, Segmentation]:
    """Return the tasks that predict a class for every voxel."""
    return {name: task for name, task in tasks.items() if isinstance(task, Segmentation)}


__all__ = [
    "PRIMARY_METRICS",
    "AnyTask",
    "Classification",
    "Condition",
    "Labelled",
    "Regression",
    "Segmentation",
    "Task",
    "Tasks",
    "of_one_label",
    "parse_task",
    "segmentations",
]
