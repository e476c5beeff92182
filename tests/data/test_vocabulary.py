"""Trained vocabularies: the same every time, BERT's layout; word marks and special tokens."""

import json
import random
import subprocess
import sys

import numpy as np
import pytest
import tokenizers

from mpojax import data
from mpojax.data.tokenizers import vocabulary

# Many pairs of equal frequency, whose order must not depend on a hash table.
_TRAIN = """
import json, random
from mpojax.data.tokenizers import vocabulary
draw = random.Random(0)
words = ["".join(draw.choices("abcdefghijklmnopqrst", k=draw.randint(2, 8))) for _ in range(900)]
texts = [" ".join(draw.choices(words, k=12)) + " é ü 中文 €uro!" for _ in range(150)]
found = vocabulary.train(texts, 400).get_vocab()
print(json.dumps(sorted(found.items(), key=lambda item: item[1])))
"""


def test_same_text_same_vocabulary(capsys):
    """In two processes, this one and another, which hash strings in other ways."""
    run = subprocess.run([sys.executable, "-c", _TRAIN], capture_output=True, text=True, check=True)
    exec(_TRAIN, {})
    assert capsys.readouterr().out == run.stdout
    found = json.loads(run.stdout)
    assert [number for _, number in found] == list(range(400))
    assert [token for token, _ in found[:5]] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def trained():
    texts = [
        "The unremarkable Bridges, café 中文!",
        "the bridges singing; bridges (unremarkable)",
    ] * 9
    return vocabulary.train(texts, 120)


def test_trained_tokenizer(trained, tmp_path):
    trained.save(str(tmp_path / "tokenizer.json"))
    tokenizer = data.Tokenizer.from_folder(tmp_path)
    batch = tokenizer.encode(["The [MASK] bridges"], ["CAFÉ"], max_length=12)
    assert batch["input_ids"][0, 0] == 2
    assert 4 in batch["input_ids"][0]
    (plain,) = tokenizer.encode_plain(["The [MASK] bridges"])
    assert not {2, 3, 4} & set(plain)
    assert tokenizer.encode_plain(["BRIDGES", "cafe"]) == tokenizer.encode_plain(
        ["bridges", "café"]
    )
    assert 1 not in tokenizer.encode_plain(["the unremarkable bridges, cafe 中文 singing!"])[0]


def test_punctuation_never_continues_a_word(trained):
    tokens = trained.get_vocab()
    assert not {"##,", "##!", "##中", "##("} & tokens.keys()
    assert {",", "!", "中", "b", "##r"} <= tokens.keys()


def test_vocabulary_too_small():
    with pytest.raises(ValueError, match=r"vocab_size=9 must be above \d+: 5 special tokens and"):
        vocabulary.train(["abcdefgh abcdefgh"] * 3, 9)


@pytest.mark.parametrize(
    ("tokens", "mark", "starts"),
    [
        (["[PAD]", "the", "##s", "##ing", "a"], "##", [1, 1, 0, 0, 1]),
        (["<pad>", "▁the", "s", "▁a", "ing"], "▁", [0, 1, 0, 1, 0]),
        (["<pad>", "Ġthe", "s", "Ġa", "##"], "Ġ", [0, 1, 0, 1, 0]),
        (["the", "a"], None, [1, 1]),
    ],
)
def test_word_marks(tokens, mark, starts):
    numbered = {token: number for number, token in enumerate(tokens)}
    assert vocabulary.word_mark(numbered) == mark
    assert np.array_equal(vocabulary.word_starts(numbered), np.array(starts, bool))


def test_special_tokens():
    roberta = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 9}
    found = vocabulary.SpecialTokens.of(roberta, "x")
    assert found == vocabulary.SpecialTokens(pad=1, unk=3, cls=0, sep=2, mask=9)
    del roberta["<mask>"]
    with pytest.raises(ValueError, match=r"vocabulary of FOLDER has no mask token; .*\[MASK\]"):
        vocabulary.SpecialTokens.of(roberta, "FOLDER")


def test_the_library_alone_is_not_reproducible():
    """If this fails, the library has been fixed and `vocabulary.train` can be simpler."""
    draw = random.Random(0)
    texts = [
        " ".join("".join(draw.choices("abcdefghij", k=6)) for _ in range(20)) for _ in range(40)
    ]
    found = set()
    for _ in range(4):
        backend = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
        backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=200, show_progress=False)
        backend.train_from_iterator(texts, trainer)
        found.add(json.dumps(sorted(backend.get_vocab().items())))
    assert len(found) > 1
