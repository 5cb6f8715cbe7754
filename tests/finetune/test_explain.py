from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from neurofoundry.contracts.encoder import EncoderParams
from neurofoundry.contracts.volumes import SLOPE, Grid
from neurofoundry.finetune import explain, subsets
from neurofoundry.finetune.network import Network
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.finetune.runs import labelled
from neurofoundry.finetune.train import train
from neurofoundry.nn import encoders
from neurofoundry.tasks import Classification
from tests.support import tiny
from tests.support.tiny import AGE, DIAGNOSIS

THREE = Classification(column="diagnosis", classes=("CN", "MCI", "AD"))
NAMES = {"initializations": {"scratch": {"encoder": "random", "mode": "finetune"}}}


def scan(seed: int, shape: tuple[int, int, int] = (5, 6, 7)) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 1, *shape))).float()


class TestIntegratedGradients:
    def test_of_a_linear_model_they_are_weight_times_difference(self) -> None:
        weight, volume, base = scan(0), scan(1), scan(2)
        found = explain.integrated_gradients(
            lambda v: (v * weight).sum((1, 2, 3, 4)), volume, base, 4
        )
        torch.testing.assert_close(found, weight * (volume - base))

    def test_of_a_product_they_are_the_integral_by_hand(self) -> None:
        # f = a²b along (ta, tb): ∂f/∂a = 2t²ab, ∂f/∂b = t²a²; a third of each, times a and b.
        a, b = 1.7, -0.6
        volume = torch.tensor([a, b]).reshape(1, 1, 1, 1, 2)
        found = explain.integrated_gradients(
            lambda v: v[..., 0].flatten() ** 2 * v[..., 1].flatten(),
            volume,
            torch.zeros_like(volume),
            64,
        ).flatten()
        torch.testing.assert_close(found, torch.tensor([2, 1]) * a**2 * b / 3, rtol=1e-3, atol=0)

    def test_of_a_network_they_sum_to_what_the_answers_differ_by(self) -> None:
        network = Network(encoders.build(EncoderParams(stem_stride=2, width=0.125), seed=0), AGE)
        nn.init.normal_(network.head.weight, generator=torch.Generator().manual_seed(0))
        network.eval()
        volume = scan(3, (25, 32, 32))
        base = explain.flat(volume)

        def score(volumes: Tensor) -> Tensor:
            return AGE.score(network(volumes))

        with torch.no_grad():
            difference = (score(volume) - score(base)).item()
        off = []
        for steps in (4, 128):
            found = explain.integrated_gradients(score, volume, base, steps).sum().item()
            off.append(abs(found - difference) / abs(difference))
        assert off[1] < 0.01
        assert off[1] < off[0]

    def test_the_flat_brain_has_the_mean_of_the_brain_and_no_background(self) -> None:
        volume = torch.tensor([[0.0, 2.0], [4.0, 0.0]]).reshape(1, 1, 1, 2, 2)
        assert explain.flat(volume).flatten().tolist() == [0, 3, 3, 0]


def test_the_answer_of_classes_is_the_log_odds_of_the_last() -> None:
    outputs = torch.tensor([[2.0, -1.0, 0.5], [0.3, 0.1, 4.0]])
    p = outputs.softmax(1)[:, 2]
    torch.testing.assert_close(THREE.score(outputs), torch.log(p / (1 - p)))
    torch.testing.assert_close(DIAGNOSIS.score(outputs[:, :2]), outputs[:, 1] - outputs[:, 0])
    assert AGE.score(outputs[:, :1]).tolist() == pytest.approx([2.0, 0.3])


@pytest.mark.parametrize("spacing", [1.5, 2.0, 3.0, 6.0])
def test_blocks_hold_the_sum_of_their_voxels(spacing: float) -> None:
    grid = Grid(spacing=spacing)
    values = np.random.default_rng(0).normal(size=grid.shape[::-1])
    blocks = explain.block_sums(values, grid)
    assert blocks.shape == explain.BLOCKS.shape
    naive = np.zeros(explain.BLOCKS.shape)
    onto = np.linalg.inv(explain.BLOCKS.affine) @ grid.affine
    for place in np.random.default_rng(1).integers(0, grid.shape, (200, 3)):
        i, j, k = np.rint((onto @ [*place, 1])[:3]).astype(int)
        inside = [
            np.rint(np.arange(size) * onto[axis, axis] + onto[axis, 3]) == index
            for axis, (size, index) in enumerate(zip(grid.shape, (i, j, k), strict=True))
        ]
        naive[i, j, k] = values.T[np.ix_(*inside)].sum()
        assert blocks[i, j, k] == pytest.approx(naive[i, j, k], rel=1e-4, abs=1e-4)
    assert blocks.sum(dtype=float) == pytest.approx(values.sum(), rel=1e-3, abs=1e-2)


def test_persons_come_from_the_classes_in_turn_and_with_one_scan_each() -> None:
    rows = labelled(tiny.scans_table(), DIAGNOSIS)
    test = rows[rows["split"] == "test"]
    chosen = subsets.in_turn(test, DIAGNOSIS, 6, key="explain")
    assert chosen["person"].is_unique
    assert chosen["label"].to_list() == ["CN", "AD"] * 3
    more = subsets.in_turn(test, DIAGNOSIS, 100, key="explain")
    assert more["scan_id"].to_list()[:6] == chosen["scan_id"].to_list()
    assert set(more["person"]) == set(test["person"])
    shuffled = test.sample(frac=1, random_state=0)
    assert subsets.in_turn(shuffled, DIAGNOSIS, 6, key="explain").equals(chosen)


class TestLesions:
    """Spheres put anywhere in one half of the heads: the maps must find them."""

    TASK = Classification(column="lesion", classes=("no", "yes"))

    @pytest.fixture(scope="class")
    @classmethod
    def heads(cls) -> tuple[np.ndarray, np.ndarray]:
        """Volumes (heads, z, y, x) in steps, and the lesions in them; every other head has one."""
        random = np.random.default_rng(3)
        middle = (np.array(tiny.GRID.shape[::-1]) - 1) / 2
        places = np.indices(tiny.GRID.shape[::-1]) - middle[:, None, None, None]
        radius = np.linalg.norm(places / (0.8 * middle[:, None, None, None]), axis=0)
        brain, volumes, lesions = radius < 1, [], []
        for number in range(72):
            centre = random.uniform(-0.45, 0.45, 3) * middle
            lesion = np.linalg.norm(places - centre[:, None, None, None], axis=0) < 3.2
            lesion &= number % 2 == 1
            image = random.normal(0, 0.4, brain.shape) + (radius > 0.75) - 4 * lesion
            image = (image - image[brain].mean()) / image[brain].std()
            volumes.append(np.where(brain, np.rint(image / SLOPE), 0).astype(np.int16))
            lesions.append(lesion)
        return np.array(volumes), np.array(lesions)

    @pytest.fixture(scope="class")
    @classmethod
    def networks(cls, heads: tuple[np.ndarray, np.ndarray]) -> dict[str, Network]:
        """One that has learned to see them, and the same with the weights that it began with."""
        rows = pd.DataFrame({"scan_id": range(72), "target": np.arange(72) % 2})
        networks = {}
        tuned = FinetuneParams.model_validate({**tiny.FINETUNED, "epochs": 10})
        for name in ("trained", "untrained"):
            params = EncoderParams(stem_stride=2, width=0.125)
            networks[name] = Network(encoders.build(params, seed=0), cls.TASK)
        train(
            networks["trained"],
            cls.TASK,
            name="lesions",
            learn=rows[:48],
            val=rows[48:58],
            scans_per_epoch=48,
            read=lambda ids: torch.from_numpy(heads[0][list(ids)]).unsqueeze(1),
            params=tuned,
            tuning=tuned.tuning("scratch"),
            learning_rate=3e-3,
            seed=0,
            advance=lambda: None,
        )
        # The head of an untrained network is 0, and so would be its maps.
        networks["untrained"].head.load_state_dict(networks["trained"].head.state_dict())
        return networks

    @pytest.fixture(scope="class")
    @classmethod
    def shares(
        cls, heads: tuple[np.ndarray, np.ndarray], networks: dict[str, Network]
    ) -> dict[str, Any]:
        """Of heads that nobody learned from: how much of the map for "yes" lies in the lesion, how
        much of the brain, and how often the peak."""
        measured = {}
        for name, network in networks.items():
            network.eval().requires_grad_(False)
            rows = []
            for volume, lesion in zip(*(each[59::2] for each in heads), strict=True):
                z = torch.from_numpy(volume)[None, None].float() * SLOPE
                attributions = explain.integrated_gradients(
                    lambda v, n=network: cls.TASK.score(n(v)), z, explain.flat(z), 16
                )[0, 0].numpy()
                for_yes = attributions.clip(0)
                peak = lesion.flat[attributions.argmax()]
                share = for_yes[lesion].sum() / for_yes.sum()
                rows.append([share, lesion.sum() / (volume != 0).sum(), peak])
            measured[name] = np.mean(rows, axis=0)
        return measured

    def test_a_network_that_sees_lesions_is_explained_by_them(self, shares: dict[str, Any]) -> None:
        inside, of_brain, pointed = shares["trained"]
        assert of_brain < 0.05
        assert inside > 8 * of_brain
        assert pointed == 1

    def test_one_that_has_learned_nothing_is_not(self, shares: dict[str, Any]) -> None:
        assert shares["untrained"][0] < 0.5 * shares["trained"][0]
