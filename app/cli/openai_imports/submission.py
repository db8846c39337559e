"""Makes a plan's datasets, jobs and evaluations through the API. A failure ends none of the others."""

from pathlib import Path
from typing import Any

from app.cli.connection.client import Client
from app.cli.datasets.uploads import upload
from app.cli.failures import CommandFailed, ExitCode
from app.cli.openai_imports.plan import Plan

_NO_CONNECTION = (ExitCode.UNREACHABLE, ExitCode.UNAUTHORIZED)


class Submission:
    """What was made, and what the API refused: lines of (kind, name, id or reason)."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.made: list[tuple[str, str, str]] = []
        self.failures: list[tuple[str, str, CommandFailed]] = []

    def run(self, plan: Plan) -> None:
        """Make everything of a plan. Raises CommandFailed where the API can't be reached."""
        ids = self._upload(plan)
        for job in plan.jobs:
            files = {"dataset": job.training, "validation_dataset": job.validation}
            paths = {name: file.path for name, file in files.items() if file}
            if job.continues or any(path not in ids for path in paths.values()):
                continue
            body = {**job.spec, **{name: ids[path] for name, path in paths.items()}}
            self._create("job", job.name, "/jobs", body)
        for evaluation in plan.evaluations:
            self._create("evaluation", evaluation.name, "/evaluations", evaluation.body)

    def _upload(self, plan: Plan) -> dict[Path, str]:
        """The ids of the datasets by the paths of their files."""
        ids = {}
        for file in plan.datasets:
            try:
                dataset = upload(self._client, file.path, {})
            except CommandFailed as failure:
                self._note("dataset", str(file.path), failure)
                continue
            ids[file.path] = str(dataset["id"])
            self.made.append(("dataset", str(file.path), ids[file.path]))
        return ids

    def _create(self, kind: str, name: str, path: str, body: dict[str, Any]) -> None:
        try:
            answer = self._client.create(path, body)
        except CommandFailed as failure:
            return self._note(kind, name, failure)
        self.made.append((kind, name, str(answer["id"])))
        return None

    def _note(self, kind: str, name: str, failure: CommandFailed) -> None:
        if failure.exit_code in _NO_CONNECTION:
            raise failure
        self.failures.append((kind, name, failure))
