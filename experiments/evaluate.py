r"""Measures a model as it is: perplexity, accuracy on a task, samples, speed.

    python -m experiments.evaluate --model=FOLDER --texts=wikitext2 --data_dir=DATA
    python -m experiments.evaluate --model=model.gguf --texts=book.txt --workdir=runs/book
    python -m experiments.evaluate --model=FOLDER --task=sst2 --data_dir=DATA

Takes folders of this library and of Hugging Face, GGUF files, hub ids and `package:NAME/PATH`. A
decoder gets a perplexity on `--texts`, samples of its text and its speed; an encoder with a head,
the metrics of `--task` and its speed. Perplexity is exp(total nats / total tokens) over windows of
the text; the first token of a window is not predicted. Prints a table; with `--workdir` also
written, as `result.json` and `report.md`.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from experiments import command_line, sources
from experiments.tasks import heads
from mpojax import checks, data, files, io, models, tables, training
from mpojax.checks import field, flag, integer, number, one_of, text
from mpojax.methods import multitask
from mpojax.models import evaluation
from mpojax.training import progress

_HEADERS = ("measure", "value", "how")


@checks.settings(prefix="--")
class Evaluation:
    """What is measured, and how; see the flags."""

    model: str = field(text())
    tokenizer: str = field(text(), "")
    texts: str = field(text(), "")
    split: str = field(text(), "test")
    task: str = field(text(), "")
    data_dir: str = field(text(), "")
    window: int | None = field(integer(2), None)
    stride: int | None = field(integer(1), None)
    num_windows: int | None = field(integer(1), None)
    bos: bool = field(flag(), False)
    examples: int | None = field(integer(1), None)
    max_length: int = field(integer(2), 128)
    batch_size: int | None = field(integer(1), None)
    prompt: str = field(text(), "The moon is")
    chat: bool | None = field(flag(), None)
    new_tokens: int = field(integer(0), 48)
    temperature: float = field(number(above=0), 0.7)
    top_p: float = field(number(above=0, high=1), 0.95)
    seed: int = field(integer(0), 0)
    prompt_length: int = field(integer(1), 256)
    rounds: int = field(integer(0), 5)
    serving: str = field(text(), "")
    dtype: str = field(one_of("float32", "bfloat16"), "float32")


@dataclasses.dataclass
class Subject:
    """The model that is measured.

    Attributes:
      model, source: and the folder or file that it was loaded from.
      tokenizer, tokenizer_folder: None where nothing needs one.
    """

    model: models.Model
    source: str
    tokenizer: data.Tokenizer | None
    tokenizer_folder: str | None


def run(settings: Evaluation, folder: str | None = None) -> dict[str, Any]:
    """Measures, prints the table and writes it into `folder`; returns the content of result.json.

    Raises:
      ValueError: settings that do not fit the model or each other; a folder of another evaluation.
      OSError: there is no such model, text or task.
    """
    start = time.perf_counter()
    workdir = _workdir(settings, folder) if folder and _is_claimed(folder) else None
    if workdir is not None and workdir.finished:
        found = checks.read_json(workdir.path / "result.json")
    else:
        found = measure(load(settings), settings)
        found["seconds"] = time.perf_counter() - start
        if folder:
            workdir = workdir or _workdir(settings, folder)
            files.write_atomic(workdir.path / "report.md", _report(found))
            workdir.write_result(found)
    print(_text(found))
    return found


def load(settings: Evaluation) -> Subject:
    """The model, and its tokenizer where texts are read or made.

    Raises:
      ValueError: a tokenizer that does not fit the model.
    """
    source = sources.locate(settings.model, "model")
    where = sources.locate(settings.tokenizer, "tokenizer") if settings.tokenizer else source
    try:
        tokenizer, folder = sources.load_tokenizer(where)
    except FileNotFoundError as error:
        if settings.texts or settings.task:
            raise
        logging.warning("no samples: %s", error)
        tokenizer = folder = None
    model = io.load_pretrained(source)
    if settings.dtype != model.config.dtype:
        model = models.reconfigure(model, dtype=settings.dtype)
    if tokenizer is not None:
        sources.check_tokenizer(tokenizer, model.config.vocab_size, where)
    return Subject(model, source, tokenizer, folder)


def measure(subject: Subject, settings: Evaluation) -> dict[str, Any]:
    """All that the settings ask for and the model can, by name."""
    model = subject.model
    found = {
        "model": settings.model,
        "kind": type(model).__name__,
        "parameters": sum(models.count_parameters(model).values()),
        "parameter_bytes": sum(array.nbytes for array in jax.tree.leaves(model)),
        "dtype": settings.dtype,
    }
    if settings.texts:
        found["perplexity"] = perplexity(subject, settings)
    if settings.task:
        found["task"] = task_metrics(subject, settings)
    if settings.new_tokens and model.prompts_continue and subject.tokenizer is not None:
        found["samples"] = samples(subject, settings)
    if settings.rounds and not isinstance(model, models.EncoderDecoder):
        found["speed"] = speed(model, settings)
    if settings.serving:
        length, new = timed_lengths(model, settings.prompt_length, settings.new_tokens)
        io.export_serving(model, settings.serving, length=length, max_new_tokens=new)
        found["serving"] = settings.serving
    return found


def perplexity(subject: Subject, settings: Evaluation) -> dict[str, Any]:
    """Perplexity per token and per word, with the protocol.

    Raises:
      ValueError: no decoder, or a text shorter than a window.
    """
    model = subject.model
    evaluation.check_decoder(model, "--texts: perplexity needs")
    if settings.bos and subject.tokenizer.bos_id is None:
        raise ValueError("--bos: the tokenizer names no begin of text (bos_token).")
    documents = data.load_documents(settings.texts, settings.split, settings.data_dir or None)
    stream = data.TokenStream.from_documents(documents, subject.tokenizer, settings.texts)
    with progress.progress(f"perplexity on {settings.texts}") as advance:
        found = models.perplexity(
            model,
            stream.tokens,
            window=settings.window or min(1024, model.config.max_positions),
            stride=settings.stride,
            num_windows=settings.num_windows,
            first_id=subject.tokenizer.bos_id if settings.bos else None,
            batch_size=settings.batch_size or 1,
            progress=advance,
        )
    # Of a text that is read in part: its nats per token times the tokens that its words take.
    per_word = found.nats_per_token * len(stream) / max(stream.num_words, 1)
    return {
        "texts": settings.texts,
        "value": found.value,
        # exp(nats per word)
        "per_word": evaluation.per_unit(per_word, 1),
        "nats_per_token": found.nats_per_token,
        "text_tokens": len(stream),
        "text_words": stream.num_words,
        "protocol": found.protocol,
        **dataclasses.asdict(found),
    }


def task_metrics(subject: Subject, settings: Evaluation) -> dict[str, Any]:
    """The official metrics of a task on its development split.

    Raises:
      ValueError: a model without a head for the task.
    """
    task = data.load_task(settings.task, settings.data_dir or None)
    model = _with_head_of(subject, task)
    split = task[task.dev_split]
    split = split.take(settings.examples) if settings.examples else split
    length = min(settings.max_length, model.config.max_positions)
    encoded = split.encode(subject.tokenizer, length)
    batches = data.EvalData(encoded, settings.batch_size or 32, lengths=_lengths(length))
    metrics = training.evaluator(task, split)(model, batches)
    return {"name": task.name, "split": task.dev_split, "examples": len(split), **metrics}


def _lengths(longest: int) -> tuple[int, ...]:
    """Lengths that batches are padded to: few, so that few programs are compiled."""
    # 16, 32, ... below the longest, and the longest.
    return (*(2**k for k in range(4, 20) if 2**k < longest), longest)


def _with_head_of(subject: Subject, task: data.TextTask) -> models.Model:
    """The model with the one head that is for the task.

    Raises:
      ValueError: it has none, or one for other classes.
    """
    model = subject.model
    of_task = [head for head in heads.read(subject.source) if head.task == task.name]
    model = multitask.single_task(model, of_task[0]) if of_task else model
    config, head = model.config, "span" if task.kind == "span" else "classifier"
    has_head = getattr(config, "num_labels", None) is not None and not config.masked_lm
    if not has_head:
        raise ValueError(
            f"--task={task.name}: this {type(model).__name__} has no head for a task; tune one "
            "(python -m experiments.train) and give its folder."
        )
    fits = (config.num_labels, config.head) == (task.num_labels, head)
    if not (fits and heads.same_classes(config.label_names, task.label_names)):
        own = checks.listed(config.label_names) or f"{config.num_labels} outputs"
        raise ValueError(
            f"--task={task.name}: the head of the model is for {own}, the task has "
            f"{checks.listed(task.label_names) or f'{task.num_labels} outputs'}."
        )
    return model


def samples(subject: Subject, settings: Evaluation) -> list[dict[str, str]]:
    """A greedy and a sampled continuation of the prompt, or answer to it in a chat."""
    prompt, is_chat = _prompt(subject, settings)
    kinds = {
        "greedy": models.Sampling(),
        f"temperature {settings.temperature:g}, top_p {settings.top_p:g}": models.Sampling(
            temperature=settings.temperature, top_p=settings.top_p
        ),
    }
    made = []
    for how, sampling in kinds.items():
        answer = continuation(
            subject.model,
            subject.tokenizer,
            prompt,
            max_new_tokens=settings.new_tokens,
            sampling=sampling,
            key=jax.random.key(settings.seed),
        )
        made.append({"how": how, "prompt": settings.prompt, "chat": is_chat, "text": answer})
    return made


def continuation(
    model: models.Model, tokenizer: data.Tokenizer, prompt: str, **options: Any
) -> str:
    """The text that a model puts behind a prompt; options of `models.generate`."""
    found = models.generate(model, [tokenizer.encode_prompt(prompt)], **options)
    return tokenizer.decode(np.asarray(found.ids[0, : int(found.lengths[0])]))


def _prompt(subject: Subject, settings: Evaluation) -> tuple[str, bool]:
    """The text that the model continues, and whether a chat template made it.

    Raises:
      ValueError: --chat without a template.
    """
    messages = [{"role": "user", "content": settings.prompt}]
    wants_chat = settings.chat is not False
    found = data.chat_prompt(subject.tokenizer_folder, messages) if wants_chat else None
    if settings.chat and found is None:
        raise ValueError(f"--chat: the tokenizer of {subject.source} has no chat template.")
    return (settings.prompt, False) if found is None else (found, True)


def speed(model: models.Model, settings: Evaluation) -> dict[str, Any]:
    """Tokens per second of one sequence; a short model's prompt leaves positions to decode.

    Of a decoder with its layers one by one, as those of a compressed model are.
    """
    model = models.unstacked(model) if models.predicts_next(model) else model
    length, new = timed_lengths(model, settings.prompt_length, settings.new_tokens)
    with progress.waiting("timing"):
        found = models.speed(model, prompt_length=length, new_tokens=new, rounds=settings.rounds)
    return {
        "prefill_tokens_per_second": found.prefill,
        "decode_tokens_per_second": found.decode,
        "prompt_length": length,
        "rounds": settings.rounds,
        "device": f"{jax.default_backend()} ({jax.devices()[0].device_kind})",
    }


def timed_lengths(model: models.Model, prompt: int, new: int) -> tuple[int, int]:
    """(tokens of a prompt, of what follows) that fit into the positions of the model."""
    positions = model.config.max_positions
    new = min(new or 1, positions // 2)
    return min(prompt, positions - new), new


def _text(found: Mapping[str, Any]) -> str:
    """The table and the samples as a terminal shows them."""
    table = tables.text(_HEADERS, list(_rows(found)), left=3, wrap=_HEADERS[2:])
    lines = (f"{title}\n{text}" for title, text in _samples(found))
    return "\n\n".join([found["model"], table, *lines])


def _report(found: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    table = tables.markdown(_HEADERS, list(_rows(found)), left=3)
    quotes = (
        "{}\n\n> {}".format(title, text.replace("\n", "\n> ")) for title, text in _samples(found)
    )
    return "\n\n".join([f"# {found['model']}", table, *quotes]) + "\n"


def _samples(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what it is, text) of every sample."""
    for sample in found.get("samples", ()):
        kind = "answer to" if sample["chat"] else "continuation of"
        yield f"{sample['how']}, {kind} {sample['prompt']!r}:", sample["text"].strip()


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(measure, value, how) of every figure."""
    size = f"{found['parameter_bytes'] / 2**20:,.0f} MiB in memory"
    yield "parameters", f"{found['parameters']:,}", f"{found['kind']}, {size}"
    if text := found.get("perplexity"):
        yield "perplexity", f"{text['value']:.4g}", f"{text['texts']}: {text['protocol']}"
        words = f"{text['text_tokens']:,} tokens are {text['text_words']:,} words"
        yield "perplexity per word", f"{text['per_word']:.4g}", words
    if task := found.get("task"):
        where = f"{task['name']}, {task['split']}: {task['examples']:,} examples"
        for name in [name for name in task if name not in ("name", "split", "examples")]:
            yield name, f"{task[name]:.4f}", where
    if timed := found.get("speed"):
        how = f"one sequence, median of {timed['rounds']}, {timed['device']}"
        length = f"{timed['prompt_length']} tokens, {how}"
        yield "prefill tokens/s", f"{timed['prefill_tokens_per_second']:,.1f}", length
        if timed["decode_tokens_per_second"] is not None:
            yield "decode tokens/s", f"{timed['decode_tokens_per_second']:,.1f}", how


def _is_claimed(folder: str) -> bool:
    return (files.at(folder) / "config.json").is_file()


def _workdir(settings: Evaluation, folder: str) -> training.Workdir:
    return training.Workdir(folder, {"evaluation": dataclasses.asdict(settings)})


def define_flags() -> None:
    """The flags; what is not given is as `Evaluation` has it."""
    flags.DEFINE_string("model", None, "Folder, GGUF file, hub id or package:NAME/PATH.")
    flags.DEFINE_string("tokenizer", None, "Folder of the tokenizer; default: the model's own.")
    flags.DEFINE_string("texts", None, "For perplexity: a file, or texts as config.dataset names.")
    flags.DEFINE_string("split", None, "Of texts that have splits. Default: test.")
    flags.DEFINE_string("task", None, "For a model with a head: a task as config.task names it.")
    flags.DEFINE_string("data_dir", None, "Folder of texts and tasks. Default: $MPOJAX_DATA.")
    flags.DEFINE_integer("window", None, "Tokens of a window. Default: 1024, or all positions.")
    flags.DEFINE_integer("stride", None, "Tokens from window to window. Default: the window.")
    flags.DEFINE_integer("num_windows", None, "The first so many windows alone. Default: all.")
    flags.DEFINE_bool("bos", None, "Begin of text before every window: Gemma needs it.")
    flags.DEFINE_integer("examples", None, "The first so many of the task alone. Default: all.")
    flags.DEFINE_integer("max_length", None, "Tokens of an example of the task. Default: 128.")
    flags.DEFINE_integer("batch_size", None, "Default: 1 window, or 32 examples.")
    flags.DEFINE_string("prompt", None, "What samples continue, or answer. Default: The moon is.")
    flags.DEFINE_bool(
        "chat", None, "Whether the prompt goes through the chat template. Default: if there is one."
    )
    flags.DEFINE_integer("new_tokens", None, "Of a sample; 0: no samples. Default: 48.")
    flags.DEFINE_float("temperature", None, "Of the sampled text. Default: 0.7.")
    flags.DEFINE_float("top_p", None, "Of the sampled text. Default: 0.95.")
    flags.DEFINE_integer("seed", None, "Of the sampled text. Default: 0.")
    flags.DEFINE_integer("prompt_length", None, "Of the timed prefill. Default: 256.")
    flags.DEFINE_integer("rounds", None, "Rounds of timing; 0: no timing. Default: 5.")
    flags.DEFINE_string("serving", None, "Folder for compiled programs: io.export_serving.")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "Of the products. Default: float32.")
    flags.DEFINE_string(
        "workdir", None, "Folder for result.json and report.md.", allow_override=True
    )
    flags.mark_flag_as_required("model")


if __name__ == "__main__":
    define_flags()
    command_line.run(command_line.main_of(Evaluation, run))
