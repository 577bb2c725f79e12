import math

import pytest
import torch

from rlcourse.envs import TabularPolicy, TokenMDP
from rlcourse.preference_losses import dpo_loss, ipo_loss

LOSSES = {"dpo": dpo_loss, "ipo": ipo_loss}
EXACT = dict(rtol=0, atol=1e-10)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def by_loop(name, preferred, rejected, ref_preferred, ref_rejected, coefficient, probability):
    total = 0.0
    for w, l, rw, rl, p in zip(*(x.tolist() for x in (preferred, rejected, ref_preferred, ref_rejected, probability))):
        gap = (w - l) - (rw - rl)
        if name == "dpo":
            total -= p * math.log(sigmoid(coefficient * gap)) + (1 - p) * math.log(sigmoid(-coefficient * gap))
        else:
            total += p * (gap - 0.5 / coefficient) ** 2 + (1 - p) * (-gap - 0.5 / coefficient) ** 2
    return total / len(probability)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("soft", [True, False])
def test_by_loop(name, soft, randn):
    logprobs = [randn(7) for _ in range(4)]
    probability = torch.rand(7, generator=torch.Generator().manual_seed(1)).double() if soft else torch.ones(7).double()
    got = LOSSES[name](*logprobs, 0.3, probability if soft else None)
    assert got.item() == pytest.approx(by_loop(name, *logprobs, 0.3, probability), abs=1e-10)


def test_by_hand():
    one = [torch.tensor([x]) for x in (-1.0, -2.0, -1.5, -1.5)]  # 1 nat likelier, relative to the reference
    assert dpo_loss(*one, 0.5).item() == pytest.approx(-math.log(sigmoid(0.5)), abs=1e-6)
    assert ipo_loss(*one, 0.5).item() == pytest.approx(0.0, abs=1e-6)  # 1 / (2 * 0.5) is the goal
    assert ipo_loss(*one, 0.25).item() == pytest.approx(1.0, abs=1e-6)
    assert dpo_loss(*one, 0.5, torch.tensor([0.0])).item() == pytest.approx(-math.log(sigmoid(-0.5)), abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_raises_the_preferred_and_lowers_the_rejected(name):
    preferred, rejected = torch.tensor([-3.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)
    ref = torch.tensor([-3.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)
    LOSSES[name](preferred, rejected, *ref, 0.5).backward()
    assert preferred.grad < 0 < rejected.grad  # descent moves against it
    assert ref[0].grad is None and ref[1].grad is None


def test_dpo_never_has_enough_and_ipo_has():
    gaps = torch.tensor([0.0, 1.0, 2.0, 9.0], requires_grad=True)
    zero = torch.zeros(4)
    slopes = {name: torch.autograd.grad(loss(gaps, zero, zero, zero, 0.25), gaps)[0] for name, loss in LOSSES.items()}
    assert (slopes["dpo"] < 0).all()
    assert slopes["ipo"].sign().tolist() == [-1, -1, 0, 1]


@pytest.fixture
def mdp():
    return TokenMDP(2, 3, lambda actions, mask: (actions * mask).sum(1) ** 1.5 - 0.3 * actions[:, 0], eos=1)


@pytest.fixture
def world(mdp, randn):
    """A reference, all pairs of its texts with their weights, and how likely the first one wins."""
    ref_policy = TabularPolicy(2, 3)
    ref_policy.logits_table.data = randn(*ref_policy.logits_table.shape)
    with torch.no_grad():
        log_ref = mdp.logprobs(ref_policy)
    first, second = mdp.batches(2).unbind(1)
    p = log_ref.exp()
    rewards = mdp.returns()
    return ref_policy, log_ref, first, second, p[first] * p[second], (rewards[first] - rewards[second]).sigmoid()


def enumerated(loss, logprobs, world, coefficient):
    """The loss over all pairs, each weighed with its probability."""
    _, log_ref, first, second, weights, probability = world
    one = [
        loss(logprobs[[i]], logprobs[[j]], log_ref[[i]], log_ref[[j]], coefficient, probability[[k]])
        for k, (i, j) in enumerate(zip(first.tolist(), second.tolist()))
    ]
    return weights @ torch.stack(one)


def test_the_enumerated_dpo_loss_is_smallest_at_the_policy_of_largest_regularised_return(mdp, world, randn):
    best = mdp.optimal_policy(world[0], 0.7)
    logprobs = mdp.logprobs(best).detach().requires_grad_()
    smallest = enumerated(dpo_loss, logprobs, world, 0.7)
    assert torch.autograd.grad(smallest, logprobs)[0].abs().max() < 1e-10
    for _ in range(5):
        assert enumerated(dpo_loss, logprobs.detach() + 0.1 * randn(len(mdp)), world, 0.7) > smallest
    wrong = enumerated(dpo_loss, logprobs, world, 0.4)
    assert torch.autograd.grad(wrong, logprobs)[0].abs().max() > 1e-3


def test_the_enumerated_ipo_loss_is_smallest_at_its_closed_form(mdp, world, randn):
    _, log_ref, _, _, _, probability = world
    wins = (log_ref.exp() * probability.reshape(len(mdp), -1)).sum(1)  # P(text beats a text of the reference)
    logprobs = (log_ref + wins / 0.2).log_softmax(0).requires_grad_()
    smallest = enumerated(ipo_loss, logprobs, world, 0.2)
    assert torch.autograd.grad(smallest, logprobs)[0].abs().max() < 1e-10
    for _ in range(5):
        assert enumerated(ipo_loss, logprobs.detach() + 0.1 * randn(len(mdp)), world, 0.2) > smallest


@pytest.mark.parametrize("name", LOSSES)
def test_bad_input_is_named(name):
    loss, x = LOSSES[name], torch.zeros(3)
    names = ("preferred", "rejected", "ref_preferred", "ref_rejected")
    for i in range(1, 4):
        bad = [x] * 4
        bad[i] = torch.zeros(2)
        with pytest.raises(ValueError, match=rf"{names[i]} must be \[N\] as preferred \(3,\) is, got \(2,\)"):
            loss(*bad, 0.1)
    with pytest.raises(ValueError, match=r"preferred must be \[N\]"):
        loss(*[torch.zeros(3, 2)] * 4, 0.1)
    with pytest.raises(ValueError, match=r"probability must be \[N\]"):
        loss(*[x] * 4, 0.1, torch.ones(2))
    coefficient = {"dpo": "kl_coef", "ipo": "tau"}[name]
    with pytest.raises(ValueError, match=f"{coefficient} must be positive, got 0"):
        loss(*[x] * 4, 0)
