"""Notebook 05: what a learner may hand in, {mistake: function}; keys that begin with "right" are accepted."""

import torch


def safe(x, m):
    return torch.where(m == 1, x, torch.zeros(()))


TOKEN_RATIO = {
    "right": lambda p, q, m: torch.exp(torch.where(m == 1, p - q, torch.zeros(()))),
    "right too": lambda p, q, m: torch.where(m.bool(), p.exp() / q.exp().clamp(min=1e-30), torch.ones(())),
    "nan where the mask is 0": lambda p, q, m: torch.exp((p - q) * m),
    "their gradient is nan": lambda p, q, m: torch.where(m == 1, torch.exp(p - q), torch.ones(())),
    "0 where the mask is 0": lambda p, q, m: torch.where(m == 1, torch.exp(p - q), torch.zeros(())),
    "the ratio is upside down": lambda p, q, m: torch.exp(safe(q - p, m)),
    "the exponential is missing": lambda p, q, m: safe(p - q, m),
    "divide one log-probability by the other": lambda p, q, m: torch.where(m == 1, p / q, torch.ones(())),
    "the ratio of the text up to each token": lambda p, q, m: torch.where(
        m == 1, torch.exp(torch.cumsum(safe(p - q, m), 1)), torch.ones(())
    ),
    "the ratio of the whole text": lambda p, q, m: torch.where(
        m == 1, torch.exp(safe(p - q, m).sum(1, keepdim=True)).expand_as(m), torch.ones(())
    ),
    "something was detached": lambda p, q, m: torch.exp(safe(p.detach() - q, m)),
    "its gradient on `logprobs` is not": lambda p, q, m: torch.exp(safe(p.detach() - q, m)) + 0 * safe(p, m),
    "must be (3, 4), got (3,)": lambda p, q, m: torch.exp(safe(p - q, m).sum(1)),
    "expected\n": lambda p, q, m: torch.exp(safe(p - q, m)) * 2,
}


def gradient(ratio, advantages, eps, flat):
    rows = []
    for r, a in zip(ratio.tolist(), advantages.tolist()):
        rows.append(0.0 if flat(r, a, eps) else r * a)
    return torch.tensor(rows)


def by_autograd(ratio, advantages, eps):
    x = torch.log(ratio).requires_grad_()
    torch.minimum(x.exp() * advantages, torch.clip(x.exp(), 1 - eps, 1 + eps) * advantages).sum().backward()
    return x.grad


def done(r, a, eps):
    return (r > 1 + eps and a > 0) or (r < 1 - eps and a < 0)


CLIP_GRADIENT = {
    "right": lambda *x: gradient(*x, done),
    "right too": by_autograd,
    "zero everywhere outside": lambda r, a, eps: r * a * ((r >= 1 - eps) & (r <= 1 + eps)),
    "never zero": lambda r, a, eps: r * a,
    "this is the surrogate itself": lambda r, a, eps: torch.minimum(r * a, r.clamp(1 - eps, 1 + eps) * a),
    "zero where nothing is clipped": lambda r, a, eps: torch.where(r * a < r.clamp(1 - eps, 1 + eps) * a, r * a, 0),
    "the push is clipped too": lambda r, a, eps: r.clamp(1 - eps, 1 + eps) * a * (gradient(r, a, eps, done) != 0),
    "the two flat cases are the wrong ones": lambda *x: gradient(
        *x, lambda r, a, eps: (r > 1 + eps and a < 0) or (r < 1 - eps and a > 0)
    ),
    "the derivative by the ratio": lambda r, a, eps: a * (gradient(r, a, eps, done) != 0),
    "the sign of the advantage is lost": lambda *x: gradient(*x, done).abs(),
    "the sign is flipped": lambda *x: -gradient(*x, done),
    "bad actions are never flat": lambda *x: gradient(*x, lambda r, a, eps: r > 1 + eps and a > 0),
    "good actions are never flat": lambda *x: gradient(*x, lambda r, a, eps: r < 1 - eps and a < 0),
    "clip_eps is ignored": lambda r, a, eps: gradient(r, a, 0.2, done),
    "must be (8,), got ()": lambda *x: gradient(*x, done).mean(),
    "expected\n": lambda *x: gradient(*x, done) / 8,
}


def k3(d):
    return torch.exp(d) - d - 1


def epochs(logprobs, old, mask, target, one=k3, mean=None, early=0, late=0):
    mean = mean or (lambda x: (x * mask).sum() / mask.sum())
    kls = torch.zeros(len(logprobs))
    stop = None
    for e in range(len(logprobs)):
        if stop is not None and e > stop + late:
            break
        kl = mean(one(logprobs[e] - old))
        if kl > target and stop is None:
            stop = e
            if early:
                break
        kls[e] = kl
    return kls


def by_cumsum(logprobs, old, mask, target):
    kls = (k3(logprobs - old) * mask).sum((1, 2)) / mask.sum()
    above = torch.cumsum((kls > target).int(), 0) - (kls > target).int()
    return kls * (above == 0)


def all_epochs(logprobs, old, mask, target):
    return epochs(logprobs, old, mask, 1e9)


def restarting(logprobs, old, mask, target):
    kls = all_epochs(logprobs, old, mask, target)
    result = kls.clone()
    for e in range(1, len(kls)):
        if kls[e - 1] > target:
            result[e] = 0
    return result


EPOCH_KLS = {
    "right": epochs,
    "right too": by_cumsum,
    "nothing stops: the epochs": all_epochs,
    "you stop one epoch too early": lambda *x: epochs(*x, early=1),
    "you stop one epoch too late": lambda *x: epochs(*x, late=1),
    "you start again": restarting,
    "epochs above target_kl are left out": lambda *x: all_epochs(*x) * (all_epochs(*x) <= x[3]),
    "the ratio is upside down": lambda *x: epochs(*x, one=lambda d: k3(-d)),
    "this is k1": lambda *x: epochs(*x, one=lambda d: -d),
    "this is k2": lambda *x: epochs(*x, one=lambda d: d.pow(2) / 2),
    "the mask is ignored": lambda *x: epochs(*x, mean=torch.mean),
    "divided by all positions": lambda p, q, m, t: epochs(p, q, m, t, mean=lambda x: (x * m).mean()),
    "a sum over each text": lambda p, q, m, t: epochs(p, q, m, t, mean=lambda x: (x * m).sum(1).mean()),
    "must be (6,), got ()": lambda *x: epochs(*x).max(),
    "expected\n": lambda *x: epochs(*x) * 5,
}


def ascend(logits, actions, advantages, steps, lr, eps, choose=torch.minimum, fresh=False, sign=1, mean=torch.mean):
    z = logits.clone()
    old = torch.softmax(z, 0)[actions]
    for _ in range(steps):
        z = z.detach().requires_grad_()
        p = torch.softmax(z, 0)[actions]
        ratio = p / (p.detach() if fresh else old)
        objective = mean(choose(ratio * advantages, torch.clip(ratio, 1 - eps, 1 + eps) * advantages))
        objective.backward()
        z = z + sign * lr * z.grad
    return z.detach()


def by_optimizer(logits, actions, advantages, steps, lr, eps):
    z = torch.nn.Parameter(logits.clone())
    optimizer = torch.optim.SGD([z], lr=lr)
    old_logprobs = torch.log_softmax(z, 0)[actions].detach()
    for _ in range(steps):
        ratio = torch.exp(torch.log_softmax(z, 0)[actions] - old_logprobs)
        loss = -torch.min(ratio * advantages, ratio.clamp(1 - eps, 1 + eps) * advantages).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return z.data


SEVERAL_STEPS = {
    "right": ascend,
    "right too": by_optimizer,
    "the ratio is always 1": lambda *x: ascend(*x, fresh=True),
    "nothing is clipped": lambda *x: ascend(*x, choose=lambda plain, clipped: plain),
    "clipped without the min": lambda *x: ascend(*x, choose=lambda plain, clipped: clipped),
    "max instead of min": lambda *x: ascend(*x, choose=torch.maximum),
    "only one step is taken": lambda z, a, adv, steps, lr, eps: ascend(z, a, adv, 1, lr, eps),
    "one step is missing": lambda z, a, adv, steps, lr, eps: ascend(z, a, adv, steps - 1, lr, eps),
    "the steps go downhill": lambda *x: ascend(*x, sign=-1),
    "a sum where the mean": lambda *x: ascend(*x, mean=torch.sum),
    "clip_eps is ignored": lambda z, a, adv, steps, lr, eps: ascend(z, a, adv, steps, lr, 0.2),
    "must be (4,), got (5,)": lambda *x: torch.log_softmax(ascend(*x), 0)[x[1]],
    "expected\n": lambda z, a, adv, steps, lr, eps: ascend(z, a, adv, steps, lr / 2, eps),
}

EXERCISES = {
    "token_ratio": ("05.1", TOKEN_RATIO),
    "clip_gradient": ("05.2", CLIP_GRADIENT),
    "epoch_kls": ("05.3", EPOCH_KLS),
    "several_steps": ("05.4", SEVERAL_STEPS),
}
