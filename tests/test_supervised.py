import copy
import math

import pytest
import torch

from rlcourse.envs import TabularPolicy
from rlcourse.gpt2 import GPT2Policy
from rlcourse.supervised import supervised_update

V, T, B = 3, 3, 4
MASK = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
ACTIONS = torch.tensor([[0, 1, 2], [2, 0, 0], [1, 1, 0], [2, 2, 2]])
NO_PROMPT = torch.zeros(B, 0, dtype=torch.long)


@pytest.fixture
def policy(randn):
    policy = TabularPolicy(V, T)
    policy.logits_table.data = randn(*policy.logits_table.shape)
    return policy


@pytest.fixture(scope="module")
def tiny():
    return GPT2Policy.from_pretrained("tiny", device="cpu")


def step(policy, actions=ACTIONS, mask=MASK, lr=1.0, **options):
    """A copy after one step of length lr, and the statistics."""
    moved = copy.deepcopy(policy)
    return moved, supervised_update(
        moved, torch.optim.SGD(moved.parameters(), lr=lr), NO_PROMPT[: len(actions)], actions, mask, **options
    )


def test_the_step_is_the_gradient_worked_out_by_hand(policy):
    gradient, loss, counted = torch.zeros_like(policy.logits_table), 0.0, MASK.sum().item()
    for b, t in MASK.nonzero().tolist():
        state = 0
        for token in ACTIONS[b, :t].tolist():
            state = state * V + token + 1
        p = policy.logits_table[state].detach().softmax(0).tolist()
        loss -= math.log(p[ACTIONS[b, t]]) / counted  # a mean over tokens: a row of three weighs three times
        for v in range(V):
            gradient[state, v] += (p[v] - (v == ACTIONS[b, t].item())) / counted
    moved, stats = step(policy, max_grad_norm=1e9)
    torch.testing.assert_close(policy.logits_table.data - moved.logits_table.data, gradient.data)
    assert stats == {"loss": pytest.approx(loss), "grad_norm": pytest.approx(gradient.norm().item())}
    assert moved.values_table.equal(policy.values_table)


def test_what_is_masked_has_no_say(policy):
    other = torch.where(MASK > 0, ACTIONS, (ACTIONS + 1) % V)
    assert step(policy)[0].logits_table.equal(step(policy, other)[0].logits_table)


def test_gradients_are_scaled_down_to_max_grad_norm(policy):
    moved, stats = step(policy, max_grad_norm=0.01)
    assert stats["grad_norm"] > 0.01
    assert (policy.logits_table - moved.logits_table).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_it_finds_the_frequencies_of_the_data():
    """Maximum likelihood on one action, drawn 3 : 1 : 0, is the policy 3/4, 1/4, 0."""
    policy = TabularPolicy(V, 1)
    actions, mask = torch.tensor([[0], [0], [0], [1]]), torch.ones(4, 1, dtype=torch.float64)
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.1)
    for _ in range(500):
        supervised_update(policy, optimizer, NO_PROMPT, actions, mask)
    torch.testing.assert_close(policy.logits_table[0].softmax(0)[:2].tolist(), [0.75, 0.25], rtol=0, atol=0.01)


def test_the_loss_is_the_one_of_transformers(tiny):
    """One prompt, one response, EOS: the library's own loss, with the prompt's labels set to -100."""
    policy = copy.deepcopy(tiny)
    actions, mask = policy.encode_responses([" a warm and funny film."])
    inputs = policy.encode(["This is"])
    ids = torch.cat([inputs.ids, actions], dim=1)
    labels = ids.clone()
    labels[:, : inputs.ids.shape[1]] = -100
    expected = policy.lm(ids, labels=labels).loss.item()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.01)
    losses = [supervised_update(policy, optimizer, inputs, actions, mask)["loss"] for _ in range(3)]
    assert losses[0] == pytest.approx(expected, abs=1e-4) and losses[0] > losses[1] > losses[2]


def test_bad_input(policy):
    with pytest.raises(ValueError, match="counts no action"):
        step(policy, mask=torch.zeros(B, T, dtype=torch.float64))
    with pytest.raises(ValueError, match="actions must have the shape of mask"):
        step(policy, mask=MASK[:, :2])
    with pytest.raises(TypeError, match="mask"):
        step(policy, mask=MASK.bool())
