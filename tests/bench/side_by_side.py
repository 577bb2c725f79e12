"""`make bench`: one PPO iteration of ours, of TRL 1.12's PPOTrainer and of a bare loop, in turn on one machine.

Writes notebooks/14_side_by_side.csv. The bare loop is the least that a plain program does: sampling with a cache,
one forward pass of the reference, and epochs x minibatches forward-backward passes on padded rows; no reward, no
advantages, no optimizer. The floor is less than any program can do: the matrix products of the update alone.
Smaller things follow: sampling against `generate`, GAE and CartPole against Stable-Baselines3, peak memory, and how the
time grows with batch, length and vocabulary.
"""

import argparse
import copy
import multiprocessing
import re
import statistics
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import cartpole
import numpy as np
import torch
import torch.nn.functional as F
import trl_ppo
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.buffers import RolloutBuffer
from study import write
from transformers import AutoModelForCausalLM, GPT2Config

from rlcourse.data import load_prompts
from rlcourse.gpt2 import GPT2Policy, response_texts, sample_responses
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.returns import gae, kl_shaped_rewards
from rlcourse.rewards import sentiment_reward

CFG = PPOConfig(epochs=4, minibatches=4)
PROMPT = 4  # tokens of each prompt, so that TRL has nothing to pad


@dataclass(frozen=True)
class Case:
    """A model's shape and what it is asked for. trained: the bundled weights, whose texts end early."""

    name: str
    batch: int = 64
    new_tokens: int = 24
    trained: bool = False
    width: int = 192
    layers: int = 4
    heads: int = 4
    vocab: int = 4096


BUNDLED = Case("bundled shape, full length")
EARLY = Case("bundled model, texts that end early", new_tokens=64, trained=True)
GPT2 = Case("GPT-2 124M shape, full length", batch=16, width=768, layers=12, heads=12, vocab=50_257)
GROWTH = (
    [replace(BUNDLED, name="batch", batch=b) for b in (16, 32, 64, 128)]
    + [replace(BUNDLED, name="length", new_tokens=t) for t in (12, 24, 48, 96)]
    + [replace(BUNDLED, name="vocabulary", vocab=v) for v in (4096, 16_384, 50_257)]
)


def make_policy(case: Case) -> GPT2Policy:
    """The bundled model, or random weights of the case's shape, under which EOS hardly ever comes."""
    torch.manual_seed(0)
    bundled = GPT2Policy.from_pretrained("tiny", device="cpu")
    if case.trained:
        return bundled
    config = GPT2Config(
        vocab_size=case.vocab, n_embd=case.width, n_layer=case.layers, n_head=case.heads, n_positions=128,
        bos_token_id=0, eos_token_id=0, activation_function="gelu_new" if case.layers == 12 else "gelu_pytorch_tanh",
    )  # fmt: skip
    return GPT2Policy(AutoModelForCausalLM.from_config(config), bundled.tokenizer)


def make_prompts(policy: GPT2Policy, batch: int) -> list[str]:
    chosen = [p for p in load_prompts("train") if len(policy.tokenizer(p)["input_ids"]) == PROMPT]
    return (chosen * (1 + batch // len(chosen)))[:batch]


def ours(case: Case):
    """-> functions: one iteration, its sampling, its update. The learning rate is 0, so that each is like the next."""
    policy, reward = make_policy(case), sentiment_reward()
    ref_policy, prompts = policy.frozen_copy(), make_prompts(policy, case.batch)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0, fused=True)

    def sample():
        return sample_responses(policy, prompts, case.new_tokens)

    def prepare():
        rollout = sample()
        with torch.no_grad():
            ref_logprobs, _ = ref_policy.evaluate(rollout.inputs, rollout.actions)
        scores = reward(prompts, response_texts(policy, rollout))
        rewards = kl_shaped_rewards(scores, rollout.old_logprobs, ref_logprobs, rollout.mask, 0.05)
        return rollout, *gae(rewards, rollout.values, rollout.mask, 1.0, 1.0)

    ready = prepare()
    return (
        lambda: ppo_update(policy, optimizer, *prepare(), CFG),
        sample,
        lambda: ppo_update(policy, optimizer, *ready, CFG),
    )


def bare(case: Case):
    policy = make_policy(case)
    lm, ref = policy.lm, copy.deepcopy(policy.lm)
    ids = policy.encode(make_prompts(policy, case.batch)).ids

    @torch.no_grad()
    def sample():
        cache, new, columns = None, ids, [ids]
        for _ in range(case.new_tokens):
            output = lm(new, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, new = output.past_key_values, torch.multinomial(output.logits[:, -1].softmax(-1), 1)
            columns.append(new)
        return torch.cat(columns, dim=1)

    def forward(model, rows):
        return model(rows[:, :-1], logits_to_keep=case.new_tokens, use_cache=False).logits

    def iteration():
        texts = sample()
        with torch.no_grad():
            forward(ref, texts)
        for rows in texts.tensor_split(CFG.minibatches) * CFG.epochs:
            lm.zero_grad()
            F.cross_entropy(forward(lm, rows).flatten(0, 1), rows[:, PROMPT:].flatten()).backward()

    return iteration


def floor(case: Case):
    """The matrix products of the update, forward and twice backward: dense layers, attention, vocabulary."""
    b, D, heads, T = case.batch // CFG.minibatches, case.width, case.heads, case.new_tokens
    L = PROMPT + T - 1
    layers = [(b * L, D, 3 * D), (b * L, D, D), (b * L, D, 4 * D), (b * L, 4 * D, D)] * case.layers
    layers.append((b * T, D, case.vocab))
    products = [(torch.randn(n, i), torch.randn(i, o), torch.randn(n, o)) for n, i, o in layers]
    q, a = torch.randn(b, heads, L, D // heads), torch.randn(b, heads, L, L)

    def update():
        for _ in range(CFG.epochs * CFG.minibatches):
            for x, w, of_y in products:
                x @ w, of_y @ w.T, x.T @ of_y
            for _ in range(3 * case.layers):
                q @ q.mT, a @ q

    return update


def trl(case: Case):
    policy = make_policy(case)
    trainer, clock = trl_ppo.trainer(
        policy, make_prompts(policy, case.batch), sentiment_reward(), iterations=1, batch=case.batch,
        new_tokens=case.new_tokens, epochs=CFG.epochs, minibatches=CFG.minibatches, learning_rate=0.0, kl_coef=0.05,
        stop=case.trained, seed=0,
    )  # fmt: skip

    def iteration():
        trainer.train()
        return clock.seconds[-1]  # without what happens before and after the iteration

    return iteration


def generate(case: Case):
    policy = make_policy(case)
    inputs = policy.encode(make_prompts(policy, case.batch))
    end = {} if case.trained else dict(min_new_tokens=case.new_tokens)

    @torch.no_grad()
    def run():
        policy.lm.generate(
            inputs.ids, attention_mask=inputs.mask, do_sample=True, top_k=0, max_new_tokens=case.new_tokens,
            pad_token_id=0, **end,
        )  # fmt: skip

    return run


def in_turn(jobs: dict, repeat: int) -> dict[str, list[float]]:
    """Seconds of each job, one after the other in every round, so that a slow moment hits all. The first is a warm-up.

    A job that returns a number has taken its own time.
    """
    seconds = {name: [] for name in jobs}
    for round_ in range(repeat + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            found = job()
            passed = time.perf_counter() - start
            if round_:
                seconds[name].append(found if isinstance(found, float) else passed)
    return seconds


def rows_of(measure: str, case: str, seconds: dict[str, list[float]], size: int = 0, unit: str = "s") -> list[dict]:
    found = [
        dict(measure=measure, case=case, size=size, who=who, unit=unit, median=statistics.median(x), least=min(x),
             most=max(x), rounds=len(x))
        for who, x in seconds.items()
    ]  # fmt: skip
    for row in found:
        print("  {measure:10} {case:36} {size:6} {who:10} {median:10.4g} {unit}".format(**row), flush=True)
    return found


def iterations(case: Case, repeat: int) -> list[dict]:
    iteration, sample, update = ours(case)
    jobs = dict(ours=iteration, TRL=trl(case), bare=bare(case), sample=sample, generate=generate(case), update=update)
    if not case.trained:
        jobs["floor"] = floor(case)
    seconds = in_turn(jobs, repeat)
    parts = ("sample", "generate", "update", "floor")
    rows = rows_of("iteration", case.name, {k: v for k, v in seconds.items() if k not in parts}, case.batch)
    return rows + rows_of("part", case.name, {k: v for k, v in seconds.items() if k in parts}, case.batch)


def growth(case: Case, repeat: int) -> list[dict]:
    size = dict(batch=case.batch, length=case.new_tokens, vocabulary=case.vocab)[case.name]
    return rows_of("growth", case.name, in_turn(dict(ours=ours(case)[0], TRL=trl(case), bare=bare(case)), repeat), size)


def _peak(who: str, case: Case, queue) -> None:
    job = dict(ours=lambda c: ours(c)[0], TRL=trl, bare=bare)[who](case)
    job()
    status = Path("/proc/self/status").read_text()  # getrusage would remember what this process was forked from
    queue.put(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024)


def peak_memory(case: Case) -> list[dict]:
    """Peak resident memory of a fresh process that makes one iteration, everything it has imported included."""
    context, found = multiprocessing.get_context("spawn"), {}
    for who in ("ours", "TRL", "bare"):
        queue = context.Queue()
        process = context.Process(target=_peak, args=(who, case, queue))
        process.start()
        found[who] = [queue.get()]
        process.join()
    return rows_of("memory", case.name, found, case.batch, "MB")


def gae_loop(rewards, values, gamma, lam):
    """As most programs have it: from the last column to the first."""
    advantages, carried, following = torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(rewards.shape[1])):
        carried = rewards[:, t] + gamma * following - values[:, t] + gamma * lam * carried
        advantages[:, t], following = carried, values[:, t]
    return advantages, advantages + values


def gaes(B: int, T: int, repeat: int) -> list[dict]:
    rewards, values, mask = torch.randn(B, T), torch.randn(B, T), torch.ones(B, T)
    buffer = RolloutBuffer(T, Box(-1, 1, (1,)), Discrete(2), "cpu", 0.95, 0.99, n_envs=B)
    buffer.rewards[:], buffer.values[:] = rewards.T.numpy(), values.T.numpy()
    last, dones = torch.zeros(B), np.zeros(B)
    jobs = {
        "ours": lambda: gae(rewards, values, mask, 0.99, 0.95),
        "loop": lambda: gae_loop(rewards, values, 0.99, 0.95),
        "SB3": lambda: buffer.compute_returns_and_advantage(last, dones),
    }
    return rows_of("GAE", f"{B} x {T}", {k: [1000 * s for s in v] for k, v in in_turn(jobs, 10 * repeat).items()},
                   B * T, "ms")  # fmt: skip


def cartpoles(repeat: int, steps: int = 10_240) -> list[dict]:
    cartpole.SETTINGS["total_steps"] = steps
    jobs = dict(ours=lambda: cartpole.train_ours(0), SB3=lambda: cartpole.train_sb3(0))
    torch.set_num_threads(1)  # its networks are tiny: a second thread slows both down
    rates = {k: [steps / s for s in v] for k, v in in_turn(jobs, repeat).items()}
    torch.set_num_threads(2)
    return rows_of("CartPole", "one thread", rates, steps, "steps/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--repeat", type=int, default=7, help="timed rounds of the bundled shape (a third for the larger ones)"
    )
    args = parser.parse_args()
    torch.set_num_threads(2)
    few = max(1, args.repeat // 3)
    studies = [
        *(partial(iterations, case, args.repeat) for case in (BUNDLED, EARLY)), partial(iterations, GPT2, few),
        *(partial(peak_memory, case) for case in (BUNDLED, EARLY, GPT2)),
        partial(gaes, 64, 24, args.repeat), partial(gaes, 8, 2048, args.repeat), partial(cartpoles, few),
        *(partial(growth, case, few) for case in GROWTH),
    ]  # fmt: skip
    settings, rows = f"{CFG}, prompt {PROMPT} tokens, {args.repeat} rounds; {BUNDLED}; {EARLY}; {GPT2}", []
    for study in studies:
        rows += study()
        write("14_side_by_side", rows, __file__, settings, ("transformers", "trl", "stable-baselines3"))


if __name__ == "__main__":
    main()
