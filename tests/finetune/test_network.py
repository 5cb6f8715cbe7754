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
