from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from neurofoundry.errors import UsageError
from neurofoundry.params import Section, load, load_part, load_text, read_layers, read_yaml


class Inner(Section):
    epochs: int = Field(default=1, ge=1)
    rate: float = 0.1


class Outer(Section):
    pretrain: Inner
    tasks: dict[str, Inner] = Field(default_factory=dict)
    extra: Inner | None = None


class Classification(Section):
    kind: Literal["classification"]
    classes: tuple[str, ...]
    loss: Literal["cross-entropy", "focal"] = "focal"


class Regression(Section):
    kind: Literal["regression"]
    eligible: dict[str, Inner] = Field(default_factory=dict)


Task = Annotated[Classification | Regression, Field(discriminator="kind")]


class Tagged(Section):
    tasks: dict[Annotated[str, Field(pattern="^[a-z]+$")], Task] = Field(default_factory=dict)
    main: Task | None = None
    others: tuple[Task, ...] = ()
    batch: int | Literal["auto"] = "auto"


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def test_values_and_overrides_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, "pretrain: {epochs: 2}\n")
    params = load(path, Outer, ["pretrain.rate=1e-3", "tasks.age.epochs=5"])
    assert params == Outer(pretrain=Inner(epochs=2, rate=1e-3), tasks={"age": Inner(epochs=5)})


class Part(Section):
    pretrain: Inner


def test_a_part_is_read_whatever_the_rest_holds_and_what_is_wrong_there_is_told() -> None:
    text = "pretrain: {epochs: 2}\nextra: {epoch: 3}\n"
    part, elsewhere = load_part(text, Part, Outer, ["pretrain.rate=0.5"], origin="p")
    assert part == Part(pretrain=Inner(epochs=2, rate=0.5))
    assert elsewhere.startswith("extra.epoch: unknown key. Did you mean 'epochs'?")
    assert load_part("pretrain: {}", Part, Outer, origin="p") == (Part(pretrain=Inner()), "")


def test_a_later_layer_changes_values_of_an_earlier_one_and_adds_to_sections() -> None:
    below = "pretrain: {epochs: 2, rate: 0.5}\ntasks: {age: {epochs: 1}}\nlist: [1, 2]\n"
    above = '{"pretrain": {"epochs": 3}, "tasks": {"sex": {}}, "list": [3], "extra": null}'
    values = read_layers([(below, "a.yaml"), (above, "b.json")], ["pretrain.rate=0.25"])
    assert values == {
        "pretrain": {"epochs": 3, "rate": 0.25},
        "tasks": {"age": {"epochs": 1}, "sex": {}},
        "list": [3],
        "extra": None,
    }
    with pytest.raises(UsageError, match=r"b\.yaml, line 1: not valid YAML"):
        read_layers([(below, "a.yaml"), ("pretrain: [", "b.yaml")])


@pytest.mark.parametrize(
    ("text", "words"),
    [("pretrain: {}\nextr: {}", "extr: unknown key"), ("extra: {}", "pretrain: missing")],
)
def test_a_part_refuses_its_own_mistakes_and_keys_that_nobody_has(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_part(text, Part, Outer, origin="p")


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
        (
            "pretrain:\n  epochs: 1\n  epochs: 2\n",
            [],
            ["params.yaml, line 3:", 'found duplicate key "epochs".'],
        ),
        ("pretrain: {}\npretrain: {}\n", [], ["line 2:", 'duplicate key "pretrain".']),
        ("pretrain: [", [], ["params.yaml, line 1: not valid YAML"]),
        ("pretrain: {}\n\textra: 1", [], ["line 2: not valid YAML", "cannot start any token"]),
        ("pretrain: {}\n---\nextra: {}", [], ["line 2: not valid YAML", "another document"]),
        ("pretrain: !!python/object:os.system {}", [], ["line 1: not valid YAML", "os.system"]),
        ("pretrain: {rate: 2001-99-99}", [], ["params.yaml: not valid YAML: month"]),
        ("pretrain: {rate: !!int }", [], ["not valid YAML"]),
        ("[" * 3000, [], ["params.yaml: not valid YAML: maximum recursion depth"]),
        ("", [], ["expected sections", "found None"]),
        ("pretrain: {}", ["pretrain.epochs"], ["expected KEY=VALUE"]),
        ("pretrain: {}", ["pretrain=[1"], ["--set pretrain=[1, line 1: not valid YAML"]),
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


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (
            "tasks: {sex: {kind: classification, classes: [], clases: [a]}}",
            [
                "tasks.sex.clases: unknown key. Did you mean 'classes'? "
                "Allowed: classes, kind, loss."
            ],
        ),
        (
            "tasks: {sex: {kind: clasification}}",
            [
                "tasks.sex.kind: unknown kind 'clasification'. Did you mean 'classification'? "
                "Allowed: classification, regression."
            ],
        ),
        ("tasks: {age: {}}", ["tasks.age.kind: missing. Allowed: classification, regression."]),
        (
            "{main: {kind: null}, others: [{kind: 3}]}",
            [
                "main.kind: unknown kind 'None'. Allowed: classification, regression.",
                "others.0.kind: unknown kind '3'. Allowed: classification, regression.",
            ],
        ),
        (
            "main: {kind: regression, eligible: {age: {epoch: 1}}}",
            ["main.eligible.age.epoch: unknown key. Did you mean 'epochs'? Allowed: epochs, rate."],
        ),
        (
            "others: [{kind: classification}, {kind: classification, classes: [a], loss: mse}]",
            [
                "others.0.classes: missing.",
                "others.1.loss: Input should be 'cross-entropy' or 'focal' (found 'mse')",
            ],
        ),
        (
            "tasks: {Age: {kind: regression}}",
            ["tasks.Age: String should match pattern '^[a-z]+$' (found 'Age')"],
        ),
        (
            "batch: x",
            [
                "batch: Input should be a valid integer, unable to parse string as an integer "
                "(found 'x')",
                "batch: Input should be 'auto' (found 'x')",
            ],
        ),
    ],
)
def test_a_location_has_the_keys_that_were_written_and_no_others(
    text: str, lines: list[str]
) -> None:
    with pytest.raises(UsageError) as error:
        load_text(text, Tagged, origin="params.yaml")
    told = [line.strip() for line in str(error.value).splitlines()]
    assert told == ["params.yaml: these values cannot be used:", *lines]


def test_the_kind_decides_which_section_it_is() -> None:
    text = "{tasks: {age: {kind: regression}}, main: {kind: classification, classes: [a]}}"
    params = load_text(text, Tagged, origin="params.yaml")
    assert params.tasks == {"age": Regression(kind="regression")}
    assert params.main == Classification(kind="classification", classes=("a",))


def test_yes_and_no_are_words_as_dvc_writes_them(tmp_path: Path) -> None:
    class Words(Section):
        classes: tuple[str, ...]
        sure: bool

    params = load(write(tmp_path, "\ufeffclasses: [no, yes, off]\nsure: true\n"), Words)
    assert params == Words(classes=("no", "yes", "off"), sure=True)
    assert load(tmp_path / "params.yaml", Words, ["classes=[no]"]).classes == ("no",)


def test_numbers_are_those_of_yaml_1_2() -> None:
    text = "[1e-3, 1E3, .5, 010, 0o10, 0x1F, 1:30, .inf, 12e]"
    values = read_yaml(text, origin="params.yaml")
    assert values == [0.001, 1000.0, 0.5, 10, 8, 31, "1:30", float("inf"), "12e"]


def test_sections_may_share_what_they_have_in_common() -> None:
    text = "pretrain: &usual {epochs: 2, rate: 1}\nextra: {<<: *usual, epochs: 3}\n"
    params = load_text(text, Outer, origin="params.yaml")
    assert params.extra == Inner(epochs=3, rate=1)


TOKENS = (
    *("a", "b", ": ", ":", "- ", "\n", "\n  ", "[", "]", "{", "}", ",", "? ", "&x ", "*x", "<<: "),
    *("!!int ", "!!set ", "!!omap ", "!!binary ", "!!timestamp ", "!", "|\n ", ">", "'", '"', "\\"),
    *(
        "#",
        "---\n",
        "...",
        "1",
        "e3",
        ".",
        "0x",
        "2001-01-01",
        "T00:00",
        "~",
        "\t",
        "\x00",
        "é",
        "@",
    ),
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy machine
@given(st.lists(st.sampled_from(TOKENS), max_size=14).map("".join))
@pytest.mark.filterwarnings("ignore:[\\s\\S]*found duplicate anchor")
def test_a_text_is_read_or_refused_and_nothing_else(text: str) -> None:
    with suppress(UsageError):
        read_yaml(text, origin="params.yaml")


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / "params.yaml", Outer)


def test_sections_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Inner().epochs = 3  # type: ignore[misc]
