"""The adapter to lm_eval: by itself, on a stand-in of its base class where it is not installed."""

import dataclasses
import importlib.util
import json
import sys
import types

import numpy as np
import pytest
from flax import nnx

from mpojax import data, models
from tests.experiments import toy_language
from tests.io import gguf_helpers
from tests.models import small

HAS_LM_EVAL = importlib.util.find_spec("lm_eval") is not None


@dataclasses.dataclass
class Request:
    """What lm_eval calls an Instance, as far as models see it."""

    args: tuple


class _Base:
    """`lm_eval.api.model.LM` as it documents itself: ranks, and a hook that caches answers."""

    def __init__(self):
        self.cache_hook = types.SimpleNamespace(add_partial=lambda *call: None)


@pytest.fixture(scope="module")
def harness():
    """The module; imported with a stand-in for lm_eval where that is not installed."""
    names = ("lm_eval", "lm_eval.api", "lm_eval.api.model")
    with pytest.MonkeyPatch.context() as patch:
        if not HAS_LM_EVAL:
            for name in names:
                patch.setitem(sys.modules, name, types.ModuleType(name))
            sys.modules[names[-1]].LM = _Base
        patch.delitem(sys.modules, "mpojax.harness", raising=False)
        yield importlib.import_module("mpojax.harness")
    sys.modules.pop("mpojax.harness", None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return toy_language.write(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def adapter(harness, folder):
    tokenizer = data.Tokenizer.from_folder(folder / "words")
    config = models.DecoderConfig(
        tokenizer.vocab_size, **toy_language.DECODER, eos_id=tokenizer.eos_id
    )
    return harness.HarnessModel(models.build(config, rngs=nnx.Rngs(0)), tokenizer, batch_size=3)


def requests(*args):
    return [Request(each) for each in args]


def log_p(adapter, context: list[int], ids: list[int]) -> tuple[float, bool]:
    """Of the ids behind the context, from the logits of the whole row."""
    whole = np.array([[*context, *ids]])
    logits = np.asarray(adapter.model(whole), np.float64)[0, len(context) - 1 : -1]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits[np.arange(len(ids)), ids].sum(), bool((logits.argmax(-1) == ids).all())


def test_loglikelihood(adapter):
    encode = lambda text: adapter.tokenizer.encode_plain([text])[0]  # noqa: E731
    pairs = [
        ("the river", " flows to sea"),
        ("the river ", "flows to sea"),
        ("", "old songs"),
        ("a small boat goes with it", " while people sing old songs"),
        ("it", " with"),
    ]
    found = adapter.loglikelihood(requests(*pairs))
    for (context, continuation), (value, is_greedy) in zip(pairs, found, strict=True):
        begin = encode(context.rstrip()) or [adapter._prefix]
        whole = encode(context + continuation)
        ids = whole[len(begin) :] if context else whole
        expected = log_p(adapter, begin, ids)
        assert (value, is_greedy) == (pytest.approx(expected[0], rel=1e-5), expected[1])
    assert found[0] == found[1]  # a blank at the end of the context is the continuation's


def test_greedy_continuations_are_seen(adapter):
    context = "the river flows"
    made = adapter.generate_until(requests((context, {"max_gen_toks": 1})))[0]
    ids = adapter.tokenizer.encode_plain([context, context + made])
    assert len(ids[1]) == len(ids[0]) + 1  # this text comes back as these tokens
    assert adapter.loglikelihood(requests((context, made)))[0][1] is True


def test_rolling_predicts_every_token_once(adapter):
    text = " ".join(toy_language.WORDS * 5)
    ids = adapter.tokenizer.encode_plain([text])[0]
    most = adapter.max_length
    assert len(ids) > 2 * most
    row, expected = [adapter._prefix, *ids], 0.0
    for first in range(1, len(row), most):
        end = min(first + most, len(row))
        start = max(0, end - most - 1)
        # Positions of a row of max_length + 1 tokens: the last is predicted, and not read.
        expected += log_p_of_long(adapter, row[start:end], end - first)
    found = adapter.loglikelihood_rolling(requests((text,), ("the river",)))
    assert found[0] == pytest.approx(expected, rel=1e-5)
    short = adapter.tokenizer.encode_plain(["the river"])[0]
    assert found[1] == pytest.approx(log_p(adapter, row[:1], short)[0], rel=1e-5)


def log_p_of_long(adapter, row, count):
    logits = np.asarray(adapter.model(np.array([row[:-1]])), np.float64)[0, -count:]
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits[np.arange(count), row[-count:]].sum()


def test_generate_until(adapter):
    prompts = ("the river", "people sing old", "a")
    given = requests(*((prompt, {"max_gen_toks": 6, "until": []}) for prompt in prompts))
    texts = adapter.generate_until(given)
    for prompt, text in zip(prompts, texts, strict=True):
        made = models.generate(
            adapter.model,
            [adapter.tokenizer.encode_prompt(prompt)],
            max_new_tokens=6,
            sampling=models.Sampling(),
        )
        assert text == adapter.tokenizer.decode(made.ids[0, : int(made.lengths[0])])
    stop = texts[0][2:4]
    cut = adapter.generate_until(requests((prompts[0], {"max_gen_toks": 6, "until": [stop]})))
    assert cut == [texts[0].partition(stop)[0]]


def test_sampled_texts_differ(adapter):
    sampled = {"max_gen_toks": 8, "do_sample": True, "temperature": 1.0, "top_p": 0.95}
    greedy = sampled | {"do_sample": False}
    given = [("the river", sampled), ("the river", sampled), ("the river", greedy)]
    texts = adapter.generate_until(requests(*given))
    assert len(set(texts)) > 1
    assert adapter.generate_until(requests(given[2])) == texts[2:]


def test_chat(adapter, harness, folder, tmp_path):
    adapter = harness.HarnessModel(adapter.model, adapter.tokenizer, tokenizer_folder=tmp_path)
    messages = [{"role": "user", "content": "the river"}]
    with pytest.raises(ValueError, match="no chat template in tokenizer_folder="):
        adapter.apply_chat_template(messages)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}:", encoding="utf-8")
    assert adapter.apply_chat_template(messages) == "the river:"
    assert adapter.chat_template(True) == "{{ messages[0].content }}:"


def test_bad_input(adapter, harness):
    with pytest.raises(ValueError, match="lm_eval needs a decoder"):
        harness.HarnessModel(small.random_model(small.BERT), adapter.tokenizer)
    with pytest.raises(ValueError, match=r"a continuation of .* is longer than max_length=32"):
        adapter.loglikelihood(requests(("a", " river" * 99)))
    with pytest.raises(ValueError, match="max_gen_toks=99 leaves nothing for a prompt"):
        adapter.generate_until(requests(("a", {"max_gen_toks": 99})))


def test_gguf(harness, tmp_path):
    config = dataclasses.replace(gguf_helpers.CONFIG, vocab_size=len(gguf_helpers.TOKENS))
    template = {"chat_template": "{{ messages[0].content }}"}
    file = gguf_helpers.write_with_tokenizer(tmp_path / "a.gguf", config=config, **template)
    adapter = harness.HarnessModel.from_pretrained(file, batch_size=1)
    assert adapter.apply_chat_template([{"role": "user", "content": "he"}]) == "he"
    assert adapter.loglikelihood(requests(("he", "ll")))[0][0] < 0


def test_without_lm_eval(adapter, monkeypatch):
    monkeypatch.delitem(sys.modules, "mpojax.harness")
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    without = importlib.import_module("mpojax.harness")
    with pytest.raises(ImportError, match=r"pip install -e '\.\[lm_eval\]'"):
        without.HarnessModel(adapter.model, adapter.tokenizer)


TASK = """\
task: toy_words
dataset_path: json
dataset_kwargs: {data_files: {validation: FOLDER/task.jsonl}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "the"
doc_to_choice: [" river", " songs"]
doc_to_target: answer
metric_list: [{metric: acc}]
"""


@pytest.mark.skipif(not HAS_LM_EVAL, reason="lm_eval is not installed (pip install lm_eval)")
def test_a_local_task(adapter, tmp_path):
    import lm_eval
    import lm_eval.tasks

    lines = [json.dumps({"answer": answer}) for answer in (0, 1, 1)]
    (tmp_path / "task.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "toy.yaml").write_text(TASK.replace("FOLDER", str(tmp_path)), encoding="utf-8")
    manager = lm_eval.tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = lm_eval.simple_evaluate(model=adapter, tasks=["toy_words"], task_manager=manager)
    scores = adapter.loglikelihood(requests(("the", " river"), ("the", " songs")))
    expected = 1 / 3 if scores[0] > scores[1] else 2 / 3
    assert found["results"]["toy_words"]["acc,none"] == pytest.approx(expected)
