"""Make the encoder that ships with the package, neurofoundry/nn/shipped/small.

    python benchmarks/small_encoder.py FOLDER [--toy]

SimCLR with views that keep millimetres, which the learning study found best, on heads painted
straight on the grid of the sample: synthetic persons of a seed of their own, and no patient. It
takes about 10 minutes of a core. FOLDER/small then is the encoder, imported under its name with the
hashes of its files; the maintainer replaces neurofoundry/nn/shipped/small by it. The same command
continues. --toy is the same in half a minute, and learns nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import yaml
from learning import MILLIMETRES
from learning_study.cohort import Counts, paint

from neurofoundry import presets
from neurofoundry.cli.main import app
from neurofoundry.contracts.sketches import sketch
from neurofoundry.contracts.tables import read_table, write_table
from neurofoundry.contracts.volumes import (
    VOLUMES,
    Grid,
    VolumesRecord,
    open_volume,
    write_record,
)
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.run import pretrain
from neurofoundry.runtime.stage import Workspace

DATASET = "phantom-small"
SEED = 50923
SAMPLE = yaml.safe_load(presets.read("laptop"))
GRID = Grid.model_validate(SAMPLE["preprocess"]["grid"])


@dataclass(frozen=True)
class Size:
    """How much is learned from."""

    persons: int
    epochs: int
    batch: int


WHOLE = Size(persons=600, epochs=12, batch=32)
TOY = Size(persons=6, epochs=1, batch=3)


def paint_heads(folder: Path, size: Size) -> None:
    """Paint heads of a seed of their own, with the sketches by which copies of them are known."""
    phantoms = PhantomParams(subjects=2 * size.persons, seed=SEED, two_session_fraction=0)
    phantoms = phantoms.model_copy(update={"travelling_fraction": 0.0})
    counts = Counts(pretrain=size.persons, train=0, val=0, test=0, ood=0)
    paint(folder, phantoms, counts, GRID, DATASET)
    scans = read_table(folder / "scans.tsv", VOLUMES)
    scans["sketch"] = [sketch(open_volume(folder / name, GRID)) for name in scans["volume"]]
    write_table(scans, folder / "scans.tsv", VOLUMES)
    # What a scan must go through to be like them.
    recipe = PreprocessParams.model_validate(SAMPLE["preprocess"]).model_dump(mode="json")
    write_record(folder, VolumesRecord(grid=GRID.describe(), params=recipe))


def parameters(size: Size) -> PretrainParams:
    """Return how it is pretrained: the sample's network, longer, in millimetres."""
    own = {"methods": ["simclr"], "splits": ["pretrain"], "probe": None, "licence": "CC-BY-4.0"}
    own |= {"augment": MILLIMETRES, "epochs": size.epochs, "batch_size": size.batch}
    return PretrainParams.model_validate({**SAMPLE["pretrain"], **own})


def main() -> None:
    """Paint, pretrain, import."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--toy", action="store_true")
    given = parser.parse_args()
    size, folder = TOY if given.toy else WHOLE, given.folder
    paint_heads(folder / "volumes", size)
    work = Workspace(folder / "simclr")
    work.dir.mkdir(exist_ok=True)
    pretrain(work, volumes=folder / "volumes", method="simclr", params=parameters(size), seed=SEED)
    bring_in = ["import", str(folder / "simclr"), "--as", "small", "--out", str(folder / "small")]
    app(bring_in, standalone_mode=False)


if __name__ == "__main__":
    main()
