from __future__ import annotations

import json
from pathlib import Path

import pytest

from neurofoundry.errors import DataError
from neurofoundry.kubeflow import promote
from neurofoundry.runtime import stage
from neurofoundry.runtime.files import write_json
from tests.support.plans import model_plan


def promoted_from(
    tmp_path: Path, *, promoted: bool, initialization: str = "simclr"
) -> stage.Workspace:
    models, evaluation = tmp_path / "models", tmp_path / "evaluation"
    rows = ["task\tinit\tfraction\tseed\tstatus\treason"]
    for fraction in ("0.2", "1.0"):
        for seed in (3, 1):
            folder = models / "sex/simclr" / fraction / str(seed)
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_text(f"{fraction} {seed}")
            (folder / "plan.json").write_text(json.dumps(model_plan()))
            (folder / "trust.npz").touch()
            rows.append(f"sex\tsimclr\t{fraction}\t{seed}\tdone\tn/a")
        together = {"members": ["3", "1"], "temperature": 1.5, "limits": [0.4, None]}
        write_json(folder.parent / "ensemble.json", together | {"distance_limit": 9.0})
    (models / "runs.tsv").write_text("\n".join(rows) + "\n")
    evaluation.mkdir()
    rule = {"task": "sex", "initialization": initialization}
    decision = {"promoted": promoted, "reason": "not better by 0.01.", "rule": rule}
    decision["difference"] = None
    (evaluation / "promotion.json").write_text(json.dumps(decision))
    (evaluation / "model_card.md").write_text("# Card\n")
    work = stage.Workspace(tmp_path / "out")
    work.dir.mkdir()
    promote.promote(work, models=models, evaluation=evaluation)
    return work


def test_the_model_of_all_labels_and_the_first_seed_is_handed_on(tmp_path: Path) -> None:
    work = promoted_from(tmp_path, promoted=True)
    assert (work.dir / "model.safetensors").read_text() == "1.0 3"
    names = {path.name for path in work.dir.iterdir()}
    assert names == {
        "model.safetensors",
        "plan.json",
        "trust.npz",
        "model_card.md",
        "promotion.json",
    }


def test_an_ensemble_is_handed_on_with_all_its_members(tmp_path: Path) -> None:
    work = promoted_from(tmp_path, promoted=True, initialization="simclr-ensemble")
    names = {path.relative_to(work.dir).as_posix() for path in work.dir.rglob("*.*")}
    members = {
        f"{seed}/{name}"
        for seed in (1, 3)
        for name in ("model.safetensors", "plan.json", "trust.npz")
    }
    assert names == members | {"ensemble.json", "model_card.md", "promotion.json"}
    assert (work.dir / "1/model.safetensors").read_text() == "1.0 1"


def test_a_model_that_was_not_promoted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no model is promoted\. not better by 0\.01"):
        promoted_from(tmp_path, promoted=False)


def test_an_evaluation_of_other_models_is_refused(tmp_path: Path) -> None:
    work = promoted_from(tmp_path, promoted=True)
    runs = tmp_path / "models/runs.tsv"
    runs.write_text(runs.read_text().replace("simclr", "scratch"))
    with pytest.raises(DataError, match=r"no finished run of sex from simclr.*promotes"):
        promote.promote(work, models=tmp_path / "models", evaluation=tmp_path / "evaluation")


@pytest.mark.parametrize("name", ["plan.json", "model.safetensors", "trust.npz"])
def test_a_model_that_lacks_a_file_is_refused(tmp_path: Path, name: str) -> None:
    work = promoted_from(tmp_path, promoted=True)
    (tmp_path / "models/sex/simclr/1.0/3" / name).unlink()
    with pytest.raises(DataError, match=name):
        promote.promote(work, models=tmp_path / "models", evaluation=tmp_path / "evaluation")


def test_a_torn_decision_is_named(tmp_path: Path) -> None:
    work = promoted_from(tmp_path, promoted=True)
    (tmp_path / "evaluation/promotion.json").write_text('{"promoted": true}')
    with pytest.raises(DataError, match="not a decision on promotion"):
        promote.promote(work, models=tmp_path / "models", evaluation=tmp_path / "evaluation")
