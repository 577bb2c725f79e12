"""Notebook 02: what a learner may hand in, {mistake: function}; keys that begin with "right" are accepted."""

import torch


def loss_by_loop(logprobs, advantages, mask):
    total = 0.0
    for b in range(logprobs.shape[0]):
        for t in range(logprobs.shape[1]):
            if mask[b, t] == 1:
                total = total - logprobs[b, t] * advantages[b, t]
    return total / logprobs.shape[0]


REINFORCE_LOSS = {
    "right": loss_by_loop,
    "right too": lambda p, a, m: -torch.einsum("bt,bt,bt->b", p, a, m).mean(),
    "the sign is flipped": lambda p, a, m: -loss_by_loop(p, a, m),
    "the mask is ignored": lambda p, a, m: -(p * a).sum(1).mean(),
    "divided by the number of counted actions": lambda p, a, m: -(p * a * m).sum() / m.sum(),
    "divided by all positions": lambda p, a, m: -(p * a * m).mean(),
    "a mean over each text's actions": lambda p, a, m: -((p * a * m).sum(1) / m.sum(1)).mean(),
    "a sum over texts": lambda p, a, m: -(p * a * m).sum(),
    "these are probabilities": lambda p, a, m: -(torch.exp(p) * a * m).sum(1).mean(),
    "two sums are multiplied": lambda p, a, m: -((p * m).sum(1) * (a * m).sum(1)).mean(),
    "dimensions are mixed up": lambda p, a, m: -(p * a * m).sum(0).mean(),
    "the advantages are missing": lambda p, a, m: -(p * m).sum(1).mean(),
    "two mistakes: the sign, and what": lambda p, a, m: (p * a).sum(1).mean(),
    "two mistakes: what stands": lambda p, a, m: -(p * a).mean(),
    "no gradient reaches": lambda p, a, m: loss_by_loop(p.detach(), a, m),
    "its gradient on `logprobs` is not": lambda p, a, m: loss_by_loop(torch.cat([p[:1].detach(), p[1:]]), a, m),
    "the shape must be (), got (3,)": lambda p, a, m: -(p * a * m).sum(1),
    "expected\n": lambda p, a, m: -(p * a.abs() * m).sum(1).mean(),
}


def reaches_by_autograd(losses, parameters):
    table = torch.zeros(len(losses), len(parameters))
    for i, loss in enumerate(losses):
        if not loss.requires_grad:
            continue
        for j, parameter in enumerate(parameters):
            (gradient,) = torch.autograd.grad(loss, [parameter], retain_graph=True, allow_unused=True)
            table[i, j] = 0.0 if gradient is None else float((gradient != 0).any())
    return table


def reaches_by_backward(losses, parameters, clear=True, seen=lambda g: bool(g.abs().sum() > 0)):
    rows = []
    for loss in losses:
        if clear:
            for parameter in parameters:
                parameter.grad = None
        if loss.requires_grad:
            loss.backward()
        rows.append([0.0 if p.grad is None else float(seen(p.grad)) for p in parameters])
    return torch.tensor(rows)


GRADIENT_REACHES = {
    "right": reaches_by_autograd,
    "right too": reaches_by_backward,
    "a gradient that is exactly 0 was counted": lambda ls, ps: reaches_by_backward(ls, ps, seen=lambda g: True),
    "may cancel in a sum": lambda ls, ps: reaches_by_backward(ls, ps, seen=lambda g: g.sum() != 0),
    "one entry other than 0 is enough": lambda ls, ps: reaches_by_backward(ls, ps, seen=lambda g: (g != 0).all()),
    "gradients add up": lambda ls, ps: reaches_by_backward(ls, ps, clear=False),
    "that the loss asks for a gradient": lambda ls, ps: torch.tensor([[float(l.requires_grad)] * len(ps) for l in ls]),
    "that a parameter asks for a gradient": lambda ls, ps: torch.tensor(
        [[float(p.requires_grad) for p in ps]] * len(ls)
    ),
    "yes and no are swapped": lambda ls, ps: 1 - reaches_by_autograd(ls, ps),
    "the shape must be (5, 3), got (3, 5)": lambda ls, ps: reaches_by_autograd(ls, ps).T,
    "expected\n": lambda ls, ps: torch.zeros(len(ls), len(ps)),
}


def loss_from_logits(logits, actions, scores, mask, which="chosen", masked=True, sign=-1.0):
    total = torch.zeros(())
    for b in range(actions.shape[0]):
        for t in range(actions.shape[1]):
            if masked and mask[b, t] == 0:
                continue
            row = torch.log(torch.softmax(logits[b, t], 0))
            term = {"chosen": row[actions[b, t]], "all": row.sum(), "likeliest": row.max()}[which]
            total = total + sign * scores[b] * term
    return total / len(actions)


def with_mistakes(**mistakes):
    return lambda *args: loss_from_logits(*args, **mistakes)


ALL, LIKELIEST = "the whole vocabulary is paid, not the chosen token", "the likeliest token is paid, not the chosen one"
AFTER, FLIPPED = "actions after the end are paid", "the sign is flipped"
BROKEN_LOSS = {
    "right": loss_from_logits,
    "right too": lambda z, a, s, m: (
        torch.nn.functional.cross_entropy(z.flatten(0, 1), a.flatten(), reduction="none").mul(m.flatten())
        @ s.repeat_interleave(3)
        / len(a)
    ),
    f"still there: {ALL} + {AFTER} + {FLIPPED}.": with_mistakes(which="all", masked=False, sign=1.0),
    f"still there: {ALL} + {AFTER}.": with_mistakes(which="all", masked=False),
    f"still there: {ALL} + {FLIPPED}.": with_mistakes(which="all", sign=1.0),
    f"still there: {ALL}.": with_mistakes(which="all"),
    f"still there: {LIKELIEST} + {AFTER} + {FLIPPED}.": with_mistakes(which="likeliest", masked=False, sign=1.0),
    f"still there: {LIKELIEST} + {AFTER}.": with_mistakes(which="likeliest", masked=False),
    f"still there: {LIKELIEST} + {FLIPPED}.": with_mistakes(which="likeliest", sign=1.0),
    f"still there: {LIKELIEST}.": with_mistakes(which="likeliest"),
    f"still there: {AFTER} + {FLIPPED}.": with_mistakes(masked=False, sign=1.0),
    f"still there: {AFTER}.": with_mistakes(masked=False),
    f"still there: {FLIPPED}.": with_mistakes(sign=1.0),
    "divided by all positions": lambda z, a, s, m: loss_from_logits(z, a, s, m) * len(a) / m.numel(),
    "these are logits": lambda z, a, s, m: -(z.gather(-1, a[..., None])[..., 0] * s[:, None] * m).sum(1).mean(),
    "the sum over a text became a mean": lambda z, a, s, m: loss_from_logits(z, a, s, m) * len(a) / m.sum(),
    "no gradient reaches": lambda z, a, s, m: loss_from_logits(z, a, s, m).detach(),
    "its gradient on `logits` is not": lambda z, a, s, m: (  # the normaliser is taken for a constant
        -((z.gather(2, a[..., None])[..., 0] - z.logsumexp(2).detach()) * m * s[:, None]).sum(1).mean()
    ),
    "the shape must be (), got (2,)": lambda z, a, s, m: (
        -(torch.gather(z.log_softmax(2), 2, a.unsqueeze(2)).squeeze(2) * m * s.unsqueeze(1)).sum(1)
    ),
    "expected\n": lambda z, a, s, m: loss_from_logits(z, a, s**2, m),
}

EXERCISES = {
    "reinforce_loss": ("02.1", REINFORCE_LOSS),
    "gradient_reaches": ("02.2", GRADIENT_REACHES),
    "broken_loss": ("02.3", BROKEN_LOSS),
}
