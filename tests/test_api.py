"""What can be used from Python, as the help of the package and docs/weights.md have it."""

from __future__ import annotations

import pydoc
import re
from pathlib import Path

import pandas as pd
import torch

import neurofoundry
from tests.inference.conftest import raw, weights  # noqa: F401  fixtures

DOCS = Path(__file__).resolve().parents[1] / "docs/weights.md"


def test_everything_that_the_help_names_is_there_and_says_what_it_does() -> None:
    text = pydoc.render_doc(neurofoundry, renderer=pydoc.plaintext)
    (line,) = re.findall(r"from neurofoundry import ([\w, ]+)", text)
    names = line.split(", ")
    assert set(names) <= set(dir(neurofoundry))
    for name in names:
        assert pydoc.getdoc(getattr(neurofoundry, name)), name


def test_views_and_the_loss_work_as_the_docs_have_them() -> None:
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
        if "nt_xent" in block
    )
    told: dict[str, torch.Tensor] = {}
    exec(code, told)
    assert told["views"][0].shape == (4, 1, 50, 64, 64)
    assert not torch.equal(told["views"][0], told["views"][1])
    assert told["loss"].isfinite()


def test_the_network_is_a_module_that_gives_what_the_encoder_gives(weights: Path) -> None:  # noqa: F811
    encoder = neurofoundry.load_encoder(weights)
    assert isinstance(encoder.encoder, torch.nn.Module)
    zscores = torch.randn(1, 1, *encoder.grid.shape[::-1])
    own = encoder.encoder(zscores)
    assert torch.allclose(own, encoder(zscores, grid=encoder.grid), atol=1e-5)


def test_raw_scans_become_a_table_with_a_row_each(raw: Path, weights: Path) -> None:  # noqa: F811
    table = neurofoundry.embed([str(raw)], weights=str(weights), workers=2)
    assert isinstance(table, pd.DataFrame)
    assert sorted(table.index) == ["first.nii.gz", "later/second.nii", "torn.nii.gz"]
    features = table.filter(regex=r"^f\d{4}$")
    assert features.notna().all(axis=1).tolist() == (table["reason"].isna()).tolist()
