from pathlib import Path

import pytest

from app.cli.failures import CommandFailed, UsageProblem
from app.cli.jobs.files import read_job_file

READABLE = {
    "learning_rate: 2e-4": 2e-4,  # YAML 1.1 takes it for text
    "name: no": "no",  # and this for false
    "name: 2026-11-25": "2026-11-25",
    "steps: null": None,
    "a: !!python/object/apply:os.getcwd []": [],  # nothing of it is run
    '{\n\t"a": [1, true]\n}': [1, True],
}


@pytest.mark.parametrize(("text", "value"), READABLE.items())
def test_values_are_what_json_would_have(tmp_path: Path, text: str, value: object) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert list(read_job_file(path).body.values()) == [value]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1\n", r"job\.yaml, line 3: "),
        ("a: 1\na: 2\n", r"job\.yaml, line 2: found duplicate key"),
        ("", r"job\.yaml holds no fields"),
        ("- a\n", r"job\.yaml holds no fields"),
        ("a: .nan\n", r"job\.yaml holds what a job can't"),
    ],
)
def test_what_is_no_job_file_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(UsageProblem, match=message):
        read_job_file(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="No such file"):
        read_job_file(tmp_path / "job.yaml")


@pytest.mark.parametrize("override", ["learning_rate", "=1", "a..b=1", "a.b.c=1"])
def test_a_malformed_override_is_an_error(tmp_path: Path, override: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("a:\n  b: 1\n")
    with pytest.raises(UsageProblem, match="--set"):
        read_job_file(path, [override])


def test_an_empty_group_may_be_set(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("training:\n  # nothing yet\n")
    assert read_job_file(path, ["training.seed=1"]).body == {"training": {"seed": 1}}


def test_a_failure_about_no_field_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("a: 1\n")
    assert read_job_file(path).locate(CommandFailed("Busy.")).message == "Busy."
