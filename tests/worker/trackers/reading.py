"""Reads what runs in trackers have, from the trackers' own files."""

import json
import sqlite3
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run
from wandb.proto.wandb_internal_pb2 import Record

from worker.trackers.wandb_log import TransactionLog

Values = dict[tuple[str, int], float]


def read_wandb(folder: Path) -> tuple[Values, list[Record]]:
    """The values of all offline files of a job, by name and step, and all records."""
    values: Values = {}
    records = [
        record
        for path in sorted(folder.glob("wandb/*/*.wandb"))
        for record in TransactionLog(path).read_new()
    ]
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {
                item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item
            }
            step = int(row["train/global_step"])
            values |= {(name, step): value for name, value in row.items() if not name.startswith("_")}
    return values, records


def read_mlflow(uri: str, project: str) -> tuple[Values, list[Run]]:
    """The values of all runs of an experiment, by name and step, and the runs."""
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(project)
    assert experiment is not None
    runs = list(client.search_runs([experiment.experiment_id]))
    values: Values = {}
    for run in runs:
        for name in run.data.metrics:
            points = client.get_metric_history(run.info.run_id, name)
            steps = [point.step for point in points]
            assert len(steps) == len(set(steps)), f"a step of {name} is there twice"
            values |= {(name, point.step): point.value for point in points}
    return values, runs


def read_trackio(path: Path) -> tuple[Values, list[str]]:
    """The values of all runs of a project's file, by name and step, and the runs' names."""
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    connection.close()
    values = {(name, step): value for _run, step, text in rows for name, value in json.loads(text).items()}
    return values, sorted({run for run, _step, _text in rows})


def as_expected(found: list[dict[str, Any]]) -> Values:
    """Rows with a step as values by name and step."""
    return {(name, row["step"]): value for row in found for name, value in row.items() if name != "step"}
