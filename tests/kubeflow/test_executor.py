from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from neurofoundry.contracts.tables import write_table
from neurofoundry.kubeflow import executor


def executor_input(folder: Path) -> str:
    """As kfp writes it for a step with a model, metrics and a parameter."""
    artifacts = {
        name: {"artifacts": [{"name": f"{name}-1", "uri": f"s3://bucket/{name}", "metadata": {}}]}
        for name in ("encoder", "metrics")
    }
    outputs = {
        "artifacts": artifacts,
        "parameters": {"folder": {"outputFile": str(folder / "parameters/folder")}},
        "outputFile": str(folder / "deep/executor_output.json"),
    }
    return json.dumps({"inputs": {}, "outputs": outputs})


def test_what_is_declared_is_told_and_the_uri_stays(tmp_path: Path) -> None:
    executor.publish(
        executor_input(tmp_path),
        parameters={"folder": "/store/a", "other": 1},
        metadata={"metrics": {"auc": 0.75}, "absent": {"x": 1}},
    )
    told = json.loads((tmp_path / "deep/executor_output.json").read_text())
    assert told["parameterValues"] == {"folder": "/store/a"}
    assert told["artifacts"] == {
        "encoder": {
            "artifacts": [{"name": "encoder-1", "uri": "s3://bucket/encoder", "metadata": {}}]
        },
        "metrics": {
            "artifacts": [
                {"name": "metrics-1", "uri": "s3://bucket/metrics", "metadata": {"auc": 0.75}}
            ]
        },
    }


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    folder = tmp_path / "evaluation"
    (folder / "plots").mkdir(parents=True)
    (folder / "tables").mkdir()
    rule = {"task": "sex", "initialization": "simclr"}
    record = {
        "stage": "evaluate",
        "key": "k",
        "data_version": "v",
        "params": {"evaluate": {"promotion": rule}},
        "summary": {"sex/simclr/test/auc": 0.5, "promoted": False, "faults": {"a": 1}},
    }
    (folder / "stage.json").write_text(json.dumps(record))
    (tmp_path / ".evaluation.run.json").write_text(json.dumps({"git_commit": "c"}))
    points = [("sex", "scratch", "test", 1, 0, 0), ("sex", "simclr", "ood", 1, 0, 0)]
    points += [("sex", "simclr", "test", t, f, h) for t, f, h in [(1, 0, 0), (0.5, 0.25, 0.75)]]
    lines = ["task\tinit\tsplit\tthreshold\tfpr\ttpr", *("\t".join(map(str, p)) for p in points)]
    (folder / "plots/roc.tsv").write_text("\n".join(lines) + "\n")
    counts = [("F", "F", 5), ("F", "M", 1), ("M", "F", 2), ("M", "M", 7)]
    lines = ["task\tinit\tsplit\ttrue\tpredicted\tscans"]
    lines += [
        f"sex\tsimclr\t{split}\t{t}\t{p}\t{n}" for split in ("test", "ood") for t, p, n in counts
    ]
    (folder / "tables/confusion.tsv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_step_counts_the_cores_that_its_pod_asks_for(tmp_path: Path) -> None:
    """And torch computes with no more threads."""
    code = (
        "import sys; from neurofoundry.cli import main\n"
        f"sys.argv = 'neurofoundry check --store {tmp_path} --out {tmp_path}/out'.split()\n"
        "try: main.main()\n"
        "except SystemExit: import torch; print('threads', torch.get_num_threads())"
    )
    pod = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**pod, "NEUROFOUNDRY_CORES": "1"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ", 1 cores, " in done.stdout
    assert done.stdout.endswith("threads 1\n")


def test_an_evaluation_is_described_as_kubeflow_draws_it(evaluation: Path) -> None:
    told = executor.describe(evaluation)
    assert told["parameters"]["folder"] == str(evaluation)
    assert told["metadata"]["metrics"] == {"sex/simclr/test/auc": 0.5, "promoted": False}
    assert told["metadata"]["evaluation"]["key"] == "k"
    assert told["metadata"]["evaluation"]["git_commit"] == "c"
    assert told["metadata"]["roc"] == {
        "model": "sex/simclr",
        "confidenceMetrics": [
            {"confidenceThreshold": 1.0, "falsePositiveRate": 0.0, "recall": 0.0},
            {"confidenceThreshold": 0.5, "falsePositiveRate": 0.25, "recall": 0.75},
        ],
        "confusionMatrix": {
            "annotationSpecs": [{"displayName": "F"}, {"displayName": "M"}],
            "rows": [{"row": [5, 1]}, {"row": [2, 7]}],
        },
    }


def test_without_a_rule_the_first_curve_is_drawn(evaluation: Path) -> None:
    record = json.loads((evaluation / "stage.json").read_text())
    record["params"]["evaluate"]["promotion"] = None
    (evaluation / "stage.json").write_text(json.dumps(record))
    assert executor.describe(evaluation)["metadata"]["roc"]["model"] == "sex/scratch"


def test_what_kubeflow_shows_is_no_formula(evaluation: Path) -> None:
    record = json.loads((evaluation / "stage.json").read_text())
    record["summary"]["best"] = "=1+1"
    (evaluation / "stage.json").write_text(json.dumps(record))
    table = evaluation / "tables/confusion.tsv"
    counts = pd.read_csv(table, sep="\t").replace("F", "@SUM(A1)")
    write_table(counts, table)
    told = executor.describe(evaluation)["metadata"]
    assert told["metrics"]["best"] == "'=1+1"
    assert told["roc"]["confusionMatrix"] == {
        "annotationSpecs": [{"displayName": "'@SUM(A1)"}, {"displayName": "M"}],
        "rows": [{"row": [5, 1]}, {"row": [2, 7]}],
    }
