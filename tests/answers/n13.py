"""Notebook 13: what a learner may hand in, {mistake: function}; keys that begin with "right" are accepted."""

import torch


def gap(logits, actions, mask, surprisal=None, over=None, sign=1.0, entropy_sign=1.0):
    log_pi = logits.log_softmax(-1)
    scores = log_pi if surprisal is None else surprisal(logits)
    chosen = scores.gather(-1, actions[..., None])[..., 0]
    entropy = -(log_pi.exp() * log_pi).sum(-1)
    return sign * ((-chosen - entropy_sign * entropy) * mask).sum() / (mask.sum() if over is None else over(mask))


def gap_by_loop(logits, actions, mask):
    gaps = []
    for b in range(logits.shape[0]):
        for t in range(logits.shape[1]):
            if mask[b, t]:
                p = torch.softmax(logits[b, t], 0)
                gaps.append(-p[actions[b, t]].log() + (p * p.log()).sum())
    return torch.stack(gaps).mean()


def mean_of_means(logits, actions, mask):
    rows = [gap(x[None], a[None], m[None]) for x, a, m in zip(logits, actions, mask)]
    return torch.stack(rows).mean()


SURPRISE_GAP = {
    "right": gap,
    "right too": gap_by_loop,
    "the sign is flipped": lambda *x: gap(*x, sign=-1),
    "the entropy is missing": lambda *x: gap(*x, entropy_sign=0),
    "the surprisal is missing": lambda *x: gap(*x, surprisal=lambda logits: 0 * logits),
    "the entropy is added": lambda *x: gap(*x, entropy_sign=-1),
    "the mask is ignored": lambda z, a, m: gap(z, a, torch.ones_like(m)),
    "divided by all positions": lambda *x: gap(*x, over=lambda mask: mask.numel()),
    "a sum where the mean": lambda *x: gap(*x, over=lambda mask: 1),
    "a mean of each text's mean": mean_of_means,
    "these are raw logits": lambda *x: gap(*x, surprisal=lambda logits: logits),
    "must be (), got (1,)": lambda *x: gap(*x)[None],
    "expected\n": lambda *x: 2 * gap(*x),
}


def price(scores, rewards, log_ratio, mask, over=None):
    charged = scores.sum() - (rewards * mask).sum()
    return charged / ((log_ratio * mask).sum() if over is None else over)


def price_by_least_squares(scores, rewards, log_ratio, mask):
    charged, nats = scores - (rewards * mask).sum(1), (log_ratio * mask).sum(1)
    return (nats @ charged) / (nats @ nats)


def at_the_end(scores, rewards, log_ratio, mask):
    last = mask - torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
    charged = (scores[:, None] * last - rewards) * mask
    x = (log_ratio * mask).flatten()
    return (x @ charged.flatten()) / (x @ x)


def only_last(scores, rewards, log_ratio, mask):
    last = mask - torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1)
    return (scores.sum() - (rewards * last).sum()) / (log_ratio * mask).sum()


PRICE_PAID = {
    "right": price,
    "right too": price_by_least_squares,
    "the sign is flipped": lambda *x: -price(*x),
    "upside down": lambda *x: 1 / price(*x),
    "the scores are still in it": lambda s, r, lr, m: price(0 * s, r, lr, m),
    "the mask is ignored": lambda s, r, lr, m: price(s, r, lr, torch.ones_like(m)),
    "not its price": lambda *x: price(*x, over=1),
    "divided by the number of actions": lambda s, r, lr, m: price(s, r, lr, m, over=m.sum()),
    "paid at the end: it may be paid anywhere": at_the_end,
    "only the last actions are read": only_last,
    "must be (), got (1,)": lambda *x: price(*x)[None],
    "expected\n": lambda *x: 2 * price(*x),
}


def whiten(advantages, mask, over=None, correction=0, power=0.5, shift=True, divide=True, behind=True):
    counted = advantages[mask > 0] if over is None else over(advantages, mask)
    mean = counted.mean() if shift else 0.0
    result = (advantages - mean) / (counted.var(correction=correction) ** power if divide else 1)
    return result * mask if behind else result


def whiten_by_sums(advantages, mask):
    n = mask.sum()
    mean = (advantages * mask).sum() / n
    centred = (advantages - mean) * mask
    return centred / ((centred**2).sum() / n).sqrt()


def every_position(advantages, mask):
    return advantages.flatten()


def with_zeros(advantages, mask):
    return (advantages * mask).flatten()


WHITENED = {
    "right": whiten,
    "right too": whiten_by_sums,
    "take what counts": lambda a, m: whiten(a, m, over=every_position),
    "run over the padding too, with n - 1": lambda a, m: whiten(a, m, over=every_position, correction=1),
    "pick before you average": lambda a, m: whiten(a, m, over=with_zeros),
    "count the zeros behind the ends, with n - 1": lambda a, m: whiten(a, m, over=with_zeros, correction=1),
    "0 where masked: nothing was chosen": lambda a, m: whiten(a, m, behind=False),
    "0 where masked: the mean was subtracted": lambda a, m: (a * m - a[m > 0].mean()) / a[m > 0].std(correction=0),
    "divided by the variance": lambda a, m: whiten(a, m, power=1),
    "the mean is not subtracted": lambda a, m: whiten(a, m, shift=False),
    "only the mean is subtracted": lambda a, m: whiten(a, m, divide=False),
    "that of a sample": lambda a, m: whiten(a, m, correction=1),
    "each text is whitened by itself": lambda a, m: torch.stack([whiten(x, y) for x, y in zip(a, m)]),
    "too: both come from what counts": lambda a, m: (a - a[m > 0].mean()) / a.std(correction=0) * m,
    "the spread runs over the padding too, with n - 1": lambda a, m: (a - a[m > 0].mean()) / a.std() * m,
    "the sign is flipped": lambda a, m: -whiten(a, m),
    "expected\n": lambda a, m: 2 * whiten(a, m),
}


def alarms(kl, limit, patience):
    found, run = torch.zeros_like(kl), 0
    for i in range(len(kl)):
        run = run + 1 if kl[i] > limit else 0
        found[i] = float(run >= patience)
    return found


def alarms_by_windows(kl, limit, patience):
    above = (kl > limit).to(kl.dtype)
    padded = torch.cat([above.new_zeros(patience - 1), above])
    return padded.unfold(0, patience, 1).min(1).values


def short_windows(kl, limit, patience):
    return torch.stack([(kl[max(0, i - patience + 1) : i + 1] > limit).all() for i in range(len(kl))]).float()


def starts_again(kl, limit, patience):
    found, run = torch.zeros_like(kl), 0
    for i in range(len(kl)):
        run = run + 1 if kl[i] > limit else 0
        if run == patience:
            found[i], run = 1.0, 0
    return found


def on_windows(kl, patience, judge):
    found = torch.zeros_like(kl)
    for i in range(patience - 1, len(kl)):
        found[i] = float(judge(kl[i - patience + 1 : i + 1]))
    return found


ALARMS = {
    "right": alarms,
    "right too": alarms_by_windows,
    "one iteration above the limit": lambda kl, limit, patience: (kl > limit).float(),
    "one too few": lambda kl, limit, patience: alarms(kl, limit, patience - 1),
    "one too many": lambda kl, limit, patience: alarms(kl, limit, patience + 1),
    "the future is not known": lambda kl, limit, patience: torch.cat(
        [alarms(kl, limit, patience)[patience - 1 :], torch.zeros(patience - 1)]
    ),
    "any instead of all": lambda kl, limit, patience: on_windows(kl, patience, lambda w: (w > limit).any()),
    "the mean of the window": lambda kl, limit, patience: on_windows(kl, patience, lambda w: w.mean() > limit),
    "the wrong side": lambda kl, limit, patience: on_windows(kl, patience, lambda w: (w < limit).all()),
    "0 and 1 are swapped": lambda *x: 1 - alarms(*x),
    "at the limit is not above it": lambda kl, limit, patience: on_windows(kl, patience, lambda w: (w >= limit).all()),
    "it stays silent": short_windows,
    "the counter is never set back": lambda kl, limit, patience: ((kl > limit).cumsum(0) >= patience).float(),
    "after an alarm yours counts from 0": starts_again,
    "once an alarm": lambda *x: alarms(*x).cummax(0).values,
    "must be (16,), got (18,)": lambda kl, limit, patience: torch.cat([alarms(kl, limit, patience), kl[:2]]),
    "expected\n": lambda *x: 2 * alarms(*x),
}

EXERCISES = {
    "surprise_gap": ("13.1", SURPRISE_GAP),
    "price_paid": ("13.2", PRICE_PAID),
    "whitened": ("13.3", WHITENED),
    "alarms": ("13.4", ALARMS),
}
