"""Parameters mean something, and what somebody has malformed ends in one clear message."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from neurofoundry.errors import DataError, NeurofoundryError, UsageError
from neurofoundry.kubeflow import executor
from neurofoundry.params import load, load_text
from neurofoundry.pretrain.objectives import MODULES
from neurofoundry.project import Params
from neurofoundry.runtime import stage, store, verify

PARAMS = Path(__file__).parents[1] / "params.yaml"


@pytest.mark.parametrize(
    "override",
    [
        "seed=true",
        "pretrain.epochs=true",
        "finetune.seeds=[0, true]",
        "preprocess.quality.bias={max: true}",
        "seed=-1",
        f"seed={10**30}",
        "seed=1:30",
        "preprocess.grid.spacing=1e-300",
        "preprocess.grid.spacing=.nan",
        "preprocess.quality.contrast={min: .nan}",
        "preprocess.quality.contrast={min: -.inf}",
        "preprocess.quality.mask_ml={min: 2000, max: 850}",
        "preprocess.registration_spacing=8.0",
        "preprocess.registration_spacing=.nan",
        "preprocess.batch=1000000000000",
        "preprocess.outliers=.inf",
        "pretrain.learning_rate=.inf",
        "pretrain.epochs=1000000000000",
        "pretrain.batch_size=1000000000000",
        "pretrain.augment.noise=.inf",
        "pretrain.simclr={temperature: 1e-300}",
        "pretrain.mae={patch_mm: 1e-300}",
        "finetune.seeds=[-1]",
        "finetune.epochs=1000000000000",
        "finetune.fractions=[.nan]",
        "evaluate.bootstraps=1000000000000",
        "evaluate.min_subjects=1000000000000",
        "evaluate.promotion.margin=.nan",
        "tasks.alzheimers.eligible.age={min: 90, max: 55}",
        "tasks.alzheimers.eligible.age={min: .nan}",
        "tasks.alzheimers.eligible.sex={one_of: []}",
        'tasks.sex.classes=[F, ""]',
        "ingest.columns.diagnosis.values={CN: [CN], AD: []}",
        'ingest.columns.diagnosis.values={CN: [CN], "": [AD]}',
        "ingest.splits.pretrain=.nan",
        "ingest.splits.train=true",
    ],
)
def test_a_parameter_that_can_mean_nothing_is_refused(override: str) -> None:
    with pytest.raises(UsageError) as refused:
        load(PARAMS, Params, [override])
    key = override.partition("=")[0].split(".")[-1]
    assert key in str(refused.value)
    assert len(str(refused.value).splitlines()) <= 4


def _numbers(kind: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Yield all numbers of a section with their bounds, those of sections within it included."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            parts = [field.annotation, *get_args(field.annotation)]
            bounds = [field.metadata, *(getattr(part, "__metadata__", ()) for part in parts)]
            if {int, float} & set(parts):
                yield f"{where}.{name}", [each for group in bounds for each in group]
            for part in parts:
                yield from _numbers(part, f"{where}.{name}")
    elif get_origin(kind) is not None:
        for part in get_args(kind):
            yield from _numbers(part, where)


def test_every_number_has_both_bounds() -> None:
    """But for those that compare a measure or a label, of which anybody knows the range alone."""
    open_ended = ("quality.", "eligible.", ".min", ".max", "splits", "grid.spacing", ".crop")
    found = dict(_numbers(Params, "params"))
    for method, module in MODULES.items():
        objective = __import__(module, fromlist=["Params"])
        for name in dir(objective):
            if name.endswith("Params"):
                found |= dict(_numbers(getattr(objective, name), method))
    assert len(found) > 40
    unbounded = [
        name
        for name, bounds in found.items()
        if not any(word in name for word in open_ended)
        and not (
            any(isinstance(each, Le | Lt) or getattr(each, "le", None) for each in bounds)
            and any(isinstance(each, Ge | Gt) for each in bounds)
        )
    ]
    assert unbounded == []


@pytest.mark.parametrize(
    "text",
    [
        "seed: \0",
        "seed: " + "9" * 5000,
        "seed: " + "[" * 5000,
        "seed: &a [*a]",
        "seed: &a {b: *a}",
        "%YAML 1.1\n---\nseed: 1:30",
        "seed: !!python/object/apply:os.system [ls]",
        "- 1",
        "seed",
        "",
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n"
            for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "? [seed]\n: 1",
        "a0: &a0 {x: 1}\n"
        + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)),
        "a: &a {<<: *a}",
    ],
)
def test_malformed_parameters_end_in_one_clear_message(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        load_text(text, Params, origin="params.yaml")
    assert str(refused.value).startswith("params.yaml")
    assert len(str(refused.value)) < 3000


def test_a_file_without_end_is_no_parameters() -> None:
    with pytest.raises(UsageError, match="/dev/zero: more than"):
        load(Path("/dev/zero"), Params)


MALFORMED = {
    "empty": "",
    "no JSON": "{",
    "deep": "[" * 100_000,
    "deep object": '{"a":' * 100_000,
    "digits": '{"key": ' + "9" * 5000 + "}",
    "list": "[]",
    "number": "3",
    "text": '"stage"',
    "NUL": "\0",
    "no contents": '{"stage": "ingest", "schema_version": 2}',
    "a list": '{"stage": "ingest", "schema_version": 2, "contents": [], "data_version": "v"}',
    "not UTF-8": "\udcff",
}


@pytest.mark.parametrize("text", MALFORMED.values(), ids=list(MALFORMED))
def test_a_malformed_record_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "stage.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"stage\.json: (not a stage record|found the output)"):
        stage.read_record("ingest", tmp_path)
    assert store.recorded_key(tmp_path) is None
    assert verify.recorded(tmp_path) == {}
    assert verify.recorded_items(tmp_path) == {}
    manifest = tmp_path / "manifest"
    manifest.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match="neither a folder nor a manifest"):
        store.locate(manifest)


@pytest.mark.parametrize(
    "text",
    [
        *MALFORMED.values(),
        '{"outputs": 3}',
        '{"outputs": {"outputFile": 3}}',
        '{"outputs": {"outputFile": "x", "artifacts": {"cohort": {}}}}',
        '{"outputs": {"outputFile": "x", "artifacts": {"cohort": {"artifacts": [3]}}}}',
    ],
)
def test_a_malformed_executor_input_is_refused_before_the_work(text: str) -> None:
    with pytest.raises(NeurofoundryError, match="--executor-input: not what Kubeflow tells"):
        executor.check_input(text)


def test_parameters_are_finite_as_json_needs_them() -> None:
    values: Mapping[str, Any] = load(PARAMS, Params).model_dump(mode="json")

    def numbers(value: Any) -> Iterator[float]:
        inside: Sequence[Any] = ()
        if isinstance(value, dict):
            inside = list(value.values())
        elif isinstance(value, list):
            inside = value
        for each in inside:
            yield from numbers(each)
        if isinstance(value, float):
            yield value

    assert all(map(math.isfinite, numbers(values)))
    json.dumps(values, allow_nan=False)
