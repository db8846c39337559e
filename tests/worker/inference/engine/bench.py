"""An engine without a model, for tests of its loop."""

import threading

from app.core.engine.messages import ServingPath
from tests.worker.inference.fakes import FakeRunner, Mailbox, make_sequence
from worker.inference.batching.scheduler import Scheduler
from worker.inference.engine import Engine, EngineOptions


class Bench:
    """An engine on fake runners, its mailbox, and a clock that is set by hand."""

    def __init__(self, *, max_waiting: int = 99, slots: int = 2, max_base_models: int = 1) -> None:
        self.runner = FakeRunner()
        # One for each base model, where they should not share `runner`.
        self.runners: dict[str, FakeRunner] = {}
        # Base models that load until their event is set.
        self.slow: dict[str, threading.Event] = {}
        self.changes = 0
        self.bases: list[str] = []
        self.load_errors: list[Exception] = []
        self.paths: list[ServingPath] = []
        self.unsupported: list[tuple[str, str]] = []
        self.mail = Mailbox()
        self.scheduler = Scheduler(
            max_waiting=max_waiting, adapter_slot_count=slots, max_base_models=max_base_models
        )
        self.now = 0.0
        self.engine = Engine(
            self._load,
            self.mail.deliver,
            self.scheduler,
            clock=lambda: self.now,
            options=EngineOptions(
                switch_wait_seconds=100, on_change=self._changed, on_unsupported=self._learn
            ),
        )

    def _changed(self):
        self.changes += 1

    def _learn(self, base, reason):
        self.unsupported.append((base.name, reason))

    def _load(self, base):
        self.paths.append(base.path)
        if base.name in self.slow:
            self.slow[base.name].wait()
        if self.load_errors:
            raise self.load_errors.pop()
        self.bases.append(base.name)
        return self.runners.get(base.name, self.runner)

    def submit(self, script=(), **options):
        sequence = make_sequence(**options)
        self.runner.scripts[sequence] = list(script)
        self.engine.submit(sequence)
        return sequence

    def finish(self, *sequences):
        for _ in range(200):
            if all(map(self.mail.has_ended, sequences)):
                return
            self.engine.step()
        raise AssertionError("not finished after 200 steps")

    def finish_all(self, *sequences):
        """Step until these end, however long a thread loads. The test's time-out ends it."""
        while not all(map(self.mail.has_ended, sequences)):
            self.engine.step()
