"""Tasks: what is learnt, from which data, and how that is measured; told by a config's fields.

`corpus`: pre-training; `dataset` with neither `task` nor `tasks`: plain text for a decoder, or
with one of these: text to text; `choices`: a task as a choice of texts; else `tasks`: several tasks
on one encoder, `task`: one.
"""

from collections.abc import Mapping
from typing import Any

from mpojax import checks
from mpojax.methods import options as options_lib
from mpojax.methods import protocol, t_few


def read(config: Mapping[str, Any]) -> protocol.Task:
    """The task of a config.

    Raises:
      ValueError: values that are not allowed.
    """
    from experiments.tasks import (
        choosing,
        classification,
        language_modeling,
        pretraining,
        several,
        text_to_text,
    )

    if "corpus" in config:
        own = options_lib.read(options_lib.Pretraining, config)
        return pretraining.Pretraining(own)
    if "choices" in config:
        fields = options_lib.plain(config["choices"])
        own = checks.from_mapping(t_few.ChoiceSettings, fields, "config.choices")
        return choosing.Choosing(own)
    if "dataset" in config:
        generation = options_lib.read(options_lib.Generation, config)
        is_answered = config.get("task") or config.get("tasks")
        kind = text_to_text.TextToText if is_answered else language_modeling.LanguageModeling
        return kind(generation)
    return classification.Classification() if "task" in config else several.SeveralTasks()
