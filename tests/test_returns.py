import doctest

import pytest
import torch

from rlcourse import returns
from rlcourse.envs import TokenMDP
from rlcourse.returns import AdaptiveKL, discounted_returns, gae, kl_shaped_rewards, potential_shaped_rewards

NAN, INF = float("nan"), float("inf")
LENGTHS = [1, 2, 3, 7, 8, 9, 33]


def returns_by_loop(rewards, gamma):
    """One episode as a list: G_t = sum_k gamma^k r_{t+k}."""
    return [sum(gamma**k * r for k, r in enumerate(rewards[t:])) for t in range(len(rewards))]


def gae_by_loop(rewards, values, gamma, lam, last_value=0.0):
    """One episode as lists: A_t = sum_l (gamma lam)^l delta_{t+l} with delta_t = r_t + gamma V_{t+1} - V_t."""
    values = [*values, last_value]
    deltas = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


def rows(mask, make_row):
    """[B, T] float64 from make_row(b, n), the list for row b that has n counted actions; zeros after it."""
    expected = torch.zeros(mask.shape, dtype=torch.float64)
    for b, n in enumerate(mask.sum(1).int().tolist()):
        expected[b, :n] = torch.tensor(make_row(b, n), dtype=torch.float64)
    return expected


def pad(x, filler, columns=5):
    return torch.cat([x, torch.full((len(x), columns), filler, dtype=x.dtype)], dim=1)


# discounted_returns


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_discounted_returns_are_the_double_loop(T, gamma, randn, prefix_mask):
    rewards, mask = randn(6, T), prefix_mask(T)
    expected = rows(mask, lambda b, n: returns_by_loop(rewards[b, :n].tolist(), gamma))
    torch.testing.assert_close(discounted_returns(rewards, mask, gamma), expected, rtol=0, atol=1e-12)


def test_discounted_returns_by_hand():
    rewards, mask = torch.tensor([[1.0, -4.0, 2.0, 100.0]]), torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert discounted_returns(rewards, mask, gamma=0.5).tolist() == [[-0.5, -3.0, 2.0, 0.0]]
    assert discounted_returns(rewards, mask).tolist() == [[-1.0, -2.0, 2.0, 0.0]]


def test_discounted_returns_of_whole_numbers_are_not_rounded():
    rewards = torch.tensor([[1, 0, 1]])
    assert discounted_returns(rewards, torch.ones(1, 3), gamma=0.5).tolist() == [[1.25, 0.5, 1.0]]


@pytest.mark.parametrize("filler", [1.0, INF, NAN])
def test_discounted_returns_ignore_what_is_masked(filler, randn, prefix_mask):
    rewards, mask = randn(6, 7), prefix_mask(7)
    expected = rows(mask, lambda b, n: returns_by_loop(rewards[b, :n].tolist(), 0.9))
    dirty = torch.where(mask > 0, rewards, filler)
    got = discounted_returns(pad(dirty, filler), pad(mask, 0.0), 0.9)
    torch.testing.assert_close(got, pad(expected, 0.0))


def test_the_examples_in_the_docstrings_hold():
    result = doctest.testmod(returns)
    assert result.attempted > 0 and result.failed == 0


# gae


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.8), (0.9, 1.0), (0.9, 0.0), (0.0, 0.8)])
def test_gae_is_its_definition(T, gamma, lam, randn, prefix_mask):
    rewards, values, mask = randn(6, T), randn(6, T), prefix_mask(T)
    expected = rows(mask, lambda b, n: gae_by_loop(rewards[b, :n].tolist(), values[b, :n].tolist(), gamma, lam))
    advantages, targets = gae(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(targets, (expected + values) * mask, rtol=0, atol=1e-12)


def test_gae_by_hand():
    rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.full((1, 3), 0.5)
    advantages, targets = gae(rewards, values, torch.ones(1, 3), gamma=1.0, lam=0.5)
    assert advantages.tolist() == [[0.125, 0.25, 0.5]]  # better than the critic thought: positive
    assert targets.tolist() == [[0.625, 0.75, 1.0]]


def test_gae_defaults_are_gamma_1_and_lam_095(randn, prefix_mask):
    rewards, values, mask = randn(6, 7), randn(6, 7), prefix_mask(7)
    expected = rows(mask, lambda b, n: gae_by_loop(rewards[b, :n].tolist(), values[b, :n].tolist(), 1.0, 0.95))
    torch.testing.assert_close(gae(rewards, values, mask)[0], expected)


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("lam", [0.0, 0.8, 1.0])
@pytest.mark.parametrize("cut_off", [False, True])
def test_gae_with_dones_treats_each_episode_on_its_own(T, lam, cut_off, randn, prefix_mask, generator):
    rewards, values, mask = randn(6, T), randn(6, T), prefix_mask(T)
    last_values = 5 + randn(6) if cut_off else None
    dones = (torch.rand(6, T, generator=generator) < 0.3).double()

    def row(b, n):
        advantages, start = [], 0
        for t in range(n):
            if dones[b, t] or t == n - 1:
                last_value = last_values[b].item() if cut_off and not dones[b, t] else 0.0
                episode = slice(start, t + 1)
                advantages += gae_by_loop(
                    rewards[b, episode].tolist(), values[b, episode].tolist(), 0.9, lam, last_value
                )
                start = t + 1
        return advantages

    expected = rows(mask, row)
    for flags in (dones, dones.bool()):
        advantages, targets = gae(rewards, values, mask, 0.9, lam, last_values, flags)
        torch.testing.assert_close(advantages, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(targets, (expected + values) * mask, rtol=0, atol=1e-12)


def test_gae_last_values_count_after_the_last_counted_action():
    zeros, mask = torch.zeros(3, 3), torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    advantages, _ = gae(zeros, zeros, mask, gamma=0.5, lam=1.0, last_values=torch.tensor([8.0, 8.0, 8.0]))
    assert advantages.tolist() == [[2.0, 4.0, 0.0], [1.0, 2.0, 4.0], [0.0, 0.0, 0.0]]


def test_gae_at_lam_1_is_returns_minus_values(randn, prefix_mask):
    rewards, values, mask = randn(6, 9), randn(6, 9), prefix_mask(9)
    expected = rows(mask, lambda b, n: returns_by_loop(rewards[b, :n].tolist(), 0.9))
    advantages, targets = gae(rewards, values, mask, gamma=0.9, lam=1.0)
    torch.testing.assert_close(targets, expected)
    torch.testing.assert_close(advantages, (expected - values) * mask)


def test_gae_at_lam_0_is_the_one_step_error(randn, prefix_mask):
    rewards, values, mask = randn(6, 9), randn(6, 9), prefix_mask(9)

    def row(b, n):
        return [(rewards[b, t] + (0.9 * values[b, t + 1] if t + 1 < n else 0) - values[b, t]).item() for t in range(n)]

    torch.testing.assert_close(gae(rewards, values, mask, gamma=0.9, lam=0.0)[0], rows(mask, row))


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.99, 1.0)])
def test_gae_is_exact_over_1024_steps_in_float32(gamma, lam, randn):
    rewards, values = randn(2, 1024).float(), randn(2, 1024).float()
    mask = torch.ones(2, 1024)
    mask[1, 1000:] = 0
    expected = rows(mask, lambda b, n: gae_by_loop(rewards[b, :n].tolist(), values[b, :n].tolist(), gamma, lam))
    advantages, _ = gae(rewards, values, mask, gamma, lam)
    assert advantages.dtype == torch.float32
    assert (advantages - expected).abs().max() < 1e-4


@pytest.mark.parametrize("filler", [1.0, INF, NAN])
def test_gae_ignores_what_is_masked(filler, randn, prefix_mask):
    rewards, values, mask = randn(6, 7), randn(6, 7), prefix_mask(7)
    expected = rows(mask, lambda b, n: gae_by_loop(rewards[b, :n].tolist(), values[b, :n].tolist(), 0.9, 0.8))
    dirty = [pad(torch.where(mask > 0, x, filler), filler) for x in (rewards, values)]
    advantages, targets = gae(*dirty, pad(mask, 0.0), 0.9, 0.8)
    torch.testing.assert_close(advantages, pad(expected, 0.0))
    torch.testing.assert_close(targets, pad((expected + values) * mask, 0.0))


def test_gae_carries_no_gradient(randn):
    rewards, values = randn(2, 3).requires_grad_(), randn(2, 3).requires_grad_()
    assert not any(x.requires_grad for x in gae(rewards, values, torch.ones(2, 3)))


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(rewards=torch.ones(2, 4)), r"rewards must have the shape of mask \(2, 3\), got \(2, 4\)"),
        (dict(values=torch.ones(3, 2)), r"values must have the shape of mask \(2, 3\), got \(3, 2\)"),
        (dict(mask=torch.full((2, 3), 0.5)), "mask must hold only 0 and 1"),
        (dict(last_values=torch.ones(3)), r"last_values must be \[B\] = \(2,\), got \(3,\)"),
        (dict(last_values=torch.ones(2, 1)), r"last_values must be \[B\] = \(2,\), got \(2, 1\)"),
        (dict(dones=torch.ones(2)), r"dones must have the shape of mask \(2, 3\), got \(2,\)"),
        (dict(gamma=1.1), r"gamma must lie in \[0, 1\], got 1.1"),
        (dict(gamma=NAN), r"gamma must lie in \[0, 1\], got nan"),
        (dict(lam=-0.1), r"lam must lie in \[0, 1\], got -0.1"),
    ],
)
def test_gae_names_bad_input(changed, message):
    arguments = dict(rewards=torch.ones(2, 3), values=torch.ones(2, 3), mask=torch.ones(2, 3)) | changed
    with pytest.raises(ValueError, match=message):
        gae(**arguments)


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(rewards=torch.ones(2)), r"rewards must have the shape of mask \(2, 3\), got \(2,\)"),
        (dict(gamma=-0.5), r"gamma must lie in \[0, 1\], got -0.5"),
    ],
)
def test_discounted_returns_name_bad_input(changed, message):
    with pytest.raises(ValueError, match=message):
        discounted_returns(**dict(rewards=torch.ones(2, 3), mask=torch.ones(2, 3)) | changed)


# kl_shaped_rewards

MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])


def test_a_score_per_response_lands_on_its_last_counted_action():
    zeros, scores = torch.zeros(4, 3), torch.tensor([2.0, -1.0, 3.0, 4.0])
    expected = [[0.0, 2.0, 0.0], [0.0, 0.0, -1.0], [0.0, 0.0, 0.0], [4.0, 0.0, 0.0]]
    assert kl_shaped_rewards(scores, zeros, zeros, MASK, kl_coef=0.1).tolist() == expected


def test_scores_per_action_stay_where_they_are():
    zeros, scores = torch.zeros(4, 3), torch.arange(12.0).view(4, 3)
    expected = [[0.0, 1.0, 0.0], [3.0, 4.0, 5.0], [0.0, 0.0, 0.0], [9.0, 0.0, 0.0]]
    assert kl_shaped_rewards(scores, zeros, zeros, MASK, kl_coef=0.1).tolist() == expected


def test_leaving_the_reference_costs():
    logprobs, ref_logprobs = torch.tensor([[-1.0, -3.0]]), torch.tensor([[-2.0, -1.0]])
    shaped = kl_shaped_rewards(torch.tensor([10.0]), logprobs, ref_logprobs, torch.ones(1, 2), kl_coef=0.5)
    assert shaped.tolist() == [[-0.5, 11.0]]  # likelier than under the reference: charged; less likely: paid


@pytest.mark.parametrize("per_action", [False, True])
def test_a_row_sums_to_its_score_less_the_price_of_its_kl(per_action, randn, prefix_mask):
    mask, logprobs, ref_logprobs = prefix_mask(8), randn(6, 8), randn(6, 8)
    scores = randn(6, 8) if per_action else randn(6)
    shaped = kl_shaped_rewards(scores, logprobs, ref_logprobs, mask, kl_coef=0.3)
    for b, n in enumerate(mask.sum(1).int().tolist()):
        score = sum(scores[b, :n].tolist()) if per_action else scores[b].item() * (n > 0)
        kl = sum(logprobs[b, t].item() - ref_logprobs[b, t].item() for t in range(n))
        assert shaped[b].sum().item() == pytest.approx(score - 0.3 * kl, abs=1e-12)
    assert (shaped[mask == 0] == 0).all()


def test_masked_logprobs_do_not_leak_into_rewards():
    dirty = torch.tensor([[0.0, -INF], [0.0, NAN], [NAN, -INF]])
    mask = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    shaped = kl_shaped_rewards(torch.ones(3), dirty, torch.zeros(3, 2), mask, kl_coef=0.1)
    assert shaped.tolist() == [[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]


def test_kl_shaped_rewards_carry_no_gradient(randn):
    tensors = [x.requires_grad_() for x in (randn(2), randn(2, 3), randn(2, 3))]
    assert not kl_shaped_rewards(*tensors, torch.ones(2, 3), kl_coef=0.1).requires_grad


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(scores=torch.tensor([1.0, NAN])), "scores must be finite, got nan in row 1"),
        (dict(scores=torch.tensor([-INF, 1.0])), "scores must be finite, got -inf in row 0"),
        (dict(scores=torch.tensor([[1.0, 2.0, 3.0], [1.0, INF, 3.0]])), "scores must be finite, got .*inf.* in row 1"),
        (dict(scores=torch.ones(3)), r"scores must be \[B\] or \[B, T\] for mask \(2, 3\), got \(3,\)"),
        (dict(scores=torch.ones(2, 1)), r"scores must be \[B\] or \[B, T\] for mask \(2, 3\), got \(2, 1\)"),
        (dict(logprobs=torch.ones(2, 4)), r"logprobs must have the shape of mask \(2, 3\), got \(2, 4\)"),
        (dict(ref_logprobs=torch.ones(2)), r"ref_logprobs must have the shape of mask \(2, 3\), got \(2,\)"),
    ],
)
def test_kl_shaped_rewards_name_bad_input(changed, message):
    ones = torch.ones(2, 3)
    arguments = dict(scores=torch.ones(2), logprobs=ones, ref_logprobs=ones, mask=ones, kl_coef=0.1) | changed
    with pytest.raises(ValueError, match=message):
        kl_shaped_rewards(**arguments)


# potential_shaped_rewards


@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_shaping_is_its_definition_and_moves_each_return_by_minus_the_potential(T, gamma, randn, prefix_mask):
    rewards, potentials, mask = randn(6, T), randn(6, T), prefix_mask(T)

    def row(b, n):
        phi = [*potentials[b, :n].tolist(), 0.0]
        return [rewards[b, t].item() + gamma * phi[t + 1] - phi[t] for t in range(n)]

    shaped = potential_shaped_rewards(rewards, potentials, mask, gamma)
    torch.testing.assert_close(shaped, rows(mask, row), rtol=0, atol=1e-12)
    before = rows(mask, lambda b, n: returns_by_loop(rewards[b, :n].tolist(), gamma))
    after = rows(mask, lambda b, n: returns_by_loop(shaped[b, :n].tolist(), gamma))
    torch.testing.assert_close(after - before, -potentials * mask, rtol=0, atol=1e-12)


def test_shaping_by_hand_pays_for_the_way_up_and_takes_it_back_at_the_end():
    rewards, potentials = torch.tensor([[0.0, 0.0, 1.0, 9.0]]), torch.tensor([[0.0, 2.0, 6.0, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert potential_shaped_rewards(rewards, potentials, mask, gamma=0.5).tolist() == [[1.0, 1.0, -5.0, 0.0]]
    assert potential_shaped_rewards(rewards, potentials, mask).tolist() == [[2.0, 4.0, -5.0, 0.0]]


@pytest.mark.parametrize("gamma", [0.7, 1.0])
@pytest.mark.parametrize("eos", [None, 0])
def test_shaping_lowers_every_optimal_q_by_the_potential_and_keeps_the_best_actions(gamma, eos, randn):
    V, T = 3, 3
    pay, potential = randn(V**T, V), 5 * randn(V**T)  # of a state and an action, of a state; none is good for the path

    def plain(actions, mask, shaped=False):
        state, states = torch.zeros(len(actions), dtype=torch.long), []
        for tokens in actions.unbind(1):
            states.append(state)
            state = (state * V + tokens + 1) % V**T
        states = torch.stack(states, dim=1)
        rewards = pay[states, actions]
        return potential_shaped_rewards(rewards, potential[states], mask, gamma) if shaped else rewards

    before = TokenMDP(V, T, plain, eos)
    after = TokenMDP(V, T, lambda actions, mask: plain(actions, mask, shaped=True), eos)
    passed = before.states[before.mask > 0].unique()
    q, shaped_q = before.optimal_q_values(gamma)[passed], after.optimal_q_values(gamma)[passed]
    torch.testing.assert_close(shaped_q, q - potential[passed, None], rtol=0, atol=1e-12)
    assert torch.equal(shaped_q.argmax(1), q.argmax(1))
    assert not torch.equal(before.rewards, after.rewards)


@pytest.mark.parametrize("filler", [1.0, INF, NAN])
def test_shaping_ignores_what_is_masked(filler, randn, prefix_mask):
    rewards, potentials, mask = randn(6, 7), randn(6, 7), prefix_mask(7)
    expected = potential_shaped_rewards(rewards * mask, potentials * mask, mask, 0.9)
    dirty = [torch.where(mask > 0, x, filler) for x in (rewards, potentials)]
    assert torch.equal(potential_shaped_rewards(*dirty, mask, 0.9), expected)


@pytest.mark.parametrize(
    "changed, message",
    [
        (dict(rewards=torch.ones(2)), r"rewards must have the shape of mask \(2, 3\), got \(2,\)"),
        (dict(potentials=torch.ones(2, 4)), r"potentials must have the shape of mask \(2, 3\), got \(2, 4\)"),
        (dict(gamma=1.5), r"gamma must lie in \[0, 1\], got 1.5"),
    ],
)
def test_potential_shaped_rewards_name_bad_input(changed, message):
    ones = torch.ones(2, 3)
    with pytest.raises(ValueError, match=message):
        potential_shaped_rewards(**dict(rewards=ones, potentials=ones, mask=ones) | changed)


# AdaptiveKL


@pytest.mark.parametrize(
    "kl, expected",
    [
        (12.0, 0.2 * 1.00512),  # twice the target: the error of 1 is clipped to 0.2, and 0.2 * 256 / 10000 = 0.00512
        (6.6, 0.2 * 1.00256),  # 10 % above: 0.1 * 256 / 10000 = 0.00256
        (6.0, 0.2),
        (5.4, 0.2 * 0.99744),
        (0.0, 0.2 * 0.99488),  # error -1, clipped to -0.2
        (-3.0, 0.2 * 0.99488),  # an estimate may be negative
    ],
)
def test_kl_coef_moves_as_in_ziegler_et_al(kl, expected):
    adaptive = AdaptiveKL(kl_coef=0.2, target=6.0, horizon=10_000)
    assert adaptive.update(kl, num_samples=256) == pytest.approx(expected, rel=1e-12)
    assert adaptive.kl_coef == pytest.approx(expected, rel=1e-12)


def test_kl_coef_updates_compound():
    adaptive = AdaptiveKL(kl_coef=1.0, target=1.0, horizon=100)
    for _ in range(3):
        adaptive.update(5.0, num_samples=50)
    assert adaptive.kl_coef == pytest.approx(1.1**3)


@pytest.mark.parametrize("name", ["kl_coef", "target", "horizon"])
@pytest.mark.parametrize("number", [0, -1.5, NAN])
def test_adaptive_kl_names_bad_input(name, number):
    with pytest.raises(ValueError, match=f"{name} must be positive, got {number}"):
        AdaptiveKL(**dict(kl_coef=0.1, target=6.0, horizon=1000) | {name: number})


def test_adaptive_kl_needs_fewer_samples_than_its_horizon():
    with pytest.raises(ValueError, match="num_samples must be at most horizon 10, got 11"):
        AdaptiveKL(0.1, 6.0, 10).update(1.0, 11)
