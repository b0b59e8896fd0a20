"""Muon against torch's, the learning rate, and the average of the weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from nora_training.train.muon import Muon, orthogonalize
from nora_training.train.optimizer import Average, factor


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_muon_takes_the_steps_of_torch(shape):
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape)) for _ in range(3)]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]
    options = {"lr": 0.1, "weight_decay": 0.2}
    muon = Muon([{"params": ours}], **options)
    reference = torch.optim.Muon(theirs, **options)
    for _ in range(4):
        for mine, other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(shape)
            other.grad = mine.grad.clone()
        muon.step()
        reference.step()
    for mine, other in zip(ours, theirs, strict=True):
        # Torch iterates in bfloat16, which knows three digits.
        torch.testing.assert_close(mine, other, rtol=0.02, atol=0.02)


def test_a_matrix_becomes_nearly_orthogonal_whatever_its_scale():
    torch.manual_seed(0)
    x = torch.randn(5, 12, 7) * torch.logspace(-3, 3, 5)[:, None, None]
    singular = torch.linalg.svdvals(orthogonalize(x))
    assert 0.4 < singular.min() < singular.max() < 1.3


@given(st.integers(1, 500), st.integers(0, 400))
def test_the_rate_rises_in_a_line_and_falls_in_a_cosine_to_zero(steps, warmup):
    rates = [factor(step, steps, warmup) for step in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)
    for step, rate in enumerate(rates):
        if step < warmup:
            assert rate == (step + 1) / warmup
    falling = rates[warmup:]
    assert falling == sorted(falling, reverse=True)
    if falling:
        assert falling[0] == 1.0
        assert factor(steps, steps, warmup) == pytest.approx(0.0, abs=1e-15)
        middle = factor(warmup + len(falling) // 2, steps, warmup)
        share = (len(falling) // 2) / len(falling)
        assert middle == pytest.approx(0.5 + 0.5 * math.cos(math.pi * share))


def test_the_average_follows_its_recurrence_and_swaps_with_the_weights():
    model = nn.Linear(3, 2)
    average = Average(model, 0.5)
    expected = model.weight.detach().clone()
    for step in range(6):
        with torch.no_grad():
            model.weight.copy_(torch.randn(2, 3))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    live = model.weight.detach().clone()
    torch.testing.assert_close(average.values["weight"], expected)
    average.swap()
    torch.testing.assert_close(model.weight.detach(), expected)
    average.swap()
    assert torch.equal(model.weight.detach(), live)
