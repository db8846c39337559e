"""Counts over a whole job, saved in checkpoints, so that a resumed job reports as an uninterrupted one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from pydantic import BaseModel, Field, PrivateAttr

from worker.training.ranks.world import ALONE, World


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
    window_preferences: list[float] = Field(
        [], description="Sums over rated answers since the last metrics event (preference_sums.py)."
    )
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
    _preferences: list[torch.Tensor] = PrivateAttr(default_factory=list)

    def limit_rows(self, train_rows: int | None, eval_rows: int | None) -> None:
        """Make passes of at most so many rows; None: as before."""
        self.train_rows_at_once = _lesser(self.train_rows_at_once, train_rows)
        self.eval_rows_at_once = _lesser(self.eval_rows_at_once, eval_rows)

    def add_loss(self, loss: torch.Tensor) -> None:
        """Add a pass's share of the present step's loss."""
        self._losses.append(loss)

    def add_tokens(self, tokens: torch.Tensor) -> None:
        """Add the token count of a batch of the present step."""
        self._tokens.append(tokens)

    def add_preferences(self, sums: torch.Tensor) -> None:
        """Add the sums over a batch's rated answers (preference_sums.py)."""
        self._preferences.append(sums)

    def drop_losses(self) -> None:
        """Drop the losses and rated answers of the present step, which is repeated."""
        self._losses, self._preferences = [], []

    def scale_losses(self, scale: float) -> None:
        """Multiply the losses of the present step, of which this rank has computed a part."""
        self._losses = [loss * scale for loss in self._losses]

    def launched(self, world: World = ALONE) -> "Launched":
        """End the present step once it is launched. Returns its loss and tokens, still being computed.

        Of several ranks, the sums over all.
        """
        launched = Launched(self._losses, self._tokens, self._preferences, world)
        self._losses, self._tokens, self._preferences = [], [], []
        return launched

    def end_step(self, step: "StepValues", seconds: float) -> None:
        """Count a finished optimizer step."""
        loss, tokens = step.loss, step.tokens
        self.last_loss = loss
        self.tokens += tokens
        self.seconds += seconds
        if self.first_loss is None:
            self.first_loss = loss
        self.window_loss += loss
        self.window_steps += 1
        before = self.window_preferences or [0.0] * len(step.preferences)
        self.window_preferences = [one + other for one, other in zip(before, step.preferences, strict=True)]

    def end_window(self) -> float:
        """The mean loss since the last call."""
        self.logged_loss = self.window_loss / self.window_steps
        self.window_loss, self.window_steps = 0.0, 0
        return self.logged_loss

    def end_preferences(self) -> list[float]:
        """The sums over the answers that were rated since the last call; empty: none were."""
        sums, self.window_preferences = self.window_preferences, []
        return sums


@dataclass(frozen=True)
class StepValues:
    """What a finished step came to: its loss, its tokens, and the sums over its rated answers."""

    loss: float
    tokens: int
    preferences: list[float] = field(default_factory=list)


class Launched:
    """The values of a launched step, copied from the device while later steps are launched."""

    def __init__(
        self,
        losses: Sequence[torch.Tensor],
        tokens: Sequence[torch.Tensor],
        preferences: Sequence[torch.Tensor] = (),
        world: World = ALONE,
    ) -> None:
        self._passes, self._batches = len(losses), len(tokens)
        values = torch.stack([value.detach().double() for value in (*losses, *tokens)])
        if preferences:
            values = torch.cat([values, torch.stack(list(preferences)).sum(dim=0).double()])
        if not world.is_alone:
            values = world.add_up(self._add_up(values))
            self._passes, self._batches = 1, 1
        self._ready: torch.cuda.Event | None = None
        if values.is_cuda:
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record()
        else:
            self._values = values

    def _add_up(self, values: torch.Tensor) -> torch.Tensor:
        """One number for the losses and one for the tokens: ranks may differ in how many passes they make."""
        end = self._passes + self._batches
        return torch.cat(
            [values[: self._passes].sum()[None], values[self._passes : end].sum()[None], values[end:]]
        )

    def wait(self) -> StepValues:
        """Wait until the device has finished the step."""
        if self._ready:
            self._ready.synchronize()
        values = self._values.tolist()
        end = self._passes + self._batches
        return StepValues(sum(values[: self._passes]), round(sum(values[self._passes : end])), values[end:])


def _lesser(one: int | None, other: int | None) -> int | None:
    return min((rows for rows in (one, other) if rows is not None), default=None)
