"""Q-learning for text: a table or a network that says what each next token is worth, and acting on it."""

from typing import NamedTuple

import torch
from torch import Tensor

from rlcourse.envs import TokenMDP
from rlcourse.masking import check_shapes, last_counted, masked_mean


def td_target(
    rewards: Tensor, next_q: Tensor, dones: Tensor, gamma: float = 1.0, choose_by: Tensor | None = None
) -> Tensor:
    """What Q(s, a) should be, by the reward and the best next action (Sutton and Barto 2018, eq. 6.8).

    rewards, dones: [...]; next_q: [..., V], Q in the next state -> [...], without gradient.

        r + gamma * (1 - done) * max_a' Q(s', a')

    choose_by: [..., V] or None. If given, it chooses a' and next_q only says what a' is worth: with the online network
    as choose_by and the target network as next_q this is double DQN (van Hasselt et al. 2016).
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
    for name, x in dict(next_q=next_q, choose_by=choose_by).items():
        if x is not None and x.shape[:-1] != rewards.shape:
            raise ValueError(f"{name} must be rewards {tuple(rewards.shape)} and one more axis, got {tuple(x.shape)}")
    if dones.shape != rewards.shape:
        raise ValueError(f"dones must have the shape of rewards {tuple(rewards.shape)}, got {tuple(dones.shape)}")
    with torch.no_grad():
        best = (next_q if choose_by is None else choose_by).argmax(-1, keepdim=True)
        value = next_q.gather(-1, best)[..., 0]
        return rewards + gamma * torch.where(dones > 0, 0, value)


class Transitions(NamedTuple):
    """M steps: in `states` the `actions` earned `rewards` and led to `next_states`; all [M]. dones: 1 = the text ended
    (then the next state is written as 0 and never looked at)."""

    states: Tensor
    actions: Tensor
    rewards: Tensor
    next_states: Tensor
    dones: Tensor


def transitions(actions: Tensor, rewards: Tensor, mask: Tensor, vocab_size: int) -> Transitions:
    """The steps of texts that began empty, text by text; states are numbered as in `TokenMDP`.

    actions, rewards, mask: [B, T] -> M = mask.sum() steps; the last counted action of a text is its end.
    """
    check_shapes(mask, actions=actions, rewards=rewards)
    state, columns = actions.new_zeros(len(actions)), []
    for tokens in actions.unbind(1):
        columns.append(state)
        state = state * vocab_size + tokens + 1
    states, following = torch.stack(columns, 1), torch.stack([*columns[1:], state], 1)
    dones, counted = last_counted(mask), mask > 0
    following = torch.where(dones > 0, 0, following)
    return Transitions(*(x[counted] for x in (states, actions, rewards, following, dones)))


def all_transitions(mdp: TokenMDP) -> Transitions:
    """Every step of the token MDP exactly once, ordered by state and action."""
    steps = transitions(mdp.actions, mdp.rewards, mdp.mask, mdp.vocab_size)
    pair, which = (steps.states * mdp.vocab_size + steps.actions).unique(return_inverse=True)
    first = torch.zeros_like(pair).scatter_(0, which, torch.arange(len(which)))  # any one: the repeats are alike
    return Transitions(*(x[first] for x in steps))


@torch.no_grad()
def q_learning_update(
    q: Tensor, steps: Transitions, step_size: float = 1.0, gamma: float = 1.0, visits: Tensor | None = None
) -> Tensor:
    """One step of Q-learning (Watkins 1989; Sutton and Barto 2018, eq. 6.8) for each transition; changes `q` in place.

        error = r + gamma * (1 - done) * max_a' Q(s', a') - Q(s, a)            Q(s, a) += step_size * error

    q: [S, V]. visits: [S, V] or None; if given, it is counted up in place and the step size is step_size / visits, but
    at most 1: with step_size 1 the entry is the mean of all its targets, with 2 one in which later targets weigh more.
    Targets are taken from the table as it was. Returns the errors [M]. A pair (s, a) may occur only once in a call.
    """
    at = steps.states, steps.actions
    if len((steps.states * q.shape[1] + steps.actions).unique()) < len(steps.states):
        raise ValueError("steps holds the same state and action twice: update with one after the other")
    errors = td_target(steps.rewards, q[steps.next_states], steps.dones, gamma) - q[at]
    if visits is not None:
        visits[at] += 1
        step_size = (step_size / visits[at]).clamp(max=1)
    q[at] += step_size * errors
    return errors


def epsilon_greedy(q: Tensor, epsilon: float) -> Tensor:
    """Probabilities [..., V]: with epsilon any action, else the best one by q [..., V]; equally good ones share.

    >>> epsilon_greedy(torch.tensor([1., 3., 3., 0.]), 0.2)
    tensor([0.0500, 0.4500, 0.4500, 0.0500])
    """
    if not 0 <= epsilon <= 1:
        raise ValueError(f"epsilon must lie in [0, 1], got {epsilon}")
    best = (q == q.amax(-1, keepdim=True)).to(q.dtype)
    return (1 - epsilon) * best / best.sum(-1, keepdim=True) + epsilon / q.shape[-1]


def linear_decay(step: int, steps: int, start: float = 1.0, end: float = 0.05) -> float:
    """From `start` at step 0 in a straight line to `end` at step `steps`, and `end` ever after."""
    return start + (end - start) * min(step / steps, 1.0)


class EpsilonGreedy:
    """A `TabularPolicy` or an `RNNPolicy` whose logits are taken as Q-values, and acted on epsilon-greedily.

    It is itself a policy: `sample_tokens` can write with it, and a `TokenMDP` can say what it earns, exactly.
    """

    def __init__(self, network, epsilon: float = 0.0):
        self.network, self.epsilon = network, epsilon
        self.start, self.append = network.start, network.append

    def predict(self, state) -> tuple[Tensor, Tensor]:
        """Log-probabilities [..., V], and the values max_a Q(s, a) [...], in the states."""
        q, _ = self.network.predict(state)
        return epsilon_greedy(q, self.epsilon).log(), q.amax(-1)

    def evaluate(self, inputs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """actions: [B, T] -> logprobs and values: [B, T]; minus infinity for what is never chosen."""
        q = self.network.logits(inputs, actions)
        probabilities = epsilon_greedy(q, self.epsilon).gather(-1, actions[..., None])[..., 0]
        return probabilities.log(), q.amax(-1)


def dqn_loss(
    q: Tensor,
    target_q: Tensor,
    actions: Tensor,
    rewards: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    double: bool = False,
) -> Tensor:
    """Mean squared error of Q(s_t, a_t) against its target, over the counted actions (Mnih et al. 2015, eq. 2).

    q, target_q: [B, T, V], Q in the state of each action by the network that learns and by the target network (the
    same tensor, if there is none); the state after action t is that of action t + 1. actions, rewards, mask: [B, T].

        mean of (Q(s_t, a_t) - r_t - gamma * max_a' Q_target(s_{t+1}, a'))^2, nothing after a text's last action

    No gradient flows through the target. double=True: the learning network chooses a' (double DQN).
    """
    check_shapes(mask, actions=actions, rewards=rewards)
    if q.shape != target_q.shape or q.shape[:-1] != mask.shape:
        raise ValueError(f"q and target_q must be [B, T, V] with [B, T] = {tuple(mask.shape)}, "
                         f"got {tuple(q.shape)} and {tuple(target_q.shape)}")  # fmt: skip
    following = [torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], dim=1) for x in (target_q, q)]
    targets = td_target(rewards, following[0], last_counted(mask), gamma, following[1] if double else None)
    errors = q.gather(-1, actions[..., None])[..., 0] - targets
    return masked_mean(errors**2, mask)


class Replay:
    """The last `capacity` texts, in memory, to learn from again: an experience replay (Lin 1992; Mnih et al. 2015)."""

    def __init__(self, capacity: int):
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.capacity, self._columns = capacity, None

    def __len__(self) -> int:
        return 0 if self._columns is None else len(self._columns[0])

    def add(self, *columns: Tensor) -> None:
        """Keep tensors that belong together, e.g. actions, rewards and mask, [B, ...] each; the oldest rows go."""
        if len({len(x) for x in columns}) != 1:
            raise ValueError(f"columns must have equally many rows, got {[tuple(x.shape) for x in columns]}")
        if self._columns is not None:
            columns = [torch.cat([old, new]) for old, new in zip(self._columns, columns, strict=True)]
        self._columns = [x[-self.capacity :] for x in columns]

    def sample(self, size: int, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        """`size` rows drawn with replacement, as tensors in the order of `add`."""
        if not len(self):
            raise ValueError("there is nothing to sample: add texts first")
        rows = torch.randint(len(self), (size,), generator=generator)
        return tuple(x[rows] for x in self._columns)
