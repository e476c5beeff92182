"""What tasks of language models have in common: the model, experts, losses of routers, sizes."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.tasks import loading
from mpojax import checks, data, models, training
from mpojax.methods import options as options_lib
from mpojax.methods import protocol
from mpojax.methods.mpoe import gradient_mask, router_statistics
from mpojax.training import state as state_lib

# Last values of the training that results keep.
_KEPT = ("mask_rate", "router/dropped", "router/entropy", "router/max_load")


class LanguageTask(protocol.Task):
    """A task of a decoder or an encoder-decoder."""

    def check(self, options: options_lib.Options) -> None:
        own = options.model
        if bool(own.model) == bool(own.model_config):
            raise ValueError(
                "give config.model, a folder with a model, or config.model_config, the sizes of a "
                "fresh one: just one of them."
            )
        kind = own.model_config.get("kind", "decoder")
        checks.check_value("config.model_config.kind", kind, checks.one_of(*loading.FRESH))
        _check_mesh(options)
        _check_mask(options)

    def load(
        self,
        options: options_lib.Options,
        tokenizer: data.Tokenizer,
        folder: str,
        kind: type | tuple,
    ) -> models.Model:
        """The model with its experts and adapters, before it is compressed.

        Raises:
          ValueError: it is of another kind, or settings that do not fit.
        """
        seed = options.training.seed
        model = loading.load(options.model, seed, tokenizer, folder)
        if not isinstance(model, kind):
            raise ValueError(f"config.model={options.model.model!r} is no {_KINDS[kind]}.")
        model = loading.with_dropout(options.model, model)
        model = loading.with_experts(options.model, seed, model)
        model = loading.adapted(options, model)
        own = options.model
        label = options.training.variant or own.architecture or own.model or "a fresh model"
        loading.log_size(label, model)
        return model

    def loss(self, options: options_lib.Options) -> Any:
        """Cross-entropy, with the losses of the routers of experts."""
        own = options.training
        return training.language_model_loss(own.balance_weight, own.z_weight, own.label_smoothing)

    def compressed(self, options: options_lib.Options, model: models.Model, train: Any):
        """The model by the config's rules, and the report; calibrated on training data."""
        own, calibration = options.compression, None
        if own.calibration_examples:
            rows = options.training.batch_size
            # Whole batches, one program for all: at least the examples that are asked for.
            count = -(-own.calibration_examples // rows)
            batches = _Batches(train, count, slice(0, rows))
            calibration = loading.calibrated(options, model, batches, self.loss(options))
        return loading.compressed(own, model, calibration)

    def hooks(self, setup: protocol.Setup, model: models.Model) -> Sequence[training.Hook]:
        if not model.config.experts:
            return ()
        dev = setup.dev
        looked_at = next(iter(dev.values())) if isinstance(dev, Mapping) else dev
        every = setup.options.training.router_every
        return (router_statistics.RouterStatistics(looked_at, every=every),)

    def finish(self, setup: protocol.Setup, result: protocol.Result, folder) -> protocol.Result:
        if not setup.test:
            return result
        found = setup.evaluate(result.state, setup.test, setup.mesh)
        test = {f"test_{name}": value for name, value in found.items()}
        return dataclasses.replace(result, metrics=result.metrics | test)

    def report(self, setup: protocol.Setup, result: protocol.Result) -> dict[str, Any]:
        state = result.state
        form, number = experts_of(state.model())
        last = result.extra["fit"]["metrics"] if result.extra.get("fit") else {}
        return {
            "form": form,
            "experts": number,
            "mask": _mask(setup.options).get("rate"),
            "parameter_bytes": _num_bytes(state.trainable) + _num_bytes(state.frozen),
            "optimizer_bytes": _num_bytes(state.optimizer),
            "training": {name: last[name] for name in _KEPT if name in last},
        }


GENERATING = (models.LanguageModel, models.EncoderDecoder)
_KINDS = {
    GENERATING: "decoder or encoder-decoder; encoders are tuned by configs/mpop/base.py",
    models.LanguageModel: "decoder; encoder-decoders are tuned by config.task or config.tasks",
    models.EncoderDecoder: "encoder-decoder; decoders are tuned by config.dataset, without a task",
}


class _Batches:
    """The first batches of training data."""

    def __init__(self, train: Any, count: int, rows: slice):
        self.train, self.count, self.rows = train, count, rows

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.train.rows(index, self.rows)


def experts_of(model: models.Model) -> tuple[str, int]:
    """(form, number) of a model's experts, the most where blocks differ; ("dense", 1) without."""
    forms, number = set(), 1
    for path in model.config.feed_forwards():
        settings = model.config.experts_of(path)
        if settings is not None:
            has_chain = any(matrix.startswith(f"{path}/") for matrix in model.shapes)
            shared = "mpoe" if settings.share_central else "unshared"
            forms.add(shared if has_chain else "switch")
            number = max(number, settings.number)
    return "+".join(sorted(forms)) or "dense", number


def _num_bytes(tree: Any) -> int:
    return sum(array.nbytes for array in state_lib.flatten(tree).values())


def _check_mesh(options: options_lib.Options) -> None:
    """Raises ValueError for experts that the mesh cannot divide."""
    mesh, own = training.make_mesh(dict(options.training.mesh)), options.model
    parts, is_dense = mesh.shape["expert"], not own.expert_rules
    if parts > 1 and is_dense and not own.model:
        raise ValueError(f"config.mesh.expert={parts} has no experts to split: see config.experts.")
    if parts > 1 and not is_dense and own.experts["number"] % parts:
        raise ValueError(
            f"config.experts.number={own.experts['number']} cannot be divided over "
            f"config.mesh.expert={parts} devices; choose a multiple of {parts}, or another mesh."
        )


def _mask(options: options_lib.Options) -> Mapping[str, Any]:
    """Fields of the gradient mask, which an optimizer's config need not have."""
    return options.training.optimizer.get("central_mask") or {}


def _check_mask(options: options_lib.Options) -> None:
    """Raises ValueError for a gradient mask that cannot be, or without central cores to mask."""
    own, settings = options.training, options.model
    mask = _mask(options)
    gradient_mask.read(mask, {"any": "central"}, own.seed)
    has_none = settings.experts.get("form", "dense") in ("dense", "switch")
    has_none = has_none and not options.compression.compression_rules
    if mask.get("rate") is not None and has_none and settings.model_config:
        raise ValueError(
            f"config.optimizer.central_mask.rate={mask['rate']} has no central cores to mask: "
            f"experts of form {settings.experts.get('form', 'dense')!r} have none."
        )
