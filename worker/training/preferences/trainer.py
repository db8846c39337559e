"""Trains an adapter from preferences: a loss over whole answers in place of one over tokens.

All else is AdapterTrainer's: resuming, checkpoints, optimizations, recovery from running out of memory. A
batch that is computed in several passes has the loss of the whole batch, also where its examples depend on
each other (KTO): its log-probabilities are computed first, without gradients, and the gradient of the loss by
each of them is then what the log-probability of that answer is multiplied with.

G: sequences of an example. B: sequences of a batch. N: learned tokens of a batch.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.data import Sampler

from worker.training import memory
from worker.training.loss import TokenScores
from worker.training.memory import Batch
from worker.training.preferences.answers import count_tokens_of_answers, find_sequences, sum_by_sequence
from worker.training.preferences.objectives import AnswerScores, Objective, PreferenceLosses
from worker.training.progress import preference_sums
from worker.training.ranks.row_share import is_filler
from worker.training.trainer import AdapterTrainer, unless_out_of_memory


class PreferenceTrainer(AdapterTrainer):
    """Trains the adapter of a PeftModel with a preference objective.

    The datasets have the sequences of an example next to each other, and a batch has whole examples: its size
    in the arguments is that of its sequences. `order` yields the sequences of an epoch.
    """

    def __init__(self, *, objective: Objective, order: Sampler[int], **options: Any) -> None:
        self._objective = objective
        self.order = order
        self._evaluated: list[torch.Tensor] = []  # sums over rated answers, one entry a batch
        self._evaluated_losses: list[torch.Tensor] = []  # sums over examples
        super().__init__(**options)

    @property
    def needs_reference(self) -> bool:
        """Whether the datasets need the reference model's log-probabilities (reference.py)."""
        return self._objective.needs_reference

    def get_batch_samples(
        self, epoch_iterator: Iterable[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The batches of a step, and how many examples they have where the loss is a mean over the step."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if items is not None and self.world.is_alone:
            items = torch.tensor(sum(map(self._count_items, batches)), device=device)
        return batches, items

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The mean loss of the examples; of one of several passes over a batch, its share of that."""
        scores = self.score(inputs)
        if is_filler(inputs):
            self.counters.add_preferences(preference_sums.nothing(scores.log_prob_sum.device))
            return scores.log_prob_sum
        log_probs_B = sum_by_sequence(scores.log_probs_N, inputs)
        items = self._count_items(inputs) if num_items_in_batch is None else num_items_in_batch
        if "factor" in inputs:
            moved_B = inputs["factor"] * (log_probs_B - log_probs_B.detach())
            total = moved_B.sum() + inputs["share"].sum()
        else:
            outcome = self._objective.compute(self._describe(log_probs_B, inputs))
            self._report(outcome)
            self._log_tokens(scores, inputs)
            total = outcome.losses_E.sum()
        mean: torch.Tensor = total / torch.as_tensor(items)
        if scores.balancing is None:
            return mean
        return mean + scores.balancing / self._count_passes(num_items_in_batch)

    @torch.no_grad()
    def measure(self, batch: Batch, rows: int | None) -> torch.Tensor:
        """The log-probabilities [B] of a batch's answers, in passes of at most `rows` sequences."""
        parts = memory.split(batch, rows)
        return torch.cat([sum_by_sequence(self.score(part).log_probs_N, part) for part in parts])

    def measure_in_evaluation(self, batch: Batch) -> torch.Tensor:
        """The log-probabilities [B] of a batch's answers, in several passes where memory is short.

        Raises OutOfMemory where a single sequence does not fit.
        """
        found = unless_out_of_memory(lambda: self.measure(batch, self.counters.eval_rows_at_once))
        while found is None:
            self.counters.eval_rows_at_once = self._halve(
                self.counters.eval_rows_at_once, [batch], doing="An evaluation", field="eval_rows"
            )
            found = unless_out_of_memory(lambda: self.measure(batch, self.counters.eval_rows_at_once))
        return found

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None, None]:
        """The mean loss of an evaluation batch over its examples."""
        batch = self._prepare_inputs(inputs)
        if is_filler(batch):
            return torch.zeros((), device=batch["input_ids"].device), None, None
        outcome = self._objective.compute(self._describe(self.measure_in_evaluation(batch), batch))
        self._evaluated.append(_add_up(outcome))
        self._evaluated_losses.append(outcome.losses_E.sum())
        return outcome.losses_E.mean(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the metrics since the last call; of an evaluation, the means over all of its examples."""
        if "eval_loss" in logs:
            mine = [*self._evaluated, preference_sums.nothing(self.args.device)]
            total = sum(float(loss) for loss in self._evaluated_losses)
            of_ranks = self.world.gather_numbers([total, *torch.stack(mine).sum(dim=0).tolist()])
            total, *sums = (sum(numbers) for numbers in zip(*of_ranks, strict=True))
            logs["eval_loss"] = total / sums[0]
            found = preference_sums.figures(sums)
            logs |= {f"eval_{name}": value for name, value in found.items() if value is not None}
            self._evaluated, self._evaluated_losses = [], []
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self._share_rows(self.order, self.args.train_batch_size, len(self.order))  # type: ignore[arg-type]

    def _count_items(self, batch: Batch) -> int:
        return 0 if is_filler(batch) else memory.count_rows(batch) // self._objective.sequences

    def _split(self, batch: Batch, rows: int | None) -> list[Batch]:
        """The passes over a batch; of several, each has the gradients of the whole batch's loss."""
        if rows is None or memory.count_rows(batch) <= rows:
            return [batch]
        batch = self._prepare_inputs(dict(batch))
        log_probs_B = self.measure(batch, rows).requires_grad_()
        outcome = self._objective.compute(self._describe(log_probs_B, batch))
        total = outcome.losses_E.sum()
        (factor_B,) = torch.autograd.grad(total, log_probs_B)
        self._report(outcome)
        share_B = torch.full_like(factor_B, float(total.detach()) / len(factor_B))
        return memory.split({**batch, "factor": factor_B, "share": share_B}, rows)

    def _describe(self, log_probs_B: torch.Tensor, batch: Batch) -> AnswerScores:
        return AnswerScores(
            log_probs_B, count_tokens_of_answers(batch), batch.get("reference"), batch.get("is_desirable")
        )

    def _report(self, outcome: PreferenceLosses) -> None:
        self.counters.add_preferences(_add_up(outcome))

    def _log_tokens(self, scores: TokenScores, batch: Batch) -> None:
        """Log the entropy of all answers, and the token accuracy of the good ones."""
        metrics = self._metrics["train"]
        metrics["entropy"].append(scores.entropy_N.mean())
        sequence_N = find_sequences(batch)
        is_good_B = (
            batch["is_desirable"]
            if "is_desirable" in batch
            else torch.arange(memory.count_rows(batch), device=sequence_N.device) % 2 == 0
        )
        is_good_N = is_good_B[sequence_N]
        right, count = (scores.is_likeliest_N & is_good_N).sum(), is_good_N.sum()
        metrics["mean_token_accuracy"].append(right / count.clamp(min=1))


def _add_up(outcome: PreferenceLosses) -> torch.Tensor:
    rated = outcome.rated
    return preference_sums.add_up(rated.reward_B, rated.log_prob_B, rated.is_good_B, rated.is_right_E)
