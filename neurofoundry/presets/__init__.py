"""Parameters to start from, and a project around them: `neurofoundry init`.

laptop    the sample cohort, minutes on two cores
first-look    any folder of scans, 3 mm, minutes: what can be done with it, and what cannot
workstation    one GPU, 2 mm, hundreds to thousands of scans
paper    "Building a General SimCLR Self-Supervised Foundation Model …", 1 mm, several large GPUs
"""

from __future__ import annotations

import shutil
from pathlib import Path

import neurofoundry
from neurofoundry.errors import UsageError
from neurofoundry.runtime.files import write_text
from neurofoundry.runtime.guard import guard_place

NAMES = ("laptop", "first-look", "workstation", "paper")

HERE = Path(__file__).parent
"""`stages.yaml` becomes dvc.yaml: under that name DVC would take it for stages of ours."""

IGNORED = """\
/data/
/cohort/
/volumes/
/encoder/
/models/
/evaluation/
/runs/
/wandb/
.*.partial/
.*.replaced/
.*.run.json
"""

DVC_IGNORED = """\
# When, where and how fast an output was made is no part of it.
.*.run.json
"""

NEXT = """\
{folder} is a project with the parameters '{preset}'. Next, in that folder:
  1. Put scans into data/: BIDS, DICOM or a table. A sample: neurofoundry phantom --out data
  2. In params.yaml, say what your columns are called and what to predict.
  3. git init && dvc init && dvc add data && dvc repro      (pip install "neurofoundry[dvc]")
     or, without DVC: neurofoundry run --data data --out runs/first
     For plots without a network: dvc config plots.html_template ../plots/page.html
  4. Read evaluation/report.html."""


def read(name: str) -> str:
    """Return a preset as text. Raises UsageError."""
    if name not in NAMES:
        raise UsageError(f"--preset {name}: expected one of {', '.join(NAMES)}.")
    return (HERE / f"{name}.yaml").read_text(encoding="utf-8")


def write_project(folder: Path, preset: str) -> str:
    """Write params.yaml, dvc.yaml and what belongs to them; return what to do next.

    Raises UsageError where one of the files exists: nothing is replaced.
    """
    files = {
        "params.yaml": read(preset),
        "dvc.yaml": (HERE / "stages.yaml").read_text(encoding="utf-8"),
        "sweep.yaml": (HERE / "sweep.yaml").read_text(encoding="utf-8"),
        ".gitignore": IGNORED,
        ".dvcignore": DVC_IGNORED,
        "requirements.txt": f"neurofoundry[dvc]=={neurofoundry.__version__}\n",
    }
    if folder.resolve() != Path.cwd():
        guard_place(folder, option="FOLDER")
    if there := [name for name in (*files, "plots") if (folder / name).exists()]:
        raise UsageError(
            f"{folder}: there is already {', '.join(there)}. Give a new folder, or move them away."
        )
    (folder / "data").mkdir(parents=True, exist_ok=True)
    shutil.copytree(HERE / "plots", folder / "plots")
    for name, text in files.items():
        write_text(folder / name, text)
    return NEXT.format(folder=folder, preset=preset)
