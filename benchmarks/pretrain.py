"""Pretraining as neurofoundry does it, and as a user would write it with MONAI and a DataLoader.

    python benchmarks/pretrain.py [--quick] [--rounds N] [--json FILE]

Both ways train the same ResNet-18 with NT-Xent on the same synthetic volumes, with the same number
of scans a step: of 96 x 96 x 96 voxels with the stride-2 stem on a CPU, of 150 x 192 x 192 with the
stride-1 stem on a GPU. The customary way reads `.nii.gz` in DataLoader workers, one a core, applies
per-sample MONAI dictionary transforms with the distribution of 3D-Neuro-SimCLR, and trains with
Adam in fp32. Ours reads memory-mapped int16 and draws and applies views in batches where the
network is; `paper` has the same distribution, `robust` is our default, which does more. Each way
runs in a process of its own. Augmentation is also timed alone, on all cores, at 150 x 192 x 192,
from volumes in memory to views in the process that trains; there a second customary way,
`customary-robust`, takes the steps of `robust` as MONAI has them. So `paper` compares with
`customary` and `robust` with `customary-robust`, and all four with each other. As a machine that
others use too is faster at times, the ways take turns, round after round (once on a GPU): ratios
are within a round, and medians are reported.
On a CPU `bf16` is `robust` trained in that precision, which pays where the CPU computes it
(avx512_bf16, amx_bf16). On a GPU ours always trains in it; the share of the speed of a large matrix
product is reported, and the largest batch that a step was made with.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from monai import transforms
from monai.networks.nets.resnet import ResNet
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from neurofoundry.contracts.volumes import SLOPE, Grid, VolumeFolder, write_volume
from neurofoundry.nn import augment, encoders
from neurofoundry.nn.augment.draws import LEAST_OF_PAPER
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.pretrain import memory, objectives
from neurofoundry.pretrain.batches import Batches
from neurofoundry.pretrain.cost import measure_step
from neurofoundry.pretrain.ntxent import nt_xent
from neurofoundry.pretrain.objectives.simclr import SimclrParams
from neurofoundry.pretrain.optimizer import make_optimizer, train_step
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.ranks import Ranks
from neurofoundry.runtime import log
from neurofoundry.runtime.progress import announced

DEVICE = Ranks().device
GPU = DEVICE.type == "cuda"
WAYS = ("customary", "paper", "customary-robust", "robust", *["bf16"] * (not GPU))
TRAINED = set(WAYS) - {"customary-robust"}
CORES = len(os.sched_getaffinity(0))
FULL = (150, 192, 192)
WARM_UP = 4
"""Steps before time is taken, as the memory of a process comes to rest."""


class Cube(Grid):
    """Smaller than the standard box, so that a CPU trains on it in minutes."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return 96, 96, 96


GRID = Grid(spacing=1.0) if GPU else Cube(spacing=2.0)


def head(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Smooth texture in an ellipsoid of a brain's share of the box: z-scores and mask."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    mask = sum(np.square(axis / 0.75) for axis in axes) < 1
    phases = np.random.default_rng(seed).uniform(3, 9, 3)
    volume = sum(np.sin(phase * axis) for phase, axis in zip(phases, axes, strict=True))
    volume = volume + 0.3 * np.random.default_rng(seed + 1).standard_normal(shape)
    return np.where(mask, (volume - volume[mask].mean()) / volume[mask].std(), 0), mask


def write_volumes(folder: Path, grid: Grid, scans: int) -> None:
    for number in range(scans):
        zscores, mask = head(grid.shape, number)
        path = folder / f"scan-{number}.nii"
        write_volume(path, zscores, mask, grid)
        nib.save(nib.Nifti1Image(zscores.astype(np.float32), grid.affine), f"{path}.gz")


def customary_transforms(shape: tuple[int, int, int], *, load: bool) -> Callable[..., Any]:
    """One view, distributed as in 3D-Neuro-SimCLR (its main.py), axes as in the file (x, y, z)."""
    key = ["image"]
    least = [round(share * n) for share, n in zip(LEAST_OF_PAPER, shape, strict=True)]
    steps = [
        transforms.LoadImaged(key),
        transforms.EnsureChannelFirstd(key),
        transforms.RandSpatialCropd(key, roi_size=least, random_size=True),
        transforms.Resized(key, spatial_size=shape, mode="trilinear"),
        transforms.RandFlipd(key, prob=0.5, spatial_axis=0),
        transforms.RandRotated(key, prob=0.5, range_x=np.pi / 4),
        transforms.RandShiftIntensityd(key, offsets=0.5, prob=0.8),
        transforms.RandAdjustContrastd(key, prob=0.8, gamma=(0.5, 1.5)),
        transforms.NormalizeIntensityd(key, nonzero=True),
    ]
    return transforms.Compose(steps if load else steps[2:])


class CustomaryDataset(Dataset):
    """Two views of a file, each read and transformed on its own."""

    def __init__(self, paths: list[Path], view: Callable[..., Any]) -> None:
        self.paths, self.view = paths, view

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        path = self.paths[index % len(self.paths)]
        one, two = (self.view({"image": path})["image"].as_tensor() for _ in range(2))
        return one, two, index


def train_customary(
    folder: Path, params: PretrainParams, grid: Grid
) -> tuple[Callable[[Any], None], Iterator[Any]]:
    """A step, and the batches."""
    encoder = ResNet(**encoders.monai_arguments(params.encoder, channels=1))
    features = encoder.in_planes
    projector = nn.Sequential(
        nn.Linear(features, features), nn.ReLU(), nn.Linear(features, SimclrParams().projection)
    )
    model = nn.Sequential(encoder, projector).to(DEVICE).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-4)
    dataset = CustomaryDataset(
        sorted(folder.glob("*.nii.gz")), customary_transforms(grid.shape, load=True)
    )
    loader = DataLoader(
        dataset,
        params.batch_size,
        shuffle=True,
        num_workers=CORES,
        drop_last=True,
        persistent_workers=True,
    )

    def step(batch: Any) -> None:
        one, two, persons = batch
        views = torch.cat([one, two]).to(DEVICE)
        embeddings = F.normalize(model(views), dim=1).unflatten(0, (2, -1))
        loss = nt_xent(embeddings, persons.to(DEVICE), temperature=0.5)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step, (batch for _ in range(10**6) for batch in loader)


def train_ours(
    folder: Path, params: PretrainParams, grid: Grid
) -> tuple[Callable[[Any], None], Iterator[Any]]:
    """A step, and the batches: the stage's own functions."""
    torch.backends.cudnn.deterministic = True  # as the stage does
    names = sorted(path.stem for path in folder.glob("*.nii"))
    scans = pd.DataFrame({"scan_id": names, "person": names})
    encoder = encoders.build(params.encoder, seed=0)
    objective = objectives.build(
        "simclr", encoder, SimclrParams(), spacing_mm=grid.spacing, seed=0
    ).train()
    objective.to(DEVICE, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = make_optimizer(objective, params)
    number = 0

    def step(batch: Any) -> None:
        nonlocal number
        rows, stored = batch
        zscores = stored.to(DEVICE) * SLOPE
        inputs = objective.inputs(zscores, list(rows["scan_id"]), params.augment, 0, number)
        train_step(
            objective,
            optimizer,
            inputs,
            rows,
            params,
            step=number,
            steps=params.epochs * batches.per_epoch,
            rate=3e-4,
            ranks=Ranks(),
        )
        number += 1

    volumes = VolumeFolder(folder, grid)
    batches = Batches(scans, volumes, params.batch_size, seed=0, ranks=Ranks())
    return step, batches.read(0, params.epochs * batches.per_epoch)


def time_training(way: str, folder: Path, params: PretrainParams, steps: int) -> dict[str, float]:
    """Scans a second end to end, warm, and the share of waiting for data."""
    begin = train_customary if way == "customary" else train_ours
    step, batches = begin(folder, params, GRID)
    for batch in islice(batches, WARM_UP):
        step(batch)
    waited, worked = 0.0, cpu_seconds()
    started = before = time.perf_counter()
    for batch in islice(batches, steps):
        waited += time.perf_counter() - before
        step(batch)
        before = time.perf_counter()
    seconds = time.perf_counter() - started
    numbers = {
        "scans_per_second": steps * params.batch_size / seconds,
        "cpu_seconds_a_scan": (cpu_seconds() - worked) / (steps * params.batch_size),
        "data_wait_share": waited / seconds,
        "peak_memory_gib": peak_memory() / 2**20,
    }
    if GPU:
        numbers["peak_gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return numbers


def workers() -> list[Path]:
    """Folders in /proc of the living processes that this one has started."""
    children = " ".join(path.read_text() for path in Path("/proc/self/task").glob("*/children"))
    return [Path("/proc", child) for child in children.split()]


def peak_memory() -> int:
    """KiB, of this process and its workers; what they share counts in each."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for worker in workers():
        status = (worker / "status").read_text()
        peak += int(status.partition("VmHWM:")[2].split()[0])
    return peak


def cpu_seconds() -> float:
    """Of this process and its workers."""
    ticks = 0
    for worker in workers():
        after_name = (worker / "stat").read_text().rpartition(")")[2].split()
        ticks += int(after_name[11]) + int(after_name[12])  # user and system
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def customary_robust_transforms() -> Callable[..., Any]:
    """One view by the steps and strengths of `robust`, as MONAI has them: crop, flip and turn in
    one resampling; each step as often as ours."""
    key = ["image"]
    steps = [
        transforms.RandFlipd(key, prob=0.5, spatial_axis=0),
        transforms.RandAffined(
            key,
            prob=1,
            rotate_range=np.pi / 12,
            translate_range=[0.15 * n for n in FULL[::-1]],
            scale_range=((-0.3, 0.0),) * 3,
            padding_mode="zeros",
        ),
        transforms.RandGaussianSmoothd(
            key, prob=1, sigma_x=(0.01, 1), sigma_y=(0.01, 1), sigma_z=(0.01, 1)
        ),
        transforms.RandSimulateLowResolutiond(key, prob=1, zoom_range=(0.5, 1.0)),
        transforms.RandAdjustContrastd(key, prob=1, gamma=(0.5, 2.0)),
        transforms.RandHistogramShiftd(key, prob=1, num_control_points=9),
        transforms.RandBiasFieldd(key, prob=1, degree=3),
        transforms.RandRicianNoised(key, prob=1, std=0.3, sample_std=True),
        transforms.NormalizeIntensityd(key, nonzero=True),
    ]
    return transforms.Compose(steps)


class InMemory(Dataset):
    """Views of one volume in memory."""

    def __init__(self, image: torch.Tensor, view: Callable[..., Any]) -> None:
        self.image, self.view = image, view
        self.views = 0

    def __len__(self) -> int:
        return self.views

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.view({"image": self.image.clone()})["image"].as_tensor()


def make_customary_views(way: str) -> Callable[[int], None]:
    """Make so many views in workers, one a core, and receive them here."""
    view = (
        customary_robust_transforms()
        if way == "customary-robust"
        else customary_transforms(FULL[::-1], load=False)
    )
    volume, _ = head(FULL, 0)
    dataset = InMemory(torch.tensor(volume.T.copy(), dtype=torch.float32)[None], view)
    loader = DataLoader(dataset, num_workers=CORES, persistent_workers=True)

    def make(views: int) -> None:
        dataset.views = views
        for _ in loader:
            pass

    return make


def make_views(preset: str) -> Callable[[int], None]:
    """Make so many views, in batches."""
    volume, _ = head(FULL, 0)
    zscores = torch.tensor(volume, dtype=torch.float32, device=DEVICE)[None, None]
    zscores = zscores.repeat(2 * CORES, 1, 1, 1, 1)
    params = AugmentParams.model_validate({"preset": preset})

    def make(views: int) -> None:
        for start in range(0, views, len(zscores)):
            names = [str(start + number) for number in range(len(zscores))][: views - start]
            drawn = augment.draw(params, seed=0, epoch=0, scans=names, view=0, shape=FULL)
            augment.apply(zscores[: len(names)], drawn).sum().item()

    return make


def time_views(way: str, views: int) -> dict[str, float]:
    """Seconds a view at 150 x 192 x 192 of what is in memory already, on all cores."""
    make = (make_customary_views if way.startswith("customary") else make_views)(way)
    make(CORES)
    wall, cpu = time.perf_counter(), cpu_seconds()
    make(views)
    return {
        "view_seconds": (time.perf_counter() - wall) / views,
        "view_cpu_seconds": (cpu_seconds() - cpu) / views,
    }


def matrix_share(params: PretrainParams, scans_per_second: float) -> dict[str, float]:
    """TFLOP/s of training, and its share of what a large bf16 matrix product reaches here."""
    from torch.utils.flop_counter import FlopCounterMode

    encoder = encoders.build(params.encoder, seed=0).to(DEVICE)
    z, y, x = GRID.shape[::-1]
    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(2, 1, z, y, x, device=DEVICE)).sum().backward()
    reached = counter.get_total_flops() * scans_per_second / 1e12
    a = torch.randn(8192, 8192, device=DEVICE, dtype=torch.bfloat16)
    for _ in range(3):
        a @ a
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    best = 20 * 2 * 8192**3 / (time.perf_counter() - started) / 1e12
    return {"tflops": reached, "share_of_matrix_product": reached / best}


def largest_batch(params: PretrainParams) -> dict[str, float]:
    """Scans of the largest step that the GPU's memory holds, found by trying; views at once."""

    def fits(scans: int) -> bool:
        try:
            measure_step("simclr", params, GRID, scans=scans, steps=1)
        except torch.OutOfMemoryError:
            return False
        return True

    most = 1
    while fits(2 * most):
        most *= 2
    least = 2 * most
    while least - most > 1:
        middle = (most + least) // 2
        most, least = (middle, least) if fits(middle) else (most, middle)
    return {"largest_batch": most}


def compare(ways: dict[str, dict[str, float]]) -> None:
    """Add to the numbers of a round how many times as fast as the customary way ours are."""
    theirs = ways["customary"]["scans_per_second"]
    for way in TRAINED - {"customary"}:
        ways[way]["end_to_end_ratio"] = ways[way]["scans_per_second"] / theirs
    for way, other in (("paper", "customary"), ("robust", "customary-robust")):
        for name in ("view_seconds", "view_cpu_seconds"):
            ways[way][f"{name}_ratio"] = ways[other][name] / ways[way][name]


def table(rounds: Sequence[dict[str, dict[str, float]]]) -> Iterator[str]:
    """Medians of the rounds; of ratios, the smallest and the largest too."""
    first = rounds[0]
    rows = list(dict.fromkeys(name for values in first.values() for name in values))
    yield "| | " + " | ".join(first) + " |"
    yield "|---" * (len(first) + 1) + "|"
    for row in rows:
        cells = []
        for way in first:
            values = [each[way][row] for each in rounds if row in each[way]]
            cell = f"{median(values):.3g}" if values else ""
            if values and row.endswith("_ratio"):
                cell += f" ({min(values):.3g} to {max(values):.3g})"
            cells.append(cell)
        yield f"| {row} | " + " | ".join(cells) + " |"


class Size(NamedTuple):
    """How much is measured."""

    encoder: dict[str, float]
    batch: int
    """Scans of a step: on a GPU, as many as the customary way has memory for (5 GB a view)."""
    steps: int
    views: int

    @property
    def scans(self) -> int:
        """Volumes to train on."""
        return (8 if GPU else 2) * self.batch


def size(*, quick: bool) -> Size:
    if quick:
        return Size({"stem_stride": 2, "width": 0.25}, batch=4, steps=3, views=4)
    if GPU:
        return Size({"stem_stride": 1}, batch=4, steps=30, views=20)
    return Size({"stem_stride": 2}, batch=8, steps=10, views=20)


def measure(way: str, folder: Path, size: Size) -> Iterator[dict[str, float]]:
    """Measure one way, in a process of its own; yield numbers as they come."""
    params = PretrainParams.model_validate(
        {
            "encoder": size.encoder,
            "batch_size": size.batch,
            "epochs": 1000,
            "precision": "bf16" if GPU or way == "bf16" else "fp32",
            "augment": {"preset": "paper" if way == "paper" else "robust"},
        }
    )
    ours = not way.startswith("customary")
    with memory.kept() if ours else nullcontext():  # as the stage does
        if way in TRAINED:
            trained = time_training(way, folder, params, size.steps)
            yield trained
        if way != "bf16":  # its views are robust's
            yield time_views(way, size.views)
    if GPU and ours:
        yield matrix_share(params, trained["scans_per_second"])
    if GPU and way == "robust":
        yield largest_batch(params)


def take_turn(way: str, folder: str, *, quick: bool) -> Iterator[dict[str, float]]:
    """Measure one way in a process of its own, with the volumes of a folder."""
    command = [sys.executable, __file__, "--folder", folder, "--way", way, *["--quick"] * quick]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if line.startswith("{"):
                yield json.loads(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)


def take_turns(rounds: int, *, quick: bool) -> list[dict[str, Any]]:
    """Measure all ways, round after round."""
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        write_volumes(Path(folder), GRID, size(quick=quick).scans)
        for number in range(1, rounds + 1):
            ways: dict[str, dict[str, float]] = {}
            for way in WAYS:
                with announced(f"Round {number} of {rounds}, {way}"):
                    turn = take_turn(way, folder, quick=quick)
                    ways[way] = {name: value for each in turn for name, value in each.items()}
            compare(ways)
            measured.append(ways)
    return measured


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a small network, a few minutes")
    parser.add_argument(
        "--rounds",
        type=int,
        default=1 if GPU else 3,  # a GPU is one's own, and its largest batch takes long to find
        help="each way so often, in turn",
    )
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    scale = size(quick=options.quick)
    if options.way:
        for numbers in measure(options.way, options.folder, scale):
            print(json.dumps(numbers), flush=True)
        return
    log.configure()
    rounds = take_turns(options.rounds, quick=options.quick)
    z, y, x = GRID.shape[::-1]
    print(
        f"{scale.encoder}, {scale.batch} scans of {z} x {y} x {x} a step, on {DEVICE.type}, "
        f"{torch.get_num_threads()} threads\n"
    )
    print("\n".join(table(rounds)))
    if options.json:
        content = {"encoder": scale.encoder, "batch": scale.batch, "rounds": rounds}
        options.json.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
