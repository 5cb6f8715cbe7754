"""Whether a FLAIR is told from that of another person, by its edges: all pairs of a BIDS folder.

    python benchmarks/contrasts.py FOLDER [--contrast FLAIR] [--spacing 2] [--others 12]

Every T1w image is paired with its session's own image in the other contrast, and with those of up
to ``--others`` other subjects. Printed are mutual information before and after, edges, how far the
head has moved: the least of own pairs, the greatest of others, and how many of each are within the
bounds. About 2 s of CPU a pair.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from neurofoundry.preprocess import template
from neurofoundry.preprocess.brain import Brain, find_brain
from neurofoundry.preprocess.coregistration import coregister, judge, measure, scaled
from neurofoundry.preprocess.load import read_scan
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.placement import place
from neurofoundry.preprocess.template import Template


def main() -> None:
    """Print a line a pair, then what they have in common."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--contrast", default="FLAIR")
    parser.add_argument("--spacing", type=float, default=2.0)
    parser.add_argument("--others", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    params = PreprocessParams(registration_spacing=arguments.spacing)
    prepared = template.build(arguments.spacing)
    pairs = [
        (t1w, other)
        for t1w in sorted(arguments.folder.rglob("sub-*_T1w.nii.gz"))
        if (other := Path(str(t1w).replace("_T1w.", f"_{arguments.contrast}."))).exists()
    ]
    own, others = [], []
    for number, (t1w, _) in enumerate(pairs):
        brain = _brain(t1w, params, prepared)
        person = t1w.name.partition("_")[0]
        turn = pairs[number:] + pairs[:number]
        wrong = [other for _, other in turn if not other.name.startswith(f"{person}_")]
        for path in (turn[0][1], *wrong[: arguments.others]):
            image = read_scan(path)
            before = measure(brain, scaled(image, None), np.eye(4))
            after = coregister(brain, image, arguments.spacing).measures
            kept = judge(after, params.coregistration) is None
            (own if path == turn[0][1] else others).append((after["edges"], kept))
            print(
                f"{t1w.name:28} {path.name:30} nmi {before['nmi']:.3f} -> {after['nmi']:.3f}  "
                f"edges {before['edges']:.3f} -> {after['edges']:.3f}  "
                f"{after['moved_mm']:.1f} mm {after['turned_deg']:.1f} deg  likeness "
                f"{after['likeness']:.2f} {'kept' if kept else 'left out'}",
                flush=True,
            )
    for name, found in (("own", own), ("others'", others)):
        edges = [each for each, _ in found]
        if edges:
            print(
                f"{name}: {sum(kept for _, kept in found)} of {len(found)} kept; edges "
                f"{min(edges):.3f} to {max(edges):.3f}"
            )


def _brain(path: Path, params: PreprocessParams, prepared: Template) -> Brain:
    found = find_brain(read_scan(path), params)
    ((_, settled),) = place([found], [found.intensities()], params, prepared)
    return settled


if __name__ == "__main__":
    main()
