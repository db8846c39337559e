"""Fine-tune a real small model on this machine and talk to it: what `make demo` runs.

Starts the stack, fetches SmolLM2-135M-Instruct, uploads the example dataset, trains, and asks three questions
of the base model and of the adapter. After the start all goes over HTTP, as in your own program.
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from app.stack import Stack

HERE = Path(__file__).parent
JOB = json.loads((HERE / "demo-job.json").read_text())
QUESTIONS = json.loads((HERE / "demo-questions.json").read_text())
console = Console()


def main() -> None:
    """Run the demo, then leave the service up until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="port of the API")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="database, models and adapters")
    parser.add_argument("--exit", action="store_true", help="stop the service at the end")
    options = parser.parse_args()
    say(1, f"Making sure of the base model {JOB['base_model']}")
    models_dir = options.data_dir / "models"
    subprocess.run(
        [sys.executable, "-m", "worker.models.demo_model", "--models-dir", str(models_dir)], check=True
    )
    say(2, "Starting the API and the worker")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends it as Ctrl-C does
    with Stack(port=options.port, data_dir=options.data_dir) as stack:
        stack.start()
        stack.wait_until_ready()
        run_walkthrough(stack.url)
        if not options.exit:
            show_next_steps(stack.url)
            stack.wait()


def run_walkthrough(url: str) -> None:
    """Upload, train, compare."""
    with httpx.Client(base_url=url, timeout=120) as client:
        job_id = submit(client)
        follow(client, job_id)
        job = answered(client.get(f"/jobs/{job_id}"))
        if job["state"] != "succeeded":
            raise SystemExit(f"The job is {job['state']}: {job['error']}")
        compare(client, answered(client.get(f"/adapters/{job['adapter']}"))["name"])


def submit(client: httpx.Client) -> str:
    """Upload the example dataset and submit the job of demo-job.json. Returns the job's id."""
    say(3, "Uploading examples/tunesmith-help.jsonl and submitting examples/demo-job.json")
    with (HERE / "tunesmith-help.jsonl").open("rb") as file:
        dataset = answered(client.post("/datasets", files={"file": ("tunesmith-help.jsonl", file)}))
    console.print(f"     {dataset['rows']} rows in the {dataset['format']} format: {dataset['id']}")
    job = answered(client.post("/jobs", json={**JOB, "dataset": dataset["id"]}))
    console.print(f"     {job['id']} is {job['state']}")
    return str(job["id"])


def follow(client: httpx.Client, job_id: str) -> None:
    """Show the job's events until it ends."""
    say(4, "Training (4-bit NF4 QLoRA)")
    columns = (
        TextColumn("     {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps  loss {task.fields[loss]}  left {task.fields[left]} "),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("waiting", total=None, loss="-", left="-")
        for event in stream_events(client, job_id):
            data = event["data"]
            if event["type"] == "state":
                progress.update(bar, description=data.get("phase") or data["state"])
            elif event["type"] == "metrics":
                show_metrics(progress, bar, data)
            elif event["type"] in ("log", "warning"):
                console.print(f"     {data['message']}", style="dim", markup=False)


def show_metrics(progress: Progress, bar: TaskID, data: dict[str, Any]) -> None:
    """Move the bar; without a terminal, print a line."""
    loss = f"{data['loss']:.3f}"
    left = "-" if data.get("eta_seconds") is None else f"{data['eta_seconds']:.0f} s"
    progress.update(bar, completed=data["step"], total=data["total_steps"], loss=loss, left=left)
    if not console.is_terminal:
        console.print(f"     step {data['step']}/{data['total_steps']}  loss {loss}  left {left}")


def stream_events(client: httpx.Client, job_id: str) -> Iterator[dict[str, Any]]:
    """The job's events as they happen (server-sent events)."""
    headers = {"Accept": "text/event-stream"}
    with client.stream("GET", f"/jobs/{job_id}/events", headers=headers, timeout=None) as response:
        for line in response.iter_lines():
            if line.startswith("data:"):
                yield json.loads(line.removeprefix("data:"))


def compare(client: httpx.Client, adapter: str) -> None:
    """Ask the base model and the adapter the same questions."""
    say(5, f"Asking the base model and the adapter {adapter}")
    table = Table("Question", "Base model", "Adapter", show_lines=True)
    for question in QUESTIONS:
        base_answer = ask(client, question, base_model=JOB["base_model"])
        table.add_row(question, base_answer, ask(client, question, adapter=adapter))
    console.print(table)


def ask(client: httpx.Client, question: str, **who: str) -> str:
    """One greedy answer."""
    body = {
        "messages": [{"role": "user", "content": question}],
        "max_new_tokens": 60,
        "temperature": 0,
        **who,
    }
    return str(answered(client.post("/generate", json=body))["text"]).strip()


def answered(response: httpx.Response) -> Any:
    """The body of a successful response; exits with the message of an error response."""
    if response.is_error:
        error = response.json()["error"]
        raise SystemExit(f"{error['message']} {error['hint'] or ''}")
    return response.json()


def show_next_steps(url: str) -> None:
    """What to try while the service is up."""
    console.rule("The service is up. Try")
    lines = f"""\
The dashboard, with the curve and a playground: {url}
curl {url}/jobs
curl {url}/adapters
curl -N {url}/generate -H 'Content-Type: application/json' -d '{{"adapter": "{JOB["name"]}",
  "messages": [{{"role": "user", "content": "How do I upload a dataset?"}}], "stream": true}}'
Every call with its fields and examples: {url}/docs"""
    console.print(lines, markup=False, highlight=False, soft_wrap=True)
    console.rule("Ctrl-C stops it")


def say(number: int, what: str) -> None:
    """A step's headline."""
    console.print(f"[bold cyan]{number}/5[/]  [bold]{what}[/]")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
