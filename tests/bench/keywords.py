"""The study behind notebook 02: `python tests/bench/keywords.py` writes notebooks/02_keywords.csv.

Twenty seeds each of the notebook's own loop, an RNN that is paid for keywords, with three lists of keywords. Every
fourth iteration is kept: the mean score of the texts just sampled, and the commonest of them.
"""

import collections

import torch
from study import write

from rlcourse.plotting import progress
from rlcourse.reinforce import reinforce_update
from rlcourse.rewards import keyword_reward
from rlcourse.rnn import RNNPolicy
from rlcourse.rollout import sample_tokens

CHARACTERS = "深度学习 act."
SETTINGS = dict(characters=CHARACTERS, length=8, hidden_size=32, batch=64, lr=1e-2, iterations=100)
KEYWORDS = {"word": ["cat"], "idiom": ["深度学习"], "parts too": ["深度", "学习", "深度学习"]}
SEEDS, EVERY = 20, 4


def train(seed: int, keywords: list[str]) -> list[dict]:
    """One run: one dict per kept iteration."""
    torch.manual_seed(seed)
    s, reward, generator = SETTINGS, keyword_reward(keywords), torch.Generator().manual_seed(seed)
    policy = RNNPolicy(len(CHARACTERS), s["hidden_size"])
    optimizer = torch.optim.Adam(policy.parameters(), lr=s["lr"])
    prompts, history = torch.zeros(s["batch"], 0, dtype=torch.long), []
    for step in range(s["iterations"]):
        rollout = sample_tokens(policy, prompts, s["length"], CHARACTERS.index("."), generator)
        lengths = rollout.mask.sum(1).long().tolist()
        texts = ["".join(CHARACTERS[i] for i in row[:n]) for row, n in zip(rollout.actions.tolist(), lengths)]
        scores = reward([""] * s["batch"], texts)
        reinforce_update(policy, optimizer, rollout, scores[:, None] * rollout.mask)
        if step % EVERY == EVERY - 1:
            text = collections.Counter(texts).most_common(1)[0][0].rstrip(".")
            history.append(dict(iteration=step + 1, score=scores.mean().item(), text=text))
    return history


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for variant, keywords in KEYWORDS.items():
        for seed in progress(range(SEEDS), desc=variant):
            rows += [dict(variant=variant, seed=seed) | row for row in train(seed, keywords)]
    write("02_keywords", rows, __file__, f"{SETTINGS}, keywords {KEYWORDS}")


if __name__ == "__main__":
    main()
