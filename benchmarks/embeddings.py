"""Embeddings a minute, of raw scans and of preprocessed ones.

    python benchmarks/embeddings.py [--scans N] [--full] [--json FILE]

`neurofoundry embed` on N phantom heads with two workers, as a user runs it, and on the output of
`neurofoundry preprocess` of the same. The encoder is untrained: 3 mm, a quarter of the width and a
stem of stride 2, the sample cohort's; --full: 1 mm and the network of the published weights. What a
command needs before it looks at a scan follows from a run on a single one, and is left out. From
the CPU seconds follows what two free cores would do in a minute; wall time is that of this machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path

from pretrain import table

from neurofoundry import encoders
from neurofoundry.adaptation import EncoderParams, Plan
from neurofoundry.phantom.dataset import generate
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.volumes import Grid

PARAMS = Path(__file__).resolve().parents[1] / "params/first-look.yaml"


def write_encoder(folder: Path, params: EncoderParams, recipe: PreprocessParams) -> None:
    encoder = encoders.build(params, seed=0)
    plan = Plan(
        name="untrained",
        encoder=params,
        features=encoder.features,
        grid=recipe.grid.describe(),
        preprocess=recipe.of_one_scan(),
        method="random",
        licence="none",
    )
    folder.mkdir()
    encoders.save(folder, encoder, plan)


def run(*words: str | Path) -> dict[str, float]:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(["neurofoundry", *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"cpu": cpu, "wall": time.perf_counter() - began}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--scans", type=int, default=16, help="subjects; some are scanned twice")
    parser.add_argument("--full", action="store_true", help="1 mm, the published network")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    options = parser.parse_args()
    recipe = PreprocessParams(
        grid=Grid(spacing=1.0 if options.full else 3.0),
        registration_spacing=2.0 if options.full else 4.0,
    )
    network = EncoderParams() if options.full else EncoderParams(stem_stride=2, width=0.25)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(PhantomParams(subjects=options.scans, seed=1), folder / "data", 2)
        write_encoder(folder / "encoder", network, recipe)
        embed = ("embed", "--weights", folder / "encoder", "--workers", "2", "--out")
        scans = sorted((folder / "data").rglob("*_T1w.nii.gz"))
        first = run(*embed, folder / "first.tsv", scans[0])
        raw = run(*embed, folder / "raw.tsv", folder / "data")
        common = ("--params", PARAMS, "--set", "tracking.mode=disabled", "--out")
        run("ingest", *common, folder / "cohort", "--data", folder / "data")
        run(
            *("preprocess", *common, folder / "volumes", "--data", folder / "data"),
            *("--cohort", folder / "cohort", "--workers", "2"),
            *("--set", f"preprocess.grid.spacing={recipe.grid.spacing}"),
            *("--set", f"preprocess.registration_spacing={recipe.registration_spacing}"),
        )
        made = run(*embed, folder / "made.tsv", folder / "volumes")
        count = len((folder / "raw.tsv").read_text().splitlines()) - 1
    a_raw = (raw["cpu"] - first["cpu"]) / (count - 1)
    start = first["cpu"] - a_raw
    found = {
        way: {
            "scans": count,
            "CPU seconds to begin": start,
            "CPU seconds a scan": (spent["cpu"] - start) / count,
            "a minute on two free cores": 120 * count / (spent["cpu"] - start),
            "wall seconds in all": spent["wall"],
        }
        for way, spent in (("raw scans", raw), ("preprocessed scans", made))
    }
    print("\n".join(table(found)))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
