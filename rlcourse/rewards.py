"""Rewards: callables (prompts, responses) -> scores [B], one float per response, computed from text alone."""

import difflib
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from numbers import Real
from types import SimpleNamespace

import torch
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF
from torch import Tensor
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from rlcourse.words import (
    apart_pattern,
    core,
    fact_pattern,
    keyword_pattern,
    last_number,
    ngrams,
    plain,
    visible,
    words_of,
)

Reward = Callable[[list[str], list[str]], Tensor]
References = Mapping[str, str | list[str]]  # prompt -> what a good answer looks like, or several: any of them will do

# The whole lexicon of `politeness_reward`. 请 alone is no marker: 申请, to apply, holds it too.
POLITE = (
    "please, thank you, thanks, sorry, excuse me, pardon, kindly, welcome, would you, could you, may i, my pleasure, "
    "请问, 谢谢, 感谢, 您, 对不起, 抱歉, 不好意思, 劳驾, 不客气"
).split(", ")
RUDE = (
    "shut up, idiot, idiots, stupid, dumb, moron, fool, loser, nonsense, rubbish, get lost, go away, who cares, "
    "闭嘴, 滚开, 笨蛋, 白痴, 蠢货, 傻瓜, 废话, 胡说, 烦死"
).split(", ")


def keyword_reward(keywords: list[str]) -> Reward:
    """How often any of the keywords occurs in the response, in any script and upper or lower case.

    Where words are set off by spaces only whole words count ("art" is not in "start"); in Chinese, Japanese, Korean or
    Thai text a keyword counts wherever it stands.

    >>> keyword_reward(["深度学习", "art"])(["", ""], ["深度学习和art", "Start"])
    tensor([2., 0.])
    """
    if isinstance(keywords, str) or not keywords or not all(isinstance(k, str) and k.strip() for k in keywords):
        raise ValueError(f"keywords must be a list of non-empty strings, got {keywords!r}")
    patterns = [keyword_pattern(keyword) for keyword in keywords]

    def score(prompts: list[str], responses: list[str]) -> Tensor:
        return torch.tensor([float(sum(len(p.findall(plain(r))) for p in patterns)) for r in responses])

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
        return torch.tensor([max(0.0, 1 - abs(len(words_of(r)) - words) / words) for r in responses])

    return score


def repetition_penalty(n: int = 2) -> Reward:
    """Minus the share of a response's word n-grams that occurred before in it: 0 for no repetition, towards -1."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")

    def one(response: str) -> float:
        grams = ngrams(response, n)
        return len(set(grams)) / len(grams) - 1 if grams else 0.0

    def score(prompts: list[str], responses: list[str]) -> Tensor:
        return torch.tensor([one(r) for r in responses])

    return score


def fluency_reward(lm) -> Reward:
    """Minus the bits per byte of the response, given its prompt, under a language model: closer to 0 is more fluent.

    lm: a policy with `encode`, `encode_responses` and `evaluate`, such as a frozen `GPT2Policy`. The end of the text
    is not counted, since a response may have been cut off; an empty response costs its EOS, as if in one byte.
    """

    @torch.no_grad()
    def score(prompts: list[str], responses: list[str]) -> Tensor:
        actions, mask = lm.encode_responses(responses, end=False)  # [B, T], and EOS where nothing counts
        mask[:, 0] = 1  # the EOS of an empty response
        nats = (lm.evaluate(lm.encode(prompts), actions)[0] * mask).sum(1)  # [B], below 0
        return nats.cpu() / math.log(2) / torch.tensor([float(max(1, len(r.encode()))) for r in responses])

    return score


def rouge_l_reward(references: References) -> Reward:
    """ROUGE-L (Lin 2004), 0 to 1: F-measure of the longest common subsequence of words, by `rouge-score`.

    With L common words in the same order, gaps allowed: precision L / words of the response, recall L / words of the
    reference. The words are our own, since that package's tokenizer deletes all but a-z and 0-9. No word, no score.

    >>> rouge_l_reward({"Q": "the cat sat"})(["Q", "Q"], ["the big cat", "sat"])
    tensor([0.6667, 0.5000])
    """
    scorer = RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=words_of))

    def one(response: str, texts: list[str]) -> float:
        return scorer.score_multi(texts, response)["rougeL"].fmeasure

    return _against("references", references, one, lambda text: words_of(text) and text, "a word")


def bleu_reward(references: References, tokenize: str = "13a") -> Reward:
    """Sentence BLEU (Papineni et al. 2002), 0 to 1: `sacrebleu`'s with effective order and exponential smoothing.

    Precision of the response's word 1- to 4-grams times a penalty for being shorter than the reference. Several
    references are pooled, as BLEU has it: an n-gram may come from any of them, so that a blend of two can reach 1.
    Upper and lower case differ.
    tokenize: "13a", "intl", "zh", "none", or "char" for scripts without spaces.
    """
    offline = ("13a", "intl", "zh", "char", "none")  # sacrebleu's others want downloads
    if tokenize not in offline:
        raise ValueError(f"tokenize must be one of {', '.join(offline)}, got {tokenize!r}")
    metric = BLEU(tokenize=tokenize, effective_order=True)
    return _against("references", references, lambda r, texts: metric.sentence_score(r, texts).score / 100)


def chrf_reward(references: References) -> Reward:
    """chrF (Popović 2015), 0 to 1, by `sacrebleu`: F-measure of character 1- to 6-grams, recall counting double.

    White space is left out and upper and lower case differ. It needs no words, so it suits any script.
    """
    metric = CHRF()
    return _against("references", references, lambda r, texts: metric.sentence_score(r, texts).score / 100)


def exact_match_reward(references: References) -> Reward:
    """1 where the response is a reference, else 0.

    Case, full-width forms, the amount of white space and punctuation at either end do not matter.

    >>> exact_match_reward({"Q": ["Paris", "巴黎"]})(["Q"] * 3, [" paris.", "“巴黎”。", "in Paris"])
    tensor([1., 1., 0.])
    """
    return _against("references", references, lambda r, cores: core(r) in cores, core)


def token_f1_reward(references: References) -> Reward:
    """F1 of the words that response and reference share, 0 to 1, in any order (as SQuAD: Rajpurkar et al. 2016).

    A word counts as often as it stands in both; no word is left out, articles neither. The best reference counts.
    """

    def f1(words: Counter, reference: Counter) -> float:
        return 2 * (words & reference).total() / (words.total() + reference.total())

    def one(response: str, bags: list[Counter]) -> float:
        return max(f1(Counter(words_of(response)), bag) for bag in bags)

    return _against("references", references, one, lambda text: Counter(words_of(text)), "a word")


def number_match_reward(references: References) -> Reward:
    """1 where the last number of the response equals the last number of a reference, else 0, compared exactly.

    A number is written in the digits of any script, with a point before decimals and commas between thousands, or as
    a fraction of two whole numbers (1 3/4 is two): "1,234.50" equals "1234.5", "3/4" "0.75", "３" "3". A minus touches
    its number and no letter, digit, bracket or % before it: "-3" is minus three, "5-3" ends in 3. Other signs (%, €)
    and number words do not count, a zero denominator makes no number, and without a number the score is 0.
    """
    return _against("references", references, lambda r, numbers: last_number(r) in numbers, last_number, "a number")


def coverage_reward(facts: Mapping[str, list[str]]) -> Reward:
    """Share of the facts required by the prompt which occur in the response, 0 to 1; how often does not matter.

    Whole words as in `keyword_reward`, and whole numbers: the fact "12" is in none of "123", "12.5" and "1,312".
    """

    def one(response: str, patterns: list[re.Pattern]) -> float:
        text = plain(response)
        return sum(bool(p.search(text)) for p in patterns) / len(patterns)

    return _against("facts", facts, one, fact_pattern)


def politeness_reward() -> Reward:
    """How polite the response sounds, -1 to 1: (polite - rude) / (polite + rude), 0 where both are none.

    polite, rude: how many different entries of the short lists `POLITE` and `RUDE`, English and Chinese, occur, found
    as in `keyword_reward`. A toy which knows neither negation nor irony; repeating a word gains nothing.
    """
    polite, rude = ([keyword_pattern(entry) for entry in entries] for entries in (POLITE, RUDE))

    def one(text: str) -> float:
        good, bad = (sum(bool(p.search(text)) for p in patterns) for patterns in (polite, rude))
        return (good - bad) / max(1, good + bad)

    def score(prompts: list[str], responses: list[str]) -> Tensor:
        return torch.tensor([one(plain(r)) for r in responses])

    return score


def safety_filter(blocklist: list[str]) -> Reward:
    """1 where the response is clean, 0 where it holds a blocked word or phrase, in any script and case.

    Whole words ("ass" is not in "class"), so list each form of a word. Words taken apart by the same sign throughout
    (d.a.m.n, d a m n) and invisible characters are seen through; l33t spelling and look-alike letters are not.
    """
    if isinstance(blocklist, str) or not blocklist or not all(isinstance(w, str) and visible(w) for w in blocklist):
        raise ValueError(f"blocklist must be a list of non-empty strings, got {blocklist!r}")
    patterns = [apart_pattern(word) for word in blocklist]

    def score(prompts: list[str], responses: list[str]) -> Tensor:
        return torch.tensor([float(not any(p.search(text) for p in patterns)) for text in map(visible, responses)])

    return score


def gate(reward: Reward, passes: Reward, otherwise: float) -> Reward:
    """The reward where `passes` gives 1, the fixed score `otherwise` where it gives 0.

    E.g. `gate(sentiment_reward(), safety_filter(words), -1.0)`. As one term of a sum a filter could be outbid by the
    others; at a gate it cannot, as long as `otherwise` is no more than the reward's lowest score.
    """
    if not isinstance(otherwise, Real) or not math.isfinite(otherwise):
        raise ValueError(f"otherwise must be a finite number, got {otherwise!r}")

    def score(prompts: list[str], responses: list[str]) -> Tensor:
        scores = _scores("the gated reward", reward, prompts, responses)
        passed = _scores("passes", passes, prompts, responses)
        if not ((passed == 0) | (passed == 1)).all():
            raise ValueError(f"passes must give 0 or 1, got {passed.tolist()}")
        return torch.where(passed == 1, scores, float(otherwise))

    return score


def distinct_n(texts: list[str], n: int) -> float:
    """Share of distinct word n-grams among all n-grams of a set of texts: 1 = none comes twice, 0 where there is none.

    After Li et al. 2016, who divide by the number of words. It falls as a set grows: compare sets of one size.
    """
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"texts must be a list of strings, got {texts!r}")
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / max(1, len(grams))


def distinct_n_reward(n: int) -> Reward:
    """`distinct_n` of each response alone, 0 to 1; a response of fewer than n words gets 0, so silence does not pay."""
    distinct_n([], n)  # looks at n

    def score(prompts: list[str], responses: list[str]) -> Tensor:
        return torch.tensor([distinct_n([r], n) for r in responses])

    return score


def combine(parts: dict[str, tuple[float, Reward]], log: Callable[[dict[str, Tensor]], object] | None = None) -> Reward:
    """Weighted sum of rewards, e.g. `combine({"mood": (1.0, sentiment_reward()), "length": (0.5, length_reward(12))})`.

    log: called with {name: scores [B]}, before weighting, each time the reward is, such as `history.append` of a list.
    A part that returns no numbers, the wrong number of them or one that is not finite is named in the error; to an
    error inside a part its name is added as a note.
    """
    if not isinstance(parts, Mapping) or not parts:
        raise ValueError("parts must name at least one reward")
    for name, part in parts.items():
        weight, reward = part if isinstance(part, tuple | list) and len(part) == 2 else (None, None)
        if not isinstance(weight, Real) or not math.isfinite(weight) or not callable(reward):
            raise ValueError(f"parts[{name!r}] must be (weight, reward), a finite number and a callable, got {part!r}")
    if log is not None and not callable(log):
        raise TypeError(f"log must be callable, such as the append of a list, got {type(log).__name__}")

    def score(prompts: list[str], responses: list[str]) -> Tensor:
        found = {name: _scores(f"reward {name!r}", part[1], prompts, responses) for name, part in parts.items()}
        total = sum(float(weight) * found[name] for name, (weight, _) in parts.items())
        if log is not None:
            log({name: scores.detach().clone() for name, scores in found.items()})
        return total

    return score


def _scores(label: str, reward: Reward, prompts: list[str], responses: list[str]) -> Tensor:
    """What the reward returns, as [B] finite float32 numbers on the CPU, or an error with its label."""
    try:
        returned = reward(prompts, responses)
    except Exception as error:
        error.add_note(f"raised inside {label}")
        raise
    try:
        scores = torch.as_tensor(returned, dtype=torch.float32).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{label} must return a tensor or a list of numbers, got {type(returned).__name__}") from error
    if scores.shape != (len(responses),):
        raise ValueError(f"{label} must return [{len(responses)}] scores, got shape {tuple(scores.shape)}")
    if not scores.isfinite().all():
        row = int((~scores.isfinite()).nonzero()[0])
        raise ValueError(f"{label} returned {scores[row].item()} for response {row}: {responses[row]!r}")
    return scores


def _against(name: str, table: Mapping, one: Callable, read: Callable = str, needs: str = "a character") -> Reward:
    """A reward `one(response, what read() makes of each text that the table has for the prompt)`."""
    if not isinstance(table, Mapping) or not table:
        raise ValueError(f"{name} must map at least one prompt to a text or a list of texts, got {table!r}")
    known = {}
    for prompt, texts in table.items():
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(t, str) and t.strip() for t in texts):
            raise ValueError(f"{name}[{prompt!r}] must be a text or a list of texts, none empty, got {texts!r}")
        known[prompt] = [read(text) for text in texts]
        if not all(known[prompt]):
            raise ValueError(f"{name}[{prompt!r}] must hold {needs} in each text, got {texts!r}")

    def score(prompts: list[str], responses: list[str]) -> Tensor:
        if len(prompts) != len(responses):
            raise ValueError(f"prompts has {len(prompts)} entries, responses {len(responses)}")
        if unknown := [prompt for prompt in prompts if prompt not in known]:
            raise ValueError(f"{name} has nothing for the prompt {unknown[0]!r}")
        return torch.tensor([float(one(r, known[p])) for p, r in zip(prompts, responses)])

    return score
