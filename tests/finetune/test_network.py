from __future__ import annotations

from pathlib import Path

import pytest
import torch

from neurofoundry.contracts.volumes import Volumes
from neurofoundry.finetune.network import Network, infer
from neurofoundry.nn import encoders
from neurofoundry.nn.batches import read_batch
from neurofoundry.tasks import Task
from tests.support import tiny
from tests.support.tiny import AGE, DIAGNOSIS


@pytest.mark.parametrize("task", [DIAGNOSIS, AGE], ids=["diagnosis", "age"])
def test_untrained_heads_predict_the_same_of_every_scan(
    volumes: Path, encoder: Path, task: Task
) -> None:
    network = Network(encoders.load(encoder)[0], task)
    scan_ids = list(tiny.scans_table()["scan_id"][:3])
    outputs = infer(network, scan_ids, lambda ids: read_batch(Volumes(volumes), ids))
    assert torch.equal(outputs, torch.zeros(3, len(task.output_columns)))


def test_a_scan_has_the_same_features_whatever_scans_are_beside_it(
    volumes: Path, encoder: Path
) -> None:
    network = encoders.load(encoder)[0].train()
    scan_ids = list(tiny.scans_table()["scan_id"][:11])

    def features(ids: list[str]) -> torch.Tensor:
        return infer(network, ids, lambda batch: read_batch(Volumes(volumes), batch))

    together = features(scan_ids)
    assert together.shape == (11, network.features)
    assert torch.equal(features(scan_ids[::-1]), together.flip(0))
    assert torch.equal(torch.cat([features([scan_id]) for scan_id in scan_ids]), together)


def test_a_mirrored_network_predicts_the_mean_of_a_scan_and_its_mirror_image(encoder: Path) -> None:
    plain = Network(encoders.load(encoder)[0], DIAGNOSIS)
    torch.nn.init.normal_(plain.head.weight, generator=torch.Generator().manual_seed(0))
    mirrored = Network(plain.encoder, DIAGNOSIS, mirror=True)
    mirrored.head = plain.head
    volumes = torch.randn(2, 1, *tiny.GRID.shape[::-1], generator=torch.Generator().manual_seed(1))
    other = torch.flip(volumes, dims=[4])  # the x axis is the last
    with torch.no_grad():
        expected = (plain.eval()(volumes) + plain(other)) / 2
        torch.testing.assert_close(mirrored.eval()(volumes), expected)
        torch.testing.assert_close(mirrored(other), expected)
        assert not torch.allclose(plain(volumes), expected)
        # It learns from scans as they are.
        torch.testing.assert_close(mirrored.train()(volumes), plain.train()(volumes))
