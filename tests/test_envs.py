import itertools
import math
import re

import pytest
import torch

from rlcourse import envs
from rlcourse.envs import TabularPolicy, TokenMDP
from rlcourse.rnn import RNNPolicy

SHAPES = [(2, 1, None), (2, 1, 0), (3, 2, 2), (2, 4, None), (2, 4, 1), (3, 3, 0)]  # V, T, EOS
EXACT = dict(rtol=0, atol=1e-10)


# What is known without the package: texts are tuples of tokens, a policy is a dictionary from prefix to probabilities


def write(V, T, eos, prefix=()):
    """Every text, in lexicographic order."""
    if len(prefix) == T or (eos is not None and eos in prefix):
        return [prefix]
    return [text for token in range(V) for text in write(V, T, eos, (*prefix, token))]


def prefixes(V, T):
    """Every state in its numbering: shorter ones first, then in lexicographic order."""
    return [prefix for t in range(T) for prefix in itertools.product(range(V), repeat=t)]


def as_dictionary(policy, V, T, eos=None):
    """{prefix: (probabilities, value)} from the tables, for a policy without `memory`."""
    logits, values = policy.logits_table.tolist(), policy.values_table.tolist()
    table = {}
    for prefix, row, value in zip(prefixes(V, T), logits, values):
        if eos not in prefix:
            weights = [math.exp(x) for x in row]
            table[prefix] = [w / sum(weights) for w in weights], value
    return table


def probability(pi, text):
    return math.prod(pi[text[:t]][0][token] for t, token in enumerate(text))


def token_reward(prefix):
    """Of the last token, and of those before it: no symmetry, and nothing that is 0."""
    return sum((k + 1) * math.sin(1 + 3 * token + k) for k, token in enumerate(prefix)) - 0.3 * len(prefix)


def per_token(actions, mask):
    return torch.tensor(
        [[token_reward(tuple(row[: t + 1])) for t in range(len(row))] for row in actions.tolist()], dtype=torch.float64
    )


def per_text(actions, mask):
    lengths = mask.sum(1).int().tolist()
    return torch.tensor([token_reward(tuple(row[:n])) for row, n in zip(actions.tolist(), lengths)]).double()


def paid(text, reward):
    """The rewards of a text as a list."""
    if reward is per_token:
        return [token_reward(text[: t + 1]) for t in range(len(text))]
    return [0.0] * (len(text) - 1) + [torch.tensor(token_reward(text)).double().item()]


def q_by_hand(pi, V, T, eos, reward, gamma):
    """{(prefix, action): Q}: what the rest of every text that goes on from there pays, times its probability."""
    texts = write(V, T, eos)
    q = {}
    for prefix, action in itertools.product(pi, range(V)):
        t, total = len(prefix), 0.0
        for text in texts:
            if text[: t + 1] == (*prefix, action):
                rest = math.prod(pi[text[:k]][0][text[k]] for k in range(t + 1, len(text)))
                total += rest * sum(gamma**k * r for k, r in enumerate(paid(text, reward)[t:]))
        q[prefix, action] = total
    return q


def as_table(q, V, T):
    """The package's [S, V]: 0 after EOS."""
    rows = [[q.get((prefix, action), 0.0) for action in range(V)] for prefix in prefixes(V, T)]
    return torch.tensor(rows, dtype=torch.float64)


def randomise(policy, randn):
    for parameter in policy.parameters():
        parameter.data = randn(*parameter.shape).to(parameter.dtype)
    return policy


@pytest.fixture(params=SHAPES, ids=str)
def world(request, randn):
    """MDP, random tabular policy, the same as a dictionary, and V, T, EOS; rewarded token by token."""
    V, T, eos = request.param
    policy = randomise(TabularPolicy(V, T), randn)
    return TokenMDP(V, T, per_token, eos), policy, as_dictionary(policy, V, T, eos), (V, T, eos)


def policies(V, T, randn):
    yield randomise(TabularPolicy(V, T), randn)
    for memory in range(T):
        yield randomise(TabularPolicy(V, T, memory), randn)
    for kind in ("gru", "lstm"):
        yield randomise(RNNPolicy(V, 3, kind).double(), randn)


# The listing


@pytest.mark.parametrize("V, T, eos", SHAPES)
@pytest.mark.parametrize("reward", [per_token, per_text])
def test_every_text_is_listed_once_in_order_with_its_mask_states_and_rewards(V, T, eos, reward):
    mdp, texts, states = TokenMDP(V, T, reward, eos), write(V, T, eos), prefixes(V, T)
    assert len(mdp) == len(texts) and mdp.num_states == len(states)
    assert mdp.inputs.shape == (len(texts), 0) and mdp.inputs.dtype == torch.long
    for n, text in enumerate(texts):
        rest = T - len(text)
        assert mdp.actions[n].tolist() == [*text, *[eos] * rest]
        assert mdp.mask[n].tolist() == [1.0] * len(text) + [0.0] * rest
        assert mdp.states[n, : len(text)].tolist() == [states.index(text[:t]) for t in range(len(text))]
        assert mdp.rewards[n].tolist() == paid(text, reward) + [0.0] * rest
    assert mdp.mask.dtype == mdp.rewards.dtype == torch.float64


def test_eos_first_is_a_text_of_one_token_that_counts():
    mdp = TokenMDP(2, 3, lambda actions, mask: 7 + mask.sum(1), eos=0)
    assert mdp.actions[0].tolist() == [0, 0, 0] and mdp.mask[0].tolist() == [1, 0, 0]
    assert mdp.rewards[0].tolist() == [8, 0, 0] and mdp.rewards[-1].tolist() == [0, 0, 10]


def test_pay_gives_the_rewards_of_any_texts_the_reward_of_a_text_at_its_end():
    mdp = TokenMDP(3, 4, lambda actions, mask: (actions * mask).sum(1))
    actions = torch.tensor([[2, 1, 0, 2], [1, 2, 2, 2]])
    for mask in (torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()):
        assert mdp.pay(actions, mask).tolist() == [[0, 0, 0, 5], [0, 3, 0, 0]]


def test_a_reward_may_be_a_list_of_numbers():
    mdp = TokenMDP(2, 2, lambda actions, mask: [float(row[0] - row[1]) for row in actions.tolist()])
    assert mdp.rewards.tolist() == [[0, 0], [0, -1], [0, 1], [0, 0]]


@pytest.mark.parametrize("V, T, eos", SHAPES)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_batches_are_all_tuples_of_texts(V, T, eos, size):
    mdp = TokenMDP(V, T, per_token, eos)
    if len(mdp) ** size <= 4096:
        expected = [list(batch) for batch in itertools.product(range(len(mdp)), repeat=size)]
        assert mdp.batches(size).tolist() == expected


def test_the_probabilities_of_all_batches_sum_to_1(randn):
    mdp, policy = TokenMDP(2, 3, per_token, eos=1), randomise(TabularPolicy(2, 3), randn)
    p = mdp.probabilities(policy)[mdp.batches(3)].prod(1)
    assert len(p) == 4**3 and p.sum().item() == pytest.approx(1, abs=1e-12)


# What a text and a policy are worth


def test_probabilities_are_products_along_the_text_and_sum_to_1(world):
    mdp, policy, pi, shape = world
    expected = [probability(pi, text) for text in write(*shape)]
    torch.testing.assert_close(mdp.probabilities(policy).tolist(), expected, **EXACT)
    torch.testing.assert_close(mdp.logprobs(policy).tolist(), [math.log(p) for p in expected], **EXACT)
    assert sum(expected) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("reward", [per_token, per_text])
def test_returns_and_expected_return_are_the_sums_that_define_them(world, gamma, reward):
    mdp, policy, pi, (V, T, eos) = world
    mdp = TokenMDP(V, T, reward, eos)
    returns = [sum(gamma**t * r for t, r in enumerate(paid(text, reward))) for text in write(V, T, eos)]
    expected = sum(probability(pi, text) * g for text, g in zip(write(V, T, eos), returns))
    torch.testing.assert_close(mdp.returns(gamma).tolist(), returns, **EXACT)
    assert mdp.expected_return(policy, gamma).item() == pytest.approx(expected, abs=1e-12)


def test_gamma_is_1_unless_it_is_given(world):
    mdp, policy, *_ = world
    for name in ("expected_return", "gradient", "gradient_by_score", "q_values", "values", "advantages"):
        torch.testing.assert_close(getattr(mdp, name)(policy), getattr(mdp, name)(policy, 1.0), **EXACT)
    assert torch.equal(mdp.returns(), mdp.returns(1.0))
    assert torch.equal(mdp.optimal_q_values(), mdp.optimal_q_values(1.0))


@pytest.mark.parametrize("V, T, eos", SHAPES)
@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_three_roads_lead_to_the_same_j_and_two_to_the_same_gradient(V, T, eos, gamma, randn):
    mdp = TokenMDP(V, T, per_token, eos)
    for policy in policies(V, T, randn):
        j = mdp.expected_return(policy, gamma).item()
        rollout = mdp.rollout(policy)
        by_rollout = rollout.old_logprobs.sum(1).exp() @ mdp.returns(gamma)
        assert mdp.values(policy, gamma)[0].item() == pytest.approx(j, abs=1e-10)
        assert by_rollout.item() == pytest.approx(j, abs=1e-10)
        gradient = mdp.gradient(policy, gamma)
        assert gradient.shape == (sum(p.numel() for p in policy.parameters()),)
        torch.testing.assert_close(mdp.gradient_by_score(policy, gamma), gradient, **EXACT)


@pytest.mark.parametrize("gamma", [1.0, 0.6])
def test_the_gradient_is_reach_times_probability_times_advantage(world, gamma):
    """dJ/dlogit(s, a) = P(s) * gamma^t * pi(a|s) * (Q(s, a) - V(s)); nothing for the values."""
    mdp, policy, pi, (V, T, eos) = world
    q = q_by_hand(pi, V, T, eos, per_token, gamma)
    expected = {}
    for prefix, (p, _) in pi.items():
        reach = gamma ** len(prefix) * math.prod(pi[prefix[:t]][0][token] for t, token in enumerate(prefix))
        v = sum(p[a] * q[prefix, a] for a in range(V))
        expected |= {(prefix, a): reach * p[a] * (q[prefix, a] - v) for a in range(V)}
    logits, values = mdp.gradient(policy, gamma).split([mdp.num_states * V, mdp.num_states])
    torch.testing.assert_close(logits.view(-1, V), as_table(expected, V, T), **EXACT)
    assert (values == 0).all()


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_the_gradient_of_a_recurrent_policy_is_the_finite_difference(kind, randn):
    mdp, policy = TokenMDP(2, 3, per_token, eos=1), randomise(RNNPolicy(2, 2, kind).double(), randn)
    gradient, differences, h = mdp.gradient(policy), [], 1e-6
    for parameter in policy.parameters():
        for i in range(parameter.numel()):
            j = []
            for step in (h, -2 * h, h):
                parameter.data.view(-1)[i] += step
                j.append(mdp.expected_return(policy).item())
            differences.append((j[0] - j[1]) / (2 * h))
    torch.testing.assert_close(gradient.tolist(), differences, rtol=0, atol=1e-8)


def test_a_better_action_gets_a_larger_logit():
    mdp = TokenMDP(2, 1, lambda actions, mask: actions[:, 0].double())
    assert mdp.gradient(TabularPolicy(2, 1)).tolist() == [-0.25, 0.25, 0]


def test_moments_are_mean_and_total_variance_over_texts(world, randn):
    mdp, policy, pi, shape = world
    texts, estimates = write(*shape), randn(len(mdp), 3)
    p = [probability(pi, text) for text in texts]
    mean, variance = mdp.moments(policy, estimates)
    columns = estimates.T.tolist()
    expected = [sum(w * x for w, x in zip(p, column)) for column in columns]
    torch.testing.assert_close(mean.tolist(), expected, **EXACT)
    spread = sum(w * (x - m) ** 2 for column, m in zip(columns, expected) for w, x in zip(p, column))
    assert variance.item() == pytest.approx(spread, abs=1e-12) and not mean.requires_grad


def test_the_moments_of_the_score_times_return_have_the_gradient_as_mean(randn):
    mdp, policy = TokenMDP(2, 3, per_token, eos=0), randomise(TabularPolicy(2, 3), randn)
    scores = torch.stack([torch.autograd.grad(x, policy.logits_table)[0].flatten() for x in _each(mdp, policy)])
    mean, _ = mdp.moments(policy, scores * mdp.returns()[:, None])
    torch.testing.assert_close(mean, mdp.gradient(policy)[: scores.shape[1]], **EXACT)


def _each(mdp, policy):
    return [mdp.logprobs(policy)[n] for n in range(len(mdp))]


def test_policies_in_float32_are_good_to_six_digits(randn):
    mdp, policy = TokenMDP(3, 3, per_token, eos=2), randomise(RNNPolicy(3, 4), randn)
    reference = randomise(RNNPolicy(3, 4), randn)
    single = [
        mdp.expected_return(policy).item(),
        *mdp.gradient(policy).tolist(),
        *mdp.gradient_by_score(policy).tolist(),
        *mdp.moments(policy, torch.ones(len(mdp), 2))[0].tolist(),
        mdp.regularised_return(policy, reference, 0.5).item(),
        *mdp.optimal_policy(reference, 0.5).logits_table.flatten().tolist(),
    ]
    policy, reference = policy.double(), reference.double()
    double = [
        mdp.expected_return(policy).item(),
        *mdp.gradient(policy).tolist(),
        *mdp.gradient_by_score(policy).tolist(),
        1.0,
        1.0,
        mdp.regularised_return(policy, reference, 0.5).item(),
        *mdp.optimal_policy(reference, 0.5).logits_table.flatten().tolist(),
    ]
    torch.testing.assert_close(single, double, rtol=1e-5, atol=1e-5)


# State by state


@pytest.mark.parametrize("gamma", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("reward", [per_token, per_text])
def test_q_values_and_advantages_are_the_expected_rest(world, gamma, reward):
    mdp, policy, pi, (V, T, eos) = world
    mdp = TokenMDP(V, T, reward, eos)
    q = q_by_hand(pi, V, T, eos, reward, gamma)
    v = {prefix: sum(p[a] * q[prefix, a] for a in range(V)) for prefix, (p, _) in pi.items()}
    torch.testing.assert_close(mdp.q_values(policy, gamma), as_table(q, V, T), **EXACT)
    torch.testing.assert_close(mdp.values(policy, gamma).tolist(), [v.get(x, 0.0) for x in prefixes(V, T)], **EXACT)
    advantages = as_table({(prefix, a): q[prefix, a] - v[prefix] for prefix, a in q}, V, T)
    torch.testing.assert_close(mdp.advantages(policy, gamma), advantages, **EXACT)
    assert not mdp.q_values(policy).requires_grad


def test_action_probabilities_are_the_table_and_0_after_eos(world):
    mdp, policy, pi, (V, T, eos) = world
    expected = as_table({(prefix, a): p[a] for prefix, (p, _) in pi.items() for a in range(V)}, V, T)
    torch.testing.assert_close(mdp.action_probabilities(policy), expected, **EXACT)
    sums = mdp.action_probabilities(policy).sum(1)
    torch.testing.assert_close(sums.tolist(), [float(eos not in prefix) for prefix in prefixes(V, T)], **EXACT)


def test_advantages_average_to_nothing_under_the_policy(world):
    mdp, policy, *_ = world
    mean = (mdp.action_probabilities(policy) * mdp.advantages(policy, 0.9)).sum(1)
    torch.testing.assert_close(mean, torch.zeros_like(mean), **EXACT)


@pytest.mark.parametrize("V, T, eos", [(2, 1, 0), (2, 3, None), (2, 3, 1), (3, 2, 0), (2, 4, 0)])
@pytest.mark.parametrize("gamma", [1.0, 0.5])
@pytest.mark.parametrize("reward", [per_token, per_text])
def test_optimal_q_is_the_best_of_all_deterministic_policies(V, T, eos, gamma, reward):
    """A choice is one action for each prefix; a text's rest is then certain, so Q is a walk along it."""
    states = [prefix for prefix in prefixes(V, T) if eos not in prefix]
    pay = {text[:t]: r for text in write(V, T, eos) for t, r in enumerate(paid(text, reward), 1)}
    best = {}
    for choice in itertools.product(range(V), repeat=len(states)):
        act = dict(zip(states, choice))
        for prefix, action in itertools.product(states, range(V)):
            text, total, discount = (*prefix, action), 0.0, 1.0
            while True:
                total, discount = total + discount * pay[text], discount * gamma
                if text not in act:
                    break
                text = (*text, act[text])
            best[prefix, action] = max(best.get((prefix, action), -math.inf), total)
    torch.testing.assert_close(TokenMDP(V, T, reward, eos).optimal_q_values(gamma), as_table(best, V, T), **EXACT)


def test_no_policy_has_larger_values_than_the_optimal_ones(world, randn):
    mdp, policy, *_ = world
    for _ in range(20):
        assert (mdp.q_values(randomise(policy, randn), 0.9) <= mdp.optimal_q_values(0.9) + 1e-12).all()


# The KL-regularised objective


def test_kl_is_the_sum_that_defines_it_and_has_a_direction(world, randn):
    mdp, policy, pi, (V, T, eos) = world
    other = randomise(TabularPolicy(V, T), randn)
    rho = as_dictionary(other, V, T, eos)
    p, q = ([probability(x, text) for text in write(V, T, eos)] for x in (pi, rho))
    there = sum(a * math.log(a / b) for a, b in zip(p, q))
    back = sum(b * math.log(b / a) for a, b in zip(p, q))
    assert mdp.kl(policy, other).item() == pytest.approx(there, abs=1e-12) and there > 0
    assert mdp.kl(other, policy).item() == pytest.approx(back, abs=1e-12)
    assert V**T == 2 or abs(there - back) > 1e-3
    assert mdp.kl(policy, policy).item() == 0


def test_a_text_that_cannot_be_written_adds_nothing_to_the_kl():
    mdp, policy = TokenMDP(2, 2, per_token), TabularPolicy(2, 2)
    policy.logits_table.data[0, 1] = -torch.inf  # never begins with token 1
    assert mdp.kl(policy, TabularPolicy(2, 2)).item() == pytest.approx(math.log(2))


def test_the_regularised_return_charges_for_kl_and_has_a_gradient(randn):
    mdp = TokenMDP(2, 3, per_token, eos=1)
    policy, other = randomise(TabularPolicy(2, 3), randn), randomise(TabularPolicy(2, 3), randn)
    value = mdp.regularised_return(policy, other, 0.3)
    assert value.item() == pytest.approx(mdp.expected_return(policy).item() - 0.3 * mdp.kl(policy, other).item())
    value.backward()
    h, (row, column) = 1e-6, (1, 0)
    policy.logits_table.data[row, column] += h
    above = mdp.regularised_return(policy, other, 0.3).item()
    assert policy.logits_table.grad[row, column].item() == pytest.approx((above - value.item()) / h, abs=1e-5)


@pytest.mark.parametrize("kl_coef", [0.05, 0.5, 5.0])
@pytest.mark.parametrize("reward", [per_token, per_text])
def test_the_optimal_policy_is_gibbs_and_earns_kl_coef_log_z(world, kl_coef, reward, randn):
    _, reference, rho, (V, T, eos) = world
    mdp = TokenMDP(V, T, reward, eos)
    texts = write(V, T, eos)
    weights = [probability(rho, text) * math.exp(sum(paid(text, reward)) / kl_coef) for text in texts]
    best = mdp.optimal_policy(reference, kl_coef)
    expected = {}  # the share of what goes through (prefix, action) in what goes through prefix
    for prefix in rho:
        t = len(prefix)
        through = [sum(w for w, x in zip(weights, texts) if x[: t + 1] == (*prefix, a)) for a in range(V)]
        expected |= {(prefix, a): share / sum(through) for a, share in enumerate(through)}
    torch.testing.assert_close(mdp.action_probabilities(best), as_table(expected, V, T), **EXACT)
    torch.testing.assert_close(mdp.probabilities(best).tolist(), [w / sum(weights) for w in weights], **EXACT)
    top = mdp.regularised_return(best, reference, kl_coef).item()
    assert top == pytest.approx(kl_coef * math.log(sum(weights)), abs=1e-10)
    logits = best.logits_table.data.clone()
    for _ in range(10):
        best.logits_table.data = logits + 0.3 * randn(*logits.shape)
        assert mdp.regularised_return(best, reference, kl_coef).item() <= top + 1e-12


def test_where_kl_costs_next_to_nothing_the_optimal_policy_is_greedy_in_every_state(world):
    mdp, reference, _, (V, T, eos) = world
    best = mdp.action_probabilities(mdp.optimal_policy(reference, 1e-4))
    alive = torch.tensor([eos not in prefix for prefix in prefixes(V, T)])
    greedy = torch.nn.functional.one_hot(mdp.optimal_q_values().argmax(1), V).double()
    torch.testing.assert_close(best[alive], greedy[alive], **EXACT)


def test_where_kl_costs_everything_the_optimal_policy_is_the_reference(world):
    mdp, reference, *_ = world
    best = mdp.action_probabilities(mdp.optimal_policy(reference, 1e9))
    torch.testing.assert_close(best, mdp.action_probabilities(reference), rtol=0, atol=1e-7)


def test_what_the_reference_never_says_the_optimal_policy_never_says():
    mdp, reference = TokenMDP(3, 2, lambda actions, mask: (actions == 1).sum(1)), TabularPolicy(3, 2)
    reference.logits_table.data[:, 1] = -math.inf
    torch.testing.assert_close(
        mdp.action_probabilities(mdp.optimal_policy(reference, 0.1)), mdp.action_probabilities(reference)
    )


# Rollouts


@pytest.mark.parametrize("rows", [slice(None), slice(1, 3), torch.tensor([1, 0, 1]), 1])
def test_a_rollout_of_listed_texts_is_what_the_policy_would_have_recorded(world, rows):
    mdp, policy, pi, shape = world
    rollout, texts = mdp.rollout(policy, rows), write(*shape)
    numbers = torch.arange(len(texts))[[rows] if isinstance(rows, int) else rows].tolist()
    assert len(rollout) == len(rollout.inputs) == len(numbers)
    for b, n in enumerate(numbers):
        text, rest = texts[n], [0.0] * (shape[1] - len(texts[n]))
        logprobs = [math.log(pi[text[:t]][0][token]) for t, token in enumerate(text)]
        values = [pi[text[:t]][1] for t in range(len(text))]
        torch.testing.assert_close(rollout.old_logprobs[b].tolist(), logprobs + rest)
        assert rollout.values[b].tolist() == values + rest
        assert rollout.actions[b].tolist() == mdp.actions[n].tolist()
        assert rollout.mask[b].tolist() == mdp.mask[n].tolist()
    assert not rollout.old_logprobs.requires_grad and not rollout.values.requires_grad


def test_samples_come_with_their_rewards_as_often_as_their_probability_says(randn, generator):
    mdp, policy, count = TokenMDP(3, 2, per_token, eos=2), randomise(TabularPolicy(3, 2), randn), 4000
    rollout, rewards = mdp.sample(policy, count, generator)
    numbers = [mdp.actions.tolist().index(row) for row in rollout.actions.tolist()]
    assert torch.equal(rewards, mdp.rewards[numbers]) and torch.equal(rollout.mask, mdp.mask[numbers])
    p = torch.tensor([probability(as_dictionary(policy, 3, 2, 2), text) for text in write(3, 2, 2)])
    share = torch.bincount(torch.tensor(numbers), minlength=len(mdp)) / count
    assert ((share - p).abs() < 4 * (p * (1 - p) / count).sqrt()).all()  # four standard errors
    expected = mdp.rollout(policy, torch.tensor(numbers))
    torch.testing.assert_close(rollout.old_logprobs, expected.old_logprobs)
    assert torch.equal(rollout.values, expected.values)


def test_a_seed_gives_the_same_samples_again():
    mdp, policy = TokenMDP(3, 4, per_token), TabularPolicy(3, 4)
    first, again, other = (mdp.sample(policy, 8, torch.Generator().manual_seed(s))[0].actions for s in (5, 5, 6))
    assert torch.equal(first, again) and not torch.equal(first, other)


# TabularPolicy


@pytest.mark.parametrize("V, T", [(2, 1), (2, 4), (3, 3), (5, 2)])
@pytest.mark.parametrize("memory", [None, 0, 1, 2, 9])
def test_states_share_a_row_exactly_when_the_last_tokens_agree(V, T, memory):
    policy, states = TabularPolicy(V, T, memory), prefixes(V, T)
    seen = [state if memory is None else state[max(0, len(state) - memory) :] for state in states]
    rows = policy.rows.tolist()
    assert rows == [states.index(suffix) for suffix in seen]
    assert policy.logits_table.shape == (len(set(seen)), V) and policy.values_table.shape == (len(set(seen)),)


def test_a_tabular_policy_starts_uniform():
    logprobs, values, entropies = TabularPolicy(5, 2).evaluate(*empty(1, [[0, 4]]), with_entropy=True)
    torch.testing.assert_close(logprobs.tolist(), [[-math.log(5)] * 2])
    torch.testing.assert_close(entropies.tolist(), [[math.log(5)] * 2])
    assert values.tolist() == [[0, 0]] and logprobs.dtype == values.dtype == torch.float64


def empty(B, actions):
    return torch.zeros(B, 0, dtype=torch.long), torch.tensor(actions)


@pytest.mark.parametrize("memory", [None, 0, 1, 2])
@pytest.mark.parametrize("P", [0, 1, 2])
def test_evaluate_is_start_predict_append_after_any_prompt(memory, P, randn):
    V, T = 3, 4
    policy = randomise(TabularPolicy(V, T, memory), randn)
    for text in itertools.product(range(V), repeat=T):
        inputs, actions = torch.tensor([text[:P]], dtype=torch.long), torch.tensor([text[P:]])
        logprobs, values, entropies = policy.evaluate(inputs, actions, with_entropy=True)
        state = policy.start(inputs)
        for t in range(T - P):
            known = text[: P + t]
            row = prefixes(V, T).index(known if memory is None else known[max(0, len(known) - memory) :])
            logits, value = policy.predict(state)
            assert torch.equal(logits[0], policy.logits_table[row]) and value[0] == policy.values_table[row]
            p = logits[0].detach().exp() / logits[0].detach().exp().sum()
            assert logprobs[0, t].item() == pytest.approx(math.log(p[text[P + t]]), abs=1e-12)
            assert values[0, t] == value[0]
            assert entropies[0, t].item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-12)
            assert torch.equal(policy.logits(inputs, actions)[0, t], logits[0])
            state = policy.append(state, actions[:, t])


# Bad input


def test_a_reward_that_looks_ahead_is_named():
    with pytest.raises(ValueError, match="reward at a token depends on tokens after it"):
        TokenMDP(2, 3, lambda actions, mask: actions.flip(1).double())
    with pytest.raises(ValueError, match="reward at a token depends on tokens after it"):
        TokenMDP(3, 2, lambda actions, mask: actions.sum(1, keepdim=True).expand_as(actions) * 1e-3)


def test_rounding_is_not_taken_for_looking_ahead():
    noise = iter([1e-13 * torch.arange(16.0).double().view(8, 2)[:, :1].expand(8, 3)])
    TokenMDP(2, 3, lambda actions, mask: actions.double() + next(noise))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((1, 3, per_token), "vocab_size must be at least 2 and horizon 1, got 1 and 3"),
        ((2, 0, per_token), "vocab_size must be at least 2 and horizon 1, got 2 and 0"),
        ((2, 18, per_token), r"2\^18 = 262,144 texts are too many to list; the limit is 131,072"),
        ((10, 60, per_token), r"vocab_size \*\* horizon = 10\^60"),
        ((3, 2, per_token, 3), "eos must be a token, 0 to 2, or None, got 3"),
        ((3, 2, per_token, -1), "eos must be a token, 0 to 2, or None, got -1"),
        (
            (2, 2, lambda a, m: torch.ones(3)),
            r"reward must return \[N\] or \[N, T\] for actions \(4, 2\), .*\(3,\)",
        ),
        ((2, 2, lambda a, m: torch.ones(4, 1)), r"reward must return .* got shape \(4, 1\)"),
        ((2, 2, lambda a, m: 1.0), r"reward must return .* got shape \(\)"),
        (
            (2, 2, lambda a, m: [1.0, math.nan, 1.0, 1.0]),
            re.escape("reward must be finite, got [0.0, nan] for [0, 1]"),
        ),
        ((2, 2, lambda a, m: a.double().log()), re.escape("reward must be finite, got [-inf, -inf] for [0, 0]")),
    ],
)
def test_token_mdp_names_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        TokenMDP(*arguments)


def test_as_many_texts_as_the_limit_can_be_listed(monkeypatch):
    monkeypatch.setattr(envs, "LIMIT", 8)
    mdp = TokenMDP(2, 3, lambda actions, mask: mask.sum(1))
    assert len(mdp) == 8 and len(mdp.batches(1)) == 8
    with pytest.raises(ValueError, match=r"8\^2 = 64 batches are too many; the limit is 8"):
        mdp.batches(2)
    with pytest.raises(ValueError, match=r"3\^2 = 9 texts"):
        TokenMDP(3, 2, lambda actions, mask: mask.sum(1))


@pytest.mark.parametrize("size", [0, -1])
def test_batches_name_a_size_that_is_none(size):
    with pytest.raises(ValueError, match=f"size must be at least 1, got {size}"):
        TokenMDP(2, 2, per_token).batches(size)


@pytest.mark.parametrize("kl_coef", [0, -0.1, math.nan])
def test_the_optimal_policy_needs_a_price(kl_coef):
    with pytest.raises(ValueError, match=f"kl_coef must be positive, got {kl_coef}"):
        TokenMDP(2, 2, per_token).optimal_policy(TabularPolicy(2, 2), kl_coef)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((1, 3), "vocab_size must be at least 2 and horizon 1, got 1 and 3"),
        ((2, 0), "vocab_size must be at least 2 and horizon 1, got 2 and 0"),
        ((2, 3, -1), "memory must be None or a number of tokens, got -1"),
    ],
)
def test_tabular_policy_names_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        TabularPolicy(*arguments)


@pytest.mark.parametrize("P, T, B", [(0, 4, 2), (2, 2, 2), (1, 2, 3)])
def test_evaluate_names_texts_that_do_not_fit(P, T, B):
    inputs, actions = torch.zeros(B, P, dtype=torch.long), torch.zeros(2, T, dtype=torch.long)
    message = "inputs and actions must be 3 tokens together at most" if B == 2 else r"inputs must be \[B, P\] and"
    with pytest.raises(ValueError, match=message):
        TabularPolicy(2, 3).evaluate(inputs, actions)


def test_a_text_longer_than_the_horizon_cannot_be_sampled():
    with pytest.raises(ValueError, match="a text may have 3 tokens at most, its prompt included"):
        envs.sample_tokens(TabularPolicy(2, 3), torch.zeros(2, 1, dtype=torch.long), 3)


@pytest.mark.parametrize("token", [-1, 3])
def test_tokens_outside_the_vocabulary_are_no_state(token):
    """They would land in another state's number."""
    policy, good, bad = TabularPolicy(3, 4), torch.tensor([[1]]), torch.tensor([[token]])
    for inputs, actions, name in ((bad, good, "inputs"), (good, bad, "actions")):
        with pytest.raises(ValueError, match=f"{name} must hold tokens 0 to 2, got {token} to {token}"):
            policy.evaluate(inputs, actions)
    with pytest.raises(ValueError, match="inputs must hold tokens 0 to 2"):
        policy.start(bad)
