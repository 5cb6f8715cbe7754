from __future__ import annotations

from typing import Any

import pytest
import yaml

from neurofoundry.weights.hub import front_matter


def read(text: str) -> dict[str, Any]:
    _, matter, rest = (text + "\n").split("---\n")
    assert rest == ""
    values: dict[str, Any] = yaml.safe_load(matter)
    return values


def test_what_is_synthetic_is_tagged_so_and_what_is_not_is_not() -> None:
    assert "synthetic" in read(front_matter(licence="MIT", synthetic=True))["tags"]
    assert "synthetic" not in read(front_matter(licence="MIT", synthetic=False))["tags"]


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("Data use: ask #us", {"license": "other", "license_name": "data-use-ask-us"}),
        ("", {"license": "other", "license_name": "unknown"}),
    ],
)
def test_a_licence_is_one_of_the_hub_or_has_a_name(licence: str, expected: dict[str, str]) -> None:
    front = read(front_matter(licence=licence, synthetic=False))
    assert {key: value for key, value in front.items() if key.startswith("license")} == expected


def test_the_hub_s_own_library_reads_licence_tags_and_results() -> None:
    hub = pytest.importorskip("huggingface_hub")
    scored = {
        "task": {"type": "image-classification", "name": "sex: F or M"},
        "dataset": {"type": "synthetic", "name": "test scans of this cohort"},
        "metrics": [{"type": "auc", "value": 0.81}],
    }
    index = [{"name": "simclr", "results": [scored]}]
    card = hub.ModelCard(
        front_matter(licence="none", synthetic=True, **{"model-index": index}) + "\n# A card\n"
    )
    assert (card.data.license, card.data.license_name) == ("other", "none")
    assert card.data.library_name == "neurofoundry"
    assert "synthetic" in card.data.tags
    (result,) = card.data.eval_results
    assert (result.task_name, result.metric_type) == ("sex: F or M", "auc")
    assert result.metric_value == pytest.approx(0.81)
