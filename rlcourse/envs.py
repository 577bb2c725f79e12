"""A Markov decision process of texts so small that every text can be listed, and so every quantity is known exactly."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rlcourse.baselines import flat_gradient, score_functions
from rlcourse.masking import last_counted
from rlcourse.rollout import Rollout, sample_tokens

LIMIT = 2**17  # texts to list, at most


class TokenMDP:
    """Texts of `horizon` tokens from a vocabulary of `vocab_size`, all of them listed, in float64.

    A state is the text so far, an action the next token, and the transition appends it: no chance in it.
    reward: (actions [N, T], mask [N, T]) -> [N], paid at a text's last token, or [N, T], paid token by token; then r_t
    may depend on the tokens up to t only. eos: the token that ends a text before the horizon, or None.

    N texts in lexicographic order: `actions`, `mask`, `rewards`, `states` [N, T] and `inputs` [N, 0], the empty prompt.
    S states are numbered as in a heap: the empty text is 0, and appending token a to state s gives s * V + a + 1.
    A policy is anything with `evaluate(inputs, actions)`; `sample` needs start, predict and append too, as
    `sample_tokens` does. The answers are exact for parameters in float64, and good to about 1e-6 in float32.
    """

    def __init__(self, vocab_size: int, horizon: int, reward: Callable[[Tensor, Tensor], Tensor], eos=None):
        if vocab_size < 2 or horizon < 1:
            raise ValueError(f"vocab_size must be at least 2 and horizon 1, got {vocab_size} and {horizon}")
        if vocab_size**horizon > LIMIT:
            raise ValueError(
                f"vocab_size ** horizon = {vocab_size}^{horizon} = {vocab_size**horizon:,} texts are too many to list; "
                f"the limit is {LIMIT:,}"
            )
        if eos is not None and not 0 <= eos < vocab_size:
            raise ValueError(f"eos must be a token, 0 to {vocab_size - 1}, or None, got {eos}")
        self.vocab_size, self.horizon, self.eos, self._reward = vocab_size, horizon, eos, reward
        self.num_states = (vocab_size**horizon - 1) // (vocab_size - 1)
        tokens = torch.arange(vocab_size)
        actions = torch.cartesian_prod(*[tokens] * horizon).reshape(-1, horizon)
        if eos is not None:
            ended = (actions == eos).cumsum(1) - (actions == eos).long() > 0  # an EOS came before
            actions = torch.where(ended, eos, actions).unique(dim=0)
        ends = actions == (-1 if eos is None else eos)
        self.actions, self.mask = actions, (ends.cumsum(1) - ends.long() == 0).double()
        self.inputs = actions[:, :0]
        self.states = _states(self.inputs, actions, vocab_size)
        self.rewards = self.pay(self.actions, self.mask)
        if not torch.allclose(self._table(self.rewards)[self.states, self.actions] * self.mask, self.rewards):
            raise ValueError("reward at a token depends on tokens after it; a reward of shape [N] is paid at the end")

    def __len__(self) -> int:
        return len(self.actions)

    def pay(self, actions: Tensor, mask: Tensor) -> Tensor:
        """The rewards [B, T] of given texts, float64, 0 where masked."""
        mask = mask.double()
        rewards = torch.as_tensor(self._reward(actions, mask), dtype=torch.float64)
        if rewards.shape == mask.shape[:1]:
            rewards = torch.where(last_counted(mask) > 0, rewards[:, None], 0)
        if rewards.shape != mask.shape:
            raise ValueError(f"reward must return [N] or [N, T] for actions {tuple(actions.shape)}, "
                             f"got shape {tuple(rewards.shape)}")  # fmt: skip
        if not rewards.isfinite().all():
            row = int((~rewards.isfinite()).nonzero()[0, 0])
            raise ValueError(f"reward must be finite, got {rewards[row].tolist()} for {actions[row].tolist()}")
        return rewards * mask

    def sample(self, policy, batch_size: int, generator: torch.Generator | None = None) -> tuple[Rollout, Tensor]:
        """Let the policy write `batch_size` texts token by token -> rollout and rewards [B, T]."""
        rollout = sample_tokens(policy, self.inputs[:1].expand(batch_size, 0), self.horizon, self.eos, generator)
        return rollout, self.pay(rollout.actions, rollout.mask)

    def rollout(self, policy, rows=slice(None)) -> Rollout:
        """The listed texts, or some of them by their numbers, as if the policy had just written them."""
        rows = [rows] if isinstance(rows, int) else rows
        mask = self.mask[rows]
        with torch.no_grad():
            logprobs, values = policy.evaluate(self.inputs[rows], self.actions[rows])
        logprobs, values = (torch.where(mask > 0, x, 0) for x in (logprobs, values))
        return Rollout(self.inputs[rows], self.actions[rows], mask, logprobs, values)

    def batches(self, size: int) -> Tensor:
        """Every batch of `size` texts, as row numbers [N^size, size]: the batch's probability is their product."""
        if size < 1:
            raise ValueError(f"size must be at least 1, got {size}")
        if len(self) ** size > LIMIT:
            raise ValueError(f"{len(self)}^{size} = {len(self) ** size:,} batches are too many; the limit is {LIMIT:,}")
        return torch.cartesian_prod(*[torch.arange(len(self))] * size).reshape(-1, size)

    # What one text is worth, and what the policy is worth

    def returns(self, gamma: float = 1.0) -> Tensor:
        """The total, discounted return of each text [N]: sum_t gamma^t r_t."""
        return self.rewards @ (gamma ** torch.arange(self.horizon, dtype=torch.float64))

    def logprobs(self, policy) -> Tensor:
        """log p(text) [N], with its gradient: the sum of the log-probabilities of its actions."""
        return torch.where(self.mask > 0, policy.evaluate(self.inputs, self.actions)[0].double(), 0).sum(1)

    def probabilities(self, policy) -> Tensor:
        """p(text) [N], with its gradient; they sum to 1."""
        return self.logprobs(policy).exp()

    def expected_return(self, policy, gamma: float = 1.0) -> Tensor:
        """J = sum over texts of p(text) * return(text); a scalar with its gradient."""
        return self.probabilities(policy) @ self.returns(gamma)

    def gradient(self, policy, gamma: float = 1.0) -> Tensor:
        """grad J [D], over all parameters in order, by differentiating the sum itself."""
        return flat_gradient(self.expected_return(policy, gamma), policy)

    def gradient_by_score(self, policy, gamma: float = 1.0) -> Tensor:
        """The same vector by the policy-gradient theorem: E[ sum_t grad log pi(a_t|s_t) * return ]."""
        scores = score_functions(policy, self.inputs, self.actions).double()  # [N, T, D]
        weights = self.mask * (self.probabilities(policy).detach() * self.returns(gamma))[:, None]
        return torch.einsum("nt,ntd->d", weights, scores)

    def moments(self, policy, estimates: Tensor) -> tuple[Tensor, Tensor]:
        """Exact mean [D] and total variance (the sum over D) of an estimator that gives estimates [N, D], one a text.

        The mean of B independent estimates has 1/B of the variance.
        """
        p, estimates = self.probabilities(policy).detach(), estimates.double()
        mean = p @ estimates
        return mean, p @ ((estimates - mean) ** 2).sum(1)

    # State by state

    def action_probabilities(self, policy) -> Tensor:
        """pi(a|s) as a table [S, V]; 0 in states that come after EOS."""
        with torch.no_grad():
            return self._table(policy.evaluate(self.inputs, self.actions)[0].exp())

    def q_values(self, policy, gamma: float = 1.0) -> Tensor:
        """Q(s, a) [S, V] by Bellman's equation: r(s, a) + gamma * sum_a' pi(a'|s') Q(s', a')."""
        pi = self.action_probabilities(policy)
        return self._backward(lambda level, q: (pi[level] * q).sum(-1), gamma)

    def values(self, policy, gamma: float = 1.0) -> Tensor:
        """V(s) [S] = sum_a pi(a|s) Q(s, a)."""
        return (self.action_probabilities(policy) * self.q_values(policy, gamma)).sum(-1)

    def advantages(self, policy, gamma: float = 1.0) -> Tensor:
        """A(s, a) [S, V] = Q(s, a) - V(s)."""
        return self.q_values(policy, gamma) - self.values(policy, gamma)[:, None]

    def optimal_q_values(self, gamma: float = 1.0) -> Tensor:
        """Q*(s, a) [S, V] by Bellman's optimality equation: r(s, a) + gamma * max_a' Q*(s', a')."""
        return self._backward(lambda level, q: q.max(-1).values, gamma)

    # The KL-regularised objective

    def kl(self, policy, ref_policy) -> Tensor:
        """KL(policy || ref_policy) over whole texts, in nats; a scalar with its gradient."""
        logprobs = self.logprobs(policy)
        log_ratio = torch.where(logprobs > -torch.inf, logprobs - self.logprobs(ref_policy), 0)  # 0 log 0 = 0
        return (logprobs.exp() * log_ratio).sum()

    def regularised_return(self, policy, ref_policy, kl_coef: float) -> Tensor:
        """J_beta = J - kl_coef * KL(policy || ref_policy); a scalar with its gradient."""
        return self.expected_return(policy) - kl_coef * self.kl(policy, ref_policy)

    def optimal_policy(self, ref_policy, kl_coef: float) -> "TabularPolicy":
        """The policy with the largest J_beta: p*(text) = p_ref(text) * exp(return / kl_coef) / Z.

        Found state by state, by Bellman's equation with a soft maximum: pi*(a|s) ~ pi_ref(a|s) * exp(Q(s, a) / kl_coef)
        with Q(s, a) = r(s, a) + kl_coef * log sum_a' pi_ref(a'|s') exp(Q(s', a') / kl_coef).
        """
        if not kl_coef > 0:
            raise ValueError(f"kl_coef must be positive, got {kl_coef}")
        with torch.no_grad():
            log_ref = self._table(ref_policy.evaluate(self.inputs, self.actions)[0].double())
        alive = self._table(self.mask)[:, 0]  # 1 unless EOS came before: there nothing more is earned

        def tilted(level, q: Tensor) -> Tensor:
            return q / kl_coef + log_ref[level]

        q = self._backward(lambda level, q: kl_coef * tilted(level, q).logsumexp(-1) * alive[level], 1.0)
        policy = TabularPolicy(self.vocab_size, self.horizon)
        policy.logits_table.data = tilted(slice(None), q).log_softmax(-1).clamp(min=-1000)
        return policy

    def _table(self, x: Tensor) -> Tensor:
        """[N, T] numbers that depend on (state, action) only -> [S, V], 0 where no text passes."""
        table = x.new_zeros(self.num_states, self.vocab_size)
        counted = self.mask > 0
        table[self.states[counted], self.actions[counted]] = x[counted]
        return table

    def _backward(self, value_of: Callable, gamma: float) -> Tensor:
        """Q [S, V] from the last level of the tree to the first; value_of(level, Q of the level) -> V of the level."""
        q, V = self._table(self.rewards), self.vocab_size
        first = [(V**t - 1) // (V - 1) for t in range(self.horizon + 1)]  # states of t tokens start here
        for t in reversed(range(self.horizon - 1)):
            below = slice(first[t + 1], first[t + 2])
            q[first[t] : first[t + 1]] += gamma * value_of(below, q[below]).reshape(-1, V)
        return q


class TabularPolicy(nn.Module):
    """One row of logits and one value for each state of a `TokenMDP`, all zero at first: the uniform policy; float64.

    memory: None for a row for every text of fewer than `horizon` tokens; k for a policy that sees only the last k
    tokens, so that different states share a row. inputs of `evaluate` are prompts [B, P], usually with P = 0.
    """

    def __init__(self, vocab_size: int, horizon: int, memory: int | None = None):
        super().__init__()
        if vocab_size < 2 or horizon < 1:
            raise ValueError(f"vocab_size must be at least 2 and horizon 1, got {vocab_size} and {horizon}")
        if memory is not None and memory < 0:
            raise ValueError(f"memory must be None or a number of tokens, got {memory}")
        depth = horizon - 1 if memory is None else min(memory, horizon - 1)
        num_states, num_rows = ((vocab_size**n - 1) // (vocab_size - 1) for n in (horizon, depth + 1))
        rows = torch.arange(num_states)
        while (rows >= num_rows).any():  # too long a text: forget its first token
            rows = torch.where(rows >= num_rows, _forget_first(rows, vocab_size), rows)
        self.vocab_size, self.horizon = vocab_size, horizon
        self.register_buffer("rows", rows)  # state -> row
        self.logits_table = nn.Parameter(torch.zeros(num_rows, vocab_size, dtype=torch.float64))
        self.values_table = nn.Parameter(torch.zeros(num_rows, dtype=torch.float64))

    def start(self, inputs: Tensor) -> Tensor:
        """The state after the prompts [B, P] -> [B]."""
        _check_tokens(self.vocab_size, inputs=inputs)
        state = inputs.new_zeros(len(inputs))
        for tokens in inputs.unbind(1):
            state = self.append(state, tokens)
        return state

    def predict(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [..., V] and values [...] in the states."""
        if (state >= len(self.rows)).any():
            raise ValueError(f"a text may have {self.horizon} tokens at most, its prompt included")
        return self.logits_table[self.rows[state]], self.values_table[self.rows[state]]

    def append(self, state: Tensor, actions: Tensor) -> Tensor:
        """The transition: the state after appending a token."""
        return state * self.vocab_size + actions + 1

    def logits(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """[B, T, V]: what each action was drawn from."""
        return self.predict(self._states(inputs, actions))[0]

    def evaluate(self, inputs: Tensor, actions: Tensor, with_entropy: bool = False) -> tuple[Tensor, ...]:
        """actions: [B, T] -> logprobs, values and, if asked for, entropies: [B, T]."""
        logits, values = self.predict(self._states(inputs, actions))
        log_pi = logits.log_softmax(-1)
        logprobs = log_pi.gather(-1, actions[..., None])[..., 0]
        return (logprobs, values, -(log_pi.exp() * log_pi).sum(-1)) if with_entropy else (logprobs, values)

    def _states(self, inputs: Tensor, actions: Tensor) -> Tensor:
        if inputs.ndim != 2 or actions.ndim != 2 or len(inputs) != len(actions):
            shapes = tuple(inputs.shape), tuple(actions.shape)
            raise ValueError(f"inputs must be [B, P] and actions [B, T], got {shapes[0]} and {shapes[1]}")
        if inputs.shape[1] + actions.shape[1] > self.horizon:
            raise ValueError(f"inputs and actions must be {self.horizon} tokens together at most, "
                             f"got {inputs.shape[1]} and {actions.shape[1]}")  # fmt: skip
        _check_tokens(self.vocab_size, inputs=inputs, actions=actions)
        return _states(inputs, actions, self.vocab_size)


def _states(inputs: Tensor, actions: Tensor, vocab_size: int) -> Tensor:
    """[B, T]: the state in which each action was chosen."""
    state, states = inputs.new_zeros(len(actions)), []
    for column, tokens in enumerate(torch.cat([inputs, actions], dim=1).unbind(1)):
        if column >= inputs.shape[1]:
            states.append(state)
        state = state * vocab_size + tokens + 1
    return torch.stack(states, dim=1)


def _check_tokens(vocab_size: int, **tokens: Tensor) -> None:
    for name, x in tokens.items():
        if ((x < 0) | (x >= vocab_size)).any():
            raise ValueError(f"{name} must hold tokens 0 to {vocab_size - 1}, got {x.min()} to {x.max()}")


def _forget_first(state: Tensor, vocab_size: int) -> Tensor:
    """The state of the text without its first token."""
    first_of_level, power = torch.zeros_like(state), torch.ones_like(state)
    while (deeper := state >= first_of_level + power).any():  # find each state's level, V^level states wide
        first_of_level = torch.where(deeper, first_of_level + power, first_of_level)
        power = torch.where(deeper, power * vocab_size, power)
    narrower = power // vocab_size
    return (state - first_of_level) % narrower.clamp(min=1) + first_of_level - narrower
