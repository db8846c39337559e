"""Counts over a whole job, saved in checkpoints, so that a resumed job reports as an uninterrupted one."""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, Field, PrivateAttr


class Counters(BaseModel):
    """Tokens, time and losses of a job up to its present step. Saved in every checkpoint."""

    tokens: int = Field(0, description="Tokens trained on, padding left out.")
    seconds: float = Field(0.0, description="Time spent in optimizer steps.")
    sample_seconds: float = Field(0.0, description="Time spent on sample answers.")
    first_loss: float | None = Field(None, description="Loss of the first step, before anything was learned.")
    last_loss: float | None = None
    exploded_steps: int = Field(0, description="Steps in a row whose loss was far too high, up to now.")
    window_loss: float = Field(
        0.0, description="Sum of the losses of the steps since the last metrics event."
    )
    window_steps: int = 0
    logged_loss: float | None = None
    evaluated_step: int | None = None
    evaluated_loss: float | None = None
    best_loss: float | None = None
    best_step: int | None = Field(None, description="Where the evaluation loss was `best_loss`.")
    evaluations_without_gain: int = 0
    train_rows_at_once: int | None = Field(
        None, description="Rows in a forward pass since memory ran out; None: as the job asks."
    )
    eval_rows_at_once: int | None = None
    # Of the present step, on the device: reading them waits for all work launched before.
    _losses: list[torch.Tensor] = PrivateAttr(default_factory=list)
    _tokens: list[torch.Tensor] = PrivateAttr(default_factory=list)

    def add_loss(self, loss: torch.Tensor) -> None:
        """Add a pass's share of the present step's loss."""
        self._losses.append(loss)

    def add_tokens(self, tokens: torch.Tensor) -> None:
        """Add the token count of a batch of the present step."""
        self._tokens.append(tokens)

    def drop_losses(self) -> None:
        """Drop the losses of the present step, which is repeated."""
        self._losses = []

    def launched(self) -> "Launched":
        """End the present step once it is launched. Returns its loss and tokens, still being computed."""
        launched = Launched(self._losses, self._tokens)
        self._losses, self._tokens = [], []
        return launched

    def end_step(self, loss: float, tokens: int, seconds: float) -> None:
        """Count a finished optimizer step."""
        self.last_loss = loss
        self.tokens += tokens
        self.seconds += seconds
        if self.first_loss is None:
            self.first_loss = loss
        self.window_loss += loss
        self.window_steps += 1

    def end_window(self) -> float:
        """The mean loss since the last call."""
        self.logged_loss = self.window_loss / self.window_steps
        self.window_loss, self.window_steps = 0.0, 0
        return self.logged_loss


class Launched:
    """Loss and tokens of a launched step, copied from the device while later steps are launched."""

    def __init__(self, losses: Sequence[torch.Tensor], tokens: Sequence[torch.Tensor]) -> None:
        self._passes = len(losses)
        values = torch.stack([value.detach().double() for value in (*losses, *tokens)])
        self._ready: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()
        else:
            self._values = values

    def wait(self) -> tuple[float, int]:
        """Wait until the device has finished the step. Returns (loss, tokens)."""
        if self._ready:
            self._ready.synchronize()
        values = self._values.tolist()
        return sum(values[: self._passes]), round(sum(values[self._passes :]))
