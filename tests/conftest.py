from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def real_mri() -> Path:
    """Real T1-weighted heads beside the checkout; tests that want them pass without."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "real-mri"
    if not folder.is_dir():
        pytest.skip("no real scans beside this checkout")
    return folder
