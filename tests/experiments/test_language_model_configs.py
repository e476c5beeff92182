"""Runs of decoders on plain text: which texts count, and what is refused before any work."""

import numpy as np
import pytest
from flax import nnx

from experiments import runs, train
from experiments.tasks import generating, loading
from mpojax import compression, io
from tests.experiments import toy_language
from tests.experiments.toy_language import put
from tests.io import helpers

EXPERTS = {"experts__form": "mpoe", "experts__number": 4, "experts__cores": 3}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return toy_language.write(tmp_path_factory.mktemp("texts"))


def fresh(config):
    """(the model of a config, the folder of its tokenizer)."""
    options = runs.read(config)[2]
    words, folder = loading.tokenizer(options.model)
    return loading.fresh(options.model, 0, words), folder


class TestTexts:
    def test_tokens_and_texts_of_the_test(self, texts):
        config = toy_language.config(texts, test_dataset="file:test=short.jsonl", test_tokens=40)
        job = runs.set_up(*runs.read(config))
        assert job.test.num_tokens == 39
        words = [
            part.split()
            for part in generating.documents(job.test.stream.tokens, job.extra.tokenizer)
        ]
        assert len(words) > 1
        assert job.test.num_words == sum(map(len, words))
        lines = toy_language.text(12, 3).splitlines()
        assert [" ".join(w) for w in words[:-1]] == lines[: len(words) - 1]
        assert " ".join(words[-1]) in lines[len(words) - 1]

    def test_references_of_samples_are_documents(self, texts, monkeypatch, tmp_path):
        """Each line of a .jsonl file is one reference, not all of them together."""
        config = toy_language.config(texts, test_dataset="file:test=short.jsonl")
        config.samples, config.sample_length = 2, 4
        job, seen = runs.set_up(*runs.read(config)), []
        monkeypatch.setattr(generating, "_generate", lambda *_: [np.array([5]), np.array([6])])
        monkeypatch.setattr(
            generating.bleu, "corpus_bleu", lambda texts, truth, n, **_: seen.extend(truth)
        )
        job.extra._samples(None, tmp_path)
        assert seen == toy_language.text(12, 3).splitlines()

    def test_first_layers(self, texts):
        config = toy_language.config(texts)
        model = fresh(config)[0]
        rules = [("layers/1/feed_forward", {"number": 2})]
        mixed = compression.add_experts(model, rules, rngs=nnx.Rngs(0))
        cut = loading.first_layers(mixed, 1)
        assert (cut.config.num_layers, cut.config.experts, cut.shapes) == (1, (), {})
        with pytest.raises(
            ValueError, match=r"config.num_layers_kept=3: the model must be a decoder"
        ):
            loading.first_layers(model, 3)


class TestMistakes:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"model": "somewhere"}, "just one of them"),
            ({"model_config": {}}, "just one of them"),
            ({"tokenizer": ""}, "config.model_config needs config.tokenizer"),
            ({"steps": -1}, "config.steps=-1 must be an integer of at least 0"),
            (
                {"grad_accum_steps": 3},
                "batch_size=8 rows cannot be split into config.grad_accum_steps=3",
            ),
            (
                {"balance_weight": -1.0},
                "config.balance_weight=-1.0 must be a finite number of at least 0",
            ),
            (
                {"label_smoothing": 1.0},
                r"config.label_smoothing=1.0 must be a finite number of at least 0 and below 1",
            ),
            ({"experts__form": "moe"}, "config.experts.form='moe' must be one of 'dense', 'mpoe'"),
            ({**EXPERTS, "experts__router": "top1"}, "router='top1' must be one of 'switch'"),
            ({**EXPERTS, "experts__bond": 4}, "gauge='identity' is exact only at full bonds"),
            (
                {**EXPERTS, "optimizer__central_mask__rate": 1.5},
                r"rate=1.5 must be a finite number from 0 to 1",
            ),
            (
                {**EXPERTS, "optimizer__central_mask__granularity": "row"},
                "granularity='row' must be one of",
            ),
            ({"optimizer__central_mask__rate": 0.5}, "rate=0.5 has no central cores to mask"),
            ({"mesh": {"expert": 2}}, "config.mesh.expert=2 has no experts to split"),
            (
                {**EXPERTS, "experts__number": 3, "mesh": {"expert": 2}},
                "number=3 cannot be divided over config.mesh.expert=2",
            ),
            ({"length": 1}, "config.length=1 must be an integer of at least 2"),
            ({"dev_split": ""}, "config.dev_split is empty"),
            ({"samples": -1}, "config.samples=-1 must be an integer of at least 0"),
            ({"samples": 1}, "config.samples=1: Self-BLEU compares"),
            (
                {"samples": 2, "sample_length": 0},
                "config.sample_length=0 must be an integer of at least 1",
            ),
            ({"bleu_prompts": 1, "test_split": ""}, "continues the test text"),
            ({"sampling": {"temperature": -1.0, "top_k": 0, "top_p": 1.0}}, "temperature=-1.0"),
            (
                {"model_config": {"kind": "encoder"}},
                "config.model_config.kind='encoder' must be one of 'decoder'",
            ),
        ],
    )
    def test_without_weights_or_texts(self, tmp_path, texts, fields, message):
        config = put(toy_language.config(tmp_path), fields)  # a folder without anything
        with pytest.raises(ValueError, match=message):
            train.check(config)
        with pytest.raises(ValueError, match=message):
            train.run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"length": 64}, "config.length=64 is more than the 32 positions of the model"),
            ({"model_config": {"layers": 3}}, "does not make a DecoderConfig: .* 'layers'"),
            ({"model_config": {"num_layers": 3}}, "does not make a DecoderConfig: .*missing"),
            (
                {"model_config": {**toy_language.DECODER, "vocab_size": 99}},
                "do not belong together",
            ),
            (
                {"model_config": {**toy_language.DECODER, "num_heads": 3}},
                "not a multiple of num_heads=3",
            ),
            ({"dataset": "file:train=train.txt"}, "have no split 'dev'"),
            ({**EXPERTS, "experts__blocks": "layers/7/.*"}, "'layers/7/.*' matches no"),
            ({"samples": 2, "sample_length": 32}, "sample_length . 1 = 33 is more than the 32"),
            ({"bleu_prompts": 2}, "bleu_prompt_length . bleu_length = 128 is more than the 32"),
            ({"bleu_prompts": 2, "bleu_length": 10**4}, "need 10064 tokens"),
        ],
    )
    def test_before_the_folder_is_made(self, tmp_path, texts, fields, message):
        config = put(toy_language.config(texts), fields)
        with pytest.raises(ValueError, match=message):
            train.run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_other_models(self, tmp_path, texts):
        fresh = {"kind": "encoder_decoder", **toy_language.DECODER}
        for name in ("max_positions", "embedding_dropout", "attention_dropout"):
            del fresh[name]
        with pytest.raises(ValueError, match="is no decoder; encoder-decoders are tuned by"):
            train.run(toy_language.config(texts, model_config=fresh), tmp_path / "run")
        io.save_pretrained(helpers.model(), tmp_path / "encoder")
        config = toy_language.config(texts, model_config={}, model=str(tmp_path / "encoder"))
        with pytest.raises(ValueError, match=r"do not belong together|is no decoder"):
            train.run(config, tmp_path / "run")

    def test_a_mask_without_central_cores(self, texts, tmp_path):
        config = toy_language.config(texts)
        model, folder = fresh(config)
        io.save_pretrained(model, tmp_path / "model", tokenizer_from=folder)
        fields = {"model_config": {}, "tokenizer": "", "model": str(tmp_path / "model")}
        config = put(config, {**fields, **EXPERTS, "experts__form": "switch"})
        config.experts.cores = 5  # of dense experts it would mean nothing
        config.optimizer.central_mask.rate = 0.5
        with pytest.raises(ValueError, match="the model has no central cores"):
            train.run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()
