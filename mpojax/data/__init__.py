"""Data: tasks, tokenizers and batches that are a pure function of (seed, step)."""

from mpojax.data.corpus.corpus import Corpus
from mpojax.data.corpus.masked_lm import PretrainData, PretrainEvalData
from mpojax.data.corpus.masking import Masking
from mpojax.data.mixture import Mixture
from mpojax.data.pipeline import EvalBatches, EvalData, TrainBatches, TrainData
from mpojax.data.sources.squad import SpanSplit
from mpojax.data.tasks import TASKS, check_task, load_task
from mpojax.data.text.classification import Split, TextTask, few_shot, from_arrays, from_files
from mpojax.data.text.language_modeling import (
    LanguageModelData,
    LanguageModelEvalData,
    TokenStream,
    continuations,
)
from mpojax.data.text.plain import Texts, load_documents, load_texts
from mpojax.data.text.text_to_text import (
    TextPairs,
    TextToTextTask,
    load_text_to_text,
    multi_task,
    task_names,
)
from mpojax.data.tokenizers.chat import chat_prompt
from mpojax.data.tokenizers.tokenizer import Tokenizer
from mpojax.data.tokenizers.vocabulary import train_bpe

__all__ = [
    "TASKS",
    "Corpus",
    "EvalBatches",
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
    "TrainBatches",
    "TrainData",
    "chat_prompt",
    "check_task",
    "continuations",
    "few_shot",
    "from_arrays",
    "from_files",
    "load_documents",
    "load_task",
    "load_text_to_text",
    "load_texts",
    "multi_task",
    "task_names",
    "train_bpe",
]
