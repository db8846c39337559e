"""The real API and worker with a tiny model and a dataset, and how a page of theirs is opened."""

from pathlib import Path
from typing import Any

from playwright.sync_api import Page, expect

from tests.end_to_end.box import Box, Process
from tests.factories import jsonl
from tests.tiny_model import NAME, make_tiny_model

ROWS = [
    {"messages": [{"role": "user", "content": f"Say {n}"}, {"role": "assistant", "content": f"{n} is said"}]}
    for n in range(40)
]
# It would run in any place that took text for markup.
HTML = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
# Whether a page is no wider than its window.
FITS = "document.documentElement.scrollWidth <= innerWidth"


class Stack:
    """The box, the API that may be killed, and a dataset."""

    def __init__(self, folder: Path) -> None:
        make_tiny_model(folder / "models")
        self.box = Box(folder, folder / "models", cancel_grace_seconds="10")
        self.api: Process = self.box.start_api()
        self.box.start_worker()
        self.url = f"http://127.0.0.1:{self.box.port}"
        files = {"file": ("rows.jsonl", jsonl([*ROWS, _row(HTML)]))}
        answer = self.box.client.post("/datasets", files=files, data={"name": HTML})
        self.dataset = self.box.get_good(answer)["id"]

    def submit(self, name: str, steps: int, **training: Any) -> str:
        settings = {
            "max_steps": steps,
            "logging_steps": 1,
            "save_steps": 5,
            "learning_rate": 1e-3,
            **training,
        }
        lora = {"r": 4, "target_modules": "all-linear"}
        return self.box.submit(base_model=NAME, dataset=self.dataset, name=name, lora=lora, training=settings)

    def open(self, page: Page, route: str) -> None:
        page.goto(f"{self.url}/#/{route}")
        expect(page.locator("h1")).to_be_visible()


def _row(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}
