"""Worked answers to the exercises of notebook 12."""


# One row for each group, so that the mean and the standard deviation run along dimension 1 and `keepdim` lets them
# meet every member again. `std` divides by G - 1 unless told otherwise. In a group of equal scores numerator and
# standard deviation are both 0; a small number below makes 0 of the 0/0. It must be small against every real spread.
def my_group_advantages(scores, group_size):
    groups = scores.reshape(-1, group_size)  # [B / G, G]
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + 1e-5)).flatten()


# Row i of the comparison table says which texts score at most what text i scores. All n texts stay at or below that
# level with probability F^n, and all stay below it with probability (F below)^n; the difference is the probability
# that the best one is on the level. There the text has its share p / (F - F below).
def my_best_of_n(probabilities, scores, n):
    upto = (scores[:, None] >= scores).to(probabilities.dtype) @ probabilities  # [N]
    below = (scores[:, None] > scores).to(probabilities.dtype) @ probabilities
    return probabilities / (upto - below) * (upto**n - below**n)


# The gap says how much more the policy has raised the preferred response than the rejected one, relative to the
# reference. DPO wants it as large as possible; IPO wants it to be 1 / (2 tau), and more is as wrong as less.
def my_ipo_loss(preferred, rejected, ref_preferred, ref_rejected, tau):
    gap = (preferred - ref_preferred) - (rejected - ref_rejected)
    return ((gap - 1 / (2 * tau)) ** 2).mean()


# k1 in the loss pulls at each log-probability with the constant kl_coef / B, and a constant times grad log pi averages
# to zero. As part of the score, the same k1 is multiplied by grad log pi instead of being differentiated: that is
# the KL's true gradient. The detach makes sure that it is not differentiated as well.
def my_priced_loss(logprobs, ref_logprobs, scores, kl_coef):
    priced = (scores - kl_coef * (logprobs - ref_logprobs)).detach()
    return -(priced * logprobs).mean()
