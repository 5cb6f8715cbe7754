"""What a stage tells Kubeflow: the executor output, written from the executor input.

Kubeflow's launcher and kfp's local runners speak the same JSON; kfp itself is not needed here.
Without an executor input a stage tells nothing.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from neurofoundry.errors import UsageError
from neurofoundry.runtime import machine
from neurofoundry.runtime.cells import guard_cell
from neurofoundry.runtime.files import read_json, write_text
from neurofoundry.runtime.guard import guard_file
from neurofoundry.runtime.store import read_circumstances

Rows = Sequence[Mapping[str, str]]


def check_input(executor_input: str) -> None:
    """Raise UsageError for what `publish` could not use: it is best told before a stage runs."""
    try:
        declared = json.loads(executor_input)["outputs"]
        Path(declared["outputFile"])
        for listed in declared.get("artifacts", {}).values():
            dict(listed["artifacts"][0])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"--executor-input: not what Kubeflow tells a step ({type(error).__name__}): expected "
            "JSON with outputs.outputFile. Leave the option out elsewhere."
        ) from error


def publish(
    executor_input: str,
    *,
    parameters: Mapping[str, Any] | None = None,
    metadata: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write the executor output: metadata of output artifacts, and output parameters, by name.

    Names that the component does not declare are left out. The launcher takes the executor
    output for the sign of success, so it is written last.
    """
    declared = json.loads(executor_input)["outputs"]
    artifacts = {}
    for name, listed in declared.get("artifacts", {}).items():
        artifact = listed["artifacts"][0]
        told = {**artifact.get("metadata", {}), **(metadata or {}).get(name, {})}
        # The uri as it came: another one would replace where the launcher uploads to.
        kept = {key: artifact[key] for key in ("name", "uri") if key in artifact}
        artifacts[name] = {"artifacts": [{**kept, "metadata": told}]}
    values = {
        name: value
        for name, value in (parameters or {}).items()
        if name in declared.get("parameters", {})
    }
    path = Path(declared["outputFile"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"artifacts": artifacts, "parameterValues": values}))


def tell(text: str, out: Path, executor_input: str) -> None:
    """Print ``text`` and leave it in the file ``out``, the only output of a step."""
    guard_file(out, makes=text.encode())
    print(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, text)
    if executor_input:
        publish(executor_input)


def describe(folder: Path) -> dict[str, dict[str, Any]]:
    """Return parameters and metadata that tell of a finished output, for `publish`.

    Every output artifact of a component may be named after the stage's folder (cohort, volumes,
    encoder, models, evaluation), or be ``metrics`` (scalars) or ``roc`` (ClassificationMetrics).
    """
    record = read_json(folder / "stage.json")
    origin = {name: record[name] for name in ("stage", "key", "data_version")}
    origin["git_commit"] = read_circumstances(folder).get("git_commit", "")
    summary = record["summary"]
    scalars = {
        name: value for name, value in summary.items() if isinstance(value, (int, float, str))
    }
    names = ("cohort", "volumes", "encoder", "models", "evaluation", "model")
    metadata = {name: {**origin, "folder": str(folder)} for name in names}
    # Kubeflow's page lets people copy these into spreadsheets, as it does the names of classes.
    metadata["metrics"] = {
        name: guard_cell(value) if isinstance(value, str) else value
        for name, value in scalars.items()
    }
    if (folder / "plots/roc.tsv").exists():
        metadata["roc"] = _classification_metrics(folder, record)
    return {"parameters": {**scalars, "folder": str(folder)}, "metadata": metadata}


def check(store: Path, *, gpus: int) -> list[str]:
    """Return what a step finds of what a run needs. Raises UsageError naming what is missing."""
    import torch

    findings, missing = [], []
    if problem := _store_problem(store):
        missing.append(problem)
    else:
        findings.append(f"store {store}: can be written, has hard links and renames")
    seen = torch.cuda.device_count()
    if seen < gpus:
        missing.append(f"GPUs: {seen} seen, {gpus} expected; is it the GPU image on a GPU node?")
    else:
        findings.append(f"GPUs: {seen} seen")
    shared = shutil.disk_usage("/dev/shm").total / 2**30
    findings.append(
        f"shared memory: {shared:.1f} GiB, {machine.cores()} cores, "
        f"{machine.memory() / 2**30:.0f} GiB of memory"
    )
    key = "API key" if os.environ.get("WANDB_API_KEY") else "no API key, runs are recorded offline"
    findings.append(f"W&B: {key}")
    if missing:
        raise UsageError("This step lacks:\n  " + "\n  ".join(missing))
    return findings


def _store_problem(store: Path) -> str:
    """Try what outputs need of the store's file system; return what is wrong, or nothing."""
    trial = store / f".check-{os.getpid()}"
    renamed = trial.with_suffix(".renamed")
    try:
        trial.mkdir(parents=True)
        (trial / "file").write_text("x")
        os.link(trial / "file", trial / "link")
        trial.rename(renamed)
    except OSError as error:
        return (
            f"{store}: {error.strerror}; outputs need a POSIX file system that the user of the "
            f"image ({os.getuid()}) can write to"
        )
    finally:
        shutil.rmtree(trial, ignore_errors=True)
        shutil.rmtree(renamed, ignore_errors=True)
    return ""


def _classification_metrics(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ROC curve and the confusion matrix that Kubeflow's page draws, on split 'test'.

    They are of the model that may be promoted; without a rule, of the first that has a curve.
    """
    curves = [row for row in _read(folder / "plots/roc.tsv") if row["split"] == "test"]
    rule = record["params"]["evaluate"]["promotion"] or {}
    models = [(row["task"], row["init"]) for row in curves]
    if not models:
        return {}
    asked = (rule.get("task"), rule.get("initialization"))
    model = next((each for each in models if each == asked), models[0])
    confusion = [row for row in _read(folder / "tables/confusion.tsv") if row["split"] == "test"]
    return {
        "model": "/".join(model),
        "confidenceMetrics": _curve(_of(model, curves)),
        "confusionMatrix": _matrix(_of(model, confusion)),
    }


def _of(model: tuple[str, str], rows: Rows) -> Rows:
    return [row for row in rows if (row["task"], row["init"]) == model]


def _curve(rows: Rows) -> list[dict[str, float]]:
    return [
        {
            "confidenceThreshold": float(row["threshold"]),
            "falsePositiveRate": float(row["fpr"]),
            "recall": float(row["tpr"]),
        }
        for row in rows
    ]


def _matrix(rows: Rows) -> dict[str, Any]:
    counts = {(row["true"], row["predicted"]): int(row["scans"]) for row in rows}
    classes = list(dict.fromkeys(true for true, _ in counts))
    return {
        "annotationSpecs": [{"displayName": name} for name in classes],
        "rows": [
            {"row": [counts.get((true, predicted), 0) for predicted in classes]} for true in classes
        ],
    }


def _read(table: Path) -> Rows:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))
