import pytest
import torch

from rlcourse.action_logprobs import action_logprobs

B, T, V = 3, 4, 7


@pytest.fixture
def case(randn, generator):
    """Logits in float64, one word forbidden in the first row; actions that avoid it."""
    logits = 3 * randn(B, T, V)
    logits[0, :, 2] = -torch.inf
    actions = torch.randint(3, V, (B, T), generator=generator)
    return logits.requires_grad_(), actions


def by_autograd(logits, actions):
    """The textbook way, word by word."""
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    logprobs = torch.stack([torch.stack([log_p[b, t, actions[b, t]] for t in range(T)]) for b in range(B)])
    terms = [torch.where(x > -torch.inf, x.exp() * x.clamp(min=-1e300), 0) for x in log_p.unbind(-1)]
    return logprobs, -sum(terms)


def both(logits, actions):
    return action_logprobs(logits, actions, True)


@pytest.mark.parametrize("of_logprobs, of_entropies", [(1, 0), (0, 1), (1, 1), (-2, 0.5)])
def test_numbers_and_gradients_are_those_of_autograd(case, randn, of_logprobs, of_entropies):
    logits, actions = case
    weights = randn(2, B, T)

    def numbers_and_gradient(function):
        logprobs, entropies = function(logits, actions)
        total = (of_logprobs * weights[0] * logprobs).sum() + (of_entropies * weights[1] * entropies).sum()
        return logprobs, entropies, torch.autograd.grad(total, logits)[0]

    ours, theirs = numbers_and_gradient(both), numbers_and_gradient(by_autograd)
    torch.testing.assert_close(ours[:2], theirs[:2], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(ours[2], torch.nan_to_num(theirs[2]), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_the_two_alone_has_its_gradient(case, which):
    """Without the other there is no gradient to add, rather than one of zeros."""
    logits, actions = case
    ours, theirs = (
        torch.autograd.grad(function(logits, actions)[which].sum(), logits)[0] for function in (both, by_autograd)
    )
    torch.testing.assert_close(ours, torch.nan_to_num(theirs), atol=1e-12, rtol=1e-12)
    assert ours.abs().max() > 0.1


def test_without_entropies_there_is_one_tensor(case):
    logits, actions = case
    (logprobs,) = action_logprobs(logits, actions)
    assert logprobs.equal(both(logits, actions)[0])
    alone, beside = (torch.autograd.grad(x.sum(), logits)[0] for x in (logprobs, both(logits, actions)[0]))
    assert alone.equal(beside)


def test_improbable_actions_keep_their_logprob(randn):
    """Where float32 has no number for the probability itself, 1e-87 in a softmax is 0."""
    logits = torch.tensor([[[0.0, -200.0, 1e-3]]], requires_grad=True)
    logprobs, entropies = action_logprobs(logits, torch.tensor([[1]]), True)
    assert logprobs.item() == pytest.approx(-200.6937, abs=1e-3) and entropies.item() == pytest.approx(0.6931, abs=1e-4)
    logprobs.sum().backward()
    assert logits.grad.isfinite().all() and logits.grad[0, 0, 1] == 1


def test_float32_over_a_large_vocabulary_is_close_to_float64(generator):
    logits = 4 * torch.randn(2, 3, 50_257, generator=generator)
    actions = torch.randint(50_257, (2, 3), generator=generator)
    for ours, exact in zip(action_logprobs(logits, actions, True), action_logprobs(logits.double(), actions, True)):
        torch.testing.assert_close(ours.double(), exact, atol=5e-5, rtol=1e-6)


def test_a_forbidden_action_has_no_probability():
    logits = torch.tensor([[[0.0, -torch.inf, 0.0]]])
    logprobs, entropies = action_logprobs(logits, torch.tensor([[1]]), True)
    assert logprobs.item() == -torch.inf and entropies.item() == pytest.approx(0.6931, abs=1e-4)


def test_what_is_not_a_number_stays_visible():
    logprobs, _ = action_logprobs(torch.full((1, 1, 3), torch.nan), torch.tensor([[1]]), True)
    assert logprobs.isnan().all()


def test_one_tensor_over_the_vocabulary_is_kept_for_the_way_back(case):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        both(*case)
    assert sum(x.shape[-1] == V for x in kept) == 1


def test_bad_shapes_are_named():
    with pytest.raises(ValueError, match=r"logits must be \[B, T, V\] for actions \(3, 4\), got \(3, 5, 7\)"):
        action_logprobs(torch.zeros(3, 5, 7), torch.zeros(3, 4, dtype=torch.long))
