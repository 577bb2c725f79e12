"""Checks for notebook 03."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.verdict import Draw, demand, exercise, gradients, verdict


@exercise("03.1")
def check_leave_one_out(fn: Callable, draw: Draw) -> None:
    """Exercise 03.1: fn(points [P, K]) -> the mean over the other texts of the same prompt [P, K]."""
    P, K = draw.size(3), 5
    points = 3 * draw.randn(P, K)

    def table(one: Callable[[float, list[float], list[float]], float]) -> Tensor:
        rows = points.tolist()
        every = [x for row in rows for x in row]
        return torch.tensor([[one(row[k], row[:k] + row[k + 1 :], every) for k in range(K)] for row in rows])

    def columns() -> Tensor:
        rows = points.T.tolist()
        return torch.tensor([[sum(row[:k] + row[k + 1 :]) / (P - 1) for k in range(P)] for row in rows]).T

    verdict(
        fn,
        (points,),
        table(lambda own, others, every: sum(others) / (K - 1)),
        {
            "one's own return is inside the mean: that is the batch mean, and it shrinks the gradient": table(
                lambda own, others, every: (own + sum(others)) / K
            ),
            "the sum of the others is divided by K, but there are only K - 1 of them": table(
                lambda own, others, every: sum(others) / K
            ),
            "the others are added up, not averaged": table(lambda own, others, every: sum(others)),
            "one's own return is still in the sum: you divide all K returns by K - 1": table(
                lambda own, others, every: (own + sum(others)) / (K - 1)
            ),
            "the mean runs over the other prompts: a baseline compares texts of one prompt": columns(),
            "the other prompts are mixed in: the mean runs over the K texts of one prompt": table(
                lambda own, others, every: (sum(every) - own) / (P * K - 1)
            ),
            "this is one mean over everything: each text needs the mean over the others of its own prompt": table(
                lambda own, others, every: sum(every) / (P * K)
            ),
            "the sum of the others is divided by P - 1, the number of other prompts": table(
                lambda own, others, every: sum(others) / (P - 1)
            ),
            "this is the advantage, return minus baseline: return the baseline": table(
                lambda own, others, every: own - sum(others) / (K - 1)
            ),
            "this is return minus batch mean: return the baseline, and leave one's own return out of it": table(
                lambda own, others, every: own - (own + sum(others)) / K
            ),
        },
    )


@exercise("03.2")
def check_best_constant(fn: Callable, draw: Draw) -> None:
    """Exercise 03.2: fn(scores [N, T, D], returns [N, T], p [N]) -> the constant with the least variance, a scalar."""
    mask, lengths = draw.prefixes(3, 3, 3, 2, 1)
    N, p = len(lengths), draw.rand(len(lengths), low=0.2)
    p = p / p.sum()
    scores, returns = draw.randn(N, 3, 4) * mask[..., None], (draw.randn(N, 3) + 2) * mask

    def total(power: int = 2, by_token: bool = False, weigh: bool = True, total_return: bool = False) -> Tensor:
        top, bottom, s, G = 0.0, 0.0, scores.tolist(), returns.tolist()
        for n in range(N):
            weight = p[n].item() if weigh else 1.0
            for t in range(3):
                for u in [t] if by_token else range(3):
                    dot = sum(x * y for x, y in zip(s[n][t], s[n][u]))
                    dot = math.sqrt(dot) if power == 1 else dot
                    top += weight * dot * G[n][0 if total_return else u]
                    bottom += weight * dot
        return torch.tensor(top / bottom)

    def mean(weigh: bool) -> Tensor:
        weights = p.tolist() if weigh else [1 / N] * N
        return torch.tensor(sum(w * returns[n, 0].item() for n, w in enumerate(weights)))

    texts = [(p[n], (scores[n] * returns[n, :, None]).sum(0), scores[n].sum(0)) for n in range(N)]
    plain = sum(p[n] * returns[n, t] * scores[n, t] @ scores[n].sum(0) for n in range(N) for t in range(3))
    verdict(
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


@exercise("03.3")
def check_loss_with_baseline(fn: Callable, draw: Draw) -> None:
    """Exercise 03.3: fn(logprobs, returns, values, mask), all [B, T] -> the scalar loss whose gradients are right."""
    mask, lengths = draw.prefixes(4, 2, 1)
    logprobs, returns, values = -0.5 - draw.randn(*mask.shape).abs(), draw.randn(*mask.shape), draw.randn(*mask.shape)
    B, counted = len(lengths), sum(lengths)

    def slopes(*args) -> Tensor:
        """The loss's number and its gradients on logprobs and values, side by side: [3, B, T]."""
        loss, on_logprobs, on_values = gradients(fn, args, of=(0, 2))
        return torch.stack([loss.expand(mask.shape), on_logprobs, on_values])

    def tell(right: Tensor, answer: Tensor) -> str:
        parts = [("loss", right[0, 0, 0], answer[0, 0, 0])]
        parts += [(f"gradient on {name}", right[i], answer[i]) for i, name in ((1, "logprobs"), (2, "values"))]
        return "\n".join(f"{name}: expected\n{wanted}\ngot\n{got}" for name, wanted, got in parts)

    def table(
        sign: float = -1.0, leak: float = 0.0, critic: float = 0.5, baseline: float = 1.0, masked: bool = True,
        policy_over: int = B, critic_over: int = counted, moves: float = 1.0, pushes: float = 1.0,
    ) -> Tensor:  # fmt: skip
        total, on_logprobs, on_values = 0.0, torch.zeros(mask.shape), torch.zeros(mask.shape)
        for b, n in enumerate(lengths):
            for t in range(n if masked else 4):
                logprob, error = logprobs[b, t].item(), (values[b, t] - returns[b, t]).item()
                advantage = returns[b, t].item() - baseline * values[b, t].item()
                total += sign * logprob * advantage / policy_over + critic * error**2 / critic_over
                on_logprobs[b, t] = pushes * sign * advantage / policy_over
                on_values[b, t] = moves * 2 * critic * error / critic_over - sign * leak * logprob / policy_over
        return torch.stack([torch.tensor(total).expand(mask.shape), on_logprobs, on_values])

    verdict(
        fn,
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
            "the value loss is divided by the rows: it is a mean over the actions that count": table(critic_over=B),
            "the value loss is gone, and with it what teaches the baseline": table(critic=0.0),
            "the baseline is gone: returns are used as they are": table(baseline=0.0),
            "the sign of the policy's part is flipped: a loss is minimised": table(sign=1.0),
            "the mask is ignored: what comes after the end takes part": table(masked=False, critic_over=mask.numel()),
            "the policy's part is divided by all actions: a sum over actions and a mean over rows": table(
                policy_over=counted
            ),
        },
        view=slopes,
        tell=tell,
    )


@exercise("03.4")
def check_text_weights(fn: Callable, draw: Draw) -> None:
    """Exercise 03.4: fn(logprobs, old_logprobs, mask), all [B, T] -> the importance weight of each text [B]."""
    mask, lengths = draw.prefixes(4, 2, 1)
    logprobs, old_logprobs = -0.1 - draw.randn(*mask.shape).abs(), -0.1 - draw.randn(*mask.shape).abs()

    def table(row: Callable[[list[float]], float], counted: bool = True, sign: float = 1.0) -> Tensor:
        ratios = [
            [math.exp(sign * (logprobs[b, t] - old_logprobs[b, t]).item()) for t in range(n if counted else 4)]
            for b, n in enumerate(lengths)
        ]
        return torch.tensor([row(r) for r in ratios])

    verdict(
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
    old_long = draw.tensor([[math.log(0.1)] * 400])
    new_long = old_long + draw.rand(1, 400, high=0.005)
    demand(
        fn,
        (new_long, old_long, torch.ones_like(old_long)),
        (new_long.double() - old_long.double()).sum(1).exp(),
        "underflow in a text of 400 tokens of 0.1: both products are 0, and 0/0 is nan; sum the log-ratios before exp",
    )
