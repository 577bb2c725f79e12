import dataclasses
import itertools
import math

import pytest
import torch

from rlcourse.envs import TabularPolicy
from rlcourse.rnn import RNNPolicy
from rlcourse.rollout import Prompts, Rollout, sample_tokens


def make_rollout(inputs, B=4, T=3, ref=True):
    """Every number tells its field and its row, so that a mix-up of either shows."""
    field = [100.0 * k + torch.arange(B)[:, None].expand(B, T) for k in range(1, 5)]
    mask = (torch.arange(T) <= torch.arange(B)[:, None]).float()
    return Rollout(inputs, field[0].long(), mask, field[1], field[2], field[3] if ref else None)


def make_prompts(B=4):
    row = torch.arange(B)
    mask = torch.stack([row, torch.ones_like(row)], dim=1)  # no real mask: numbers that tell the row
    return Prompts(ids=10 + row[:, None].expand(B, 2), mask=mask, temperature=0.5 + row)


def make_blocked(B=4, V=6):
    """Row b blocks token b and the last."""
    return torch.eye(B, V, dtype=torch.bool).index_fill(1, torch.tensor([V - 1]), True)


INDICES = [
    (2, [2]),
    (-1, [3]),
    (slice(1, 3), [1, 2]),
    (slice(None, None, 2), [0, 2]),
    (torch.tensor([3, 0, 3]), [3, 0, 3]),
    (torch.tensor([], dtype=torch.long), []),
]


@pytest.mark.parametrize("i, expected", INDICES)
def test_a_minibatch_keeps_rows_together(i, expected):
    batch = make_rollout(inputs=torch.arange(4) + 7)[i]
    assert isinstance(batch, Rollout) and len(batch) == len(expected)
    assert batch.inputs.tolist() == [7 + row for row in expected]
    assert batch.actions.tolist() == [[100 + row] * 3 for row in expected]
    assert batch.old_logprobs.tolist() == [[200 + row] * 3 for row in expected]
    assert batch.values.tolist() == [[300 + row] * 3 for row in expected]
    assert batch.ref_logprobs.tolist() == [[400 + row] * 3 for row in expected]
    assert batch.mask.sum(1).tolist() == [min(row + 1, 3) for row in expected]


@pytest.mark.parametrize("i, expected", INDICES)
def test_prompts_are_indexed_alone_and_as_inputs(i, expected):
    for prompts in (make_prompts()[i], make_rollout(inputs=make_prompts())[i].inputs):
        assert isinstance(prompts, Prompts) and len(prompts) == len(expected)
        assert prompts.ids.tolist() == [[10 + row] * 2 for row in expected]
        assert prompts.mask.tolist() == [[row, 1] for row in expected]
        assert prompts.temperature.tolist() == [0.5 + row for row in expected]


@pytest.mark.parametrize("i, expected", INDICES)
def test_blocked_tokens_stay_with_their_rows(i, expected):
    prompts = dataclasses.replace(make_prompts(), blocked=make_blocked())
    for part in (prompts[i], make_rollout(inputs=prompts)[i].inputs, prompts.to("cpu")[i]):
        assert part.blocked.tolist() == [[v in (row, 5) for v in range(6)] for row in expected]
        assert part.ids.tolist() == [[10 + row] * 2 for row in expected]
    assert make_prompts()[i].blocked is None and make_prompts().to("cpu").blocked is None


@pytest.mark.parametrize("i", [0, slice(2), torch.tensor([1])])
def test_without_reference_there_is_none_to_index(i):
    rollout = make_rollout(torch.arange(4), ref=False)
    assert rollout[i].ref_logprobs is None and rollout.to("cpu").ref_logprobs is None


def test_to_moves_every_tensor():
    moved = make_rollout(dataclasses.replace(make_prompts(), blocked=make_blocked())).to("meta")
    tensors = [moved.actions, moved.mask, moved.old_logprobs, moved.values, moved.ref_logprobs]
    tensors += [moved.inputs.ids, moved.inputs.mask, moved.inputs.temperature, moved.inputs.blocked]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    same = make_rollout(make_prompts()).to("cpu")
    assert torch.equal(same.actions, make_rollout(make_prompts()).actions)


def test_a_rollout_can_be_walked_row_by_row():
    assert [len(row) for row in make_rollout(torch.arange(4))] == [1, 1, 1, 1]


@pytest.mark.parametrize("container, name", [(make_rollout(torch.arange(4)), "actions"), (make_prompts(), "ids")])
def test_both_are_frozen(container, name):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(container, name, None)


@pytest.mark.parametrize("name", ["mask", "old_logprobs", "values", "ref_logprobs"])
def test_rollout_names_a_wrong_shape(name):
    fields = vars(make_rollout(torch.arange(4)))
    with pytest.raises(ValueError, match=rf"{name} must have the shape of actions \(4, 3\), got \(4, 1\)"):
        Rollout(**fields | {name: torch.ones(4, 1)})


def test_rollout_names_missing_rows_of_inputs():
    with pytest.raises(ValueError, match="inputs has 5 rows, actions 4"):
        make_rollout(inputs=torch.arange(5))


@pytest.mark.parametrize(
    "changed",
    [
        dict(ids=torch.ones(4)),
        dict(mask=torch.ones(4, 3)),
        dict(temperature=torch.ones(3)),
        dict(temperature=torch.ones(4, 1)),
    ],
)
def test_prompts_name_wrong_shapes(changed):
    with pytest.raises(ValueError, match=r"ids and mask must be \[B, P\] and temperature \[B\], got \[\(4,"):
        Prompts(**vars(make_prompts()) | changed)


def test_prompts_name_a_temperature_that_is_not_positive():
    with pytest.raises(ValueError, match="temperature must be positive"):
        Prompts(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize(
    "blocked, came",
    [
        (torch.zeros(4, 6), r"\(4, 6\) of torch.float32"),
        (torch.zeros(4, 6, dtype=torch.long), r"\(4, 6\) of torch.int64"),
        (torch.zeros(6, dtype=torch.bool), r"\(6,\) of torch.bool"),
        (torch.zeros(3, 6, dtype=torch.bool), r"\(3, 6\) of torch.bool"),
        (torch.zeros(4, 1, 6, dtype=torch.bool), r"\(4, 1, 6\) of torch.bool"),
    ],
)
def test_prompts_name_a_blocked_of_another_kind(blocked, came):
    with pytest.raises(ValueError, match=rf"blocked must be \[4, V\] of torch.bool, got {came}"):
        Prompts(**vars(make_prompts()) | {"blocked": blocked})


def test_prompts_name_a_row_that_is_left_no_token():
    blocked = make_blocked()
    blocked[2] = True
    with pytest.raises(ValueError, match="blocked leaves row 2 no token to sample"):
        Prompts(**vars(make_prompts()) | {"blocked": blocked})


# sample_tokens


def small_policy(kind, randn, V=3, T=4):
    policy = TabularPolicy(V, T) if kind == "table" else RNNPolicy(V, 3, kind).double()
    for parameter in policy.parameters():
        parameter.data = randn(*parameter.shape)
    return policy


SMALL = pytest.mark.parametrize("kind", ["table", "gru", "lstm"])


def probability(policy, prompt, text):
    """The product of softmax(logits) along the text, from `evaluate`-free single steps."""
    state, p = policy.start(torch.tensor([prompt], dtype=torch.long)), 1.0
    for token in text:
        weights = [math.exp(x) for x in policy.predict(state)[0][0].tolist()]
        p, state = p * weights[token] / sum(weights), policy.append(state, torch.tensor([token]))
    return p


@SMALL
@pytest.mark.parametrize("prompt", [(), (1,), (0, 2)])
@pytest.mark.parametrize("eos", [None, 1])
def test_texts_come_as_often_as_the_policy_says(kind, prompt, eos, randn, generator):
    """Pearson's chi-square over all texts; above 32 it is rarer than one in ten thousand for 8 degrees of freedom."""
    policy, count = small_policy(kind, randn), 3000
    inputs = torch.tensor([prompt], dtype=torch.long).expand(count, -1)
    actions = sample_tokens(policy, inputs, 2, eos, generator).actions
    drawn = [tuple(row) for row in actions.tolist()]
    texts = [text for text in itertools.product(range(3), repeat=2) if text[0] != eos or text[1] == eos]
    assert set(drawn) <= set(texts)
    p = [probability(policy, prompt, text[:1] if text[0] == eos else text) for text in texts]
    assert sum(p) == pytest.approx(1, abs=1e-10)
    assert sum((drawn.count(text) - count * x) ** 2 / (count * x) for text, x in zip(texts, p)) < 32


@SMALL
@pytest.mark.parametrize("P", [0, 1])
@pytest.mark.parametrize("eos", [None, 2])
def test_samples_are_scored_as_evaluate_scores_them_and_eos_counts(kind, P, eos, randn, generator):
    policy = small_policy(kind, randn)
    inputs = torch.randint(0, 3, (40, P), generator=generator)
    rollout = sample_tokens(policy, inputs, 3, eos, generator)
    logprobs, values = policy.evaluate(inputs, rollout.actions)
    assert torch.equal(rollout.inputs, inputs) and rollout.actions.shape == (40, 3)
    torch.testing.assert_close(rollout.old_logprobs, (logprobs * rollout.mask).detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(rollout.values, (values * rollout.mask).detach(), rtol=0, atol=1e-12)
    assert not rollout.old_logprobs.requires_grad and not rollout.values.requires_grad
    for actions, mask in zip(rollout.actions.tolist(), rollout.mask.tolist()):
        length = actions.index(eos) + 1 if eos in actions else 3  # EOS itself counts
        assert mask == [1.0] * length + [0.0] * (3 - length)
        assert actions[length:] == [eos] * (3 - length)
    assert {1, 2, 3} == set(rollout.mask.sum(1).tolist()) or eos is None


def test_a_policy_that_ends_at_once_says_eos_and_nothing_else():
    policy = TabularPolicy(2, 3)
    policy.logits_table.data[:] = torch.tensor([1e9, 0.0])
    policy.values_table.data[:] = 5
    rollout = sample_tokens(policy, torch.zeros(2, 0, dtype=torch.long), 3, eos=0)
    assert rollout.actions.tolist() == [[0, 0, 0]] * 2 and rollout.mask.tolist() == [[1, 0, 0]] * 2
    assert rollout.values.tolist() == [[5, 0, 0]] * 2


def test_the_mask_has_the_type_of_the_values_and_a_seed_gives_the_same_again():
    policy = RNNPolicy(5, 4)
    inputs = torch.zeros(6, 1, dtype=torch.long)
    first, again, other = (
        sample_tokens(policy, inputs, 8, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    )
    assert torch.equal(first.actions, again.actions) and not torch.equal(first.actions, other.actions)
    assert {x.dtype for x in (first.mask, first.values, first.old_logprobs)} == {torch.float32}


@pytest.mark.parametrize("number", [0, -1, 2.0, None])
def test_sample_tokens_names_a_length_that_is_none(number):
    with pytest.raises(ValueError, match=f"max_new_tokens must be a whole number of at least 1, got {number}"):
        sample_tokens(RNNPolicy(3, 2), torch.zeros(1, 0, dtype=torch.long), number)


@pytest.mark.parametrize("inputs", [torch.zeros(3, dtype=torch.long), torch.zeros(3, 0)])
def test_sample_tokens_names_inputs_that_are_no_token_ids(inputs):
    with pytest.raises(
        ValueError, match=r"inputs must be \[B, P\] token ids, got torch\.(int64|float32) of shape \(3,"
    ):
        sample_tokens(RNNPolicy(3, 2), inputs, 2)
