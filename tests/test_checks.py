"""Each check is given right answers, which it must accept, and the known mistakes, which it must call by name.

The answers below are written here, as a learner would write them; they share no line with the package.
"""

import math

import pytest
import torch

from rlcourse import checks

# -- what a learner may hand in: {mistake: function}; "right" and "right too" are accepted -----------------------------


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
        [logprobs_by_loop(logits, ids, P), torch.zeros(2, 1)], 1
    ),
    "expected\n": lambda logits, ids, P: gathered(torch.log_softmax(logits, 1), ids, slice(P - 1, -1), P),
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
    "off by one": lambda mask: torch.cumsum(mask, 1),
    "padding has negative positions": lambda mask: torch.cumsum(mask, 1) - 1,
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
    "right too": lambda a, eos: torch.logical_not(torch.cumsum((a == eos).int(), 1) - (a == eos).int() > 0),
    "EOS is not counted": lambda a, eos: (a != eos).float(),
    "the mask is inverted": lambda a, eos: 1 - mask_by_loop(a, eos),
    "a row without EOS was cut off": lambda a, eos: (
        torch.arange(5) <= (a == eos).int().argmax(1, keepdim=True)
    ).float(),
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
    "the ratio is upside down": lambda p, q, m: (ratio_of(q, p) - torch.log(ratio_of(q, p)) - 1) * m,
    "the sign of the log-ratio is flipped": lambda p, q, m: (ratio_of(q, p) + torch.log(ratio_of(q, p)) - 1) * m,
    "the two signs disagree": lambda p, q, m: (ratio_of(p, q) + torch.log(ratio_of(p, q)) - 1) * m,
    "this is k1": lambda p, q, m: (p - q) * m,
    "this is k2": lambda p, q, m: (p - q).pow(2) * m / 2,
    "the -1 is missing": lambda p, q, m: (ratio_of(p, q) - torch.log(ratio_of(p, q))) * m,
    "must be (2, 4), got ()": lambda p, q, m: ((ratio_of(p, q) - torch.log(ratio_of(p, q)) - 1) * m).sum(),
    "expected\n": lambda p, q, m: (q - p) * m,
}


def shaped(scores, logprobs, ref, mask, beta, sign=-1, where="last", keep_mask=True):
    rewards = torch.zeros(mask.shape)
    for b in range(len(mask)):
        length = int(mask[b].sum())
        for t in range(mask.shape[1]):
            if t < length or not keep_mask:
                rewards[b, t] += sign * beta * (logprobs[b, t] - ref[b, t])
            paid = {"last": t == length - 1, "column": t == mask.shape[1] - 1, "late": t == length}
            if paid.get(where, where == "all" and t < length):
                rewards[b, t] += scores[b]
    return rewards


KL_SHAPED_REWARDS = {
    "right": shaped,
    "right too": lambda s, p, q, m, beta: (
        m * beta * (q - p) + torch.nn.functional.one_hot(m.sum(1).long() - 1, 4) * s[:, None]
    ),
    "the sign of the KL term is flipped": lambda *a: shaped(*a, sign=1),
    "lands on the last column": lambda *a: shaped(*a, where="column"),
    "paid at every action": lambda *a: shaped(*a, where="all"),
    "one action too late": lambda *a: shaped(*a, where="late"),
    "roll wraps round": lambda s, p, q, m, beta: m * beta * (q - p) + s[:, None] * (m - m.roll(-1, 1)).clamp(min=0),
    "the score is missing": lambda *a: shaped(*a, where="never"),
    "the mask is ignored": lambda *a: shaped(*a, keep_mask=False),
    "the KL term is missing": lambda *a: shaped(*a, sign=0),
    "must be (3, 4), got (3,)": lambda *a: shaped(*a).sum(1),
    "expected\n": lambda *a: shaped(*a) * 2,
}


def gae_backwards(rewards, values, mask, gamma, lam, carry=None, next_gamma=None, use_mask=True):
    carry = gamma * lam if carry is None else carry
    next_gamma = gamma if next_gamma is None else next_gamma
    mask = mask if use_mask else torch.ones_like(mask)
    advantages, later, next_value = torch.zeros(mask.shape), torch.zeros(len(mask)), torch.zeros(len(mask))
    for t in range(mask.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + next_gamma * next_value - values[:, t]
        later = (delta + carry * later) * mask[:, t]
        advantages[:, t], next_value = later, values[:, t] * mask[:, t]
    return advantages


GAE = {
    "right": gae_backwards,
    "right too": lambda r, v, m, gamma, lam: gae_backwards(r.double(), v.double(), m.double(), gamma, lam).double(),
    "the mask is ignored: values": lambda *a: gae_backwards(*a, use_mask=False),
    "lam is missing": lambda r, v, m, gamma, lam: gae_backwards(r, v, m, gamma, lam, carry=gamma),
    "gamma is missing": lambda r, v, m, gamma, lam: gae_backwards(r, v, m, gamma, lam, carry=lam),
    "only the one-step errors": lambda *a: gae_backwards(*a, carry=0),
    "V(next state) is missing": lambda *a: gae_backwards(*a, next_gamma=0),
    "V(next state) is not discounted": lambda *a: gae_backwards(*a, next_gamma=1),
    "the sign is flipped": lambda *a: -gae_backwards(*a),
    "must be (2, 5), got (2, 4)": lambda *a: gae_backwards(*a)[:, :4],
    "expected\n": lambda *a: gae_backwards(*a) * 2,
}


def returns_without_baseline(rewards, values, mask, gamma, lam):
    """The recursion with V(next state) in the error but without V(this state)."""
    advantages, later, next_value = torch.zeros(mask.shape), torch.zeros(2), torch.zeros(2)
    for t in reversed(range(5)):
        later = (rewards[:, t] + gamma * next_value + gamma * lam * later) * mask[:, t]
        advantages[:, t], next_value = later, values[:, t] * mask[:, t]
    return advantages


GAE["V at the present state is missing"] = returns_without_baseline
GAE["these are returns, advantages plus values"] = lambda r, v, m, *a: gae_backwards(r, v, m, *a) + v * m
GAE["masking the result comes too late"] = lambda r, v, m, *a: gae_backwards(r, v, m, *a, use_mask=False) * m


def surrogate(new, old, advantages, mask, eps, choose=torch.minimum, counted=True, over=None, sign=-1):
    ratio = torch.exp(new) / torch.exp(old)
    inside = torch.where(ratio > 1 + eps, 1 + eps, torch.where(ratio < 1 - eps, 1 - eps, ratio))
    terms = choose(ratio * advantages, inside * advantages)
    terms = terms * mask if counted else terms
    return sign * terms.sum() / (over or (mask.sum() if counted else mask.numel()))


CLIPPED_SURROGATE_LOSS = {
    "right": surrogate,
    "right too": lambda new, old, a, m, eps: torch.max(
        -(new - old).exp() * a, -(new - old).exp().clamp(1 - eps, 1 + eps) * a
    )[m > 0].mean(),
    "max instead of min": lambda *a: surrogate(*a, choose=torch.maximum),
    "the sign is flipped": lambda *a: surrogate(*a, sign=1),
    "clipped only": lambda *a: surrogate(*a, choose=lambda free, clipped: clipped),
    "no clipping at all": lambda *a: surrogate(*a, choose=lambda free, clipped: free),
    "the min is over the ratios": lambda new, old, a, m, eps: surrogate(
        torch.minimum(new, old + math.log(1 + eps)), old, a, m, eps, choose=lambda free, clipped: free
    ),
    "the product is clipped": lambda new, old, a, m, eps: (
        -(torch.minimum((new - old).exp() * a, ((new - old).exp() * a).clamp(1 - eps, 1 + eps)) * m).sum() / m.sum()
    ),
    "clip_eps is ignored": lambda new, old, a, m, eps: surrogate(new, old, a, m, 0.2),
    "no gradient reaches the log-probabilities": lambda new, *a: surrogate(new.detach(), *a),
    "the mask is ignored": lambda *a: surrogate(*a, counted=False),
    "divided by all positions": lambda *a: surrogate(*a, over=8),
    "a sum where the mean": lambda *a: surrogate(*a, over=1),
    "must be (), got (2, 4)": lambda new, old, a, m, eps: -(new - old).exp() * a * m,
    "expected a tensor, got float": lambda *a: surrogate(*a).item(),
    "expected\n": lambda *a: surrogate(*a) * 2,
}


def lengths_of(prompts, responses):
    return torch.tensor([float(len(r)) for r in responses])


REWARD = {
    "right": lengths_of,
    "right too": lambda prompts, responses: torch.tensor(
        [p.count("e") + len(set(r)) / 7 for p, r in zip(prompts, responses)]
    ),
    "got (4,) torch.int64": lambda prompts, responses: torch.tensor([len(r) for r in responses]),
    "got (4, 1)": lambda prompts, responses: lengths_of(prompts, responses)[:, None],
    "got ()": lambda prompts, responses: lengths_of(prompts, responses).mean(),
    "got list": lambda prompts, responses: [0.0, 1.0, 2.0, 3.0],
    "must be finite": lambda prompts, responses: 1 / lengths_of(prompts, responses),
    "carries no gradient": lambda prompts, responses: lengths_of(prompts, responses).requires_grad_(),
    "depends on the other responses in the batch": lambda prompts, responses: (
        lengths_of(prompts, responses) - lengths_of(prompts, responses).mean()
    ),
    "or on chance": lambda prompts, responses: torch.rand(len(responses)),
}

EXERCISES = {
    "action_logprobs": ("06.1", ACTION_LOGPROBS),
    "positions": ("06.2", POSITIONS),
    "response_mask": ("06.3", RESPONSE_MASK),
    "k3": ("06.4", K3),
    "kl_shaped_rewards": ("07.1", KL_SHAPED_REWARDS),
    "gae": ("07.2", GAE),
    "clipped_surrogate_loss": ("07.3", CLIPPED_SURROGATE_LOSS),
    "reward": ("07.4", REWARD),
}
RIGHT = [(name, key) for name, (_, answers) in EXERCISES.items() for key in answers if key.startswith("right")]
WRONG = [(name, key) for name, (_, answers) in EXERCISES.items() for key in answers if not key.startswith("right")]


def check(name):
    return getattr(checks, f"check_{name}")


@pytest.fixture(autouse=True)
def not_strict(monkeypatch):
    monkeypatch.delenv("RLCOURSE_STRICT", raising=False)


def test_a_reward_that_is_always_the_same_is_questioned(capsys):
    checks.check_reward(lambda prompts, responses: torch.ones(len(responses)))
    assert "all score the same" in capsys.readouterr().out


def test_every_check_is_tested():
    assert {name for name in vars(checks) if name.startswith("check_")} == {f"check_{name}" for name in EXERCISES}


@pytest.mark.parametrize("name, key", RIGHT)
@pytest.mark.parametrize("strict", ["0", "1"])
def test_right_answers_are_accepted(name, key, strict, monkeypatch, capsys):
    monkeypatch.setenv("RLCOURSE_STRICT", strict)
    number, answers = EXERCISES[name]
    assert check(name)(answers[key]) is None
    assert capsys.readouterr().out == f"exercise {number}: right\n"


@pytest.mark.parametrize("name, key", WRONG)
def test_mistakes_are_named(name, key, capsys):
    number, answers = EXERCISES[name]
    with pytest.raises(AssertionError) as error:
        check(name)(answers[key])
    assert str(error.value).startswith(f"exercise {number}: ") and key in str(error.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", [name for name in EXERCISES if name != "reward"])
def test_every_mistake_that_a_check_knows_is_made_above(name, monkeypatch):
    known = {}
    monkeypatch.setattr(checks, "_verdict", lambda name, fn, args, right, mistakes: known.update(mistakes))
    check(name)(None)
    wrong = [key for key in EXERCISES[name][1] if not key.startswith("right")]
    assert len(known) >= 3 and all(sum(key in mistake for key in wrong) == 1 for mistake in known)


@pytest.mark.parametrize("name", EXERCISES)
def test_unattempted(name, monkeypatch, capsys):
    def stub(*args):
        raise NotImplementedError

    assert check(name)(stub) is None
    assert capsys.readouterr().out == f"exercise {EXERCISES[name][0]}: not attempted yet\n"
    monkeypatch.setenv("RLCOURSE_STRICT", "1")
    with pytest.raises(NotImplementedError):
        check(name)(stub)


@pytest.mark.parametrize("name", EXERCISES)
def test_nothing_returned(name):
    with pytest.raises(AssertionError, match="nothing is returned"):
        check(name)(lambda *args: None)


@pytest.mark.parametrize("name", EXERCISES)
@pytest.mark.parametrize("answer, kind", [(0.5, "float"), ([1.0], "list"), ("text", "str")])
def test_wrong_type(name, answer, kind):
    with pytest.raises(AssertionError, match=f"expected a (float )?tensor.*got {kind}"):
        check(name)(lambda *args: answer)


@pytest.mark.parametrize("name", EXERCISES)
def test_wrong_shape(name):
    with pytest.raises(AssertionError, match=r"shape.*got \(7, 3\)"):
        check(name)(lambda *args: torch.rand(7, 3))


@pytest.mark.parametrize("name", [name for name in EXERCISES if name != "reward"])
def test_nan_is_not_right(name):
    right = EXERCISES[name][1]["right"]
    with pytest.raises(AssertionError):
        check(name)(lambda *args: right(*args) * float("nan"))


@pytest.mark.parametrize("name", EXERCISES)
def test_the_learners_own_error_comes_through(name):
    def broken(*args):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        check(name)(broken)


@pytest.mark.parametrize("name", [name for name in EXERCISES if name != "reward"])
def test_an_answer_that_changes_its_arguments_in_place_cannot_pass_by_it(name):
    """The check hands out copies: zeroing the arguments and returning zeros is wrong, twice in a row."""

    def zeros(*args):
        for x in args:
            if isinstance(x, torch.Tensor):
                x.zero_()
        return EXERCISES[name][1]["right"](*args) * 0

    for _ in range(2):
        with pytest.raises((AssertionError, RuntimeError, IndexError)):
            check(name)(zeros)
    check(name)(EXERCISES[name][1]["right"])


@pytest.mark.parametrize("name", EXERCISES)
def test_a_check_leaves_the_random_numbers_alone(name):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    check(name)(EXERCISES[name][1]["right"])
    assert torch.get_rng_state().equal(state)
