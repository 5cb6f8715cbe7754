"""What can be predicted from a scan: each kind of task is one class, in a file of its own."""

from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from neurofoundry.tasks.base import Condition, Task
from neurofoundry.tasks.classification import Classification
from neurofoundry.tasks.regression import Regression

AnyTask = Annotated[Classification | Regression, Field(discriminator="kind")]
"""A task as params.yaml declares it; ``kind`` selects the class."""

PRIMARY_METRICS = frozenset({Classification.primary, Regression.primary})
"""The metrics by which models are compared."""


def parse_task(values: Any) -> Task:
    """Make a task from plain values. Raises pydantic's ValidationError."""
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
