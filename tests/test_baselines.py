import itertools
import math
import statistics

import pytest
import torch
from torch import nn

from rlcourse.baselines import (
    batch_mean_baseline,
    flat_gradient,
    gradient_variance,
    group_advantages,
    leave_one_out_baseline,
    optimal_baseline,
    score_functions,
)
from rlcourse.envs import TabularPolicy, TokenMDP
from rlcourse.rnn import RNNPolicy

NAN = float("nan")
EXACT = dict(rtol=0, atol=1e-10)
BASELINES = [batch_mean_baseline, leave_one_out_baseline]


def by_loop(returns, mask, own):
    """The mean over the rows that still go on at t, with or without one's own."""
    B, T = mask.shape
    expected = torch.zeros(B, T, dtype=torch.float64)
    for i, t in itertools.product(range(B), range(T)):
        others = [returns[j, t].item() for j in range(B) if mask[j, t] and (own or j != i)]
        if mask[i, t] and others:
            expected[i, t] = statistics.fmean(others)
    return expected


def randomise(policy, randn):
    for parameter in policy.parameters():
        parameter.data = randn(*parameter.shape)
    return policy


@pytest.fixture
def mdp():
    return TokenMDP(2, 2, lambda actions, mask: 3 + actions * mask - 2.0 * (actions.cumsum(1) == 0), eos=1)


@pytest.fixture
def equal_lengths():
    return TokenMDP(2, 2, lambda actions, mask: 3 + actions - 2.0 * (actions.cumsum(1) == 0))


@pytest.fixture
def policy(randn):
    return randomise(TabularPolicy(2, 2, memory=0), randn)  # parameters shared by all states


def expected_estimate(mdp, policy, baseline, B):
    """The exact mean over every batch of B texts of mean_rows( sum_t score_t * (G_t - b_t) )."""
    scores = score_functions(policy, mdp.inputs, mdp.actions) * mdp.mask[..., None]
    to_go = mdp.rewards.flip(1).cumsum(1).flip(1) * mdp.mask
    p = mdp.probabilities(policy).detach()
    total = 0
    for batch in itertools.product(range(len(mdp)), repeat=B):
        batch = list(batch)
        advantages = to_go[batch] - baseline(to_go[batch], mdp.mask[batch])
        total = total + p[batch].prod() * torch.einsum("btd,bt->d", scores[batch], advantages) / B
    return total


# batch_mean_baseline, leave_one_out_baseline


@pytest.mark.parametrize("T", [1, 2, 7])
@pytest.mark.parametrize("baseline", BASELINES)
def test_the_baseline_is_the_mean_over_rows_that_still_go_on(baseline, T, randn, prefix_mask):
    returns, mask = randn(6, T), prefix_mask(T)
    expected = by_loop(returns, mask, own=baseline is batch_mean_baseline)
    torch.testing.assert_close(baseline(returns, mask), expected, **EXACT)


def test_baselines_by_hand():
    returns, mask = (
        torch.tensor([[1.0, 2.0], [3.0, 6.0], [8.0, 9.0]]),
        torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]]),
    )
    assert batch_mean_baseline(returns, mask).tolist() == [[4, 4], [4, 4], [4, 0]]
    assert leave_one_out_baseline(returns, mask).tolist() == [[5.5, 6], [4.5, 2], [2, 0]]


@pytest.mark.parametrize("baseline, alone", [(batch_mean_baseline, 5.0), (leave_one_out_baseline, 0.0)])
def test_one_row_is_compared_with_itself_or_with_nothing(baseline, alone):
    assert baseline(torch.tensor([[5.0, 5.0]]), torch.tensor([[1.0, 0.0]])).tolist() == [[alone, 0]]


@pytest.mark.parametrize("baseline", BASELINES)
def test_baselines_ignore_what_is_masked(baseline, randn, prefix_mask):
    returns, mask = randn(6, 5), prefix_mask(5)
    assert torch.equal(baseline(torch.where(mask > 0, returns, NAN), mask), baseline(returns, mask))


@pytest.mark.parametrize("baseline", BASELINES)
def test_baselines_name_bad_input(baseline):
    with pytest.raises(ValueError, match=r"returns must have the shape of mask \(2, 3\), got \(2,\)"):
        baseline(torch.ones(2), torch.ones(2, 3))
    with pytest.raises(ValueError, match="mask must hold only 0 and 1"):
        baseline(torch.ones(2, 3), torch.full((2, 3), 0.5))


@pytest.mark.parametrize("B", [1, 2, 3])
def test_leave_one_out_leaves_the_expected_gradient_alone(mdp, equal_lengths, policy, B):
    for world in (mdp, equal_lengths):
        mean = expected_estimate(world, policy, leave_one_out_baseline, B)
        torch.testing.assert_close(mean, world.gradient(policy), **EXACT)


@pytest.mark.parametrize("B", [1, 2, 3])
def test_the_batch_mean_shrinks_the_expected_gradient_to_b_minus_1_over_b(equal_lengths, policy, B):
    mean = expected_estimate(equal_lengths, policy, batch_mean_baseline, B)
    torch.testing.assert_close(mean, equal_lengths.gradient(policy) * (B - 1) / B, **EXACT)
    assert equal_lengths.gradient(policy).norm() > 0.1


# group_advantages


@pytest.mark.parametrize("G", [2, 3, 6])
def test_group_advantages_by_loop(G, randn):
    scores = randn(2 * G)
    expected = {"mean": [], "leave_one_out": [], "std": []}
    for i, score in enumerate(scores.tolist()):
        group = scores.tolist()[i // G * G : i // G * G + G]
        others = [x for k, x in enumerate(group) if k != i % G]
        expected["mean"].append(score - statistics.fmean(group))
        expected["leave_one_out"].append(score - statistics.fmean(others))
        expected["std"].append((score - statistics.fmean(group)) / (statistics.stdev(group) + 1e-4))
    for kind, numbers in expected.items():
        assert group_advantages(scores, G, kind).tolist() == pytest.approx(numbers, abs=1e-10)
    assert group_advantages(scores, G).tolist() == pytest.approx(expected["leave_one_out"], abs=1e-10)


def expected_group_estimate(mdp, policy, kind, G):
    """The exact mean over every group of G texts of mean_rows( advantage * grad log p(text) )."""
    scores = (score_functions(policy, mdp.inputs, mdp.actions) * mdp.mask[..., None]).sum(1)
    p, returns, total = mdp.probabilities(policy).detach(), mdp.returns(), 0
    for group in itertools.product(range(len(mdp)), repeat=G):
        group = list(group)
        total = total + p[group].prod() * group_advantages(returns[group], G, kind) @ scores[group] / G
    return total


@pytest.mark.parametrize("G", [2, 3])
def test_leave_one_out_is_the_gradient_and_the_mean_a_part_of_it_and_the_std_another(mdp, randn, G):
    policy = randomise(TabularPolicy(2, 2), randn)
    gradient = mdp.gradient(policy)
    torch.testing.assert_close(expected_group_estimate(mdp, policy, "leave_one_out", G), gradient, **EXACT)
    torch.testing.assert_close(expected_group_estimate(mdp, policy, "mean", G), gradient * (G - 1) / G, **EXACT)
    other = expected_group_estimate(mdp, policy, "std", G)
    assert torch.cosine_similarity(other, gradient, dim=0) < 0.999 and other @ gradient > 0


@pytest.mark.parametrize("kind", ["mean", "leave_one_out", "std"])
def test_equal_scores_teach_nothing_and_groups_do_not_mix(kind):
    advantages = group_advantages(torch.tensor([0.1, 0.1, 0.1, 5.0, 6.0, 7.0]), 3, kind)
    assert advantages[:3].abs().max() < 1e-3 and advantages[3] < -0.9 and advantages[5] > 0.9


@pytest.mark.parametrize("size", [1, 0, 4, 2.0])
def test_group_advantages_name_bad_input(size):
    with pytest.raises(ValueError, match=f"at least 2 that divides the 6 scores, got {size!r}"):
        group_advantages(torch.ones(6), size)
    with pytest.raises(ValueError, match=r"scores must be \[B\], got \(2, 3\)"):
        group_advantages(torch.ones(2, 3), 3)
    with pytest.raises(ValueError, match='kind must be "mean", "leave_one_out" or "std", got \'rloo\''):
        group_advantages(torch.ones(6), 3, "rloo")


# optimal_baseline


def second_moment(coefficients, scores, returns, features, weights):
    """E | sum_t score_t * (return_t - features_t . c) |^2 in loops."""
    total = 0.0
    for n, weight in enumerate(weights.tolist()):
        estimate = [0.0] * scores.shape[2]
        for t in range(scores.shape[1]):
            baseline = sum(f * c for f, c in zip(features[n, t].tolist(), coefficients))
            for d in range(len(estimate)):
                estimate[d] += scores[n, t, d].item() * (returns[n, t].item() - baseline)
        total += weight * sum(x**2 for x in estimate)
    return total


def problem(mdp, policy, features=None):
    scores = score_functions(policy, mdp.inputs, mdp.actions).detach() * mdp.mask[..., None]
    to_go = mdp.rewards.flip(1).cumsum(1).flip(1) * mdp.mask
    if features is None:
        features = torch.stack([torch.ones_like(to_go), mdp.states.double() ** 2], dim=2)
    return scores, to_go, features, mdp.probabilities(policy).detach()


@pytest.mark.parametrize("memory", [0, None])
def test_moving_any_coefficient_of_the_optimal_baseline_makes_it_worse(mdp, memory, randn):
    arguments = problem(mdp, randomise(TabularPolicy(2, 2, memory), randn))
    best = optimal_baseline(*arguments).tolist()
    smallest = second_moment(best, *arguments)
    for k, step in itertools.product(range(2), (-1e-2, 1e-2, 1.0)):
        moved = [c + step * (j == k) for j, c in enumerate(best)]
        assert second_moment(moved, *arguments) > smallest + 1e-7


def test_the_optimal_baseline_lowers_the_variance_and_keeps_the_mean(mdp, policy):
    scores, to_go, features, _ = problem(mdp, policy)
    coefficients = optimal_baseline(scores, to_go, features, mdp.probabilities(policy).detach())
    plain, plain_variance = mdp.moments(policy, torch.einsum("ntd,nt->nd", scores, to_go))
    mean, variance = mdp.moments(policy, torch.einsum("ntd,nt->nd", scores, to_go - features @ coefficients))
    torch.testing.assert_close(mean, plain, **EXACT)
    assert variance < 0.5 * plain_variance


def test_one_constant_feature_and_one_action_give_the_textbook_formula(randn):
    policy = randomise(TabularPolicy(4, 1), randn)
    mdp = TokenMDP(4, 1, lambda actions, mask: 2.0 + actions[:, 0] ** 2)
    scores, returns, _, p = problem(mdp, policy)
    squares = [sum(x * x for x in row[0]) for row in scores.tolist()]
    above = sum(w * s * g for w, s, g in zip(p.tolist(), squares, returns[:, 0].tolist()))
    expected = above / sum(w * s for w, s in zip(p.tolist(), squares))
    assert optimal_baseline(scores, returns, torch.ones(4, 1, 1).double(), p).item() == pytest.approx(
        expected, abs=1e-10
    )


def test_equal_returns_are_subtracted_whole(mdp, policy):
    scores, _, features, p = problem(mdp, policy)
    torch.testing.assert_close(optimal_baseline(scores, 7 * mdp.mask, features, p).tolist(), [7.0, 0.0], **EXACT)


def test_the_optimal_baseline_bears_features_that_repeat_or_are_never_seen(mdp, policy):
    scores, to_go, features, p = problem(mdp, policy)
    more = torch.cat([features, features[..., :1], torch.zeros_like(features[..., :1])], dim=2)
    arguments, wider = (scores, to_go, features, p), (scores, to_go, more, p)
    best = second_moment(optimal_baseline(*arguments).tolist(), *arguments)
    coefficients = optimal_baseline(*wider).tolist()
    assert second_moment(coefficients, *wider) == pytest.approx(best, abs=1e-8)
    assert coefficients[0] == pytest.approx(coefficients[2], abs=1e-6) and coefficients[3] == pytest.approx(0)


@pytest.mark.parametrize(
    "name, shape", [("scores", (4, 3, 5)), ("returns", (4, 1)), ("features", (3, 2, 1)), ("weights", (2,))]
)
def test_optimal_baseline_names_bad_input(name, shape):
    arguments = dict(scores=(4, 2, 5), returns=(4, 2), features=(4, 2, 1), weights=(4,)) | {name: shape}
    with pytest.raises(ValueError, match=r"expected scores \[N, T, D\], .* weights \[N\], got \["):
        optimal_baseline(**{name: torch.ones(shape) for name, shape in arguments.items()})


# gradient_variance


def test_gradient_variance_is_the_sum_of_the_sample_variances(randn):
    estimates = randn(7, 3) * torch.tensor([1.0, 5.0, 0.1]).double() + 4
    expected = sum(statistics.variance(column) for column in estimates.T.tolist())
    assert gradient_variance(estimates).item() == pytest.approx(expected, rel=1e-12)
    assert gradient_variance(torch.tensor([[0.0, 1.0], [2.0, 1.0]])).item() == 2


@pytest.mark.parametrize("shape", [(1, 3), (4,), (2, 3, 4)])
def test_gradient_variance_names_bad_input(shape):
    with pytest.raises(ValueError, match=r"estimates must be \[N, D\] with N of at least 2, got \("):
        gradient_variance(torch.ones(shape))


# score_functions, flat_gradient


@pytest.mark.parametrize("kind", ["table", "gru", "lstm"])
def test_score_functions_are_one_gradient_after_the_other(kind, randn):
    policy = TabularPolicy(3, 3, memory=1) if kind == "table" else RNNPolicy(3, 2, kind).double()
    randomise(policy, randn)
    inputs, actions = torch.tensor([[0], [2], [1]]), torch.tensor([[1, 0], [2, 2], [0, 1]])
    scores, parameters = score_functions(policy, inputs, actions), list(policy.parameters())
    assert scores.shape == (3, 2, sum(p.numel() for p in parameters))
    for b, t in itertools.product(range(3), range(2)):
        logprobs, _ = policy.evaluate(inputs, actions)
        gradients = torch.autograd.grad(logprobs[b, t], parameters, allow_unused=True)
        expected = [
            x for p, g in zip(parameters, gradients) for x in (torch.zeros_like(p) if g is None else g).flatten()
        ]
        torch.testing.assert_close(scores[b, t].tolist(), [x.item() for x in expected], **EXACT)


def test_the_score_of_a_table_is_one_hot_minus_probabilities():
    policy = TabularPolicy(2, 1)
    policy.logits_table.data = torch.tensor([[0.0, math.log(3)]]).double()
    scores = score_functions(policy, torch.zeros(2, 0, dtype=torch.long), torch.tensor([[0], [1]]))
    torch.testing.assert_close(scores[:, 0].tolist(), [[0.75, -0.75, 0.0], [-0.25, 0.25, 0.0]])


def test_flat_gradient_keeps_the_order_of_parameters_and_fills_with_zeros():
    policy = nn.ParameterList([torch.tensor([1.0, 2.0]), torch.tensor([5.0]), torch.tensor([[3.0], [4.0]])])
    gradient = flat_gradient((policy[0] * torch.tensor([10.0, 20.0])).sum() - (policy[2] ** 2).sum(), policy)
    assert gradient.tolist() == [10, 20, 0, -6, -8]
    assert all(parameter.grad is None for parameter in policy)
