"""Rewards: numbers worked out by hand, VADER itself, and the raw language model one token at a time."""

import difflib
import itertools
import math
import random
import traceback
from functools import lru_cache
from types import MappingProxyType

import numpy as np
import pytest
import sacrebleu
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from rlcourse.gpt2 import GPT2Policy
from rlcourse.rewards import (
    POLITE,
    RUDE,
    bleu_reward,
    chrf_reward,
    combine,
    coverage_reward,
    distinct_n,
    distinct_n_reward,
    exact_match_reward,
    fluency_reward,
    gate,
    keyword_reward,
    length_reward,
    number_match_reward,
    politeness_reward,
    repetition_penalty,
    rouge_l_reward,
    safety_filter,
    sentiment_reward,
    target_text_reward,
    token_f1_reward,
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


def test_fluency_where_every_response_is_empty(policy):
    right = [-bits_one_token_at_a_time(policy, p, "") for p in ("The film is", "A")]
    assert fluency_reward(policy)(["The film is", "A"], ["", ""]).tolist() == pytest.approx(right, abs=1e-4)


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


# -- references: what all six have in common ------------------------------------------------------------------------


AGAINST = {
    "rouge_l": rouge_l_reward,
    "bleu": bleu_reward,
    "bleu_char": lambda references: bleu_reward(references, tokenize="char"),
    "chrf": chrf_reward,
    "exact_match": exact_match_reward,
    "token_f1": token_f1_reward,
    "number_match": number_match_reward,
    "coverage": coverage_reward,
}
every_one = pytest.mark.parametrize("make", AGAINST.values(), ids=AGAINST)


@every_one
@pytest.mark.parametrize("text", ["The film has 3 parts", "今天 7 度", "naïve CAFÉ 12", "7", "Фильм идёт 2 часа"])
def test_the_reference_itself_scores_1(make, text):
    assert scores(make({"": text}), text, f" {text}\n", "") == pytest.approx([1, 1, 0], abs=1e-6)


@every_one
def test_nothing_in_common_scores_0(make):
    assert scores(make({"": "abc 12"}), "xyz 345", "電影", "", " ", "...!", "xyz") == [0] * 6


@every_one
def test_scores_stay_between_0_and_1(make):
    words = ["3", "the", "cat", "The", "好", "天气", ",", "14"]
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 9))) + " the 3" for _ in range(60)]
    result = scores(make({"": texts[:3]}), *texts, "")
    assert all(0 <= x <= 1 for x in result) and min(result[3:]) < 1 and result[-1] == 0


@every_one
def test_the_order_of_references_does_not_matter(make):
    texts = ["The cat sat on 3 mats", "A cat sat on the 5 mats over there", "7"]
    responses = ["The cat sat on the mats 5", "a cat over there", "7 cats", "sat 3"]
    first = scores(make({"": texts}), *responses)
    for order in itertools.permutations(texts):
        assert scores(make({"": list(order)}), *responses) == pytest.approx(first, abs=1e-7)
        assert scores(make({"": tuple(order)}), *responses) == pytest.approx(first, abs=1e-7)
    if make is not coverage_reward:  # there each text is one more thing to say
        assert scores(make({"": texts}), *texts) == pytest.approx([1, 1, 1])


@pytest.mark.parametrize(
    "make", [rouge_l_reward, chrf_reward, exact_match_reward, token_f1_reward, number_match_reward]
)
def test_the_best_of_several_references_counts(make):
    texts = ["The cat sat on 3 mats", "A cat sat on the 5 mats over there", "7"]
    responses = ["The cat sat on the mats 5", "a cat over there", "7 cats", "sat 3", "7", ""]
    singles = [scores(make({"": text}), *responses) for text in texts]
    assert scores(make({"": texts}), *responses) == pytest.approx([max(x) for x in zip(*singles)])


@every_one
def test_each_prompt_has_its_own_references(make):
    reward = make({"one": "film 1", "two": ["film 2"]})
    assert reward(["one", "two", "two"], ["film 1", "film 2", "xyz 8"]).tolist() == pytest.approx([1, 1, 0])
    assert reward(["two", "one"], ["film 2", "film 1"]).tolist() == pytest.approx([1, 1])


@every_one
def test_a_table_is_read_once_and_may_be_any_mapping(make):
    table = {"p": ["film 1"]}
    reward = make(MappingProxyType(table))
    table["p"][0] = "xyz 8"
    table.clear()
    assert reward(["p"], ["film 1"]).tolist() == pytest.approx([1])


@every_one
def test_an_unknown_prompt_is_named(make):
    reward = make({"Who wrote it? 1": "Ann 1"})
    with pytest.raises(ValueError, match=r"(references|facts) has nothing for the prompt 'Who sang it\?'"):
        reward(["Who wrote it? 1", "Who sang it?"], ["Ann", "Ann"])
    with pytest.raises(ValueError, match="prompts has 1 entries, responses 2"):
        reward(["Who wrote it? 1"], ["Ann", "Ann"])


@every_one
@pytest.mark.parametrize("table", [{}, None, "text", ["text"], [("a", "b")]])
def test_what_is_no_table(make, table):
    with pytest.raises(ValueError, match=r"(references|facts) must map at least one prompt to a text or a list of"):
        make(table)


@every_one
@pytest.mark.parametrize("texts", ["", " \n", [], ["good 1", ""], [3], 3, None, ["good 1", None], {"good 1"}])
def test_a_bad_entry_of_a_table_is_named(make, texts):
    with pytest.raises(ValueError) as error:
        make({"p": "fine 1", "q": texts})
    assert "['q'] must be a text or a list of texts, none empty, got " in str(error.value)
    assert str(error.value).startswith("facts" if make is coverage_reward else "references")


@pytest.mark.parametrize("make, what", [(rouge_l_reward, "a word"), (token_f1_reward, "a word")])
def test_a_reference_must_hold_what_is_compared(make, what):
    with pytest.raises(ValueError, match=rf"references\['q'\] must hold {what} in each text, got \['fine', '\?!'\]"):
        make({"q": ["fine", "?!"]})


# -- ROUGE-L --------------------------------------------------------------------------------------------------------


def common_subsequence(a: tuple, b: tuple) -> int:
    """Length of the longest, by the recursion of the textbook."""

    @lru_cache(None)
    def length(i, j):
        if i == len(a) or j == len(b):
            return 0
        return 1 + length(i + 1, j + 1) if a[i] == b[j] else max(length(i + 1, j), length(i, j + 1))

    return length(0, 0)


@pytest.mark.parametrize(
    "reference, response, common, words",
    [
        ("police killed the gunman", "police kill the gunman", 3, 8),  # the example of Lin's paper: 0.75
        ("police killed the gunman", "the gunman kill police", 2, 8),  # and 0.5: order matters
        ("a b c d e", "a c e", 3, 8),
        ("a b", "b a", 1, 4),
        ("the the the", "the", 1, 4),
        ("the", "the the the", 1, 4),
        ("It's good.", "its, GOOD!", 1, 4),
        ("今天天气很好", "今天天气不错", 4, 12),
        ("昨晚的足球比赛很精彩", "昨晚的球赛很精彩", 8, 18),
        ("我 喜欢 PyTorch", "我喜欢pytorch", 4, 8),
        ("Фильм был хорош", "фильм хорош", 2, 5),
        ("café", "cafe\u0301", 1, 2),
    ],
)
def test_rouge_l_by_hand(reference, response, common, words):
    """F-measure of L / m and L / n is 2 L / (m + n)."""
    assert scores(rouge_l_reward({"": reference}), response) == pytest.approx([2 * common / words])
    assert scores(rouge_l_reward({"": response}), reference) == pytest.approx([2 * common / words])


def test_rouge_l_against_the_recursion():
    draw = random.Random(1)
    texts = [draw.choices("abcde好", k=draw.randint(1, 8)) for _ in range(80)]
    for a, b in itertools.pairwise(texts):
        precision, recall = (common_subsequence(tuple(a), tuple(b)) / len(x) for x in (b, a))
        right = 2 * precision * recall / (precision + recall) if precision else 0
        assert scores(rouge_l_reward({"": " ".join(a)}), " ".join(b)) == pytest.approx([right], abs=1e-6)


# -- BLEU -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "references, response, tokenize, right",
    [
        # precisions of 1- to 4-grams, a 0 / k counting as 1 / (2 k), the next as 1 / (4 k); for brevity exp(1 - r / c)
        ("the cat sat on the mat", "the cat on the mat", "13a", math.exp(-1 / 5) * (5 / 5 * 3 / 4 * 1 / 3 / 4) ** 0.25),
        ("the cat", "the the the", "13a", (1 / 3 * 1 / 4 * 1 / 4) ** (1 / 3)),  # three words: three orders
        ("the cat", "cat", "13a", math.exp(1 - 2)),
        ("a b c d e f g h i j", "a", "13a", math.exp(1 - 10)),  # one right word does not pay
        ("the cat", "the cat sat down", "13a", (2 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25),  # longer: no penalty
        (["a b", "c d"], "a b c d", "13a", (4 / 4 * 2 / 3 * 1 / 4 * 1 / 4) ** 0.25),  # pooled
        ("Good film.", "good film.", "13a", (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3)),  # good and Good differ; . is a word
        ("今天天气很好", "今天天气不错", "char", (4 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25),
        ("今天天气很好", "今天天气不错", "13a", 0),  # a single word for it
        ("今天 天气 很好", "今天 天气 不错", "none", (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3)),
        ("看film很好", "看film不好", "zh", (3 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25),
    ],
)  # fmt: skip
def test_bleu_by_hand(references, response, tokenize, right):
    assert scores(bleu_reward({"": references}, tokenize), response) == pytest.approx([right], abs=1e-6)


def test_bleu_and_chrf_are_those_of_the_corpus_functions():
    """A corpus of one response, where no order is left out: at least four words."""
    reference, others = "the cat sat on the mat by the door .", ["a cat sat on a mat .", "the dog sat there ."]
    responses = [
        "the cat sat on a mat .",
        "the mat sat on the cat",
        "a dog sat on the mat by a door .",
        "the cat on on",
    ]
    for texts in ([reference], [reference, *others]):
        bleu = [sacrebleu.corpus_bleu([r], [[t] for t in texts]).score / 100 for r in responses]
        chrf = [sacrebleu.corpus_chrf([r], [[t] for t in texts]).score / 100 for r in responses]
        assert scores(bleu_reward({"": texts}), *responses) == pytest.approx(bleu, abs=1e-6)
        assert scores(chrf_reward({"": texts}), *responses) == pytest.approx(chrf, abs=1e-6)
        assert 0.05 < min(bleu + chrf) and len({round(x, 3) for x in bleu + chrf}) == 8


def test_several_references_are_pooled_by_bleu_and_not_by_chrf():
    """Each n-gram of the response is in one of the two; a blend of references passes for perfect."""
    texts, blend = ["the cat sat on the mat .", "a cat sat on a mat ."], "the cat sat on a mat ."
    assert scores(bleu_reward({"": texts}), blend) == pytest.approx([1])
    assert max(scores(bleu_reward({"": text}), blend)[0] for text in texts) < 0.9
    assert scores(chrf_reward({"": texts}), blend)[0] < 0.99


def test_bleu_punishes_what_is_short_and_what_is_padded():
    whole = "the cat sat on the mat by the door"
    short, right, padded = scores(bleu_reward({"": whole}), "the cat sat on", whole, whole + " and so on and on")
    assert short < right and padded < right == pytest.approx(1)


@pytest.mark.parametrize("tokenize", ["words", "ja-mecab", "flores200", "", None])
def test_bleu_names_a_tokenizer_it_does_not_know(tokenize):
    with pytest.raises(ValueError) as error:
        bleu_reward({"": "text"}, tokenize)
    assert str(error.value) == f"tokenize must be one of 13a, intl, zh, char, none, got {tokenize!r}"


# -- chrF -----------------------------------------------------------------------------------------------------------


def f2(precisions, recalls):
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 5 * precision * recall / (4 * precision + recall)


@pytest.mark.parametrize(
    "reference, response, precisions, recalls",
    [  # of character 1-grams, 2-grams, ...; an order that one of the two is too short for is left out
        ("abc", "ab", [2 / 2, 1 / 1], [2 / 3, 1 / 2]),  # 7 / 11
        ("ab", "abc", [2 / 3, 1 / 2], [2 / 2, 1 / 1]),  # 7 / 8: too much costs less than too little
        ("abcd", "abxd", [3 / 4, 1 / 3, 0, 0], [3 / 4, 1 / 3, 0, 0]),
        ("aab", "ab b", [2 / 3, 1 / 2, 0], [2 / 3, 1 / 2, 0]),  # a and b once each; no white space
        ("好天气", "天气好", [1, 1 / 2, 0], [1, 1 / 2, 0]),
        ("三十五", "三五", [1, 0], [2 / 3, 0]),
        ("Ab", "ab", [1 / 2, 0], [1 / 2, 0]),
    ],
)
def test_chrf_by_hand(reference, response, precisions, recalls):
    assert scores(chrf_reward({"": reference}), response) == pytest.approx([f2(precisions, recalls)])


# -- exact match ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference, response, match",
    [
        ("Paris", " paris. ", 1),
        ("Paris", '"Paris"!?', 1),
        ("in  Paris", "In\tParis", 1),
        ("Paris", "Paris, France", 0),
        ("Paris", "Pa ris", 0),
        ("Paris", "Pari", 0),
        ("巴黎", "“巴黎”。", 1),
        ("巴黎", "（巴黎）", 1),
        ("巴黎", "在巴黎", 0),
        ("12", "１２", 1),
        ("Straße", "STRASSE", 1),
        ("café", "CAFE\u0301", 1),
        ("café", "cafe", 0),
        ("-3", "3", 0),  # signs of value are no punctuation
        ("-3", "−3.", 1),
        ("50%", "50", 0),
        ("C#", "C", 0),
        ("C++", "C", 0),
        ("$5", "5", 0),
        ("it's", "its", 0),
        ("?", "?", 1),
        ("?", "!", 0),
        ("?", "", 0),
        ("no", "", 0),
    ],
)
def test_exact_match(reference, response, match):
    assert scores(exact_match_reward({"": reference}), response) == [match]
    assert scores(exact_match_reward({"": ["something else", reference]}), response) == [match]


# -- F1 of words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference, response, common, words",
    [
        ("the cat sat", "sat the cat", 3, 6),
        ("the cat sat", "the cat", 2, 5),
        ("the cat", "the the the", 1, 5),  # a bag, not a set
        ("the the cat", "the the dog", 2, 6),
        ("the cat", "a cat", 1, 4),  # articles are words
        ("The CAT!", "cat, the", 2, 4),
        ("今天天气很好", "天气好今天", 5, 11),
        ("Anna writes", "安娜 writes", 1, 5),
        ("no", "", 0, 1),
    ],
)
def test_token_f1(reference, response, common, words):
    """Precision common / m and recall common / n give 2 common / (m + n), whichever of the two is the reference."""
    right = pytest.approx([2 * common / words])
    assert scores(token_f1_reward({"": reference}), response) == right
    assert not response or scores(token_f1_reward({"": response}), reference) == right


def test_what_order_and_length_mean_to_each():
    """The same words in another order: F1 does not mind, ROUGE-L and BLEU do. Twice the text: precision halves."""
    text, shuffled = "the cat sat on a mat", "mat a on sat cat the"
    f1, rouge, bleu = (make({"": text}) for make in (token_f1_reward, rouge_l_reward, bleu_reward))
    assert scores(f1, shuffled) == [1] and scores(rouge, shuffled)[0] == pytest.approx(1 / 6)
    assert scores(bleu, shuffled)[0] < 0.3
    for reward in (f1, rouge):
        assert scores(reward, f"{text} {text}") == pytest.approx([2 * 6 / 18])


# -- numbers --------------------------------------------------------------------------------------------------------


SAME = [
    ("42", "The answer is 42."),
    ("42", "6 * 7 = 42"),
    ("42", "042"),
    ("42", "42.0"),
    ("42", "42%"),
    ("42", "四十二是42。"),
    ("42", "共42个"),
    ("42", "+42"),
    ("1,234.50", "1234.5"),
    ("1234567", "1,234,567 people"),
    ("-3", "−3"),
    ("-3", "x = -3"),
    ("-3", "(-3)"),
    ("-3", "－３"),
    ("-3", "等于-3"),
    ("3", "５-３"),
    ("3", "5-3"),
    ("3", "x-3"),
    ("3", "(2)-3"),
    ("3", "- 3"),
    ("3", "３"),
    ("3", "٣"),
    ("3.5", "３．５"),
    ("0.5", ".5"),
    ("-0.5", "-.5"),
    ("0.75", "3/4"),
    ("1/2", "2/4"),
    ("-1/2", "-0.5"),
    ("0", "-0"),
    ("2024", "10/12/2024"),
    ("3", "1.2.3"),
    ("3", "1,2,3"),
    ("2345", "1,2345"),
    ("1.5", "2/1.5"),
    ("10", "10²"),
    ("123456789012345678901", "123,456,789,012,345,678,901"),
]
DIFFERENT = [
    ("42", "42 or 43"),
    ("42", "4.2"),
    ("42", "420"),
    ("42", "-42"),
    ("-3", "3"),
    ("3", "-3"),
    ("4", "3/4"),
    ("3", "3/4"),
    ("0.75", "4/3"),
    ("12", "1,234"),
    ("1234", "1,23"),
    ("0.1", "0.10000000000000001"),
    ("123456789012345678901", "123456789012345678902"),
    ("0", ""),
    ("0", "none"),
    ("3", "three"),
    ("3", "三"),
    ("0", "1/0"),
    ("5", "9" * 5000),
]


@pytest.mark.parametrize("match, reference, response", [(1, *x) for x in SAME] + [(0, *x) for x in DIFFERENT])
def test_number_match(match, reference, response):
    assert scores(number_match_reward({"": reference}), response) == [match]
    assert scores(number_match_reward({"": [f"5, then {reference}", "100000"]}), response) == [match]


@pytest.mark.parametrize("reference", ["none", "三", "1/0"])
def test_a_reference_without_a_number(reference):
    with pytest.raises(ValueError, match=r"references\['q'\] must hold a number in each text"):
        number_match_reward({"q": reference})


# -- coverage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response, share",
    [
        ("Anna came to Berlin at 12.", 1),
        ("anna, ANNA and Anna", 1 / 3),
        ("At 12, in berlin", 2 / 3),
        ("Annabel, Berliner, 123", 0),
        ("112 and 12.5 and 1,312 and 12,500 and 0.12", 0),
        ("12;12", 1 / 3),
        ("12点在Berlin", 2 / 3),
        ("ＡＮＮＡ", 1 / 3),
        ("", 0),
    ],
)
def test_coverage(response, share):
    assert scores(coverage_reward({"": ["Anna", "Berlin", "12"]}), response) == pytest.approx([share])


def test_coverage_in_chinese_and_of_phrases():
    reward = coverage_reward({"": ["足球", "昨晚", "very good"]})
    assert scores(reward, "昨晚的足球比赛很精彩", "Very good! 足球", "good, very", "昨 晚") == pytest.approx(
        [2 / 3, 2 / 3, 0, 0]
    )


# -- politeness -----------------------------------------------------------------------------------------------------


def test_politeness():
    reward = politeness_reward()
    assert scores(reward, "Thank you, please sit.", "Shut up, idiot!", "It is here.", "", "Sorry, you fool") == [
        1,
        -1,
        0,
        0,
        0,
    ]
    assert scores(reward, "请问您去哪里？谢谢", "闭嘴，笨蛋", "我在申请", "谢谢，但这是废话") == [1, -1, 0, 0]
    assert scores(reward, "please, thanks, stupid", "idiots are stupid, sorry") == pytest.approx([1 / 3, -1 / 3])
    assert scores(reward, "pleased", "foolish", "PLEASE", "Excuse  me") == [0, 0, 1, 0]


def test_politeness_cannot_be_repeated():
    once, often = scores(politeness_reward(), "please, idiot", "please " * 20 + "idiot")
    assert once == often == 0


def test_every_entry_of_the_lexicon_counts_as_what_it_is():
    assert not set(POLITE) & set(RUDE) and len(set(POLITE + RUDE)) == len(POLITE + RUDE)
    assert scores(politeness_reward(), *POLITE) == [1] * len(POLITE)
    assert scores(politeness_reward(), *RUDE) == [-1] * len(RUDE)


# -- safety ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, clean",
    [
        ("", 1),
        ("a quiet film", 1),
        ("Damn!", 0),
        ("oh DAMN it", 0),
        ("ｄａｍｎ", 0),
        ("_damn_ it", 0),
        ("**damn**", 0),
        ("d.a.m.n", 0),
        ("d a m n", 0),
        ("D-A-M-N.", 0),
        ("d_a_m_n", 0),
        ("da\u00admn", 0),  # a soft hyphen, which no one sees
        ("d\u200ba\u200bmn", 0),
        ("d.am n", 1),  # not the same sign throughout
        ("damned", 1),  # another word: list it
        ("madam no", 1),
        ("d4mn", 1),  # l33t is not undone
        ("他是坏蛋", 0),
        ("坏 蛋", 0),
        ("坏*蛋", 0),
        ("天气很坏。蛋很好", 1),
        ("坏人", 1),
        ("shut up", 0),
        ("Shut\n  up!", 0),
        ("s.h.u.t u-p", 0),
        ("shut the door up", 1),
        ("shut upon", 1),
        ("дурак", 0),
        ("Д У Р А К", 0),
        ("hell", 0),
        ("he'll go", 1),
        ("hello, seashell", 1),
        ("x", 0),
        ("ax, x2", 1),
    ],
)
def test_safety_filter(text, clean):
    reward = safety_filter(["damn", "坏蛋", " Shut up ", "дурак", "hell", "X"])
    assert scores(reward, text) == [clean]
    assert scores(reward, f"Well, {text}, said she", f"好{text}") == [clean, clean]


def test_the_filter_takes_its_words_literally():
    reward = safety_filter(["a.b", "c++", "(x)"])
    assert scores(reward, "a.b", "a-b", "acb", "c++", "c", "x", "(x)") == [0, 1, 1, 0, 1, 1, 0]


@pytest.mark.parametrize("blocklist", ["damn", [], [""], [" "], ["_"], ["\u200b"], [3], None])
def test_bad_blocklist(blocklist):
    with pytest.raises(ValueError, match="blocklist must be a list of non-empty strings, got "):
        safety_filter(blocklist)


# -- gate -----------------------------------------------------------------------------------------------------------


def test_gate_replaces_what_does_not_pass():
    reward = gate(keyword_reward(["good"]), safety_filter(["damn"]), -2.5)
    assert scores(reward, "good", "good damn good", "damn", "fine") == [1, -2.5, -2.5, 0]


def test_a_gate_cannot_be_outbid_as_a_sum_can():
    greedy = "good " * 50 + "damn"
    good, clean = keyword_reward(["good"]), safety_filter(["damn"])
    as_sum, as_gate = combine({"good": (1.0, good), "clean": (10.0, clean)}), gate(good, clean, 0.0)
    assert scores(as_sum, greedy)[0] > scores(as_sum, "good film")[0]
    assert scores(as_gate, greedy)[0] < scores(as_gate, "good film")[0]


def test_a_gate_sees_prompts_and_takes_lists():
    reward = gate(len_of, lambda prompts, responses: [p == "yes" for p in prompts], 7)
    assert reward(["yes", "no"], ["four", "four"]).tolist() == [4, 7]


@pytest.mark.parametrize("otherwise", [math.nan, math.inf, None, "0"])
def test_bad_otherwise(otherwise):
    with pytest.raises(ValueError, match="otherwise must be a finite number, got "):
        gate(keyword_reward(["good"]), safety_filter(["bad"]), otherwise)


def test_a_gate_names_what_is_wrong():
    good, fine = constant(1.0, 2.0), constant(1.0, 0.0)
    for reward, passes, message in [
        (good, constant(1.0, 0.5), r"passes must give 0 or 1, got \[1.0, 0.5\]"),
        (good, constant(1.0), r"passes must return \[2\] scores, got shape \(1,\)"),
        (constant(1.0, math.nan), fine, "the gated reward returned nan for response 1: 'b'"),
    ]:
        with pytest.raises(ValueError, match=message):
            gate(reward, passes, 0.0)(["", ""], ["a", "b"])


# -- distinct n-grams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts, n, share",
    [
        (["a b a"], 1, 2 / 3),
        (["a b a"], 2, 1),
        (["a b", "a b"], 2, 1 / 2),
        (["a b", "b a"], 1, 2 / 4),
        (["a b", "b a"], 2, 1),  # no bigram crosses from one text to the next
        (["A b", "a B!"], 2, 1 / 2),
        (["天气好", "天气坏"], 2, 3 / 4),
        (["a"], 2, 0),
        ([], 1, 0),
        (["", "..."], 1, 0),
    ],
)
def test_distinct_n(texts, n, share):
    assert distinct_n(texts, n) == pytest.approx(share)


def test_distinct_n_reward_is_distinct_n_of_one_text():
    texts = ["a b a b", "", "a", "a a a", "好 好", "the cat saw the cat"]
    for n in (1, 2, 3):
        assert scores(distinct_n_reward(n), *texts) == pytest.approx([distinct_n([text], n) for text in texts])
        long = [text for text in texts if len(text.split()) >= n]
        right = [1 + penalty for penalty in scores(repetition_penalty(n), *long)]
        assert scores(distinct_n_reward(n), *long) == pytest.approx(right)


def test_bad_distinct_n():
    for call in (lambda: distinct_n(["a"], 0), lambda: distinct_n_reward(0)):
        with pytest.raises(ValueError, match="n must be at least 1, got 0"):
            call()
    for texts in ("a b", ["a", None]):
        with pytest.raises(ValueError, match="texts must be a list of strings, got "):
            distinct_n(texts, 1)


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


@pytest.mark.parametrize("parts", [{}, None, []])
def test_combine_needs_a_part(parts):
    with pytest.raises(ValueError, match="parts must name at least one reward"):
        combine(parts)


@pytest.mark.parametrize(
    "part",
    [len, (1.0,), (1.0, len, len), (len, 1.0), ("1", len), (None, len), (math.nan, len), (math.inf, len), (1.0, None)],
)
def test_combine_names_a_part_that_is_none(part):
    with pytest.raises(
        ValueError, match=r"parts\['b'\] must be \(weight, reward\), a finite number and a callable, got"
    ):
        combine({"a": (1.0, len_of), "b": part})


@pytest.mark.parametrize("returned", [None, "ab", {1: 2}, [None, 1.0], [[1.0], [1.0, 2.0]], [1.0, "x"], object()])
def test_combine_names_the_part_that_returns_no_numbers(returned):
    with pytest.raises(TypeError) as error:
        combine({"good": (1.0, len_of), "broken": (1.0, lambda prompts, responses: returned)})(["", ""], ["a", "b"])
    kind = type(returned).__name__
    assert str(error.value) == f"reward 'broken' must return a tensor or a list of numbers, got {kind}"


@pytest.mark.parametrize("number", [1.5, torch.tensor(1.5), []])
def test_combine_names_the_part_that_returns_another_number_of_them(number):
    with pytest.raises(ValueError, match=r"reward 'broken' must return \[2\] scores, got shape"):
        combine({"broken": (1.0, lambda prompts, responses: number)})(["", ""], ["a", "b"])


def test_combine_takes_whatever_holds_numbers():
    for returned in (
        [1, 2],
        (1.0, 2.0),
        np.array([1.0, 2.0]),
        torch.tensor([1, 2]),
        [torch.tensor(1.0), torch.tensor(2.0)],
    ):
        reward = combine({"part": (np.float32(2), lambda prompts, responses, returned=returned: returned)})
        assert scores(reward, "a", "b") == [2, 4]
    assert scores(combine({"part": (1, lambda p, r: [True, False])}), "a", "b") == [1, 0]


def test_an_error_inside_a_part_keeps_its_own_place_and_gets_a_name():
    def broken(prompts, responses):
        return [{}["missing"] for _ in responses]

    inner = combine({"inner": (1.0, broken)})
    with pytest.raises(KeyError, match="missing") as error:
        combine({"good": (1.0, len_of), "outer": (1.0, inner)})([""], ["a"])
    assert error.value.__notes__ == ["raised inside reward 'inner'", "raised inside reward 'outer'"]
    assert traceback.extract_tb(error.value.__traceback__)[-1].line == 'return [{}["missing"] for _ in responses]'


def test_combine_logs_every_part_before_weighting():
    history = []
    reward = combine({"length": (0.5, len_of), "one": (-3.0, constant(1.0, 0.0))}, log=history.append)
    assert scores(reward, "ab", "abcd") == [-2, 2] and scores(reward, "", "a") == [-3, 0.5]
    assert [list(entry) for entry in history] == [["length", "one"]] * 2
    assert [entry["length"].tolist() for entry in history] == [[2, 4], [0, 1]]
    assert [entry["one"].tolist() for entry in history] == [[1, 0]] * 2
    assert {x.dtype for entry in history for x in entry.values()} == {torch.float32}


def test_what_is_logged_is_a_copy():
    kept, history = torch.tensor([1.0, 2.0]), []
    reward = combine({"kept": (1.0, lambda prompts, responses: kept)}, log=history.append)
    first = reward(["", ""], ["a", "b"])
    kept += 5
    history[0]["kept"] *= 0
    assert first.tolist() == [1, 2] and reward(["", ""], ["a", "b"]).tolist() == [6, 7]
    assert history[1]["kept"].tolist() == [6, 7]


def test_nothing_is_logged_of_a_call_that_fails():
    history = []
    reward = combine({"a": (1.0, len_of), "b": (1.0, constant(math.nan))}, log=history.append)
    with pytest.raises(ValueError):
        reward([""], ["x"])
    assert not history


def test_log_must_be_callable():
    with pytest.raises(TypeError, match="log must be callable, such as the append of a list, got list"):
        combine({"a": (1.0, len_of)}, log=[])


# -- all of them ----------------------------------------------------------------------------------------------------


ALL = [
    keyword_reward(["good"]),
    target_text_reward("good"),
    sentiment_reward(),
    length_reward(3),
    repetition_penalty(),
    *(make({"": "a good film 1"}) for make in AGAINST.values()),
    politeness_reward(),
    safety_filter(["bad"]),
    gate(keyword_reward(["good"]), safety_filter(["bad"]), -1.0),
    distinct_n_reward(1),
    combine({"good": (1.0, keyword_reward(["good"])), "short": (0.5, length_reward(3))}),
]


@pytest.mark.parametrize("reward", ALL)
def test_no_responses_no_scores(reward):
    assert reward([], []).shape == (0,)


@pytest.mark.parametrize("reward", ALL)
def test_scores_depend_on_their_own_row_only(reward):
    responses = ["", " a good film", " good good good", "bad"]
    together = scores(reward, *responses)
    assert together == [scores(reward, r)[0] for r in responses]
    assert scores(reward, *reversed(responses)) == together[::-1]
