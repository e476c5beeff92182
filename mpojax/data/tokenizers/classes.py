"""Tokenizer classes of transformers that are rebuilt from a vocabulary.

    class           model       normalizer            words              around a text
    BertTokenizer   WordPiece   BertNormalizer        BertPreTokenizer   [CLS] A [SEP] B [SEP]
    GPT2Tokenizer   BPE         none                  ByteLevel          nothing
    RobertaTokenizer  BPE       none                  ByteLevel          <s> A </s></s> B </s>
    Qwen2Tokenizer  BPE         NFC                   Split, ByteLevel   nothing

Subclasses that change none of these (DistilBERT's, MobileBERT's, BART's, ...) count as theirs.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

Merges = Sequence[tuple[str, str]]

WORD_PIECE_FILES = (("vocab.txt",),)
# GPT-2's own names second.
BYTE_LEVEL_FILES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """A class of tokenizers.

    Attributes:
      files: what it is built from: alternatives of vocabulary and merges.
      roles: its special tokens where the folder names none.
      required: roles that must have a token.
      build: (vocabulary, merges, settings) -> the tokenizer, nothing around a text.
      surround: (tokenizer, settings) sets the tokens around a text; every token has its id by then.
      adjust: (tokenizer, settings) sets, in a tokenizer that was read from tokenizer.json, what the
        class takes from tokenizer_config.json.
      plain_specials: flags of special tokens (lstrip, ...) are not looked at.
    """

    files: tuple[tuple[str, ...], ...]
    roles: Mapping[str, str]
    required: tuple[str, ...]
    build: Callable[[dict[str, int], Merges, Mapping[str, Any]], tokenizers.Tokenizer]
    surround: Callable[[tokenizers.Tokenizer, Mapping[str, Any]], None]
    adjust: Callable[[tokenizers.Tokenizer, Mapping[str, Any]], None]
    plain_specials: bool = False


def _build_bert(vocabulary, merges, settings) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=settings["unk_token"]))
    backend.normalizer = _bert_normalizer(settings)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def _bert_normalizer(settings) -> normalizers.Normalizer:
    return normalizers.BertNormalizer(
        lowercase=settings.get("do_lower_case", True),
        strip_accents=settings.get("strip_accents"),  # None: as do_lower_case
        handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
    )


def _adjust_bert(backend, settings) -> None:
    if isinstance(backend.model, models.WordPiece):
        backend.normalizer = _bert_normalizer(settings)


def _surround_as_bert(backend, settings) -> None:
    backend.post_processor = processors.BertProcessing(
        *(_numbered(backend, settings[role]) for role in ("sep_token", "cls_token"))
    )


def _adjust_albert(backend, settings) -> None:
    """Sets ALBERT's normalizer, with the character map of its SentencePiece model, and its words.

    Runs of spaces, which older files shorten in their normalizer, end with the split at them.
    """
    if not isinstance(backend.model, models.Unigram):
        return
    steps = [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    if not settings.get("keep_accents", False):
        steps += [normalizers.NFKD(), normalizers.StripAccents()]
    if settings.get("do_lower_case", True):
        steps.append(normalizers.Lowercase())
    steps += _parts(backend.normalizer, normalizers.Sequence, normalizers.Precompiled)
    backend.normalizer = normalizers.Sequence(steps)
    scheme = "always" if settings.get("add_prefix_space", True) else "never"
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme=scheme)]
    )


def _build_gpt2(vocabulary, merges, settings) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=_prefix_space(settings))
    backend.decoder = decoders.ByteLevel()
    return backend


def _build_qwen2(vocabulary, merges, settings) -> tokenizers.Tokenizer:
    backend = _build_gpt2(vocabulary, merges, settings)
    backend.normalizer = normalizers.NFC()
    # Its own expression would split words as GPT-2's; the Split before it has done that.
    to_bytes = pre_tokenizers.ByteLevel(_prefix_space(settings), use_regex=False)
    words = pre_tokenizers.Split(tokenizers.Regex(_QWEN2_WORDS), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])
    return backend


def _adjust_byte_level(backend, settings) -> None:
    for part in _parts(backend.pre_tokenizer, pre_tokenizers.Sequence, pre_tokenizers.ByteLevel):
        part.add_prefix_space = _prefix_space(settings)


def _prefix_space(settings) -> bool:
    return bool(settings.get("add_prefix_space"))


def _surround_by_flags(backend, settings) -> None:
    """Puts bos and eos around texts where add_bos_token and add_eos_token say so."""
    ends = {}
    for role in ("bos_token", "eos_token"):
        wanted = settings.get(f"add_{role}") and settings.get(role) is not None
        ends[role] = [_numbered(backend, settings[role])] if wanted else []
    if not any(ends.values()):
        return
    first, last = ([token for token, _ in ends[role]] for role in ends)
    backend.post_processor = processors.TemplateProcessing(
        single=[*first, "$A", *last],
        # ":1" gives what belongs to the second text token type 1.
        pair=[*first, "$A", *last, *(f"{t}:1" for t in first), "$B:1", *(f"{t}:1" for t in last)],
        special_tokens=[*ends["bos_token"], *ends["eos_token"]],
    )


def _surround_as_roberta(backend, settings) -> None:
    backend.post_processor = processors.RobertaProcessing(
        *(_numbered(backend, settings[role]) for role in ("sep_token", "cls_token")),
        add_prefix_space=_prefix_space(settings),
    )


def _numbered(backend, token: str) -> tuple[str, int]:
    return token, backend.token_to_id(token)


def _parts(whole, sequence: type, kind: type) -> list:
    """The parts of a kind in a normalizer or pre-tokenizer, which may be a sequence of parts."""
    return [
        part
        for part in (whole if isinstance(whole, sequence) else [whole])
        if isinstance(part, kind)
    ]


BERT = Kind(
    WORD_PIECE_FILES,
    {
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    },
    ("unk_token", "cls_token", "sep_token", "pad_token"),
    _build_bert,
    _surround_as_bert,
    _adjust_bert,
)
GPT2 = Kind(
    BYTE_LEVEL_FILES,
    dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"),
    (),
    _build_gpt2,
    _surround_by_flags,
    _adjust_byte_level,
)
ROBERTA = Kind(
    BYTE_LEVEL_FILES,
    {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    },
    ("cls_token", "sep_token"),
    _build_gpt2,
    _surround_as_roberta,
    _adjust_byte_level,
)
QWEN2 = Kind(
    BYTE_LEVEL_FILES,
    dict.fromkeys(("eos_token", "unk_token", "pad_token"), "<|endoftext|>"),
    (),
    _build_qwen2,
    _surround_by_flags,
    _adjust_byte_level,
    plain_specials=True,
)

# By the class's name without "Fast".
KINDS: Mapping[str, Kind] = {
    f"{name}Tokenizer": kind
    for kind, names in (
        (
            BERT,
            ("Bert", "ConvBert", "DistilBert", "Electra", "LayoutLM", "MobileBert", "SqueezeBert"),
        ),
        (GPT2, ("GPT2",)),
        (ROBERTA, ("Bart", "LED", "Longformer", "Roberta")),
        (QWEN2, ("Qwen2",)),
    )
    for name in names
}
# transformers writes no tokenizer.json for these.
WITHOUT_TOKENIZER_JSON = frozenset(
    f"{name}Tokenizer"
    for name in (
        *("BertJapanese", "Bertweet", "BioGpt", "BlenderbotSmall", "ByT5", "CTRL", "Canine"),
        *("Clvp", "CpmAnt", "Dia", "Esm", "FSMT", "Flaubert", "GPTNeoXJapanese", "Mgpstr"),
        *("MyT5", "Perceiver", "Phobert", "ProphetNet", "RoCBert", "Tapas", "Vits"),
        *("Wav2Vec2CTC", "Wav2Vec2PhonemeCTC", "XLM"),
    )
)


def adjust(class_name: str | None, backend: tokenizers.Tokenizer, settings: Mapping) -> None:
    """Sets what a class takes from tokenizer_config.json in addition to a tokenizer.json."""
    if class_name == "AlbertTokenizer":
        _adjust_albert(backend, settings)
    elif class_name in KINDS:
        KINDS[class_name].adjust(backend, settings)
