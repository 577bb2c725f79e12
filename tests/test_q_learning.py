import itertools

import gymnasium
import pytest
import torch

from rlcourse import text_env
from rlcourse.envs import TabularPolicy, TokenMDP
from rlcourse.q_learning import (
    EpsilonGreedy,
    Replay,
    Transitions,
    all_transitions,
    dqn_loss,
    epsilon_greedy,
    linear_decay,
    q_learning_update,
    td_target,
    transitions,
)
from rlcourse.rnn import RNNPolicy
from rlcourse.rollout import sample_tokens

V, T, END = 3, 4, 2


def pairs(actions, mask):
    hit = torch.zeros_like(mask)
    hit[:, 1:] = ((actions[:, :-1] == 0) & (actions[:, 1:] == 1)) * mask[:, 1:]
    return hit


def last_is_first(actions, mask):
    """Paid at the end, negative too."""
    return 2.0 * (actions[:, 0] == actions[:, -1]) - 1.0


@pytest.fixture(params=[(pairs, END), (pairs, None), (last_is_first, None)], ids=["eos", "no eos", "at the end"])
def mdp(request):
    reward, eos = request.param
    return TokenMDP(V, T, reward, eos)


def best_from(mdp, prefix):
    """The largest sum of rewards that any text with this beginning earns from there on, by listing them."""
    n = len(prefix)
    starts = (mdp.actions[:, :n] == torch.tensor(prefix)).all(1) & (mdp.mask[:, n - 1] > 0)
    return mdp.rewards[starts][:, n - 1 :].sum(1).max().item()


def prefix_of(state):
    tokens = []
    while state:
        tokens.insert(0, (state - 1) % V)
        state = (state - 1) // V
    return tokens


# -- td_target ------------------------------------------------------------------------------------------------------


def test_td_target_is_the_loop_written_out(randn):
    rewards, next_q, dones = randn(2, 5), randn(2, 5, V), (randn(2, 5) > 0).double()
    answer = td_target(rewards, next_q, dones, gamma=0.7)
    for b, t in itertools.product(range(2), range(5)):
        expected = rewards[b, t].item() + (0 if dones[b, t] else 0.7 * max(next_q[b, t].tolist()))
        assert answer[b, t].item() == pytest.approx(expected)
    assert not td_target(rewards, next_q.requires_grad_(), dones).requires_grad


def test_double_dqn_chooses_by_one_and_values_by_the_other():
    next_q, choose_by = torch.tensor([[5.0, -1.0, 2.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    assert td_target(torch.tensor([1.0]), next_q, torch.zeros(1), 0.5, choose_by).tolist() == [0.5]
    assert td_target(torch.tensor([1.0]), next_q, torch.zeros(1), 0.5, next_q).tolist() == [3.5]


def test_what_stands_after_the_end_is_never_looked_at():
    for junk in (float("nan"), float("inf")):
        assert td_target(torch.ones(1), torch.full((1, V), junk), torch.ones(1)).tolist() == [1.0]


# -- transitions ----------------------------------------------------------------------------------------------------


def test_transitions_of_two_texts_by_hand():
    actions, mask = torch.tensor([[0, 1, 2, 2], [1, 1, 0, 0]]), torch.tensor([[1.0, 1, 1, 0], [1.0, 1, 1, 1]])
    rewards = torch.arange(8.0).reshape(2, 4)
    steps = transitions(actions, rewards, mask, V)
    assert steps.states.tolist() == [0, 1, 5, 0, 2, 8, 25]  # "", a, ab | "", b, bb, bba
    assert steps.actions.tolist() == [0, 1, 2, 1, 1, 0, 0]
    assert steps.rewards.tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert steps.next_states.tolist() == [1, 5, 0, 2, 8, 25, 0]
    assert steps.dones.tolist() == [0, 0, 1, 0, 0, 0, 1]


def test_all_transitions_are_every_state_and_action_once(mdp):
    steps = all_transitions(mdp)
    alive = [s for s in range(mdp.num_states) if mdp.eos not in prefix_of(s)]
    assert list(zip(steps.states.tolist(), steps.actions.tolist())) == [(s, a) for s in alive for a in range(V)]
    for s, a, r, following, done in zip(*(x.tolist() for x in steps)):
        text = [*prefix_of(s), a]
        assert done == (a == mdp.eos or len(text) == T)
        assert following == 0 if done else prefix_of(following) == text
        row = next(i for i, x in enumerate(mdp.actions.tolist()) if x[: len(text)] == text)
        assert r == mdp.rewards[row, len(text) - 1]


# -- q_learning_update ----------------------------------------------------------------------------------------------


def test_update_is_the_loop_written_out(randn):
    q, gamma = randn(6, V), 0.9
    steps = Transitions(
        torch.tensor([0, 2, 0]),
        torch.tensor([1, 0, 2]),
        randn(3),
        torch.tensor([2, 0, 4]),
        torch.tensor([0.0, 1.0, 0.0]),
    )
    before, expected = q.clone(), q.clone()
    errors = q_learning_update(q, steps, step_size=0.3, gamma=gamma)
    for i, (s, a, r, following, done) in enumerate(zip(*(x.tolist() for x in steps))):
        error = r + gamma * (1 - done) * max(before[following].tolist()) - before[s, a].item()
        expected[s, a] += 0.3 * error
        assert errors[i].item() == pytest.approx(error)
    assert torch.allclose(q, expected, rtol=0, atol=1e-12) and not torch.equal(q, before)


def test_with_visits_a_pair_without_a_future_becomes_the_mean_of_its_rewards(randn):
    q, visits, rewards = randn(2, V), torch.zeros(2, V), randn(50)
    for r in rewards:
        step = Transitions(torch.tensor([1]), torch.tensor([2]), r[None], torch.tensor([0]), torch.ones(1))
        q_learning_update(q, step, visits=visits)
    assert q[1, 2].item() == pytest.approx(rewards.mean().item())
    assert visits[1, 2] == 50 and visits.sum() == 50


def test_with_twice_the_step_the_kth_target_weighs_k_minus_1(randn):
    """q_n = sum (k - 1) r_k / sum (k - 1): the recursion with step min(1, 2 / n), solved."""
    q, visits, rewards = randn(1, V), torch.zeros(1, V), randn(9)
    for n, r in enumerate(rewards, start=1):
        step = Transitions(torch.tensor([0]), torch.tensor([1]), r[None], torch.tensor([0]), torch.ones(1))
        q_learning_update(q, step, 2.0, visits=visits)
        if n == 1:
            assert q[0, 1] == r  # never a step above 1
    weights = torch.arange(9.0)
    assert q[0, 1].item() == pytest.approx((weights @ rewards.float() / weights.sum()).item(), abs=1e-6)


def test_sweeps_with_step_one_reach_the_exact_optimum_after_as_many_as_a_text_has_tokens(mdp, randn):
    q, steps = randn(mdp.num_states, V), all_transitions(mdp)
    for _ in range(T):
        q_learning_update(q, steps)
    pairs_, exact = (steps.states, steps.actions), mdp.optimal_q_values()
    assert torch.allclose(q[pairs_], exact[pairs_], rtol=0, atol=1e-10)
    for s, a in zip(*(x.tolist() for x in pairs_)):
        assert q[s, a].item() == pytest.approx(best_from(mdp, [*prefix_of(s), a]))


def test_a_sweep_is_a_contraction_by_gamma(mdp, randn):
    steps, gamma = all_transitions(mdp), 0.8
    pairs_, exact = (steps.states, steps.actions), mdp.optimal_q_values(gamma)
    q = randn(mdp.num_states, V)
    for _ in range(T + 1):
        before = (q - exact)[pairs_].abs().max()
        q_learning_update(q, steps, gamma=gamma)
        assert (q - exact)[pairs_].abs().max() <= gamma * before + 1e-12


def test_learning_step_by_step_in_the_environment_reaches_the_exact_optimum():
    env = gymnasium.make("rlcourse/Text-v0", vocab="ab.", horizon=T, reward=pairs, eos=END)
    mdp, generator = TokenMDP(V, T, pairs, END), torch.Generator().manual_seed(0)
    q = torch.zeros(mdp.num_states, V, dtype=torch.float64)
    for episode in range(1200):
        observation, _ = env.reset(seed=0 if episode == 0 else None)
        done = False
        while not done:
            s = text_env.state_number(observation, V)
            a = torch.multinomial(epsilon_greedy(q[s], 1.0), 1, generator=generator)
            observation, r, done, _, _ = env.step(a.item())
            following = 0 if done else text_env.state_number(observation, V)
            numbers = torch.tensor([s]), a, torch.tensor([r]).double(), torch.tensor([following]), torch.tensor([done])
            q_learning_update(q, Transitions(*numbers))
    steps = all_transitions(mdp)
    at = steps.states, steps.actions
    assert torch.allclose(q[at], mdp.optimal_q_values()[at], rtol=0, atol=1e-10)


def test_a_pair_that_occurs_twice_is_refused():
    step = Transitions(torch.tensor([1, 1]), torch.tensor([0, 0]), torch.zeros(2), torch.zeros(2).long(), torch.ones(2))
    with pytest.raises(ValueError, match="twice"):
        q_learning_update(torch.zeros(4, V), step)


# -- acting ---------------------------------------------------------------------------------------------------------


def test_epsilon_greedy_by_hand_and_ties_share():
    q = torch.tensor([[1.0, 3.0, 2.0], [0.0, 0.0, -1.0], [5.0, 5.0, 5.0]])
    expected = torch.tensor([[0.1, 0.8, 0.1], [0.45, 0.45, 0.1], [1 / 3] * 3])
    assert torch.allclose(epsilon_greedy(q, 0.3), expected)
    assert torch.allclose(epsilon_greedy(q, 1.0), torch.full((3, 3), 1 / 3))
    assert epsilon_greedy(q, 0.0)[1].tolist() == [0.5, 0.5, 0.0]


def test_linear_decay():
    assert [linear_decay(step, 10, 1.0, 0.2) for step in (0, 5, 10, 99)] == pytest.approx([1.0, 0.6, 0.2, 0.2])


def test_the_greedy_policy_of_the_exact_q_earns_the_most(mdp):
    table = TabularPolicy(V, T)
    table.logits_table.data = mdp.optimal_q_values()
    assert mdp.expected_return(EpsilonGreedy(table)).item() == pytest.approx(mdp.returns().max().item())
    uniform = mdp.expected_return(TabularPolicy(V, T)).item()
    assert mdp.expected_return(EpsilonGreedy(table, 1.0)).item() == pytest.approx(uniform)
    table.logits_table.data *= -1  # greedy for minus Q is not the worst policy, but it is worse
    assert mdp.expected_return(EpsilonGreedy(table)) < mdp.returns().max()


@pytest.mark.parametrize("kind", ["table", "rnn"])
def test_epsilon_greedy_policy_samples_what_it_scores(kind, generator):
    torch.manual_seed(0)
    network = TabularPolicy(V, T) if kind == "table" else RNNPolicy(V, 5).double()
    if kind == "table":
        network.logits_table.data = torch.randn(40, V, generator=generator, dtype=torch.float64)
    policy, empty = EpsilonGreedy(network, 0.4), torch.zeros(20, 0, dtype=torch.long)
    written = sample_tokens(policy, empty, T, generator=generator)
    logprobs, values = policy.evaluate(written.inputs, written.actions)
    assert torch.allclose(logprobs, written.old_logprobs, atol=1e-10)
    assert torch.allclose(values, written.values, atol=1e-10)
    q = network.logits(written.inputs, written.actions)
    for b, t in itertools.product(range(20), range(T)):
        best = written.actions[b, t] == q[b, t].argmax()
        assert logprobs[b, t].exp().item() == pytest.approx(0.4 / V + 0.6 * best.item())
        assert values[b, t] == q[b, t].max()


# -- dqn_loss -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
def test_dqn_loss_is_the_loop_written_out(double, randn, prefix_mask, generator):
    q, target_q, mask = randn(6, T, V).requires_grad_(), randn(6, T, V).requires_grad_(), prefix_mask(T)
    actions, rewards, gamma = torch.randint(0, V, (6, T), generator=generator), randn(6, T), 0.9
    total, count, by_hand = 0.0, 0, torch.zeros(6, T, V, dtype=torch.float64)
    for b, t in itertools.product(range(6), range(T)):
        if mask[b, t]:
            future = 0.0
            if t + 1 < T and mask[b, t + 1]:
                a = (q if double else target_q)[b, t + 1].argmax()
                future = target_q[b, t + 1, a].item()
            error = q[b, t, actions[b, t]].item() - rewards[b, t].item() - gamma * future
            total, count = total + error**2, count + 1
            by_hand[b, t, actions[b, t]] = 2 * error
    loss = dqn_loss(q, target_q, actions, rewards, mask, gamma, double)
    assert loss.item() == pytest.approx(total / count)
    gradient, through_target = torch.autograd.grad(loss, (q, target_q), allow_unused=True)
    assert torch.allclose(gradient, by_hand / count, rtol=0, atol=1e-12) and through_target is None


def test_dqn_loss_is_zero_at_the_exact_q_and_nowhere_near_it(mdp):
    q = mdp.optimal_q_values()[mdp.states]  # [N, T, V]
    assert dqn_loss(q, q, mdp.actions, mdp.rewards, mdp.mask).item() == pytest.approx(0, abs=1e-20)
    assert dqn_loss(q + 0.5, q, mdp.actions, mdp.rewards, mdp.mask).item() == pytest.approx(0.25)


def test_what_is_masked_changes_nothing(randn):
    q, mask = randn(1, T, V), torch.tensor([[1.0, 1, 0, 0]])
    actions, rewards = torch.tensor([[0, 1, 2, 2]]), randn(1, T)
    loss = dqn_loss(q, q, actions, rewards, mask)
    spoilt, paid = q.clone(), rewards.clone()
    spoilt[:, 2:], paid[:, 2:] = float("nan"), float("nan")
    assert dqn_loss(spoilt, spoilt, actions, paid, mask) == loss


# -- replay ---------------------------------------------------------------------------------------------------------


def test_replay_keeps_the_newest_and_draws_rows_that_belong_together(generator):
    replay = Replay(capacity=5)
    for i in range(0, 8, 2):
        numbers = torch.arange(i, i + 2)
        replay.add(numbers[:, None].expand(2, T), 10.0 * numbers)
    assert len(replay) == 5
    tokens, numbers = replay.sample(500, generator)
    assert tokens.shape == (500, T) and torch.equal(tokens[:, 0] * 10.0, numbers)
    counts = torch.bincount(tokens[:, 0], minlength=8)
    assert counts[:3].sum() == 0 and (counts[3:] > 60).all()


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: td_target(torch.zeros(2), torch.zeros(2, V), torch.zeros(2), gamma=1.5), "gamma"),
        (lambda: td_target(torch.zeros(2), torch.zeros(3, V), torch.zeros(2)), r"next_q.*\(2,\).*\(3, 3\)"),
        (lambda: td_target(torch.zeros(2), torch.zeros(2, V), torch.zeros(3)), r"dones.*\(2,\).*\(3,\)"),
        (lambda: td_target(torch.zeros(2), torch.zeros(2, V), torch.zeros(2), 1.0, torch.zeros(1, V)), "choose_by"),
        (lambda: epsilon_greedy(torch.zeros(V), 1.1), "epsilon"),
        (lambda: Replay(0), "capacity"),
        (lambda: Replay(2).sample(1), "nothing"),
        (lambda: Replay(2).add(torch.zeros(1), torch.zeros(2)), "equally many"),
        (lambda: dqn_loss(*[torch.zeros(1, 2, V)] * 2, *[torch.zeros(1, 3)] * 3), r"\(1, 3\).*\(1, 2, 3\)"),
        (lambda: dqn_loss(*[torch.zeros(1, 2, V)] * 2, torch.zeros(1, 3), *[torch.zeros(1, 2)] * 2), "actions"),
        (lambda: transitions(torch.zeros(1, 2), torch.zeros(1, 3), torch.ones(1, 2), V), "rewards"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
