"""A job's rows before its training."""

import threading

import pytest

from tests.tiny_model import NAME
from tests.worker.training.conftest import MakeRequest, make_rows
from worker.models.device import find_device
from worker.models.files import description
from worker.training.attempt import Stopped, TrainingAttempt
from worker.training.rows import prepare_rows


def test_a_stop_does_not_wait_until_all_rows_are_encoded(make_request: MakeRequest) -> None:
    request = make_request(rows=make_rows(500))
    folder = request.models_folder / NAME
    asked_to_stop = threading.Event()
    asked_to_stop.set()
    attempt = TrainingAttempt(request, find_device(), lambda report: None, asked_to_stop)

    with pytest.raises(Stopped):
        prepare_rows(attempt, description.load_tokenizer(folder), folder, 256, 1000)
