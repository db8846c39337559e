"""The state of the random generators that a pass of training draws from."""

import torch


class RandomState:
    """The state of PyTorch's random generators (dropout, NEFTune) at the time of construction."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None

    def restore(self) -> None:
        """Set the generators to this state."""
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)
