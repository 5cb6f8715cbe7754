"""Run the package in its image: the last step of every build, offline and with a read-only root.

docker run … python3 - < docker/check.py        called by `make image`
"""

import importlib
import os
import pkgutil
import subprocess

import torch

import neurofoundry
from neurofoundry.contracts.encoder import EncoderParams
from neurofoundry.nn import encoders


def main() -> None:
    """Import every module, run one tiny forward pass, and call the command."""
    assert os.getuid() == 10001, f"the user is {os.getuid()}, not 10001"
    names = [each.name for each in pkgutil.walk_packages(neurofoundry.__path__, "neurofoundry.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    encoder = encoders.build(EncoderParams(width=0.125), seed=0)
    with torch.no_grad():
        features = encoder(torch.zeros(1, 1, 32, 32, 32))
    assert features.isfinite().all()
    subprocess.run(["neurofoundry", "--help"], check=True, stdout=subprocess.DEVNULL)
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs"
    print(f"The image runs: {len(names)} modules, torch {torch.__version__} for {build}.")


main()
