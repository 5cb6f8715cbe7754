from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from neurofoundry.contracts.encoder import EncoderParams
from neurofoundry.errors import UsageError
from neurofoundry.nn import encoders, seeds
from neurofoundry.nn.selfcheck import check_compiler
from neurofoundry.pretrain.gradients import compute_gradients
from neurofoundry.pretrain.norm import synchronize
from neurofoundry.pretrain.objective import Objective
from neurofoundry.pretrain.objectives.mae import Mae, MaeParams
from neurofoundry.pretrain.objectives.simclr import Simclr, SimclrParams
from neurofoundry.pretrain.params import PretrainParams
from neurofoundry.pretrain.ranks import Ranks, joined
from neurofoundry.pretrain.run import fit_to_ranks
from tests.support.launch_ranks import start_ranks

BATCH = 4
PERSONS = torch.tensor([0, 1, 1, 2])


def objective_of(method: str, norm: str = "group") -> Objective:
    """In float64, so that only a wrong formula shows, not rounding."""
    params = EncoderParams.model_validate({"stem_stride": 2, "width": 0.125, "norm": norm})
    encoder = encoders.build(params, seed=1)
    with seeds.seeded(2):
        if method == "mae":
            return Mae(encoder, MaeParams(patch_mm=24), spacing_mm=6.0).double()
        return Simclr(encoder, SimclrParams(projection=8), spacing_mm=6.0).double()


def inputs_of(method: str) -> torch.Tensor:
    source = torch.Generator().manual_seed(3)
    views = torch.randn(
        1 if method == "mae" else 2, BATCH, 1, 12, 16, 16, generator=source, dtype=torch.float64
    )
    if method == "mae":
        views = torch.cat([views, (torch.rand(views.shape, generator=source) > 0.5).double()], 2)
    return views


def plainly(objective: Objective, inputs: torch.Tensor) -> torch.Tensor:
    """The whole batch at once, by autograd alone."""
    encoded = objective.encode(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
    loss, _ = objective.loss(encoded, PERSONS)
    loss.backward()
    return loss.detach()


def assert_same_gradients(one: Objective, other: Objective, tolerance: float) -> None:
    for (name, weight), expected in zip(one.named_parameters(), other.parameters(), strict=True):
        assert weight.grad is not None
        torch.testing.assert_close(
            weight.grad, expected.grad, rtol=tolerance, atol=tolerance, msg=name
        )


@pytest.mark.parametrize("method", ["simclr", "mae"])
@pytest.mark.parametrize("chunk", [None, 1, 3])
def test_any_chunk_gives_the_gradients_of_the_whole_batch(method: str, chunk: int | None) -> None:
    ours, theirs, inputs = objective_of(method), objective_of(method), inputs_of(method)
    loss, _ = compute_gradients(ours, inputs, PERSONS, ranks=Ranks(), chunk=chunk)
    torch.testing.assert_close(loss, plainly(theirs, inputs), rtol=1e-12, atol=1e-12)
    assert_same_gradients(ours, theirs, 1e-10)


def test_batch_norm_has_the_statistics_of_a_chunk_and_moves_once_a_chunk() -> None:
    ours, theirs = objective_of("simclr", "batch"), objective_of("simclr", "batch")
    inputs = inputs_of("simclr")
    compute_gradients(ours, inputs, PERSONS, ranks=Ranks(), chunk=4)
    encoded = torch.cat([theirs.encode(some) for some in inputs.flatten(0, 1).split(4)])
    loss, _ = theirs.loss(encoded.unflatten(0, inputs.shape[:2]), PERSONS)
    loss.backward()
    assert_same_gradients(ours, theirs, 1e-9)
    for name, buffer in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], buffer, msg=name)


def test_a_chunk_needs_the_memory_of_a_chunk() -> None:
    """What autograd keeps at once is counted, as a CPU has no peak to read."""

    def kept(chunk: int | None) -> int:
        objective = objective_of("simclr")
        weights = {weight.data_ptr() for weight in objective.parameters()}
        now = most = 0

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal now, most
            now += 0 if tensor.data_ptr() in weights else tensor.numel()
            most = max(most, now)
            return tensor

        def unpack(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal now
            now -= 0 if tensor.data_ptr() in weights else tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            compute_gradients(objective, inputs_of("simclr"), PERSONS, ranks=Ranks(), chunk=chunk)
        return most

    assert kept(1) < 0.5 * kept(None)


CASES = [("group", None), ("group", 1), ("batch", None)]
"""Norm and chunk that have the statistics of the whole batch, or none of a batch."""


def write_gradients(folder: Path) -> None:
    """As one of two ranks: the loss and gradients from its share of a batch."""
    with joined() as ranks:
        for method, (norm, chunk) in itertools.product(("simclr", "mae"), CASES):
            objective = objective_of(method, norm)
            synchronize(objective, torch.device("cpu"))
            objective.double()
            own = inputs_of(method)[:, ranks.share(BATCH)]
            loss, _ = compute_gradients(objective, own, PERSONS, ranks=ranks, chunk=chunk)
            gradients = {name: weight.grad for name, weight in objective.named_parameters()}
            results = {"loss": loss, "gradients": gradients, "state": objective.state_dict()}
            torch.save(results, folder / f"{method}-{norm}-{chunk}-{ranks.number}.pt")


def test_two_ranks_give_the_loss_and_the_gradients_of_one(tmp_path: Path) -> None:
    processes = start_ranks(write_gradients, tmp_path)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 2 * 3 * 2
    for method, norm in itertools.product(("simclr", "mae"), ("group", "batch")):
        expected = objective_of(method, norm)
        loss = plainly(expected, inputs_of(method))
        for results in map(torch.load, sorted(tmp_path.glob(f"{method}-{norm}-*.pt"))):
            torch.testing.assert_close(results["loss"], loss, rtol=1e-12, atol=1e-12)
            for name, weight in expected.named_parameters():
                torch.testing.assert_close(
                    results["gradients"][name], weight.grad, rtol=1e-10, atol=1e-10, msg=name
                )
            for name, buffer in expected.named_buffers():  # running statistics
                torch.testing.assert_close(
                    results["state"][name], buffer, rtol=1e-10, atol=1e-10, msg=name
                )


def test_a_batch_norm_of_ranks_is_the_same_to_whoever_uses_the_weights() -> None:
    ours, theirs = objective_of("simclr", "batch").float(), objective_of("simclr", "batch").float()
    synchronize(ours, torch.device("cpu"))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    volumes = inputs_of("simclr")[0].float()
    for each in (ours, theirs):
        each.eval()
    torch.testing.assert_close(ours.encode(volumes), theirs.encode(volumes))


def test_a_batch_that_ranks_cannot_share_equally() -> None:
    params = PretrainParams.model_validate({"batch_size": 6})
    with pytest.raises(UsageError, match=r"batch_size is 6, which 4 .* multiple of 4"):
        fit_to_ranks(objective_of("simclr", "batch"), params, Ranks(0, 4))
    fit_to_ranks(objective_of("simclr", "batch"), params, Ranks(0, 2))
    encoder = encoders.build(EncoderParams(stem_stride=2, width=0.125), seed=1)
    compiled = Simclr(encoder, SimclrParams(compile=True), spacing_mm=6.0)
    with pytest.raises(UsageError, match=r"simclr\.compile: the batch norm"):
        fit_to_ranks(compiled, params, Ranks(0, 2))


def test_a_compiled_encoder_gives_the_same_loss_and_gradients() -> None:
    """Of the stem and the first level alone, as the compiler takes its time."""
    try:
        check_compiler(torch.device("cpu"), setting="simclr.compile")
    except UsageError as error:
        pytest.skip(str(error))

    def shallow(*, compiled: bool) -> Objective:
        encoder = encoders.build(EncoderParams(stem_stride=2, width=0.125), seed=1)
        encoder.layer2, encoder.layer3, encoder.layer4 = (nn.Identity() for _ in range(3))
        encoder.features = 8
        with seeds.seeded(2):
            params = SimclrParams(projection=8, compile=compiled)
            return Simclr(encoder, params, spacing_mm=6.0).train()

    inputs = inputs_of("simclr").float()
    plain, one, other = shallow(compiled=False), shallow(compiled=True), shallow(compiled=True)
    losses = []
    for objective in (plain, one, other):
        torch.compiler.reset()  # as another process would compile it
        loss, _ = compute_gradients(objective, inputs, PERSONS, ranks=Ranks(), chunk=None)
        losses.append(loss)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-5, atol=1e-5)
    assert_same_gradients(one, plain, 1e-3)
    assert losses[1] == losses[2]  # to the bit: a run that is resumed compiles again
    for first, second in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(first.grad, second.grad)
    assert one.state_dict().keys() == plain.state_dict().keys()
