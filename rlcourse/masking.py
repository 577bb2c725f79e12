"""Means, whitening and ends over the counted actions of a [B, T] batch."""

import torch
from torch import Tensor


def check_shapes(mask: Tensor, **tensors: Tensor) -> None:
    """Raise an error unless every tensor is [B, T] like `mask` and, on the CPU, `mask` holds ones, then zeros.

    Mask values are not looked at on a GPU: reading them would make the host wait for the device.
    """
    if mask.ndim != 2:
        raise ValueError(f"mask must be [B, T], got shape {tuple(mask.shape)}")
    if mask.dtype == torch.bool:
        raise TypeError("mask must hold the numbers 0 and 1, got torch.bool; pass mask.float()")
    for name, tensor in tensors.items():
        if tensor.shape != mask.shape:
            raise ValueError(f"{name} must have the shape of mask {tuple(mask.shape)}, got {tuple(tensor.shape)}")
    if mask.device.type != "cpu" or mask.shape[1] == 0:
        return
    # called several times an update, so each check is two small operations
    if not torch.equal(mask * mask, mask):
        raise ValueError("mask must hold only 0 and 1 (1 = this action counts)")
    if not torch.equal(mask.cummin(1).values, mask):
        raise ValueError("each row of mask must be ones, then zeros: what counts is the beginning of a response")


def last_counted(mask: Tensor) -> Tensor:
    """1 at the last counted action of each row, the one whose right neighbour does not count.

    mask: [B, T], ones, then zeros -> [B, T]. A row in which nothing counts has none.
    """
    return mask - torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of x over the counted actions of the whole batch; 0 when nothing counts.

    x, mask: [B, T] -> scalar.    sum(x * mask) / sum(mask)

    Every counted action weighs the same, so a long response weighs more than a short one.
    """
    check_shapes(mask, x=x)
    # where, not x * mask: a masked inf or nan must not leak through inf * 0
    return torch.where(mask > 0, x, 0).sum() / mask.sum().clamp(min=1)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale x to variance 1 over the counted actions, and to mean 0 unless `shift_mean=False`.

    x, mask: [B, T] -> [B, T], 0 where masked. The variance is the population's (divided by n, not n - 1), with 1e-8
    added to it, so that equal values whiten to 0 and never to nan.
    """
    check_shapes(mask, x=x)
    x = torch.where(mask > 0, x, 0)  # before any arithmetic: a masked nan must not reach the gradient either
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask > 0, whitened if shift_mean else whitened + mean, 0)
