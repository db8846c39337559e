"""Where the kernels run."""

import pytest
import torch


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def tolerance(device: torch.device) -> float:
    """Of products in float32, which a GPU rounds to 10 bits."""
    return 2e-2 if device.type == "cuda" else 1e-4
