"""Reading texts: words, cores, numbers and patterns in several scripts, by hand."""

import itertools
from fractions import Fraction

import pytest

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


@pytest.mark.parametrize(
    "text, words",
    [
        ("It's a well-made film.", ["it's", "a", "well", "made", "film"]),
        ("深度Learning很好!", ["深", "度", "learning", "很", "好"]),
        ("don’t ''stop'", ["don’t", "stop"]),
        ("हिंदी ＡＩ 3.5", ["हिंदी", "ai", "3", "5"]),
        (" …—! ", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == words
    assert ngrams(text, 1) == [(word,) for word in words] and ngrams(text, 2) == list(itertools.pairwise(words))
    assert ngrams(text, len(words) + 1) == []


def test_plain_and_visible():
    assert plain("ＡＩ Straße ﬁ") == "ai strasse fi"
    assert visible(" A\u200bb_c\u00ad\ufeff ") == "ab c"


@pytest.mark.parametrize(
    "text, right",
    [
        (" “C#,  he said.” ", "c#, he said"),
        ("( a )", "a"),
        ("-5%", "-5%"),
        ("−5!", "-5"),
        ("...", "..."),
        ("", ""),
        ("¿Qué?", "qué"),
        ("《红楼梦》", "红楼梦"),
    ],
)
def test_core(text, right):
    assert core(text) == right
    assert core(core(text)) == right


@pytest.mark.parametrize(
    "text, right",
    [("no", []), ("1 and 2", [2]), ("-1.50", [Fraction(-3, 2)]), ("1/3", [Fraction(1, 3)]), ("0", [0]), ("7/0", [])],
)
def test_last_number(text, right):
    assert last_number(text) == right and all(type(number) is Fraction for number in last_number(text))


def test_patterns_find_whole_words_and_whole_numbers():
    for pattern in (keyword_pattern, fact_pattern, apart_pattern):
        assert pattern(" Art ").search("smart art") and not pattern("Art").search("smart start arts art2")
        assert pattern("学习").search("深度学习art")
    assert keyword_pattern("12").search("12.5") and not fact_pattern("12").search("12.5, 3.12 and 1,312")
    assert fact_pattern("12").search("7, 12. End") and fact_pattern("12.5").search("12.5")
    assert apart_pattern("art").search("a*r*t") and not keyword_pattern("art").search("a*r*t")
    assert apart_pattern("a").search("a") and apart_pattern("ab").fullmatch("a b")
