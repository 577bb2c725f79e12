"""What every test file shares. No test touches the network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports transformers

import pytest
import torch

torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def randn(generator):
    """randn(6, T): seeded normal numbers in float64."""
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def prefix_mask(generator):
    """prefix_mask(T): [6, T], rows of ones then zeros. The first row is all zeros, the second full, the third a one."""

    def make(T, B=6):
        lengths = torch.randint(0, T + 1, (B,), generator=generator)
        lengths[:3] = torch.tensor([0, T, 1])
        return (torch.arange(T) < lengths[:, None]).double()

    return make
