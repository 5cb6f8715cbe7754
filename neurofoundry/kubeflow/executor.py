"""What a stage tells Kubeflow: the executor output, written from the executor input.

Kubeflow's launcher and kfp's local runners speak the same JSON; kfp itself is not needed here.
Without an executor input a stage tells nothing.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neurofoundry.errors import UsageError


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
        found = {**artifact.get("metadata", {}), **(metadata or {}).get(name, {})}
        # The uri as it came: another one would replace where the launcher uploads to.
        kept = {key: artifact[key] for key in ("name", "uri") if key in artifact}
        artifacts[name] = {"artifacts": [{**kept, "metadata": found}]}
    values = {
        name: value
        for name, value in (parameters or {}).items()
        if name in declared.get("parameters", {})
    }
    path = Path(declared["outputFile"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"artifacts": artifacts, "parameterValues": values}))


def tell(text: str, out: Path, executor_input: str) -> None:
    """Print ``text`` and leave it in the file ``out``, the only output of a step."""
    print(text)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)
    if executor_input:
        publish(executor_input)


def describe(folder: Path) -> dict[str, dict[str, Any]]:
    """Parameters and metadata that tell of a finished output, for `publish`.

    Every output artifact of a component may be named after the stage's folder (cohort, volumes,
    encoder, models, evaluation), or be ``metrics`` (scalars) or ``roc`` (ClassificationMetrics).
    """
    record = json.loads((folder / "stage.json").read_text())
    origin = {name: record[name] for name in ("stage", "key", "data_version", "git_commit")}
    summary = {name: value for name, value in record["summary"].items()}
    scalars = {
        name: value for name, value in summary.items() if isinstance(value, (int, float, str))
    }
    words = {name: str(value).lower() for name, value in summary.items() if isinstance(value, bool)}
    names = ("cohort", "volumes", "encoder", "models", "evaluation", "model")
    metadata = {name: {**origin, "folder": str(folder)} for name in names}
    metadata["metrics"] = scalars
    if (folder / "plots/roc.tsv").exists():
        metadata["roc"] = _classification_metrics(folder, record)
    return {"parameters": {**scalars, **words, "folder": str(folder)}, "metadata": metadata}


def check(store: Path, *, gpus: int) -> list[str]:
    """What a step finds of what a run needs. Raises UsageError when something is missing."""
    import torch

    findings, missing = [], []
    trial = store / f".check-{os.getpid()}"
    try:
        trial.mkdir(parents=True)
        (trial / "file").write_text("x")
        os.link(trial / "file", trial / "link")
        trial.rename(trial.with_suffix(".renamed"))
        findings.append(f"store {store}: can be written, has hard links and renames")
    except OSError as error:
        missing.append(
            f"{store}: {error.strerror}; outputs need a POSIX file system that the user of the "
            f"image ({os.getuid()}) can write to"
        )
    finally:
        shutil.rmtree(trial, ignore_errors=True)
        shutil.rmtree(trial.with_suffix(".renamed"), ignore_errors=True)
    found = torch.cuda.device_count()
    if found < gpus:
        missing.append(f"GPUs: {found} seen, {gpus} expected; is it the GPU image on a GPU node?")
    else:
        findings.append(f"GPUs: {found} seen")
    shared = shutil.disk_usage("/dev/shm").total / 2**30
    findings.append(f"shared memory: {shared:.1f} GiB, {len(os.sched_getaffinity(0))} cores")
    key = "" if os.environ.get("WANDB_API_KEY") else "no "
    findings.append(f"W&B: {key}API key" + (", runs are recorded offline" if key else ""))
    if missing:
        raise UsageError("This step lacks:\n  " + "\n  ".join(missing))
    return findings


def summary(status: Mapping[str, Any], store: Path) -> str:
    """How a run ended and how to go on, as Markdown, from kfp's PipelineTaskFinalStatus."""
    state = str(status.get("state", "")).lower() or "ended"
    error = status.get("error") or {}
    lines = [f"# The run has {state}", "", f"- outputs: `{store}`"]
    if message := str(error.get("message", "")).strip():
        lines += [
            f"- error: {message}",
            "",
            "The step that failed says why at the end of its log. Submit the same run again once "
            "it is mended: steps that were done are taken over, and one that was stopped goes on.",
        ]
    return "\n".join(lines) + "\n"


def _classification_metrics(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """The ROC curve and the confusion matrix that Kubeflow's page draws, on split 'test'.

    They are of the model that may be promoted; without a rule, of the first that has a curve.
    """
    roc = _read(folder / "plots/roc.tsv")
    rule = record["params"]["evaluate"]["promotion"] or {}
    roc = [row for row in roc if row["split"] == "test"]
    asked = [
        row
        for row in roc
        if (row["task"], row["init"]) == (rule.get("task"), rule.get("initialization"))
    ]
    if not (roc := asked or roc):
        return {}
    task, init = roc[0]["task"], roc[0]["init"]
    curve = [row for row in roc if (row["task"], row["init"]) == (task, init)]
    counts = {
        (row["true"], row["predicted"]): int(row["scans"])
        for row in _read(folder / "tables/confusion.tsv")
        if (row["task"], row["init"], row["split"]) == (task, init, "test")
    }
    classes = list(dict.fromkeys(true for true, _ in counts))
    return {
        "model": f"{task}/{init}",
        "confidenceMetrics": [
            {
                "confidenceThreshold": float(row["threshold"]),
                "falsePositiveRate": float(row["fpr"]),
                "recall": float(row["tpr"]),
            }
            for row in curve
        ],
        "confusionMatrix": {
            "annotationSpecs": [{"displayName": name} for name in classes],
            "rows": [
                {"row": [counts.get((true, predicted), 0) for predicted in classes]}
                for true in classes
            ],
        },
    }


def _read(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))
