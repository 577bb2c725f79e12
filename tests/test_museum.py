"""`rlcourse.museum`: each exhibit is the healthy recipe but for one part, and the doctor knows it from its symptoms."""

import copy
import random
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from rlcourse import data, diagnostics, museum
from rlcourse.gpt2 import GPT2Policy, response_texts, sample_responses
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.returns import gae, kl_shaped_rewards
from rlcourse.rewards import sentiment_reward

STUDY = Path(__file__).parents[1] / "notebooks" / "13_history.csv"
AT_ONCE = [name for name in museum.EXHIBITS if name not in ("baseline carries gradient", "value head dominates")]


@pytest.fixture(scope="module")
def runs() -> dict[tuple[str, int], list[dict]]:
    found = defaultdict(list)
    for row in data.load_study(STUDY)[1]:
        found[row.pop("exhibit"), int(row.pop("seed"))].append(row)
    return found


# -- the study that notebook 13 replays ----------------------------------------------------------------------------


def test_the_study_holds_ten_healthy_runs_and_three_of_each_exhibit(runs):
    expected = {("healthy", seed) for seed in range(10)}
    expected |= {(name, seed) for name in museum.EXHIBITS for seed in range(3)}
    assert set(runs) == expected and len(museum.EXHIBITS) >= 12
    assert all(len(history) == 30 for (name, _), history in runs.items() if name == "healthy")


def test_no_false_alarm_in_ten_healthy_runs(runs):
    for seed in range(10):
        assert diagnostics.diagnose(runs["healthy", seed]) == []


@pytest.mark.parametrize("name", museum.EXHIBITS)
def test_a_fault_is_named_in_the_first_two_guesses(runs, name):
    for seed in range(3):
        guesses = [finding.name for finding in diagnostics.diagnose(runs[name, seed])[:2]]
        assert museum.DIAGNOSES[name] in guesses, f"seed {seed}: {guesses}"


# -- recipes -------------------------------------------------------------------------------------------------------


def different(recipe) -> list[str]:
    return [f.name for f in fields(museum.Recipe) if getattr(recipe, f.name) is not getattr(museum.HEALTHY, f.name)]


def test_each_exhibit_replaces_one_part():
    assert set(museum.DIAGNOSES) == set(museum.EXHIBITS)
    for name, recipe in museum.EXHIBITS.items():
        parts = different(recipe)
        assert len(parts) == 1 or name == "log-probabilities shifted", f"{name}: {parts}"


def test_the_healthy_recipe_is_the_loop_of_notebook_07():
    """The loop again, written out, for two iterations."""
    _, history, lines = museum.train(museum.HEALTHY, seed=4, steps=2, batch=8)
    torch.manual_seed(4)

    generator, chooser = torch.Generator().manual_seed(4), random.Random(4)
    policy, prompts = GPT2Policy.from_pretrained("tiny", device="cpu"), data.load_prompts("train")
    ref_policy = policy.frozen_copy()
    head = dict(params=policy.value_head.parameters(), lr=1e-3)
    optimizer = torch.optim.AdamW([dict(params=policy.lm.parameters(), lr=2e-4), head], fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=2)
    for step in range(2):
        asked = chooser.choices(prompts, k=8)
        rollout = sample_responses(policy, asked, 24, generator=generator)
        ref_logprobs, _ = ref_policy.evaluate(rollout.inputs, rollout.actions)
        texts = response_texts(policy, rollout)
        scores = sentiment_reward()(asked, texts)
        rewards = kl_shaped_rewards(scores, rollout.old_logprobs, ref_logprobs, rollout.mask, 0.045)
        advantages, returns = gae(rewards, rollout.values, rollout.mask, 1.0, 1.0)
        stats = ppo_update(policy, optimizer, rollout, advantages, returns, PPOConfig())
        schedule.step()
        assert history[step]["score"] == pytest.approx(scores.mean().item(), abs=1e-5)
        assert history[step]["policy_loss"] == pytest.approx(stats["policy_loss"], abs=1e-4)
    assert lines == [p + t for p, t in zip(asked, texts)]


@pytest.mark.parametrize("name", AT_ONCE)
@pytest.mark.slow
def test_a_short_fresh_run_shows_the_fault(name):
    """Four iterations with another seed, in small batches: the doctor's first two guesses name it already."""
    _, history, _ = museum.train(museum.EXHIBITS[name], seed=11, steps=4, batch=16)
    assert museum.DIAGNOSES[name] in [finding.name for finding in diagnostics.diagnose(history)[:2]]


def test_a_short_healthy_run_raises_no_alarm():
    _, history, _ = museum.train(museum.HEALTHY, seed=11, steps=4, batch=16)
    assert diagnostics.diagnose(history) == []


def test_the_baseline_with_gradient_changes_no_number_but_the_critic():
    """One minibatch, no step: the policy loss is the healthy one, the value head's gradient is not."""
    policy = GPT2Policy.from_pretrained("tiny", device="cpu")
    rollout = sample_responses(policy, data.load_prompts("train")[:8], 8, generator=torch.Generator().manual_seed(0))
    advantages = torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(1)) * rollout.mask
    found = {}
    for name, update in (("healthy", ppo_update), ("exhibit", museum.baseline_with_gradient)):
        trained, cfg = copy.deepcopy(policy), PPOConfig(epochs=1, minibatches=1, vf_coef=1e-9, max_grad_norm=1e9)
        stats = update(trained, torch.optim.SGD(trained.parameters(), 0.0), rollout, advantages, 0 * advantages, cfg)
        found[name] = stats["policy_loss"], trained.value_head.bias.grad.item()
    assert found["healthy"][0] == pytest.approx(found["exhibit"][0], abs=1e-6)
    assert abs(found["healthy"][1]) < 1e-6 and found["exhibit"][1] == pytest.approx(1.0, abs=1e-4)  # equation (5): rho
