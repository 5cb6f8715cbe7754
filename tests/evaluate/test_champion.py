"""The model that was promoted before against the one that is to be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from neurofoundry.errors import DataError
from neurofoundry.evaluate import champion
from neurofoundry.evaluate.params import Promotion
from tests.evaluate.conftest import TASKS, run, scans_table, write_inputs

RULE = {"task": "sex", "initialization": "simclr", "metric": "auc", "over": "frozen-random"}
SKILLS = {"weak": (0.0, 0.0), "strong": (8.0, 8.0)}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Evaluations of one cohort that promote a weak and a strong model, and their inputs."""
    root = tmp_path_factory.mktemp("released")
    found = {}
    for name, skill in SKILLS.items():
        folders = write_inputs(
            root / f"in-{name}",
            scans_table(240),
            tasks={"sex": TASKS["sex"]},
            skill={"simclr": skill, "scratch": (1, 1), "frozen-random": (0, 0)},
        )
        run(folders, root / name, tasks={"sex": TASKS["sex"]}, bootstraps=200, promotion=RULE)
        (root / name / "stage.json").write_text(json.dumps({"key": name}))
        decision = json.loads((root / name / "promotion.json").read_text())
        released = json.dumps(decision | {"promoted": True})  # whatever it was better than
        (root / name / "promotion.json").write_text(released)
        found[name], found[f"in-{name}"] = root / name, folders
    return found


def decide(released: dict[str, Path], challenger: str, incumbent: Path, out: Path) -> dict:
    rule = RULE | {"champion": str(incumbent)}
    run(
        released[f"in-{challenger}"],
        out,
        tasks={"sex": TASKS["sex"]},
        **{"bootstraps": 200, "promotion": rule},
    )
    return json.loads((out / "promotion.json").read_text())


@pytest.mark.parametrize(
    ("challenger", "incumbent", "verdict", "promoted"),
    [
        ("strong", "weak", "it wins", True),
        ("weak", "strong", "the earlier one wins", False),
        ("strong", "strong", "neither wins", False),
    ],
)
def test_who_wins_is_said_with_an_interval(
    released: dict[str, Path],
    tmp_path: Path,
    challenger: str,
    incumbent: str,
    verdict: str,
    promoted: bool,
) -> None:
    decision = decide(released, challenger, released[incumbent], tmp_path / "out")
    (found,) = [each for each in decision["conditions"] if each["name"] == "champion"]
    assert found["reason"].endswith(f"on test, on the same scans: {verdict}.")
    assert decision["promoted"] == found["met"] == promoted
    assert "champion" not in decision["rule"]  # a path of this machine


def test_what_is_no_champion_is_refused(released: dict[str, Path], tmp_path: Path) -> None:
    other = released["strong"]
    scans = write_inputs(
        tmp_path / "in",
        scans_table(240, seed=5),
        tasks={"sex": TASKS["sex"]},
        skill={"simclr": (3, 3), "scratch": (1, 1), "frozen-random": (0, 0)},
    )
    rule = RULE | {"champion": str(other)}
    with pytest.raises(DataError, match="cannot be compared"):
        run(scans, tmp_path / "a", tasks={"sex": TASKS["sex"]}, bootstraps=100, promotion=rule)
    decision = json.loads((other / "promotion.json").read_text())
    (tmp_path / "none").mkdir()
    (tmp_path / "none/promotion.json").write_text(json.dumps(decision | {"promoted": False}))
    with pytest.raises(DataError, match="promotes no model"):
        champion.read(tmp_path / "none", Promotion(**RULE), TASKS["sex"])
    with pytest.raises(DataError, match="promotes a model of 'sex', not of 'age'"):
        champion.read(other, Promotion(**RULE | {"task": "age"}), TASKS["age"])
    with pytest.raises(DataError, match="no evaluation"):
        champion.fingerprint(Promotion(**RULE | {"champion": tmp_path / "none"}))
    assert champion.fingerprint(Promotion(**RULE)) == champion.fingerprint(None) == {}
    assert champion.fingerprint(Promotion(**RULE | {"champion": other})) == {"champion": "strong"}
