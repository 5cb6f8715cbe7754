"""Where the image's torch comes from, on machines whose pip looks in different places."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.wheels import wheel

DOCKER = Path(__file__).parents[1] / "docker"


def index(folder: Path) -> str:
    """Make an index of the wheels in a folder; return its address."""
    for path in folder.glob("*.whl"):
        place = folder / "simple" / path.name.partition("-")[0].replace("_", "-")
        place.mkdir(parents=True, exist_ok=True)
        links = [f'<a href="../../{each.name}">{each.name}</a>' for each in folder.glob("*.whl")
                 if each.name.startswith(path.name.partition("-")[0])]  # fmt: skip
        (place / "index.html").write_text("\n".join(links))
    return (folder / "simple").as_uri()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """wheels.py with a lock of two packages, and what every machine's index has."""
    (tmp_path / "docker").mkdir()
    shutil.copy(DOCKER / "wheels.py", tmp_path / "docker")
    (tmp_path / "docker/requirements.lock").write_text("small==1.0\ntorch==9.9.9\n")
    plain = tmp_path / "plain"
    wheel(plain, "small", "1.0", tag="py3-none-any")
    wheel(plain, "torch", "9.9.9", needs="nvidia-cublas, nvidia-nccl")
    wheel(plain, "nvidia_cublas", "13.1", tag="py3-none-manylinux_2_27_x86_64")
    # NCCL asks for a glibc that nobody else asks for.
    wheel(plain, "nvidia_nccl", "2.29", tag="py3-none-manylinux_2_18_x86_64")
    return tmp_path / "docker/wheels.py"


def download(script: Path, **environment: str) -> tuple[set[str], str]:
    """The wheels that are downloaded where pip finds its settings in ``environment``."""
    pip = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": index(script.parents[1] / "plain"),
        "PATH": os.environ["PATH"],
        "TORCH_INDEX": "http://127.0.0.1:9/",
    }
    folder = script.parents[1] / "wheels"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, script, folder], env={**pip, **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {path.name.rpartition("-cp311-cp311")[0] or path.name for path in folder.iterdir()}, (
        done.stdout
    )


SMALL = "small-1.0-py3-none-any.whl"


def test_a_wheel_for_cpus_on_disk_is_taken(script: Path, tmp_path: Path) -> None:
    wheel(tmp_path / "disk", "torch", "9.9.9+cpu")
    found, said = download(script, PIP_FIND_LINKS=str(tmp_path / "disk"))
    assert (found, said) == ({SMALL, "torch-9.9.9+cpu"}, "")


def test_else_the_index_of_pytorch_is_asked(script: Path, tmp_path: Path) -> None:
    wheel(tmp_path / "pytorch", "torch", "9.9.9+cpu")
    found, said = download(script, TORCH_INDEX=index(tmp_path / "pytorch"))
    assert (found, said) == ({SMALL, "torch-9.9.9+cpu"}, "")


def test_else_the_build_for_cuda_comes_with_its_libraries_and_a_sentence(script: Path) -> None:
    """It cannot be imported without them."""
    found, said = download(script)
    libraries = {
        "nvidia_cublas-13.1-py3-none-manylinux_2_27_x86_64.whl",
        "nvidia_nccl-2.29-py3-none-manylinux_2_18_x86_64.whl",
    }
    assert found == {SMALL, "torch-9.9.9", *libraries}
    assert "torch 9.9.9 comes here as its build for CUDA only" in said
    assert "TORCH_INDEX=" in said
