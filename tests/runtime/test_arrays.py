from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neurofoundry.runtime.arrays import key_of_arrays, write_arrays


@pytest.mark.parametrize("compress", [False, True])
def test_arrays_read_back_with_their_key_and_without_code(tmp_path: Path, compress: bool) -> None:
    path = tmp_path / "features.npz"
    zeros = np.zeros((100, 100))
    write_arrays(path, key="k1", compress=compress, scan_id=np.array(["a", "b"]), features=zeros)
    assert key_of_arrays(path) == "k1"
    with np.load(path, allow_pickle=False) as content:
        assert content["scan_id"].tolist() == ["a", "b"]
        np.testing.assert_array_equal(content["features"], zeros)
    assert (path.stat().st_size < zeros.nbytes / 10) == compress
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_a_torn_file_has_no_key(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "features.npz"
    write_arrays(path, key="k1", features=np.arange(1000))
    path.write_bytes(path.read_bytes()[:kept])
    assert key_of_arrays(path) is None


def test_no_file_and_a_file_of_others_have_no_key(tmp_path: Path) -> None:
    assert key_of_arrays(tmp_path / "gone.npz") is None
    np.savez(tmp_path / "theirs.npz", features=np.arange(3))
    assert key_of_arrays(tmp_path / "theirs.npz") is None


def test_what_cannot_be_written_leaves_the_old_arrays(tmp_path: Path) -> None:
    class Broken:
        def __array__(self, *_: object) -> np.ndarray:
            raise ZeroDivisionError

    path = tmp_path / "features.npz"
    write_arrays(path, key="k1", features=np.arange(3))
    with pytest.raises(ZeroDivisionError):
        write_arrays(path, key="k2", first=np.arange(3), second=Broken())  # type: ignore[arg-type]
    assert key_of_arrays(path) == "k1"
    assert list(tmp_path.iterdir()) == [path]
