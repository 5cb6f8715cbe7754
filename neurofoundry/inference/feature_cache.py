"""Features of scans, kept one by one until their table is whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neurofoundry.contracts.cohort import T1W
from neurofoundry.runtime.arrays import open_arrays
from neurofoundry.runtime.files import atomic


class FeatureCache:
    """A file KEY.npz for each scan that is done: a kill loses only the scans in flight.

    What cannot be read, as after a loss of power, is not done.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keep(
        self,
        key: str,
        features: NDArray[np.floating] | None,
        reason: str = "",
        contrasts: Sequence[str] = (T1W,),
    ) -> None:
        """Keep features (features,), None where there are none, why the scan is not usable, and
        which contrasts there were."""
        values = np.empty(0, np.float32) if features is None else features
        with atomic(self._path(key)) as temporary:
            np.savez(
                temporary,
                features=values,
                reason=np.array(reason),
                contrasts=np.array(list(contrasts), str),
            )

    def features(self, key: str) -> NDArray[np.floating] | None:
        """Return features; None where there are none, or none yet."""
        try:
            with open_arrays(self._path(key)) as content:
                features: NDArray[np.floating] = content["features"]
        except (FileNotFoundError, ValueError):
            return None
        return features if features.size else None

    def reason(self, key: str) -> str | None:
        """Return why the scan is not usable, '' if it is; None where it is not done yet."""
        try:
            with open_arrays(self._path(key)) as content:
                return str(content["reason"])
        except (FileNotFoundError, ValueError):
            return None

    def contrasts(self, key: str) -> tuple[str, ...]:
        """Return which contrasts there were; T1w alone where that is not done yet."""
        try:
            with open_arrays(self._path(key)) as content:
                return tuple(content["contrasts"].tolist())
        except (FileNotFoundError, ValueError):
            return (T1W,)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npz"
