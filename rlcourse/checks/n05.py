"""Checks for notebook 05."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.verdict import Draw, exercise, redraw_unless, verdict


@exercise("05.1")
def check_token_ratio(fn: Callable, draw: Draw) -> None:
    """Exercise 05.1: fn(logprobs, old_logprobs, mask), all [B, T] -> importance ratio [B, T], 1 where masked."""
    mask, lengths = draw.prefixes(4, 2, 1)
    logprobs, old_logprobs = -0.1 - draw.randn(*mask.shape).abs(), -0.1 - draw.randn(*mask.shape).abs()
    logprobs, old_logprobs = (torch.where(mask > 0, x, -math.inf) for x in (logprobs, old_logprobs))
    new, old = logprobs.tolist(), old_logprobs.tolist()

    def table(one: Callable[[int, int], float], padding: float = 1.0) -> Tensor:
        return torch.tensor([[one(b, t) if t < n else padding for t in range(4)] for b, n in enumerate(lengths)])

    def of_text(b: int, t: int, end: int | None = None) -> float:
        end = t + 1 if end is None else end
        return math.exp(sum(new[b][:end]) - sum(old[b][:end]))

    def with_gradient(*args):
        """fn's ratios; minus infinity where they are numbers but their gradient is not."""
        ratio = fn(*args)
        if (
            isinstance(ratio, Tensor)
            and ratio.shape == mask.shape
            and ratio.requires_grad
            and ratio.is_floating_point()
        ):
            (gradient,) = torch.autograd.grad(ratio.sum(), args[0], retain_graph=True, allow_unused=True)
            if gradient is not None and ratio.isfinite().all():
                ratio = torch.where(gradient.isnan() & (ratio == 1), -math.inf, ratio)
        return ratio

    verdict(
        fn,
        (logprobs.requires_grad_(), old_logprobs, mask),
        table(lambda b, t: math.exp(new[b][t]) / math.exp(old[b][t])),
        {
            "nan where the mask is 0: minus infinity minus minus infinity; choose with torch.where before you "
            "exponentiate": table(lambda b, t: math.exp(new[b][t] - old[b][t]), math.nan),
            "the numbers are right, but their gradient is nan behind the mask: torch.where sends 0 back into the "
            "side it did not choose, and 0 times nan is nan; choose before you exponentiate": table(
                lambda b, t: math.exp(new[b][t] - old[b][t]), -math.inf
            ),
            "0 where the mask is 0: nothing was chosen there and nothing has moved, so the ratio is 1": table(
                lambda b, t: math.exp(new[b][t] - old[b][t]), 0.0
            ),
            "the ratio is upside down: new over old": table(lambda b, t: math.exp(old[b][t] - new[b][t])),
            "this is the logarithm of the ratio: the exponential is missing": table(
                lambda b, t: new[b][t] - old[b][t], 0.0
            ),
            "you divide one log-probability by the other: subtract them, then exponentiate": table(
                lambda b, t: new[b][t] / old[b][t]
            ),
            "this is the ratio of the text up to each token: one ratio for each token is asked for": table(of_text),
            "this is the ratio of the whole text at every token: one ratio for each token is asked for": table(
                lambda b, t: of_text(b, t, lengths[b])
            ),
        },
        view=with_gradient,
    )


@exercise("05.2")
def check_clip_gradient(fn: Callable, draw: Draw) -> None:
    """Exercise 05.2: fn(ratio [N], advantages [N], clip_eps) -> derivative of the clipped surrogate by log pi [N]."""
    eps = draw.number(0.3, 0.4)
    kinds = [(1.5, 1), (-1.5, 1), (1.5, -1), (-1.5, -1), (0.3, 1), (-0.3, -1), (0.8, 1), (-0.8, -1), (1.2, 1)]
    kinds = draw.shuffled(kinds[: draw.size(8)])  # how far from 1 in units of eps, the sign of the advantage
    ratio = 1 + eps * (draw.tensor([far for far, _ in kinds]) + draw.rand(len(kinds), high=0.1))
    advantages = draw.tensor([sign for _, sign in kinds]) * draw.rand(len(kinds), low=0.5, high=3.0)

    def table(push: Callable[[float, float], bool], size: Callable[[float, float], float] = lambda r, a: r * a):
        pairs = zip(ratio.tolist(), advantages.tolist())
        return torch.tensor([size(r, a) if push(r, a) else 0.0 for r, a in pairs])

    def right(r: float, a: float, eps: float = eps) -> bool:
        """Finite differences: does the value change when the log-ratio does?"""
        value = [min(x * a, min(max(x, 1 - eps), 1 + eps) * a) for x in (r * math.exp(-1e-4), r * math.exp(1e-4))]
        return value[0] != value[1]

    def inside(r: float, a: float) -> bool:
        return abs(r - 1) <= eps

    verdict(
        fn,
        (ratio, advantages, eps),
        table(right),
        {
            "zero everywhere outside the clip range: that is the clip without the min; what moved the wrong way must "
            "be pushed back": table(inside),
            "never zero: what has moved far enough the right way gets no more push": table(lambda r, a: True),
            "this is the surrogate itself: asked is its derivative": table(
                lambda r, a: True, lambda r, a: min(r * a, min(max(r, 1 - eps), 1 + eps) * a)
            ),
            "zero where nothing is clipped: inside the range both terms are ratio * A, and so is the derivative": table(
                lambda r, a: right(r, a) and not inside(r, a)
            ),
            "the push is clipped too: where it is not zero the unclipped term counts, so it is ratio * A": table(
                right, lambda r, a: min(max(r, 1 - eps), 1 + eps) * a
            ),
            "the two flat cases are the wrong ones: zero belongs to what moved the right way, good and likelier or bad "
            "and less likely": table(lambda r, a: inside(r, a) or right(r, a) is False),
            "the derivative by the ratio: by the log-probability there is a factor ratio more": table(
                right, lambda r, a: a
            ),
            "the sign of the advantage is lost: a bad action must be pushed down": table(
                right, lambda r, a: r * abs(a)
            ),
            "the sign is flipped: this is the derivative of the loss, asked is that of the surrogate": table(
                right, lambda r, a: -r * a
            ),
            "bad actions are never flat in yours: for A < 0 the flat side is below 1 - clip_eps": table(
                lambda r, a: right(r, a) or a < 0
            ),
            "good actions are never flat in yours: for A > 0 the flat side is above 1 + clip_eps": table(
                lambda r, a: right(r, a) or a > 0
            ),
            "clip_eps is ignored: it is an argument, not always 0.2": table(lambda r, a: right(r, a, 0.2)),
        },
    )


@exercise("05.3")
def check_epoch_kls(fn: Callable, draw: Draw) -> None:
    """Exercise 05.3: fn(logprobs [E, B, T], old_logprobs, mask [B, T], target_kl) -> mean k3 of each epoch run [E]."""
    mask, lengths = draw.prefixes(4, 2, 1)
    (B, T), counted = mask.shape, sum(lengths)
    old_logprobs, drift = -1 - draw.randn(B, T).abs(), draw.randn(B, T)
    sizes = [0.0, 0.2, 0.5, 0.1, 0.6, 0.05]  # the third epoch is too far, the fourth would not have been
    logprobs = torch.stack([old_logprobs + size * drift for size in sizes])
    target_kl = draw.number(0.02, 0.05)

    def k3(x: float) -> float:
        return math.exp(x) - 1 - x

    def means(one=k3, masked: bool = True, over: float = counted) -> list[float]:
        cells = [(b, t) for b, n in enumerate(lengths) for t in range(n if masked else T)]
        drifts = (logprobs - old_logprobs).tolist()
        return [sum(one(drifts[e][b][t]) for b, t in cells) / over for e in range(len(sizes))]

    def stopped(kls: list[float], later: int = 0) -> Tensor:
        redraw_unless(all(abs(x - target_kl) > 1e-3 for x in kls))
        run = next((e + 1 for e, x in enumerate(kls) if x > target_kl), len(kls)) + later
        return torch.tensor([x if e < run else 0.0 for e, x in enumerate(kls)])

    right = means()
    verdict(
        fn,
        (logprobs, old_logprobs, mask, target_kl),
        stopped(right),
        {
            "nothing stops: the epochs after the one above target_kl are not run": torch.tensor(right),
            "you stop one epoch too early: the one that exceeds target_kl has been run, only then is it known": stopped(
                right, -1
            ),
            "you stop one epoch too late: nothing is run after the one that exceeds target_kl": stopped(right, 1),
            "you start again: once an epoch was above target_kl no later one is run": torch.tensor(
                [x if e == 0 or right[e - 1] <= target_kl else 0.0 for e, x in enumerate(right)]
            ),
            "epochs above target_kl are left out one by one: the first of them is run, none after it": torch.tensor(
                [x if x <= target_kl else 0.0 for x in right]
            ),
            "the ratio is upside down: the actions were drawn from the old policy, so it is new / old": stopped(
                means(lambda x: k3(-x))
            ),
            "this is k1, log old - log new: right on average, but it may be negative and then nothing stops": stopped(
                means(lambda x: -x)
            ),
            "this is k2, half the squared log-ratio: asked is k3": stopped(means(lambda x: x * x / 2)),
            "the mask is ignored: what comes after the end has no KL": stopped(means(masked=False, over=B * T)),
            "divided by all positions instead of those that count": stopped(means(over=B * T)),
            "a sum over each text: asked is the mean over counted actions": stopped(means(over=B)),
        },
    )


@exercise("05.4", patience=6)  # the first optimizer of a kernel takes seconds to come
def check_several_steps(fn: Callable, draw: Draw) -> None:
    """Exercise 05.4: fn(logits [V], actions [B], advantages [B], steps, lr, clip_eps) -> logits after the steps [V]."""
    logits, eps, lr, steps = 0.5 * draw.randn(4), draw.number(0.3, 0.5), draw.number(1.2, 1.8), 4 + draw.more
    actions = torch.tensor(draw.shuffled([0, 0, 1, 2, 3, 1][: draw.size(5)]))
    advantages = 2 * draw.randn(len(actions))

    def run(steps: int = steps, eps: float = eps, keep_old: bool = True, flat=None, sign=1.0, scale=1.0) -> Tensor:
        """In plain floats: the gradient of log softmax is an indicator minus the probabilities."""
        flat = flat or (lambda r, a: (a > 0 and r > 1 + eps) or (a < 0 and r < 1 - eps))
        z = logits.tolist()
        start = _softmax(z)
        for _ in range(steps):
            p = _softmax(z)
            old = start if keep_old else p
            push = [0.0] * len(z)
            for action, a in zip(actions.tolist(), advantages.tolist()):
                r = p[action] / old[action]
                redraw_unless(min(abs(r - 1 - eps), abs(r - 1 + eps)) > 1e-4)  # float32 must take the same side
                if not flat(r, a):
                    for v in range(len(z)):
                        push[v] += scale * r * a * ((v == action) - p[v]) / len(actions)
            z = [x + sign * lr * g for x, g in zip(z, push)]
        return torch.tensor(z)

    verdict(
        fn,
        (logits, actions, advantages, steps, lr, eps),
        run(),
        {
            "the ratio is always 1: old_logprobs are computed again at every step, so the clip never acts; compute "
            "them once, before the first step": run(keep_old=False),
            "nothing is clipped: take the smaller of ratio * A and clip(ratio) * A": run(flat=lambda r, a: False),
            "clipped without the min: what moved the wrong way beyond the range gets no push back": run(
                flat=lambda r, a: abs(r - 1) > eps
            ),
            "max instead of min: what moved the wrong way gets no push back, what moved far enough still does": run(
                flat=lambda r, a: (a < 0 and r > 1 + eps) or (a > 0 and r < 1 - eps)
            ),
            "only one step is taken": run(steps=1),
            "one step is missing: the loop is too short, or old_logprobs carry a gradient that cancels the first": run(
                steps=steps - 1
            ),
            "the steps go downhill: add the gradient of the surrogate, or subtract that of the loss": run(sign=-1.0),
            "a sum where the mean over the batch was asked for": run(scale=len(actions)),
            "clip_eps is ignored: it is an argument, not always 0.2": run(eps=0.2),
        },
    )


def _softmax(z: list[float]) -> list[float]:
    total = sum(math.exp(x) for x in z)
    return [math.exp(x) / total for x in z]
