"""What preprocessing a cohort will cost, from a few of its scans."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from neurofoundry.contracts.cohort import SCANS
from neurofoundry.contracts.tables import read_table
from neurofoundry.errors import DataError
from neurofoundry.preprocess import intensity, run, template
from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.scan import outputs, preprocess_scans


@dataclass(frozen=True)
class Plan:
    """The cost of a cohort, foreseen."""

    scans: int
    tried: int
    """Scans that were timed; their volumes could be made."""
    seconds: float
    """Of wall time, for one scan on one core."""
    megabytes: float
    """On disk, for one scan."""

    def hours(self, workers: int) -> float:
        """For the cohort, on ``workers`` cores that nobody else uses."""
        return self.scans * self.seconds / max(1, min(workers, self.scans)) / 3600

    def describe(self, workers: int) -> str:
        """The plan in words."""
        gigabytes = self.scans * self.megabytes / 1000
        return (
            f"{self.scans} scans: {self.hours(workers):.2g} hours on {workers} cores "
            f"({self.seconds:.3g} s a scan and core), {gigabytes:.3g} GB of disk "
            f"({self.megabytes:.3g} MB a scan). From {self.tried} scans, tried one after another."
        )


def plan(*, data: Path, cohort: Path, params: PreprocessParams, tries: int) -> Plan:
    """Preprocess ``tries`` scans, evenly over the cohort, into a folder that is removed again.

    Raises DataError when none of them gives a volume.
    """
    run.check(params)
    scans = read_table(cohort / "scans.tsv", SCANS)
    torch.set_num_threads(1)
    threadpool_limits(1)
    prepared = template.build(params.registration_spacing, template.find(params, data))
    # For the time that nyul takes, any scale will do.
    scale = [(percentile - 50) / 25 for percentile in intensity.PERCENTILES]
    chosen = scans.iloc[:: max(1, len(scans) // tries)].head(tries)
    jobs = run.to_jobs(chosen.to_dict("records"), {}, data=data, cohort=cohort)
    seconds, sizes = [], []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        for batch in run.in_batches(jobs, params):
            started = time.perf_counter()
            results = preprocess_scans(
                batch, out=out, params=params, template=prepared, standard=scale
            )
            taken = (time.perf_counter() - started) / len(batch)
            for job, result in zip(batch, results, strict=True):
                if result.volume_sha256:
                    seconds.append(taken)
                    names = [name.format(job.scan_id) for name in outputs(params.registration)]
                    sizes.append(sum((out / name).stat().st_size for name in names) / 1e6)
    if not seconds:
        raise DataError(
            f"None of the {len(chosen)} scans that were tried gives a volume; the last one: "
            f"{results[-1].reason}. Try more with --scans, or look at the cohort."
        )
    return Plan(len(scans), len(seconds), sum(seconds) / len(seconds), sum(sizes) / len(sizes))
