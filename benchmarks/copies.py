"""By how much copies of a head, other scans of a person and other persons resemble each other.

    python benchmarks/copies.py --out copies.json sub-01_T1w.nii.gz sub-02_T1w.nii.gz …

Every head is preprocessed at 3 mm, and so are near copies of it: of other bytes, but of one image.
Files whose names begin with the same sub-LABEL are of one person. Printed are the least and the
greatest correlation of brains (`detail` in neurofoundry/contracts/sketches.py), and cosine of
sketches, of each kind of pair, beside the bounds; then what all pairs of ``--scans`` sketches cost.

Expected: copies at COPY and above (defaced ones from SAME_PERSON on, as another brain mask is drawn
around them), other persons below SAME_PERSON. About 2.5 s of CPU an image.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from neurofoundry.contracts import sketches
from neurofoundry.contracts.volumes import Grid, open_volume
from neurofoundry.preprocess import template
from neurofoundry.preprocess.layout import Layout
from neurofoundry.preprocess.load import read_scan
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.resample import Image
from neurofoundry.preprocess.scan import Job, preprocess_scans
from neurofoundry.runtime.files import hash_file

PARAMS = PreprocessParams(grid=Grid(spacing=3.0))
SEED = 8
FEWEST = 4096
"""Sketches from which the cost of more is computed: all pairs, so by the square."""


def main() -> None:
    """Print the table, and write all pairs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("heads", type=Path, nargs="*")
    parser.add_argument("--scans", type=int, default=45_000)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    compared = list(pairs(arguments.heads))
    arguments.out.write_text(json.dumps(compared, indent=1))
    print(f"copies from {sketches.COPY:g}, likely one person from {sketches.SAME_PERSON:g}")
    for kind in dict.fromkeys(pair["kind"] for pair in compared):
        chosen = [pair for pair in compared if pair["kind"] == kind]
        ranges = (
            f"{min(of):.3f} to {max(of):.3f}"
            for of in ([pair[name] for pair in chosen] for name in ("brains", "sketches"))
        )
        print(f"{kind:28}{len(chosen):>4}   " + "   ".join(ranges))
    print(cost(arguments.scans))


def pairs(heads: list[Path]) -> Iterator[dict[str, Any]]:
    """Yield every head with its copies, and with every other head."""
    prepared = template.build(PARAMS.registration_spacing)
    rng = np.random.default_rng(SEED)
    originals = {}
    for path in heads:
        scan = read_scan(path)
        if (brain := _brain(scan, prepared)) is None:
            continue
        originals[path] = brain
        for kind, copy in copies(scan, rng).items():
            if (copied := _brain(copy, prepared)) is not None:
                yield {"kind": kind, "scan": path.name, **_alike(brain, copied)}
    for one, other in itertools.combinations(originals, 2):
        same = one.name.split("_")[0] == other.name.split("_")[0]
        kind = "another scan of the person" if same else "other persons"
        yield {"kind": kind, "scan": one.name, **_alike(originals[one], originals[other])}


def copies(scan: Image, rng: np.random.Generator) -> dict[str, Image]:
    """Return what other bytes one image may have."""
    values, affine = scan.values, scan.affine
    top = float(np.percentile(values, 99.5))
    voxel = values.copy()
    voxel[0, 0, 0] += 0.01 * top
    half = affine.copy()
    half[:3, 3] += affine[:3, :3] @ [0.5, 0.5, 0.5]
    places = np.indices(values.shape) / np.reshape(values.shape, (3, 1, 1, 1))
    face = (places[1] > 0.75) & (places[2] < 0.5)
    return {
        "one voxel of air": Image(voxel, affine),
        "× 1.01": Image(values * np.float32(1.01), affine),
        "noise of 2 %": Image(
            values + rng.normal(0, 0.02 * top, values.shape).astype(np.float32), affine
        ),
        "256 grey levels": Image(np.rint(values / top * 255).clip(0, 255), affine),
        "moved by half a voxel": Image(ndimage.shift(values, [-0.5] * 3, order=3), half),
        "defaced": Image(np.where(face, np.float32(0), values), affine),
    }


def cost(scans: int) -> str:
    """Return what comparing all pairs costs, measured on ``FEWEST`` sketches where there are
    more."""
    volume = np.random.default_rng(0).integers(1, 4000, (64, 64, 64), np.int16)
    sketches.sketch(volume)
    started = time.process_time()
    sketches.sketch(volume)
    each = time.process_time() - started
    count = min(scans, FEWEST)
    rows = np.random.default_rng(0).normal(size=(count, sketches.LENGTH)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    started = time.process_time()
    sketches.pairs(rows, sketches.SAME_PERSON)
    seconds = (time.process_time() - started) * (scans / count) ** 2
    return (
        f"{scans} scans: {each * scans:.0f} CPU s for sketches, {seconds:.0f} for all pairs of them"
        f"{' (computed from ' + str(count) + ')' if count < scans else ''}, "
        f"{scans * sketches.LENGTH * 4 / 1e6:.0f} MB"
    )


def _brain(scan: Image, prepared: template.Template) -> tuple[NDArray[np.float32], str] | None:
    """Return the detail and the sketch of a head, None where nothing can be made of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head.nii"
        nib.save(nib.Nifti1Image(scan.values.astype(np.float32), scan.affine), path)
        job = Job(path, "scan", hash_file(path), key="")
        (result,) = preprocess_scans([job], out=path.parent, params=PARAMS, template=prepared)
        if result.reason or result.sketch is None:
            print(f"nothing can be made of a head: {result.reason}")
            return None
        volume = open_volume(path.parent / Layout.of(PARAMS).volume.format("scan"), PARAMS.grid)
        return sketches.detail(volume), result.sketch


def _alike(
    one: tuple[NDArray[np.float32], str], other: tuple[NDArray[np.float32], str]
) -> dict[str, float]:
    rows = sketches.unit_rows([one[1], other[1]])
    return {"brains": float(one[0] @ other[0]), "sketches": float(rows[0] @ rows[1])}


if __name__ == "__main__":
    main()
