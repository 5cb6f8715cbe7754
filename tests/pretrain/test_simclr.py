from __future__ import annotations

import torch

from neurofoundry.contracts.encoder import EncoderParams
from neurofoundry.nn import encoders
from neurofoundry.pretrain.objectives.simclr import Simclr, SimclrParams


def test_the_plain_projector_is_two_matrices_as_in_the_published_network() -> None:
    encoder = encoders.build(EncoderParams(width=0.125), seed=0)
    plain = Simclr(encoder, SimclrParams(projector="plain", projection=64), spacing_mm=6.0)
    shapes = [tuple(weight.shape) for weight in plain.projector.parameters()]
    assert shapes == [(encoder.features, encoder.features), (64, encoder.features)]
    of_norm = Simclr(encoder, SimclrParams(), spacing_mm=6.0)
    assert any(isinstance(module, torch.nn.BatchNorm1d) for module in of_norm.projector)
