"""Wheels with next to nothing in them."""

from __future__ import annotations

import zipfile
from pathlib import Path


def wheel(
    folder: Path,
    name: str,
    version: str,
    *,
    needs: str = "",
    code: str = "",
    tag: str = "cp311-cp311-manylinux_2_28_x86_64",
) -> None:
    """Write a wheel of one module, ``name``, with ``code`` in it."""
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{name}-{version}.dist-info"
    said = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-{tag}.whl", "w") as archive:
        archive.writestr(f"{name}.py", code)
        archive.writestr(
            f"{about}/METADATA",
            said + "".join(f"Requires-Dist: {each}\n" for each in needs.split(", ") if each),
        )
        said = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n"
        archive.writestr(f"{about}/WHEEL", said)
        archive.writestr(f"{about}/RECORD", "")
