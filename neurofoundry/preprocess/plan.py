"""What preprocessing a cohort will cost, from a few of its scans."""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from neurofoundry.contracts.cohort import SCANS, read_contrasts
from neurofoundry.contracts.tables import read_table
from neurofoundry.errors import DataError
from neurofoundry.preprocess import intensity, template, workers
from neurofoundry.preprocess.layout import Layout, beginnings
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.scan import to_jobs
from neurofoundry.preprocess.workers import Worker
from neurofoundry.runtime.progress import Progress


@dataclass(frozen=True)
class Cost:
    """What a cohort is expected to take."""

    scans: int
    tried: int
    """Scans that were timed; their volumes could be made."""
    seconds: float
    """Wall time of one scan on one core."""
    megabytes: float
    """One scan on disk."""

    def hours(self, workers: int) -> float:
        """Return the wall time of the cohort on ``workers`` cores that nobody else uses."""
        return self.scans * self.seconds / max(1, min(workers, self.scans)) / 3600

    @property
    def gigabytes(self) -> float:
        """The cohort on disk."""
        return self.scans * self.megabytes / 1000

    def numbers(self, workers: int) -> dict[str, float]:
        """Return the numbers of `describe`, for programs."""
        return {
            **asdict(self),
            "workers": workers,
            "hours": self.hours(workers),
            "gigabytes": self.gigabytes,
        }

    def describe(self, workers: int) -> str:
        """Return the cost in words."""
        return (
            f"{self.scans} scans: {self.hours(workers):.2g} hours on {workers} cores "
            f"({self.seconds:.3g} s a scan and core), {self.gigabytes:.3g} GB of disk "
            f"({self.megabytes:.3g} MB a scan). From {self.tried} scans, tried one after another."
        )


def plan(*, data: Path, cohort: Path, params: PreprocessParams, tries: int) -> Cost:
    """Preprocess ``tries`` scans, evenly over the cohort, into a folder that is removed again.

    Raises DataError when none of them gives a volume.
    """
    workers.check(params)
    scans = read_table(cohort / "scans.tsv", SCANS)
    torch.set_num_threads(1)
    threadpool_limits(1)
    chosen = scans.iloc[:: max(1, len(scans) // tries)].head(tries)
    jobs = to_jobs(
        chosen,
        data=data,
        cohort=cohort,
        begins=beginnings(scans),
        contrasts=list(read_contrasts(cohort)),
    )
    prepared = template.build(params.registration_spacing, template.find(params, data))
    # For the time that nyul takes, any scale will do.
    worker = Worker(params, prepared, [(each - 50) / 25 for each in intensity.PERCENTILES])
    seconds, sizes = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress("plan preprocess", len(jobs), unit="scans") as progress,
    ):
        for batch in workers.in_batches(jobs, params):
            results, taken = worker.preprocess(batch, Path(folder))
            for job, result in zip(batch, results, strict=True):
                progress.advance(failed=not result.volume_sha256)
                if result.volume_sha256:
                    seconds.append(taken)
                    layout = Layout.of(params)
                    others = (layout.of_contrast(c)[0] for c in result.further)
                    names = [name.format(job.stem) for name in (*layout.files, *others)]
                    sizes.append(sum((Path(folder) / n).stat().st_size for n in names) / 1e6)
    if not seconds:
        raise DataError(
            f"None of the {len(chosen)} scans that were tried gives a volume; the last one: "
            f"{results[-1].reason}. Try more with --scans, or check the cohort."
        )
    return Cost(len(scans), len(seconds), sum(seconds) / len(seconds), sum(sizes) / len(sizes))
