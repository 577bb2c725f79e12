"""Five small jobs for a small GPT-2, each with a few answered prompts, many unanswered ones and some held out.

All texts are generated here from short word lists; nobody is behind a name in them. What a job pays is no part of it:
see `rewards`.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from rlcourse.gpt2 import GPT2Policy
from rlcourse.pretrain import train_tokenizer

Reward = Callable[[list[str], list[str]], Tensor]


@dataclass(frozen=True)
class Task:
    """A job: prompts with good answers, and who may see which.

    references: the good answers to every prompt, best first. facts: words that an answer to the prompt must hold.
    labelled: the few prompts whose first reference may be shown to a learner. unlabelled: prompts to practise on, for
    which only a score is given. held_out: prompts to judge on, never trained on. The three are disjoint.
    words: what the tokenizer is made of, one token each. max_new_tokens: enough for every reference and its EOS.
    """

    name: str
    references: dict[str, list[str]]
    facts: dict[str, list[str]]
    labelled: list[str]
    unlabelled: list[str]
    held_out: list[str]
    words: list[str]
    max_new_tokens: int


def _spaced(words: list[str]) -> list[str]:
    """Each word at the beginning of a text and after a space."""
    return [form for word in words for form in (word, f" {word}")]


def _words_of(rows: list[tuple]) -> list[str]:
    """The words of prompts and references, each once."""
    texts = [text for row in rows for text in (row[0], *row[1])]
    return sorted({piece for text in texts for piece in re.findall(r" ?\w+| ?[^\w\s]", text)})


def _task(name: str, rows: list[tuple], counts: tuple[int, int, int], seed: int = 0, last: tuple = (), **sizes) -> Task:
    """Shuffle rows (prompt, references, facts) and deal them out; the prompts in `last` are held out for certain."""
    rows = sorted(dict((row[0], row) for row in rows).values())
    random.Random(seed).shuffle(rows)
    rows = [row for row in rows if row[0] not in last][: sum(counts) - len(last)] + [r for r in rows if r[0] in last]
    prompts, (n, m, _) = [row[0] for row in rows], counts
    columns = ({row[0]: row[i] for row in rows} for i in (1, 2))
    return Task(name, *columns, prompts[:n], prompts[n : n + m], prompts[n + m :], **sizes)


ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen".split()
ONES += ["seventeen", "eighteen", "nineteen"]
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
DIGITS = "零一二三四五六七八九"


def english_number(n: int) -> str:
    """0 to 999 in English words.

    >>> english_number(405)
    'four hundred and five'
    """
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10 - 2] + ("-" + ONES[n % 10] if n % 10 else "")
    return f"{ONES[n // 100]} hundred" + (f" and {english_number(n % 100)}" if n % 100 else "")


def chinese_number(n: int) -> str:
    """0 to 999 in Chinese numerals.

    >>> chinese_number(405), chinese_number(16), chinese_number(216)
    ('四百零五', '十六', '二百一十六')
    """
    hundreds, tens, ones = n // 100, n // 10 % 10, n % 10
    text = f"{DIGITS[hundreds]}百" if hundreds else ""
    if tens:
        text += ("" if n < 20 else DIGITS[tens]) + "十"  # sixteen is 十六, but 216 二百一十六
    elif hundreds and ones:
        text += "零"
    return text + (DIGITS[ones] if ones or n == 0 else "")


def translation() -> Task:
    """English number words to Chinese numerals and back, 1 to 999."""
    pairs = [(english_number(n), chinese_number(n)) for n in range(1, 1000)]
    rows = [(f"{a} =", [b], [b]) for pair in pairs for a, b in (pair, pair[::-1])]
    words = [*_spaced(ONES + TENS + ["hundred", "and"]), *DIGITS, "十", "百"]
    return _task("translation", rows, (180, 1200, 300), words=words, max_new_tokens=10)


def arithmetic() -> Task:
    """Sums of a number of two digits and one of one digit."""
    rows = [(f"{a}+{b}=", [f"{a + b}"], [str(a + b)]) for a in range(10, 100) for b in range(10)]
    return _task("arithmetic", rows, (150, 550, 200), words=list("0123456789+="), max_new_tokens=8)


PLACES = "Leeds York Dover Bath Derby Perth Oban Ely".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
EVENTS = "storm flood fire strike quake gale".split()
NUMBERS = "two three four five six seven".split()
THINGS = "roads schools shops bridges".split()
ASIDES = [
    "Nobody was hurt.", "The mayor thanked everyone.", "Help came quickly.", "More is expected soon.",
    "People stayed calm.", "The news spread fast.",
]  # fmt: skip


def summarisation() -> Task:
    """A report of three sentences, in changing order and wording, to one line with its place, day, event and damage."""
    rng, rows = random.Random(0), []
    for place, day, event, number, thing in product(PLACES, DAYS, EVENTS, NUMBERS, THINGS):
        news = rng.choice([f"There was a {event} in {place} on {day}.", f"On {day} a {event} hit {place}.",
                           f"{place} had a {event} on {day}."])  # fmt: skip
        damage = rng.choice([f"It closed {number} {thing}.", f"As many as {number} {thing} were closed."])
        report = [news, damage, rng.choice(ASIDES)]
        rng.shuffle(report)
        line = f" {place}, {day}: {event}, {number} {thing} closed."
        rows.append((" ".join(report) + " Summary:", [line], [place, day, event, number, thing]))
    return _task("summarisation", rows, (70, 1000, 200), words=_words_of(rows), max_new_tokens=16)


def _spoken_and_written(pairs: str) -> dict[str, str]:
    return {pair.split(">")[0]: pair.split(">")[-1] for pair in pairs.split()}


TIMES = _spoken_and_written("今天 昨天 昨晚 今早>今天早上 上礼拜>上周 前天 周末 刚才")
NOUNS = _spoken_and_written("天气 球赛>足球比赛 电影>影片 晚会 饭菜>菜肴 演出>表演 旅行>旅程 会议")
VERDICTS = _spoken_and_written(
    "不错>很好 很精彩 挺有意思>很有趣 糟透了>很糟糕 没劲>很无聊 特别棒>非常好 让人失望>令人失望 一般般>很普通"
)
EXAMPLES = ("今天天气不错 →", "昨晚的球赛很精彩 →")


def paraphrase() -> Task:
    """Spoken Chinese to a set written form: 今天天气不错 to 今天天气很好, 昨晚的球赛很精彩 to 昨晚的足球比赛很精彩."""
    words = [word for table in (TIMES, NOUNS, VERDICTS) for word in (*table, *table.values())] + ["的", " →"]
    rows = []
    for t, of, noun, verdict in product(TIMES, ("", "的"), NOUNS, VERDICTS):
        written = NOUNS[noun], VERDICTS[verdict]
        rows.append((f"{t}{of}{noun}{verdict} →", [f"{TIMES[t]}{of}{written[0]}{written[1]}"], list(written)))
    return _task("paraphrase", rows, (40, 600, 200), last=EXAMPLES, words=words, max_new_tokens=10)


PEOPLE = dict(Anna="she", Ben="he", Clara="she", David="he", Emma="she", Felix="he", Greta="she", Henry="he")
KINDS = dict(
    city="Rome Paris Berlin Madrid Vienna Oslo Lisbon Athens".split(),
    job="nurse baker pilot lawyer farmer painter teacher singer".split(),
    pet="cat dog horse rabbit parrot turtle hamster goat".split(),
    food="rice soup bread fish cake pasta salad cheese".split(),
)
QUESTIONS = dict(
    city=("Where does {} live?", "Which city does {} call home?"),
    job=("What does {} do?", "Which job does {} have?"),
    pet=("Which pet does {} have?", "What animal does {} keep?"),
    food=("What does {} eat?", "Which food does {} like?"),
)
ANSWERS = dict(city="{} lives in {}.", job="{} works as a {}.", pet="{} has a {}.", food="{} likes {}.")
OPENERS = ("Thanks!", "Welcome!", "My pleasure!")


def fact_graph() -> dict[str, dict[str, str]]:
    """Who lives where, does what, keeps which pet and eats what: {person: {kind: name}}."""
    columns = {kind: random.Random(i).sample(names, len(names)) for i, (kind, names) in enumerate(KINDS.items())}
    return {person: {kind: columns[kind][i] for kind in KINDS} for i, person in enumerate(PEOPLE)}


def dialogue() -> Task:
    """Questions about the fact graph over two turns; in the second only "she" or "he" says who is meant.

    Any opener that was not used before makes an answer polite. Half of the labelled answers have none.
    """
    graph, rng, rows = fact_graph(), random.Random(0), []

    def row(prompt: str, person: str, subject: str, kind: str) -> tuple:
        core = f" {ANSWERS[kind].format(subject, graph[person][kind])}"
        polite = [f" {opener}{core}" for opener in rng.sample(OPENERS, 3) if opener not in prompt]
        return prompt, [core, *polite] if rng.random() < 0.5 else [*polite, core], [graph[person][kind]]

    for (person, he), kind, wording in product(PEOPLE.items(), KINDS, (0, 1)):
        start = QUESTIONS[kind][wording].format(person)
        rows.append(row(start, person, person, kind))
        for other, again in product([k for k in KINDS if k != kind], (0, 1)):
            answer = f"{rng.choice(OPENERS)} {ANSWERS[kind].format(person, graph[person][kind])}"
            follow = f"{start} {answer} And {_lower(QUESTIONS[other][again].format(he))}"
            rows.append(row(follow, person, he.title(), other))
    return _task("dialogue", rows, (60, 260, 120), words=_words_of(rows), max_new_tokens=12)


def topic_reward() -> Reward:
    """Topic consistency of an answer in `dialogue`, 0 to 1: of the graph's names in it, the share true of its person.

    The person is the one whom the prompt names. Without any name (of a city, a job, a pet, a food) it is 0.
    """
    graph = fact_graph()
    names = {name for facts in graph.values() for name in facts.values()}

    def one(prompt: str, response: str) -> float:
        person = next((person for person in graph if person in prompt), None)
        if person is None:
            raise ValueError(f"prompt must name one of {', '.join(graph)}, got {prompt!r}")
        found = [word for word in re.findall(r"\w+", response) if word in names]
        return sum(word in graph[person].values() for word in found) / max(1, len(found))

    def score(prompts: list[str], responses: list[str]) -> Tensor:
        return torch.tensor([one(p, r) for p, r in zip(prompts, responses, strict=True)])

    return score


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def new_policy(task: Task, seed: int = 0, layers: int = 2, width: int = 96, heads: int = 4) -> GPT2Policy:
    """A fresh GPT-2 of the bundled architecture, smaller, whose tokenizer has one token for each word of the task.

    Its weights depend on `seed` only, and torch's global random numbers are left alone.
    """
    tokenizer = train_tokenizer(task.words, vocab_size=5000)  # it stops when every word is one token
    end = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=64, n_embd=width, n_layer=layers,
        n_head=heads, bos_token_id=end, eos_token_id=end, activation_function="gelu_pytorch_tanh",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2Policy(GPT2LMHeadModel(config), tokenizer)
