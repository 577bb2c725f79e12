"""The bank of worked answers; `make notebooks` puts them into the solutions notebooks, the tests run them."""

import torch


# The logits at position n predict token n + 1, so the rows that predict tokens P ... N-1 are P-1 ... N-2: drop the last
# column and the first P - 1. Then log-softmax, and pick each chosen token with `gather`.
def my_action_logprobs(logits, ids, prompt_length):
    logprobs = logits[:, prompt_length - 1 : -1].log_softmax(-1)  # [B, T, V]
    return logprobs.gather(-1, ids[:, prompt_length:, None])[..., 0]  # [B, T]


# Counting real tokens from the left gives 1, 2, 3, ... on them; minus one, they stand at 0, 1, 2, ... The padding
# before them would stand at -1: it is masked, but an embedding table needs some valid row, so clamp it at 0.
def my_positions(mask):
    return (mask.cumsum(1) - 1).clamp(min=0)


# `cumsum` says how many EOS have been seen up to and including t; subtracting the one at t itself says how many came
# before t. An action counts as long as that number is 0, and so the first EOS counts.
def my_response_mask(actions, eos):
    ended = (actions == eos).long()
    return (ended.cumsum(1) - ended == 0).float()


# The actions were drawn from pi, so the importance ratio is ref / pi = exp(ref_logprobs - logprobs). The buggy line
# has it upside down. k3 = ratio - 1 - log(ratio), which is never below 0.
def my_k3(logprobs, ref_logprobs, mask):
    log_ratio = (ref_logprobs - logprobs) * mask
    return log_ratio.exp() - 1 - log_ratio


# Every counted action pays for its own log-ratio. The last counted action of a row is the one whose right neighbour
# does not count: its mask minus the mask shifted by one is 1 there and 0 elsewhere.
def my_kl_shaped_rewards(scores, logprobs, ref_logprobs, mask, kl_coef):
    following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
    last = mask - following
    return (scores[:, None] * last - kl_coef * (logprobs - ref_logprobs)) * mask


# Walk from the right. Multiplying both the next value and the carried advantage by the mask of the next action makes
# everything after the end worth nothing.
def my_gae(rewards, values, mask, gamma, lam):
    advantages, carried, next_value = torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        carried = (delta + gamma * lam * carried) * mask[:, t]
        advantages[:, t], next_value = carried, values[:, t] * mask[:, t]
    return advantages


# For a negative advantage `maximum` keeps the clipped, smaller loss of exactly those actions that became likelier
# although they were bad: nothing would push them back. PPO's bound is pessimistic, so it takes the minimum.
def my_clipped_surrogate_loss(logprobs, old_logprobs, advantages, mask, clip_eps):
    ratio = ((logprobs - old_logprobs) * mask).exp()
    clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    return -(surrogate * mask).sum() / mask.sum()


# One of many: questions are worth a point each, and long words a little. It reads only the text, gives every response
# its own score, and an empty response is simply 0.
def my_reward(prompts, responses):
    def score(response):
        words = response.split()
        long_words = sum(len(word) > 6 for word in words)
        return response.count("?") + long_words / max(1, len(words))

    return torch.tensor([float(score(response)) for response in responses])
