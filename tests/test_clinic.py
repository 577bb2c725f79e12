"""The clinic of notebook 02: no patient learns, every repaired listing does.

The listings are not copied here: the cells tagged `setup` and `clinic` are read from the stored notebook and executed.
The measuring is this file's own.
"""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cosine_similarity

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "02_reinforce.ipynb"
NO_GRADIENT = ["log_of_a_count", "backward_on_a_string", "nothing_recomputed"]
PATIENTS = [*NO_GRADIENT, "argmax_as_action", "cross_entropy_as_reward", "whole_vocabulary"]
FROM_SAMPLES = [name for name in PATIENTS if name != "cross_entropy_as_reward"]
SEEDS = range(20, 23)  # others than the page's


@pytest.fixture(scope="module")
def ward() -> dict:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    names: dict = {}
    for cell in cells:
        if {"setup", "clinic"} & set(cell["metadata"].get("tags", [])):
            exec("".join(cell["source"]), names)
    return names


def start(ward, seed: int):
    """A policy with random logits, of this file's own making."""
    policy = ward["envs"].TabularPolicy(3, 4)
    noise = torch.randn(policy.logits_table.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    policy.logits_table.data = 0.3 * noise
    return policy


def value(ward, policy) -> float:
    """J as a loop over the 31 texts, with the pay counted on strings."""
    mdp, pi, total = ward["mdp"], policy.logits_table.softmax(-1).tolist(), 0.0
    for actions, mask in zip(mdp.actions.tolist(), mdp.mask.tolist()):
        actions, state, probability = actions[: int(sum(mask))], 0, 1.0
        for action in actions:
            probability, state = probability * pi[state][action], 3 * state + action + 1
        total += probability * "".join("ab."[a] for a in actions).count("ab")
    return total


def train(ward, name: str, seed: int, steps: int):
    policy, generator = start(ward, seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(policy.parameters(), lr=3.0)
    for _ in range(steps):
        ward[name](policy, optimizer, generator)
    return policy


def descent(ward, name: str, policy) -> torch.Tensor:
    """The listing's step [D], summed over 10 batches: learning rate 1, from the same place each time."""
    total = torch.zeros_like(policy.logits_table)
    for seed in range(10):
        moved = copy.deepcopy(policy)
        ward[name](moved, torch.optim.SGD(moved.parameters(), lr=1.0), torch.Generator().manual_seed(seed))
        total += moved.logits_table.detach() - policy.logits_table.detach()
    return total.flatten()


def uphill(ward, policy) -> torch.Tensor:
    return torch.autograd.grad(ward["mdp"].expected_return(policy), policy.logits_table)[0].flatten()


def greedy_text(policy) -> str:
    text, state = "", 0
    while len(text) < 4 and not text.endswith("."):
        action = int(policy.logits_table[state].argmax())
        text, state = text + "ab."[action], 3 * state + action + 1
    return text


def test_the_six_listings_stand_on_the_page_each_with_its_repair(ward):
    listings = {name for name, x in ward.items() if getattr(x, "__code__", None) and "optimizer" in _arguments(x)}
    assert listings - {"take_step"} == {*PATIENTS, *(f"{name}_repaired" for name in PATIENTS)}


def _arguments(function) -> tuple:
    return function.__code__.co_varnames[: function.__code__.co_argcount]


def test_the_exact_value_that_the_page_plots(ward):
    for seed in SEEDS:
        policy = start(ward, seed)
        assert ward["mdp"].expected_return(policy).item() == pytest.approx(value(ward, policy), abs=1e-12)
        assert 0 < value(ward, policy) < 0.6  # a start from which there is much to learn


@pytest.mark.parametrize("name", NO_GRADIENT)
def test_no_gradient_reaches_the_model(ward, name):
    for seed in SEEDS:
        policy = train(ward, name, seed, steps=5)
        assert all(p.grad is None for p in policy.parameters())
        assert value(ward, policy) == value(ward, start(ward, seed))


def test_the_argmax_never_leaves_its_first_text(ward):
    """From twelve starts: all that it can reach is the pay of its first text, and a little from what is not pushed."""
    outcomes = set()
    for seed in range(20, 32):
        before, after = start(ward, seed), train(ward, "argmax_as_action", seed, steps=30)
        text = greedy_text(before)
        assert greedy_text(after) == text
        if not (pay := text.count("ab")):
            assert torch.equal(after.logits_table, before.logits_table)
        else:
            assert abs(value(ward, after) - pay) < 0.15
        outcomes.add(pay)
    assert {0, 1} <= outcomes  # some learn nothing, some stop at what they have


def test_argmax_follows_something_even_when_everything_earns_the_same(ward, monkeypatch):
    """A constant pay has no uphill; the repaired listing stays on average, the argmax moves."""
    monkeypatch.setattr(ward["mdp"], "pay", lambda actions, mask: mask * (torch.arange(4) == 0))  # 1, at once
    names = "argmax_as_action", "argmax_as_action_repaired"
    patient, repaired = (descent(ward, name, start(ward, 20)) for name in names)
    assert patient.norm() > 5 * repaired.norm()


def test_cross_entropy_as_reward_unlearns_the_target(ward):
    target = torch.tensor([[0, 1, 0, 1]])
    for seed in SEEDS:
        before, after = start(ward, seed), train(ward, "cross_entropy_as_reward", seed, steps=60)
        towards = torch.autograd.grad(before.evaluate(target[:, :0], target)[0].sum(), before.logits_table)[0]
        step = descent(ward, "cross_entropy_as_reward", before)
        assert cosine_similarity(step, towards.flatten(), 0) == pytest.approx(-1)
        assert cosine_similarity(step, uphill(ward, before), 0) < 0
        chances = [p.evaluate(target[:, :0], target)[0].sum().exp().item() for p in (before, after)]
        assert chances[1] < 1e-4 < chances[0] and value(ward, after) < 0.5


def test_whole_vocabulary_makes_the_policy_uniform(ward):
    J_uniform = 19 / 81
    assert value(ward, ward["envs"].TabularPolicy(3, 4)) == pytest.approx(J_uniform)
    for seed in SEEDS:
        before, after = start(ward, seed), train(ward, "whole_vocabulary", seed, steps=60)
        assert value(ward, after) == pytest.approx(J_uniform, abs=0.05)
        spread = [p.logits_table[0].softmax(0).std().item() for p in (before, after)]
        assert spread[1] < 0.01 < spread[0]


@pytest.mark.parametrize("name", FROM_SAMPLES)
def test_repaired_listings_step_uphill(ward, name):
    for seed in list(SEEDS)[:2]:
        policy = start(ward, seed)
        assert cosine_similarity(descent(ward, f"{name}_repaired", policy), uphill(ward, policy), 0) > 0.9


def test_repaired_cross_entropy_is_maximum_likelihood(ward):
    policy, target = start(ward, 20), torch.tensor([[0, 1, 0, 1]])
    towards = torch.autograd.grad(policy.evaluate(target[:, :0], target)[0].sum(), policy.logits_table)[0].flatten()
    assert cosine_similarity(descent(ward, "cross_entropy_as_reward_repaired", policy), towards, 0) == pytest.approx(1)


@pytest.mark.parametrize("name", PATIENTS)
def test_repaired_listings_learn(ward, name):
    for seed in SEEDS:
        assert value(ward, train(ward, f"{name}_repaired", seed, steps=60)) > 1.8
