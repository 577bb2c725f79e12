"""Rewards: callables (prompts, responses) -> scores [B], one float per response, computed from text alone."""

import difflib
import math
import re
import unicodedata
from collections.abc import Callable

import torch
from torch import Tensor
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

Reward = Callable[[list[str], list[str]], Tensor]

# Scripts written without spaces (or, as Hangul, with endings attached): a word is not set off by its neighbours.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
# Vowel signs and other marks belong to the word they stand in, although \w does not hold them.
_MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
_LETTER = f"(?:[^\\W{_UNSPACED}]|[{_MARKS}])"
_WORD = re.compile(f"[{_UNSPACED}]|{_LETTER}(?:['’]?{_LETTER})*")


def keyword_reward(keywords: list[str]) -> Reward:
    """How often any of the keywords occurs in the response, in any script and upper or lower case.

    Where words are set off by spaces only whole words count ("art" is not in "start"); in Chinese, Japanese, Korean or
    Thai text a keyword counts wherever it stands.

    >>> keyword_reward(["深度学习", "art"])(["", ""], ["深度学习和art", "Start"])
    tensor([2., 0.])
    """
    if isinstance(keywords, str) or not keywords or not all(isinstance(k, str) and k.strip() for k in keywords):
        raise ValueError(f"keywords must be a list of non-empty strings, got {keywords!r}")
    patterns = [_keyword_pattern(_plain(keyword.strip())) for keyword in keywords]

    def score(prompts: list[str], responses: list[str]) -> Tensor:
        return torch.tensor([float(sum(len(p.findall(_plain(r))) for p in patterns)) for r in responses])

    return score


def target_text_reward(target: str) -> Reward:
    """Likeness of the response to `target`, 0 to 1: twice the matching characters over all (difflib's ratio)."""
    if not target:
        raise ValueError("target must not be empty")

    def score(prompts: list[str], responses: list[str]) -> Tensor:
        return torch.tensor([difflib.SequenceMatcher(None, target, r, autojunk=False).ratio() for r in responses])

    return score


def sentiment_reward() -> Reward:
    """How positive prompt and response together sound, -1 to 1: VADER's compound score (Hutto and Gilbert 2014).

    A lexicon of rated words and a few rules (negation, intensifiers, punctuation); it is easily gamed.
    """
    analyzer = SentimentIntensityAnalyzer()

    def score(prompts: list[str], responses: list[str]) -> Tensor:
        return torch.tensor(
            [analyzer.polarity_scores(p + r)["compound"] for p, r in zip(prompts, responses, strict=True)]
        )

    return score


def length_reward(words: int) -> Reward:
    """1 for a response of exactly `words` words, falling in a straight line to 0 at none and at twice as many.

    A word is a run of letters, or a single character in a script written without spaces.
    """
    if words < 1:
        raise ValueError(f"words must be at least 1, got {words}")

    def score(prompts: list[str], responses: list[str]) -> Tensor:
        return torch.tensor([max(0.0, 1 - abs(len(_words(r)) - words) / words) for r in responses])

    return score


def repetition_penalty(n: int = 2) -> Reward:
    """Minus the share of a response's word n-grams that occurred before in it: 0 for no repetition, towards -1."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")

    def one(response: str) -> float:
        words = _words(response)
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        return len(set(grams)) / len(grams) - 1 if grams else 0.0

    def score(prompts: list[str], responses: list[str]) -> Tensor:
        return torch.tensor([one(r) for r in responses])

    return score


def fluency_reward(lm) -> Reward:
    """Minus the bits per byte of the response, given its prompt, under a language model: closer to 0 is more fluent.

    lm: a policy with `encode`, `tokenizer` and `evaluate`, such as a frozen `GPT2Policy`. The end of the text is not
    counted, since a response may have been cut off; an empty response costs its EOS, as if in one byte.
    """

    @torch.no_grad()
    def score(prompts: list[str], responses: list[str]) -> Tensor:
        eos = lm.tokenizer.eos_token_id
        rows = [lm.tokenizer(r, add_special_tokens=False)["input_ids"] or [eos] for r in responses]
        width = max(map(len, rows))
        inputs = lm.encode(prompts)
        actions = torch.tensor([row + [eos] * (width - len(row)) for row in rows], device=inputs.ids.device)
        mask = torch.tensor([[1.0] * len(row) + [0.0] * (width - len(row)) for row in rows], device=inputs.ids.device)
        nats = (lm.evaluate(inputs, actions)[0] * mask).sum(1)  # [B], below 0
        return nats.cpu() / math.log(2) / torch.tensor([float(max(1, len(r.encode()))) for r in responses])

    return score


def combine(parts: dict[str, tuple[float, Reward]]) -> Reward:
    """Weighted sum of rewards, e.g. `combine({"mood": (1.0, sentiment_reward()), "length": (0.5, length_reward(12))})`.

    A part that returns the wrong number of scores, or one that is not finite, is named in a ValueError.
    """
    if not parts:
        raise ValueError("parts must name at least one reward")

    def score(prompts: list[str], responses: list[str]) -> Tensor:
        total = torch.zeros(len(responses))
        for name, (weight, reward) in parts.items():
            scores = torch.as_tensor(reward(prompts, responses), dtype=torch.float32).cpu()
            if scores.shape != total.shape:
                raise ValueError(f"reward {name!r} must return [{len(total)}] scores, got shape {tuple(scores.shape)}")
            if not scores.isfinite().all():
                row = int((~scores.isfinite()).nonzero()[0])
                raise ValueError(
                    f"reward {name!r} returned {scores[row].item()} for response {row}: {responses[row]!r}"
                )
            total += weight * scores
        return total

    return score


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _words(text: str) -> list[str]:
    return _WORD.findall(_plain(text))


def _keyword_pattern(keyword: str) -> re.Pattern:
    before = f"(?<!{_LETTER})" if re.match(_LETTER, keyword[0]) else ""
    after = f"(?!{_LETTER})" if re.match(_LETTER, keyword[-1]) else ""
    return re.compile(before + re.escape(keyword) + after)
