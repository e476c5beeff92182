"""Settings of published language models, as their configurations on the Hugging Face hub give them.

No weights: for counting, and for tests of the real shapes. T5 is version 1.0 (ReLU, tied tables).
"""

import dataclasses

from mpojax.models.decoder_config import DecoderConfig, EncoderDecoderConfig

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
_WIDER = {"hidden_size": 1024, "num_layers": 24, "num_heads": 16, "intermediate_size": 4096}

LANGUAGE_PRESETS: dict[str, DecoderConfig | EncoderDecoderConfig] = {
    # Raffel et al., "Exploring the Limits of Transfer Learning" (JMLR 2020).
    "t5-base": _T5_BASE,
    "t5-large": dataclasses.replace(_T5_BASE, num_decoder_layers=24, **_WIDER),
    # Radford et al., "Language Models are Unsupervised Multitask Learners" (2019).
    "gpt2": _GPT2,
    "gpt2-medium": dataclasses.replace(_GPT2, num_kv_heads=16, **_WIDER),
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
