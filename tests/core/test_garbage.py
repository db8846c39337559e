import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import gc
from app.core import garbage
import app.main
garbage.exclude_what_is_loaded()
full = gc.get_stats()[2]["collections"]
kept = [[number] for number in range(200_000)]
assert gc.get_stats()[2]["collections"] == full, "new objects alone caused a full collection"
assert gc.get_stats()[0]["collections"] > 100
assert len(gc.get_objects()) < 250_000, "what was imported is not excluded"
"""


def test_many_new_objects_cause_no_full_collection() -> None:
    subprocess.run([sys.executable, "-c", _SCRIPT], cwd=Path(__file__).parents[2], check=True)
