"""Worked answers to the exercises of notebook 01."""

import torch


# A text's probability is the product of its actions' probabilities. Behind the end nothing is chosen, so the factor
# there is 1; and nothing is paid, so the reward there is 0. The probabilities are the weights of the sum: no mean.
def my_expected_return(pi, mask, rewards):
    p = torch.where(mask > 0, pi, 1).prod(1)  # [N]
    return (p * (rewards * mask).sum(1)).sum()


# log pi(a) = z_a - log sum_u exp(z_u). The first part has slope 1 at the chosen logit and 0 elsewhere, the second has
# slope pi(v) at every logit. A row sums to 1 - 1 = 0: adding the same number to all logits changes no probability.
def my_softmax_score(logits, actions):
    one_hot = torch.nn.functional.one_hot(actions, logits.shape[-1])  # [B, V]
    return one_hot - logits.softmax(-1)


# Mask the rewards first, so that nothing leaks back over the end; then add up from the right. After the end nothing is
# left to add up, so the weights there are 0 and the scores drop out by themselves. A sum over t, as in the theorem.
def my_gradient_estimates(scores, rewards, mask):
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1)  # [N, T]
    return torch.einsum("ntd,nt->nd", scores, to_go)


# The sample already contains each action as often as pi says. Differentiating pi(a) R(a) weighs it by pi(a) once more,
# so that a common action is pushed up whether it is good or not. By (5) the gradient of pi is pi times the gradient of
# log pi; the factor pi is done by the sampling, and what remains to be averaged is R times the gradient of log pi.
def my_bandit_gradient(logits, actions, rewards):
    logits = logits.clone().requires_grad_()
    log_pi = logits.log_softmax(-1)
    (log_pi[actions] * rewards).mean().backward()
    return logits.grad
