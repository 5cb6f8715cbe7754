"""Whether explanations point to where a disease changed the heads of phantoms.

    python benchmarks/explain.py [--heads 240] [--spacing 6] [--epochs 15] [--steps 32]

Networks learn to detect strokes, and Alzheimer's-like atrophy, in synthetic heads, and are
explained for heads that they have not seen. What the disease changed is known: every head is also
painted as it would be without the disease, and the truth is where a fifth of the tissue differs.
The measures of an ill head, in blocks of 6 and 12 mm, are

- **share**: how much of the map's evidence for the disease lies in the truth,
- **volume**: how much of the brain lies in it, which is the share of an uninformed map,
- **pointing**: how often the block of the most evidence is filled by the truth at least as much as
  the average block that the truth touches,

of the trained network and of the same network with random weights (of several seeds). Scans are put
on the standard grid by their true pose, so that registration plays no role. It takes about three
minutes of CPU time at 6 mm. The results are in docs/measurements.md.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from nibabel.affines import apply_affine
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from torch import nn

from neurofoundry.contracts.encoder import EncoderParams
from neurofoundry.contracts.volumes import SLOPE, Grid
from neurofoundry.finetune import explain
from neurofoundry.finetune.network import Network, infer
from neurofoundry.finetune.params import FinetuneParams
from neurofoundry.finetune.train import train
from neurofoundry.nn import encoders, seeds
from neurofoundry.phantom import scanner
from neurofoundry.phantom.anatomy import Subject, closest_rigid, grow, paint, sample_subject
from neurofoundry.phantom.atlas import Atlas, build_atlas
from neurofoundry.phantom.params import PhantomParams
from neurofoundry.tasks import Classification

TASKS = {
    "stroke": Classification(column="stroke", classes=("no", "yes")),
    "alzheimers": Classification(column="diagnosis", classes=("CN", "AD")),
}
CHANGED = 0.2
SEED = 11
CONTROLS = 3


@dataclass(frozen=True)
class Scanned:
    """A head on the standard grid, axes (z, y, x)."""

    subject: Subject
    steps: np.ndarray
    """z-scores in steps of ``SLOPE``, background 0."""
    truth: dict[str, np.ndarray]
    """By task, where this person's disease changed the tissue; empty for the healthy."""


def scanned(subject: Subject, atlas: Atlas, grid: Grid) -> Scanned:
    """Scan a head and put it on ``grid`` by its true pose."""
    scan = scanner.head(subject, "1", scanner.SITES[subject.site], atlas, grid.spacing)
    onto = np.linalg.inv(scan.affine) @ np.linalg.inv(scan.pose) @ grid.affine
    image, brain = (
        ndimage.affine_transform(
            values.astype(np.float32), onto[:3, :3], onto[:3, 3], grid.shape, order=1
        )
        for values in (scan.image, scan.brain)
    )
    inside = brain > 0.5
    zscores = (image - image[inside].mean()) / image[inside].std()
    steps = np.where(inside, np.rint(zscores / SLOPE), 0).astype(np.int16)
    healthy = {}
    if subject.infarct:
        healthy["stroke"] = replace(subject, infarct=None)
    if subject.severity:
        healthy["alzheimers"] = replace(subject, severity=0.0)
    anatomy = grow(subject, subject.age, atlas)
    to_head = np.linalg.inv(closest_rigid(anatomy)) @ grid.affine
    voxels = np.moveaxis(np.indices(grid.shape), 0, -1).reshape(-1, 3)
    points = apply_affine(to_head, voxels).astype(np.float32)
    ill = paint(anatomy, points, grid.spacing).fractions if healthy else None
    truth = {}
    for task, other in healthy.items():
        well = paint(grow(other, other.age, atlas), points, grid.spacing).fractions
        changed = 0.5 * np.abs(ill - well).sum(axis=0) > CHANGED
        truth[task] = (changed.reshape(grid.shape) & inside).T
    return Scanned(subject, steps.T, truth)


def learn(
    name: str, heads: list[Scanned], rows: pd.DataFrame, epochs: int
) -> tuple[Network, float]:
    """Return a network, trained from random weights on split 'train', and its AUC on 'test'."""
    task = TASKS[name]
    network = untrained(name, seed=0)

    def read(numbers: list[int]) -> torch.Tensor:
        return torch.from_numpy(np.stack([heads[k].steps for k in numbers])).unsqueeze(1)

    params = {"initializations": {"scratch": {"encoder": "random", "mode": "finetune"}}}
    params |= {"epochs": epochs, "batch_size": 8, "learning_rate": 3e-3, "augmentation": "none"}
    tuned = FinetuneParams.model_validate(params)
    tuning = tuned.tuning("scratch")
    train(
        network,
        task,
        name=name,
        learn=rows[rows["split"] == "train"],
        val=rows[rows["split"] == "val"],
        scans_per_epoch=int((rows["split"] == "train").sum()),
        read=read,
        params=tuned,
        tuning=tuning,
        learning_rate=tuning.learning_rates[0],
        seed=0,
        advance=lambda: None,
    )
    test = rows[rows["split"] == "test"]
    scores = task.score(infer(network, test["scan_id"], read))
    return network, float(roc_auc_score(test["target"], scores))


def untrained(name: str, *, seed: int) -> Network:
    """Return a network of random weights, in the head too: a head of zeros has no map."""
    encoder = encoders.build(EncoderParams(stem_stride=2, width=0.25), seed=seed)
    network = Network(encoders.place(encoder), TASKS[name])
    with seeds.seeded(seed):
        nn.init.normal_(network.head.weight, std=0.1)
    return network


def measure(
    network: Network, name: str, ill: list[Scanned], grid: Grid, steps: int
) -> dict[str, list[float]]:
    """Return the means over heads of share, volume, pointing and what maps leave over, by block."""
    network.eval().requires_grad_(False)

    def score(volumes: torch.Tensor) -> torch.Tensor:
        return TASKS[name].score(network(volumes))

    rows: dict[str, list[list[float]]] = {"6 mm": [], "12 mm": []}
    for head in ill:
        scan = torch.from_numpy(head.steps)[None, None].float() * SLOPE
        base = explain.flat(scan)
        voxels = explain.integrated_gradients(score, scan, base, steps)[0, 0].numpy()
        difference = (score(scan) - score(base)).item()
        left_over = abs(difference - voxels.sum()) / abs(difference)
        blocks = [
            explain.block_sums(values, grid)
            for values in (voxels, head.truth[name], head.steps != 0)
        ]
        for edge in rows:
            sums, truth, brain = blocks if edge == "6 mm" else [_pairs(block) for block in blocks]
            evidence = sums.clip(0)
            at_peak = truth.flat[sums.argmax()]
            rows[edge].append(
                [
                    float((evidence * truth / brain.clip(1)).sum() / evidence.sum()),
                    float(truth.sum() / brain.sum()),
                    float(at_peak > 0 and at_peak >= truth[truth > 0].mean()),
                    left_over,
                ]
            )
    return {edge: np.mean(measures, axis=0).tolist() for edge, measures in rows.items()}


def _pairs(blocks: np.ndarray) -> np.ndarray:
    """Sum over blocks of twice the edge; the last is padded with zeros."""
    padded = np.pad(blocks, [(0, size % 2) for size in blocks.shape])
    x, y, z = (size // 2 for size in padded.shape)
    return padded.reshape(x, 2, y, 2, z, 2).sum(axis=(1, 3, 5))


def main() -> None:
    """Print a row per task, network and edge of the blocks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--heads", type=int, default=240)
    parser.add_argument("--spacing", type=float, default=6.0)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=32)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    grid, atlas = Grid(spacing=arguments.spacing), build_atlas(2)
    params = PhantomParams(subjects=arguments.heads, seed=SEED, stroke_ml=40)
    subjects = [sample_subject(params, number) for number in range(arguments.heads)]
    heads = [scanned(subject, atlas, grid) for subject in subjects]
    share = np.random.default_rng(0).permutation(arguments.heads) / arguments.heads
    split = np.select([share < 0.6, share < 0.7], ["train", "val"], "test")
    print(f"{'':42}{'share':>8}{'volume':>8}{'pointing':>10}{'left over':>11}")
    for name in TASKS:
        target = [float(name in head.truth) for head in heads]
        rows = pd.DataFrame({"scan_id": range(len(heads)), "target": target, "split": split})
        network, auc = learn(name, heads, rows, arguments.epochs)
        ill = [heads[k] for k in rows.query("split == 'test' and target == 1")["scan_id"]]
        measured = {f"trained, AUC {auc:.2f}": measure(network, name, ill, grid, arguments.steps)}
        for seed in range(1, CONTROLS + 1):
            control = untrained(name, seed=seed)
            measured[f"random weights {seed}"] = measure(control, name, ill, grid, arguments.steps)
        for title, edges in measured.items():
            for edge, (inside, volume, pointed, over) in edges.items():
                label = f"{name} ({len(ill)} ill), {title}, {edge}"
                print(
                    f"{label:46}{inside:>8.3f}{volume:>8.3f}{pointed:>8.2f}{over:>9.2f}", flush=True
                )


if __name__ == "__main__":
    main()
