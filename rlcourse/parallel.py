"""One run on several processes: which random numbers a row gets, and how rows, losses and gradients are shared.

Every process samples and scores its share of the rows, then holds the whole rollout, so that whitening, minibatches,
losses and statistics are those of one process. Only the model's passes over a minibatch are shared.
"""

import random

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn

from rlcourse.rollout import Prompts, Rollout

SHARED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def keyed_random(*key: int | str) -> random.Random:
    """A generator whose numbers depend on the key alone (through SHA-512), in any process and in any order."""
    return random.Random(" ".join(map(str, key)))


def keyed_uniforms(seed: int, iteration: int, rows: range, T: int) -> Tensor:
    """Uniform numbers in [0, 1) from which rows of the global batch are sampled; [len(rows), T], float64.

    Row i gets the same ones whichever rows are asked for beside it, and the first of them for any T.
    """
    generators = [keyed_random(seed, iteration, row) for row in rows]
    return torch.tensor([[g.random() for _ in range(T)] for g in generators], dtype=torch.float64).view(len(rows), T)


def my_rows(n: int, accelerator: Accelerator) -> range:
    """The rows, of n, which this process takes: as many as every other one."""
    share = n // accelerator.num_processes
    return range(share * accelerator.process_index, share * (accelerator.process_index + 1))


def check_shares(batch: int, accelerator: Accelerator) -> None:
    """Raise ValueError unless a batch can be shared evenly, in a way of sharing that is supported."""
    n = accelerator.num_processes
    if accelerator.distributed_type not in SHARED:
        raise ValueError(f"this course runs on CPUs or NVIDIA GPUs with plain data parallelism, "
                         f"but accelerate is set to {accelerator.distributed_type.value}")  # fmt: skip
    if batch % n:
        raise ValueError(f"batch must be a multiple of the {n} processes, got {batch}")


def gather_rollout(rollout: Rollout, scores: Tensor, eos: int, accelerator: Accelerator) -> tuple[Rollout, Tensor]:
    """Every process's rows, in order, as one rollout, and their scores [B]; the same in all processes.

    Prompts are padded on the left and actions on the right, to the longest of any process, as one process would.
    """
    if accelerator.num_processes == 1:
        return rollout, scores

    def whole(x: Tensor, pad: int = 0, left: bool = False) -> Tensor:
        return accelerator.gather(accelerator.pad_across_processes(x, dim=1, pad_index=pad, pad_first=left))

    inputs = rollout.inputs
    ids, mask = whole(inputs.ids, eos, left=True), whole(inputs.mask, left=True)
    names = ("mask", "old_logprobs", "values", "ref_logprobs")
    columns = {name: whole(getattr(rollout, name)) for name in names}
    inputs = Prompts(ids, mask, accelerator.gather(inputs.temperature))
    everyone = Rollout(inputs, whole(rollout.actions, eos), **columns)
    return everyone, accelerator.gather(scores.to(accelerator.device))


class SharedPolicy:
    """A policy for `ppo_update` whose passes are shared: every process runs the model on its part of the rows.

    `evaluate` gives all rows' numbers in every process, so every process computes the whole loss. The way back takes
    its own rows' part of the gradient, and DistributedDataParallel adds the parts up while they are being computed.
    Where rows cannot be shared evenly, some are computed twice, and count once.
    """

    def __init__(self, policy: nn.Module, accelerator: Accelerator):
        self.policy, self.accelerator = policy, accelerator
        self.module = accelerator.prepare(_Evaluate(policy))

    def parameters(self):
        """The parameters of the policy itself, whose gradients are the same in all processes."""
        return self.policy.parameters()

    def evaluate(self, inputs: Prompts, actions: Tensor, with_entropy: bool = False) -> tuple[Tensor, ...]:
        """As `GPT2Policy.evaluate`: [B, T] each."""
        B, n = len(actions), self.accelerator.num_processes
        rows = torch.arange(-(-B // n) * n, device=actions.device) % B  # the first ones again, up to a multiple of n
        mine = my_rows(len(rows), self.accelerator)
        rows = rows[mine.start : mine.stop]
        columns = self.module(inputs[rows], actions[rows], with_entropy)
        return tuple(_Gather.apply(x, self.accelerator)[:B] for x in columns)


def share(policy: nn.Module, accelerator: Accelerator):
    """The policy that `ppo_update` trains: itself where there is one process, else a `SharedPolicy` of it."""
    return policy if accelerator.num_processes == 1 else SharedPolicy(policy, accelerator)


class _Evaluate(nn.Module):
    """DistributedDataParallel must see `forward`."""

    def __init__(self, policy: nn.Module):
        super().__init__()
        self.policy = policy

    def forward(self, *args):
        return self.policy.evaluate(*args)


class _Gather(torch.autograd.Function):
    """Forward: the rows of all processes. Backward: the gradient of this process's rows, which is all they have.

    Times the number of processes, since DistributedDataParallel averages and the whole gradient is a sum.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, accelerator: Accelerator) -> Tensor:
        ctx.accelerator = accelerator
        return accelerator.gather(rows.contiguous())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        mine = my_rows(len(gradient), ctx.accelerator)
        return gradient[mine.start : mine.stop] * ctx.accelerator.num_processes, None
