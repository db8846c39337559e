"""Grades of texts: string checks and similarities."""

import subprocess
import sys

import pytest

from app.core.graders.shapes import SimilarityMetric
from app.core.graders.similarity import similarity
from tests.core.graders.grading import TEXTS, run


@pytest.mark.parametrize(
    ("operation", "text", "score"),
    [
        ("eq", "Oslo", 1),
        ("eq", "oslo", 0),
        ("ne", "Oslo", 0),
        ("ne", "Bergen", 1),
        ("like", "It is Oslo.", 1),
        ("like", "It is oslo.", 0),
        ("ilike", "It is OSLO.", 1),
        ("ilike", "Os", 0),
    ],
)
def test_string_checks_compare_as_openai_does(operation: str, text: str, score: float) -> None:
    found = run({"type": "string_check", "operation": operation, **TEXTS}, text)

    assert (found.score, found.passed, found.error) == (score, bool(score), None)


@pytest.mark.parametrize(
    ("metric", "text", "reference", "score"),
    [
        ("fuzzy_match", "fuzzy wuzzy was a bear", "fuzzy wuzzy had no hair", 0.7556),
        ("bleu", "the cat sat on the mat", "the cat sat on a mat", 0.5373),
        ("gleu", "the cat sat on the mat", "the cat sat on a mat", 0.6111),
        ("rouge_1", "the cat sat on the mat", "the cat sat on a mat", 0.8333),
        ("rouge_2", "the cat sat on the mat", "the cat sat on a mat", 0.6),
        ("rouge_3", "the cat sat on the mat", "the cat sat on a mat", 0.5),
        ("rouge_4", "the cat sat on the mat", "the cat sat on a mat", 0.3333),
        ("rouge_5", "the cat sat on the mat", "the cat sat on a mat", 0),
        ("rouge_l", "the cat sat on the mat", "the cat sat on a mat", 0.8333),
        ("rouge_1", "Köln grüßt Ωmega", "köln grüßt ωmega", 1),
        ("rouge_1", "我喜欢猫", "我喜欢狗", 0.75),
        ("bleu", "the dog", "the cat", 0.5),
        ("bleu", "dog ran a on the", "the", 0.1068),
        ("bleu", "the mat Fast dog mat the . dog ,", ". dog on dog Fast dog , sat", 0.1578),
        ("bleu", "我喜欢吃苹果", "我喜欢吃梨", 0.5081),
        ("bleu", "我喜欢吃苹果", "我喜欢吃苹果", 1),
        ("bleu", "", "Oslo", 0),
        ("rouge_l", "", "", 1),
    ],
)
def test_similarities_have_the_known_values(metric: str, text: str, reference: str, score: float) -> None:
    spec = {"type": "text_similarity", "evaluation_metric": metric, "pass_threshold": 0.6, **TEXTS}

    found = run(spec, text, {"answer": reference})

    assert found.score == pytest.approx(score, abs=1e-4)
    assert found.passed == (found.score >= 0.6)


def test_rouge_is_that_of_googles_library() -> None:
    """Values of `rouge_score` 0.1.2 for texts with repeated words, which count as often as both have them."""
    text, reference = "a b c a b d a", "b a c a a d d b"
    found = [similarity(SimilarityMetric(f"rouge_{size}"), text, reference) for size in (1, 2, 3, "l")]
    assert found == pytest.approx([0.9333, 0.1538, 0.0, 0.5333], abs=1e-4)


def test_no_metric_needs_numpy_or_loads_a_library_that_closes_streams() -> None:
    """The API's image has no NumPy."""
    script = (
        "import sys\n"
        "sys.modules['numpy'] = None\n"
        "from app.core.graders.shapes import SimilarityMetric\n"
        "from app.core.graders.similarity import similarity\n"
        "for metric in ('fuzzy_match', 'bleu', 'gleu', 'rouge_1', 'rouge_l'):\n"
        "    similarity(SimilarityMetric(metric), 'a b', 'a c')\n"
        "print('absl' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize("metric", ["fuzzy_match", "rouge_l", "bleu"])
def test_texts_that_are_too_long_to_compare_are_refused(metric: str) -> None:
    spec = {"type": "text_similarity", "evaluation_metric": metric, **TEXTS}

    found = run(spec, "a " * 50_001)

    assert found.error is not None
    assert found.error.message == "A text to compare has more than 100000 characters."
