from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import VOLUMES, Grid, write_volume
from neurofoundry.runtime.stage import SCHEMA_VERSION

GRID = Grid(spacing=6.0)


def write_head(path: Path, *, person: int, session: int) -> None:
    """A bright ellipsoid whose texture is the person's, and whose noise is the session's."""
    axes = (np.arange(n) * 2 / n - 1 for n in GRID.shape)
    x, y, z = np.meshgrid(*axes, indexing="ij")
    mask = (x / 0.7) ** 2 + (y / 0.9) ** 2 + (z / 0.8) ** 2 < 1
    own = np.random.default_rng(person)
    volume = sum(
        np.sin(own.uniform(2, 6, 3) @ [x.ravel(), y.ravel(), z.ravel()] + own.uniform(0, 6))
        for _ in range(4)
    ).reshape(GRID.shape)
    volume = volume + 0.1 * np.random.default_rng((person, session)).standard_normal(GRID.shape)
    write_volume(path, (volume - volume[mask].mean()) / volume[mask].std(), mask, GRID)


@pytest.fixture(scope="session")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What preprocess leaves: 14 scans of 12 persons to pretrain on, 10 to train, and others."""
    folder = tmp_path_factory.mktemp("preprocess") / "volumes"
    folder.mkdir()
    splits = ["pretrain"] * 12 + ["train", "val"] * 10 + ["test", "ood"]
    rows = []
    for person, split in enumerate(splits):
        for session in range(2 if person < 3 else 1):
            scan_id = f"sub-{person:02d}_ses-{session}"
            write_head(folder / f"{scan_id}.nii", person=person, session=session)
            rows.append(
                {
                    "scan_id": scan_id,
                    "dataset": "heads",
                    "subject": f"{person:02d}",
                    "session": str(session),
                    "person": f"heads/{person:02d}",
                    "source": "bids",
                    "path": f"{scan_id}_T1w.nii.gz",
                    "sha256": f"{len(rows):064x}",
                    "split": split,
                    "age": 50.0 + person,
                    "sex": "FM"[person // 2 % 2],
                    "site": "a",
                    "scanner": None,
                    "field_strength": 3.0,
                    "usable": True,
                    "reason": None,
                    "volume_sha256": f"{len(rows):064x}",
                }
            )
    # A scan that quality control refused has no volume.
    rows[0].update(usable=False, reason="the brain was not found", volume_sha256=None)
    (folder / f"{rows[0]['scan_id']}.nii").unlink()
    write_table(pd.DataFrame(rows), folder / "scans.tsv", VOLUMES)
    (folder / "grid.json").write_text(json.dumps({"grid": GRID.describe(), "params": {}}))
    record = {
        "stage": "preprocess",
        "schema_version": SCHEMA_VERSION,
        "contents": {},
        "data_version": "v1",
    }
    (folder / "stage.json").write_text(json.dumps(record))
    return folder
