"""Data: tasks, tokenizers and batches that are a pure function of (seed, step)."""

from mpojax.data.corpus import Corpus
from mpojax.data.few_shot import few_shot
from mpojax.data.language_modeling import (
    LanguageModelData,
    LanguageModelEvalData,
    TokenStream,
    continuations,
)
from mpojax.data.masked_lm import PretrainData, PretrainEvalData
from mpojax.data.masking import Masking
from mpojax.data.mixture import Mixture
from mpojax.data.pipeline import EvalData, TrainData
from mpojax.data.plain_texts import Texts, load_texts
from mpojax.data.squad import SpanSplit
from mpojax.data.tasks import TASKS, check_task, load_task
from mpojax.data.text_classification import Split, TextTask, from_arrays, from_files
from mpojax.data.text_to_text import TextPairs, TextToTextTask
from mpojax.data.text_to_text_tasks import load_text_to_text, multi_task, task_names
from mpojax.data.tokenizer import Tokenizer
from mpojax.data.vocabulary import train_bpe

__all__ = [
    "TASKS",
    "Corpus",
    "EvalData",
    "LanguageModelData",
    "LanguageModelEvalData",
    "Masking",
    "Mixture",
    "PretrainData",
    "PretrainEvalData",
    "SpanSplit",
    "Split",
    "TextPairs",
    "TextTask",
    "TextToTextTask",
    "Texts",
    "TokenStream",
    "Tokenizer",
    "TrainData",
    "check_task",
    "continuations",
    "few_shot",
    "from_arrays",
    "from_files",
    "load_task",
    "load_text_to_text",
    "load_texts",
    "multi_task",
    "task_names",
    "train_bpe",
]
