import itertools
import math

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from rlcourse.losses import (
    clip_fraction,
    clipped_surrogate_loss,
    entropy,
    exact_kl,
    grpo_loss,
    kl_estimate,
    reinforce_loss,
    sequence_ratio,
    sequence_surrogate_loss,
    value_loss,
)

NAN, INF = float("nan"), float("inf")

# Every response over the tokens 0, 1, 2 with at most two tokens, where 0 ends it: 0, 10, 11, 12, 20, 21, 22.
# logits[s] belong to state s: 0 before the first token, else the first token. Padding repeats the token 0.
ACTIONS = torch.tensor([[0, 0], [1, 0], [1, 1], [1, 2], [2, 0], [2, 1], [2, 2]])
STATES = torch.tensor([[0, 0], [0, 1], [0, 1], [0, 1], [0, 2], [0, 2], [0, 2]])
MASK = torch.tensor([[1, 0], [1, 1], [1, 1], [1, 1], [1, 1], [1, 1], [1, 1]]).double()


def tree_logprobs(logits):
    return logits.log_softmax(-1)[STATES, ACTIONS]


def tree_probabilities(logits):
    """The probability of each of the seven responses."""
    return (tree_logprobs(logits) * MASK).sum(1).exp()


def reward_to_go(rewards):
    """[7, 2] from rewards[state, action]: what each response earns from an action on."""
    r = rewards[STATES, ACTIONS] * MASK
    return torch.stack([r[:, 0] + r[:, 1], r[:, 1]], dim=1)


def true_gradient(logits, rewards):
    """grad J by autograd, J = sum over responses of probability * reward."""
    J = (tree_probabilities(logits) * (rewards[STATES, ACTIONS] * MASK).sum(1)).sum()
    return torch.autograd.grad(J, logits)[0]


def expected_gradient(loss_fn, logits, advantages, num_rows):
    """The gradient of loss_fn averaged over all batches of `num_rows` responses, each weighted with its probability."""
    probabilities, total = tree_probabilities(logits).detach(), 0
    for batch in itertools.product(range(len(ACTIONS)), repeat=num_rows):
        loss = loss_fn(tree_logprobs(logits)[list(batch)], advantages[list(batch)], MASK[list(batch)])
        total = total + probabilities[list(batch)].prod() * torch.autograd.grad(loss, logits)[0]
    return total


# reinforce_loss


@pytest.mark.parametrize("num_rows", [1, 2])
@pytest.mark.parametrize("baseline", [0.0, 5.0])
def test_reinforce_gradient_is_minus_the_policy_gradient(num_rows, baseline, randn):
    logits, rewards = randn(3, 3).requires_grad_(), randn(3, 3)
    gradient = expected_gradient(reinforce_loss, logits, reward_to_go(rewards) - baseline, num_rows)
    assert tree_probabilities(logits).sum().item() == pytest.approx(1)
    torch.testing.assert_close(gradient, -true_gradient(logits, rewards), rtol=0, atol=1e-10)


def test_a_mean_over_tokens_is_not_the_policy_gradient(randn):
    logits, rewards = randn(3, 3).requires_grad_(), randn(3, 3)
    token_mean = expected_gradient(lambda l, a, m: -(l * a * m).sum() / m.sum(), logits, reward_to_go(rewards), 1)
    cosine = torch.cosine_similarity(token_mean.flatten(), -true_gradient(logits, rewards).flatten(), dim=0)
    assert cosine < 0.98  # another direction, so no learning rate mends it


def test_reinforce_by_hand():
    logprobs, advantages = torch.tensor([[-1.0, -2.0], [-3.0, -9.0]]), torch.tensor([[1.0, 2.0], [-1.0, 9.0]])
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    assert reinforce_loss(logprobs, advantages, mask) == 1.0  # -((-1 - 4) + 3) / 2 rows


def test_reinforce_raises_what_was_better_than_expected():
    logprobs = torch.full((1, 2), -1.0, requires_grad=True)
    reinforce_loss(logprobs, torch.tensor([[2.0, -3.0]]), torch.ones(1, 2)).backward()
    assert logprobs.grad.tolist() == [[-2.0, 3.0]]  # descent moves against it


def test_reinforce_counts_rows_in_which_nothing_counts():
    ones = torch.ones(1, 2)
    padded = reinforce_loss(-torch.ones(2, 2), torch.ones(2, 2), torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    assert reinforce_loss(-ones, ones, ones) == 2 and padded == 1


# clipped_surrogate_loss


def surrogate(log_ratio, advantages, mask, clip_eps=0.2):
    """Value, and gradient in logprobs, of the loss at the given log-ratios."""
    logprobs = (log_ratio - 1.0).requires_grad_()
    loss = clipped_surrogate_loss(logprobs, torch.full_like(log_ratio, -1.0), advantages, mask, clip_eps)
    return loss.item(), torch.autograd.grad(loss, logprobs)[0]


@pytest.mark.parametrize(
    "advantage, ratio, value, gradient",
    [
        (2.0, 1.5, -2.4, 0.0),  # better, already much likelier: paid up to 1.2, no further push
        (2.0, 1.1, -2.2, -2.2),
        (2.0, 0.9, -1.8, -1.8),
        (2.0, 0.5, -1.0, -1.0),  # better, but less likely: full push back up
        (-2.0, 1.5, 3.0, 3.0),  # worse, and likelier: charged in full
        (-2.0, 1.1, 2.2, 2.2),
        (-2.0, 0.9, 1.8, 1.8),
        (-2.0, 0.5, 1.6, 0.0),  # worse, already much less likely: paid up to 0.8, no further push
    ],
)
def test_clip_table(advantage, ratio, value, gradient):
    one = torch.ones(1, 1, dtype=torch.float64)
    got_value, got_gradient = surrogate(math.log(ratio) * one, advantage * one, one)
    assert got_value == pytest.approx(value)
    assert got_gradient.item() == pytest.approx(gradient)


@pytest.mark.parametrize("clip_eps", [0.1, 0.5])
def test_surrogate_is_a_mean_over_the_counted_actions(clip_eps, randn, prefix_mask):
    log_ratio, advantages, mask = randn(6, 7), randn(6, 7), prefix_mask(7)
    terms = []
    for b, t in mask.nonzero().tolist():
        ratio, advantage = math.exp(log_ratio[b, t]), advantages[b, t].item()
        bound = 1 + clip_eps if advantage > 0 else 1 - clip_eps
        better_by_more = (ratio - bound) * advantage > 0
        terms.append((bound if better_by_more else ratio) * advantage)
    value, _ = surrogate(log_ratio, advantages, mask, clip_eps)
    assert value == pytest.approx(-sum(terms) / len(terms))


def test_at_ratio_1_ppo_is_reinforce_times_rows_per_counted_action(randn, prefix_mask):
    advantages, mask = randn(6, 7), prefix_mask(7)
    value, gradient = surrogate(torch.zeros_like(mask), advantages, mask)
    logprobs = randn(6, 7).requires_grad_()
    (reinforce,) = torch.autograd.grad(reinforce_loss(logprobs, advantages, mask), logprobs)
    torch.testing.assert_close(gradient, reinforce * 6 / mask.sum())
    assert value == pytest.approx(-(advantages * mask).sum().item() / mask.sum().item())


@pytest.mark.parametrize("clip_eps", [0, -0.2, NAN])
@pytest.mark.parametrize(
    "call",
    [
        lambda x, eps: clipped_surrogate_loss(x, x, x, x, eps),
        lambda x, eps: value_loss(x, x, x, x, eps),
        lambda x, eps: grpo_loss(x, x, x, x, eps),
        lambda x, eps: sequence_surrogate_loss(x, x, x[:, 0], x, eps),
        lambda x, eps: clip_fraction(x, x, x, eps),
    ],
)
def test_clip_eps_must_be_positive(call, clip_eps):
    with pytest.raises(ValueError, match=f"clip_eps must be positive, got {clip_eps}"):
        call(torch.ones(1, 2), clip_eps)


# grpo_loss


def grpo_by_loop(log_ratio, log_ref_ratio, advantages, mask, clip_eps, kl_coef):
    """log_ratio: new - old; log_ref_ratio: ref - new."""
    total = 0.0
    for b in range(len(mask)):
        row, length = 0.0, int(mask[b].sum())
        for t in range(length):
            ratio, A = math.exp(log_ratio[b, t]), advantages[b].item()
            bound = 1 + clip_eps if A > 0 else 1 - clip_eps
            gain = (bound if (ratio - bound) * A > 0 else ratio) * A
            row += gain - kl_coef * (math.exp(log_ref_ratio[b, t]) - log_ref_ratio[b, t].item() - 1)
        total += row / length if length else 0.0
    return -total / len(mask)


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_grpo_is_a_mean_over_actions_then_one_over_rows(kl_coef, randn, prefix_mask):
    logprobs, log_ratio, log_ref_ratio, advantages = randn(6, 7), randn(6, 7), randn(6, 7), randn(6)
    mask = prefix_mask(7)
    ref = logprobs + log_ref_ratio if kl_coef else None
    got = grpo_loss(logprobs, logprobs - log_ratio, advantages, mask, 0.2, ref, kl_coef)
    assert got.item() == pytest.approx(
        grpo_by_loop(log_ratio, log_ref_ratio, advantages, mask, 0.2, kl_coef), abs=1e-10
    )
    per_action = grpo_loss(logprobs, logprobs - log_ratio, advantages[:, None] * mask, mask, 0.2, ref, kl_coef)
    torch.testing.assert_close(per_action, got)


def test_grpo_of_equal_lengths_is_ppo_and_of_unequal_ones_is_not(randn, prefix_mask):
    logprobs, old, advantages = randn(6, 7), randn(6, 7), randn(6, 7)
    ones, mask = torch.ones(6, 7).double(), prefix_mask(7)
    torch.testing.assert_close(
        grpo_loss(logprobs, old, advantages, ones), clipped_surrogate_loss(logprobs, old, advantages, ones)
    )
    assert (
        grpo_loss(logprobs, old, advantages, mask) - clipped_surrogate_loss(logprobs, old, advantages, mask)
    ).abs() > 0.01


def test_grpo_gradient_at_ratio_1_by_hand():
    logprobs = torch.tensor([[0.5, 0.25, 1.0], [0.5, 1.0, 1.0]]).log().requires_grad_()
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    ref = torch.tensor([[0.5, 0.5, 1.0], [0.25, 1.0, 1.0]]).log()
    loss = grpo_loss(logprobs, logprobs.detach(), torch.tensor([2.0, -1.0]), mask, 0.2, ref, kl_coef=0.5)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    # per action -(A - 0.5 * (1 - ref / pi)) / length / 2 rows
    expected = [[-2 / 4, -(2 - 0.5 * (1 - 2)) / 4, 0], [-(-1 - 0.5 * (1 - 0.5)) / 2, 0, 0]]
    torch.testing.assert_close(gradient, torch.tensor(expected))


def test_grpo_takes_another_estimator_and_needs_a_reference(randn):
    x, ref, ones = randn(2, 3), randn(2, 3), torch.ones(2, 3).double()
    k1 = grpo_loss(x, x, torch.zeros(2), ones, 0.2, ref, 1.0, "k1")
    torch.testing.assert_close(k1, (x - ref).mean())
    with pytest.raises(ValueError, match=r"kl_coef is 0\.1, which needs ref_logprobs"):
        grpo_loss(x, x, torch.zeros(2), ones, kl_coef=0.1)
    with pytest.raises(ValueError, match=r"advantages must be \[B\] or \[B, T\] for mask \(2, 3\), got \(3,\)"):
        grpo_loss(x, x, torch.zeros(3), ones)


# sequence_ratio, sequence_surrogate_loss


@pytest.mark.parametrize("normalise", [True, False])
def test_sequence_ratio_by_loop(normalise, randn, prefix_mask):
    logprobs, old, mask = randn(6, 7), randn(6, 7), prefix_mask(7)
    expected = []
    for b, length in enumerate(mask.sum(1).long().tolist()):
        product = math.prod(math.exp(logprobs[b, t] - old[b, t]) for t in range(length))
        expected.append(product ** (1 / max(length, 1) if normalise else 1))
    assert sequence_ratio(logprobs, old, mask, normalise).tolist() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    "advantage, log_ratios, normalise, value, gradient",
    [
        (2.0, [0.1, 0.2], False, -2.4, 0.0),  # exp(0.3) = 1.35: paid up to 1.2, and both actions lose their gradient
        (2.0, [0.1, 0.2], True, -2 * math.exp(0.15), -2 * math.exp(0.15) / 2),
        (-2.0, [0.1, 0.2], False, 2 * math.exp(0.3), 2 * math.exp(0.3)),
        (-2.0, [-0.3, -0.2], True, 2 * 0.8, 0.0),
        (2.0, [-0.3, -0.2], False, -2 * math.exp(-0.5), -2 * math.exp(-0.5)),
    ],
)
def test_sequence_clip_table(advantage, log_ratios, normalise, value, gradient):
    logprobs = torch.tensor([log_ratios], requires_grad=True)
    loss = sequence_surrogate_loss(
        logprobs, torch.zeros(1, 2), torch.tensor([advantage]), torch.ones(1, 2), 0.2, normalise
    )
    assert loss.item() == pytest.approx(value, rel=1e-5)
    assert torch.autograd.grad(loss, logprobs)[0].tolist() == [pytest.approx([gradient] * 2, rel=1e-5)]


def test_the_product_of_ratios_gives_the_true_gradient_far_from_the_old_policy_and_the_others_do_not(randn):
    old, logits, rewards = randn(3, 3), randn(3, 3).requires_grad_(), randn(3, 3)
    gradient, weights = true_gradient(logits, rewards), tree_probabilities(old)
    total = (rewards[STATES, ACTIONS] * MASK).sum(1)
    old_logprobs = tree_logprobs(old)

    def expected(one):
        rows = [one(tree_logprobs(logits)[[i]], old_logprobs[[i]], total[[i]], MASK[[i]]) for i in range(len(MASK))]
        return torch.autograd.grad(-(weights @ torch.stack(rows)), logits)[0]

    product = expected(lambda *x: sequence_surrogate_loss(*x, 1e9, normalise=False))
    torch.testing.assert_close(product, gradient, rtol=0, atol=1e-10)
    for other in (lambda *x: sequence_surrogate_loss(*x, 1e9), lambda *x: grpo_loss(*x, 1e9)):
        assert torch.cosine_similarity(expected(other).flatten(), gradient.flatten(), dim=0) < 0.99


def test_sequence_surrogate_names_bad_input():
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match=r"advantages must be \[B\] for mask \(2, 3\), got \(2, 3\)"):
        sequence_surrogate_loss(x, x, x, x)


# value_loss


def test_value_loss_is_half_the_mean_squared_error(randn, prefix_mask):
    values, targets, mask = randn(6, 7).requires_grad_(), randn(6, 7), prefix_mask(7)
    loss = value_loss(values, targets, mask)
    errors = torch.zeros(6, 7, dtype=torch.float64)
    for b, t in mask.nonzero().tolist():
        errors[b, t] = values[b, t].item() - targets[b, t].item()
    n = len(mask.nonzero())
    assert loss.item() == pytest.approx(sum(error**2 for error in errors.flatten().tolist()) / n / 2)
    torch.testing.assert_close(torch.autograd.grad(loss, values)[0], errors / n)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    "value, target, expected, gradient",
    [
        (2.0, 3.0, 6.25 / 2, 0.0),  # moved by 2, may move by 0.5: held at 0.5, and the larger error counts
        (2.0, 0.0, 4.0 / 2, 2.0),  # moved away from the target: the unclipped error is the larger
        (0.25, 1.0, 0.5625 / 2, -0.75),  # within 0.5: as if unclipped
    ],
)
def test_value_clip_counts_the_larger_error(value, target, expected, gradient, sign):
    one = torch.ones(1, 1)
    values = (sign * value * one).requires_grad_()
    loss = value_loss(values, sign * target * one, one, old_values=0 * one, clip_eps=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(expected)
    assert values.grad.item() == pytest.approx(sign * gradient)


def test_value_clip_is_measured_from_the_old_values():
    one = torch.ones(1, 1)
    loss = value_loss(5 * one, 7 * one, one, old_values=4 * one, clip_eps=0.5)
    assert loss.item() == (4.5 - 7) ** 2 / 2
    assert value_loss(5 * one, 7 * one, one, old_values=4 * one).item() == (5 - 7) ** 2 / 2


def test_value_clip_needs_old_values():
    with pytest.raises(ValueError, match="clip_eps needs old_values"):
        value_loss(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2), clip_eps=0.2)


# kl_estimate


def test_k1_and_k3_are_unbiased_and_k2_is_not(randn):
    logits, other = randn(3, 3), randn(3, 3)
    logp, logq = tree_logprobs(logits), tree_logprobs(other)
    kl = sum(math.exp(p) * (p - q) for p, q in zip((logp * MASK).sum(1).tolist(), (logq * MASK).sum(1).tolist()))

    def expectation(kind):
        return (tree_probabilities(logits) * kl_estimate(logp, logq, MASK, kind).sum(1)).sum().item()

    assert expectation("k1") == pytest.approx(kl, abs=1e-10)
    assert expectation("k3") == pytest.approx(kl, abs=1e-10)
    assert abs(expectation("k2") - kl) > 0.01


def test_kl_estimates_by_hand():
    logprobs, other = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    ones, log = torch.ones(1, 2), math.log
    k1, k2, k3 = (kl_estimate(logprobs, other, ones, kind)[0].tolist() for kind in ("k1", "k2", "k3"))
    assert k1 == pytest.approx([log(1.8), log(0.2)], abs=1e-6)  # likelier than under the other: positive
    assert k2 == pytest.approx([log(1.8) ** 2 / 2, log(0.2) ** 2 / 2], abs=1e-6)
    assert k3 == pytest.approx([1 / 1.8 - 1 + log(1.8), 5 - 1 + log(0.2)], abs=1e-6)


def test_k1_is_the_default(randn):
    logprobs, other = randn(2, 3), randn(2, 3)
    torch.testing.assert_close(kl_estimate(logprobs, other, torch.ones(2, 3)), logprobs - other)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_estimate_signs(kind, randn):
    logprobs, other, ones = randn(6, 7), randn(6, 7), torch.ones(6, 7)
    estimate = kl_estimate(logprobs, other, ones, kind)
    assert (estimate < 0).any() == (kind == "k1")
    assert (kl_estimate(other, other, ones, kind) == 0).all()


def test_k3_of_a_tiny_difference_does_not_cancel():
    k3 = kl_estimate(torch.tensor([[0.0]]), torch.tensor([[-1e-4]]), torch.ones(1, 1), "k3").item()
    assert k3 == pytest.approx(1e-8 / 2, rel=0.01, abs=0)  # in float32 exp(-d) - 1 + d is -1.7e-8


def test_expected_gradients_of_the_estimators(randn):
    logits, logq = randn(5).requires_grad_(), randn(5).log_softmax(0)
    p = logits.softmax(0).detach()
    ones = torch.ones(5, 1, dtype=torch.float64)  # five rows of one action: every action once

    def of_estimate(kind):
        estimate = kl_estimate(logits.log_softmax(0)[:, None], logq[:, None], ones, kind)[:, 0]
        return torch.autograd.grad((p * estimate).sum(), logits)[0]

    logp = logits.log_softmax(0)
    (of_kl,) = torch.autograd.grad((logp.exp() * (logp - logq)).sum(), logits)
    logp = logits.log_softmax(0)
    (of_forward_kl,) = torch.autograd.grad((logq.exp() * (logq - logp)).sum(), logits)
    torch.testing.assert_close(of_estimate("k1"), torch.zeros_like(p), rtol=0, atol=1e-10)
    torch.testing.assert_close(of_estimate("k2"), of_kl, rtol=0, atol=1e-10)
    torch.testing.assert_close(of_estimate("k3"), of_forward_kl, rtol=0, atol=1e-10)
    assert (of_kl - of_forward_kl).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["k4", "K1", None, 3])
def test_kl_estimate_names_an_unknown_kind(kind):
    with pytest.raises(ValueError, match=f'kind must be "k1", "k2" or "k3", got {kind!r}'):
        kl_estimate(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2), kind)


# exact_kl and entropy


def test_exact_kl_is_that_of_torch_distributions(randn, prefix_mask):
    logits, other, mask = 3 * randn(6, 7, 5), 3 * randn(6, 7, 5), prefix_mask(7)
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=other)) * mask
    torch.testing.assert_close(exact_kl(logits, other, mask).double(), expected, rtol=1e-5, atol=1e-5)


def test_exact_kl_has_a_direction():
    logits, other = torch.tensor([[[0.9, 0.1]]]).log(), torch.tensor([[[0.5, 0.5]]]).log()
    forward, backward = exact_kl(logits, other, torch.ones(1, 1)), exact_kl(other, logits, torch.ones(1, 1))
    assert forward.item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2), abs=1e-6)  # 0.368
    assert backward.item() == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5), abs=1e-6)  # 0.511


def test_exact_kl_is_zero_only_between_equals(randn):
    logits, ones = randn(6, 7, 5), torch.ones(6, 7)
    assert exact_kl(logits, logits + 3, ones).abs().max() < 1e-6  # a shift of all logits is the same policy
    assert exact_kl(logits, randn(6, 7, 5), ones).min() > 0


def test_entropy_is_that_of_torch_distributions(randn, prefix_mask):
    logits, mask = 3 * randn(6, 7, 5), prefix_mask(7)
    expected = Categorical(logits=logits).entropy() * mask
    torch.testing.assert_close(entropy(logits, mask).double(), expected, rtol=1e-5, atol=1e-5)


def test_entropy_runs_from_zero_to_log_V():
    logits = torch.tensor([[[2.0, 2.0, 2.0, 2.0], [100.0, 0.0, 0.0, 0.0]]])
    assert entropy(logits, torch.ones(1, 2))[0].tolist() == pytest.approx([math.log(4), 0], abs=1e-6)


def test_kl_and_entropy_are_computed_in_float32(randn):
    logits, other, ones = randn(2, 3, 50).bfloat16(), randn(2, 3, 50).bfloat16(), torch.ones(2, 3)
    p, q = Categorical(logits=logits.double()), Categorical(logits=other.double())
    torch.testing.assert_close(entropy(logits, ones), p.entropy().float())
    torch.testing.assert_close(exact_kl(logits, other, ones), kl_divergence(p, q).float())


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(logits=torch.ones(2, 3)), r"logits must be \[B, T, V\] for mask \(2, 3\), got \(2, 3\)"),
        (dict(logits=torch.ones(2, 4, 5)), r"logits must be \[B, T, V\] for mask \(2, 3\), got \(2, 4, 5\)"),
        (dict(other_logits=torch.ones(2, 3, 6)), r"other_logits must be \[B, T, V\] .* got \(2, 3, 6\)"),
        (dict(mask=torch.ones(3)), r"mask must be \[B, T\], got shape \(3,\)"),
        (dict(mask=torch.full((2, 3), 2.0)), "mask must hold only 0 and 1"),
    ],
)
def test_kl_and_entropy_name_bad_input(changed, message):
    arguments = dict(logits=torch.ones(2, 3, 5), other_logits=torch.ones(2, 3, 5), mask=torch.ones(2, 3)) | changed
    with pytest.raises(ValueError, match=message):
        exact_kl(**arguments)
    if "other_logits" not in changed:
        with pytest.raises(ValueError, match=message):
            entropy(arguments["logits"], arguments["mask"])


# clip_fraction


@pytest.mark.parametrize(
    "ratios, clip_eps, expected",
    [
        ([1.3, 0.9, 1.1, 1.0], 0.2, 0.25),
        ([0.7, 0.9, 1.1, 1.0], 0.2, 0.25),  # too small counts as well
        ([0.7, 1.3, 1.25, 1.0], 0.2, 0.75),
        ([0.7, 1.3, 1.25, 1.0], 0.28, 0.5),
        ([1.0, 1.0, 1.0, 1.0], 0.2, 0.0),
    ],
)
def test_clip_fraction_by_hand(ratios, clip_eps, expected):
    logprobs = torch.tensor([[*ratios, 9.0], [9.0] * 5]).log()
    mask = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0], [0.0] * 5])
    assert clip_fraction(logprobs, torch.zeros(2, 5), mask, clip_eps) == expected
    assert clip_fraction(-logprobs, -2 * logprobs, mask, clip_eps) == expected  # the ratio of new to old
    assert clip_fraction(logprobs, torch.zeros(2, 5), 0 * mask, clip_eps) == 0


# all of them

PER_ACTION = {
    "reinforce": lambda x, y, m: reinforce_loss(x, y, m),
    "surrogate, new logprobs": lambda x, y, m: clipped_surrogate_loss(x, y, torch.ones_like(x), m),
    "surrogate, advantages": lambda x, y, m: clipped_surrogate_loss(x, torch.zeros_like(x), y, m),
    "grpo": lambda x, y, m: grpo_loss(x, y, torch.ones(len(x)), m),
    "grpo, advantages": lambda x, y, m: grpo_loss(x, torch.zeros_like(x), y, m),
    "grpo, reference": lambda x, y, m: grpo_loss(x, torch.zeros_like(x), torch.zeros(len(x)), m, 0.2, y, 0.5),
    "sequence surrogate": lambda x, y, m: 1 + sequence_surrogate_loss(x, y, torch.ones(len(x)), m),
    "product of ratios": lambda x, y, m: sequence_ratio(x, y, m, normalise=False) - 1,
    "value": lambda x, y, m: value_loss(x, y, m),
    "clipped value": lambda x, y, m: value_loss(x, y, m, torch.zeros_like(x), 0.2),
    "clipped value, old values": lambda x, y, m: value_loss(x, torch.zeros_like(x), m, y, 0.2),
    "k1": lambda x, y, m: kl_estimate(x, y, m, "k1"),
    "k2": lambda x, y, m: kl_estimate(x, y, m, "k2"),
    "k3": lambda x, y, m: kl_estimate(x, y, m, "k3"),
}


@pytest.mark.parametrize("filler", [-1e4, 1e4, INF, -INF, NAN])
@pytest.mark.parametrize("dirty", ["x", "y"])
@pytest.mark.parametrize("name", PER_ACTION)
def test_what_is_masked_leaks_neither_forward_nor_backward(name, dirty, filler, randn, prefix_mask):
    mask, results = prefix_mask(7), []
    clean = dict(x=-randn(6, 7).abs(), y=-randn(6, 7).abs())
    for fill in (0.0, filler):
        x, y = (torch.where(mask > 0, tensor, fill if key == dirty else 0.0) for key, tensor in clean.items())
        x.requires_grad_()
        out = PER_ACTION[name](x, y, mask)
        results.append((out.detach(), torch.autograd.grad(out.sum(), x)[0]))
    torch.testing.assert_close(results[1], results[0])
    assert (results[1][1][mask == 0] == 0).all()
    assert results[1][0].isfinite().all()


@pytest.mark.parametrize("name", PER_ACTION)
def test_nothing_counted_is_zero(name, randn):
    x = randn(2, 3).requires_grad_()
    out = PER_ACTION[name](x, randn(2, 3), torch.zeros(2, 3))
    assert (out == 0).all()
    assert (torch.autograd.grad(out.sum(), x)[0] == 0).all()


def test_only_logprobs_and_values_carry_gradient(randn):
    x, ones = randn(2, 3).requires_grad_(), torch.ones(2, 3)
    fixed = [randn(2, 3).requires_grad_() for _ in range(5)]
    loss = reinforce_loss(x, fixed[0], ones) + clipped_surrogate_loss(x, fixed[1], fixed[2], ones)
    (loss + value_loss(x, fixed[3], ones, fixed[4], clip_eps=0.2)).backward()
    assert x.grad is not None and all(tensor.grad is None for tensor in fixed)


@pytest.mark.parametrize(
    "function, names",
    [
        (reinforce_loss, ["logprobs", "advantages"]),
        (clipped_surrogate_loss, ["logprobs", "old_logprobs", "advantages"]),
        (value_loss, ["values", "returns"]),
        (lambda **x: grpo_loss(**x, advantages=torch.ones(2)), ["logprobs", "old_logprobs"]),
        (lambda **x: sequence_surrogate_loss(**x, advantages=torch.ones(2)), ["logprobs", "old_logprobs"]),
        (kl_estimate, ["logprobs", "other_logprobs"]),
        (lambda **x: clip_fraction(**x, clip_eps=0.2), ["logprobs", "old_logprobs"]),
        (lambda **x: value_loss(x["values"], x["values"], x["mask"], x["old_values"], 0.2), ["values", "old_values"]),
    ],
)
def test_wrong_shapes_and_masks_are_named(function, names):
    good = {name: torch.ones(2, 3) for name in [*names, "mask"]}
    function(**good)
    for name in names:
        with pytest.raises(ValueError, match=rf"^{name} must have the shape of mask \(2, 3\), got \(2, 1\)"):
            function(**good | {name: torch.ones(2, 1)})
    with pytest.raises(ValueError, match="mask must hold only 0 and 1"):
        function(**good | dict(mask=torch.full((2, 3), 0.5)))
    with pytest.raises(TypeError, match=r"mask must hold .* got torch.bool"):
        function(**good | dict(mask=torch.ones(2, 3) > 0))


def test_forbidden_tokens_add_nothing():
    logits = torch.tensor([[[1.0, 2.0, -math.inf]]], requires_grad=True)
    other, one = torch.tensor([[[0.5, 0.5, -math.inf]]]), torch.ones(1, 1)
    kl, h = exact_kl(logits, other, one), entropy(logits, one)
    torch.testing.assert_close(kl, exact_kl(logits[..., :2], other[..., :2], one))
    torch.testing.assert_close(h, entropy(logits[..., :2], one))
    (gradient,) = torch.autograd.grad((kl + h).sum(), logits)
    assert gradient.isfinite().all()


def test_kl_and_entropy_keep_float64():
    logits = torch.tensor([[[1.0, 2.0]]], dtype=torch.float64)
    assert exact_kl(logits, logits, torch.ones(1, 1)).dtype == entropy(logits, torch.ones(1, 1)).dtype == torch.float64
