"""Worked answers to the exercises of notebook 06."""


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
