"""The objectives of pretraining: each module of this package is one, and nothing else names it.

Names are known without torch; a module is loaded when its section is given or it is trained. As no
statement imports it, it decides its own encoders alone, and a new one retrains none.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neurofoundry.nn.encoders import Encoder
    from neurofoundry.params import Section
    from neurofoundry.pretrain.objective import Objective

MODULES = {each.name: f"{__name__}.{each.name}" for each in pkgutil.iter_modules(__path__)}
"""Name of each objective to its module."""


def find(name: str) -> type[Objective]:
    """Return the objective of this name: the class in its module that bears the name."""
    from neurofoundry.pretrain.objective import Objective

    module = importlib.import_module(MODULES[name])
    for each in vars(module).values():
        if isinstance(each, type) and issubclass(each, Objective) and each.name == name:
            return each
    raise LookupError(f"{module.__name__}: no subclass of Objective has the name '{name}'.")


def build(
    name: str, encoder: Encoder, params: Section, *, spacing_mm: float, seed: int
) -> Objective:
    """Return the objective for ``encoder``; weights beside the encoder's depend on ``seed``."""
    from neurofoundry.nn.seeds import seeded

    with seeded(seed):
        return find(name)(encoder, params, spacing_mm=spacing_mm)
