"""The whole way as a researcher with a laptop takes it: `dvc repro` and what surrounds it."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import shutil
import time
from pathlib import Path

import nibabel as nib
import pandas as pd
import pytest
import yaml

from neurofoundry.phantom.anatomy import sample_subject
from neurofoundry.phantom.atlas import build_atlas
from neurofoundry.phantom.bids import write_scan
from neurofoundry.phantom.params import PhantomParams
from tests.e2e.conftest import Run
from tests.support import wandb_file

pytestmark = pytest.mark.e2e

STAGES = ("ingest", "preprocess", "pretrain", "finetune", "evaluate")
FOLDERS = ("cohort", "volumes", "encoder/simclr", "models", "evaluation")


def stages_run(output: str) -> list[str]:
    """The stages that `dvc repro` said it ran."""
    return re.findall(r"Running stage '(\w+)'", output)


def test_the_outputs_are_those_listed(project: Path) -> None:
    """One scan and one fine-tuning run stand for all of their kind."""
    found = set()
    for folder in FOLDERS:
        for path in (project / folder).rglob("*"):
            if path.is_file():
                name = path.relative_to(project).as_posix()
                name = re.sub(r"sub-\w+/ses-\d+/anat/sub-[^_]+_ses-[^_]+", "SCAN", name)
                name = re.sub(r"^encoder/\w+/", "encoder/METHOD/", name)
                name = re.sub(r"models/\w+/([\w-]+)/1\.0/0/", r"models/TASK/\1/1.0/0/", name)
                found.add(re.sub(r"checkpoint/.*", "checkpoint/", name))
    listed = (Path(__file__).parent / "outputs.txt").read_text().split()
    assert sorted(found) == listed


def test_every_stage_explains_itself_without_a_path_of_this_machine(project: Path) -> None:
    versions = set()
    for folder, stage in zip(FOLDERS, STAGES, strict=True):
        text = (project / folder / "stage.json").read_text()
        record = json.loads(text)
        assert record["stage"] == stage
        assert str(project) not in text
        assert str(Path.home()) + "/" not in text
        versions.add(record["data_version"])
    assert len(versions) == 1


def test_the_report_and_the_metrics_hold_no_subject(project: Path) -> None:
    subjects = pd.read_csv(project / "cohort/scans.tsv", sep="\t")["subject"]
    for name in ("report.html", "metrics.json", "model_card.md", "tables/metrics.tsv"):
        text = (project / "evaluation" / name).read_text()
        assert not [subject for subject in subjects if subject in text]


def test_every_number_is_an_interval_or_says_why_not(project: Path) -> None:
    metrics = json.loads((project / "evaluation/metrics.json").read_text())
    assert set(metrics) == {"alzheimers", "stroke", "sex", "age"}
    estimated = 0
    for task in metrics.values():
        for fractions in task.values():
            for splits in fractions.values():
                for measures in splits.values():
                    for name, found in measures.items():
                        if name in ("subjects", "scans"):
                            assert found >= 0
                        elif isinstance(found, dict) and found["low"] is None:
                            assert found["reason"]
                        elif isinstance(found, dict):
                            assert found["low"] <= found["value"] <= found["high"]
                            estimated += 1
    assert estimated > 50


def test_nothing_runs_twice(project: Path, command: Run) -> None:
    done = command("dvc", "repro", cwd=project)
    assert stages_run(done.stdout) == []
    assert "up to date" in done.stdout


def test_a_parameter_of_finetune_runs_nothing_upstream(
    project: Path, command: Run, tmp_path: Path
) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(project, clone, symlinks=True)
    params = clone / "params.yaml"
    values = yaml.safe_load(params.read_text())
    values["finetune"]["epochs"] = 1
    params.write_text(yaml.safe_dump(values, sort_keys=False))
    assert stages_run(command("dvc", "repro", cwd=clone).stdout) == ["finetune", "evaluate"]


def test_only_an_added_scan_is_preprocessed(project: Path, command: Run, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(project, clone, symlinks=True)
    dataset = clone / "data/phantom"
    source = sorted(dataset.glob("sub-*/ses-1/anat/*_T1w.nii.gz"))[0]
    subject = source.name.split("_")[0]
    target = Path(str(source).replace(subject, "sub-9001"))
    target.parent.mkdir(parents=True)
    image = nib.load(source)
    nib.save(nib.Nifti1Image(image.get_fdata() + 1, image.affine), target)
    table = (dataset / "participants.tsv").read_text().splitlines()
    (row,) = [line for line in table if line.startswith(f"{subject}\t")]
    table.append(row.replace(subject, "sub-9001"))
    (dataset / "participants.tsv").write_text("\n".join(table) + "\n")
    before = json.loads((clone / "volumes/stage.json").read_text())["summary"]["scans"]
    command("dvc", "repro", "preprocess", cwd=clone)
    after = json.loads((clone / "volumes/stage.json").read_text())["summary"]["scans"]
    assert after == before + 1
    assert after - json.loads((clone / ".volumes.run.json").read_text())["reused"] == 1
    assert (
        len(list((clone / "volumes").rglob("*.nii")))
        == len(list((project / "volumes").rglob("*.nii"))) + 1
    )


@pytest.fixture(scope="module")
def further(project: Path, command: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone in which ten sessions have a FLAIR, too, persons are tested in three folds, and
    ventricles are outlined."""
    clone = tmp_path_factory.mktemp("further") / "clone"
    shutil.copytree(project, clone, symlinks=True)
    add_flair(clone / "data", sessions=10, work=clone.parent)
    params = clone / "params.yaml"
    values = yaml.safe_load(params.read_text())
    apart = values["ingest"]["splits"]["ood"]
    values["ingest"]["splits"] = {"mode": "folds", "folds": 3, "pretrain": 0.2, "ood": apart}
    values["ingest"].update(contrasts=["T1w", "FLAIR"], optional_contrasts=["FLAIR"])
    values["tasks"] = {
        "sex": values["tasks"]["sex"],
        "ventricles": {
            **{"kind": "segmentation", "classes": ["ventricle"], "min_subjects": 1},
            "label": {"suffix": "mask", "label": "ventricle"},
        },
    }
    starts = values["finetune"]["initializations"]
    values["finetune"].update(epochs=1, explain=None)
    values["finetune"]["initializations"] = {name: starts[name] for name in ("simclr", "scratch")}
    values["pretrain"].update(epochs=1, probe=None)
    values["evaluate"].update(promotion=None, combat=None)
    params.write_text(yaml.safe_dump(values, sort_keys=False))
    assert stages_run(command("dvc", "repro", cwd=clone).stdout)[-2:] == ["finetune", "evaluate"]
    return clone


def add_flair(data: Path, *, sessions: int, work: Path) -> None:
    """Scan the first of the phantoms again, in FLAIR."""
    build_atlas(2).save(work / "atlas")
    subjects = (sample_subject(PhantomParams(subjects=60), index) for index in range(60))
    pairs = ((subject, session) for subject in subjects for session, _ in subject.sessions)
    for subject, session in itertools.islice(pairs, sessions):
        write_scan(work / "tree", subject, session, work / "atlas", None, ("T1w", "FLAIR"))
    shutil.rmtree(work / "atlas")
    for flair in (work / "tree").rglob("*_FLAIR.*"):
        shutil.copy(flair, data / flair.relative_to(work / "tree"))


def test_sessions_with_and_without_flair_go_all_the_way(
    further: Path, project: Path, command: Run, tmp_path: Path
) -> None:
    before, scans = (
        pd.read_csv(folder / "volumes/scans.tsv", sep="\t").set_index("scan_id")
        for folder in (project, further)
    )
    seen = scans.index[scans["volume_FLAIR"].notna() & scans["usable"]]
    assert len(seen) >= 8
    assert scans["path_FLAIR"].notna().sum() == 10
    # FLAIR moves no T1w volume, and sessions without one are not made again.
    assert scans["volume_sha256"].equals(before["volume_sha256"])
    assert json.loads((further / ".volumes.run.json").read_text())["reused"] == len(scans) - 10
    for folder in ("encoder/simclr", "models/sex/simclr/1.0/0/fold-1"):
        assert '"FLAIR"' in (further / folder / "plan.json").read_text()

    told = tmp_path / "features.tsv"
    words = ("neurofoundry", "embed", further / "volumes", "--weights", further / "encoder/simclr")
    command(*words, "--out", told, cwd=further)
    features = pd.read_csv(told, sep="\t").set_index("scan_id")
    assert set(features.index[features["contrasts"] == "T1w+FLAIR"]) == set(seen)

    raw = tmp_path / "raw"
    for name, scan, contrasts in (
        ("both", seen[0], ("path", "path_FLAIR")),
        ("alone", seen[1], ("path",)),
    ):
        (raw / f"sub-{name}/anat").mkdir(parents=True)
        for path in (further / "data" / scans.loc[scan, column] for column in contrasts):
            contrast = path.name.rpartition("_")[2]
            shutil.copy(path, raw / f"sub-{name}/anat/sub-{name}_{contrast}")
    told = tmp_path / "predictions.tsv"
    model = further / "models/sex/simclr/1.0/0/fold-1"
    command("neurofoundry", "predict", raw, "--model", model, "--out", told, cwd=further)
    predicted = pd.read_csv(told, sep="\t").set_index("sha256")
    for scan, there in ((seen[0], "T1w+FLAIR"), (seen[1], "T1w")):
        row = predicted.loc[scans.loc[scan, "sha256"]]
        assert row["contrasts"] == there
        assert row["p_F"] + row["p_M"] == pytest.approx(1, abs=1e-4)


def test_of_folds_one_that_is_lost_is_made_alone(further: Path, command: Run) -> None:
    tested = pd.read_csv(further / "volumes/scans.tsv", sep="\t").query(
        "usable and split == 'test'"
    )
    measured = pd.read_csv(further / "evaluation/tables/metrics.tsv", sep="\t")
    of_folds = measured.query("init == 'scratch' and split == 'test' and metric == 'auc'")
    assert of_folds["subjects"].tolist() == [tested["person"].nunique()]
    outlined = pd.read_csv(further / "evaluation/tables/outlines.tsv", sep="\t")
    dice = outlined.query("init == 'scratch' and split == 'test' and metric == 'dice'")
    assert dice["persons"].tolist() == [tested["person"].nunique()]

    models = further / "models"
    made = {path.parent: path.stat().st_ino for path in models.rglob("run.json")}
    assert len(made) == 2 * 2 * 3
    lost = models / "sex/scratch/1.0/0/fold-2"
    weights = (lost / "model.safetensors").read_bytes()
    shutil.rmtree(lost)
    command("dvc", "repro", "--force", "--single-item", "finetune", cwd=further)
    again = {path.parent: path.stat().st_ino for path in models.rglob("run.json")}
    assert {folder for folder in made if made[folder] != again[folder]} == {lost}
    assert (lost / "model.safetensors").read_bytes() == weights


def test_dvc_shows_metrics_and_plots(project: Path, command: Run, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    shutil.copytree(project, clone, symlinks=True)
    shown = json.loads(command("dvc", "metrics", "show", "--json", cwd=clone).stdout)
    assert '"age": ' in json.dumps(shown)
    command("dvc", "plots", "show", cwd=clone)
    page = (clone / "dvc_plots/index.html").read_text()
    assert page.count("vega") > 2
    assert not re.search(r"<script[^>]+src=", page)  # it opens without a network
    assert "encoder" in yaml.safe_load((clone / "dvc.yaml").read_text())["artifacts"]


def test_a_sweep_is_queued_run_and_compared(project: Path, command: Run, tmp_path: Path) -> None:
    """As docs/experiments.md says; of a parameter of evaluate, which costs seconds."""
    clone = tmp_path / "clone"
    shutil.copytree(project, clone, symlinks=True)
    told = command("dvc", "exp", "run", "--queue", "-S", "evaluate.bootstraps=100,150", cwd=clone)
    names = re.findall(r"Queued experiment '([\w-]+)'", told.stdout)
    assert len(names) == 2
    kept = {"WANDB_DIR": str(clone)}
    command("dvc", "queue", "start", "--jobs", "1", cwd=clone, **kept)
    until = time.monotonic() + 600
    while "Running" in (status := command("dvc", "queue", "status", cwd=clone).stdout) or (
        "Queued" in status
    ):
        assert time.monotonic() < until, status
        time.sleep(2)
    assert status.count("Success") == 2, status
    table = command("dvc", "exp", "show", "--csv", cwd=clone).stdout
    rows = {row["Experiment"]: row for row in csv.DictReader(io.StringIO(table))}
    assert [rows[name]["evaluate.bootstraps"] for name in names] == ["100", "150"]
    assert float(rows[names[0]]["age"]) == pytest.approx(float(rows[names[1]]["age"]), rel=1e-3)
    command("dvc", "plots", "diff", *names, cwd=clone)
    page = (clone / "dvc_plots/index.html").read_text()
    assert all(name in page for name in names)
    records = [list(wandb_file.read(path)) for path in clone.glob("wandb/offline-run-*/*.wandb")]
    groups = {wandb_file.of_kind(each, "run")[0].run_group for each in records}
    assert set(names) <= groups
    for name in names:
        command("dvc", "get", ".", "evaluation", "--rev", name, "--out", name, cwd=clone)
    done = command("neurofoundry", "compare", *names, cwd=clone)
    assert "evaluate.bootstraps" in done.stdout


def test_push_and_pull_bring_back_data_and_results(
    project: Path, command: Run, tmp_path: Path
) -> None:
    origin, clone = tmp_path / "origin", tmp_path / "clone"
    shutil.copytree(project, origin, symlinks=True)
    command("dvc", "remote", "add", "--default", "store", str(tmp_path / "store"), cwd=origin)
    command("dvc", "push", cwd=origin)
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@example.org")
    command(*git, "commit", "-qam", "what was pushed", cwd=origin)
    command("git", "clone", "-q", str(origin), str(clone), cwd=tmp_path)
    assert not (clone / "data").exists()
    shutil.copy2(origin / ".dvc/config", clone / ".dvc/config")
    command("dvc", "pull", cwd=clone)
    for folder in ("data", *FOLDERS):
        for path in (origin / folder).rglob("*"):
            if path.is_file():
                assert (clone / path.relative_to(origin)).read_bytes() == path.read_bytes()
    assert stages_run(command("dvc", "repro", cwd=clone).stdout) == []
