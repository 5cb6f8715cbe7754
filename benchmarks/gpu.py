"""Everything that only a GPU can show, in at most 8 minutes: one JSON and one table.

    python benchmarks/gpu.py --out FOLDER [--toy] [--minutes 8] [--parts convolutions,steps]

Written for the day a GPU (such as an H200) is lent. Each part runs in a process of its own and may
take so much of the time; one that fails, or takes longer, leaves its reason beside the numbers that
it had, and stops no other.

- convolutions: the network in fp32 and bf16 against float64 on the CPU, features and gradients.
- views: views a second at 150 x 192 x 192, made together and one by one, whether both are the same,
  and how often a step makes the host wait for the GPU.
- steps: scans a second of a step without views: fp32, bf16, compiled; cudnn deterministic or not.
- resume: the stage twice, and once more from its middle: equal to the bit, or how far apart.
- registration: warps a second of one brain at a time, and of several together.
- end_to_end: scans a second, wait for data, share of a bf16 matrix product and largest batch, and
  the customary way (benchmarks/pretrain.py).
- two_processes: scans a second of two trainings at once, over those of one.

--toy is the same at a size for a CPU, in this process, without the last two, which take minutes
there: name them in --parts.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from neurofoundry.contracts.encoder import EncoderParams
from neurofoundry.contracts.tables import write_table
from neurofoundry.contracts.volumes import VOLUMES, Grid, VolumesRecord, write_record, write_volume
from neurofoundry.nn import augment, encoders
from neurofoundry.nn.augment import Draws
from neurofoundry.nn.augment.params import AugmentParams
from neurofoundry.preprocess import warp
from neurofoundry.preprocess.resample import Image
from neurofoundry.pretrain import objectives
from neurofoundry.pretrain.objectives.simclr import SimclrParams
from neurofoundry.pretrain.optimizer import make_optimizer, train_step
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.ranks import Ranks
from neurofoundry.pretrain.run import pretrain
from neurofoundry.runtime.files import hash_file, write_json, write_text
from neurofoundry.runtime.stage import Workspace

DEVICE = Ranks().device
GPU = DEVICE.type == "cuda"
Numbers = dict[str, Any]


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    spacing: float = 1.0
    encoder: Mapping[str, Any] = field(default_factory=lambda: {"stem_stride": 1})
    scans: int = 16
    """Of a step."""
    tries: int = 10
    """Of what is timed."""
    warp_mm: float = 2.0
    warp_extent_mm: float = 192.0
    brains: int = 8

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""
        x, y, z = Grid(spacing=self.spacing).shape
        return z, y, x


FULL = Size()
TOY = Size(
    6.0,
    {"stem_stride": 2, "width": 0.125},
    scans=4,
    tries=2,
    warp_mm=8.0,
    warp_extent_mm=48.0,
    brains=2,
)


def main() -> None:
    """Measure, write FOLDER/gpu.json and FOLDER/gpu.md, and print the table."""
    options = parse()
    size = TOY if options.toy else FULL
    if options.part:
        for numbers in {**PARTS, "a_step": a_step}[options.part](size):
            print(json.dumps(numbers), flush=True)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * options.minutes
    found: dict[str, Numbers] = {"machine": machine()}
    for name in options.parts:
        seconds = min(SECONDS[name], ends - time.monotonic())
        found[name] = merged(PARTS[name](TOY)) if options.toy else run_part(name, seconds=seconds)
        write_json(options.out / "gpu.json", found)
    text = "\n".join(table(found)) + "\n"
    write_text(options.out / "gpu.md", text)
    print(text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--toy", action="store_true", help="at a size for a CPU")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--parts", type=lambda text: text.split(","), help="only these, by comma")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    options = parser.parse_args()
    everything = [name for name in PARTS if not (options.toy and name in NOT_AS_TOY)]
    options.parts = options.parts or everything
    if unknown := sorted(set(options.parts) - PARTS.keys()):
        parser.error(f"no part {', '.join(unknown)}; there is {', '.join(PARTS)}")
    return options


def run_part(name: str, *, seconds: float) -> Numbers:
    """Run a part in a process of its own; return its numbers, and why there are no more of them."""
    if seconds <= 0:
        return {"failed": "no time was left"}
    started = time.monotonic()
    command = [sys.executable, __file__, "--part", name]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, start_new_session=True)
        failed = {}
        try:
            if process.wait(seconds):
                failed = {"failed": (said(errors) or ["no message"])[-1]}
        except subprocess.TimeoutExpired:
            failed = {"failed": f"not done within {seconds:.0f} s"}
        # Whatever it has started would be measured together with the next part.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        numbers = merged(json.loads(line) for line in said(out) if line.startswith("{"))
    return {**numbers, **failed, "wall_s": time.monotonic() - started}


def said(file: IO[str]) -> list[str]:
    """The whole lines that a process has written."""
    file.seek(0)
    return [line.strip() for line in file if line.endswith("\n") and line.strip()]


def merged(numbers: Iterable[Numbers]) -> Numbers:
    """What a part tells one after the other."""
    return {name: value for each in numbers for name, value in each.items()}


def machine() -> Numbers:
    """What was measured on."""
    name = torch.cuda.get_device_name() if GPU else f"{torch.get_num_threads()} CPU threads"
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda or ""}


def table(found: Mapping[str, Numbers]) -> Iterator[str]:
    """A row a number."""
    yield "| Part | Measure | Value |"
    yield "|---|---|---|"
    for part, numbers in found.items():
        for name, value in numbers.items():
            shown = f"{value:.4g}" if isinstance(value, float) else value
            yield f"| {part} | {name} | {shown} |"


def seconds_of(what: Callable[[], object], tries: int) -> float:
    """Median seconds of a call, warm, with the GPU at rest before and after."""
    what()
    taken = []
    for _ in range(tries):
        wait()
        started = time.perf_counter()
        what()
        wait()
        taken.append(time.perf_counter() - started)
    return median(taken)


def wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def heads(size: Size, scans: int) -> torch.Tensor:
    """Ellipsoids of noise, z-scored, on the device: (scans, 1, z, y, x)."""
    source = np.random.default_rng(0)
    z, y, x = np.ogrid[tuple(slice(-1, 1, complex(0, n)) for n in size.shape)]
    inside = z**2 + y**2 + x**2 < 0.8**2
    noise = source.standard_normal((scans, 1, *size.shape), np.float32)
    return torch.from_numpy(np.where(inside, noise, 0)).to(DEVICE)


def convolutions(size: Size) -> Iterator[Numbers]:
    """Largest errors of features and gradients, as shares of the largest values, with the maps of
    coarser volumes: float64 on a CPU would take minutes."""
    params, shape = EncoderParams.model_validate(size.encoder), (26, 32, 32)
    inputs = torch.randn(4, 1, *shape, generator=torch.Generator().manual_seed(1))

    def made(device: torch.device, dtype: torch.dtype, bf16: bool = False) -> list[torch.Tensor]:
        # In evaluation mode: the statistics of so few voxels would enlarge any rounding.
        encoder = encoders.build(params, seed=0).to(device, dtype).eval()
        encoder = encoder.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            features = encoder(inputs.to(device, dtype))
        features.square().sum().backward()
        gradient = next(encoder.parameters()).grad
        return [each.detach().double().cpu() for each in (features, gradient)]

    exact = made(torch.device("cpu"), torch.float64)
    for name in ("fp32", "bf16"):
        ours = made(DEVICE, torch.float32, bf16=name == "bf16")
        for what, one, other in zip(("features", "gradients"), ours, exact, strict=True):
            error = ((one - other).abs().max() / other.abs().max()).item()
            yield {f"{name}_{what}_error": error}


def views(size: Size) -> Iterator[Numbers]:
    """Views a second, and how often the host waits."""
    zscores, names = heads(size, size.scans), [str(number) for number in range(size.scans)]
    for preset in ("robust", "paper"):
        params = AugmentParams.model_validate({"preset": preset})

        def drawn(params: AugmentParams = params) -> list[Draws]:
            key = {"seed": 0, "epoch": 0, "scans": names, "shape": size.shape}
            return [augment.draw(params, view=view, **key) for view in range(2)]

        def together() -> torch.Tensor:
            return augment.apply(zscores, Draws.joined(drawn()))

        def one_by_one() -> torch.Tensor:
            return torch.cat([augment.apply(zscores, each) for each in drawn()])

        count = 2 * size.scans
        yield {
            f"{preset}_views_per_s": count / seconds_of(together, size.tries),
            f"{preset}_one_by_one_per_s": count / seconds_of(one_by_one, size.tries),
            f"{preset}_largest_difference": (together() - one_by_one()).abs().max().item(),
            f"{preset}_host_waits": host_waits(together),
        }


def host_waits(what: Callable[[], object]) -> int:
    """How often a call waits for the GPU, as torch itself counts."""
    if not GPU:
        return 0
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        what()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(each.message) for each in heard)


def steps(size: Size) -> Iterator[Numbers]:
    """Scans a second of a step of SimCLR on views that are there already."""
    for name, precision, compiled, deterministic in (
        ("fp32", "fp32", False, True),
        ("bf16", "bf16", False, True),
        ("bf16_any_kernel", "bf16", False, False),
        ("bf16_compiled", "bf16", True, True),
    ):
        if not GPU and (compiled or precision == "bf16"):
            continue  # a CPU may have no compiler, and bf16 convolutions that are wrong
        torch.backends.cudnn.deterministic = deterministic
        torch.backends.cudnn.benchmark = not deterministic
        step, waits = trainer(size, precision, compiled=compiled)
        yield {
            f"{name}_scans_per_s": size.scans / seconds_of(step, size.tries),
            f"{name}_host_waits": waits(),
        }


def trainer(
    size: Size, precision: str, *, compiled: bool
) -> tuple[Callable[[], object], Callable[[], int]]:
    """A step, and how often it waits."""
    params = PretrainParams.model_validate({"encoder": size.encoder, "precision": precision})
    encoder = encoders.build(params.encoder, seed=0)
    objective = objectives.build(
        "simclr", encoder, SimclrParams(compile=compiled), spacing_mm=size.spacing, seed=0
    ).train()
    objective.to(DEVICE, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimizer = make_optimizer(objective, params)
    inputs = torch.stack([heads(size, size.scans)] * 2)
    names = [str(number) for number in range(size.scans)]
    batch = pd.DataFrame({"scan_id": names, "person": names})
    how = {"step": 0, "steps": 100, "rate": 1e-4, "ranks": Ranks()}

    def step() -> object:
        return train_step(objective, optimizer, inputs, batch, params, **how)

    return step, lambda: host_waits(step)


def resume(size: Size) -> Iterator[Numbers]:
    """The stage twice, and from its middle: the largest difference of any weight."""
    with tempfile.TemporaryDirectory() as root:
        volumes = write_cohort(Path(root, "volumes"), size)
        folders = [Path(root, name) for name in ("one", "again", "resumed")]
        for folder in folders:
            if folder.name == "resumed":
                half_done(folders[0], folder)
            train_encoder(folder, volumes, size)
        weights = [load_file(folder / "encoder.safetensors") for folder in folders]
    yield {
        "again_largest_difference": furthest(weights[0], weights[1]),
        "resumed_largest_difference": furthest(weights[0], weights[2]),
    }


def half_done(finished: Path, folder: Path) -> None:
    """Copy a finished run as it was when its last checkpoint but one was new."""
    shutil.copytree(finished / "checkpoint", folder / "checkpoint")
    newest = max((folder / "checkpoint").glob("step-*.pt"))
    newest.unlink()


def train_encoder(folder: Path, volumes: Path, size: Size) -> None:
    folder.mkdir(exist_ok=True)
    params = PretrainParams.model_validate(
        {
            **{"encoder": size.encoder, "epochs": 4, "batch_size": size.scans // 2, "probe": None},
            **{"precision": "bf16" if GPU else "fp32", "checkpoint_epochs": 2},
        }
    )
    pretrain(Workspace(folder), volumes=volumes, method="simclr", params=params, seed=0)


def write_cohort(folder: Path, size: Size) -> Path:
    """As many volumes as a step has, as preprocess leaves them."""
    folder.mkdir()
    grid = Grid(spacing=size.spacing)
    rows = []
    for number, volume in enumerate(heads(size, size.scans)[:, 0].cpu().numpy()):
        path = folder / f"scan-{number}.nii"
        write_volume(path, volume.T, volume.T != 0, grid)
        rows.append(
            {
                **{"scan_id": path.stem, "dataset": "noise", "subject": str(number)},
                **{"session": "1", "person": str(number), "source": "bids", "path": path.name},
                **{"sha256": hash_file(path), "split": "pretrain", "age": None, "sex": None},
                **{"site": "a", "scanner": None, "field_strength": None, "usable": True},
                **{"reason": None, "volume": path.name, "volume_sha256": hash_file(path)},
            }
        )
    write_table(pd.DataFrame(rows), folder / "scans.tsv", VOLUMES)
    write_record(folder, VolumesRecord(grid=grid.describe(), params={}))
    return folder


def furthest(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The largest difference of any weight; 0.0: the same to the bit."""
    return max((one[name].double() - other[name].double()).abs().max().item() for name in one)


def registration(size: Size) -> Iterator[Numbers]:
    """Warps a second."""
    counts = [2 * round(size.warp_extent_mm / 2 / size.warp_mm)] * 3
    axes = np.ogrid[tuple(slice(-1, 1, complex(0, n)) for n in counts)]
    radius = np.sqrt(sum(axis**2 for axis in axes))
    affine = np.diag([size.warp_mm] * 3 + [1.0])

    def brain(edge: float) -> Image:
        return Image(np.clip(5 * (edge - radius), 0, 1).astype(np.float32), affine)

    fixed, moving = brain(0.7), [brain(0.65 + 0.01 * number) for number in range(size.brains)]

    def registered(brains: int) -> object:
        return warp.register(fixed, moving[:brains], DEVICE)

    tries = max(1, size.tries // 5)
    yield {"one_at_a_time_per_s": 1 / seconds_of(lambda: registered(1), tries)}
    several = seconds_of(lambda: registered(size.brains), tries)
    yield {"brains_together": size.brains, "together_per_s": size.brains / several}


def end_to_end(size: Size) -> Iterator[Numbers]:
    """What benchmarks/pretrain.py measures, one way after the other."""
    import pretrain as both  # it needs seconds, and MONAI

    quick = size is TOY
    scale = both.size(quick=quick)
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        both.write_volumes(Path(folder), both.GRID, scale.scans)
        for way in both.WAYS:
            found[way] = {}
            for numbers in both.take_turn(way, folder, quick=quick):
                found[way] |= numbers
                yield {f"{way}_{name}": value for name, value in numbers.items()}
    both.compare(found)
    for way, numbers in found.items():
        yield {f"{way}_{name}": each for name, each in numbers.items() if name.endswith("_ratio")}


def two_processes(size: Size) -> Iterator[Numbers]:
    """Scans a second of two trainings that share the GPU, over those of one."""
    alone = together(1, size)
    yield {"alone_scans_per_s": alone}
    both = together(2, size)
    yield {"two_scans_per_s": both, "ratio": both / alone}


def together(count: int, size: Size) -> float:
    """Scans a second of so many processes, each of which makes steps."""
    command = [sys.executable, __file__, "--part", "a_step", *["--toy"] * (size is TOY)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    outputs = [process.communicate()[0] for process in processes]
    return sum(json.loads(out.splitlines()[-1])["scans_per_s"] for out in outputs)


def a_step(size: Size) -> Iterator[Numbers]:
    """What each of several processes does."""
    step, _ = trainer(size, "bf16" if GPU else "fp32", compiled=False)
    yield {"scans_per_s": size.scans / seconds_of(step, 3 * size.tries)}


PARTS: dict[str, Callable[[Size], Iterator[Numbers]]] = {
    each.__name__: each
    for each in (convolutions, views, steps, resume, registration, end_to_end, two_processes)
}

NOT_AS_TOY = ("end_to_end", "two_processes")

SECONDS = {
    **{"convolutions": 40, "views": 40, "steps": 100, "resume": 60},
    **{"registration": 40, "end_to_end": 280, "two_processes": 120},
}
"""A part has at most so long, and no more than is left of --minutes."""


if __name__ == "__main__":
    main()
