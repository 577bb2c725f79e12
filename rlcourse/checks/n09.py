"""Checks for notebook 09."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from rlcourse.checks.verdict import Draw, exercise, verdict


@exercise("09.1")
def check_f_score(fn: Callable, draw: Draw) -> None:
    """Exercise 09.1: fn(matches, response_length, reference_length [B], beta) -> F-measures [B]."""
    N, beta = draw.size(5), draw.number(1.5, 3)
    response, reference = ((3 + draw.integers(6, N)).tolist() for _ in range(2))
    matches = [min(m, n, k) for m, n, k in zip(draw.shuffled([0, 2, 3, 4, 5, 2][:N]), response, reference)]

    def table(one: Callable[[float, float], float], nothing: float = 0.0) -> Tensor:
        pairs = [(m / n, m / k) for m, n, k in zip(matches, response, reference)]
        return torch.tensor([one(p, r) if p + r > 0 else nothing for p, r in pairs])

    def f(b2: float) -> Callable[[float, float], float]:
        return lambda p, r: (1 + b2) * p * r / (b2 * p + r)

    verdict(
        fn,
        (draw.tensor(matches), draw.tensor(response), draw.tensor(reference), beta),
        table(f(beta**2)),
        {
            "0 divided by 0: a response without a match scores 0, not nan": table(f(beta**2), math.nan),
            "this is recall alone: a longer response can only gain": table(lambda p, r: r),
            "this is precision alone: one safe word would get full marks": table(lambda p, r: p),
            "this is the plain average: it pays half for recall alone, while F is near the smaller of the two": table(
                lambda p, r: (p + r) / 2
            ),
            "beta stands on the wrong side: above 1 it must favour recall": table(
                lambda p, r: (1 + beta**2) * p * r / (beta**2 * r + p)
            ),
            "the factor 1 + beta^2 above is missing": table(lambda p, r: p * r / (beta**2 * p + r)),
            "beta is not squared": table(f(beta)),
            "beta is ignored: this is F1": table(f(1.0)),
        },
    )


@exercise("09.2")
def check_gated_scores(fn: Callable, draw: Draw) -> None:
    """Exercise 09.2: fn(scores [B], passed [B] of 0 and 1, otherwise) -> gated scores [B]."""
    N, otherwise = draw.size(5), draw.number(-1.5, -0.5)
    scores, passed = draw.randn(N).tolist(), draw.shuffled([1.0, 0.0, 0.0, 1.0, 0.0, 1.0][:N])

    def table(one: Callable[[float, float], float]) -> Tensor:
        return torch.tensor([one(s, p) for s, p in zip(scores, passed)])

    verdict(
        fn,
        (draw.tensor(scores), draw.tensor(passed), otherwise),
        table(lambda s, p: s if p else otherwise),
        {
            "a product is no gate: a blocked text with a negative score rises to 0, above clean ones": table(
                lambda s, p: s * p
            ),
            "this is a term of a sum: a high enough score outbids the filter": table(
                lambda s, p: s + otherwise * (1 - p)
            ),
            "the gate is inverted: 1 means that the text is clean": table(lambda s, p: otherwise if p else s),
            "the filter is ignored": table(lambda s, p: s),
            "all scores are cut off at `otherwise`, instead of only those of blocked texts": table(
                lambda s, p: min(s, otherwise)
            ),
            "a blocked text gets `otherwise` whatever its score was: one that was still lower keeps it in yours": table(
                lambda s, p: s if p else min(s, otherwise)
            ),
            "a blocked text gets `otherwise` whatever its score was: one that was higher keeps it in yours": table(
                lambda s, p: s if p else max(s, otherwise)
            ),
        },
    )


@exercise("09.3")
def check_blocked_logprobs(fn: Callable, draw: Draw) -> None:
    """Exercise 09.3: fn(logits [B, T, V], actions [B, T], blocked [V] bool) -> log-probabilities [B, T]."""
    B, blocked = draw.size(2), torch.tensor(draw.shuffled([False, True, False, True, False]))
    logits, actions = draw.randn(B, 3, 5), (~blocked).nonzero()[:, 0][draw.integers(3, B, 3)]

    def table(change: Callable[[float, bool], float | None], read: Callable[[float, float], float]) -> Tensor:
        """read(the chosen token's logit, log of the sum over what change() leaves)."""
        rows = []
        for b, t in ((b, t) for b in range(B) for t in range(3)):
            kept = [change(z, out) for z, out in zip(logits[b, t].tolist(), blocked.tolist())]
            log_z = math.log(sum(math.exp(z) for z in kept if z is not None))
            rows.append(read(logits[b, t, actions[b, t]].item(), log_z))
        return torch.tensor(rows).reshape(B, 3)

    def allowed(z: float, out: bool) -> float | None:
        return None if out else z

    def along(axis: int) -> Tensor:
        """The chosen logits less the log of the sum along another axis."""
        log_z = logits.exp().sum(axis, keepdim=True).log().expand(logits.shape)
        rows = [[(logits - log_z)[b, t, actions[b, t]].item() for t in range(3)] for b in range(B)]
        return torch.tensor(rows)

    right = table(allowed, lambda z, log_z: z - log_z)
    unblocked = table(lambda z, out: z, lambda z, log_z: z - log_z)
    verdict(
        fn,
        (logits, actions, blocked),
        right,
        {
            "the block is ignored, or comes after the softmax: what is left must sum to 1 again": unblocked,
            "the allowed ones must become likelier: log(1 - blocked mass) is subtracted": 2 * unblocked - right,
            "the softmax runs over the vocabulary, the last axis; in yours over the places": along(1),
            "the softmax runs over the vocabulary, the last axis; in yours over the texts": along(0),
            "every allowed token is banned: True in `blocked` means that it must not be said": right - torch.inf,
            "a logit of 0 is no ban: exp(0) is 1, so the token keeps a share": table(
                lambda z, out: 0.0 if out else z, lambda z, log_z: z - log_z
            ),
            "the mask is inverted: blocked is True for what may not be said": table(
                lambda z, out: z if out else None, lambda z, log_z: z - log_z
            ),
            "these are probabilities: the logarithm is missing": table(allowed, lambda z, log_z: math.exp(z - log_z)),
            "these are raw logits: the log-softmax is missing": table(allowed, lambda z, log_z: z),
        },
    )


@exercise("09.4")
def check_coverage_score(fn: Callable, draw: Draw) -> None:
    """Exercise 09.4: fn(counts [B, F]) of each required fact -> coverage [B], 0 to 1."""
    once, again = draw.integers(5).item(), 2 + draw.integers(4).item()
    counts = [[1, 1, 1, 1], [again, 0, 0, 0], [0, 0, 0, 0], [2, again, 0, 1], [once, 0, 1, again]]
    counts = draw.shuffled([draw.shuffled(row) for row in counts[: draw.size(4)]])

    def table(one: Callable[[list[float]], float]) -> Tensor:
        return torch.tensor([one(row) for row in counts])

    verdict(
        fn,
        (draw.tensor(counts),),
        table(lambda row: sum(n > 0 for n in row) / len(row)),
        {
            "mentions are counted, not facts: saying one fact again and again pays without bound": table(
                lambda row: sum(row) / len(row)
            ),
            "bounded too late: a second mention of one fact stands in for another that is missing": table(
                lambda row: min(1.0, sum(row) / len(row))
            ),
            "a fact that is said twice is still there": table(lambda row: sum(n == 1 for n in row) / len(row)),
            "one fact is enough in yours: each must add its share": table(lambda row: float(max(row) > 0)),
            "all or nothing: three facts of four are worth something": table(lambda row: float(min(row) > 0)),
            "not divided by the number of required facts": table(lambda row: float(sum(n > 0 for n in row))),
            "divided by the mentions, not by the required facts: a response with one fact would be perfect": table(
                lambda row: sum(n > 0 for n in row) / max(1.0, sum(row))
            ),
        },
    )
