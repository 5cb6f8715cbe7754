"""Runs the stage in a process of its own, so that a test can kill it: COHORT OUT PARAMS."""

from __future__ import annotations

import sys
from pathlib import Path

from neurofoundry.preprocess.params import PreprocessParams
from neurofoundry.preprocess.run import preprocess
from neurofoundry.runtime import stage

if __name__ == "__main__":
    cohort, out = Path(sys.argv[1]), Path(sys.argv[2])
    params = PreprocessParams.model_validate_json(sys.argv[3])
    stage.run(
        "preprocess",
        lambda work: preprocess(work, data=Path("/"), cohort=cohort, params=params, workers=2),
        to=stage.Destination(out),
        params={"preprocess": params},
        inputs={"ingest": cohort},
    )
