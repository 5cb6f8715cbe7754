from __future__ import annotations

import pytest

from neurofoundry.phantom.atlas import Atlas, build_atlas


@pytest.fixture(scope="session")
def atlas() -> Atlas:
    return build_atlas(2)
