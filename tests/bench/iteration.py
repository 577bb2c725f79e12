"""`make bench`: what one PPO iteration costs against its own parts, and where its time goes.

The parts are the least that any implementation must do with the same model and shapes: one bare `generate`, one forward
pass of the reference, and epochs x minibatches forward-backward passes. The rest (scoring texts, advantages, losses,
statistics, optimizer) is overhead.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from rlcourse.data import load_prompts
from rlcourse.gpt2 import GPT2Policy, response_texts, sample_responses
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.returns import gae, kl_shaped_rewards
from rlcourse.rewards import sentiment_reward


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, or a Hugging Face id or folder")
    parser.add_argument("--batch", type=int, default=64, help="responses per iteration")
    parser.add_argument("--new-tokens", type=int, default=24, help="longest response")
    parser.add_argument("--repeat", type=int, default=10, help="timed repetitions; medians are printed")
    args = parser.parse_args()
    torch.manual_seed(0)
    policy, reward, cfg = GPT2Policy.from_pretrained(args.model), sentiment_reward(), PPOConfig()
    ref_policy, prompts, T = policy.frozen_copy(), load_prompts("train")[: args.batch], args.new_tokens
    optimizer = torch.optim.AdamW(
        policy.parameters(), lr=0.0, fused=True
    )  # the model stays as it is: every repetition is alike
    inputs = policy.encode(prompts)
    actions = sample_responses(policy, prompts, T).actions

    def sample():
        return sample_responses(policy, prompts, T)

    def iteration():
        rollout = sample()
        ref_logprobs, _ = ref_policy.evaluate(rollout.inputs, rollout.actions)
        scores = reward(prompts, response_texts(policy, rollout))
        rewards = kl_shaped_rewards(scores, rollout.old_logprobs, ref_logprobs, rollout.mask, 0.05)
        advantages, returns = gae(rewards, rollout.values, rollout.mask, 1.0, 1.0)
        ppo_update(policy, optimizer, rollout, advantages, returns, cfg)

    def bare_generate():
        policy.lm.generate(
            inputs.ids, attention_mask=inputs.mask, do_sample=True, top_k=0, min_new_tokens=T, max_new_tokens=T,
            pad_token_id=policy.tokenizer.eos_token_id,
        )  # fmt: skip

    ids = torch.cat([inputs.ids, actions[:, :-1]], dim=1)
    mask = torch.cat([inputs.mask, torch.ones_like(actions[:, :-1])], dim=1)

    def forward(lm, rows):
        return lm(ids[rows], attention_mask=mask[rows], logits_to_keep=actions.shape[1], use_cache=False).logits

    @torch.no_grad()
    def reference_forward():
        forward(ref_policy.lm, slice(None))

    def forward_backwards():
        for rows in torch.arange(args.batch).tensor_split(cfg.minibatches) * cfg.epochs:
            policy.zero_grad()
            F.cross_entropy(forward(policy.lm, rows).flatten(0, 1), actions[rows].flatten()).backward()

    jobs = [bare_generate, reference_forward, forward_backwards, sample, iteration]
    seconds = {job.__name__: [] for job in jobs}
    for repetition in range(args.repeat + 1):  # in turn, so that a slow moment hits all; the first is a warm-up
        for job in jobs:
            _wait()
            start = time.perf_counter()
            job()
            _wait()
            if repetition:
                seconds[job.__name__].append(time.perf_counter() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    parts = sum(medians[name] for name in ("bare_generate", "reference_forward", "forward_backwards"))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    print(f"{args.model}, {device}, torch {torch.__version__}, {args.batch} prompts, {T} new tokens")
    for name, median in medians.items():
        print(f"  {name:18} {1000 * median:8.0f} ms")
    print(
        f"  iteration / (generate + reference + forward-backwards) = {medians['iteration'] / parts:.2f}  (target 1.2)"
    )


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
