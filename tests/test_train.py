"""Long runs: flags, files, resuming bit for bit, kills, full disks, several processes, adapters."""

import csv
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlcourse import checkpoint, parallel, records, settings, train
from rlcourse.data import load_prompts
from rlcourse.gpt2 import GPT2Policy, response_texts, sample_responses
from rlcourse.ppo import PPOConfig, ppo_update
from rlcourse.returns import gae, kl_shaped_rewards
from rlcourse.rewards import sentiment_reward
from rlcourse.settings import TrainConfig

ROOT = Path(__file__).parents[1]
SMALL = dict(batch=8, new_tokens=8, minibatches=2, save_every=2, sample_every=2)
FIELDS = {f.name: f for f in fields(TrainConfig)}


@pytest.fixture(autouse=True)
def no_bars(monkeypatch):
    monkeypatch.setenv("RLCOURSE_PROGRESS", "0")


def go(out, resume=False, **given) -> int:
    return train.main(given | dict(out=str(out)), resume)


def noisy_reward(prompts, responses):
    """Draws from every global generator, all of which a run must restore."""
    noise = random.random() + np.random.rand() + torch.rand(()).item()
    return torch.tensor([len(response) / 100 + noise for response in responses])


# -- settings -------------------------------------------------------------------------------------------------------

OTHER = dict(
    model="gpt2", out="elsewhere", reward="keyword:joy", prompts="p.txt", iterations=7, batch=32, new_tokens=5,
    temperature=0.5, learning_rate=1e-4, head_learning_rate=1e-2, final_rate=1.0, epochs=3, minibatches=2, clip_eps=0.1,
    vf_coef=0.25, ent_coef=0.01, max_grad_norm=2.0, gamma=0.9, lam=0.8, kl_coef=0.1, kl_target=6.0, horizon=500.0,
    lora_rank=8, dtype="bfloat16", seed=3, save_every=1, sample_every=2, keep=4,
)  # fmt: skip


def test_flags_mirror_the_settings(capsys):
    assert OTHER.keys() == FIELDS.keys()
    argv = [word for name, value in OTHER.items() for word in ("--" + name.replace("_", "-"), str(value))]
    given, resume = settings.parse([*argv, "--resume"])
    assert given == OTHER and resume and asdict(TrainConfig(**given)) == OTHER
    assert settings.parse([]) == ({}, False)
    with pytest.raises(SystemExit, match="0"):
        settings.parse(["--help"])
    page = " ".join(capsys.readouterr().out.split()).replace("- ", "-")
    for name, f in FIELDS.items():
        assert len(f.metadata["help"]) > 10 and settings.flag(name) in page
        assert f.metadata["help"].replace("- ", "-") in page
        assert f.default in (None, "") or f"(default: {f.default})" in page


def test_defaults_are_the_run_of_notebook_07():
    cells = json.loads((ROOT / "notebooks" / "07_ppo_on_gpt2.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "".join("".join(cell["source"]) + "\n" for cell in cells)
    c = TrainConfig()
    for line in (
        f"NUM_STEPS, BATCH, KL_COEF, SEED = {c.iterations}, {c.batch}, {c.kl_coef}, {c.seed}",
        f"NEW_TOKENS = {c.new_tokens}",
        f"PPOConfig(epochs={c.epochs}, minibatches={c.minibatches}, clip_eps={c.clip_eps})",
        f"gamma={c.gamma}, lam={c.lam})",
        f"LinearLR(optimizer, 1.0, {c.final_rate}, total_iters=NUM_STEPS)",
        'LEARNING_RATE = 2e-4 if MODEL == "tiny" else 1e-5',
    ):
        assert line in text, line
    assert c.head_learning_rate == 1e-3 and "policy.value_head.parameters(), lr=1e-3" in text
    for name in ("vf_coef", "ent_coef", "max_grad_norm"):
        assert getattr(c, name) == getattr(PPOConfig(), name)


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("batch", 0, "batch must be a whole number at least 1, got 0"),
        ("batch", 2.5, "batch must be a whole number"),
        ("batch", "64", "batch must be a whole number at least 1, got '64'"),
        ("batch", True, "batch must be a whole number"),
        ("iterations", None, "iterations must be a whole number"),
        ("temperature", 0, "temperature must be a finite number above 0, got 0"),
        ("temperature", float("nan"), "temperature must be a finite number"),
        ("learning_rate", -1.0, "learning_rate must be a finite number or None above 0"),
        ("final_rate", 1.5, "final_rate must be a finite number at least 0 and at most 1, got 1.5"),
        ("gamma", 1.01, "gamma"),
        ("lam", -0.1, "lam"),
        ("clip_eps", 0.0, "clip_eps"),
        ("max_grad_norm", float("inf"), "max_grad_norm must be a finite"),
        ("kl_target", 0.0, "kl_target"),
        ("kl_coef", -0.1, "kl_coef"),
        ("lora_rank", -1, "lora_rank"),
        ("seed", 2**32, "seed"),
        ("dtype", "float16", "dtype must be float32 or bfloat16, got 'float16'"),
        ("model", 3, "model must be a text, got 3"),
        ("minibatches", 65, "minibatches must be at most batch 64, got 65"),
        ("reward", "happiness", "reward must be sentiment, ratings, keyword:joy,wonder or package.module:function"),
        ("reward", "keyword:", "got 'keyword:'"),
        ("reward", "module:", "got 'module:'"),
        ("reward", "", "reward must be sentiment"),
    ],
)
def test_every_bad_value_has_its_error(name, value, words):
    with pytest.raises(ValueError) as caught:
        TrainConfig(**{name: value})
    assert words in str(caught.value)


def test_settings_that_do_not_go_together():
    with pytest.raises(ValueError, match="kl_coef must be above 0 where kl_target is given"):
        TrainConfig(kl_coef=0.0, kl_target=6.0)
    with pytest.raises(ValueError, match=r"horizon must be at least batch 64, got 10.0"):
        TrainConfig(horizon=10, kl_target=6.0)
    assert TrainConfig(kl_coef=0, horizon=10).kl_coef == 0.0


@pytest.mark.parametrize("argv", [["--bach", "3"], ["--batch", "0"], ["--reward", "happiness"], ["--iter", "3"]])
def test_a_typo_fails_before_anything_slow_is_imported(argv):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "rlcourse.train", *argv], capture_output=True, text=True
    )
    assert done.returncode == 2 and "error: " in done.stderr and argv[0].strip("-")[:4] in done.stderr.splitlines()[-1]
    assert " torch" not in done.stderr and " numpy" not in done.stderr


# -- random numbers by key ------------------------------------------------------------------------------------------


def test_uniforms_depend_on_seed_iteration_and_row_alone():
    whole = parallel.keyed_uniforms(5, 2, range(6), 7)
    assert whole.shape == (6, 7) and whole.dtype == torch.float64
    assert torch.equal(parallel.keyed_uniforms(5, 2, range(3, 6), 7), whole[3:])
    assert torch.equal(parallel.keyed_uniforms(5, 2, range(6), 4), whole[:, :4])
    random.seed(1)
    assert torch.equal(parallel.keyed_uniforms(5, 2, range(6), 7), whole)
    assert parallel.keyed_uniforms(5, 2, range(0), 7).shape == (0, 7)
    numbers = [
        x for seed in (0, 1, 11) for iteration in (0, 1, 11) for row in (0, 1, 11)
        for x in parallel.keyed_uniforms(seed, iteration, range(row, row + 1), 3).flatten().tolist()
    ]  # fmt: skip
    assert len(set(numbers)) == len(numbers)


def test_uniforms_look_uniform_along_rows_iterations_and_tokens():
    x = torch.stack([parallel.keyed_uniforms(0, i, range(100), 20) for i in range(50)])  # 100,000 numbers
    assert 0 <= x.min() and x.max() < 1
    counts = torch.histc(x.float(), 100, 0, 1)
    assert ((counts - 1000) ** 2 / 1000).sum() < 99 + 5 * (2 * 99) ** 0.5  # chi-squared, mean 99, five deviations
    for dim in range(3):
        a, b = (x.narrow(dim, start, x.shape[dim] - 1).flatten() - 0.5 for start in (0, 1))
        assert (a * b).mean().abs() * 12 < 5 / len(a) ** 0.5  # neighbours are uncorrelated


def test_prompts_come_by_key():
    def draw(*key):
        return parallel.keyed_random(*key).choices(range(1000), k=20)

    assert draw(0, 1, "prompts") == draw(0, 1, "prompts")
    assert len({tuple(draw(seed, i, "prompts")) for seed in range(3) for i in range(3)}) == 9


# -- a short run ----------------------------------------------------------------------------------------------------

COLUMNS = (
    "iteration score kl response_length kl_coef policy_loss value_loss entropy clip_frac approx_kl grad_norm "
    "explained_variance"
).split()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of five iterations without interruption, which others are compared with; nobody writes into it."""
    out = tmp_path_factory.mktemp("finished")
    assert go(out, **LONG) == 0
    return out


LONG = SMALL | dict(iterations=5, kl_target=3.0, horizon=64.0, reward="test_train:noisy_reward")


def rows_of(out):
    return list(csv.DictReader((out / "history.csv").open(newline="")))


def samples_of(out):
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


def result(out) -> dict:
    """All that must be alike, bit for bit, of two runs with the same settings."""
    newest = out / "checkpoints" / f"step_{max(checkpoint.steps(out / 'checkpoints')):06d}"
    files = [*newest.glob("*.safetensors"), *(out / "final").iterdir(), out / "history.csv", out / "samples.jsonl"]
    state = json.loads((newest / "state.json").read_text())["state"]
    state["config"].pop("out")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in files} | dict(state=state)


def same(a: dict, b: dict) -> bool:
    assert a.keys() == b.keys()
    assert not [name for name in a if a[name] != b[name]]
    return True


def test_a_run_writes_what_it_promises(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {"checkpoints", "final", "history.csv", "samples.jsonl", "tensorboard"}
    assert sorted(checkpoint.steps(finished / "checkpoints")) == [4, 5]
    rows = rows_of(finished)
    assert [row["iteration"] for row in rows] == ["1", "2", "3", "4", "5"]
    assert set(COLUMNS) <= rows[0].keys() and not any("sec" in name for name in rows[0])
    assert all(np.isfinite(float(row[name])) for row in rows for name in COLUMNS)
    samples = samples_of(finished)
    assert Counter(sample["iteration"] for sample in samples) == {2: 8, 4: 8}
    assert set(samples[0]) == {"iteration", "prompt", "response", "score"} and samples[0]["prompt"] in load_prompts()
    by_iteration = [s["score"] for s in samples if s["iteration"] == 2]
    assert np.mean(by_iteration) == pytest.approx(float(rows[1]["score"]), abs=1e-6)
    events = EventAccumulator(str(finished / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("score")] == [1, 2, 3, 4, 5]
    assert events.Scalars("kl")[2].value == pytest.approx(float(rows[2]["kl"]))


def test_the_final_model_is_that_of_the_last_checkpoint(finished):
    final = GPT2Policy.from_pretrained(finished / "final", device="cpu")
    found = checkpoint.load_latest(finished / "checkpoints")
    assert found.step == 5 and found.state["config"] == asdict(TrainConfig(**LONG, out=str(finished)))
    assert found.tensors["model"].keys() == dict(final.named_parameters()).keys()
    assert all(torch.equal(x, found.tensors["model"][name]) for name, x in final.named_parameters())


def test_the_adaptive_price_is_in_the_history(finished):
    rows, price = rows_of(finished), TrainConfig().kl_coef
    for row in rows:
        assert float(row["kl_coef"]) == price
        price *= 1 + float(np.clip(float(row["kl"]) / 3.0 - 1, -0.2, 0.2)) * 8 / 64
    assert price != TrainConfig().kl_coef


def test_the_loop_is_that_of_the_notebook(tmp_path):
    """Written out once more: the same functions on the same numbers give the same weights, bit for bit."""
    c = TrainConfig(**SMALL, iterations=2, out=str(tmp_path), seed=4, gamma=0.9, lam=0.5, temperature=0.7)
    trained = train.train(train.prepare(c))
    torch.manual_seed(4)
    policy = GPT2Policy.from_pretrained("tiny")
    ref_policy, reward = policy.frozen_copy(), sentiment_reward()
    head = dict(params=policy.value_head.parameters(), lr=1e-3)
    optimizer = torch.optim.AdamW([dict(params=policy.lm.parameters(), lr=2e-4), head], fused=True)
    for i in (1, 2):
        for group, lr in zip(optimizer.param_groups, (2e-4, 1e-3)):
            group["lr"] = lr * (1 - 0.98 * (i - 1) / 2)
        prompts = parallel.keyed_random(4, i, "prompts").choices(load_prompts(), k=8)
        rollout = sample_responses(policy, prompts, 8, 0.7, uniforms=parallel.keyed_uniforms(4, i, range(8), 8))
        ref_logprobs, _ = ref_policy.evaluate(rollout.inputs, rollout.actions)
        scores = reward(prompts, response_texts(policy, rollout))
        rewards = kl_shaped_rewards(scores, rollout.old_logprobs, ref_logprobs, rollout.mask, 0.045)
        advantages, returns = gae(rewards, rollout.values, rollout.mask, gamma=0.9, lam=0.5)
        stats = ppo_update(policy, optimizer, rollout, advantages, returns, PPOConfig(minibatches=2))
    assert all(torch.equal(x, y) for x, y in zip(trained.parameters(), policy.parameters()))
    kl = ((rollout.old_logprobs - ref_logprobs) * rollout.mask).sum(1).mean()
    expected = stats | dict(score=scores.mean(), kl=kl, response_length=rollout.mask.sum() / 8, kl_coef=0.045)
    row = {name: float(x) for name, x in rows_of(tmp_path)[1].items()}
    assert row == {"iteration": 2.0} | {name: pytest.approx(float(x), abs=1e-6) for name, x in expected.items()}


@pytest.mark.parametrize(
    "name, responses, expected",
    [
        ("sentiment", [" good.", " bad."], lambda s: s[0] > 0 > s[1]),
        ("ratings", [" a wonderful film.", " a dull, stupid mess."], lambda s: s[0] > s[1]),
        ("keyword:joy, wonder", [" joy and wonder", " nothing"], lambda s: s.tolist() == [2.0, 0.0]),
        ("test_train:noisy_reward", [" a", " bc"], lambda s: abs(s[1] - s[0] - 0.01) < 1e-6),
    ],
)
def test_rewards_by_name(name, responses, expected):
    assert expected(train.load_reward(name, "cpu")(["It was"] * 2, responses))


def test_a_reward_that_is_not_there_or_wrong():
    for name in ("no_such_module:f", "math:no_such_function"):
        with pytest.raises(ValueError, match=f"reward '{name}' cannot be imported: .*no"):
            train.load_reward(name, "cpu")
    with pytest.raises((TypeError, ValueError), match="builtins:zip"):
        train.load_reward("builtins:zip", "cpu")(["a"], ["b"])


def test_prompts_from_a_file(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("Das war\n\n  \nEin langer, langer Anfang:\n", encoding="utf-8")
    policy = GPT2Policy.from_pretrained("tiny")
    c = TrainConfig(prompts=str(file), new_tokens=100)
    assert train.read_prompts(c, policy) == ["Das war", "Ein langer, langer Anfang:"]
    with pytest.raises(ValueError, match=r"new_tokens 125 and the \d+ tokens .*'Ein langer.*context of 128"):
        train.read_prompts(replace(c, new_tokens=125), policy)
    file.write_text("\n")
    with pytest.raises(ValueError, match="no line"):
        train.read_prompts(c, policy)
    with pytest.raises(ValueError, match="prompts must be a text file"):
        train.read_prompts(replace(c, prompts=str(tmp_path / "none.txt")), policy)


def test_learning_rates_fall_in_a_straight_line_and_start_by_the_model():
    optimizer = torch.optim.SGD([dict(params=[torch.zeros(1)], lr=1.0, initial_lr=4.0)])
    rates = []
    for i in range(1, 6):
        train.set_rates(optimizer, i, TrainConfig(iterations=5, final_rate=0.5))
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([4.0, 3.6, 3.2, 2.8, 2.4])


def test_numbers_that_are_not_finite_end_the_run_before_they_are_saved(tmp_path, monkeypatch, capsys):
    real = train.ppo_update

    def broken(*args):
        stats = real(*args)
        return stats | dict(grad_norm=float("nan")) if len(rows_of(tmp_path)) == 3 else stats

    monkeypatch.setattr(train, "ppo_update", broken)
    assert go(tmp_path, **SMALL, iterations=6) == 1
    assert "in iteration 4 grad_norm is nan" in capsys.readouterr().err
    assert checkpoint.steps(tmp_path / "checkpoints") == [2] and len(rows_of(tmp_path)) == 3
    train.check_finite(dict(iteration=1, explained_variance=float("nan")))


# -- resuming -------------------------------------------------------------------------------------------------------


def stop_in(monkeypatch, iteration):
    """Let the next run be interrupted in an iteration, after its update."""

    def stop(row):
        if row["iteration"] == iteration:
            raise KeyboardInterrupt

    monkeypatch.setattr(train, "check_finite", stop)


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The run `finished`, interrupted in its fourth iteration: three rows of history, a checkpoint after two."""
    stop_in(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, **LONG)
    monkeypatch.undo()
    monkeypatch.setenv("RLCOURSE_PROGRESS", "0")
    assert len(rows_of(tmp_path)) == 3 and checkpoint.steps(tmp_path / "checkpoints") == [2]
    return tmp_path


def test_resuming_is_bit_for_bit(finished, stopped, capsys):
    random.seed(9), np.random.seed(9), torch.manual_seed(9)
    assert go(stopped, resume=True) == 0
    assert "going on after iteration 2" in capsys.readouterr().out
    assert same(result(finished), result(stopped))
    events = EventAccumulator(str(stopped / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("score")] == [1, 2, 3, 4, 5]  # the third was written twice


@pytest.mark.parametrize("tail", [b"", b"4", b"4,0.1", b"3,0.5,\n4,0.1\n", b"\0\0\0", b'{"iteration": 4, "pro'])
def test_half_written_lines_and_later_ones_go(finished, stopped, tail):
    for name in ("history.csv", "samples.jsonl"):
        with open(stopped / name, "ab") as file:
            file.write(tail)
    assert go(stopped, resume=True) == 0
    assert same(result(finished), result(stopped))


def test_a_last_line_without_its_end_is_not_whole(tmp_path):
    with records.Records(tmp_path) as first:
        first.add(dict(iteration=1, score=0.123456789))
        first.add(dict(iteration=2, score=0.987654321))
    path = tmp_path / "history.csv"
    path.write_bytes(path.read_bytes()[:-3])  # the row still reads as numbers, wrong ones
    with records.Records(tmp_path, iteration=2):
        pass
    assert path.read_text() == "iteration,score\n1,0.123456789\n"


def test_resuming_takes_the_stored_settings_and_names_a_flag_that_says_otherwise(finished, stopped, capsys):
    assert go(stopped, resume=True, batch=8, clip_eps=0.3) == 1
    error = capsys.readouterr().err
    assert "--clip-eps is 0.3, but the run in" in error and "has 0.2" in error and "--iterations" in error
    assert go(stopped, resume=True, batch=8, iterations=5, sample_every=2, save_every=1, keep=3) == 0
    assert sorted(checkpoint.steps(stopped / "checkpoints")) == [3, 4, 5]
    assert (stopped / "history.csv").read_bytes() == (finished / "history.csv").read_bytes()


def test_more_iterations_and_a_folder_that_has_moved(stopped, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved") / "run"
    shutil.copytree(stopped, moved)
    assert go(moved, resume=True, iterations=3) == 0 and len(rows_of(moved)) == 3
    assert go(moved, resume=True, iterations=4) == 0 and len(rows_of(moved)) == 4
    before = result(moved)
    assert go(moved, resume=True) == 0  # nothing is left to do
    assert same(before, result(moved))


def test_a_fresh_start_needs_a_fresh_folder(stopped, capsys):
    assert go(stopped, **LONG) == 1
    assert "has checkpoints" in (error := capsys.readouterr().err) and "--resume" in error
    assert len(rows_of(stopped)) == 3


def test_resuming_before_the_first_checkpoint_starts_from_the_beginning(finished, tmp_path, monkeypatch, capsys):
    stop_in(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        go(tmp_path, **LONG)
    monkeypatch.undo()
    assert len(rows_of(tmp_path)) == 1
    assert go(tmp_path, resume=True, **LONG) == 0
    assert "starting from the beginning" in capsys.readouterr().out
    assert same(result(finished), result(tmp_path))


def test_a_damaged_checkpoint_costs_one_interval_and_all_damaged_are_an_error(finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / "checkpoints" / "step_000005" / "model.safetensors").write_bytes(b"")
    (tmp_path / "checkpoints" / ".step_000005.tmp").mkdir()
    with pytest.warns(UserWarning, match=r"step_000005: model\.safetensors has 0 bytes"):
        assert go(tmp_path, resume=True) == 0
    assert "going on after iteration 4" in capsys.readouterr().out
    assert same(result(finished), result(tmp_path))
    for folder in (tmp_path / "checkpoints").glob("step_*"):
        (folder / "state.json").unlink()
    with pytest.warns(UserWarning):
        assert go(tmp_path, resume=True) == 1
    assert "no checkpoint in" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["checkpoint", "history", "final"])
def test_a_full_disk_ends_the_run_clearly_and_it_goes_on_later(finished, tmp_path, monkeypatch, capsys, where):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def full_later(*args):
        history = tmp_path / "history.csv"
        return full() if history.exists() and history.read_bytes().count(b"\n") > 3 else real(*args)

    if where == "final":
        monkeypatch.setattr(GPT2Policy, "save_pretrained", full)
    else:
        module = dict(checkpoint=checkpoint, history=records)[where]
        real = module._write
        monkeypatch.setattr(module, "_write", full_later)
    assert go(tmp_path, **LONG) == 1
    error = capsys.readouterr().err
    assert "No space left on device" in error and "--resume" in error and "Traceback" not in error
    monkeypatch.undo()
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "final").exists()
    assert go(tmp_path, resume=True) == 0
    assert same(result(finished), result(tmp_path))


@pytest.mark.slow
def test_twenty_kills_lose_nothing(tmp_path, monkeypatch):
    """SIGKILL at random moments, some while loading, some inside a save; the result is that of a run without any."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["rlcourse.train", "rlcourse.reward_model", "transformers.models.gpt2.modeling_gpt2"]
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given = SMALL | dict(iterations=24, epochs=1, kl_target=3.0, horizon=64.0)
    out, rng = tmp_path / "killed", random.Random(0)

    def live(out, resume=True):
        process = context.Process(target=train.main, args=(given | dict(out=str(out)), resume))
        process.start()
        return process

    live(tmp_path / "whole", False).join()
    history, folder, inside, newest = out / "history.csv", out / "checkpoints", 0, 0
    for i, target in enumerate(sorted(rng.sample(range(1, 22), 20))):
        before = history.stat().st_ino if history.exists() else None
        process = live(out)
        if i % 5 == 4:
            time.sleep(rng.uniform(0, 0.5))
        else:  # once it writes, at its next save or a while after its target
            wait_for(process, lambda: history.exists() and history.stat().st_ino != before)  # noqa: B023
            if i % 5 == 1:
                wait_for(process, lambda: any(folder.glob(".step_*.tmp")))
            else:
                wait_for(process, lambda: history.read_bytes().count(b"\n") > target)  # noqa: B023
                time.sleep(rng.uniform(0, 0.15))
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        inside += any(folder.glob(".step_*.tmp"))
        with warnings.catch_warnings(action="error"):
            found = checkpoint.load_latest(folder)
        rows = max(0, history.read_bytes().count(b"\n") - 1) if history.exists() else 0
        step = found.step if found else 0
        assert max(newest, rows - given["save_every"]) <= step, "more than one interval was lost"
        newest = step
    assert inside, "no kill fell inside a save"
    live(out).join()
    assert same(result(tmp_path / "whole"), result(out)) and len(rows_of(out)) == 24


def wait_for(process, happened) -> None:
    while process.is_alive() and not happened():
        time.sleep(0.001)


# -- several processes ----------------------------------------------------------------------------------------------


def launch(given: dict, processes: int) -> list[dict[str, torch.Tensor]]:
    """Run tests/train_processes.py; -> what each process kept.

    With torchrun, which finds a free port: `accelerate launch --cpu` starts one process, whatever it is told.
    """
    launcher = f"-m torch.distributed.run --standalone --nproc-per-node {processes}".split() if processes > 1 else []
    command = [sys.executable, *launcher, str(ROOT / "tests" / "train_processes.py"), json.dumps(given)]
    env = os.environ | dict(ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [load_file(Path(given["out"]) / f"process_{i}_of_{processes}.safetensors") for i in range(processes)]


@pytest.mark.slow
def test_two_processes_draw_the_rollouts_of_one_and_give_its_gradients(tmp_path):
    prompts = tmp_path / "prompts.txt"
    long = "I have seen this film with my two brothers, and we all found it"
    prompts.write_text("\n".join(["It was", "The", "A film", long, "We saw"]))
    given = dict(
        prompts=str(prompts), iterations=3, batch=10, minibatches=3, epochs=1, new_tokens=40, max_grad_norm=1e9,
        kl_target=3.0, horizon=64.0, learning_rate=2e-5, ent_coef=0.01, seed=1,
    )  # fmt: skip
    (one,) = launch(given | dict(out=str(tmp_path / "one")), 1)
    two = launch(given | dict(out=str(tmp_path / "two")), 2)
    for name in ("mask", "prompt_mask"):  # what the test is about does occur: the processes' own longest rows differ
        longest = [[half.sum(1).max().item() for half in one[f"{i} {name}"].chunk(2)] for i in range(3)]
        assert any(a != b for a, b in longest), name
    assert sum(name.startswith("gradient") for name in one) == 3 * 3  # of 4, 3 and 3 rows
    for process in two:
        assert process.keys() == one.keys()
        for name, x in one.items():
            if x.dtype == torch.int64 or name.endswith("mask"):
                assert torch.equal(process[name], x), name
            elif name.startswith("gradient"):  # its norm is about 4
                assert (process[name] - x).abs().max() < 1e-6 * x.norm().clamp(min=1), name
            else:  # what stands behind the mask is of no account
                assert ((process[name] - x) * one[f"{name[0]} mask"]).abs().max() < 1e-5, name
    assert all(torch.equal(x, two[1][name]) for name, x in two[0].items())
    a, b = rows_of(tmp_path / "one"), rows_of(tmp_path / "two")
    for x, y in zip(a, b, strict=True):
        assert {k: float(v) for k, v in x.items()} == pytest.approx({k: float(v) for k, v in y.items()}, abs=1e-4)
    assert [s["response"] for s in samples_of(tmp_path / "one")] == [
        s["response"] for s in samples_of(tmp_path / "two")
    ]


def test_a_batch_that_cannot_be_shared_is_refused():
    two = SimpleNamespace(num_processes=2, process_index=1, distributed_type=parallel.DistributedType.MULTI_CPU)
    parallel.check_shares(16, two)
    with pytest.raises(ValueError, match="batch must be a multiple of the 2 processes, got 13"):
        parallel.check_shares(13, two)
    assert parallel.my_rows(6, two) == range(3, 6)
    two.distributed_type = parallel.DistributedType.FSDP
    with pytest.raises(ValueError, match="FSDP"):
        parallel.check_shares(16, two)
    parallel.check_shares(13, Accelerator())  # one process takes any


def test_one_process_shares_nothing():
    policy, accelerator = object(), Accelerator()
    assert parallel.share(policy, accelerator) is policy
    rollout, scores = object(), object()
    assert parallel.gather_rollout(rollout, scores, 0, accelerator) == (rollout, scores)


# -- adapters -------------------------------------------------------------------------------------------------------

ADAPTED = SMALL | dict(iterations=4, lora_rank=4, learning_rate=1e-2)


def test_only_adapters_and_value_head_change_and_the_reference_stays(tmp_path, monkeypatch):
    run = train.prepare(TrainConfig(**ADAPTED, out=str(tmp_path)))
    before = {name: x.clone() for name, x in run.policy.named_parameters()}
    trainable = checkpoint.trainable(run.policy)
    assert all("lora_" in name or name.startswith("value_head") for name in trainable) and len(trainable) > 8
    assert sum(x.numel() for x in trainable.values()) < 0.05 * sum(x.numel() for x in before.values())
    plain = GPT2Policy.from_pretrained("tiny")
    prompts = load_prompts()[:4]
    inputs, (actions, _) = plain.encode(prompts), plain.encode_responses([" good", " a bad film", " x", " y"])
    expected = plain.evaluate(inputs, actions)[0]
    for policy in (run.policy, run.ref_policy):  # adapters begin at zero
        assert torch.allclose(policy.evaluate(inputs, actions)[0], expected, atol=1e-6)
    assert not any(isinstance(m, torch.nn.Dropout) and m.training for m in run.policy.lm.modules())
    monkeypatch.setattr(train, "merge_adapters", lambda policy: None)
    monkeypatch.setattr(GPT2Policy, "save_pretrained", lambda policy, folder: None)
    train.train(run)
    after = dict(run.policy.named_parameters())
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(trainable)
    assert torch.allclose(run.ref_policy.evaluate(inputs, actions)[0], expected, atol=1e-6)
    assert not torch.allclose(run.policy.evaluate(inputs, actions)[0], expected, atol=1e-3)
    assert checkpoint.trainable(run.policy).keys() == trainable.keys()  # the reference's turn left them trainable
    assert checkpoint.load_latest(tmp_path / "checkpoints").tensors["model"].keys() == trainable.keys()


def test_adapters_resume_bit_for_bit_and_end_up_merged(tmp_path, monkeypatch):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    policy = train.train(train.prepare(TrainConfig(**ADAPTED, out=str(whole))))
    stop_in(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        go(stopped, **ADAPTED)
    monkeypatch.undo()
    assert go(stopped, resume=True) == 0
    assert same(result(whole), result(stopped))
    final = GPT2Policy.from_pretrained(whole / "final", device="cpu")
    assert final.state_dict().keys() == GPT2Policy.from_pretrained("tiny").state_dict().keys()
    assert all(torch.equal(x, y) for x, y in zip(policy.state_dict().values(), final.state_dict().values()))
    run = train.prepare(TrainConfig(**ADAPTED, out=str(whole)), checkpoint.load_latest(whole / "checkpoints"))
    inputs, (actions, _) = final.encode(["The film is"]), final.encode_responses([" good"])
    assert torch.allclose(final.evaluate(inputs, actions)[0], run.policy.evaluate(inputs, actions)[0], atol=1e-5)
    assert not torch.allclose(
        final.evaluate(inputs, actions)[0], run.ref_policy.evaluate(inputs, actions)[0], atol=1e-3
    )


def test_adapters_on_a_model_with_other_linear_layers():
    """Llama keeps its weights the other way round than GPT-2; its output layer gets no adapter."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from rlcourse.gpt2 import TINY

    config = LlamaConfig(
        vocab_size=4096, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    policy = GPT2Policy(LlamaForCausalLM(config), AutoTokenizer.from_pretrained(TINY))
    ref_policy = train.add_adapters(policy, 2)
    adapted = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name in checkpoint.trainable(policy.lm)}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    rollout = sample_responses(policy, ["It was"], 3)
    assert torch.allclose(ref_policy.evaluate(rollout.inputs, rollout.actions)[0], rollout.old_logprobs, atol=1e-5)
