"""Several tasks in one model (table 2 of the MPOBERT paper): a single task taken out of it."""

from mpojax import models, training


def single_task(
    model: models.SequenceClassifier, head: training.TaskHead
) -> models.SequenceClassifier:
    """The model of one task, with its head cut out of the shared one; it can be trained on alone.

    A regression's scale goes into the head, so that its output is a label.
    """
    cut = models.head_columns(model, head.start, head.stop, scale=head.scale, shift=head.shift)
    source = cut.config.with_label_names(head.label_names).source_config
    return models.reconfigure(cut, source_config=source)
