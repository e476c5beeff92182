"""BLEU of generated texts, with the tokenizer and the formula of sacrebleu (Post 2018).

Three uses, all in percent:

    bleu               a text against what should stand there (the true continuation, a translation)
    corpus_bleu        samples against a whole test set: how much they are like real text
    self_bleu          samples against each other: a similarity, higher means less diverse

The last two are means over the samples, as in Texygen (Zhu et al. 2018, arXiv:1802.01886). Pair by
pair they would take time with the square of the number of texts; here the largest count of each
n-gram over all references is found once, which gives the same numbers in linear time. So no sample
needs to be left out, but scores of other numbers of samples or references do not compare.

The scores depend on the number of references and samples, on n and on the tokenizer: print them
(`signature`) next to every score. Needs sacrebleu, which is imported on first use.
"""

import bisect
import collections
from collections.abc import Sequence

from mpojax import checks

# Matches of an order of n-grams that has none, as in Texygen.
_FLOOR = 0.1

_Grams = collections.Counter  # {n-gram, a tuple of words: count}


def bleu(
    texts: Sequence[str],
    references: Sequence[str | Sequence[str]],
    n: int = 4,
    *,
    tokenize: str = "13a",
) -> float:
    """BLEU-n of a whole set, in percent: n-grams are counted over all texts together.

    The numbers are those of `sacrebleu` at its defaults with `max_ngram_order=n`.

    Args:
      texts: generated ones.
      references: for each text the right one, or several (of all texts as many).
      n: longest n-grams.
      tokenize: sacrebleu's tokenizer: "13a" cuts off punctuation, "none" cuts at white space alone
        (for text that is already cut into words, such as WikiText).

    Raises:
      ImportError: sacrebleu is not installed.
      ValueError: no texts, another number of references, n below 1, an unknown tokenizer.
    """
    scorer = _scorer(n, tokenize)
    _check(texts, "texts")
    if len(references) != len(texts):
        raise ValueError(f"{len(texts)} texts but {len(references)} references; one each is needed")
    lists = [[r] if isinstance(r, str) else list(r) for r in references]
    counts = {len(own) for own in lists}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"texts have {sorted(counts)} references; all need as many, at least one")
    return float(scorer.corpus_score(list(texts), list(zip(*lists, strict=True))).score)


def corpus_bleu(
    samples: Sequence[str], corpus: Sequence[str], n: int = 2, *, tokenize: str = "13a"
) -> float:
    """Mean over the samples of their BLEU-n with all texts of a corpus as references, in percent.

    A sample of less than n words, or without a word of the corpus, scores 0; where only the longer
    n-grams have no match, a tenth of a match counts.

    Args:
      samples: generated texts.
      corpus: real ones, e.g. the whole test set.
      n, tokenize: see `bleu`.

    Raises:
      ImportError: sacrebleu is not installed.
      ValueError: no samples or no corpus, n below 1, an unknown tokenizer.
    """
    scorer = _scorer(n, tokenize)
    _check(samples, "samples")
    _check(corpus, "corpus")
    highest, lengths = {}, []
    for text in corpus:
        grams, length = _grams(scorer, text, n)
        lengths.append(length)
        for gram, count in grams.items():
            highest[gram] = max(count, highest.get(gram, 0))
    lengths.sort()
    scores = []
    for text in samples:
        grams, length = _grams(scorer, text, n)
        matches = {gram: min(count, highest.get(gram, 0)) for gram, count in grams.items()}
        scores.append(_score(scorer, grams, matches, length, _closest(lengths, length), n))
    return sum(scores) / len(scores)


def self_bleu(samples: Sequence[str], n: int = 2, *, tokenize: str = "13a") -> float:
    """Mean over the samples of their BLEU-n with all other samples as references, in percent.

    Higher means less diverse. Details as in `corpus_bleu`.

    Raises:
      ImportError: sacrebleu is not installed.
      ValueError: less than two samples, n below 1, an unknown tokenizer.
    """
    scorer = _scorer(n, tokenize)
    _check(samples, "samples", least=2)
    counted = [_grams(scorer, text, n) for text in samples]
    # Of each n-gram the two largest counts, and whose the largest is: without one sample, the
    # largest of the others is one of the two.
    highest: dict[tuple, tuple[int, int, int]] = {}
    for number, (grams, _) in enumerate(counted):
        for gram, count in grams.items():
            first, owner, second = highest.get(gram, (0, -1, 0))
            if count > first:
                highest[gram] = (count, number, first)
            else:
                highest[gram] = (first, owner, max(second, count))
    lengths = sorted(length for _, length in counted)
    scores = []
    for number, (grams, length) in enumerate(counted):
        matches = {}
        for gram, count in grams.items():
            first, owner, second = highest[gram]
            matches[gram] = min(count, second if owner == number else first)
        closest = _closest(lengths, length, own=True)
        scores.append(_score(scorer, grams, matches, length, closest, n))
    return sum(scores) / len(scores)


def signature(n: int, *, tokenize: str = "13a") -> str:
    """Settings that a score depends on besides the texts, for tables."""
    _scorer(n, tokenize)
    import sacrebleu

    return f"BLEU-{n}, tokenizer {tokenize}, case kept, sacrebleu {sacrebleu.__version__}"


def _scorer(n: int, tokenize: str):
    checks.check_value("n", n, checks.integer(1))
    try:
        from sacrebleu.metrics import bleu as sacrebleu
    except ImportError as error:
        raise ImportError(
            "BLEU needs sacrebleu, which is not installed: pip install sacrebleu"
        ) from error
    checks.check_value("tokenize", tokenize, checks.one_of(*sorted(sacrebleu.BLEU.TOKENIZERS)))
    # force: no warning on text that is already cut into words.
    return sacrebleu.BLEU(max_ngram_order=n, tokenize=tokenize, force=True)


def _check(texts: Sequence[str], name: str, least: int = 1) -> None:
    if isinstance(texts, str):
        raise ValueError(f"{name} must be a sequence of strings, not one string: pass [text]")
    if len(texts) < least:
        raise ValueError(f"{name} hold {len(texts)} texts; at least {least} needed")


def _grams(scorer, text: str, n: int) -> tuple[_Grams, int]:
    """The n-grams of orders 1 to n of a text, and its words."""
    words = scorer.tokenizer(text.rstrip()).split()
    grams = collections.Counter()
    for order in range(1, n + 1):
        grams.update(zip(*(words[start:] for start in range(order)), strict=False))
    return grams, len(words)


def _closest(lengths: list[int], length: int, own: bool = False) -> int:
    """Of the references' lengths, sorted, the closest, of two the shorter; `own`: not that text."""
    place = bisect.bisect_left(lengths, length)
    near = lengths[max(0, place - 1) : place] + lengths[place + own : place + own + 1]
    return min(near, key=lambda reference: (abs(reference - length), reference))


def _score(scorer, grams: _Grams, matches: dict, length: int, reference: int, n: int) -> float:
    correct, total = [0] * n, [max(0, length - order) for order in range(n)]
    for gram in grams:
        correct[len(gram) - 1] += matches[gram]
    found = scorer.compute_bleu(
        correct, total, length, reference, "floor", _FLOOR, max_ngram_order=n
    )
    return float(found.score)
