"""Worked answers to the exercises of notebook 03."""


# The others' sum is everybody's sum minus one's own; there are K - 1 of them. `keepdim=True` keeps the sum as a column,
# so that it is subtracted row by row.
def my_leave_one_out(points):
    others = points.shape[1] - 1
    return (points.sum(1, keepdim=True) - points) / others


# First one vector for each text: the estimate without a baseline, and what one unit of baseline takes away from it.
# The best constant is the regression of the first on the second, weighed by the probabilities of the texts.
def my_best_constant(scores, returns, p):
    estimate = (scores * returns[..., None]).sum(1)  # [N, D]
    taken_away = scores.sum(1)  # [N, D]
    return (p @ (estimate * taken_away).sum(1)) / (p @ (taken_away**2).sum(1))


# The policy's loss must not move the values, or it drives them up by the entropy, equation (15). The detach belongs on
# the advantages. The value loss keeps its gradient: it is what teaches the forecast.
def my_loss(logprobs, returns, values, mask):
    advantages = (returns - values).detach()
    policy_loss = -(logprobs * advantages * mask).sum() / len(mask)
    return policy_loss + 0.5 * ((values - returns) ** 2 * mask).sum() / mask.sum()


# The log-probability of a text is the sum over its tokens, so its log-weight is the sum of the differences, with those
# after the end multiplied by 0; exp makes it a product of ratios.
def my_text_weights(logprobs, old_logprobs, mask):
    return ((logprobs - old_logprobs) * mask).sum(1).exp()
