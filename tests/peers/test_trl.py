"""The same numbers through TRL: `make peers` makes an environment that has it and runs these.

The trainers' own loss methods are called on numbers that both get; nothing is loaded and nothing is trained.
"""

from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from rlcourse.baselines import group_advantages
from rlcourse.losses import grpo_loss, sequence_surrogate_loss
from rlcourse.preference_losses import dpo_loss, ipo_loss

pytestmark = pytest.mark.peers
B, T, V = 8, 6, 11


@pytest.fixture
def trl():
    return pytest.importorskip("trl")


def trainer(**settings):
    """What stands in for `self`: settings, and metrics that go nowhere."""
    fake = MagicMock(**settings)
    fake.model.training = False
    fake._metrics = {"eval": defaultdict(list)}
    fake.accelerator = SimpleNamespace(
        device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x
    )
    return fake


def randn(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grpo_numbers():
    lengths = torch.tensor([6, 1, 3, 6, 2, 5, 4, 6])
    mask = (torch.arange(T) < lengths[:, None]).float()
    logprobs = (-randn(B, T, seed=0).abs()).requires_grad_()
    old, ref = (logprobs.detach() + 0.3 * randn(B, T, seed=s) for s in (1, 2))
    return logprobs, old, ref, mask, group_advantages(randn(B, seed=3), 4, "std")


def their_grpo_loss(loss_type, level, kl_coef):
    from trl import GRPOTrainer

    logprobs, old, ref, mask, advantages = grpo_numbers()
    fake = trainer(
        beta=kl_coef, loss_type=loss_type, importance_sampling_level=level, epsilon_low=0.2, epsilon_high=0.2,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, use_vllm=False, aux_loss_enabled=False,
        _entropy_bonus_enabled=False, args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
    )  # fmt: skip
    fake._get_per_token_logps_and_entropies.return_value = (logprobs, torch.zeros(B, T), None)
    ids = torch.zeros(B, T, dtype=torch.long)
    inputs = dict(
        prompt_ids=ids[:, :2], prompt_mask=torch.ones(B, 2), completion_ids=ids, completion_mask=mask,
        advantages=advantages, old_per_token_logps=old, ref_per_token_logps=ref,
    )  # fmt: skip
    loss = GRPOTrainer._compute_loss(fake, None, inputs)
    return loss, torch.autograd.grad(loss, logprobs)[0]


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_grpo_loss(trl, kl_coef):
    logprobs, old, ref, mask, advantages = grpo_numbers()
    ours = grpo_loss(logprobs, old, advantages, mask, 0.2, ref, kl_coef)
    theirs = their_grpo_loss("grpo", "token", kl_coef)
    torch.testing.assert_close((ours, torch.autograd.grad(ours, logprobs)[0]), theirs, atol=1e-6, rtol=1e-5)
    assert ours.abs() > 0.01


def test_sequence_ratios(trl):
    logprobs, old, _, mask, advantages = grpo_numbers()
    ours = sequence_surrogate_loss(logprobs, old, advantages, mask, 0.2)
    theirs = their_grpo_loss("grpo", "sequence", 0.0)
    torch.testing.assert_close((ours, torch.autograd.grad(ours, logprobs)[0]), theirs, atol=1e-6, rtol=1e-5)


def their_preference_loss(loss_type, logits, ids, mask, ref):
    from trl import DPOTrainer

    fake = trainer(
        beta=0.3, loss_types=[loss_type], loss_weights=[1.0], f_divergence_type="reverse_kl", ld_alpha=None,
        precompute_ref_logps=True, aux_loss_enabled=False, use_weighting=False, _total_train_tokens=0,
    )  # fmt: skip
    inputs = dict(input_ids=ids, completion_mask=mask, attention_mask=torch.ones_like(ids))
    inputs |= dict(ref_chosen_logps=ref[:B], ref_rejected_logps=ref[B:])
    return DPOTrainer._compute_loss(fake, lambda **_: SimpleNamespace(logits=logits), inputs, False)


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_preference_losses(trl, loss_type):
    """Theirs reads logits and ids; ours the sums. Their IPO takes the mean over a response's tokens, not the sum."""
    logits = randn(2 * B, T, V, seed=0).requires_grad_()
    ids = torch.randint(V, (2 * B, T), generator=torch.Generator().manual_seed(1))
    ends = torch.randint(3, T + 1, (2 * B, 1), generator=torch.Generator().manual_seed(2))
    mask = ((torch.arange(T) >= 2) & (torch.arange(T) < ends)).long()  # two tokens of prompt
    ref = randn(2 * B, seed=3) - 8
    theirs = their_preference_loss(loss_type, logits, ids, mask, ref)
    logprobs = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    sums, lengths = (logprobs * mask[:, 1:]).sum(1), mask.sum(1)
    if loss_type == "ipo":
        ours = ipo_loss(*(sums / lengths).chunk(2), *(ref / lengths).chunk(2), 0.3)
    else:
        ours = dpo_loss(*sums.chunk(2), *ref.chunk(2), 0.3)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)
