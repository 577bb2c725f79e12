"""Rewards: numbers worked out by hand, VADER itself, and the raw language model one token at a time."""

import difflib
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from rlcourse.gpt2 import GPT2Policy
from rlcourse.rewards import (
    combine,
    fluency_reward,
    keyword_reward,
    length_reward,
    repetition_penalty,
    sentiment_reward,
    target_text_reward,
)


def scores(reward, *responses):
    """Scores of responses to empty prompts; every reward gives a float32 tensor with one number each."""
    result = reward([""] * len(responses), list(responses))
    assert result.shape == (len(responses),) and result.dtype == torch.float32 and not result.requires_grad
    return result.tolist()


# -- keywords -------------------------------------------------------------------------------------------------------


CHINESE = ["深度学习", "机器学习", "自然语言处理"]


@pytest.mark.parametrize(
    "text, count",
    [
        ("深度学习是机器学习的一个分支。", 2),
        ("我们用深度学习做自然语言处理,也用机器学习。", 3),
        ("深度学习深度学习", 2),
        ("深度 学习", 0),
        ("学习很深", 0),
        ("I study 深度学习 and 机器学习.", 2),
        ("", 0),
    ],
)
def test_keywords_in_chinese_text(text, count):
    assert scores(keyword_reward(CHINESE), text) == [count]


@pytest.mark.parametrize(
    "keyword, text, count",
    [
        ("PyTorch", "学习PyTorch很好", 1),  # a neighbour from a script without spaces does not glue words together
        ("PyTorch", "学习pytorch,PYTORCH!", 2),
        ("PyTorch", "PyTorches", 0),
        ("学习PyTorch", "我在学习PyTorch", 1),
        ("学习PyTorch", "我在学习PyTorch2", 0),
        ("深度", "学习深度学习", 1),
        ("すし", "おすしがすき", 1),
        ("영화", "영화는 좋다", 1),
        ("ไทย", "ภาษาไทยง่าย", 1),
        ("art", "start", 0),
        ("art", "artful smart-art, ART; (art) art's", 4),
        ("art", "art2 art_b", 0),
        ("кот", "Кот и котик", 1),
        ("straße", "STRASSE", 1),
        ("café", "un cafe\u0301 noir", 1),  # e and a combining accent
        ("cafe", "un café noir", 0),
        ("very good", "a very good, very  good film", 1),
        ("C++", "c++ and C", 1),
        ("☕", "a ☕☕", 2),
        (" good ", "good", 1),
        ("AI", "ＡＩ很好", 1),  # full-width letters
    ],
)
def test_keyword_in_any_script(keyword, text, count):
    assert scores(keyword_reward([keyword]), text) == [count]


@pytest.mark.parametrize(
    "keyword, text, count",
    [("काम", "यह काम है", 1), ("काम", "यह कामा है", 0), ("மரம்", "மரம் மரம்கள்", 1)],
)
def test_vowel_signs_belong_to_the_word(keyword, text, count):
    """Scripts that set words off by spaces but write vowels as combining marks: Hindi and Tamil."""
    assert scores(keyword_reward([keyword]), text) == [count]


def test_keywords_add_up_and_prompts_do_not_count():
    reward = keyword_reward(["good", "film"])
    assert reward(["good film", ""], ["bad", "good good film"]).tolist() == [0, 3]
    texts = ["good", "a film", "nothing", "Good film, good day"]
    singles = [scores(keyword_reward([k]), *texts) for k in ("good", "film")]
    assert scores(reward, *texts) == [a + b for a, b in zip(*singles)]


@pytest.mark.parametrize("keywords", ["good", [], [""], [" "], [3], ["good", None], None])
def test_bad_keywords(keywords):
    with pytest.raises(ValueError, match="keywords must be a list of non-empty strings, got ") as error:
        keyword_reward(keywords)
    assert repr(keywords) in str(error.value)


# -- a target text --------------------------------------------------------------------------------------------------


def test_target_text():
    reward = target_text_reward("abcd")
    # 2 * matching characters / all characters, matching in the longest common block and to its left and right
    assert scores(reward, "abcd", "xyz", "", "bc", "abxcd", "dcba") == pytest.approx([1, 0, 0, 4 / 6, 8 / 9, 2 / 8])


def test_target_text_is_the_ratio_of_difflib_even_for_long_texts():
    target = "a very long story about a film, " * 10  # over 200 characters difflib calls frequent ones junk by default
    responses = ["a film about a very long story", "", target[::-1], target[3:]]
    right = [difflib.SequenceMatcher(a=target, b=r, autojunk=False).ratio() for r in responses]
    assert scores(target_text_reward(target), *responses) == pytest.approx(right)
    assert all(0 <= x <= 1 for x in right) and right[3] > 0.95


def test_target_text_in_chinese():
    assert scores(target_text_reward("深度学习"), "深度学习", "深度", "机器") == pytest.approx([1, 4 / 6, 0])


def test_target_text_must_not_be_empty():
    with pytest.raises(ValueError, match="target must not be empty"):
        target_text_reward("")


# -- sentiment ------------------------------------------------------------------------------------------------------


SENTENCES = [
    ("The film is", " wonderful, funny and moving."),
    ("The film is", " terrible, boring and stupid."),
    ("The film is", " not good."),
    ("The film is", ""),
    ("", " AMAZING!!!"),
    ("I love this", " chair."),
    ("The plot was", " told in three parts."),
]


def test_sentiment_is_vaders_compound_score_of_prompt_and_response():
    prompts, responses = map(list, zip(*SENTENCES))
    vader = SentimentIntensityAnalyzer()
    right = [vader.polarity_scores(p + r)["compound"] for p, r in SENTENCES]
    result = sentiment_reward()(prompts, responses)
    assert result.shape == (7,) and result.tolist() == pytest.approx(right, abs=1e-6)


def test_sentiment_has_the_right_sign():
    prompts, responses = map(list, zip(*SENTENCES))
    good, bad, negated, empty, loud, by_prompt, neutral = sentiment_reward()(prompts, responses).tolist()
    assert good > 0.5 and bad < -0.5 and negated < 0 and loud > 0.5 and by_prompt > 0.5
    assert empty == neutral == 0
    assert sentiment_reward()([""], [" chair."]).item() == 0  # so it was the prompt that counted above


def test_sentiment_reads_across_the_seam():
    """A prompt that ends in "not" turns what follows; scoring the response alone would miss it."""
    with_prompt, alone = sentiment_reward()(["It is not", ""], [" good", " good"]).tolist()
    assert with_prompt < 0 < alone


def test_sentiment_needs_a_prompt_for_each_response():
    with pytest.raises(ValueError):
        sentiment_reward()(["a", "b"], ["c"])


# -- length ---------------------------------------------------------------------------------------------------------


def test_length():
    reward = length_reward(4)
    assert scores(
        reward, "one two three four", "one two", "", "a b c d e", "a b c d e f g h", "x " * 20
    ) == pytest.approx([1, 0.5, 0, 0.75, 0, 0])


@pytest.mark.parametrize(
    "text, words",
    [
        ("It's a well-made film.", 5),
        ("don’t -- stop!", 2),
        ("深度学习", 4),
        ("学习PyTorch很好", 5),
        ("2001: a space odyssey", 4),
        ("... !", 0),
        ("naïve CAFÉ", 2),
        ("यह काम है", 3),
        ("हिंदी", 1),
    ],
)
def test_words_are_counted(text, words):
    """`length_reward(n)` is 1 exactly where a text has n words."""
    assert [n for n in range(1, 12) if scores(length_reward(n), text) == [1]] == ([words] if words else [])


@pytest.mark.parametrize("words", [0, -3])
def test_length_must_be_positive(words):
    with pytest.raises(ValueError, match=f"words must be at least 1, got {words}"):
        length_reward(words)


# -- repetition -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "n, text, penalty",
    [
        (2, "the cat saw the cat", -1 / 4),  # the-cat cat-saw saw-the the-cat
        (2, "good good good good", -2 / 3),
        (2, "a quiet film", 0),
        (2, "good", 0),
        (2, "", 0),
        (1, "good Good GOOD bad", -2 / 4),
        (1, "好好学习", -1 / 4),
        (3, "a b c a b c", -1 / 4),
        (3, "a b a b a b", -2 / 4),
        (3, "a b", 0),
    ],
)
def test_repetition(n, text, penalty):
    assert scores(repetition_penalty(n), text) == pytest.approx([penalty])


def test_more_repetition_costs_more_and_never_a_whole_point():
    penalties = scores(repetition_penalty(), *(" good" * k for k in range(2, 30)))
    assert penalties == sorted(penalties, reverse=True) and penalties[0] == 0 and -1 < penalties[-1] < -0.9
    assert scores(repetition_penalty(), "good good good") == scores(repetition_penalty(2), "good good good")


@pytest.mark.parametrize("n", [0, -1])
def test_repetition_n_must_be_positive(n):
    with pytest.raises(ValueError, match=f"n must be at least 1, got {n}"):
        repetition_penalty(n)


# -- fluency --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy():
    return GPT2Policy.from_pretrained("tiny", device="cpu").frozen_copy()


@torch.no_grad()
def bits_one_token_at_a_time(policy, prompt: str, response: str) -> float:
    """Bits of a response (of its EOS, if it is empty): raw forwards of the model, one for each token."""
    encode = policy.tokenizer.backend_tokenizer.encode
    ids, bits = encode(prompt).ids, 0.0
    for token in encode(response, add_special_tokens=False).ids or [policy.tokenizer.eos_token_id]:
        logits = policy.lm(torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        bits += (logits.exp().sum().log() - logits[token]).item() / math.log(2)
        ids.append(token)
    return bits


FLUENT = [
    ("The film is", " a funny and moving story about a family."),
    ("This movie has", " nothing new to say."),
    ("The story was", " not as good as the book."),
    ("The acting is", " better than the script."),
    ("It is", " one of the best films of the year."),
]


def test_fluency_is_minus_bits_per_byte(policy):
    cases = [*FLUENT, ("The film is", " 深度学习 ☕"), ("", "zzqx"), ("The film is", ""), ("A", " film")]
    prompts, responses = map(list, zip(*cases))
    right = [-bits_one_token_at_a_time(policy, p, r) / max(1, len(r.encode("utf-8"))) for p, r in cases]
    result = fluency_reward(policy)(prompts, responses)
    assert result.shape == (9,) and result.dtype == torch.float32 and not result.requires_grad
    assert result.tolist() == pytest.approx(right, abs=1e-4)
    assert max(right) < 0


def test_fluency_does_not_depend_on_the_other_rows(policy):
    prompts, responses = map(list, zip(*FLUENT, ("The film is" * 5, " good" * 20), ("", "a")))
    together = fluency_reward(policy)(prompts, responses).tolist()
    alone = [fluency_reward(policy)([p], [r]).item() for p, r in zip(prompts, responses)]
    assert together == pytest.approx(alone, abs=1e-4)


def test_fluent_text_beats_shuffled_words(policy):
    prompts, responses = map(list, zip(*FLUENT))
    shuffled = [" " + " ".join(sorted(r.split(), key=lambda w: w[::-1])) for r in responses]
    assert all(a != b and len(a) == len(b) for a, b in zip(responses, shuffled))
    fluent, broken = (fluency_reward(policy)(prompts, texts) for texts in (responses, shuffled))
    assert (fluent > broken).all() and (fluent - broken).mean() > 0.3


def test_fluency_uses_the_prompt(policy):
    follows, starts = fluency_reward(policy)(["The film is one of the", "The"], [" best", " best"]).tolist()
    assert follows > starts


def test_fluency_of_a_model_without_knowledge(policy):
    """A model that finds all V tokens alike costs log2 V bits a token."""
    V = len(policy.tokenizer)
    lm = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_positions=64, n_embd=8, n_layer=1, n_head=1, eos_token_id=0))
    torch.nn.init.zeros_(lm.lm_head.weight)
    uniform, text = GPT2Policy(lm, policy.tokenizer), " a very good film"
    tokens = len(policy.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)
    assert fluency_reward(uniform)(["The"], [text]).item() == pytest.approx(
        -tokens * math.log2(V) / len(text), abs=1e-4
    )


# -- combine --------------------------------------------------------------------------------------------------------


def constant(*numbers):
    return lambda prompts, responses: torch.tensor(numbers)


def test_combine_is_the_weighted_sum():
    reward = combine({"a": (2.0, constant(1.0, 2.0, 3.0)), "b": (-0.5, constant(4.0, 0.0, 2.0)), "c": (0.0, len_of)})
    assert scores(reward, "x", "y", "z") == pytest.approx([0, 4, 5])


def len_of(prompts, responses):
    return [len(r) for r in responses]  # a plain list of integers will do


def test_combine_passes_prompts_and_takes_lists():
    seen = []

    def spy(prompts, responses):
        seen.append((prompts, responses))
        return len_of(prompts, responses)

    assert combine({"length": (0.5, spy)})(["p"], ["four"]).tolist() == [2.0]
    assert seen == [(["p"], ["four"])]


def test_combine_of_real_rewards_and_of_itself():
    mood, brief = sentiment_reward(), length_reward(3)
    inner = combine({"mood": (1.0, mood), "brief": (0.5, brief)})
    prompts, responses = ["It is", "It is"], [" a good film", " bad"]
    right = [m + 0.5 * b for m, b in zip(mood(prompts, responses).tolist(), brief(prompts, responses).tolist())]
    assert combine({"twice": (2.0, inner)})(prompts, responses).tolist() == pytest.approx([2 * x for x in right])


def test_combine_does_not_touch_what_its_parts_return():
    kept = torch.tensor([1.0, 2.0])
    reward = combine({"a": (3.0, lambda p, r: kept), "b": (1.0, lambda p, r: kept)})
    assert scores(reward, "x", "y") == [4, 8] and kept.tolist() == [1, 2]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_combine_names_the_part_that_is_not_finite(number):
    reward = combine({"good": (1.0, constant(0.0, 0.0)), "broken": (0.0, constant(1.0, number))})
    with pytest.raises(ValueError) as error:
        reward(["", ""], ["first", "second"])
    assert all(part in str(error.value) for part in ("'broken'", str(number), "response 1", "'second'"))


@pytest.mark.parametrize("numbers, shape", [((1.0,), "(1,)"), ((1.0, 2.0, 3.0), "(3,)"), (([1.0], [2.0]), "(2, 1)")])
def test_combine_names_the_part_with_the_wrong_shape(numbers, shape):
    reward = combine({"good": (1.0, constant(0.0, 0.0)), "broken": (1.0, constant(*numbers))})
    with pytest.raises(ValueError) as error:
        reward(["", ""], ["a", "b"])
    assert all(part in str(error.value) for part in ("'broken'", "[2]", shape))


def test_combine_needs_a_part():
    with pytest.raises(ValueError, match="parts must name at least one reward"):
        combine({})


# -- all of them ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reward",
    [keyword_reward(["good"]), target_text_reward("good"), sentiment_reward(), length_reward(3), repetition_penalty()],
)
def test_no_responses_no_scores(reward):
    assert reward([], []).shape == (0,)


@pytest.mark.parametrize(
    "reward",
    [keyword_reward(["good"]), target_text_reward("good"), sentiment_reward(), length_reward(3), repetition_penalty()],
)
def test_scores_depend_on_their_own_row_only(reward):
    responses = ["", " a good film", " good good good", "bad"]
    together = scores(reward, *responses)
    assert together == [scores(reward, r)[0] for r in responses]
    assert scores(reward, *reversed(responses)) == together[::-1]
