"""What a softmax over a large vocabulary says of the chosen actions, with as few [B, T, V] tensors as possible."""

import torch
from torch import Tensor


def action_logprobs(logits: Tensor, actions: Tensor, with_entropy: bool = False) -> tuple[Tensor, ...]:
    """Log-probabilities of the actions under softmax(logits) and, if asked for, the entropies of that softmax.

    logits: [B, T, V] float32; -inf forbids a word, but never all. actions: [B, T] -> one or two tensors [B, T], nats.

        p = softmax(logits)        logprob = log p(action)        entropy = -sum_v p(v) * log p(v)

    `log_softmax`, `gather`, `exp` and `sum` say the same, and autograd keeps three tensors [B, T, V] for that. Here
    only p is kept; the gradients are

        d logprob / d logits(v) = 1[v = action] - p(v)        d entropy / d logits(v) = -p(v) * (log p(v) + entropy)
    """
    if logits.ndim != 3 or logits.shape[:2] != actions.shape:
        raise ValueError(f"logits must be [B, T, V] for actions {tuple(actions.shape)}, got {tuple(logits.shape)}")
    return _ActionLogprobs.apply(logits, actions, with_entropy)


class _ActionLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, actions: Tensor, with_entropy: bool) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)  # a gradient that nobody asked for stays None
        p = logits.softmax(-1)
        log_total = logits.amax(-1, keepdim=True) - p.amax(-1, keepdim=True).log()  # log sum_v exp(logits(v))
        logprobs = (logits.gather(-1, actions[..., None]) - log_total)[..., 0]
        if not with_entropy:
            ctx.save_for_backward(p, actions)
            return (logprobs,)
        entropies = -(p * (logits - log_total)).nansum(-1)  # a forbidden word is 0 * -inf there, and adds nothing
        ctx.save_for_backward(p, actions, entropies)
        return logprobs, entropies

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, of_logprobs: Tensor | None, of_entropies: Tensor | None = None) -> tuple[Tensor | None, ...]:
        p, actions, *entropies = ctx.saved_tensors
        gradient = None
        if of_logprobs is not None:
            gradient = p * -of_logprobs[..., None]
            gradient.scatter_add_(-1, actions[..., None], of_logprobs[..., None])
        if of_entropies is not None:
            part = (torch.special.entr(p) - p * entropies[0][..., None]) * of_entropies[..., None]
            gradient = part if gradient is None else gradient + part
        return gradient, None, None
