"""A job's runs in trackers and its push to the Hub, as text."""

from app.cli.jobs.views import JobView, TrackedRunView
from app.cli.output import clean, console, note
from app.cli.words import in_commands


def list_fields(job: JobView) -> list[tuple[str, str | None]]:
    """Names and texts of the job's runs and of its push."""
    return [*((run.tracker, _run_text(run)) for run in job.tracked_runs), ("hub", _push_text(job))]


def show_end(job: JobView) -> None:
    """Write where an ended job can be seen, what trackers lack, and what becomes of its push."""
    for run in job.tracked_runs:
        if run.url or run.problem:
            console().print(f"{run.tracker}: {_run_text(run)}", soft_wrap=True)
    if job.push:
        console().print(f"hub: {_push_text(job)}", soft_wrap=True)
        show_error(job)
        if job.push.state in ("queued", "running"):
            note(f"`tunesmith exports show {job.push.export} --wait` waits for it.", "dim")


def show_error(job: JobView) -> None:
    """Write why the push has failed, and what to do."""
    if job.push is None or job.push.error is None:
        return
    note(f"Not pushed to the Hub: {in_commands(job.push.error.message)} ({job.push.error.code})", "red")
    retry = f"/exports/{job.push.export}/retry"
    hint = (job.push.error.hint or "").replace("/exports/{id}/retry", retry)
    if retry not in hint:
        hint = f"{hint} POST {retry} tries again.".strip()
    note(f"Hint: {in_commands(hint)}", "yellow")


def _run_text(run: TrackedRunView) -> str:
    where = run.url or (f"run {run.run_id}" if run.run_id else "not open yet")
    points = f"{run.points:,} points" if run.points != 1 else "1 point"
    return clean(f"{where}, {points}{'; ' + run.problem if run.problem else ''}")


def _push_text(job: JobView) -> str | None:
    """Where the adapter goes on the Hub, and whether it is there."""
    if job.push:
        return clean(f"{job.push.url or job.push.repository}, {job.push.state} (export {job.push.export})")
    wanted = job.spec.get("push_to_hub")
    if not wanted:
        return None
    return clean(f"{wanted['repository']}, {'not pushed' if job.has_ended else 'once the job has succeeded'}")
