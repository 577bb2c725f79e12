"""Worked answers to the exercises of notebook 09."""

import torch


# With P = m / n and R = m / k, the formula shortens to (1 + beta^2) m / (beta^2 k + n), which is 0, and not 0 / 0,
# where nothing matches. (n, k: the lengths of response and reference.)
def my_f_score(matches, response_length, reference_length, beta):
    return (1 + beta**2) * matches / (beta**2 * reference_length + response_length)


# Choose, do not calculate: a sum lets a good score outbid the filter, and a product lifts bad scores of blocked texts.
def my_gated_scores(scores, passed, otherwise):
    return torch.where(passed == 1, scores, otherwise)


# The ban goes into the logits, before the softmax, so that the remaining tokens share all of the probability. The same
# line must stand in sampling and in scoring.
def my_blocked_logprobs(logits, actions, blocked):
    log_pi = logits.masked_fill(blocked, -torch.inf).log_softmax(-1)  # [B, T, V]
    return log_pi.gather(-1, actions[..., None])[..., 0]  # [B, T]


# A fact is there or it is not. The buggy line adds up mentions, so the fifth "Oban" pays like a new fact.
def my_coverage_score(counts):
    return (counts > 0).float().mean(1)
