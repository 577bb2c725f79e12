"""Best-of-n: write n responses and keep the one with the highest score. Nothing is trained."""

import math

import torch
from torch import Tensor

from rlcourse.gpt2 import GPT2Policy, response_texts, sample_responses


def best_of_n_probabilities(probabilities: Tensor, scores: Tensor, n: int) -> Tensor:
    """The exact distribution of the best of n texts, on texts that can be listed; among equals one is drawn.

    probabilities: [N], of all texts, sum 1. scores: [N] -> [N].

        p(text) * (F(score)^n - F_below(score)^n) / (F(score) - F_below(score))

    F(s) is the probability of a text that scores at most s, F_below(s) of one that scores less.
    """
    _check_n(n)
    if probabilities.ndim != 1 or scores.shape != probabilities.shape:
        shapes = tuple(probabilities.shape), tuple(scores.shape)
        raise ValueError(f"probabilities and scores must both be [N], got {shapes[0]} and {shapes[1]}")
    levels, level = scores.unique(return_inverse=True)  # ascending
    mass = probabilities.new_zeros(len(levels)).index_add(0, level, probabilities)
    upto = mass.cumsum(0)
    below = upto - mass
    weight = torch.where(mass > 0, (upto**n - below**n) / mass.clamp(min=1e-300), 0)
    return probabilities * weight[level]


def best_of_n_kl_bound(n: int) -> float:
    """KL(best of n || policy) is at most this many nats: log n - (n - 1) / n; equal where no two texts score the same.

    Widely used as if it were the KL; that it is a bound: Beirami et al. 2024.
    """
    _check_n(n)
    return math.log(n) - (n - 1) / n


def sample_best_of_n(
    policy: GPT2Policy, prompts: list[str], reward, n: int, max_new_tokens: int, generator=None
) -> tuple[list[str], Tensor]:
    """The best of n responses to each prompt and their scores [B]; reward: (prompts, responses) -> scores."""
    _check_n(n)
    repeated = [prompt for prompt in prompts for _ in range(n)]
    texts = response_texts(policy, sample_responses(policy, repeated, max_new_tokens, generator=generator))
    best = reward(repeated, texts).reshape(len(prompts), n).max(1)
    return [texts[i * n + k] for i, k in enumerate(best.indices.tolist())], best.values


def _check_n(n: int) -> None:
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n must be a whole number of at least 1, got {n!r}")
