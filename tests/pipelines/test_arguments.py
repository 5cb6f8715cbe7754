"""Every parameter that no cluster could use is refused before anything is sent, in a line."""

from __future__ import annotations

from typing import Any

import pytest

from neurofoundry.errors import UsageError
from pipelines import compiled
from pipelines.arguments import check, check_cron

IMAGE = "registry.example/neurofoundry@sha256:" + "a" * 64


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return compiled.read(compiled.COMMITTED)


def given(**more: str) -> dict[str, str]:
    return {"params": "seed: 1\n", "data_version": "abc", "image": IMAGE, **more}


def test_texts_become_what_the_pipeline_declares(documents: list[Any]) -> None:
    taints = '[{"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}]'
    texts = given(
        gpus="2", preprocess_shards="16", gpu_selector='{"pool": "h200"}', cpu_tolerations=taints,
        store="/store/study", claim="lab-data", nodes="2",
    )  # fmt: skip
    values = check(documents, texts)
    assert values["gpus"] == "2"
    assert values["preprocess_shards"] == 16
    assert values["gpu_selector"] == {"pool": "h200"}
    assert values["cpu_tolerations"][0]["tolerationSeconds"] == 60


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("gpu", "2", r"no such parameter. Did you mean 'gpus'\?"),
        ("gpus", "two", "gpus=two: expected a whole number, 0 or more"),
        ("gpus", "-1", "gpus=-1: expected a whole number, 0 or more"),
        ("gpus", "", "gpus=: expected a whole number, 0 or more"),
        ("gpus", "1.5", "gpus=1.5: expected a whole number, 0 or more"),
        ("nodes", "0", "nodes=0: expected 1 or more"),
        ("nodes", "2.5", "nodes=2.5: expected a whole number"),
        ("preprocess_shards", "0", "preprocess_shards=0: expected 1 or more"),
        ("preprocess_shards", "many", "preprocess_shards=many: expected a whole number"),
        ("preprocess_shards", "true", "expected a whole number"),
        ("finetune_shards", "-1", "finetune_shards=-1: expected 0 or more"),
        ("claim", "", "expected the name of a persistent volume claim"),
        ("claim", "My_Claim", "expected the name of a persistent volume claim"),
        ("claim", "lab.data", "expected the name of a persistent volume claim"),
        ("claim", "a" * 64, "expected the name of a persistent volume claim"),
        ("claim", "scratch", "the steps have a volume of that name"),
        ("claim", "shm", "the steps have a volume of that name"),
        ("claim", "dvc", "the steps have a volume of that name"),
        ("store", "/data", "store=/data: expected /store, where the volume is mounted"),
        ("store", "/storehouse", "expected /store, where"),
        ("store", "/store/../tmp", "expected /store, where"),
        ("store", "", "expected /store, where"),
        ("data_version", "../other", "data_version=../other: expected the name of a folder"),
        ("data_revision", "v1", "data_revision: of which repository"),
        ("gpu_selector", "[1]", "gpu_selector=.*expected a JSON object"),
        ("gpu_selector", '{"pool": 1}', r"--param gpu_selector: .*\n  selector.pool: .*string"),
        (
            "light_selector",
            '{"pool": "a b"}',
            r"light_selector: .*\n.*'a b' is no value of a label",
        ),
        ("cpu_selector", '{"-pool": "a"}', r"cpu_selector: .*\n.*'-pool' is no name of a label"),
        ("gpu_tolerations", "{}", "gpu_tolerations=.*expected a JSON list"),
        ("gpu_tolerations", "[1]", r"--param gpu_tolerations: .*\n  tolerations.0: "),
        ("gpu_tolerations", '[{"ky": "a"}]', r"tolerations.0.ky: unknown key. Did you mean 'key'"),
        ("gpu_tolerations", '[{"key": "a", "effect": "No"}]', r"tolerations.0.effect: "),
        ("gpu_tolerations", '[{"key": "a", "operator": "Equal"}]', "give both"),
    ],
)
def test_wrong_ones_are_named(documents: list[Any], name: str, value: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check(documents, given(**{name: value}))


def test_missing_ones_are_named(documents: list[Any]) -> None:
    with pytest.raises(UsageError, match="needs image: give"):
        check(documents, {"params": ""})


@pytest.mark.parametrize("cron", ["0 0 2 * * *", "0 */15 8-18 1,15 JAN-mar MON-FRI", "0 0 0 ? * 0"])
def test_a_schedule_that_kubeflow_reads_passes(cron: str) -> None:
    assert check_cron(cron) == cron


@pytest.mark.parametrize(
    ("cron", "message"),
    [
        ("0 2 * * *", "expected six fields"),
        ("a b c d e f", "a is no second; expected 0 to 59"),
        ("0 60 * * * *", "60 is no minute; expected 0 to 59"),
        ("0 0 24 * * *", "24 is no hour"),
        ("0 0 0 0 * *", "0 is no day of the month"),
        ("0 0 0 1 MON *", "MON is no month"),
        ("0 0 0 1 1 JAN", "JAN is no day of the week"),
        ("0 0 0 1 1 -", "- is no day of the week"),
    ],
)
def test_a_schedule_that_kubeflow_would_refuse_is_explained(cron: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_cron(cron)
