"""An objective is one file: here one with a teacher, which nothing else in the code knows of."""

from __future__ import annotations

import copy
import json
import signal
from pathlib import Path

import pytest
import torch
from pydantic import Field, ValidationError
from torch import nn
from torch.nn import functional as F

from neurofoundry.contracts.encoder import EncoderParams
from neurofoundry.errors import UsageError
from neurofoundry.nn import encoders
from neurofoundry.nn.encoders import Encoder
from neurofoundry.params import Section, validate
from neurofoundry.pretrain import objectives
from neurofoundry.pretrain.norm import synchronize
from neurofoundry.pretrain.objective import Objective
from neurofoundry.pretrain.optimizer import make_optimizer, train_step
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.ranks import Ranks, joined
from neurofoundry.runtime.files import hash_file
from tests.pretrain import stage_process
from tests.pretrain.conftest import SMALL, batch_of, wait_for_step
from tests.support.launch_ranks import start_ranks


class TeacherParams(Section):
    """Regression of a teacher; `encoder/teacher`."""

    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of the weights of the teacher."""


class Teacher(Objective):
    """Predict what a moving average of the encoder says of the other view (Grill et al. 2020)."""

    name = "teacher"
    Params = TeacherParams
    views = 2

    def __init__(self, encoder: Encoder, params: TeacherParams, *, spacing_mm: float) -> None:
        super().__init__(encoder, params, spacing_mm=spacing_mm)
        self.params = params
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.predictor = nn.Linear(encoder.features, encoder.features)

    def encode(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.encoder(inputs), self.teacher(inputs)], 1)

    def loss(
        self, encoded: torch.Tensor, persons: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        student, teacher = encoded.chunk(2, 2)
        cosines = F.cosine_similarity(self.predictor(student), teacher.detach().flip(0), dim=2)
        return 2 - 2 * cosines.mean(), {"cosine": cosines.detach().mean()}

    def after_step(self, step: int, steps: int) -> None:
        for ours, theirs in zip(self.teacher.parameters(), self.encoder.parameters(), strict=True):
            ours.lerp_(theirs, 1 - self.params.momentum)


VALUES = {**SMALL, "methods": ["teacher"], "teacher": {"momentum": 0.8}, "probe": None}


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a module of the package would be."""
    monkeypatch.setitem(objectives.MODULES, "teacher", __name__)


def run_stage(volumes: Path, out: Path, values: str) -> None:
    """The stage in a process of its own."""
    objectives.MODULES["teacher"] = __name__
    stage_process.run_stage(volumes, out, values)


@pytest.mark.usefixtures("registered")
class TestParams:
    def test_its_section_is_its_own_and_checked_with_all_others(self) -> None:
        params = PretrainParams.model_validate(VALUES)
        assert params.section("teacher") == TeacherParams(momentum=0.8)
        assert params.read_by("teacher")["teacher"] == {"momentum": 0.8}
        assert PretrainParams.model_validate(params.model_dump(mode="json")) == params
        with pytest.raises(ValidationError) as caught:
            PretrainParams.model_validate({**VALUES, "teacher": {"momentum": 1}, "epochs": 0})
        assert {problem["loc"] for problem in caught.value.errors()} == {
            ("teacher", "momentum"),
            ("epochs",),
        }

    def test_a_wrong_key_in_or_beside_it_is_named_with_the_right_one(self) -> None:
        with pytest.raises(UsageError, match=r"teacher\.momentun: unknown.* mean 'momentum'"):
            validate({"teacher": {"momentun": 1}}, PretrainParams, origin="params.yaml")
        with pytest.raises(UsageError, match=r"teachr: unknown key\. Did you mean 'teacher'"):
            validate({"teachr": {}}, PretrainParams, origin="params.yaml")

    def test_a_section_without_effect_is_refused(self) -> None:
        with pytest.raises(ValidationError, match="teacher: has no effect"):
            PretrainParams.model_validate({"teacher": {"momentum": 0.8}})
        PretrainParams.model_validate({"teacher": {}})


def test_an_objective_that_there_is_not() -> None:
    with pytest.raises(ValidationError, match="no objective teacher; expected some of mae, simclr"):
        PretrainParams.model_validate({"methods": ["teacher"]})
    with pytest.raises(UsageError, match=r"--method mae: not one of .* \(simclr\)"):
        PretrainParams().section("mae")


def test_a_module_without_an_objective_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(objectives.MODULES, "student", __name__)
    with pytest.raises(LookupError, match="no subclass of Objective has the name 'student'"):
        objectives.find("student")


def teacher(norm: str = "batch") -> Teacher:
    params = EncoderParams.model_validate({"stem_stride": 2, "width": 0.125, "norm": norm})
    objective = objectives.build(
        "teacher", encoders.build(params, seed=1), TeacherParams(), spacing_mm=6.0, seed=2
    )
    assert isinstance(objective, Teacher)
    return objective.double().train()


def train(objective: Teacher, ranks: Ranks, *, steps: int) -> list[dict[str, torch.Tensor]]:
    """The encoder's weights after each step."""
    params = PretrainParams(learning_rate=0.01, batch_size=4)
    optimizer = make_optimizer(objective, params)
    weights = []
    for step in range(steps):
        source = torch.Generator().manual_seed(step)
        shape = (2, 4, 1, 12, 16, 16)
        inputs = torch.randn(shape, generator=source, dtype=torch.float64)[:, ranks.share(4)]
        train_step(
            objective,
            optimizer,
            inputs,
            batch_of("abcd"),
            params,
            step=step,
            steps=steps,
            rate=0.01,
            ranks=ranks,
        )
        state = objective.encoder.named_parameters()
        weights.append({name: value.detach().clone() for name, value in state})
    return weights


@pytest.mark.usefixtures("registered")
def test_the_teacher_follows_the_encoder_and_learns_nothing_else() -> None:
    objective = teacher()
    average = {name: value.clone() for name, value in objective.teacher.named_parameters()}
    for weights in train(objective, Ranks(), steps=3):
        average = {name: 0.9 * value + 0.1 * weights[name] for name, value in average.items()}
    for name, value in objective.teacher.named_parameters():
        torch.testing.assert_close(value, average[name], rtol=1e-12, atol=1e-14)
        assert not torch.equal(value, weights[name])


def write_state(folder: Path) -> None:
    """Train as one of two ranks."""
    objectives.MODULES["teacher"] = __name__
    with joined() as ranks:
        objective = teacher()
        synchronize(objective, ranks.device)
        train(objective.double(), ranks, steps=3)
        torch.save(objective.state_dict(), folder / f"{ranks.number}.pt")


@pytest.mark.usefixtures("registered")
def test_two_ranks_have_one_teacher_and_it_is_that_of_one(tmp_path: Path) -> None:
    processes = start_ranks(write_state, tmp_path)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    alone = teacher()
    train(alone, Ranks(), steps=3)
    states = [torch.load(tmp_path / f"{number}.pt") for number in range(2)]
    assert states[0].keys() == states[1].keys() == alone.state_dict().keys()
    for name, value in alone.state_dict().items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], value, rtol=1e-8, atol=1e-10, msg=name)


def test_kill_9_changes_no_byte_of_the_encoder_nor_of_the_teacher(
    volumes: Path, tmp_path: Path
) -> None:
    values = json.dumps({**VALUES, "epochs": 3, "checkpoint_minutes": 0})
    whole, out = tmp_path / "whole", tmp_path / "killed"
    checkpoints = tmp_path / ".killed.partial" / "checkpoint"
    for folder, step in ((whole, 0), (out, 4), (out, 0)):
        (process,) = start_ranks(run_stage, volumes, folder, values, count=1)
        if step:
            wait_for_step(checkpoints, 4, process)
            process.kill()
        process.join(120)
        assert process.exitcode == (-signal.SIGKILL if step else 0)
    for name in ("encoder.safetensors", "history.tsv", "plan.json"):
        assert hash_file(whole / name) == hash_file(out / name), name
    assert json.loads((out / "plan.json").read_text())["method"] == "teacher"
    one, other = (
        torch.load(max((folder / "checkpoint").iterdir()), weights_only=True)["model"]
        for folder in (whole, out)
    )
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert any(name.startswith("teacher.") for name in one)
    assert not torch.equal(one["teacher.conv1.weight"], one["encoder.conv1.weight"])
