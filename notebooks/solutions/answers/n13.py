"""Worked answers to the exercises of notebook 13."""

import torch


# The surprisal is minus the log-probability of what was chosen, the entropy is what that should be on average. Their
# difference has mean 0 exactly when the actions come from the distribution that scores them.
def my_surprise_gap(logits, actions, mask):
    log_pi = logits.log_softmax(-1)
    surprisal = -log_pi.gather(-1, actions[..., None])[..., 0]
    entropy = -(log_pi.exp() * log_pi).sum(-1)
    return ((surprisal - entropy) * mask).sum() / mask.sum()


# Summed over a response the rewards are the score minus the price times the log-ratio, wherever the score was put. So
# the sums alone give the price away, and its sign.
def my_price_paid(scores, rewards, log_ratio, mask):
    charged = scores.sum() - (rewards * mask).sum()
    return charged / (log_ratio * mask).sum()


# The padding is not a part of the batch: pick the counted advantages first, then take mean and spread of those.
def my_whitened(advantages, mask):
    counted = advantages[mask > 0]
    whitened = (advantages - counted.mean()) / counted.std(correction=0)
    return whitened * mask


# One counter is all the memory it needs: how many iterations in a row have been above the limit.
def my_alarms(kl, limit, patience):
    alarms, run = torch.zeros_like(kl), 0
    for i, x in enumerate(kl.tolist()):
        run = run + 1 if x > limit else 0
        alarms[i] = float(run >= patience)
    return alarms
