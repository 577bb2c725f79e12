"""A museum of broken PPO runs: one healthy recipe, and for each exhibit exactly one part of it replaced."""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rlcourse.data import load_prompts
from rlcourse.diagnostics import measure
from rlcourse.gpt2 import GPT2Policy, response_texts, sample_responses
from rlcourse.masking import masked_mean
from rlcourse.plotting import progress
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.returns import gae, kl_shaped_rewards
from rlcourse.rewards import sentiment_reward
from rlcourse.rollout import Rollout


@dataclass(frozen=True)
class Recipe:
    """The parts of a PPO run that an exhibit may replace; as they stand, they are those of notebook 07."""

    prepare: Callable = lambda policy, ref_policy: (policy, ref_policy)
    sample: Callable = sample_responses
    shape: Callable = kl_shaped_rewards
    update: Callable = ppo_update
    cfg: PPOConfig = field(default_factory=PPOConfig)
    lr: float = 2e-4
    value_lr: float = 1e-3
    kl_coef: float = 0.045
    score_scale: float = 1.0


def train(recipe: Recipe, seed: int, steps: int = 30, batch: int = 64, new_tokens: int = 24, device="cpu"):
    """Run a recipe on the bundled GPT-2; -> (policy, history with `diagnostics.measure`, the last batch's lines)."""
    torch.manual_seed(seed)
    generator, chooser = torch.Generator(device).manual_seed(seed), random.Random(seed)
    policy, reward, prompts = GPT2Policy.from_pretrained("tiny", device), sentiment_reward(), load_prompts("train")
    policy, ref_policy = recipe.prepare(policy, policy.frozen_copy())
    head = dict(params=policy.value_head.parameters(), lr=recipe.value_lr)
    optimizer = torch.optim.AdamW([dict(params=policy.lm.parameters(), lr=recipe.lr), head], fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps)
    history, lines = [], []
    for _ in progress(range(steps)):
        asked = chooser.choices(prompts, k=batch)
        rollout = recipe.sample(policy, asked, new_tokens, generator=generator)
        ref_logprobs, _ = ref_policy.evaluate(rollout.inputs, rollout.actions)
        texts = response_texts(policy, rollout)
        scores = recipe.score_scale * reward(asked, texts)
        rewards = recipe.shape(scores, rollout.old_logprobs, ref_logprobs, rollout.mask, recipe.kl_coef)
        advantages, returns = gae(rewards, rollout.values, rollout.mask, gamma=1.0, lam=1.0)
        measured = measure(policy, rollout, ref_policy, scores, rewards, returns)
        stats = recipe.update(policy, optimizer, rollout, advantages, returns, recipe.cfg)
        schedule.step()
        kl = ((rollout.old_logprobs - ref_logprobs) * rollout.mask).sum(1).mean().item()
        history.append(stats | measured | dict(score=scores.mean().item(), kl=kl))
        lines = [prompt + text for prompt, text in zip(asked, texts)]
        if not all(p.isfinite().all() for p in policy.parameters()):
            break  # nothing can be sampled from it
    return policy, history, lines


# -- the exhibits: what each replaces ------------------------------------------------------------------------------


def dropout_on(policy, ref_policy):
    """Puts the language model into training mode, as every training loop does by habit."""
    policy.lm.train()
    return policy, ref_policy


def ref_is_policy(policy, ref_policy):
    """Keeps a second name for the policy instead of a frozen copy."""
    return policy, policy


def reads_ahead(policy, ref_policy):
    """Scores each token with the logits one position later, which have read it; alike in policy and reference."""
    for model in (policy, ref_policy):
        model._forward = _one_late.__get__(model)
    return policy, ref_policy


def _one_late(self, inputs, actions):
    appended = torch.cat([actions, actions[:, -1:]], dim=1)
    logits, values = GPT2Policy._forward(self, inputs, appended)
    return logits[:, 1:], values[:, :-1]


def scored_again(policy, prompts, max_new_tokens, generator=None) -> Rollout:
    """Samples soundly, but records what `policy.evaluate` says."""
    return _recorded(policy, sample_responses(policy, prompts, max_new_tokens, generator=generator))


def top_k(policy, prompts, max_new_tokens, generator=None, k: int = 20) -> Rollout:
    """Draws from the k likeliest tokens and scores with the full softmax."""
    cut = copy.copy(policy)
    cut._run = lambda **kwargs: _keep(policy._run(**kwargs), k)
    return _recorded(policy, sample_responses(cut, prompts, max_new_tokens, generator=generator))


def _keep(output, k: int):
    lowest = output.logits.topk(k).values[..., -1:]
    output.logits = output.logits.masked_fill(output.logits < lowest, -torch.inf)
    return output


def cold_sampling(policy, prompts, max_new_tokens, generator=None) -> Rollout:
    """Samples at temperature 0.7 and forgets to say so."""
    rollout = sample_responses(policy, prompts, max_new_tokens, temperature=0.7, generator=generator)
    return replace(rollout, inputs=policy.encode(prompts))


def padding_counted(policy, prompts, max_new_tokens, generator=None) -> Rollout:
    """Counts the padding behind the end as if the policy had chosen it."""
    rollout = sample_responses(policy, prompts, max_new_tokens, generator=generator)
    return _recorded(policy, replace(rollout, mask=torch.ones_like(rollout.mask)))


def eos_masked(policy, prompts, max_new_tokens, generator=None) -> Rollout:
    """Takes every EOS for padding, the one that ends the response too; a response of nothing but EOS keeps it."""
    rollout = sample_responses(policy, prompts, max_new_tokens, generator=generator)
    mask = rollout.mask * (rollout.actions != policy.tokenizer.eos_token_id)
    mask[:, 0] = 1
    return replace(rollout, mask=mask, old_logprobs=rollout.old_logprobs * mask, values=rollout.values * mask)


def _recorded(policy, rollout: Rollout) -> Rollout:
    with torch.no_grad():
        logprobs, values = policy.evaluate(rollout.inputs, rollout.actions)
    return replace(rollout, old_logprobs=logprobs * rollout.mask, values=values * rollout.mask)


def kl_paid(scores, logprobs, ref_logprobs, mask, kl_coef) -> Tensor:
    """Flips the sign of the KL term."""
    return kl_shaped_rewards(scores, logprobs, ref_logprobs, mask, -kl_coef)


def score_on_first(scores, logprobs, ref_logprobs, mask, kl_coef) -> Tensor:
    """Pays the score at the first action instead of the last."""
    first = torch.zeros_like(mask)
    first[:, 0] = mask[:, 0]
    return kl_shaped_rewards(scores[:, None] * first, logprobs, ref_logprobs, mask, kl_coef)


def score_on_last_column(scores, logprobs, ref_logprobs, mask, kl_coef) -> Tensor:
    """Pays the score in the last column, where shorter responses have padding."""
    last = torch.zeros_like(mask)
    last[:, -1] = 1
    return kl_shaped_rewards(scores[:, None] * last, logprobs, ref_logprobs, mask, kl_coef)


def baseline_with_gradient(policy, optimizer, rollout, advantages, returns, cfg) -> dict[str, float]:
    """Subtracts values that still carry their gradient: the numbers are the same, the policy loss trains the critic."""
    seen = {}

    class Watched:
        parameters = policy.parameters

        def evaluate(self, *args, **kwargs):
            found = policy.evaluate(*args, **kwargs)
            seen["values"] = found[1]
            return found

    def loss(logprobs, old_logprobs, advantages, mask, clip_eps):
        carried = seen["values"].detach() - seen["values"]  # 0, but its gradient is not
        ratio = ((logprobs - old_logprobs) * mask).exp()
        clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps)
        gain = torch.minimum(ratio * (advantages + carried), clipped * (advantages + carried))
        return -masked_mean(gain, mask)

    return ppo_update(Watched(), optimizer, rollout, advantages, returns, cfg, loss)


HEALTHY = Recipe()
EXHIBITS = {
    "dropout on": replace(HEALTHY, prepare=dropout_on),
    "top-k sampling": replace(HEALTHY, sample=top_k),
    "temperature mismatch": replace(HEALTHY, sample=cold_sampling),
    "log-probabilities shifted": replace(HEALTHY, prepare=reads_ahead, sample=scored_again),
    "padding counted": replace(HEALTHY, sample=padding_counted),
    "EOS masked": replace(HEALTHY, sample=eos_masked),
    "reference follows the policy": replace(HEALTHY, prepare=ref_is_policy),
    "KL sign flipped": replace(HEALTHY, shape=kl_paid),
    "baseline carries gradient": replace(HEALTHY, update=baseline_with_gradient),
    "score on the first token": replace(HEALTHY, shape=score_on_first),
    "score on the padding": replace(HEALTHY, shape=score_on_last_column),
    "learning rate x 100": replace(HEALTHY, lr=100 * HEALTHY.lr),
    "value head dominates": replace(HEALTHY, cfg=replace(HEALTHY.cfg, vf_coef=500.0)),
    "reward x 100": replace(HEALTHY, score_scale=100.0),
}
DIAGNOSES = {  # what `diagnostics.diagnose` calls each of them
    "dropout on": "dropout is on",
    "top-k sampling": "sampling is cut off",
    "temperature mismatch": "temperature differs",
    "log-probabilities shifted": "log-probabilities are shifted",
    "padding counted": "padding is counted",
    "EOS masked": "EOS is masked",
    "reference follows the policy": "the reference moves along",
    "KL sign flipped": "KL is paid for",
    "baseline carries gradient": "values pulled away from returns",
    "score on the first token": "the score is on the wrong token",
    "score on the padding": "the score is on the wrong token",
    "learning rate x 100": "steps too large",
    "value head dominates": "one loss dominates",
    "reward x 100": "reward scale",
}
