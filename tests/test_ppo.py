import copy
import dataclasses
import math
import statistics

import pytest
import torch
from torch import nn

from rlcourse.losses import clipped_surrogate_loss
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.rollout import Prompts, Rollout

B, T, V = 6, 4, 3
NAN = float("nan")
UNCLIPPED = 1e9
STATISTICS = {
    "policy_loss",
    "value_loss",
    "entropy",
    "approx_kl",
    "clip_frac",
    "first_ratio",
    "explained_variance",
    "grad_norm",
}


class TablePolicy(nn.Module):
    """Logits and a value for each state and position. An input is the number of a state; no two rows share one."""

    def __init__(self, logits, values):
        super().__init__()
        self.logits, self.values = nn.Parameter(logits), nn.Parameter(values)
        self.seen = []  # the inputs of every call

    def evaluate(self, inputs, actions, with_entropy=False):
        self.seen.append(inputs.tolist())
        policy = torch.distributions.Categorical(logits=self.logits[inputs])
        out = policy.log_prob(actions), self.values[inputs]
        return (*out, policy.entropy()) if with_entropy else out


@pytest.fixture
def policy(randn):
    return TablePolicy(randn(8, T, V), randn(8, T))


@pytest.fixture
def rollout(policy, prefix_mask, generator):
    """Sampled from `policy`. Row b is about state (5, 0, 7, 2, 6, 3)[b]."""
    inputs = torch.tensor([5, 0, 7, 2, 6, 3])
    probabilities = policy.logits.detach()[inputs].softmax(-1).view(-1, V)
    actions = torch.multinomial(probabilities, 1, generator=generator).view(B, T)
    with torch.no_grad():
        logprobs, values = policy.evaluate(inputs, actions)
    policy.seen.clear()
    return Rollout(inputs, actions, prefix_mask(T), logprobs, values)


@pytest.fixture
def targets(randn):
    """Advantages and returns, unlike each other and far from whitened."""
    return 3 * randn(B, T) + 2, randn(B, T)


def config(**changed):
    return PPOConfig(**dict(epochs=1, minibatches=1, max_grad_norm=UNCLIPPED) | changed)


def update(policy, rollout, targets, lr=1.0, policy_loss_fn=clipped_surrogate_loss, **changed):
    optimizer = torch.optim.SGD(policy.parameters(), lr=lr)
    return ppo_update(policy, optimizer, rollout, *targets, config(**changed), policy_loss_fn)


def counted(rollout):
    return [(b, t) for b in range(len(rollout)) for t in range(T) if rollout.mask[b, t]]


def whitened(advantages, rollout):
    """{(b, t): advantage} with mean 0 and population variance 1 over the whole rollout."""
    numbers = {(b, t): advantages[b, t].item() for b, t in counted(rollout)}
    mean, variance = statistics.fmean(numbers.values()), statistics.pvariance(numbers.values())
    return {where: (number - mean) / math.sqrt(variance + 1e-8) for where, number in numbers.items()}


def probabilities_of(policy, rollout, b, t):
    return policy.logits[rollout.inputs[b], t].detach().softmax(0).tolist()


def entropy_of(probabilities):
    return -sum(p * math.log(p) for p in probabilities)


def gradient_by_hand(policy, rollout, advantages, returns, rows, vf_coef, ent_coef):
    """Of the loss on the minibatch `rows`, at ratio 1, in closed form."""
    logits, values = torch.zeros_like(policy.logits), torch.zeros_like(policy.values)
    white = whitened(advantages, rollout)
    places = [(b, t) for b, t in counted(rollout) if b in rows]
    for b, t in places:
        state, p = rollout.inputs[b], probabilities_of(policy, rollout, b, t)
        for v in range(V):
            dlogprob = (v == rollout.actions[b, t].item()) - p[v]
            dentropy = -p[v] * (math.log(p[v]) + entropy_of(p))
            logits[state, t, v] = (-white[b, t] * dlogprob - ent_coef * dentropy) / len(places)
        values[state, t] = vf_coef * (policy.values[state, t].item() - returns[b, t].item()) / len(places)
    return logits, values


# one step


@pytest.mark.parametrize("minibatches", [1, 2, 6])
def test_an_epoch_steps_along_the_gradient_worked_out_by_hand(minibatches, policy, rollout, targets):
    before = copy.deepcopy(policy)
    update(policy, rollout, targets, minibatches=minibatches, vf_coef=0.7, ent_coef=0.3)
    logits, values = before.logits.detach().clone(), before.values.detach().clone()
    assert len(policy.seen) == minibatches
    for states in policy.seen:  # the minibatches share no state, so the steps do not interact
        rows = [rollout.inputs.tolist().index(state) for state in states]
        step = gradient_by_hand(before, rollout, *targets, rows, vf_coef=0.7, ent_coef=0.3)
        logits, values = logits - step[0], values - step[1]
    torch.testing.assert_close(policy.logits.data, logits, rtol=0, atol=1e-10)
    torch.testing.assert_close(policy.values.data, values, rtol=0, atol=1e-10)


def test_what_was_better_than_average_becomes_likelier(policy, rollout, targets):
    before = copy.deepcopy(policy)
    update(policy, rollout, targets, lr=0.1)
    for (b, t), advantage in whitened(targets[0], rollout).items():
        action = rollout.actions[b, t]
        change = probabilities_of(policy, rollout, b, t)[action] - probabilities_of(before, rollout, b, t)[action]
        assert change * advantage > 0


def test_values_move_towards_the_returns(policy, rollout, targets):
    before = copy.deepcopy(policy)
    update(policy, rollout, targets, lr=0.1)
    for b, t in counted(rollout):
        state = rollout.inputs[b]
        change = (policy.values - before.values)[state, t]
        assert change * (targets[1][b, t] - before.values[state, t]) > 0


def test_the_value_clip_is_about_the_values_at_sampling_time(policy, rollout):
    nn.init.constant_(policy.values, 1.0)
    rollout = dataclasses.replace(rollout, values=torch.zeros_like(rollout.values))
    targets = torch.zeros(B, T), torch.full((B, T), 3.0)
    update(policy, rollout, targets, value_clip_eps=0.5)  # 1 is farther than 0.5 from 0: no further push towards 3
    assert (policy.values == 1).all()
    update(policy, rollout, targets, value_clip_eps=None)
    assert (policy.values > 1).any()


def test_the_entropy_bonus_raises_entropy(policy, rollout):
    before, zeros = copy.deepcopy(policy), torch.zeros(B, T)
    update(policy, rollout, (zeros, zeros), ent_coef=0.0)
    assert torch.equal(policy.logits, before.logits)
    update(policy, rollout, (zeros, zeros), ent_coef=0.1)
    for b, t in counted(rollout):
        new, old = (entropy_of(probabilities_of(p, rollout, b, t)) for p in (policy, before))
        assert new > old


def test_gradients_are_scaled_down_to_max_grad_norm(policy, rollout, targets):
    before, free = copy.deepcopy(policy), copy.deepcopy(policy)
    update(free, rollout, targets)
    stats = update(policy, rollout, targets, max_grad_norm=0.01)
    step, free_step = (
        torch.cat([(p - q).flatten() for p, q in zip(new.parameters(), before.parameters())]).detach()
        for new in (policy, free)
    )
    assert step.norm().item() == pytest.approx(0.01, rel=1e-3)
    assert torch.cosine_similarity(step, free_step, dim=0).item() == pytest.approx(1)
    assert stats["grad_norm"] == pytest.approx(free_step.norm().item(), rel=1e-6)  # as it was before the scaling


def test_rows_in_which_nothing_counts_change_nothing(policy, rollout, targets):
    alone = copy.deepcopy(policy)
    stats_alone = update(alone, rollout, targets, epochs=3)

    def extended(x, filler):
        return torch.cat([x, torch.full((2, T), filler, dtype=x.dtype)])

    longer = Rollout(
        inputs=torch.cat([rollout.inputs, torch.tensor([1, 4])]),
        actions=extended(rollout.actions, 0),
        mask=extended(rollout.mask, 0.0),
        old_logprobs=extended(rollout.old_logprobs, -math.inf),
        values=extended(rollout.values, NAN),
    )
    stats = update(policy, longer, [extended(x, NAN) for x in targets], epochs=3)
    for new, expected in zip(policy.parameters(), alone.parameters()):
        torch.testing.assert_close(new, expected)
    assert stats == pytest.approx(stats_alone, abs=1e-6)


def test_a_rollout_in_which_nothing_counts_changes_nothing(policy, rollout, targets):
    before = copy.deepcopy(policy)
    rollout = dataclasses.replace(rollout, mask=torch.zeros(B, T))
    stats = update(policy, rollout, targets, minibatches=3)
    assert torch.equal(policy.logits, before.logits) and torch.equal(policy.values, before.values)
    assert math.isnan(stats.pop("explained_variance"))  # there is no variance to explain
    assert all(math.isfinite(number) for number in stats.values())


# epochs and minibatches


def test_every_epoch_sees_every_row_once_in_a_new_order(policy, rollout, targets):
    update(policy, rollout, targets, epochs=5, minibatches=4)
    assert len(policy.seen) == 5 * 4
    epochs = [[state for states in policy.seen[4 * i : 4 * i + 4] for state in states] for i in range(5)]
    assert all(sorted(epoch) == sorted(rollout.inputs.tolist()) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_same_seed_same_run_bit_for_bit(policy, rollout, targets):
    def run(seed):
        torch.manual_seed(seed)
        trained = copy.deepcopy(policy)
        stats = update(trained, rollout, targets, epochs=3, minibatches=3)
        return trained, stats

    (a, stats_a), (b, stats_b), (c, _) = run(1), run(1), run(2)
    assert torch.equal(a.logits, b.logits) and torch.equal(a.values, b.values) and stats_a == stats_b
    assert a.seen != c.seen


def test_target_kl_stops_after_the_epoch_that_exceeds_it(policy, rollout, targets):
    drifted = dataclasses.replace(rollout, old_logprobs=rollout.old_logprobs - 1)  # k3 = e - 2 = 0.718 at once
    settings = dict(epochs=5, minibatches=2, lr=0.0)
    for target_kl, calls in [(0.7, 2), (0.73, 10), (None, 10)]:
        policy.seen.clear()
        update(policy, drifted, targets, target_kl=target_kl, **settings)
        assert len(policy.seen) == calls


def test_target_kl_lets_the_policy_move_first(policy, rollout, targets):
    update(policy, rollout, targets, epochs=5, target_kl=1e-9)
    assert len(policy.seen) == 2  # KL is 0 in the first epoch, before the step


def test_the_policy_loss_can_be_replaced(policy, rollout, targets):
    calls = []

    def frozen(*arguments):
        calls.append(arguments)
        return arguments[0].sum() * 0 + 42

    before, white = copy.deepcopy(policy), whitened(targets[0], rollout)
    stats = update(policy, rollout, targets, policy_loss_fn=frozen, minibatches=3, clip_eps=0.3, ent_coef=0.0)
    assert stats["policy_loss"] == 42
    assert torch.equal(policy.logits, before.logits)  # the clipped surrogate would have moved them
    assert len(calls) == 3
    for states, (logprobs, old_logprobs, advantages, mask, clip_eps) in zip(policy.seen, calls):
        rows = [rollout.inputs.tolist().index(state) for state in states]
        assert clip_eps == 0.3 and logprobs.requires_grad
        assert torch.equal(old_logprobs, rollout.old_logprobs[rows]) and torch.equal(mask, rollout.mask[rows])
        torch.testing.assert_close(logprobs.detach(), rollout.old_logprobs[rows])
        expected = torch.tensor([[white.get((b, t), 0.0) for t in range(T)] for b in rows], dtype=torch.float64)
        torch.testing.assert_close(advantages, expected)


# statistics


def test_statistics_are_floats_under_these_names(policy, rollout, targets):
    stats = update(policy, rollout, targets, epochs=2, minibatches=3)
    assert set(stats) == STATISTICS
    assert all(type(number) is float for number in stats.values())


@pytest.mark.parametrize("minibatches", [1, 4])
def test_the_ratio_is_1_before_the_first_step(minibatches, policy, rollout, targets):
    stats = update(policy, rollout, targets, epochs=3, minibatches=minibatches)
    assert stats["first_ratio"] == pytest.approx(1, abs=1e-6)
    assert stats["approx_kl"] > 1e-4  # but not after it


def test_statistics_of_one_step_by_hand(policy, rollout, targets):
    before, where, n = copy.deepcopy(policy), counted(rollout), len(counted(rollout))
    gradient = gradient_by_hand(policy, rollout, *targets, range(B), vf_coef=0.5, ent_coef=0.2)
    stats = update(policy, rollout, targets, ent_coef=0.2)
    errors = [before.values[rollout.inputs[b], t].item() - targets[1][b, t].item() for b, t in where]
    entropies = [entropy_of(probabilities_of(before, rollout, b, t)) for b, t in where]
    assert stats["policy_loss"] == pytest.approx(0, abs=1e-6)  # minus the mean of whitened advantages
    assert stats["value_loss"] == pytest.approx(sum(error**2 for error in errors) / n / 2)
    assert stats["entropy"] == pytest.approx(sum(entropies) / n)
    assert stats["grad_norm"] == pytest.approx(math.hypot(*(x.norm().item() for x in gradient)))
    assert stats["approx_kl"] == pytest.approx(0, abs=1e-6) and stats["clip_frac"] == 0


def test_ratio_statistics_by_hand(policy, rollout, targets, randn):
    """A rollout sampled by another policy: new - old log-probabilities are `drift`."""
    drift = 0.3 * randn(B, T)
    drift[1, 2] = -1.5  # the farthest from 0; row 1 counts in full
    rollout = dataclasses.replace(rollout, old_logprobs=rollout.old_logprobs - drift)
    stats = update(policy, rollout, targets, clip_eps=0.05)
    drifts = [drift[b, t].item() for b, t in counted(rollout)]
    k3 = [math.exp(x) - 1 - x for x in drifts]  # of KL(old || new): the actions were drawn from the old policy
    assert stats["approx_kl"] == pytest.approx(statistics.fmean(k3))
    assert stats["clip_frac"] == pytest.approx(statistics.fmean(abs(math.exp(x) - 1) > 0.05 for x in drifts))
    assert stats["first_ratio"] == pytest.approx(math.exp(-1.5))
    terms = []
    for (b, t), advantage in whitened(targets[0], rollout).items():
        ratio = math.exp(drift[b, t])
        terms.append(-min(ratio * advantage, min(max(ratio, 0.95), 1.05) * advantage))
    assert stats["policy_loss"] == pytest.approx(statistics.fmean(terms))


def test_statistics_average_the_steps_and_kl_the_last_epoch(policy, rollout, targets):
    before, after = copy.deepcopy(policy), copy.deepcopy(policy)
    update(after, rollout, targets, lr=3.0)
    stats = update(policy, rollout, targets, lr=3.0, epochs=2)
    entropies = [entropy_of(probabilities_of(p, rollout, b, t)) for p in (before, after) for b, t in counted(rollout)]
    drifts = []
    for b, t in counted(rollout):
        new, old = (probabilities_of(p, rollout, b, t)[rollout.actions[b, t]] for p in (after, before))
        drifts.append(math.log(new / old))
    clipped = [abs(math.exp(x) - 1) > 0.2 for x in drifts]
    assert stats["entropy"] == pytest.approx(statistics.fmean(entropies))
    assert stats["approx_kl"] == pytest.approx(statistics.fmean(math.exp(x) - 1 - x for x in drifts), rel=1e-5)
    assert stats["clip_frac"] == pytest.approx((0 + statistics.fmean(clipped)) / 2) and any(clipped)


@pytest.mark.parametrize(
    "values_of, expected",
    [
        (lambda returns: returns, 1.0),
        (lambda returns: returns + 5, 1.0),  # a constant error is no variance
        (lambda returns: 0 * returns + 3, 0.0),
        (lambda returns: 0.5 * returns, 0.75),
        (lambda returns: -returns, -3.0),  # var(2 * returns) is four times var(returns)
    ],
)
def test_explained_variance_of_the_values_at_sampling_time(values_of, expected, policy, rollout, targets):
    rollout = dataclasses.replace(rollout, values=torch.where(rollout.mask > 0, values_of(targets[1]), 99.0))
    stats = update(policy, rollout, targets, epochs=2, minibatches=2)
    assert stats["explained_variance"] == pytest.approx(expected, abs=1e-6)


def test_explained_variance_by_hand(policy, rollout, targets):
    stats = update(policy, rollout, targets)
    returns = [targets[1][b, t].item() for b, t in counted(rollout)]
    errors = [targets[1][b, t].item() - rollout.values[b, t].item() for b, t in counted(rollout)]
    expected = 1 - statistics.pvariance(errors) / statistics.pvariance(returns)
    assert stats["explained_variance"] == pytest.approx(expected)


# bad input


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(advantages=torch.ones(B)), r"advantages must have the shape of mask \(6, 4\), got \(6,\)"),
        (dict(returns=torch.ones(B, T + 1)), r"returns must have the shape of mask \(6, 4\), got \(6, 5\)"),
        (dict(cfg=config(minibatches=7)), "minibatches is 7 but the rollout has only 6 rows"),
    ],
)
def test_ppo_update_names_bad_input_before_any_step(changed, message, policy, rollout):
    arguments = dict(advantages=torch.ones(B, T), returns=torch.ones(B, T), cfg=config()) | changed
    with pytest.raises(ValueError, match=message):
        ppo_update(policy, torch.optim.SGD(policy.parameters(), lr=1.0), rollout, **arguments)
    assert policy.seen == []


def test_config_has_eight_fields_and_is_frozen():
    names = [field.name for field in dataclasses.fields(PPOConfig)]
    assert names == "epochs minibatches clip_eps value_clip_eps vf_coef ent_coef max_grad_norm target_kl".split()
    with pytest.raises(dataclasses.FrozenInstanceError):
        PPOConfig().epochs = 3


@pytest.mark.parametrize("name", ["epochs", "minibatches", "clip_eps", "max_grad_norm"])
@pytest.mark.parametrize("number", [0, -1, NAN])
def test_config_names_what_must_be_positive(name, number):
    with pytest.raises(ValueError, match=f"{name} must be positive, got {number}"):
        PPOConfig(**{name: number})


@pytest.mark.parametrize("name", ["value_clip_eps", "target_kl"])
def test_config_names_what_must_be_positive_or_none(name):
    assert getattr(PPOConfig(**{name: None}), name) is None
    for number in (0, -0.1, NAN):
        with pytest.raises(ValueError, match=f"{name} must be positive or None, got {number}"):
            PPOConfig(**{name: number})


# nothing is computed behind the end of a response


class TextPolicy(TablePolicy):
    """The same table, asked with `Prompts`: its id is the state. It need not score all T actions."""

    def evaluate(self, inputs, actions, with_entropy=False):
        self.seen.append(tuple(actions.shape))
        states, T = inputs.ids[:, 0], actions.shape[1]
        policy = torch.distributions.Categorical(logits=self.logits[states, :T])
        out = policy.log_prob(actions), self.values[states, :T]
        return (*out, policy.entropy()) if with_entropy else out


@pytest.mark.parametrize("lengths", [(4, 4, 4, 3, 4, 4), (1, 0, 1, 4, 2, 4), (0, 0, 1, 0, 0, 0)])
@pytest.mark.parametrize("minibatches", [1, 3, 6])
def test_what_lies_behind_the_ends_of_texts_is_not_computed_and_nothing_else_changes(
    lengths, minibatches, policy, rollout, targets
):
    texts = TextPolicy(policy.logits.detach().clone(), policy.values.detach().clone())
    rollout = dataclasses.replace(rollout, mask=(torch.arange(T) < torch.tensor(lengths)[:, None]).double())
    ids = rollout.inputs[:, None]
    as_text = dataclasses.replace(rollout, inputs=Prompts(ids, torch.ones_like(ids), torch.ones(B)))
    stats = []
    for model, batch in ((policy, rollout), (texts, as_text)):
        torch.manual_seed(0)
        stats.append(update(model, batch, targets, epochs=2, minibatches=minibatches, ent_coef=0.3))
    assert stats[0] == pytest.approx(stats[1], nan_ok=True)
    torch.testing.assert_close(texts.logits, policy.logits)
    torch.testing.assert_close(texts.values, policy.values)
    torch.manual_seed(0)
    shapes = []
    for rows in [rows for _ in range(2) for rows in torch.randperm(B).tensor_split(minibatches)]:
        widths = sorted(max(1, lengths[row]) for row in rows)
        half = (len(widths) + 1) // 2
        halves = [(len(x), x[-1]) for x in (widths[:half], widths[half:]) if x]
        apart = sum(n * width for n, width in halves)
        shapes += halves if apart <= 0.8 * len(widths) * widths[-1] else [(len(widths), widths[-1])]
    assert texts.seen == shapes
