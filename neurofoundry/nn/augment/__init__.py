"""Random views of a volume: parameters are drawn first, then applied to a whole batch."""

from neurofoundry.nn.augment.cpu import apply
from neurofoundry.nn.augment.draw import Draws, draw

__all__ = ["Draws", "apply", "draw"]
