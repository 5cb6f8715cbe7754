from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from neurofoundry.errors import UsageError
from neurofoundry.params import Section, load


class Inner(Section):
    epochs: int = Field(default=1, ge=1)
    rate: float = 0.1


class Outer(Section):
    pretrain: Inner
    tasks: dict[str, Inner] = Field(default_factory=dict)
    extra: Inner | None = None


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def test_values_and_overrides_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, "pretrain: {epochs: 2}\n")
    params = load(path, Outer, ["pretrain.rate=1e-3", "tasks.age.epochs=5"])
    assert params == Outer(pretrain=Inner(epochs=2, rate=1e-3), tasks={"age": Inner(epochs=5)})


@pytest.mark.parametrize(
    ("text", "overrides", "words"),
    [
        ("pretrain: {epoch: 2}", [], ["pretrain.epoch", "Did you mean 'epochs'?", "epochs, rate"]),
        ("pretrain: {}\nfoo: 1", [], ["foo", "unknown key", "extra, pretrain, tasks"]),
        ("pretrain: {}\ntasks: {age: {epoch: 1}}", [], ["tasks.age.epoch", "'epochs'"]),
        ("pretrain: {}\nextra: {epoch: 1}", [], ["extra.epoch", "'epochs'"]),
        ("pretrain: {epochs: 0}", [], ["pretrain.epochs", "greater than or equal to 1", "found 0"]),
        ("pretrain: {epochs: many}", [], ["pretrain.epochs", "found 'many'"]),
        ("{}", [], ["pretrain: missing"]),
        ("pretrain: {epochs: 1, epochs: 2}", [], ["'epochs' stands twice"]),
        ("pretrain: [", [], ["not valid YAML"]),
        ("", [], ["expected sections", "found None"]),
        ("pretrain: {}", ["pretrain.epochs"], ["expected KEY=VALUE"]),
        ("pretrain: {}", ["pretrain.epochs.x=1"], ["pretrain.epochs", "integer"]),
        ("pretrain: {}", ["pretrain.epcohs=1"], ["pretrain.epcohs", "'epochs'"]),
    ],
)
def test_a_wrong_key_or_value_is_named(
    tmp_path: Path, text: str, overrides: list[str], words: list[str]
) -> None:
    with pytest.raises(UsageError) as error:
        load(write(tmp_path, text), Outer, overrides)
    for word in words:
        assert word in str(error.value)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        load(write(tmp_path, "pretrain: {epochs: 0, rate: fast}"), Outer)
    assert "pretrain.epochs" in str(error.value)
    assert "pretrain.rate" in str(error.value)


def test_yes_and_no_are_words_as_dvc_writes_them(tmp_path: Path) -> None:
    class Words(Section):
        classes: tuple[str, ...]
        sure: bool

    params = load(write(tmp_path, "classes: [no, yes, off]\nsure: true\n"), Words)
    assert params == Words(classes=("no", "yes", "off"), sure=True)
    assert load(tmp_path / "params.yaml", Words, ["classes=[no]"]).classes == ("no",)


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / "params.yaml", Outer)


def test_sections_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner().epochs = 3  # type: ignore[misc]
