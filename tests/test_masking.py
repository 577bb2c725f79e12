import statistics

import pytest
import torch

from rlcourse.masking import last_counted, masked_mean, masked_whiten

NAN, INF = float("nan"), float("inf")
LENGTHS = [1, 2, 3, 7, 33]


def counted(x, mask):
    """The counted numbers as a plain list."""
    return [number for row, ones in zip(x.tolist(), mask.tolist()) for number, one in zip(row, ones) if one]


@pytest.mark.parametrize("T", LENGTHS)
def test_mean_is_that_of_the_counted_numbers(T, randn, prefix_mask):
    x, mask = randn(6, T), prefix_mask(T)
    assert masked_mean(x, mask).item() == pytest.approx(statistics.fmean(counted(x, mask)), abs=1e-12)


def test_mean_weighs_actions_alike_and_not_rows():
    x = torch.tensor([[1.0, 1.0, 1.0], [5.0, 9.0, 9.0]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert masked_mean(x, mask) == 2  # the mean of the two rows' means would be 3


def test_mean_keeps_the_sign():
    assert masked_mean(torch.tensor([[-3.0, -1.0]]), torch.ones(1, 2)) == -2


def test_mean_of_nothing_is_zero():
    assert masked_mean(torch.full((2, 3), 7.0), torch.zeros(2, 3)) == 0


@pytest.mark.parametrize("T", LENGTHS)
def test_whitening_uses_mean_and_population_variance(T, randn, prefix_mask):
    x, mask = 3 * randn(6, T) + 5, prefix_mask(T)
    mean, variance = statistics.fmean(counted(x, mask)), statistics.pvariance(counted(x, mask))
    scale = (variance + 1e-8) ** 0.5
    centred, scaled = masked_whiten(x, mask), masked_whiten(x, mask, shift_mean=False)
    for b in range(6):
        for t in range(T):
            number, counts = x[b, t].item(), mask[b, t].item()
            assert centred[b, t].item() == pytest.approx((number - mean) / scale if counts else 0, abs=1e-10)
            assert scaled[b, t].item() == pytest.approx((number - mean) / scale + mean if counts else 0, abs=1e-10)


def test_whitening_by_hand():
    x, mask = torch.tensor([[1.0, 3.0, 50.0]]), torch.tensor([[1.0, 1.0, 0.0]])
    torch.testing.assert_close(masked_whiten(x, mask), torch.tensor([[-1.0, 1.0, 0.0]]))
    torch.testing.assert_close(masked_whiten(x, mask, shift_mean=False), torch.tensor([[1.0, 3.0, 0.0]]))


def test_whitening_ignores_shift_and_scale(randn, prefix_mask):
    x, mask = randn(6, 9), prefix_mask(9)
    torch.testing.assert_close(masked_whiten(4 * x - 7, mask), masked_whiten(x, mask))
    torch.testing.assert_close(masked_whiten(-x, mask), -masked_whiten(x, mask))


def test_whitening_equal_values_gives_zero(prefix_mask):
    mask = prefix_mask(5)
    x = torch.full_like(mask, 4.0)
    assert (masked_whiten(x, mask) == 0).all()
    assert torch.equal(masked_whiten(x, mask, shift_mean=False), 4 * mask)


@pytest.mark.parametrize("shift_mean", [True, False])
def test_whitening_nothing_gives_zeros(shift_mean):
    assert (masked_whiten(torch.full((2, 3), 7.0), torch.zeros(2, 3), shift_mean) == 0).all()


@pytest.mark.parametrize("function", [masked_mean, masked_whiten])
def test_padding_changes_nothing(function, randn, prefix_mask):
    x, mask = randn(6, 7), prefix_mask(7)
    padded = function(torch.cat([x, randn(6, 3)], dim=1), torch.cat([mask, mask[:, :3] * 0], dim=1))
    if padded.ndim == 2:
        assert (padded[:, 7:] == 0).all()
        padded = padded[:, :7]
    torch.testing.assert_close(padded, function(x, mask))


@pytest.mark.parametrize("bad", [INF, -INF, NAN])
@pytest.mark.parametrize("function", [masked_mean, masked_whiten])
def test_masked_inf_and_nan_leak_neither_forward_nor_backward(function, bad, randn, prefix_mask):
    clean, mask, weights = randn(6, 7), prefix_mask(7), randn(6, 7)
    results = []
    for filler in (0.0, bad):
        x = torch.where(mask > 0, clean, filler).requires_grad_()
        (function(x, mask) * weights).sum().backward()
        results.append((function(x, mask).detach(), x.grad))
    torch.testing.assert_close(results[1], results[0])
    assert (results[1][1][mask == 0] == 0).all()


@pytest.mark.parametrize("function", [masked_mean, masked_whiten])
@pytest.mark.parametrize(
    "x, mask, error, message",
    [
        (torch.ones(2, 3), torch.ones(2, 4), ValueError, r"x must have the shape of mask \(2, 4\), got \(2, 3\)"),
        (torch.ones(2), torch.ones(2), ValueError, r"mask must be \[B, T\], got shape \(2,\)"),
        (torch.ones(2, 3), torch.ones(2, 3) > 0, TypeError, r"mask must hold .* 0 and 1, got torch.bool"),
        (torch.ones(2, 3), torch.full((2, 3), 0.5), ValueError, "mask must hold only 0 and 1"),
        (torch.ones(2, 3), torch.full((2, 3), -1.0), ValueError, "mask must hold only 0 and 1"),
        (torch.ones(2, 3), torch.full((2, 3), NAN), ValueError, "mask must hold only 0 and 1"),
    ],
)
def test_bad_input_is_named(function, x, mask, error, message):
    with pytest.raises(error, match=message):
        function(x, mask)


def test_a_mask_with_a_gap_is_named():
    with pytest.raises(ValueError, match="ones, then zeros"):
        masked_mean(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 1.0]]))


def test_last_counted_is_the_end_of_each_row():
    mask = torch.tensor([[1.0, 1, 0], [1, 1, 1], [1, 0, 0], [0, 0, 0]])
    expected = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]])
    assert torch.equal(last_counted(mask), expected)
