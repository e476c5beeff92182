"""The command that trains a tokenizer."""

import subprocess
import sys

import pytest

from mpojax import data
from tools import train_tokenizer


@pytest.fixture
def texts(tmp_path):
    (tmp_path / "a.txt").write_text("the river under the bridge, the rivers and bridges\n" * 4)
    return tmp_path


def test_folder(texts):
    made = train_tokenizer.train("file:train=a.txt", texts / "new", 270, texts)
    again = data.Tokenizer.from_folder(texts / "new")
    assert again.vocabulary() == made.vocabulary()
    assert again.vocab_size == 270
    assert (again.pad_id, again.bos_id, again.eos_id) == (0, 1, 2)
    with pytest.raises(FileExistsError, match=r"already has a tokenizer\.json; choose another"):
        train_tokenizer.train("file:train=a.txt", texts / "new", 270, texts)


def test_only_the_train_split_is_read(texts):
    (texts / "b.txt").write_text("zzzz zzzz zzzz")
    train_tokenizer.train("file:train=a.txt", texts / "one", 300, texts)
    train_tokenizer.train("file:train=a.txt,dev=b.txt", texts / "two", 300, texts)
    files = [(texts / name / "tokenizer.json").read_bytes() for name in ("one", "two")]
    assert files[0] == files[1]


def test_command(texts):
    command = [sys.executable, "-m", "tools.train_tokenizer", f"--data_dir={texts}"]
    command += ["--text=file:train=a.txt", f"--out={texts / 'new'}"]
    run = subprocess.run([*command, "--vocab_size=265"], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("new: vocabulary of 265 tokens\n")
