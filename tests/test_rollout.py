import dataclasses

import pytest
import torch

from rlcourse.rollout import Prompts, Rollout


def make_rollout(inputs, B=4, T=3, ref=True):
    """Every number tells its field and its row, so that a mix-up of either shows."""
    field = [100.0 * k + torch.arange(B)[:, None].expand(B, T) for k in range(1, 5)]
    mask = (torch.arange(T) <= torch.arange(B)[:, None]).float()
    return Rollout(inputs, field[0].long(), mask, field[1], field[2], field[3] if ref else None)


def make_prompts(B=4):
    row = torch.arange(B)
    mask = torch.stack([row, torch.ones_like(row)], dim=1)  # no real mask: numbers that tell the row
    return Prompts(ids=10 + row[:, None].expand(B, 2), mask=mask, temperature=0.5 + row)


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


@pytest.mark.parametrize("i", [0, slice(2), torch.tensor([1])])
def test_without_reference_there_is_none_to_index(i):
    rollout = make_rollout(torch.arange(4), ref=False)
    assert rollout[i].ref_logprobs is None and rollout.to("cpu").ref_logprobs is None


def test_to_moves_every_tensor():
    moved = make_rollout(make_prompts()).to("meta")
    tensors = [moved.actions, moved.mask, moved.old_logprobs, moved.values, moved.ref_logprobs]
    tensors += [moved.inputs.ids, moved.inputs.mask, moved.inputs.temperature]
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
