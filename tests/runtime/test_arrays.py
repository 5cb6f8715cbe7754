from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest

from neurofoundry.runtime import machine
from neurofoundry.runtime.arrays import key_of_arrays, open_arrays, write_arrays


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


def whole(compress: bool = True) -> bytearray:
    """A file of one array, as numpy writes it."""
    buffer = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(buffer, features=np.arange(100.0))
    return bytearray(buffer.getvalue())


def at(offset: int, change: Callable[[int], int]) -> bytes:
    """A file in whose two headers of the array a byte is changed: its flags or its method."""
    content = whole()
    for place in (content.find(b"PK\3\4") + offset, content.find(b"PK\1\2") + offset + 2):
        content[place] = change(content[place])
    return bytes(content)


def claiming(count: int) -> bytes:
    """A file whose array says that it has so many values, and has a hundred bytes of them."""
    member, buffer = io.BytesIO(), io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(member, header)
    with ZipFile(buffer, "w", ZIP_DEFLATED) as archive:
        archive.writestr("features.npy", member.getvalue() + bytes(100))
    return buffer.getvalue()


def torn() -> bytes:
    content = whole()
    content[len(content) // 3] ^= 0xFF
    return bytes(content)


def alone() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.arange(3))
    return buffer.getvalue()


def of_objects() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, features=np.array([{}], dtype=object))
    return buffer.getvalue()


FOREIGN = {
    "empty": b"",
    "no zip": b"PK\3\4" + bytes(300),
    "torn": torn(),
    "encrypted": at(6, lambda flags: flags | 1),
    "packed by another method": at(8, lambda _: 99),
    "an array alone": alone(),
    "objects": of_objects(),
    "10 TB": claiming(10**13),
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=list(FOREIGN))
def test_whatever_a_file_holds_is_one_kind_of_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "theirs.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"."), open_arrays(path) as found:
        found["features"]
    assert key_of_arrays(path) is None


def test_an_array_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(whole())
    with pytest.raises(ValueError, match="scan_id"), open_arrays(path) as found:
        found["scan_id"]


def test_an_array_that_does_not_fit_into_memory_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, features=np.zeros(1_000_000))
    assert path.stat().st_size < 10_000
    with open_arrays(path) as found:
        assert found["features"].shape == (1_000_000,)
    monkeypatch.setattr(machine, "memory", lambda: 7_000_000)
    with pytest.raises(ValueError, match="GB free"), open_arrays(path):
        pass
