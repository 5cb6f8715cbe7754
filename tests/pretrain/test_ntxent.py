from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from neurofoundry.pretrain.ntxent import nt_xent


def unit_vectors(batch: int, *, seed: int = 0) -> torch.Tensor:
    source = torch.Generator().manual_seed(seed)
    vectors = torch.randn(2, batch, 5, dtype=torch.float64, generator=source)
    return F.normalize(vectors, dim=-1).requires_grad_()


def by_hand_with_positives(
    views: torch.Tensor, persons: list[int], temperature: float
) -> torch.Tensor:
    """Equation 2 of Khosla et al. 2020, anchor by anchor; a class is a person."""
    rows = [(person, view[scan]) for view in views for scan, person in enumerate(persons)]
    losses = []
    for anchor, (person, embedding) in enumerate(rows):
        others = [row for number, row in enumerate(rows) if number != anchor]
        denominator = sum(torch.exp(embedding @ other / temperature) for _, other in others)
        logs = [
            torch.log(torch.exp(embedding @ other / temperature) / denominator)
            for same, other in others
            if same == person
        ]
        losses.append(-sum(logs) / len(logs))
    return torch.stack(losses).mean()


def by_hand(views: torch.Tensor, persons: list[int], temperature: float) -> torch.Tensor:
    """Equation 1 of Chen et al. 2020, view by view."""
    batch = len(persons)
    losses = []
    for view in range(2):
        for scan in range(batch):
            anchor, positive = views[view, scan], views[1 - view, scan]
            numerator = torch.exp(anchor @ positive / temperature)
            denominator = numerator
            for other_view in range(2):
                for other in range(batch):
                    if persons[other] != persons[scan]:
                        similarity = anchor @ views[other_view, other]
                        denominator = denominator + torch.exp(similarity / temperature)
            losses.append(-torch.log(numerator / denominator))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("persons", [[0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 3, 0], [4, 4, 7, 7, 9, 9]])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_value_and_gradient_are_those_of_the_double_loop(
    persons: list[int], temperature: float
) -> None:
    ours, theirs = unit_vectors(6), unit_vectors(6)
    loss = nt_xent(ours, torch.tensor(persons), temperature=temperature)
    expected = by_hand(theirs, persons, temperature)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss.item(), expected.item(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("persons", [[0, 1, 0, 2, 3, 0], [4, 4, 7, 7, 9, 9]])
def test_scans_of_one_person_may_be_positives(persons: list[int]) -> None:
    ours, theirs = unit_vectors(6), unit_vectors(6)
    loss = nt_xent(ours, torch.tensor(persons), temperature=0.2, same_person="positive")
    expected = by_hand_with_positives(theirs, persons, 0.2)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_where_nobody_was_scanned_twice_both_rules_are_one() -> None:
    views, persons = unit_vectors(6).detach(), torch.arange(6)
    one = nt_xent(views, persons, temperature=0.2, same_person="positive")
    torch.testing.assert_close(one, nt_xent(views, persons, temperature=0.2))


def test_views_and_scans_may_be_exchanged() -> None:
    views, persons = unit_vectors(5).detach(), torch.tensor([0, 1, 1, 2, 3])
    loss = nt_xent(views, persons, temperature=0.3)
    order = torch.tensor([3, 0, 4, 2, 1])
    torch.testing.assert_close(nt_xent(views.flip(0), persons, temperature=0.3), loss)
    torch.testing.assert_close(nt_xent(views[:, order], persons[order], temperature=0.3), loss)


def test_when_all_is_one_every_guess_is_as_good() -> None:
    views = torch.ones(2, 8, 4) / 2
    loss = nt_xent(views, torch.arange(8), temperature=0.1)
    assert loss.item() == pytest.approx(math.log(2 * 8 - 1), abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.2, 0.01])
def test_orthogonal_scans_with_equal_views_give_the_closed_form(temperature: float) -> None:
    views = torch.eye(6).expand(2, 6, 6)
    loss = nt_xent(views, torch.arange(6), temperature=temperature)
    expected = math.log1p((2 * 6 - 2) * math.exp(-1 / temperature))
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_scans_of_one_person_do_not_repel_each_other() -> None:
    views = unit_vectors(3)
    loss = nt_xent(views, torch.tensor([7, 7, 7]), temperature=0.1)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    views = unit_vectors(2)
    anchor_rows = torch.autograd.grad(nt_xent(views, torch.tensor([0, 0]), temperature=0.1), views)[
        0
    ]
    assert not anchor_rows.any()
