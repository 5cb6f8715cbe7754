from __future__ import annotations

import pytest

from neurofoundry.runtime.stage import Workspace
from tests.support.page import Page


@pytest.fixture(scope="session")
def page(evaluated: Workspace) -> Page:
    """The report of the usual cohort."""
    return Page(evaluated.dir / "report.html")
