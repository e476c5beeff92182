"""Chat templates, and prompts as tokens."""

import json

import pytest

from mpojax import data
from mpojax.data.tokenizers import chat
from tests.io import gguf_helpers

TEMPLATE = """\
{% for message in messages %}
    {% if message.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}
{{ bos_token }}{{ message.role }}: {{ message['content'] | trim }}
{% endfor %}
{% if add_generation_prompt %}
assistant:
{% endif %}"""
MESSAGES = [{"role": "user", "content": " Hello "}]


def write(folder, template, **more):
    tokens = {"bos_token": {"content": "<s>", "lstrip": False}, "eos_token": None}
    settings = {**tokens, "chat_template": template, **more}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize("named", [False, True])
def test_a_template(tmp_path, named):
    entries = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": TEMPLATE}]
    write(tmp_path, entries if named else TEMPLATE)
    assert data.chat_prompt(tmp_path, MESSAGES) == "<s>user: Hello\nassistant:\n"
    assert data.chat_prompt(tmp_path, MESSAGES, answer=False) == "<s>user: Hello\n"


def test_a_file_of_its_own_counts_first(tmp_path):
    write(tmp_path, TEMPLATE)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}!", encoding="utf-8")
    assert data.chat_prompt(tmp_path, MESSAGES) == " Hello !"


def test_without_a_template(tmp_path):
    assert data.chat_prompt(tmp_path, MESSAGES) is None
    assert data.chat_prompt(write(tmp_path, None), MESSAGES) is None


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TEMPLATE, "the chat template of .* fails: no tools"),
        ("{% for %}", "fails: Expected"),
        ("{{ ''.__class__.__mro__ }}", "fails: access to attribute '__class__'"),
        (5, "chat_template=5 must be null or a text"),
    ],
)
def test_bad_templates(tmp_path, template, message):
    write(tmp_path, template)
    with pytest.raises(ValueError, match=message):
        data.chat_prompt(tmp_path, [{"role": "tool", "content": "x"}])


def test_as_transformers(tmp_path):
    """The template of a real model: turns, a system message of its own."""
    transformers = pytest.importorskip("transformers")
    from mpojax import io

    io.write_gguf_tokenizer(gguf_helpers.smollm2(), tmp_path)
    messages = [*MESSAGES, {"role": "assistant", "content": "Hi"}, *MESSAGES]
    text = data.chat_prompt(tmp_path, messages)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = data.Tokenizer.from_folder(tmp_path).encode_prompt(text)
    assert ids == theirs(text, add_special_tokens=False)["input_ids"]


def test_a_prompt_begins_as_texts_do(tmp_path):
    from mpojax import io

    begins = {"bos_token_id": gguf_helpers.TOKENS.index("<|pad|>"), "add_bos_token": True}
    file = gguf_helpers.write_with_tokenizer(tmp_path / "a.gguf", **begins)
    io.write_gguf_tokenizer(file, tmp_path)
    tokenizer = data.Tokenizer.from_folder(tmp_path)
    bos, he = tokenizer.bos_id, tokenizer.token_to_id("he")
    assert tokenizer.encode_prompt("he") == [bos, he]
    assert tokenizer.encode_prompt("<|pad|>he") == [bos, he]
    assert chat.read_template(tmp_path) is None
    tokenizer = data.Tokenizer(tokenizer._backend, "<|pad|>")
    assert tokenizer.encode_prompt("he") == [he]
