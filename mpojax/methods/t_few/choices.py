"""Choices of texts: their arrays, their likelihoods, the losses that learn them, their evaluation.

log p(n, t)     of token t of choice n, given the source and the tokens before it
beta(n)         = sum_t log p(n, t) / T_n^length_norm
L_LM            = - mean over tokens of the right choice of log p
L_LN            = - log softmax_n beta, at the right choice
L_UL            = - mean over tokens of the wrong choices of log(1 - p + floor)
"""

import string
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mpojax import checks, data, models
from mpojax.training import evaluation, objectives
from mpojax.training.scores import labelled

_WEIGHT = checks.number(0)
_FIELDS = ("text", "pair")


def _is_template(value) -> bool:
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(value) if name is not None]
    except (TypeError, ValueError):
        return False
    return bool(names) and set(names) <= set(_FIELDS)


@checks.settings("config.choices.")
class ChoiceSettings:
    """How a labelled task becomes a choice of texts, and how it is learnt.

    Attributes:
      template: of a source; {text} and {pair} stand for the texts of an example.
      names: text of every class, in their order; (): the names that the task has for them.
      lm_weight, normalised_weight, unlikelihood_weight: of L_LM, L_LN, L_UL.
      length_norm: power of the length by which the log-likelihood of a choice is divided, in L_LN
        and where choices are ranked; 0: not at all.
      floor: in the logarithm of L_UL, as in the authors' code.
    """

    template: str = checks.field(
        checks.Allowed("a text with {text}, and {pair} where there are pairs", _is_template),
        "{text}",
    )
    names: tuple[str, ...] = checks.field(checks.sequence(checks.text()), ())
    lm_weight: float = checks.field(_WEIGHT, 1.0)
    normalised_weight: float = checks.field(_WEIGHT, 1.0)
    unlikelihood_weight: float = checks.field(_WEIGHT, 1.0)
    length_norm: float = checks.field(_WEIGHT, 1.0)
    floor: float = checks.field(checks.number(0, below=1), 1e-2)

    def __post_init__(self):
        if not (self.lm_weight or self.normalised_weight or self.unlikelihood_weight):
            raise ValueError("config.choices: all weights are zero: nothing would be learnt.")

    def texts_of(self, task: data.TextTask) -> tuple[str, ...]:
        """The choices of a task.

        Raises:
          ValueError: it has no classes, or other numbers of names; names that are equal or empty.
        """
        names = self.names or task.label_names
        if task.kind != "classification":
            raise ValueError(f"task {task.name!r} is a {task.kind}: only classes are chosen from.")
        if len(names) != task.num_labels or len({*names, ""}) <= len(names):
            raise ValueError(
                f"config.choices.names={tuple(names)} must be {task.num_labels} different texts, "
                f"one for each class of {task.name!r}."
            )
        return tuple(names)

    def sources(self, split: data.Split) -> list[str]:
        """The source of every example.

        Raises:
          ValueError: a template with a pair, or without, against the examples.
        """
        pairs = split.pairs if split.pairs is not None else [""] * len(split)
        if (split.pairs is not None) != ("{pair}" in self.template):
            raise ValueError(
                f"config.choices.template={self.template!r} must {'' if any(pairs) else 'not '}"
                "have {pair}, as the examples have."
            )
        texts = zip(split.texts, pairs, strict=True)
        return [self.template.format(text=text, pair=pair) for text, pair in texts]


def encode(
    sources: Sequence[str],
    choices: Sequence[Sequence[str]],
    labels: np.ndarray | None,
    tokenizer: data.Tokenizer,
    *,
    max_length: int = 256,
    with_source: bool = False,
) -> dict[str, np.ndarray]:
    """Arrays of N examples with C choices each, for `TrainData` and `EvalData`.

    Args:
      sources: N texts; what is longer loses its beginning.
      choices: C texts for each.
      labels: (N,) the right choice, or None.
      max_length: tokens of a source, with its end, or with a choice behind it.
      with_source: for decoders: each choice stands behind its source, a space between. Else, for
        encoder-decoders: sources and choices apart, both with their ends.

    Returns:
      choice_ids (N, C, T) int32; choice_weights (N, C, T) float32, 1 at tokens of a choice;
      choice_mask (N, C, T) int32, 1 at real tokens; labels, and right_weights (N,), tokens of the
      right choice; and where sources are apart input_ids, attention_mask (N, S) int32.

    Raises:
      ValueError: no end-of-text token where one is needed; a choice that does not fit; a source
        without a token, where choices stand behind it.
    """
    if not with_source and tokenizer.eos_id is None:
        raise ValueError("the tokenizer names no end-of-text token, which ends all texts of a T5.")
    end = [] if with_source else [tokenizer.eos_id]
    heads = list(tokenizer.encode_plain(sources))
    if with_source and not all(heads):
        empty = next(index for index, ids in enumerate(heads) if not ids)
        raise ValueError(
            f"sources[{empty}]={sources[empty]!r} has no token: a decoder tells the first token of "
            "a choice by the text before it. Leave it out, or put a prompt around the texts."
        )
    flat = [f" {text}" if with_source else text for each in choices for text in each]
    tails = [[*ids, *end] for ids in tokenizer.encode_plain(flat)]
    if max(map(len, tails)) >= max_length:
        raise ValueError(f"max_length={max_length} is too short for the longest of the choices.")
    count = len(tails) // max(len(sources), 1)
    arrays = {} if labels is None else {"labels": np.asarray(labels)}
    # Row k = n C + c is choice c of source n; what is too long loses the source's beginning.
    rows = [[]] * len(tails)
    if with_source:
        rows = [heads[k // count][-(max_length - len(tail)) :] for k, tail in enumerate(tails)]
    else:
        kept = [[*ids[-(max_length - 1) :], *end] for ids in heads]
        arrays["input_ids"], arrays["attention_mask"] = _padded(kept, tokenizer.pad_id)
    ids, mask = _padded([[*row, *tail] for row, tail in zip(rows, tails, strict=True)], 0)
    # (N C, T): 1 from the end of the source to the end of the choice, 0 at padding.
    starts = np.array([len(row) for row in rows])[:, None]
    weights = mask * (np.arange(ids.shape[1]) >= starts)
    found = {"choice_ids": ids, "choice_mask": mask, "choice_weights": np.float32(weights)}
    arrays |= {name: a.reshape(len(sources), count, -1) for name, a in found.items()}
    if labels is not None:
        right = arrays["choice_weights"][np.arange(len(sources)), arrays["labels"]]
        arrays["right_weights"] = right.sum(axis=-1)
    return arrays


def _padded(rows: Sequence[Sequence[int]], pad: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask (rows, longest)."""
    length = max(map(len, rows))
    ids = np.full((len(rows), length), pad or 0, np.int32)
    mask = np.zeros_like(ids)
    for k, row in enumerate(rows):
        ids[k, : len(row)], mask[k, : len(row)] = row, 1
    return ids, mask


def log_likelihoods(
    model: models.Model, batch: dict, key: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(log p, weights) of the tokens of every choice, both (B, C, T) float32.

    Args:
      model: an encoder-decoder, or a decoder whose choices stand behind their sources.
      batch: rows of `encode`.
      key: turns dropout on.
    """
    shape = batch["choice_ids"].shape
    ids_RxT, mask_RxT = (batch[n].reshape(-1, shape[-1]) for n in ("choice_ids", "choice_mask"))
    weights = batch["choice_weights"]
    more = () if key is None else (key,)
    if "input_ids" in batch:
        # Inputs (start, c_0, ..., c_{T-2}) predict c_0, ..., c_{T-1}. The model repeats each of the
        # B sources for its C targets.
        start = jnp.full((ids_RxT.shape[0], 1), model.config.decoder_start_id, ids_RxT.dtype)
        inputs = jnp.concatenate([start, ids_RxT[:, :-1]], axis=1)
        source = batch["input_ids"], batch["attention_mask"]
        logits, targets = model(*source, inputs, mask_RxT, *more), ids_RxT
    else:
        # The logits at t - 1 are those of token t.
        logits, targets = model(ids_RxT, mask_RxT, *more)[:, :-1], ids_RxT[:, 1:]
        weights = weights[..., 1:]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)
    return -nats.reshape(weights.shape), weights


def scores(log_p_BxCxT: jax.Array, weights_BxCxT: jax.Array, length_norm: float) -> jax.Array:
    """beta (B, C) of every choice, see the module.

    >>> log_p = jnp.log(jnp.array([[[0.5, 0.5], [0.2, 1.0]]]))
    >>> beta = scores(log_p, jnp.array([[[1.0, 1.0], [1.0, 0.0]]]), 1.0)
    >>> [round(float(p), 3) for p in jnp.exp(beta[0])]
    [0.5, 0.2]
    """
    total = jnp.sum(log_p_BxCxT * weights_BxCxT, axis=-1)
    return total / jnp.sum(weights_BxCxT, axis=-1) ** length_norm


def choice_loss(settings: ChoiceSettings) -> objectives.LossFunction:
    """L_LM + L_LN + L_UL by their weights, and the batch's accuracy; see the module.

    Means over tokens are over those of the whole batch, also where it comes in micro-batches.
    """

    def loss(model, batch: dict, key: jax.Array | None) -> tuple[jax.Array, dict]:
        log_p, weights = log_likelihoods(model, batch, key)
        labels = objectives.labels_of(batch)
        # (B, C, T): 1 at the tokens of the right choice, of the wrong ones.
        right = jax.nn.one_hot(labels, log_p.shape[1], dtype=jnp.float32)[..., None] * weights
        wrong = weights - right
        beta = scores(log_p, weights, settings.length_norm)
        # The floor keeps the logarithm finite where p is 1, and bounds its gradient by 1 / floor.
        unlike = jnp.log(1.0 - jnp.exp(log_p) + settings.floor)
        # Of an average micro-batch where there are some, see `training.TrainStep`.
        num_right = batch.get("right_weights_total", jnp.sum(right))
        num_wrong = batch.get("choice_weights_total", jnp.sum(weights)) - num_right
        terms = {
            "lm_loss": -jnp.sum(right * log_p) / num_right,
            "normalised_loss": jnp.mean(
                optax.softmax_cross_entropy_with_integer_labels(beta, labels)
            ),
            "unlikelihood_loss": -jnp.sum(wrong * unlike) / num_wrong,
        }
        own = settings.lm_weight, settings.normalised_weight, settings.unlikelihood_weight
        total = sum(weight * term for weight, term in zip(own, terms.values(), strict=True))
        hits = jnp.argmax(beta, axis=-1) == labels
        return total, terms | {"accuracy": jnp.mean(hits.astype(jnp.float32))}

    return loss


def evaluator(metrics: Sequence[str], length_norm: float = 1.0) -> evaluation.Evaluator:
    """Rank classification: the choice of the best score is the answer.

    Args:
      metrics: names in `training.scores.labelled.METRICS`.
      length_norm: see `ChoiceSettings`.
    """

    def predict(model, batch):
        beta = scores(*log_likelihoods(model, batch), length_norm)
        found = jnp.argmax(beta, axis=-1).astype(jnp.int32)
        return {"predictions": found, "is_finite": evaluation.rows_are_finite(beta)}

    def measure(columns):
        pair = columns["predictions"], columns["labels"]
        return {name: labelled.METRICS[name](*pair) for name in metrics}

    return evaluation.Evaluator(predict, measure, metrics)
