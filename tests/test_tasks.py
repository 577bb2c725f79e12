import re

import pytest
import torch

from rlcourse import tasks
from rlcourse.rewards import coverage_reward, exact_match_reward, number_match_reward

NAMES = ("translation", "summarisation", "dialogue", "arithmetic", "paraphrase")
ALL = {name: getattr(tasks, name)() for name in NAMES}
every_task = pytest.mark.parametrize("task", ALL.values(), ids=NAMES)

ENGLISH = dict(
    one=1, two=2, three=3, four=4, five=5, six=6, seven=7, eight=8, nine=9, ten=10, eleven=11, twelve=12, thirteen=13,
    fourteen=14, fifteen=15, sixteen=16, seventeen=17, eighteen=18, nineteen=19, twenty=20, thirty=30, forty=40,
    fifty=50, sixty=60, seventy=70, eighty=80, ninety=90,
)  # fmt: skip


def read_english(text):
    """The other way round: words to number."""
    total = 0
    for word in re.split("[ -]", text):
        if word == "hundred":
            total *= 100
        elif word != "and":
            total += ENGLISH[word]
    return total


def read_chinese(text):
    total, digit = 0, None
    for character in text:
        if character in "百十":
            total += (1 if digit is None else digit) * {"百": 100, "十": 10}[character]
            digit = None
        else:
            digit = "零一二三四五六七八九".index(character)
    return total + (digit or 0)


def test_numbers_are_read_back():
    assert [read_english(tasks.english_number(n)) for n in range(1, 1000)] == list(range(1, 1000))
    assert [read_chinese(tasks.chinese_number(n)) for n in range(1, 1000)] == list(range(1, 1000))
    assert tasks.english_number(0) == "zero" and tasks.chinese_number(0) == "零"


@pytest.mark.parametrize(
    "number, english, chinese",
    [
        (10, "ten", "十"), (14, "fourteen", "十四"), (20, "twenty", "二十"), (42, "forty-two", "四十二"),
        (100, "one hundred", "一百"), (105, "one hundred and five", "一百零五"),
        (110, "one hundred and ten", "一百一十"),
        (216, "two hundred and sixteen", "二百一十六"), (340, "three hundred and forty", "三百四十"),
        (999, "nine hundred and ninety-nine", "九百九十九"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_write_them(number, english, chinese):
    assert (tasks.english_number(number), tasks.chinese_number(number)) == (english, chinese)


@every_task
def test_the_splits_are_disjoint_and_answered(task):
    prompts = [*task.labelled, *task.unlabelled, *task.held_out]
    assert len(set(prompts)) == len(prompts) and set(prompts) == set(task.references) == set(task.facts)
    assert len(task.unlabelled) > 3 * len(task.labelled) and len(task.held_out) >= 100
    assert all(task.references.values()) and all(task.facts.values())


@every_task
def test_it_is_the_same_every_time(task):
    assert getattr(tasks, task.name)() == task


@every_task
def test_good_answers_hold_the_facts(task):
    for i in range(max(map(len, task.references.values()))):
        prompts = [prompt for prompt, texts in task.references.items() if len(texts) > i]
        texts = [task.references[prompt][i] for prompt in prompts]
        assert exact_match_reward(task.references)(prompts, texts).min() == 1
        if task.name != "paraphrase":  # there, facts are words inside a run of characters
            assert coverage_reward(task.facts)(prompts, texts).min() == 1


@every_task
def test_everything_fits_and_each_word_is_a_token(task):
    policy = tasks.new_policy(task)
    actions, _ = policy.encode_responses(sorted({text for texts in task.references.values() for text in texts}))
    assert actions.shape[1] <= task.max_new_tokens
    longest = policy.encode(list(task.references)).ids.shape[1]
    assert longest + 32 <= policy.context  # the bench gives bad rewards more room
    assert all(len(policy.tokenizer(word, add_special_tokens=False)["input_ids"]) == 1 for word in task.words)
    for text in (*task.references, *(texts[-1] for texts in task.references.values())):
        assert policy.tokenizer.decode(policy.tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_arithmetic_is_right():
    task = ALL["arithmetic"]
    for prompt, (answer,) in task.references.items():
        a, b = re.fullmatch(r"(\d\d)\+(\d)=", prompt).groups()
        assert int(answer) == int(a) + int(b)
    prompts = list(task.references)
    assert number_match_reward(task.references)(prompts, [task.references[p][0] for p in prompts]).min() == 1


def test_a_summary_says_what_the_report_says_and_no_more():
    for prompt, (line,) in ALL["summarisation"].references.items():
        report = prompt.removesuffix(" Summary:")
        place, day, event, number, thing = re.fullmatch(r" (\w+), (\w+): (\w+), (\w+) (\w+) closed\.", line).groups()
        assert len(re.findall(r"[A-Z][^.]*\.", report)) == 3
        sentences = re.split(r"(?<=\.) ", report)
        assert sum({place, day, event} <= set(re.findall(r"\w+", s)) for s in sentences) == 1
        assert sum(f"{number} {thing}" in s for s in sentences) == 1
        for names in (tasks.PLACES, tasks.DAYS, tasks.EVENTS, tasks.NUMBERS, tasks.THINGS):
            assert sum(word in names for word in re.findall(r"\w+", report)) == 1


def test_both_pairs_are_held_out():
    task = ALL["paraphrase"]
    pairs = {"今天天气不错 →": "今天天气很好", "昨晚的球赛很精彩 →": "昨晚的足球比赛很精彩"}
    assert set(pairs) <= set(task.held_out) and all(task.references[p] == [r] for p, r in pairs.items())


def test_paraphrases_use_the_written_words():
    spoken = {a for table in (tasks.TIMES, tasks.NOUNS, tasks.VERDICTS) for a, b in table.items() if a != b}
    for prompt, (text,) in ALL["paraphrase"].references.items():
        found = {word for word in spoken if word in prompt}
        assert not any(word in text.replace("今天早上", "").replace("足球比赛", "") for word in found)


def facts_said(text):
    """Names of the graph in a text."""
    return [word for word in re.findall(r"\w+", text) if any(word in names for names in tasks.KINDS.values())]


def test_dialogues_are_true_of_one_person():
    graph = tasks.fact_graph()
    for kind, names in tasks.KINDS.items():
        assert sorted(graph[person][kind] for person in graph) == sorted(names)
    for prompt, answers in ALL["dialogue"].references.items():
        (person,) = {name for name in graph if re.search(rf"\b{name}\b", prompt)}
        assert set(facts_said(prompt)) <= set(graph[person].values())
        for answer in answers:
            (fact,) = facts_said(answer)
            assert fact in graph[person].values() and fact not in facts_said(prompt)
            subject = tasks.PEOPLE[person].title() if prompt.count("?") == 2 else person
            assert f" {subject} " in answer


def test_a_polite_opener_is_not_used_twice():
    for prompt, answers in ALL["dialogue"].references.items():
        used = [opener for opener in tasks.OPENERS if opener in prompt]
        assert len(used) == prompt.count("?") - 1
        assert not any(opener in answer for opener in used for answer in answers)
        assert len(answers) == 1 + len(tasks.OPENERS) - len(used)


def test_topic_reward():
    graph = tasks.fact_graph()
    mine, other = graph["Anna"], graph["Ben"]
    texts = [
        f"She lives in {mine['city']}.", f"She has a {other['pet']}.", f"{mine['job']}, {other['job']}", "Thanks!", "",
        f"{mine['food']} {mine['pet']} {other['city']} {other['food']}",
    ]  # fmt: skip
    scores = tasks.topic_reward()(["Where does Anna live?"] * len(texts), texts)
    assert scores.tolist() == [1.0, 0.0, 0.5, 0.0, 0.0, 0.5]
    with pytest.raises(ValueError, match="name one of Anna"):
        tasks.topic_reward()(["Where does Zoe live?"], ["Rome"])


def test_new_policies():
    task = ALL["arithmetic"]
    state = torch.get_rng_state()
    one, same, other = (tasks.new_policy(task, seed) for seed in (0, 0, 1))
    assert torch.get_rng_state().equal(state)
    weights = [policy.lm.transformer.wte.weight for policy in (one, same, other)]
    assert weights[0].equal(weights[1]) and not weights[0].equal(weights[2])
    assert tasks.new_policy(task, width=32, layers=1).lm.num_parameters() < one.lm.num_parameters()
