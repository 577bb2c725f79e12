"""Checks for notebook 03."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.verdict import fail, randn, verdict


def check_leave_one_out(fn: Callable) -> None:
    """Exercise 03.1: fn(points [P, K]) -> the mean over the other texts of the same prompt [P, K]."""
    points = torch.tensor([[3.0, 1.0, 0.0, 2.5], [7.0, 5.5, 6.0, 9.0], [0.0, 0.0, 1.0, -4.0]])

    def table(one: Callable[[float, list[float], list[float]], float]) -> Tensor:
        rows = points.tolist()
        every = [x for row in rows for x in row]
        return torch.tensor([[one(row[k], row[:k] + row[k + 1 :], every) for k in range(4)] for row in rows])

    def columns() -> Tensor:
        rows = points.T.tolist()
        return torch.tensor([[sum(row[:k] + row[k + 1 :]) / 2 for k in range(3)] for row in rows]).T

    verdict(
        "exercise 03.1",
        fn,
        (points,),
        table(lambda own, others, every: sum(others) / 3),
        {
            "one's own return is inside the mean: that is the batch mean, and it shrinks the gradient": table(
                lambda own, others, every: (own + sum(others)) / 4
            ),
            "the sum of the others is divided by K, but there are only K - 1 of them": table(
                lambda own, others, every: sum(others) / 4
            ),
            "the others are added up, not averaged": table(lambda own, others, every: sum(others)),
            "one's own return is still in the sum: you divide all K returns by K - 1": table(
                lambda own, others, every: (own + sum(others)) / 3
            ),
            "the mean runs over the other prompts: a baseline compares texts of one prompt": columns(),
            "the other prompts are mixed in: the mean runs over the K texts of one prompt": table(
                lambda own, others, every: (sum(every) - own) / 11
            ),
            "this is one mean over everything: each text needs the mean over the others of its own prompt": table(
                lambda own, others, every: sum(every) / 12
            ),
            "the sum of the others is divided by P - 1, the number of other prompts": table(
                lambda own, others, every: sum(others) / 2
            ),
            "this is the advantage, return minus baseline: return the baseline": table(
                lambda own, others, every: own - sum(others) / 3
            ),
            "this is return minus batch mean: return the baseline, and leave one's own return out of it": table(
                lambda own, others, every: own - (own + sum(others)) / 4
            ),
        },
    )


def check_best_constant(fn: Callable) -> None:
    """Exercise 03.2: fn(scores [N, T, D], returns [N, T], p [N]) -> the constant with the least variance, a scalar."""
    scores, returns = randn(5, 3, 4), randn(5, 3, seed=1) + 2
    scores[1, 2:], scores[2, 1:] = 0.0, 0.0  # texts of different lengths
    returns[1, 2:], returns[2, 1:] = 0.0, 0.0
    p = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05])

    def total(power: int = 2, by_token: bool = False, weigh: bool = True, total_return: bool = False) -> Tensor:
        top = bottom = 0.0
        for n in range(5):
            weight = p[n].item() if weigh else 1.0
            for t in range(3):
                for u in [t] if by_token else range(3):
                    dot = sum(scores[n, t, d].item() * scores[n, u, d].item() for d in range(4))
                    dot = math.sqrt(dot) if power == 1 else dot
                    top += weight * dot * returns[n, 0 if total_return else u].item()
                    bottom += weight * dot
        return torch.tensor(top / bottom)

    def mean(weigh: bool) -> Tensor:
        weights = p.tolist() if weigh else [0.2] * 5
        return torch.tensor(sum(w * returns[n, 0].item() for n, w in enumerate(weights)))

    texts = [(p[n], (scores[n] * returns[n, :, None]).sum(0), scores[n].sum(0)) for n in range(5)]
    plain = sum(p[n] * returns[n, t] * scores[n, t] @ scores[n].sum(0) for n in range(5) for t in range(3))
    verdict(
        "exercise 03.2",
        fn,
        (scores, returns, p),
        total(),
        {
            "each token's score is squared on its own: tokens of a text share parameters, so square their sum": total(
                by_token=True
            ),
            "the probabilities of the texts are ignored: every text weighs the same in yours": total(weigh=False),
            "each token's score is squared on its own, and the probabilities are ignored as well": total(
                by_token=True, weigh=False
            ),
            "scores are weighed by their length, not by its square": total(power=1, by_token=True),
            "the return of the whole text was taken for every token: use G_t": total(total_return=True),
            "this is the expected return: near the best constant at times, but not the best": mean(True),
            "this is the plain average of the returns": mean(False),
            "the denominator is missing: divide by E|S|^2": plain,
            "this is a mean of quotients: (5) is one mean divided by another": sum(
                q * (g @ s) / (s @ s) for q, g, s in texts
            ),
            "each vector is averaged first: multiply the two of a text, then average over the texts": (
                sum(q * g for q, g, s in texts) @ sum(q * s for q, g, s in texts)
            )
            / sum(q * s for q, g, s in texts).square().sum(),
            "the sign is flipped: the baseline is subtracted": -total(),
        },
    )


def check_loss_with_baseline(fn: Callable) -> None:
    """Exercise 03.3: fn(logprobs, returns, values, mask), all [B, T] -> the scalar loss whose gradients are right."""
    name, lengths = "exercise 03.3", [4, 2, 1]
    logprobs, returns, values = -0.5 - randn(3, 4).abs(), randn(3, 4, seed=1), randn(3, 4, seed=2)
    mask = torch.tensor([[1.0] * n + [0.0] * (4 - n) for n in lengths])

    def slopes(logprobs: Tensor, returns: Tensor, values: Tensor, mask: Tensor):
        """The loss's number and its gradients on logprobs and values, side by side: [3, 3, 4]."""
        live = [x.clone().requires_grad_() for x in (logprobs, values)]
        loss = fn(live[0], returns, live[1], mask)
        if loss is None or not isinstance(loss, Tensor):
            return loss
        if loss.shape != ():
            fail(name, f"the shape of the loss must be (), a scalar, got {tuple(loss.shape)}")
        if not loss.requires_grad:
            fail(name, "no gradient reaches the log-probabilities: something was detached on the way")
        found = torch.autograd.grad(loss, live, allow_unused=True)
        found = [torch.zeros(3, 4) if g is None else g for g in found]
        return torch.stack([loss.detach() * torch.ones(3, 4), *found])

    def table(
        sign: float = -1.0, leak: float = 0.0, critic: float = 0.5, baseline: float = 1.0, counted: bool = True,
        policy_over: int = 3, critic_over: int = 7, moves: float = 1.0, pushes: float = 1.0,
    ) -> Tensor:  # fmt: skip
        total, on_logprobs, on_values = 0.0, torch.zeros(3, 4), torch.zeros(3, 4)
        for b, n in enumerate(lengths):
            for t in range(n if counted else 4):
                logprob, error = logprobs[b, t].item(), (values[b, t] - returns[b, t]).item()
                advantage = returns[b, t].item() - baseline * values[b, t].item()
                total += sign * logprob * advantage / policy_over + critic * error**2 / critic_over
                on_logprobs[b, t] = pushes * sign * advantage / policy_over
                on_values[b, t] = moves * 2 * critic * error / critic_over - sign * leak * logprob / policy_over
        return torch.stack([torch.tensor(total) * torch.ones(3, 4), on_logprobs, on_values])

    verdict(
        name,
        slopes,
        (logprobs, returns, values, mask),
        table(),
        {
            "a gradient flows through the baseline: the advantages must be detached": table(leak=1.0),
            "nothing moves the values any more: detach them in the advantages, not in the value loss": table(moves=0.0),
            "the wrong half is detached: the values learn from the policy's loss, not from their own": table(
                leak=1.0, moves=0.0
            ),
            "the log-probabilities are detached, so nothing moves the policy: detach the advantages": table(
                pushes=0.0, leak=1.0
            ),
            "the value loss lost its 1/2: the number must stay the same": table(critic=1.0),
            "the value loss is divided by the rows: it is a mean over the actions that count": table(critic_over=3),
            "the value loss is gone, and with it what teaches the baseline": table(critic=0.0),
            "the baseline is gone: returns are used as they are": table(baseline=0.0),
            "the sign of the policy's part is flipped: a loss is minimised": table(sign=1.0),
            "the mask is ignored: what comes after the end takes part": table(counted=False, critic_over=12),
            "the policy's part is divided by all actions: a sum over actions and a mean over rows": table(
                policy_over=7
            ),
        },
    )


def check_text_weights(fn: Callable) -> None:
    """Exercise 03.4: fn(logprobs, old_logprobs, mask), all [B, T] -> the importance weight of each text [B]."""
    lengths = [4, 2, 1]
    logprobs, old_logprobs = -randn(3, 4).abs(), -randn(3, 4, seed=1).abs()
    mask = torch.tensor([[1.0] * n + [0.0] * (4 - n) for n in lengths])

    def table(row: Callable[[list[float]], float], counted: bool = True, sign: float = 1.0) -> Tensor:
        ratios = [
            [math.exp(sign * (logprobs[b, t] - old_logprobs[b, t]).item()) for t in range(n if counted else 4)]
            for b, n in enumerate(lengths)
        ]
        return torch.tensor([row(r) for r in ratios])

    verdict(
        "exercise 03.4",
        fn,
        (logprobs, old_logprobs, mask),
        table(math.prod),
        {
            "the weight is upside down: new over old, since the old policy wrote the text": table(math.prod, sign=-1.0),
            "the mask is ignored: what comes after the end was not written": table(math.prod, counted=False),
            "the ratio after the end is set to 0, and the product with it: it must be 1": table(
                lambda r: math.prod(r) if len(r) == 4 else 0.0
            ),
            "log-probabilities are divided by each other: the ratio is exp of their difference": torch.tensor(
                [(logprobs[b, :n].sum() / old_logprobs[b, :n].sum()).item() for b, n in enumerate(lengths)]
            ),
            "the ratios are added up: a text's probability is a product": table(sum),
            "this is the mean ratio of the tokens, not the ratio of the texts": table(lambda r: sum(r) / len(r)),
            "this is the logarithm of the weight: exp is missing": table(lambda r: math.log(math.prod(r))),
            "the length is divided out: that is the geometric mean, one token's worth of weight": table(
                lambda r: math.prod(r) ** (1 / len(r))
            ),
            "this is the ratio of the last token only": table(lambda r: r[-1]),
        },
    )
