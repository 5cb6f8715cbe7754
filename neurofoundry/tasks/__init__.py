"""What can be predicted from a scan: one class a kind of task, in a file of its own."""

from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from neurofoundry.tasks.base import Condition, Task
from neurofoundry.tasks.classification import Classification
from neurofoundry.tasks.regression import Regression

AnyTask = Annotated[Classification | Regression, Field(discriminator="kind")]
"""A task as params.yaml declares it; ``kind`` says of which class it is."""


PRIMARY_METRICS = frozenset({Classification.primary, Regression.primary})
"""The metrics that models are judged by."""


def parse_task(values: Any) -> Task:
    """A task from plain values. Raises pydantic's ValidationError."""
    return TypeAdapter[Task](AnyTask).validate_python(values)


__all__ = [
    "PRIMARY_METRICS",
    "AnyTask",
    "Classification",
    "Condition",
    "Regression",
    "Task",
    "parse_task",
]
