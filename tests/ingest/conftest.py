from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from neurofoundry.runtime.log import LOGGER, configure


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What is logged where there is no terminal."""
    before = LOGGER.handlers[:], LOGGER.level, LOGGER.propagate
    stream = io.StringIO()
    configure(stream)
    yield stream
    LOGGER.handlers[:], LOGGER.level, LOGGER.propagate = before
