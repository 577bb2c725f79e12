"""Worked answers to the exercises of notebook 07."""

import torch


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
