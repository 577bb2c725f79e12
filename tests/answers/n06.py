"""Notebook 06: what a learner may hand in, {mistake: function}; keys that begin with "right" are accepted."""

import torch


def logprobs_by_loop(logits, ids, prompt_length):
    rows = []
    for b in range(ids.shape[0]):
        row = []
        for n in range(prompt_length, ids.shape[1]):
            probabilities = torch.exp(logits[b, n - 1]) / torch.exp(logits[b, n - 1]).sum()
            row.append(torch.log(probabilities[ids[b, n]]))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def gathered(logits, ids, positions, P):
    return torch.gather(logits[:, positions], 2, ids[:, P:, None]).squeeze(2)


ACTION_LOGPROBS = {
    "right": logprobs_by_loop,
    "right too": lambda logits, ids, P: gathered(torch.log_softmax(logits, 2), ids, slice(P - 1, -1), P),
    "shifted by one token": lambda logits, ids, P: gathered(torch.log_softmax(logits, 2), ids, slice(P, None), P),
    "raw logits": lambda logits, ids, P: gathered(logits, ids, slice(P - 1, -1), P),
    "the logarithm is missing": lambda logits, ids, P: gathered(torch.softmax(logits, 2), ids, slice(P - 1, -1), P),
    "the sign is flipped": lambda logits, ids, P: -logprobs_by_loop(logits, ids, P),
    "must be (2, 4), got (2, 5)": lambda logits, ids, P: torch.cat(
        [logprobs_by_loop(logits, ids, P), torch.zeros(len(ids), 1)], 1
    ),
    "the softmax runs over the positions": lambda logits, ids, P: gathered(
        torch.log_softmax(logits, 1), ids, slice(P - 1, -1), P
    ),
    "one row too early": lambda logits, ids, P: gathered(torch.log_softmax(logits, 2), ids, slice(P - 2, -2), P),
    "gather came first": lambda logits, ids, P: torch.log_softmax(
        torch.gather(logits[:, P - 1 : -1], 2, ids[:, P:, None]), 2
    )[..., 0],
    "expected\n": lambda logits, ids, P: logprobs_by_loop(logits, ids, P).flip(1),
}


def positions_by_loop(mask):
    result = torch.zeros_like(mask)
    for b in range(len(mask)):
        count = 0
        for n in range(mask.shape[1]):
            if mask[b, n]:
                result[b, n] = count
                count += 1
    return result


POSITIONS = {
    "right": positions_by_loop,
    "right too": lambda mask: (torch.cumsum(mask, 1) - 1).clip(0, None),
    "the mask is ignored": lambda mask: torch.arange(mask.shape[1]).repeat(len(mask), 1),
    "the mask only made zeros": lambda mask: torch.arange(mask.shape[1]) * mask,
    "off by one": lambda mask: torch.cumsum(mask, 1),
    "padding has negative positions": lambda mask: torch.cumsum(mask, 1) - 1,
    "padding stands at 1": lambda mask: (torch.cumsum(mask, 1) - 1).masked_fill(mask == 0, 1),
    "the numbers run backwards: ": lambda mask: (mask.flip(1).cumsum(1).flip(1) - 1) * mask,
    "the padding holds the largest": lambda mask: (mask.flip(1).cumsum(1).flip(1) - 1).clamp(min=0),
    "they must be whole numbers": lambda mask: positions_by_loop(mask).float(),
    "all tokens of a row stand at one place": lambda mask: (mask.sum(1, keepdim=True) - 1).expand_as(mask),
    "the count runs down the batch": lambda mask: torch.cumsum(mask, 0) - 1,
    "must be (3, 5), got (5,)": lambda mask: torch.arange(5),
    "expected\n": lambda mask: positions_by_loop(mask).flip(1),
}


def mask_by_loop(actions, eos):
    mask = torch.zeros(actions.shape)
    for b, row in enumerate(actions.tolist()):
        for t, action in enumerate(row):
            mask[b, t] = 1
            if action == eos:
                break
    return mask


RESPONSE_MASK = {
    "right": mask_by_loop,
    "right too": lambda a, eos: 1.0 - torch.clip(torch.cumsum(a == eos, 1) - (a == eos).int(), 0, 1),
    "EOS is not counted": lambda a, eos: (torch.cumsum(a == eos, 1) == 0).float(),
    "everything but EOS counts": lambda a, eos: (a != eos).float(),
    "between the first and the second EOS": lambda a, eos: ((a == eos).cumsum(1) <= 1).float(),
    "this runs to the last EOS: ": lambda a, eos: torch.maximum(
        (a == eos).flip(1).cumsum(1).flip(1), (a != eos).all(1, keepdim=True)
    ).clamp(max=1.0),
    "this runs to the last EOS, and": lambda a, eos: ((a == eos).flip(1).cumsum(1).flip(1) > 0).float(),
    "the count runs down the batch": lambda a, eos: ((a == eos).cumsum(0) - (a == eos).long() == 0).float(),
    "they must be floating-point numbers": lambda a, eos: mask_by_loop(a, eos).bool(),
    "one too many": lambda a, eos: torch.cat([torch.ones(len(a), 1), mask_by_loop(a, eos)[:, :-1]], 1),
    "the mask is inverted": lambda a, eos: 1 - mask_by_loop(a, eos),
    "a row without EOS was cut off": lambda a, eos: (
        torch.arange(5) <= (a == eos).int().argmax(1, keepdim=True)
    ).float(),
    "counts for nothing in yours": lambda a, eos: mask_by_loop(a, eos) * (a == eos).any(1, keepdim=True),
    "only EOS itself": lambda a, eos: (torch.cumsum(a == eos, 1) * (a == eos) == 1).float(),
    "every action counts": lambda a, eos: torch.ones(a.shape),
    "must be (4, 5), got (4, 1)": lambda a, eos: mask_by_loop(a, eos).sum(1, keepdim=True),
    "expected\n": lambda a, eos: mask_by_loop(a, eos) * 2,
}


def ratio_of(p, q):
    return torch.exp(q) / torch.exp(p)


K3 = {
    "right": lambda p, q, m: (ratio_of(p, q) - torch.log(ratio_of(p, q)) - 1) * m,
    "right too": lambda p, q, m: torch.where(m == 1, torch.exp(q - p) - (q - p) - 1, torch.zeros(())),
    "the mask is ignored": lambda p, q, m: ratio_of(p, q) - torch.log(ratio_of(p, q)) - 1,
    "the ratio is upside down: ": lambda p, q, m: (ratio_of(q, p) - torch.log(ratio_of(q, p)) - 1) * m,
    "the sign of the whole is flipped": lambda p, q, m: (1 - ratio_of(p, q) + torch.log(ratio_of(p, q))) * m,
    "weighed by pi once more": lambda p, q, m: torch.exp(p) * (ratio_of(p, q) - torch.log(ratio_of(p, q)) - 1) * m,
    "the ratio is upside down, and only there": lambda p, q, m: (ratio_of(q, p) + torch.log(ratio_of(q, p)) - 1) * m,
    "the two signs disagree": lambda p, q, m: (ratio_of(p, q) + torch.log(ratio_of(p, q)) - 1) * m,
    "this is k1": lambda p, q, m: (p - q) * m,
    "this is k2": lambda p, q, m: (p - q).pow(2) * m / 2,
    "the -1 is missing": lambda p, q, m: (ratio_of(p, q) - torch.log(ratio_of(p, q))) * m,
    "must be (2, 4), got ()": lambda p, q, m: ((ratio_of(p, q) - torch.log(ratio_of(p, q)) - 1) * m).sum(),
    "expected\n": lambda p, q, m: (q - p) * m,
}

KIND = {"positions": "integer", "response_mask": "float"}  # where right numbers of another kind are refused
EXERCISES = {
    "action_logprobs": ("06.1", ACTION_LOGPROBS),
    "positions": ("06.2", POSITIONS),
    "response_mask": ("06.3", RESPONSE_MASK),
    "k3": ("06.4", K3),
}
