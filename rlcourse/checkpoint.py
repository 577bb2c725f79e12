"""Checkpoints that are whole or not there: written beside, flushed, renamed; verified by SHA-256 before they count.

A checkpoint is a folder `step_000040` with safetensors files and `state.json`, which holds the state, and size and hash
of every other file and of itself. Nothing is pickled.
"""

import base64
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

FORMAT = 1
Tensors = dict[str, Tensor]


class CheckpointError(RuntimeError):
    """Something could not be written, or nothing good is left to read; the message says how to go on."""


@dataclass(frozen=True)
class Checkpoint:
    """What `save` was given. step: the number in the folder's name. tensors: {file name without ending: its tensors}"""

    step: int
    tensors: dict[str, Tensors]
    state: dict


def save(folder: str | Path, step: int, tensors: dict[str, Tensors], state: dict, keep: int = 2) -> Path:
    """Write `folder/step_<step>` in one step, then remove all but the newest `keep` checkpoints; returns its path.

    tensors: {"model": {name: Tensor}, ...}, one safetensors file each. state: what JSON can hold, without nan.
    Raises CheckpointError when it cannot be written, a full disk for one: what was half-written is gone by then.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    folder = Path(folder)
    target = _path(folder, step)
    needed = sum(x.nbytes for part in tensors.values() for x in part.values())
    with writing(target, folder, needed), new_folder(target) as beside:
        files = {}
        for name, part in tensors.items():  # one after the other: only one copy is in memory
            part = {key: x.detach().cpu().contiguous() for key, x in part.items()}
            files[f"{name}.safetensors"] = _write(beside / f"{name}.safetensors", safetensors.torch.save(part))
        body = dict(format=FORMAT, step=step, files=files, state=state)
        text = json.dumps(dict(sha256=_sha256(_canonical(body)), **body), indent=1, allow_nan=False)
        _write(beside / "state.json", text.encode())
    for old in sorted(steps(folder))[:-keep]:
        _remove(_path(folder, old))
    return target


def load_latest(folder: str | Path) -> Checkpoint | None:
    """The newest checkpoint whose every file is as it was written, on the CPU; None where there has never been one.

    Warns of each newer one that it must skip, with the reason. Raises CheckpointError when all of them are damaged.
    """
    folder, reasons = Path(folder), []
    for step in sorted(steps(folder), reverse=True):
        try:
            return _load(_path(folder, step), step)
        except (OSError, ValueError) as error:
            reasons.append(f"step_{step:06d}: {error}")
            warnings.warn(f"checkpoint skipped, {reasons[-1]}", stacklevel=2)
    if reasons:
        raise CheckpointError(f"no checkpoint in {folder} can be used. " + "; ".join(reasons))
    return None


def tidy(folder: str | Path, step: int) -> None:
    """Before a run goes on after `step`: half-written folders go, newer checkpoints, which were skipped, step aside."""
    for path in list(Path(folder).glob(".*.tmp")):
        _remove(path)
    for newer in [n for n in steps(folder) if n > step]:
        path = _path(folder, newer)
        aside = path.with_name(f"damaged_{path.name}")
        _remove(aside)
        path.rename(aside)


def steps(folder: str | Path) -> list[int]:
    """The steps of which `folder` has a checkpoint, in no order, whether good or damaged."""
    found = [re.fullmatch(r"step_(\d{6,})", path.name) for path in Path(folder).glob("step_*")]
    return [int(match[1]) for match in found if match]


@contextlib.contextmanager
def writing(what: str | Path, folder: str | Path, needed: int | None = None) -> Iterator[None]:
    """Turns an error in the block, which writes `what`, into a CheckpointError that says how to go on.

    folder: holds the checkpoints. needed: bytes, if known.
    """
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        last = max(steps(folder), default=None)
        room = "" if needed is None else f" {needed / 1e6:.1f} MB are needed."
        with contextlib.suppress(OSError):
            room += f" {shutil.disk_usage(folder).free / 1e6:.1f} MB are free."
        good = "There is no checkpoint yet." if last is None else f"The last good one is {_path(folder, last)}."
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"cannot write {what}: {reason}.{room} {good} Make room, then go on with --resume"
        ) from error


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes `target`, in place of an older one, when the block ends without an error.

    All of it is on the disk before the name is; after an error or a kill there is no `target`, or the older one.
    """
    beside = target.with_name(f".{target.name}.tmp")
    _remove(beside)
    beside.mkdir(parents=True)
    try:
        yield beside
        for path in [*beside.rglob("*"), beside]:
            _sync(path)
        if target.exists():  # a folder cannot be renamed onto one that holds something
            _remove(target)
        os.rename(beside, target)
    except BaseException:
        _remove(beside)
        raise
    _sync(target.parent)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """The state of an optimizer, {"<number of the parameter>.<name>": Tensor}; all of AdamW's is tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{i}.{name}": x for i, entries in state.items() for name, x in entries.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Tensors) -> None:
    """Give an optimizer over the same parameters the state that `optimizer_tensors` took."""
    state: dict[int, Tensors] = {}
    for key, x in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = x
    optimizer.load_state_dict(dict(state=state, param_groups=optimizer.state_dict()["param_groups"]))


def load_parameters(model: torch.nn.Module, tensors: Tensors) -> None:
    """Copy `tensors` into the trainable parameters of the same names; raises ValueError where they do not match."""
    parameters = trainable(model)
    if unlike := sorted(set(parameters) ^ set(tensors)):
        raise ValueError(f"the checkpoint is of another model: only one of the two has {unlike[0]!r}")
    with torch.no_grad():
        for name, x in tensors.items():
            if x.shape != parameters[name].shape:
                raise ValueError(f"{name} is {list(x.shape)} in the checkpoint, {list(parameters[name].shape)} here")
            parameters[name].copy_(x)


def trainable(model: torch.nn.Module) -> Tensors:
    """The parameters that are being trained, by name; one that is used in two places comes once."""
    return {name: x for name, x in model.named_parameters() if x.requires_grad}


def random_states() -> dict:
    """The states of all global generators (Python, NumPy, torch on CPU and CUDA), as JSON can hold them."""
    kind, keys, *rest = np.random.get_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return dict(
        python=random.getstate(), numpy=[kind, keys.tolist(), *rest],
        torch=_text(torch.get_rng_state()), cuda=[_text(x) for x in cuda],
    )  # fmt: skip


def set_random_states(states: dict) -> None:
    """Continue where `random_states` was taken; those of CUDA only on as many devices as there were then."""
    version, keys, gauss = states["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_bytes(states["torch"]))
    if torch.cuda.is_available() and torch.cuda.device_count() == len(states["cuda"]):
        torch.cuda.set_rng_state_all([_bytes(x) for x in states["cuda"]])


def _path(folder: str | Path, step: int) -> Path:
    return Path(folder) / f"step_{step:06d}"


def _load(path: Path, step: int) -> Checkpoint:
    try:
        body = json.loads((path / "state.json").read_text(encoding="utf-8"))
        whole = body.pop("sha256") == _sha256(_canonical(body))
    except (ValueError, KeyError, TypeError, AttributeError):  # no JSON, or JSON of something else
        whole = False
    if not whole:
        raise ValueError("state.json is not as it was written")
    if (body["format"], body["step"]) != (FORMAT, step):
        raise ValueError(f"state.json is of format {body['format']} and step {body['step']}, not {FORMAT} and {step}")
    tensors = {}
    for name, expected in body["files"].items():
        data = (path / name).read_bytes()
        if len(data) != expected["bytes"]:
            raise ValueError(f"{name} has {len(data)} bytes instead of {expected['bytes']}")
        if _sha256(data) != expected["sha256"]:
            raise ValueError(f"{name} is not as it was written: its SHA-256 differs")
        tensors[name.removesuffix(".safetensors")] = safetensors.torch.load(data)
    return Checkpoint(step, tensors, body["state"])


def _write(path: Path, data: bytes) -> dict:
    """Python's own writing, so that a full disk is an OSError; returns what `state.json` says of the file."""
    with open(path, "wb") as file:
        file.write(data)
    return dict(bytes=len(data), sha256=_sha256(data))


def _sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    """Remove a folder that may not exist: under its name it is gone at once, so that no half of it is ever seen."""
    if folder.exists():
        gone = folder.with_name(f".{folder.name.strip('.')}.gone.tmp")
        shutil.rmtree(gone, ignore_errors=True)
        folder.rename(gone)
        shutil.rmtree(gone)


def _canonical(body: dict) -> bytes:
    return json.dumps(body, sort_keys=True).encode()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _text(state: Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
