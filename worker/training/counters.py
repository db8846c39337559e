"""What is counted over a whole job, so that an interrupted one reports as an undisturbed one does."""

from pydantic import BaseModel, Field


class Counters(BaseModel):
    """Goes into every checkpoint."""

    tokens: int = Field(0, description="Tokens trained on, padding left out.")
    seconds: float = Field(0.0, description="Time spent in optimizer steps.")
    step_loss: float = Field(0.0, description="Loss of the present step, as far as it is.")
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

    def end_step(self, seconds: float) -> None:
        """An optimizer step is done."""
        self.seconds += seconds
        self.last_loss, self.step_loss = self.step_loss, 0.0
        if self.first_loss is None:
            self.first_loss = self.last_loss
        self.window_loss += self.last_loss
        self.window_steps += 1

    def end_window(self) -> float:
        """The mean loss since the last call."""
        self.logged_loss = self.window_loss / self.window_steps
        self.window_loss, self.window_steps = 0.0, 0
        return self.logged_loss
