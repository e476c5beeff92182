"""BLEU of generated texts: by hand, against sacrebleu pair by pair, and what is missing."""

import builtins
import math
import random
import time

import hypothesis
import pytest
from hypothesis import strategies as st

from mpojax.training.scores import bleu

sacrebleu = pytest.importorskip("sacrebleu", reason="pip install sacrebleu")

SENTENCES = st.lists(st.sampled_from([*"abcde", "f."]), max_size=9).map(" ".join)


def oracle(text, references, n):
    scorer = sacrebleu.metrics.BLEU(
        max_ngram_order=n, smooth_method="floor", smooth_value=0.1, force=True
    )
    return scorer.corpus_score([text], [[reference] for reference in references]).score


class TestBleu:
    def test_by_hand(self):
        # 4 of 5 words, 2 of 4 pairs; equal lengths.
        found = bleu.bleu(["a b c x d"], ["a b c y d"], 2)
        assert found == pytest.approx(100 * math.sqrt(4 / 5 * 2 / 4))

    def test_counts_go_over_all_texts(self):
        # 1 + 4 of 2 + 4 words, 0 + 3 of 1 + 3 pairs; 6 words against 7.
        found = bleu.bleu(["a x", "a b c d"], ["a b c", "a b c d"], 2)
        assert found == pytest.approx(100 * math.exp(1 - 7 / 6) * math.sqrt(5 / 6 * 3 / 4))

    def test_copies_and_strangers(self):
        texts = ["one two three four five.", "six seven eight nine"]
        assert bleu.bleu(texts, texts, 4) == pytest.approx(100)
        assert bleu.bleu(["x y z u v"], ["a b c d e"], 2) == 0

    def test_several_references(self):
        found = bleu.bleu(["a b c"], [["a b x", "y b c"]], 2)
        assert found == pytest.approx(100)

    def test_default_is_sacrebleu(self):
        texts, right = ["It is a guide, he said.", "The cat"], ["It's a guide, he says.", "A cat"]
        theirs = sacrebleu.corpus_bleu(texts, [right]).score
        assert bleu.bleu(texts, right) == pytest.approx(theirs)

    def test_tokenizer(self):
        assert bleu.bleu(["a b."], ["a b ."], 2) == pytest.approx(100)
        assert bleu.bleu(["a b."], ["a b ."], 1, tokenize="none") < 50

    def test_errors(self):
        with pytest.raises(ValueError, match="2 texts but 1 references"):
            bleu.bleu(["a", "b"], ["a"])
        with pytest.raises(ValueError, match=r"texts have \[1, 2\] references; all need as many"):
            bleu.bleu(["a", "b"], [["a"], ["a", "b"]])
        with pytest.raises(ValueError, match="texts hold 0 texts; at least 1 needed"):
            bleu.bleu([], [])
        with pytest.raises(ValueError, match="not one string"):
            bleu.bleu("a", "a")


class TestCorpusBleu:
    def test_by_hand(self):
        # Words a, b, a: "a" occurs once at most in a reference; pairs: "a b" alone. The closest
        # length is 2, below 3: no penalty.
        found = bleu.corpus_bleu(["a b a"], ["a b", "a c d e f", "b"], 2)
        assert found == pytest.approx(100 * math.sqrt(2 / 3 * 1 / 2))

    def test_mean_over_samples(self):
        corpus = ["a b c d", "e f g h"]
        found = bleu.corpus_bleu(["a b c d", "x y z u"], corpus, 2)
        assert found == pytest.approx(50)

    def test_order_without_match_counts_a_tenth(self):
        found = bleu.corpus_bleu(["b a"], ["a b"], 2)
        assert found == pytest.approx(100 * math.sqrt(0.1))
        assert bleu.corpus_bleu(["a"], ["a b"], 2) == 0

    @hypothesis.given(
        samples=st.lists(SENTENCES, min_size=1, max_size=4),
        corpus=st.lists(SENTENCES, min_size=1, max_size=5),
        n=st.integers(1, 4),
    )
    def test_as_pair_by_pair(self, samples, corpus, n):
        theirs = [oracle(text, corpus, n) for text in samples]
        found = bleu.corpus_bleu(samples, corpus, n)
        assert found == pytest.approx(sum(theirs) / len(theirs))

    def test_errors(self):
        with pytest.raises(ValueError, match="corpus hold 0 texts"):
            bleu.corpus_bleu(["a"], [])
        with pytest.raises(ValueError, match="samples must be a sequence of strings"):
            bleu.corpus_bleu("a", ["a"])


class TestSelfBleu:
    def test_by_hand(self):
        # Each has 2 of 3 words and 1 of 2 pairs in the other.
        found = bleu.self_bleu(["a b c", "a b d"], 2)
        assert found == pytest.approx(100 * math.sqrt(2 / 3 * 1 / 2))

    def test_extremes(self):
        assert bleu.self_bleu(["a b c"] * 3, 2) == pytest.approx(100)
        assert bleu.self_bleu(["a b c", "d e f", "g h i"], 2) == 0

    @hypothesis.given(st.lists(SENTENCES, min_size=2, max_size=6), st.integers(1, 4))
    def test_as_pair_by_pair(self, samples, n):
        theirs = [
            oracle(text, samples[:place] + samples[place + 1 :], n)
            for place, text in enumerate(samples)
        ]
        found = bleu.self_bleu(samples, n)
        assert found == pytest.approx(sum(theirs) / len(theirs))

    def test_two_samples_at_least(self):
        with pytest.raises(ValueError, match="samples hold 1 texts; at least 2 needed"):
            bleu.self_bleu(["a"])

    def test_thousands_of_samples(self):
        draw = random.Random(0)
        words = [f"w{number}" for number in range(300)]
        samples = [" ".join(draw.choices(words, k=20)) for _ in range(2000)]
        start = time.perf_counter()
        assert 0 < bleu.self_bleu(samples, 2) < 100
        assert time.perf_counter() - start < 10  # pair by pair: minutes


@pytest.mark.parametrize("function", ["corpus_bleu", "self_bleu", "bleu"])
def test_common_errors(function):
    texts = (["a", "b"],) if function == "self_bleu" else (["a"], ["a"])
    call = getattr(bleu, function)
    with pytest.raises(ValueError, match="n=0 must be an integer of at least 1"):
        call(*texts, 0)
    with pytest.raises(ValueError, match=r"tokenize='words' must be one of '13a'"):
        call(*texts, tokenize="words")


def test_signature():
    found = bleu.signature(2, tokenize="none")
    assert found == f"BLEU-2, tokenizer none, case kept, sacrebleu {sacrebleu.__version__}"


def test_without_sacrebleu(monkeypatch):
    original = builtins.__import__

    def without(name, *rest):
        if name.startswith("sacrebleu"):
            raise ImportError(name)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    for call in (lambda: bleu.self_bleu(["a", "b"]), lambda: bleu.signature(2)):
        with pytest.raises(ImportError, match="BLEU needs sacrebleu, which is not installed: pip"):
            call()
