"""Checkpoints: bit for bit, whole or not there, and what happens to damaged ones and on a full disk."""

import errno
import json
import os
import random
import shutil
import warnings

import numpy as np
import pytest
import torch

from rlcourse import checkpoint


def parts(step):
    g = torch.Generator().manual_seed(step)
    return {"model": {"w": torch.randn(3, 4, generator=g)}, "optimizer": {"0.step": torch.tensor(float(step))}}


def saved(folder, *numbers, keep=2):
    for step in numbers:
        checkpoint.save(folder, step, parts(step), dict(kl_coef=0.1 * step), keep)
    return folder


def same(found, step):
    assert found.step == step and found.state == dict(kl_coef=0.1 * step)
    assert {k: v.keys() for k, v in found.tensors.items()} == {k: v.keys() for k, v in parts(step).items()}
    for name, part in parts(step).items():
        assert all(torch.equal(found.tensors[name][key], x) for key, x in part.items())
    return True


def test_what_is_saved_is_loaded_and_the_newest_stay(tmp_path):
    saved(tmp_path, 1, 2, 10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_000002", "step_000010"]
    assert {path.name for path in (tmp_path / "step_000010").iterdir()} == {
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    }
    assert same(checkpoint.load_latest(tmp_path), 10)


def test_the_newest_is_found_by_number_beyond_six_digits(tmp_path):
    assert same(checkpoint.load_latest(saved(tmp_path, 999999, 1000000)), 1000000)


def test_no_checkpoint_is_none(tmp_path):
    assert checkpoint.load_latest(tmp_path) is None and checkpoint.load_latest(tmp_path / "nowhere") is None


def test_keep_must_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        saved(tmp_path, 1, keep=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_bit_survives(tmp_path, dtype):
    x = torch.tensor([0.1, -0.0, 1e-30, torch.inf, 3.0]).to(dtype)
    checkpoint.save(tmp_path, 1, {"model": {"x": x, "transposed": torch.eye(3).cumsum(0).T}}, {})
    found = checkpoint.load_latest(tmp_path).tensors["model"]
    assert found["x"].dtype == dtype and torch.equal(found["x"].view(torch.uint8), x.view(torch.uint8))
    assert torch.equal(found["transposed"], torch.eye(3).cumsum(0).T)


# -- damage ---------------------------------------------------------------------------------------------------------


FILES = ("model.safetensors", "optimizer.safetensors", "state.json")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def grow(path):
    path.write_bytes(path.read_bytes() + b" ")


def empty(path):
    path.write_bytes(b"")


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [truncate, empty, flip, remove])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_loaded(tmp_path, file, damage):
    damage(saved(tmp_path, 1, 2) / "step_000002" / file)
    with pytest.warns(UserWarning, match=rf"step_000002.*{file}") as warned:
        assert same(checkpoint.load_latest(tmp_path), 1)
    assert len(warned) == 1


def test_a_tensor_file_that_grew_is_damaged(tmp_path):
    grow(saved(tmp_path, 1, 2) / "step_000002" / "model.safetensors")
    with pytest.warns(UserWarning, match=r"model.safetensors has \d+ bytes instead of \d+"):
        assert same(checkpoint.load_latest(tmp_path), 1)


@pytest.mark.parametrize("text", ["[]", "1", "null", '"x"', "{}", '{"sha256": 1}', '{"sha256": null, "format": 1}'])
def test_json_of_something_else_is_damaged(tmp_path, text):
    (saved(tmp_path, 1, 2) / "step_000002" / "state.json").write_text(text)
    with pytest.warns(UserWarning, match="state.json is not as it was written"):
        assert same(checkpoint.load_latest(tmp_path), 1)


def test_every_changed_byte_of_the_state_is_seen(tmp_path):
    path = saved(tmp_path, 1) / "step_000001" / "state.json"
    whole = path.read_bytes()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
        with pytest.raises(checkpoint.CheckpointError, match=r"state\.json"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            checkpoint.load_latest(tmp_path)


def test_another_format_or_another_folder_is_not_loaded(tmp_path, monkeypatch):
    saved(tmp_path, 1, 2)
    shutil.copytree(tmp_path / "step_000001", tmp_path / "step_000003")
    with pytest.warns(UserWarning, match="step 1, not 1 and 3"):
        assert same(checkpoint.load_latest(tmp_path), 2)
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(checkpoint.CheckpointError, match="format 1"), pytest.warns(UserWarning):
        checkpoint.load_latest(tmp_path)


def test_when_all_are_damaged_every_reason_is_told(tmp_path):
    saved(tmp_path, 1, 2)
    remove(tmp_path / "step_000001" / "model.safetensors")
    flip(tmp_path / "step_000002" / "optimizer.safetensors")
    with pytest.raises(checkpoint.CheckpointError, match=r"step_000002: optimizer.*step_000001: .*model"):
        with pytest.warns(UserWarning):
            checkpoint.load_latest(tmp_path)


def test_a_folder_that_was_being_written_is_never_loaded_and_goes(tmp_path):
    saved(tmp_path, 1, 2)
    (tmp_path / "step_000002").rename(tmp_path / ".step_000002.tmp")
    (tmp_path / ".step_000009.gone.tmp").mkdir()
    assert same(checkpoint.load_latest(tmp_path), 1)
    checkpoint.tidy(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]


def test_a_skipped_checkpoint_steps_aside_and_never_pushes_out_a_good_one(tmp_path):
    flip(saved(tmp_path, 1, 5) / "step_000005" / "state.json")
    checkpoint.tidy(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged_step_000005", "step_000001"]
    saved(tmp_path, 2, 3, 5)
    assert sorted(checkpoint.steps(tmp_path)) == [3, 5] and same(checkpoint.load_latest(tmp_path), 5)
    checkpoint.tidy(tmp_path, 3)  # once more, though that name is taken
    assert checkpoint.steps(tmp_path) == [3]


def test_a_checkpoint_takes_the_place_of_one_of_the_same_name(tmp_path):
    flip(saved(tmp_path, 1, 2) / "step_000002" / "model.safetensors")
    assert same(checkpoint.load_latest(saved(tmp_path, 2)), 2)
    assert len(list(tmp_path.iterdir())) == 2


# -- writing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 1, 2])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing_half_written(tmp_path, monkeypatch, at, number):
    saved(tmp_path, 1)
    real, calls = checkpoint._write, []

    def full(path, data):
        calls.append(path)
        if len(calls) <= at:
            return real(path, data)
        path.write_bytes(data[: len(data) // 2])
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(checkpoint, "_write", full)
    with pytest.raises(checkpoint.CheckpointError) as caught:
        saved(tmp_path, 2)
    for words in ("step_000002", os.strerror(number), "0.0 MB", "are free", "step_000001", "--resume"):
        assert words in str(caught.value)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step_000001"]
    assert same(checkpoint.load_latest(tmp_path), 1) and same(checkpoint.load_latest(saved(tmp_path, 2)), 2)


def test_a_full_disk_at_the_first_checkpoint(tmp_path, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint, "_sync", full)  # some file systems say so only when told to flush
    with pytest.raises(checkpoint.CheckpointError, match="There is no checkpoint yet"):
        saved(tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_all_is_flushed_before_the_name_appears(tmp_path, monkeypatch):
    log, sync, rename = [], checkpoint._sync, os.rename
    monkeypatch.setattr(checkpoint, "_sync", lambda path: (log.append(path.name), sync(path)))
    monkeypatch.setattr(os, "rename", lambda a, b: (log.append("rename"), rename(a, b)))
    saved(tmp_path / "checkpoints", 1)
    assert set(log[:3]) == set(FILES) and log[3:] == [".step_000001.tmp", "rename", "checkpoints"]


def test_an_interrupt_leaves_the_old_folder(tmp_path):
    target = tmp_path / "final"
    with checkpoint.new_folder(target) as beside:
        (beside / "x").write_text("old")
    with pytest.raises(KeyboardInterrupt), checkpoint.new_folder(target) as beside:
        (beside / "x").write_text("new")
        raise KeyboardInterrupt
    assert (target / "x").read_text() == "old" and list(tmp_path.iterdir()) == [target]
    with checkpoint.new_folder(target) as beside:
        (beside / "y").write_text("new")
    assert [path.name for path in target.iterdir()] == ["y"] and list(tmp_path.iterdir()) == [target]


def test_what_json_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError):
        checkpoint.save(tmp_path, 1, parts(1), dict(kl_coef=float("nan")))
    assert not list(tmp_path.iterdir())


# -- what is saved --------------------------------------------------------------------------------------------------


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()


def test_random_states_go_through_json():
    draw()  # leaves half of a pair of normal numbers behind, in Python and in NumPy
    states = json.loads(json.dumps(checkpoint.random_states()))
    expected = [draw(), torch.randn(20).tolist()]
    draw()
    checkpoint.set_random_states(states)
    assert [draw(), torch.randn(20).tolist()] == expected


def trained(seed, steps):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    model[0].bias.requires_grad_(False)
    groups = [dict(params=[p for p in layer.parameters() if p.requires_grad], lr=0.1) for layer in (model[0], model[2])]
    optimizer = torch.optim.AdamW(groups, fused=True)
    return model, optimizer, lambda: [step(model, optimizer) for _ in range(steps)]


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.rand(5, 3)).square().sum().backward()
    optimizer.step()


def test_model_and_optimizer_go_on_bit_for_bit(tmp_path):
    model, optimizer, train = trained(0, 3)
    train()
    tensors = dict(model=checkpoint.trainable(model), optimizer=checkpoint.optimizer_tensors(optimizer))
    assert "0.bias" not in tensors["model"]
    checkpoint.save(tmp_path, 3, tensors, checkpoint.random_states())
    train()
    other, other_optimizer, train = trained(0, 3)
    found = checkpoint.load_latest(tmp_path)
    checkpoint.load_parameters(other, found.tensors["model"])
    checkpoint.load_optimizer_tensors(other_optimizer, found.tensors["optimizer"])
    checkpoint.set_random_states(found.state)
    train()
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), other.parameters()))
    ours, theirs = (checkpoint.optimizer_tensors(o) for o in (optimizer, other_optimizer))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_tied_parameters_are_saved_once(tmp_path):
    model = torch.nn.ModuleDict(dict(a=torch.nn.Linear(2, 2), b=torch.nn.Linear(2, 2)))
    model["b"].weight = model["a"].weight
    checkpoint.save(tmp_path, 1, dict(model=checkpoint.trainable(model)), {})
    expected = model["a"].weight.clone()
    torch.nn.init.zeros_(model["a"].weight)
    checkpoint.load_parameters(model, checkpoint.load_latest(tmp_path).tensors["model"])
    assert torch.equal(model["b"].weight, expected) and model["b"].weight is model["a"].weight


def test_parameters_of_another_model_are_refused():
    model = torch.nn.Linear(2, 1)
    with pytest.raises(ValueError, match="only one of the two has 'bias'"):
        checkpoint.load_parameters(model, dict(weight=model.weight.detach()))
    with pytest.raises(ValueError, match=r"weight is \[3\] in the checkpoint, \[1, 2\] here"):
        checkpoint.load_parameters(model, dict(weight=torch.zeros(3), bias=torch.zeros(1)))
