from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from neurofoundry.contracts.cohort import SCANS
from neurofoundry.contracts.tables import write_table
from neurofoundry.phantom.anatomy import sample_subject
from neurofoundry.phantom.atlas import build_atlas
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.phantom.scanner import SITES, Head, head
from neurofoundry.preprocess import template as templates
from neurofoundry.preprocess.template import Template
from neurofoundry.runtime.files import hash_file
from tests.support.preprocessing import WriteCohort, write_heads


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def heads() -> list[Head]:
    """Synthetic heads with known pose and brain, of several sites."""
    atlas = build_atlas(2)
    subjects = [sample_subject(PhantomParams(seed=3), index) for index in range(4)]
    return [head(s, s.sessions[0][0], SITES[s.site], atlas, 3.0) for s in subjects]


@pytest.fixture(scope="session")
def template() -> Template:
    return templates.build(4.0)


@pytest.fixture(scope="session")
def head_files(heads: list[Head], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_heads(heads, tmp_path_factory.mktemp("heads"), "head")


@pytest.fixture
def write_cohort(tmp_path: Path) -> WriteCohort:
    """Write a cohort of named files, whose paths are relative to the root of the file system."""

    def write(files: Mapping[str, Path]) -> Path:
        rows: list[dict[str, Any]] = [
            {
                "scan_id": name,
                "dataset": "heads",
                "subject": name,
                "session": "1",
                "person": f"heads/{hash_file(path)[:8]}",  # a copy is of the same
                "source": "bids",
                "path": str(path.relative_to("/")),
                "sha256": hash_file(path),
                "split": "train",
                "age": 50.0,
                "sex": "F",
                "site": "here",
                "scanner": None,
                "field_strength": None,
            }
            for name, path in files.items()
        ]
        folder = tmp_path / "cohort"
        folder.mkdir(exist_ok=True)
        write_table(pd.DataFrame(rows), folder / "scans.tsv", SCANS)
        return folder

    return write
