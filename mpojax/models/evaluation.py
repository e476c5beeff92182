"""Perplexity and speed of decoders.

The protocol of a perplexity is part of the figure: window, stride, how many tokens were predicted,
and that the first token of a window is not.
"""

import dataclasses
import functools
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mpojax import checks
from mpojax.models.decoder import LanguageModel, logits_of, run_stack
from mpojax.models.model import Model, check_length, predicts_next, writes_text
from mpojax.models.variants import dropless

# Logits exist for so many tokens at a time; a vocabulary of 50k: 1,365 tokens.
_LOGIT_BYTES = 256 * 2**20


class TokenScores(NamedTuple):
    """Output of `token_scores`.

    Attributes:
      nats: (batch, length - 1) float32, -log p of each token after the first.
      is_greedy: (batch, length - 1) bool, whether no other token is likelier.
    """

    nats: jax.Array
    is_greedy: jax.Array


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Output of `perplexity`.

    Attributes:
      nats: sum of -log p over all predicted tokens.
      num_tokens: how many were predicted.
      num_windows, window, stride: how the text was cut, in tokens.
      first_id: the token before every window, or None.
    """

    nats: float
    num_tokens: int
    num_windows: int
    window: int
    stride: int
    first_id: int | None = None

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.num_tokens

    @property
    def value(self) -> float:
        """exp(total nats / total tokens), infinite beyond float64.

        >>> long, short = Perplexity(1_000 * 2.0, 1_000, 1, 1_001, 1_001), 10 * 4.0
        >>> round(dataclasses.replace(long, nats=long.nats + short, num_tokens=1_010).value, 6)
        7.536832
        """
        return per_unit(self.nats, self.num_tokens)

    def per_word(self, num_words: int) -> float:
        """The same nats divided by words: comparable across tokenizers."""
        return per_unit(self.nats, num_words)

    @property
    def protocol(self) -> str:
        """How it was measured, in a line."""
        windows = "window" if self.num_windows == 1 else "windows"
        first = "never the first of a window" if self.first_id is None else "behind a begin of text"
        return (
            f"{self.num_windows:,} {windows} of {self.window:,} tokens, stride {self.stride:,}, "
            f"{self.num_tokens:,} tokens predicted ({first})"
        )


class Speed(NamedTuple):
    """Output of `speed`: tokens per second, of all sequences of a batch together.

    Attributes:
      prefill: of reading a prompt; of an encoder, of its forward pass.
      decode: of making token after token behind it, with the KV cache; None without logits.
    """

    prefill: float
    decode: float | None = None


def per_unit(nats: float, count: int) -> float:
    """exp(nats / count): a perplexity per token or per word; infinite beyond float64."""
    return math.exp(nats / count) if nats / count < 700.0 else math.inf


def token_scores(
    model: LanguageModel, input_ids: jax.Array, attention_mask: jax.Array | None = None
) -> TokenScores:
    """-log p of every token but the first of each row, from all tokens before it.

    Logits exist only for a part of the tokens at a time. Compiled once for each shape.

    Args:
      model: a decoder.
      input_ids: (batch, length) integers, length >= 2.
      attention_mask: as in `LanguageModel.forward`; scores of padding mean nothing.
    """
    check_decoder(model, "scores of next tokens need")
    return _token_scores(model, input_ids, attention_mask)


def perplexity(
    model: LanguageModel,
    ids: np.ndarray,
    *,
    window: int = 1024,
    stride: int | None = None,
    num_windows: int | None = None,
    first_id: int | None = None,
    batch_size: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Perplexity:
    """Perplexity of a text: exp(total nats / total tokens).

    Window k holds the tokens [k stride, k stride + window); a last one that is not full is left
    out. In each, every token but the first is predicted from those before it in the window, except
    those that an earlier window has predicted. So stride = window is the usual perplexity of
    disjoint blocks, a smaller stride gives tokens more context at window / stride the cost, a
    larger one samples the text.

    Args:
      model: a decoder; dense, or any matrix in MPO form.
      ids: (T,) integers, the text's tokens.
      window: tokens of a window, up to `model.config.max_positions`.
      stride: tokens from one window to the next; None = `window`.
      num_windows: the first so many windows alone; None = all.
      first_id: a token put before every window, which then holds a token less of the text, all of
        them predicted. Gemma needs its begin of text there; published figures of others are
        without.
      batch_size: windows at a time; changes the figure by rounding alone.
      progress: called with (windows done, of, "").

    Raises:
      ValueError: no decoder, a text shorter than a window, ids outside of the vocabulary (another
        model's tokenizer).
      FloatingPointError: an output that is NaN or infinite; names the window.

    Examples:
      >>> import numpy as np
      >>> from flax import nnx
      >>> from mpojax import models
      >>> sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
      >>> model = models.build(models.DecoderConfig(vocab_size=99, **sizes), rngs=nnx.Rngs(0))
      >>> found = models.perplexity(model, np.arange(90), window=32)
      >>> found.num_windows, found.num_tokens
      (2, 62)
      >>> found.protocol
      '2 windows of 32 tokens, stride 32, 62 tokens predicted (never the first of a window)'

    Source: the protocol of GPTQ and SVD-LLM (arXiv:2210.17323, 2403.07378) for stride = window.
    """
    check_decoder(model, "perplexity needs")
    begin = np.array([] if first_id is None else [first_id], np.int32)
    width = window - len(begin)  # tokens of the text in a window
    stride = width if stride is None else stride
    starts = _window_starts(model, ids, (window, width), stride, num_windows)
    check_vocabulary(model, begin)
    checks.check_value("batch_size", batch_size, checks.integer(1))
    rows = np.asarray(ids, np.int32)[starts[:, None] + np.arange(width)]
    rows = np.concatenate([np.tile(begin, (len(rows), 1)), rows], 1)
    # Predicted tokens that do not count, as the window before has predicted them.
    # Both windows hold width - stride tokens, the first of which only a begin token predicts.
    seen = max(0, width - stride - (1 - len(begin)))
    nats, num_tokens = 0.0, 0
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        # The last batch is filled up with copies of a row: one shape, one program.
        full = np.concatenate([batch, batch[:1].repeat(batch_size - len(batch), 0)])
        found = np.asarray(_token_scores(model, full, None).nats, np.float64)[: len(batch)]
        for number, row in enumerate(found, first):
            row = row[seen if number else 0 :]
            if not np.isfinite(row).all():
                part = _first_not_finite(model, rows[number : number + 1])
                check_finite(row, f"window {number}, counted from 0, from {part} on")
            nats, num_tokens = nats + float(row.sum()), num_tokens + row.size
        if progress is not None:
            progress(first + len(batch), len(rows), "")
    return Perplexity(nats, num_tokens, len(rows), window, stride, first_id)


def speed(
    model: Model,
    *,
    prompt_length: int = 256,
    new_tokens: int = 32,
    batch_size: int = 1,
    rounds: int = 5,
) -> Speed:
    """Tokens per second of prefill and of decoding, medians of some rounds after a warm-up.

    The model is timed as it is: `models.merged` or `compress` decide what is rebuilt. The ids are
    random; no end of text stops the decoding.

    Args:
      model: a decoder or an encoder, with a head or without.
      prompt_length: tokens that prefill reads.
      new_tokens: decoded after them in one program, greedily.
      batch_size: sequences at a time.
      rounds: measurements of each.

    Raises:
      ValueError: an encoder-decoder, a number below 1, or more tokens than the model has positions.

    Examples:
      >>> from flax import nnx
      >>> from mpojax import models
      >>> sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
      >>> model = models.build(models.DecoderConfig(vocab_size=99, **sizes), rngs=nnx.Rngs(0))
      >>> models.speed(model, prompt_length=8, new_tokens=4).decode > 0
      True
    """
    return speeds(
        [model],
        prompt_length=prompt_length,
        new_tokens=new_tokens,
        batch_size=batch_size,
        rounds=rounds,
    )[0]


def speeds(
    models: Sequence[Model],
    *,
    prompt_length: int = 256,
    new_tokens: int = 32,
    batch_size: int = 1,
    rounds: int = 5,
) -> list[Speed]:
    """`speed` of several models, timed in turns: what else a machine does slows all of them alike.

    So ratios of these are worth more than those of figures from different times. All models are in
    memory together.
    """
    counts = {
        "prompt_length": prompt_length,
        "new_tokens": new_tokens,
        "batch_size": batch_size,
        "rounds": rounds,
    }
    checks.check(counts, dict.fromkeys(counts, checks.integer(1)))
    passes = [_passes(model, prompt_length, new_tokens, batch_size) for model in models]
    seconds = _median_seconds([call for own in passes for call, _ in own], rounds)
    rest = iter(seconds)
    return [Speed(*(tokens / next(rest) for _, tokens in own)) for own in passes]


def _passes(model: Model, prompt_length: int, new_tokens: int, batch_size: int) -> list[tuple]:
    """(call, tokens that it reads or makes): prefill and decoding, or the one forward pass."""
    rng = np.random.default_rng(0)
    ids = rng.integers(model.config.vocab_size, size=(batch_size, prompt_length))
    ids = jnp.asarray(ids, jnp.int32)
    if not (predicts_next(model) or writes_text(model)):
        check_length(model.config, prompt_length)
        return [(functools.partial(_forward, model, ids), ids.size)]
    check_decoder(model, "the speed of generation needs")
    check_length(model.config, prompt_length + new_tokens)
    # The first new token comes out of the prompt; the others are those that decoding makes.
    prefill = functools.partial(_prefill, model, ids, new_tokens + 1)
    # An empty cache: what stands in it changes no time, and decoding compiles beside prefill.
    cache = model.start_cache(batch_size, prompt_length + new_tokens)
    cache = dataclasses.replace(cache, position=jnp.int32(prompt_length))
    decode = functools.partial(_decode, model, ids[:, 0], cache, new_tokens)
    return [(prefill, ids.size), (decode, batch_size * new_tokens)]


def check_decoder(model: Model, needs: str) -> None:
    """Raises ValueError for a model that does not predict the next token of a plain text."""
    if predicts_next(model):
        return
    kind = type(model).__name__
    if writes_text(model):
        kind += ": score its answers"
    elif kind == "Decoder":
        kind += ", without a map to logits: give the folder of the whole language model"
    else:
        kind += ": measure its accuracy on a task"
    raise ValueError(
        f"{needs} a decoder, which predicts the next token of a text; this model is of the kind "
        f"{kind}."
    )


def check_vocabulary(model: Model, ids: np.ndarray, where: str = "the text") -> None:
    """Raises ValueError for token ids that the model has no row of: of another tokenizer."""
    ids, size = np.asarray(ids), model.config.vocab_size
    if ids.size and (ids.min() < 0 or ids.max() >= size):
        raise ValueError(
            f"{where} has token ids in {ids.min()}..{ids.max()}, the model knows 0..{size - 1}: "
            "this tokenizer does not fit; give the one that was saved with the model."
        )


def check_finite(nats: np.ndarray, where: str) -> None:
    """Raises FloatingPointError for scores of tokens that are NaN or infinite."""
    if not np.isfinite(nats).all():
        raise FloatingPointError(
            f"{where}: the model's output is NaN or infinite. Its parameters may hold NaN, or its "
            "dtype may be too narrow for its activations."
        )


def _first_not_finite(model: LanguageModel, ids: np.ndarray) -> str:
    """The part of a model whose output on some ids is NaN or infinite, while its input is not."""
    x, context = model.begin(jnp.asarray(ids))
    if not jnp.isfinite(x).all():
        return "the embeddings"
    for index in range(model.tower.num_layers):
        x, *_ = model.tower.layer(index)(x, context.of_layer(index))
        if not jnp.isfinite(x).all():
            return f"layers/{index}"
    return "the output map"


def _window_starts(model, ids, sizes: tuple[int, int], stride, num_windows) -> np.ndarray:
    """First tokens of all windows, checked; sizes of a window and of the text in it."""
    window, width = sizes
    checks.check_value("window", window, checks.integer(2))
    checks.check_value("stride", stride, checks.integer(1))
    checks.check_value("num_windows", num_windows, checks.integer(1) | checks.null())
    check_length(model.config, window)
    ids = np.asarray(ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(
            f"ids has shape {ids.shape} and type {ids.dtype}; it must be (T,) integers."
        )
    if len(ids) < width:
        raise ValueError(
            f"the text has {len(ids):,} tokens, fewer than one window={window:,}: give more text, "
            "or a smaller window."
        )
    check_vocabulary(model, ids)
    return np.arange(0, len(ids) - width + 1, stride)[:num_windows]


@jax.jit
def _token_scores(model, input_ids, attention_mask) -> TokenScores:
    model = dropless(model)
    mask = None if attention_mask is None else attention_mask[:, :-1]
    hidden = run_stack(model, input_ids[:, :-1], mask).hidden
    targets = input_ids[:, 1:]
    count = targets.size
    part = min(count, max(1, _LOGIT_BYTES // (4 * model.config.vocab_size)))
    parts = -(-count // part)

    def in_parts(array):
        flat = array.reshape(count, *array.shape[2:])
        padding = [(0, parts * part - count)] + [(0, 0)] * (flat.ndim - 1)
        return jnp.pad(flat, padding).reshape(parts, part, *flat.shape[1:])

    def score(pair):
        hidden, targets = pair
        logits = logits_of(model, hidden)
        right = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        largest = jnp.max(logits, axis=-1)
        # log sum_v exp(l_v - max) + max - l_target
        total = jnp.sum(jnp.exp(logits - largest[:, None]), axis=-1)
        return jnp.log(total) + largest - right, right >= largest

    found = jax.lax.map(score, (in_parts(hidden), in_parts(targets)))
    return TokenScores(*(array.reshape(-1)[:count].reshape(targets.shape) for array in found))


@jax.jit
def _forward(model, ids):
    return model(ids)


@functools.partial(jax.jit, static_argnums=2)
def _prefill(model, ids, max_new_tokens):
    """(first new token (batch,), cache that can hold the others)."""
    logits, _, cache = dropless(model).prefill(ids, None, max_new_tokens)
    return jnp.argmax(logits, axis=-1), cache


@functools.partial(jax.jit, static_argnums=3)
def _decode(model, token, cache, num):
    """The next `num` tokens (num, batch)."""
    model = dropless(model)

    def step(carry, _):
        token, cache = carry
        output = model.decode(token[:, None], None, cache)
        token = jnp.argmax(output.logits[:, 0], axis=-1)
        return (token, output.cache), token

    return jax.lax.scan(step, (token, cache), length=num)[1]


def _median_seconds(calls: Sequence[Callable], rounds: int) -> list[float]:
    """Of some rounds, in each of which every call is timed once; calls before them compile."""
    # Side by side: a program of layers one by one compiles on one core, most of the time.
    with futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        jax.block_until_ready(list(pool.map(lambda call: call(), calls)))
    times = [[_seconds(call) for call in calls] for _ in range(rounds)]
    return [statistics.median(own) for own in zip(*times, strict=True)]


def _seconds(call: Callable) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start
