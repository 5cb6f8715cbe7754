from __future__ import annotations

from typing import Any

import pytest
import torch

from neurofoundry.contracts.encoder import EncoderParams
from neurofoundry.errors import UsageError
from neurofoundry.nn import encoders
from neurofoundry.nn.seeds import seeded
from neurofoundry.nn.segmenter import Segmenter, maps_of, shares_of

SMALL: dict[str, Any] = {"stem_stride": 2, "width": 0.125}
KINDS: list[dict[str, Any]] = [
    SMALL,
    {**SMALL, "norm": "group"},
    {**SMALL, "shortcut": "padded", "dilated": True},
    {"architecture": "resnet50", **SMALL},
]


def build(seed: int = 0, **params: Any) -> Any:
    return encoders.build(EncoderParams(**params), seed=seed)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_logits_of_any_resnet_have_the_shape_of_the_volume(kind: dict[str, Any]) -> None:
    network = Segmenter(build(**kind), 2)
    volumes = torch.randn(2, 1, 25, 32, 34)
    assert network(volumes).shape == (2, 3, 25, 32, 34)


def test_maps_are_the_steps_of_the_encoder() -> None:
    encoder = build(**SMALL).eval()
    volumes = torch.randn(2, 1, 25, 32, 32)
    maps = maps_of(encoder, volumes)
    torch.testing.assert_close(maps[-1].mean((2, 3, 4)), encoder(volumes))
    assert [each.shape[2] for each in maps] == [13, 7, 4, 2, 1]


def test_a_network_that_has_learned_nothing_answers_with_the_shares_of_the_classes() -> None:
    network = Segmenter(build(**SMALL), 1).eval()
    network.head.expect(torch.tensor([0.99, 0.01]))
    answered = network(torch.randn(1, 1, 25, 32, 32)).softmax(1)
    torch.testing.assert_close(answered[:, 1], torch.full_like(answered[:, 1], 0.01))


def test_mirrored_shares_are_the_same_for_a_volume_and_its_mirror_image() -> None:
    network = Segmenter(build(**SMALL), 1).eval()
    torch.nn.init.normal_(network.head.classify.weight)
    volumes = torch.randn(1, 1, 25, 32, 32)
    plain, mirrored = (shares_of(network, volumes, mirror=each) for each in (False, True))
    other = shares_of(network, volumes.flip(-1), mirror=True)
    torch.testing.assert_close(other, mirrored.flip(-1))
    torch.testing.assert_close(plain, network(volumes).softmax(1))
    assert not torch.allclose(plain, mirrored, atol=1e-3)


def test_every_encoder_gets_the_same_decoder() -> None:
    made = []
    for seed in (1, 2):
        encoder = build(seed=seed, **SMALL)
        with seeded(7):
            made.append(Segmenter(encoder, 1).head.state_dict())
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())


def test_every_map_reaches_the_output() -> None:
    network = Segmenter(build(**SMALL), 1).eval()
    torch.nn.init.normal_(network.head.classify.weight)
    maps = [each.detach().requires_grad_() for each in maps_of(network.encoder, VOLUMES)]
    network.head(VOLUMES, maps).square().sum().backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in maps)


def gaussian(size: int) -> torch.Tensor:
    places = torch.arange(size) - (size - 1) / 2
    return torch.exp(-((places / (0.125 * size)) ** 2) / 2)


def test_windows_answer_as_a_loop_over_them_does() -> None:
    windows = Segmenter(build(**SMALL), 1, patch=32).eval()
    torch.nn.init.normal_(windows.head.classify.weight)
    whole = Segmenter(windows.encoder, 1).eval()
    whole.load_state_dict(windows.state_dict())
    volumes = torch.randn(2, 1, 25, 40, 52)
    weight = (gaussian(25)[:, None, None] * gaussian(32)[:, None] * gaussian(32)).clamp(min=1e-3)
    total, weights = torch.zeros(2, 2, 25, 40, 52), torch.zeros(25, 40, 52)
    with torch.no_grad():
        for y in (0, 8):
            for x in (0, 16, 20):
                at = (slice(None), slice(y, y + 32), slice(x, x + 32))
                total[(..., *at)] += weight * whole(volumes[(..., *at)])
                weights[at] += weight
        torch.testing.assert_close(windows(volumes), total / weights, rtol=1e-4, atol=1e-4)
        # One window that holds all of a volume is the whole volume.
        torch.testing.assert_close(windows(VOLUMES), whole(VOLUMES), rtol=1e-4, atol=1e-4)


VOLUMES = torch.randn(1, 1, 25, 32, 32)


def test_a_network_without_stages_is_refused() -> None:
    with pytest.raises(UsageError, match="the stages of a ResNet"):
        Segmenter(build(architecture="sfcn"), 1)
