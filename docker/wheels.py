"""Download the wheels of the image, with the settings of this machine's pip.

    python docker/wheels.py build/wheels            called by `make wheels`

torch is asked for as the build for CPUs first, where this machine's pip looks, then in PyTorch's
own index ($TORCH_INDEX). Where neither has it, the build for CUDA comes with its libraries: without
them it cannot be imported. `PIP_FIND_LINKS= make wheels` passes by wheels that lie on disk.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

LOCK = Path(__file__).with_name("requirements.lock")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
GLIBC = range(5, 37)
"""Minor versions that wheels may ask for, up to Debian bookworm's. pip takes none as another's."""
PLATFORMS = (
    *(f"manylinux_2_{minor}_x86_64" for minor in GLIBC),
    *("manylinux2014_x86_64", "manylinux1_x86_64", "linux_x86_64", "any"),
)
IMAGE = [
    *("--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"),
    *(word for abi in ("cp311", "abi3", "none") for word in ("--abi", abi)),
    *(word for platform in PLATFORMS for word in ("--platform", platform)),
]
"""The Python of the image."""


def main() -> None:
    """Fill the folder that is given."""
    folder = Path(sys.argv[1])
    lines = LOCK.read_text().splitlines()
    (torch,) = (line.removeprefix("torch==") for line in lines if line.startswith("torch=="))
    with tempfile.TemporaryDirectory() as scratch:
        rest = Path(scratch) / "rest.txt"
        rest.write_text("\n".join(line for line in lines if not line.startswith("torch==")) + "\n")
        download(folder, ["--no-deps", "--requirement", str(rest)])
    index = os.environ.get("TORCH_INDEX") or CPU_INDEX
    small = ["--no-deps", f"torch=={torch}+cpu"]
    if not (
        download(folder, small, may_fail=True)
        or download(folder, [*small, "--index-url", index, "--retries", "1"], may_fail=True)
    ):
        download(folder, ["--constraint", str(LOCK), f"torch==={torch}"])
        libraries = sum(path.stat().st_size for path in of_cuda(folder))
        print(
            f"torch {torch} comes here as its build for CUDA only (no {torch}+cpu where pip looks, "
            f"nor in {index}): the image has the libraries of CUDA, {libraries / 1e9:.1f} GB of "
            "wheels. For a small one give an index with the build for CPUs (TORCH_INDEX=…), or its "
            "wheel (PIP_FIND_LINKS=folder), then remove build/wheels."
        )


def download(folder: Path, words: Iterable[str], *, may_fail: bool = False) -> bool:
    """Let pip download what ``words`` name; return whether it could."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", *IMAGE, "--dest", str(folder)]
    done = subprocess.run([*command, *words], capture_output=may_fail, check=not may_fail)
    return done.returncode == 0


def of_cuda(folder: Path) -> list[Path]:
    """Return the wheels that only torch's build for CUDA needs."""
    return [path for path in folder.glob("*.whl") if re.match("nvidia|cuda|triton", path.name)]


if __name__ == "__main__":
    main()
