"""Settings of published models, as their configurations on the Hugging Face hub give them.

No weights: for counting, and for tests of the real shapes. Each encoder has the pooling that its
published classifiers use; `dataclasses.replace(PRESETS[name], num_labels=2)` is such a classifier.
T5 is version 1.0 (ReLU, tied tables).
"""

import dataclasses

from mpojax.models.config import Config, DecoderConfig, EncoderConfig, EncoderDecoderConfig

_ALBERT = EncoderConfig(
    vocab_size=30000,
    embedding_size=128,
    hidden_size=768,
    num_layers=12,
    layer_groups=1,
    num_heads=12,
    intermediate_size=3072,
    activation="gelu_tanh",
    dropout=0.0,
    attention_dropout=0.0,
    classifier_dropout=0.1,
)
_LARGE = {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "intermediate_size": 4096}

_T5_BASE = EncoderDecoderConfig(
    vocab_size=32128, hidden_size=768, num_layers=12, num_heads=12, intermediate_size=3072
)
_GPT2 = DecoderConfig(
    vocab_size=50257,
    hidden_size=768,
    num_layers=12,
    num_heads=12,
    intermediate_size=3072,
    bos_id=50256,
    eos_id=50256,
)
PRESETS: dict[str, Config] = {
    # Lan et al., "ALBERT: A Lite BERT" (ICLR 2020).
    "albert-base-v2": _ALBERT,
    "albert-large-v2": dataclasses.replace(_ALBERT, **_LARGE),
    # Devlin et al., "BERT" (NAACL 2019).
    "bert-base-uncased": EncoderConfig(
        vocab_size=30522, hidden_size=768, num_layers=12, num_heads=12, intermediate_size=3072
    ),
    "bert-large-uncased": EncoderConfig(vocab_size=30522, **_LARGE),
    # Sanh et al., "DistilBERT" (2019). Its encoder has no pooler, its classifier has.
    "distilbert-base-uncased": EncoderConfig(
        vocab_size=30522,
        hidden_size=768,
        num_layers=6,
        num_heads=12,
        intermediate_size=3072,
        token_types=0,
        classifier_dropout=0.2,
        pooler_activation="relu",
    ),
    # Sun et al., "MobileBERT" (ACL 2020).
    "mobilebert-uncased": EncoderConfig(
        vocab_size=30522,
        embedding_size=128,
        projection="word",
        trigram_input=True,
        hidden_size=512,
        num_layers=24,
        num_heads=4,
        intermediate_size=512,
        bottleneck_size=128,
        num_feed_forwards=4,
        activation="relu",
        norm="no_norm",
        dropout=0.0,
        pooling="first",
    ),
    "all-MiniLM-L6-v2": EncoderConfig(
        vocab_size=30522, hidden_size=384, num_layers=6, num_heads=12, intermediate_size=1536
    ),
    # Raffel et al., "Exploring the Limits of Transfer Learning" (JMLR 2020).
    "t5-base": _T5_BASE,
    "t5-large": dataclasses.replace(_T5_BASE, num_decoder_layers=24, **_LARGE),
    # Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
    "gpt2": _GPT2,
    "gpt2-medium": dataclasses.replace(_GPT2, num_kv_heads=16, **_LARGE),
    # Ben Allal et al., "SmolLM2" (2025): the architecture of LLaMA.
    "SmolLM2-135M": DecoderConfig(
        vocab_size=49152,
        hidden_size=576,
        num_layers=30,
        num_heads=9,
        num_kv_heads=3,
        intermediate_size=1536,
        max_positions=8192,
        positions="rotary",
        rotary_base=100_000.0,
        norm="rms_norm",
        activation="silu",
        gated=True,
        attention_bias=False,
        attention_out_bias=False,
        feed_forward_bias=False,
        dropout=0.0,
        embedding_dropout=0.0,
        attention_dropout=0.0,
        bos_id=0,
        eos_id=0,
    ),
}
