"""What rewards read in a text of any script: words, numbers, keywords, and words that someone tried to hide."""

import re
import unicodedata
from fractions import Fraction

# Scripts written without spaces (or, as Hangul, with endings attached): a word is not set off by its neighbours.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
# Vowel signs and other marks belong to the word they stand in, although \w does not hold them.
_MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0963\u0966-\u0dff"
_LETTER = f"(?:[^\\W{_UNSPACED}]|[{_MARKS}])"
_WORD = re.compile(f"[{_UNSPACED}]|{_LETTER}(?:['’]?{_LETTER})*")
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\d.])\.\d+"
_NUMBER = re.compile(f"(?:(?<!{_LETTER}|[)\\]%])-)?(?:(?<![\\d/])\\d+/\\d+(?![\\d/]|\\.\\d)|{_DECIMAL})")
_FULL_WIDTH = str.maketrans("－−，．／", "--,./")


def plain(text: str) -> str:
    """The text without upper case and compatibility forms (NFKC): "ＡＩ" and "ai" are the same."""
    return unicodedata.normalize("NFKC", text).casefold()


def words_of(text: str) -> list[str]:
    """The words of a text; in a script written without spaces each character is one.

    >>> words_of("It's 深度 Learning!")
    ["it's", '深', '度', 'learning']
    """
    return _WORD.findall(plain(text))


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """All runs of n words."""
    words = words_of(text)
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def core(text: str) -> str:
    """The plain text with single spaces, and without punctuation at its ends other than - # % & @ / ‰.

    >>> core(" “C#,  he said.” ")
    'c#, he said'
    """
    text = " ".join(plain(text).replace("−", "-").split())
    kept = [i for i, c in enumerate(text) if unicodedata.category(c)[0] not in "PZ" or c in "-#%&@/‰"]
    return text[kept[0] : kept[-1] + 1] if kept else text


def last_number(text: str) -> list[Fraction]:
    """The last number of the text, alone in a list, or an empty list; `number_match_reward` says what a number is."""
    found = _NUMBER.findall(text.translate(_FULL_WIDTH))
    try:
        return [Fraction(number.replace(",", "")) for number in found[-1:]]
    except (ValueError, ZeroDivisionError):  # thousands of digits, or 1/0
        return []


def keyword_pattern(keyword: str) -> re.Pattern:
    """Finds the keyword in plain text: as a whole word where words are set off by spaces, else anywhere."""
    keyword = plain(keyword.strip())
    return _whole(keyword, re.escape(keyword))


def fact_pattern(fact: str) -> re.Pattern:
    """A keyword pattern that does not find a number within a longer one: 12 is not in 12.5 or 1,312."""
    fact = plain(fact.strip())
    before = r"(?<!\d[.,])" if fact[0].isdigit() else ""
    after = r"(?![.,]\d)" if fact[-1].isdigit() else ""
    return _whole(fact, before + re.escape(fact) + after)


def visible(text: str) -> str:
    """The plain text without invisible characters, and with spaces for underscores, which would glue words together."""
    return "".join(c for c in plain(text).replace("_", " ") if unicodedata.category(c) != "Cf").strip()


def apart_pattern(phrase: str) -> re.Pattern:
    """Finds the phrase in visible text, also with one and the same sign between the letters of a word: d.a.m.n."""
    words, phrase = [], visible(phrase)
    for k, word in enumerate(phrase.split()):
        letters = [re.escape(c) for c in word]
        sign = f"(?P<sign{k}>[\\s.*·•~^|/+-]?)"
        words.append(f"(?P=sign{k})".join([sign.join(letters[:2]), *letters[2:]]))
    return _whole(phrase, r"\s+".join(words))


def _whole(keyword: str, body: str) -> re.Pattern:
    before = f"(?<!{_LETTER})" if re.match(_LETTER, keyword[0]) else ""
    after = f"(?!{_LETTER})" if re.match(_LETTER, keyword[-1]) else ""
    return re.compile(before + body + after)
