"""Every estimator of the package against the truth, by listing every batch that can be drawn: nothing here is sampled.

Two token MDPs with V = 2 and T = 3: `flat`, in which all 8 texts have 3 tokens, and `ragged`, in which token 1 ends a
text, so that its 4 texts have 1, 2, 3 and 3. The truth is worked out below in plain Python from the policy's table: the
texts, their probabilities, their score functions and their returns; it shares no code with the package. An expectation
is a sum over all batches, each weighed by its probability. What is unbiased must hit the truth to 1e-10, what is biased
must miss it by a bias that is derived in the test.
"""

import itertools
import math

import pytest
import torch

from rlcourse.baselines import (
    batch_mean_baseline,
    gradient_variance,
    leave_one_out_baseline,
    optimal_baseline,
    score_functions,
)
from rlcourse.envs import TabularPolicy, TokenMDP
from rlcourse.losses import clipped_surrogate_loss, kl_estimate, reinforce_loss, value_loss
from rlcourse.masking import masked_whiten
from rlcourse.returns import discounted_returns, gae, kl_shaped_rewards, potential_shaped_rewards

V, T = 2, 3
PAY = [[0.5, -1.0], [2.0, 0.3], [1.0, -0.5]]  # PAY[t][token]
REWARDS = {  # of one text, token by token
    "each": lambda tokens: [PAY[t][a] for t, a in enumerate(tokens)],
    "end": lambda tokens: [0.0] * (len(tokens) - 1) + [1.5 * tokens.count(0) + (tokens[0] == 1)],
    "binary": lambda tokens: [0.0] * (len(tokens) - 1) + [1.0 if tokens.count(0) == 2 else 0.0],
}


class World:
    """A token MDP and a policy, and beside them the same in plain Python."""

    def __init__(self, eos, memory, reward, seed=0):
        def batched(actions, mask):  # for the package: [N, T]
            rows = [REWARDS[reward](a[: int(m.sum())].tolist()) for a, m in zip(actions, mask)]
            return torch.tensor([row + [0.0] * (T - len(row)) for row in rows], dtype=torch.float64)

        self.eos, self.memory, self.mdp = eos, memory, TokenMDP(V, T, batched, eos)
        self.policy = policy_with_preferences(memory, seed)
        self.rows = len(self.policy.logits_table)
        self.D = self.rows * V + self.rows  # the logits, then the values
        self.texts = [tuple(a[: int(m.sum())].tolist()) for a, m in zip(self.mdp.actions, self.mdp.mask)]
        assert sorted(self.texts) == sorted(all_texts(eos))
        self.p = torch.tensor([self.probability(text) for text in self.texts], dtype=torch.float64)
        self.r = [REWARDS[reward](list(text)) for text in self.texts]
        self.G = [[sum(r[t:]) for t in range(len(r))] for r in self.r]
        self.s = [[self.score(text[:t], text[t]) for t in range(len(text))] for text in self.texts]

    def row(self, prefix):
        """The row of the table that a state uses."""
        prefix = prefix if self.memory is None else prefix[max(0, len(prefix) - self.memory) :]
        return sum(V**n for n in range(len(prefix))) + int("".join(map(str, prefix)) or "0", V)

    def pi(self, prefix, policy=None):
        z = (policy or self.policy).logits_table.detach()[self.row(prefix)].tolist()
        return [math.exp(x) / sum(math.exp(y) for y in z) for x in z]

    def probability(self, text, policy=None):
        return math.prod(self.pi(text[:t], policy)[text[t]] for t in range(len(text)))

    def score(self, prefix, action):
        """grad log pi: the chosen token minus the probabilities, in the row of the state."""
        vector, first = torch.zeros(self.D, dtype=torch.float64), V * self.row(prefix)
        for a, p in enumerate(self.pi(prefix)):
            vector[first + a] = (a == action) - p
        return vector

    def prefixes(self):
        """Every state with the probability of passing through it."""
        seen = {text[:t] for text in self.texts for t in range(len(text))}
        return {s: math.prod(self.pi(s[:t])[s[t]] for t in range(len(s))) for s in sorted(seen)}

    def q(self, prefix, action, gamma=1.0):
        """Q by recursion over the tree."""
        here = REWARDS_AT(self, prefix, action)
        text = (*prefix, action)
        if len(text) == T or action == self.eos:
            return here
        return here + gamma * self.v(text, gamma)

    def v(self, prefix, gamma=1.0):
        return sum(p * self.q(prefix, a, gamma) for a, p in enumerate(self.pi(prefix)))

    def v_table(self, function):
        """[N, T]: a function of the state, along every listed text; 0 after its end."""
        rows = [[function(text[:t]) for t in range(len(text))] + [0.0] * (T - len(text)) for text in self.texts]
        return torch.tensor(rows, dtype=torch.float64)

    @property
    def gradient(self):
        """grad J = sum over texts of p * return * (sum of the scores)."""
        return sum(p * r[0] * sum(s) for p, r, s in zip(self.p, self.G, self.s))

    def single(self, weight):
        """Mean and total variance of one text's estimate, sum_t score_t * weight(text number, t)."""
        g = torch.stack([sum(s[t] * weight(n, t) for t in range(len(s))) for n, s in enumerate(self.s)])
        mean = self.p @ g
        return mean, (self.p @ ((g - mean) ** 2).sum(1)).item()

    def moments(self, size, loss, other=None):
        """Exact mean and total variance of minus the gradient of loss(rollout, rewards, logprobs, values).

        Over all batches of `size` texts that the policy writes, or `other`. The gradient goes through the package's
        loss by autograd, and from logprobs and values to the parameters by the score functions above.
        """
        mdp, everything = self.mdp, self.mdp.rollout(other or self.policy)
        live = [x.detach().requires_grad_() for x in self.policy.evaluate(mdp.inputs, mdp.actions)]
        p = torch.tensor([self.probability(text, other) for text in self.texts], dtype=torch.float64)
        slopes, batches = [], mdp.batches(size)
        for rows in batches:
            scalar = loss(everything[rows], mdp.rewards[rows], *(x[rows] for x in live))
            found = torch.autograd.grad(scalar, live, allow_unused=True)
            slopes.append([torch.zeros_like(x) if g is None else g for x, g in zip(live, found)])
        by_logprob, by_value = (torch.stack(x) for x in zip(*slopes))
        scores = torch.zeros(len(self.texts), T, self.D, dtype=torch.float64)
        for n, t in self.mdp.mask.nonzero().tolist():
            scores[n, t] = self.s[n][t]
        value_rows = torch.nn.functional.one_hot(self.rows * V + self.policy.rows[mdp.states], self.D).double()
        estimates = -torch.einsum("mnt,ntd->md", by_logprob, scores) - torch.einsum("mnt,ntd->md", by_value, value_rows)
        p = p[batches].prod(1)
        assert abs(p.sum() - 1) < 1e-12
        mean = p @ estimates
        return mean, (p @ ((estimates - mean) ** 2).sum(1)).item()

    def loss(self, advantages):
        """`reinforce_loss` with advantages(rollout, rewards)."""
        return lambda rollout, rewards, logprobs, values: reinforce_loss(
            logprobs, advantages(rollout, rewards), rollout.mask
        )


def REWARDS_AT(world, prefix, action):
    """The reward for an action in a state, from any text that passes there."""
    n = next(n for n, text in enumerate(world.texts) if text[: len(prefix) + 1] == (*prefix, action))
    return world.r[n][len(prefix)]


def all_texts(eos):
    found = set()
    for tokens in itertools.product(range(V), repeat=T):
        end = tokens.index(eos) + 1 if eos in tokens else T
        found.add(tokens[:end])
    return found


def policy_with_preferences(memory=None, seed=0, scale=0.7):
    policy, generator = TabularPolicy(V, T, memory), torch.Generator().manual_seed(seed)
    for table in (policy.logits_table, policy.values_table):
        table.data = scale * torch.randn(table.shape, generator=generator, dtype=torch.float64)
    return policy


def close(a, b, tolerance=1e-10):
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    return torch.allclose(a, b, rtol=0, atol=tolerance)


def to_go(rollout, rewards):
    return discounted_returns(rewards, rollout.mask)


EOS = {"flat": None, "ragged": 1}
both = pytest.mark.parametrize("kind", EOS)
memories = pytest.mark.parametrize("memory", [None, 1])


# -- the truth itself -----------------------------------------------------------------------------------------------


@both
@memories
def test_the_truth_of_these_tests_is_the_derivative_of_j(kind, memory):
    """By central differences of J, which is a sum of products of softmaxes."""
    world, h = World(EOS[kind], memory, "each"), 1e-5
    table = world.policy.logits_table.data
    for i in range(table.numel()):
        j = []
        for sign in (1, -1):
            table.view(-1)[i] += sign * h
            j.append(sum(world.probability(text) * g[0] for text, g in zip(world.texts, world.G)))
            table.view(-1)[i] -= sign * h
        assert abs((j[0] - j[1]) / (2 * h) - world.gradient[i]) < 1e-8


@both
@memories
def test_the_packages_exact_gradients_are_the_truth(kind, memory):
    world = World(EOS[kind], memory, "each")
    assert close(world.mdp.gradient(world.policy), world.gradient)
    assert close(world.mdp.gradient_by_score(world.policy), world.gradient)
    scores = score_functions(world.policy, world.mdp.inputs, world.mdp.actions)
    assert all(close(scores[n, t], x) for n, s in enumerate(world.s) for t, x in enumerate(s))


# -- unbiased: one text at a time -----------------------------------------------------------------------------------


def constant(world):
    return lambda rollout, rewards: 1.7 * rollout.mask, lambda n, t: 1.7


def learned_value(world):  # the policy's own values: wrong, but a function of the state
    table = world.policy.values_table.tolist()
    return lambda rollout, rewards: rollout.values, lambda n, t: table[world.row(world.texts[n][:t])]


def exact_value(world):
    exact = world.v_table(world.v)
    return lambda rollout, rewards: listed(world, rollout, exact), lambda n, t: exact[n, t].item()


def per_step(world):
    b = torch.tensor([0.3, -2.0, 5.0], dtype=torch.float64)
    return lambda rollout, rewards: b * rollout.mask, lambda n, t: b[t].item()


def best_constant(world):
    mdp = world.mdp
    scores = score_functions(world.policy, mdp.inputs, mdp.actions) * mdp.mask[..., None]
    c = optimal_baseline(scores, to_go(mdp, mdp.rewards), mdp.mask[..., None], world.p)
    by_hand = sum(p * sum(s) @ sum(a * g for a, g in zip(s, G)) for p, s, G in zip(world.p, world.s, world.G))
    by_hand /= sum(p * sum(s) @ sum(s) for p, s in zip(world.p, world.s))
    return lambda rollout, rewards: c * rollout.mask, lambda n, t: by_hand.item()


def nothing(world):
    return lambda rollout, rewards: torch.zeros_like(rollout.mask), lambda n, t: 0.0


def listed(world, rollout, table):
    """Rows of a table [N, T] for the texts of a rollout."""
    numbers = [world.texts.index(tuple(a[: int(m.sum())].tolist())) for a, m in zip(rollout.actions, rollout.mask)]
    return table[numbers]


@both
@memories
@pytest.mark.parametrize("baseline", [nothing, constant, per_step, learned_value, exact_value, best_constant])
def test_reward_to_go_minus_a_function_of_the_state(kind, memory, baseline):
    world = World(EOS[kind], memory, "each")
    b, by_hand = baseline(world)
    mean, variance = world.moments(2, world.loss(lambda ro, rw: (to_go(ro, rw) - b(ro, rw)) * ro.mask))
    assert close(mean, world.gradient)
    expected_mean, one = world.single(lambda n, t: world.G[n][t] - by_hand(n, t))
    assert close(expected_mean, world.gradient) and close(variance, one / 2)


@both
@memories
def test_total_return(kind, memory):
    world = World(EOS[kind], memory, "each")
    mean, variance = world.moments(2, world.loss(lambda ro, rw: rw.sum(1, keepdim=True) * ro.mask))
    assert close(mean, world.gradient) and close(variance, world.single(lambda n, t: world.G[n][0])[1] / 2)


@both
def test_sampled_variance_is_right_on_average(kind):
    """`gradient_variance` of two estimates, averaged over all pairs, is the exact variance of one."""
    world = World(EOS[kind], None, "each")
    g = torch.stack([sum(a * b for a, b in zip(s, G)) for s, G in zip(world.s, world.G)])
    pairs = [(world.p[i] * world.p[j], gradient_variance(g[[i, j]])) for i in range(len(g)) for j in range(len(g))]
    assert close(sum(p * v for p, v in pairs), world.single(lambda n, t: world.G[n][t])[1])


# -- the best baseline ----------------------------------------------------------------------------------------------


def coefficients(world, features):
    """`optimal_baseline` and the variance it leaves, by hand, for features [N, T, K]."""
    mdp = world.mdp
    scores = score_functions(world.policy, mdp.inputs, mdp.actions) * mdp.mask[..., None]
    c = optimal_baseline(scores, to_go(mdp, mdp.rewards), features * mdp.mask[..., None], world.p)
    return c, lambda c: world.single(lambda n, t: world.G[n][t] - (features[n, t] @ c).item())[1]


@both
def test_without_shared_parameters_the_best_function_of_the_state_has_a_closed_form(kind):
    """E[|score|^2 Q | s] / E[|score|^2 | s]: scores of different states have no parameter in common."""
    world = World(EOS[kind], None, "each")
    c, variance_of = coefficients(world, torch.nn.functional.one_hot(world.mdp.states, 7).double())
    for prefix in world.prefixes():
        squares = [p * world.score(prefix, a).square().sum().item() for a, p in enumerate(world.pi(prefix))]
        by_hand = sum(x * world.q(prefix, a) for a, x in enumerate(squares)) / sum(squares)
        assert abs(c[world.row(prefix)].item() - by_hand) < 1e-10
    value = world.single(lambda n, t: world.G[n][t] - world.v(world.texts[n][:t]))[1]
    assert variance_of(c) < value - 1e-3


@both
@pytest.mark.parametrize("features", ["constant", "step", "last token", "state"])
def test_with_shared_parameters_no_coefficients_do_better_and_the_shorthand_does_worse(kind, features):
    world = World(EOS[kind], 1, "each")
    phi = {
        "constant": torch.ones(len(world.texts), T, 1),
        "step": torch.eye(T).expand(len(world.texts), T, T),
        "last token": torch.nn.functional.one_hot(world.policy.rows[world.mdp.states], 3),
        "state": torch.nn.functional.one_hot(world.mdp.states, 7),
    }[features].double()
    c, variance_of = coefficients(world, phi)
    least = variance_of(c)
    for k in range(len(c)):
        step = torch.zeros_like(c)
        step[k] = 0.01
        assert variance_of(c + step) >= least - 1e-12 and variance_of(c - step) >= least - 1e-12
    top, bottom = torch.zeros_like(c), torch.zeros_like(c)
    for n, (p, s) in enumerate(zip(world.p, world.s)):
        for t in range(len(s)):
            top += p * (s[t] @ s[t]) * world.G[n][t] * phi[n, t]
            bottom += p * (s[t] @ s[t]) * phi[n, t]
    assert variance_of(top / bottom.clamp(min=1e-30)) > least + 1e-4


# -- baselines made of the batch ------------------------------------------------------------------------------------


def by_loops(world, size, weight):
    """Mean and variance of (1/B) sum_it score_it * weight(batch, i, t), batch by batch and row by row."""
    batches = list(itertools.product(range(len(world.texts)), repeat=size))
    g = torch.stack([
        sum(world.s[n][t] * weight(batch, i, t) for i, n in enumerate(batch) for t in range(len(world.s[n]))) / size
        for batch in batches
    ])  # fmt: skip
    p = torch.stack([math.prod(world.p[n] for n in batch) for batch in batches])
    return p @ g, (p @ ((g - p @ g) ** 2).sum(1)).item()


def others_mean(world, batch, i, t):
    others = [world.G[n][t] for j, n in enumerate(batch) if j != i and len(world.G[n]) > t]
    return sum(others) / len(others) if others else 0.0


@both
@memories
def test_leave_one_out_is_unbiased(kind, memory):
    world = World(EOS[kind], memory, "each")
    size = 3
    mean, variance = world.moments(
        size, world.loss(lambda ro, rw: to_go(ro, rw) - leave_one_out_baseline(to_go(ro, rw), ro.mask))
    )
    assert close(mean, world.gradient)
    _, expected = by_loops(world, size, lambda b, i, t: world.G[b[i]][t] - others_mean(world, b, i, t))
    assert close(variance, expected)


@pytest.mark.parametrize("size", [2, 3])
def test_the_variance_of_leave_one_out_is_that_of_a_sample_covariance(size):
    """With one return a text the estimate is the sample covariance of score and return (divided by B - 1):

    B Var = E|S|^2 (R - J)^2 - |grad J|^2 + (E|S|^2 Var R + |grad J|^2) / (B - 1)
    """
    world = World(None, None, "end")
    _, variance = world.moments(
        size, world.loss(lambda ro, rw: to_go(ro, rw) - leave_one_out_baseline(to_go(ro, rw), ro.mask))
    )
    S, R = torch.stack([sum(s) for s in world.s]), torch.tensor([g[0] for g in world.G], dtype=torch.float64)
    J, norm, squares = world.p @ R, world.gradient @ world.gradient, (S**2).sum(1)
    spread = world.p @ (R - J) ** 2
    known_j = world.p @ (squares * (R - J) ** 2) - norm
    assert close(size * variance, known_j + ((world.p @ squares) * spread + norm) / (size - 1))


@both
@memories
@pytest.mark.parametrize("size", [2, 3])
def test_own_sample_inside_the_mean_shrinks_the_gradient(kind, memory, size):
    """Row i at step t carries 1/n of its own return, n the rows still going on; n - 1 of the B - 1 others are.

    So part t of the gradient keeps the factor 1 - E[1/n] = 1 - (1 - (1 - q_t)^B) / (B q_t), q_t = P(still going on).
    """
    world = World(EOS[kind], memory, "each")
    mean, _ = world.moments(
        size, world.loss(lambda ro, rw: to_go(ro, rw) - batch_mean_baseline(to_go(ro, rw), ro.mask))
    )
    expected = torch.zeros_like(mean)
    for t in range(T):
        going = [n for n, s in enumerate(world.s) if len(s) > t]
        q = sum(world.p[n].item() for n in going)
        factor = 1 - (1 - (1 - q) ** size) / (size * q)
        expected += factor * sum(world.p[n] * world.s[n][t] * world.G[n][t] for n in going)
    assert close(mean, expected)
    if kind == "flat":
        assert close(mean, world.gradient * (size - 1) / size)
    else:
        assert not close(mean, world.gradient * (size - 1) / size, 1e-3)


def test_a_gradient_through_the_baseline_lifts_the_values_by_the_entropy():
    """-sum log pi * (G - V) without detach: E[-log pi(a|s) dV(s)] = (probability of passing s) * (entropy at s)."""
    for eos in EOS.values():
        world = World(eos, None, "each")

        def careless(rollout, rewards, logprobs, values):
            return -(logprobs * (to_go(rollout, rewards) - values) * rollout.mask).sum() / len(rollout)

        bias = world.moments(2, careless)[0] - world.gradient
        expected = torch.zeros_like(bias)
        for prefix, d in world.prefixes().items():
            expected[world.rows * V + world.row(prefix)] = d * -sum(p * math.log(p) for p in world.pi(prefix))
        assert close(bias, expected) and bias.abs().max() > 0.1
        careful, _ = world.moments(2, world.loss(lambda ro, rw: to_go(ro, rw) - ro.values))
        assert close(careful, world.gradient)


# -- divided by something that the batch decides --------------------------------------------------------------------


def counts_of(size, kinds):
    """Every way to fill `size` places with `kinds` kinds."""
    if kinds == 1:
        return [(size,)]
    return [(k, *rest) for k in range(size + 1) for rest in counts_of(size - k, kinds - 1)]


def by_counts(world, size, weights):
    """The mean of an estimator whose weights depend only on how many texts of each kind the batch holds.

    A kind is a length and its returns; weights(kinds, counts) -> for each kind the weight of each of its steps. Given
    its kind, a text's scores have the mean E[score_t | kind], and the counts are multinomial.
    """
    kinds = sorted({tuple(G) for G in world.G}, key=lambda k: (len(k), k))
    members = [[n for n, G in enumerate(world.G) if tuple(G) == kind] for kind in kinds]
    p = [sum(world.p[n].item() for n in group) for group in members]
    scores = [
        [sum(world.p[n] * world.s[n][t] for n in group) / mass for t in range(len(kind))]
        for kind, group, mass in zip(kinds, members, p)
    ]
    total = torch.zeros(world.D, dtype=torch.float64)
    for counts in counts_of(size, len(kinds)):
        ways = math.factorial(size) / math.prod(math.factorial(k) for k in counts)
        probability = ways * math.prod(x**k for x, k in zip(p, counts))
        for k, s, w in zip(counts, scores, weights(kinds, counts)):
            total += probability * k * sum(a * b for a, b in zip(s, w))
    return total


def mean_and_std(kinds, counts, eps=1e-8):
    """Over all counted actions of the batch; eps is added to the variance."""
    n = sum(k * len(kind) for k, kind in zip(counts, kinds))
    mean = sum(k * x for k, kind in zip(counts, kinds) for x in kind) / n
    return mean, math.sqrt(sum(k * (x - mean) ** 2 for k, kind in zip(counts, kinds) for x in kind) / n + eps)


def expected_std(p, size, eps):
    """E[variance / sqrt(variance + eps)] of `size` coins: the mean of their standard deviation when eps is 0."""
    total = 0.0
    for k in range(size + 1):
        variance = k / size * (1 - k / size)
        total += math.comb(size, k) * p**k * (1 - p) ** (size - k) * variance / math.sqrt(variance + eps)
    return total


@memories
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("how", ["group standard deviation", "masked_whiten"])
def test_whitening_a_reward_of_0_or_1_rescales_the_gradient(memory, size, how):
    """E[score | R = 1] = grad J / p, E[score | R = 0] = -grad J / (1 - p), so the mean is grad J E[std] / (p (1 - p)).

    That is 1 for B = 2, where two biases happen to cancel, sqrt(2) for B = 3, and tends to 1 / sqrt(p (1 - p)).
    """
    world = World(None, memory, "binary")

    def advantages(rollout, rewards):
        scores = rewards.sum(1)
        if how == "masked_whiten":
            return masked_whiten(to_go(rollout, rewards), rollout.mask)
        return ((scores - scores.mean()) / (scores.std(unbiased=False) + 1e-30))[:, None] * rollout.mask

    p = sum(x.item() for x, G in zip(world.p, world.G) if G[0] == 1)
    eps = 1e-8 if how == "masked_whiten" else 1e-60
    mean, _ = world.moments(size, world.loss(advantages))
    factor = expected_std(p, size, eps) / (p * (1 - p))
    assert close(mean, factor * world.gradient) and abs(factor - (1, 2**0.5)[size - 2]) < 1e-6


def test_the_group_standard_deviation_bends_the_gradient_when_there_are_more_than_two_scores():
    world, size = World(None, None, "end"), 3

    def advantages(rollout, rewards):
        scores = rewards.sum(1)
        return ((scores - scores.mean()) / (scores.std(unbiased=False) + 1e-30))[:, None] * rollout.mask

    def weights(kinds, counts):
        mean, std = mean_and_std(kinds, counts, 0.0)
        return [[(x - mean) / (std or 1) / size for x in kind] for kind in kinds]

    mean, _ = world.moments(size, world.loss(advantages))
    assert close(mean, by_counts(world, size, weights))
    assert torch.cosine_similarity(mean, world.gradient, dim=0) < 0.999


@both
@memories
def test_whitened_advantages_have_the_derived_mean(kind, memory):
    world, size = World(EOS[kind], memory, "each"), 3 if kind == "flat" else 4

    def weights(kinds, counts):
        mean, std = mean_and_std(kinds, counts)
        return [[(x - mean) / std / size for x in kind] for kind in kinds]

    mean, _ = world.moments(size, world.loss(lambda ro, rw: masked_whiten(to_go(ro, rw), ro.mask)))
    assert close(mean, by_counts(world, size, weights))


@both
@memories
def test_the_mean_over_tokens_has_the_derived_bias(kind, memory):
    """`clipped_surrogate_loss` at ratio 1. With H(l) = E[sum_t score_t G_t, length l], the mean is

    B * sum_l H(l) E[1 / (l + the lengths of the B - 1 others)].
    """
    world, size = World(EOS[kind], memory, "each"), 3 if kind == "flat" else 4

    def loss(rollout, rewards, logprobs, values):
        return clipped_surrogate_loss(logprobs, rollout.old_logprobs, to_go(rollout, rewards), rollout.mask)

    one = {}  # the distribution of a length
    for p, s in zip(world.p, world.s):
        one[len(s)] = one.get(len(s), 0.0) + p.item()
    others = {0: 1.0}
    for _ in range(size - 1):
        others = {
            n: sum(x * one[m] for l, x in others.items() for m in one if l + m == n)
            for n in range(1, T * size)
            if any(l + m == n for l in others for m in one)
        }
    expected = torch.zeros(world.D, dtype=torch.float64)
    for p, s, G in zip(world.p, world.s, world.G):
        inverse = sum(x / (len(s) + n) for n, x in others.items())
        expected += size * p * inverse * sum(a * b for a, b in zip(s, G))
    mean, _ = world.moments(size, loss)
    assert close(mean, expected)
    if kind == "flat":
        assert close(mean, world.gradient / T)
    else:
        assert torch.cosine_similarity(mean, world.gradient, dim=0) < 0.999


@both
def test_the_first_step_of_ppo_has_the_derived_mean(kind):
    """Whitened over all actions, then a mean over all actions: what `ppo_update` follows before it has moved."""
    world, size = World(EOS[kind], None, "each"), 3 if kind == "flat" else 4

    def loss(rollout, rewards, logprobs, values):
        advantages = masked_whiten(to_go(rollout, rewards), rollout.mask)
        return clipped_surrogate_loss(logprobs, rollout.old_logprobs, advantages, rollout.mask)

    def weights(kinds, counts):
        mean, std = mean_and_std(kinds, counts)
        n = sum(k * len(kind) for k, kind in zip(counts, kinds))
        return [[(x - mean) / std / n for x in kind] for kind in kinds]

    assert close(world.moments(size, loss)[0], by_counts(world, size, weights))


# -- GAE, shaping, KL -----------------------------------------------------------------------------------------------


@both
@memories
@pytest.mark.parametrize("lam", [0.0, 0.6, 1.0])
def test_gae_with_the_exact_values_is_unbiased_for_every_lambda(kind, memory, lam):
    world = World(EOS[kind], memory, "each")
    exact = world.v_table(world.v)

    def advantages(rollout, rewards):
        return gae(rewards, listed(world, rollout, exact), rollout.mask, 1.0, lam)[0]

    assert close(world.moments(2, world.loss(advantages))[0], world.gradient)


@both
@memories
@pytest.mark.parametrize("gamma, lam", [(1.0, 0.0), (1.0, 0.6), (1.0, 1.0), (0.9, 0.6)])
def test_gae_with_wrong_values_has_the_derived_bias(kind, memory, gamma, lam):
    """With the error e = values - V, an action leads to W(s') too much, gamma (1 - lam) times, where

    W(s) = e(s) + gamma lam E[W(s')]: of each forecast a share lam is corrected later. At lam = 1 nothing is left.
    """
    world = World(EOS[kind], memory, "each")

    def error(prefix):
        return world.policy.values_table[world.row(prefix)].item() - world.v(prefix, gamma)

    def ends(text):
        return len(text) == T or text[-1] == world.eos

    def too_much(prefix):  # W
        following = [p * too_much((*prefix, a)) for a, p in enumerate(world.pi(prefix)) if not ends((*prefix, a))]
        return error(prefix) + gamma * lam * sum(following)

    expected = torch.zeros(world.D, dtype=torch.float64)
    for prefix, d in world.prefixes().items():
        for a, p in enumerate(world.pi(prefix)):
            bias = 0.0 if ends((*prefix, a)) else gamma * (1 - lam) * too_much((*prefix, a))
            expected += d * p * (world.q(prefix, a, gamma) + bias) * world.score(prefix, a)
    mean, _ = world.moments(2, world.loss(lambda ro, rw: gae(rw, ro.values, ro.mask, gamma, lam)[0]))
    assert close(mean, expected)
    assert close(mean, world.gradient) == (gamma == lam == 1)


@both
def test_potential_shaping_leaves_the_expected_gradient_alone(kind):
    world = World(EOS[kind], 1, "each")

    def advantages(rollout, rewards):
        return discounted_returns(potential_shaped_rewards(rewards, rollout.values, rollout.mask), rollout.mask)

    assert close(world.moments(2, world.loss(advantages))[0], world.gradient)


@both
@memories
def test_the_kl_in_the_reward_has_the_gradient_of_the_kl_of_whole_texts(kind, memory):
    world, ref, beta = World(EOS[kind], memory, "end"), policy_with_preferences(memory, seed=5), 0.3

    def advantages(rollout, rewards):
        with torch.no_grad():
            ref_logprobs = ref.evaluate(rollout.inputs, rollout.actions)[0]
        return to_go(
            rollout,
            kl_shaped_rewards(rewards.sum(1), rollout.old_logprobs, ref_logprobs, rollout.mask, beta),
        )

    q = [world.probability(text, ref) for text in world.texts]
    expected = sum(p * (G[0] - beta * math.log(p / q_n)) * sum(s) for p, q_n, G, s in zip(world.p, q, world.G, world.s))
    assert close(world.moments(2, world.loss(advantages))[0], expected)


@both
@memories
@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_kl_estimate_as_a_loss_has_the_derived_gradient(kind, memory, estimator):
    """Differentiated action by action: k1 has 0, k2 the gradient of KL(pi || ref), k3 that of KL(ref || pi),

    all three in each state as the policy now visits it, without the KL's effect on which states come next.
    """
    world, ref = World(EOS[kind], memory, "each"), policy_with_preferences(memory, seed=5)

    def loss(rollout, rewards, logprobs, values):
        with torch.no_grad():
            ref_logprobs = ref.evaluate(rollout.inputs, rollout.actions)[0]
        return kl_estimate(logprobs, ref_logprobs, rollout.mask, estimator).sum() / len(rollout)

    expected = torch.zeros(world.D, dtype=torch.float64)
    for prefix, d in world.prefixes().items():
        pi, other = world.pi(prefix), world.pi(prefix, ref)
        for a in range(V):
            forward, backward = math.log(pi[a] / other[a]), -other[a] / pi[a]  # d KL(pi||ref), d KL(ref||pi)
            weight = {"k1": 0.0, "k2": forward, "k3": backward}[estimator]
            expected += d * pi[a] * weight * world.score(prefix, a)
    assert close(-world.moments(2, loss)[0], expected)


@both
def test_the_expected_step_of_the_critic_leads_to_the_exact_value(kind):
    """Its gradient at row s is (how often s is passed, over the batch's actions) times (values - V), on average."""
    world, size = World(EOS[kind], None, "each"), 2

    def loss(rollout, rewards, logprobs, values):
        return value_loss(values, to_go(rollout, rewards), rollout.mask) * rollout.mask.sum() / len(rollout)

    expected = torch.zeros(world.D, dtype=torch.float64)
    for prefix, d in world.prefixes().items():
        wrong = world.policy.values_table[world.row(prefix)].item() - world.v(prefix)
        expected[world.rows * V + world.row(prefix)] = d * wrong
    assert close(-world.moments(size, loss)[0], expected)


# -- texts of another policy ----------------------------------------------------------------------------------------


@both
@memories
def test_importance_weights_are_unbiased_and_their_variance_is_the_exact_one(kind, memory):
    """The whole text's weight p/q: E_q[w^2 |g|^2] - |grad J|^2 = E_p[w |g|^2] - |grad J|^2 for one text."""
    world, other = World(EOS[kind], memory, "each"), policy_with_preferences(memory, seed=8)

    def loss(rollout, rewards, logprobs, values):
        weight = ((logprobs.detach() - rollout.old_logprobs) * rollout.mask).sum(1, keepdim=True).exp()
        return reinforce_loss(logprobs, weight * to_go(rollout, rewards), rollout.mask)

    mean, variance = world.moments(2, loss, other)
    q = torch.tensor([world.probability(text, other) for text in world.texts], dtype=torch.float64)
    g = torch.stack([sum(a * b for a, b in zip(s, G)) for s, G in zip(world.s, world.G)])
    one = (world.p @ (world.p / q * (g**2).sum(1)) - world.gradient @ world.gradient).item()
    assert close(mean, world.gradient) and close(variance, one / 2)


@memories
def test_the_unclipped_surrogate_corrects_the_action_and_not_the_state(memory):
    """Its mean is sum_s d_old(s) sum_a pi(a|s) score(s, a) Q_old(s, a), over T: only the action is reweighed."""
    world, other = World(None, memory, "each"), policy_with_preferences(memory, seed=8)

    def loss(rollout, rewards, logprobs, values):
        return clipped_surrogate_loss(
            logprobs, rollout.old_logprobs, to_go(rollout, rewards), rollout.mask, clip_eps=1e9
        )

    mean, _ = world.moments(2, loss, other)
    expected = torch.zeros(world.D, dtype=torch.float64)
    for n, text in enumerate(world.texts):
        for t in range(T):
            ratio = world.pi(text[:t])[text[t]] / world.pi(text[:t], other)[text[t]]
            expected += world.probability(text, other) * ratio * world.s[n][t] * world.G[n][t] / T
    assert close(mean, expected) and not close(mean, world.gradient / T, 1e-3)
