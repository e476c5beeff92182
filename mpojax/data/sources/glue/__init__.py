"""The nine GLUE tasks: their own files, those of the hub, and splits that all have labels."""

from mpojax.data.sources.glue.files import TASKS, GlueTask, columns_of, hub_split, load

__all__ = ["TASKS", "GlueTask", "columns_of", "hub_split", "load"]
