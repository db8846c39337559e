"""How similar two texts are, from 0 to 1, by the metrics that OpenAI names. Pure.

`fuzzy_match` is rapidfuzz's `ratio`, BLEU and GLEU are NLTK's of one sentence, ROUGE its F-measure.
"""

import re
from collections import Counter

from rapidfuzz import fuzz
from rapidfuzz.distance import LCSseq

from app.core.graders.shapes import SimilarityMetric

# Chinese and Japanese characters, which stand for words without spaces between them.
_CJK = "぀-ヿ㐀-䶿一-鿿豈-﫿"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
MAX_CHARACTERS = 100_000
# BLEU counts punctuation and tells upper from lower case.
_TOKEN = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")


def similarity(metric: SimilarityMetric, text: str, reference: str) -> float:
    """Returns how similar a text is to its reference, from 0 to 1.

    Two texts without a word are equal in all metrics; one without words is similar to none. Raises ValueError
    for texts of more than `MAX_CHARACTERS`.
    """
    if max(len(text), len(reference)) > MAX_CHARACTERS:
        raise ValueError(f"A text to compare has more than {MAX_CHARACTERS} characters.")
    if metric is SimilarityMetric.FUZZY_MATCH:
        return fuzz.ratio(text, reference) / 100
    if not text.strip() or not reference.strip():
        return float(text.strip() == reference.strip())
    if metric is SimilarityMetric.BLEU:
        return _bleu(text, reference)
    if metric is SimilarityMetric.GLEU:
        return _gleu(text, reference)
    if metric is SimilarityMetric.ROUGE_L:
        return _rouge_l(text, reference)
    return _rouge_n(int(metric.removeprefix("rouge_")), text, reference)


# ROUGE after Lin (2004), to the values of Google's `rouge_score`. The library itself loads absl, whose log
# handler closes streams of the process, and its table of all pairs of words is too large for long texts.


def _rouge_n(size: int, text: str, reference: str) -> float:
    """The F-measure of the sequences of so many words that both texts have."""
    made, wanted = (_sequences(_words(one), size) for one in (text, reference))
    return _f_measure((made & wanted).total(), made.total(), wanted.total())


def _rouge_l(text: str, reference: str) -> float:
    """The F-measure of the longest common subsequence of words."""
    words, wanted = _words(text), _words(reference)
    return _f_measure(LCSseq.similarity(words, wanted), len(words), len(wanted))


def _sequences(words: list[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def _f_measure(common: int, made: int, wanted: int) -> float:
    return 2 * common / (made + wanted) if common else 0.0


# NLTK takes a third of a second to load: a process that grades pays for it.


def _bleu(text: str, reference: str) -> float:
    """BLEU-4 with exponential smoothing, of shorter sequences where a text has fewer tokens: sacrebleu's."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    tokens, wanted = (_TOKEN.findall(one) for one in (text, reference))
    smoothing = SmoothingFunction().method3
    return float(sentence_bleu([wanted], tokens, smoothing_function=smoothing, auto_reweigh=True))


def _gleu(text: str, reference: str) -> float:
    from nltk.translate.gleu_score import sentence_gleu

    return float(sentence_gleu([_words(reference)], _words(text)))


def _words(text: str) -> list[str]:
    """Words of any script in lower case."""
    return _WORD.findall(text.lower())
