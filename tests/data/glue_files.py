"""Tiny folders with the file names and columns of GLUE's own download."""

import json
import pathlib

MNLI = (
    "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
    "sentence2_parse sentence1 sentence2"
)
MRPC = "Quality;#1 ID;#2 ID;#1 String;#2 String"
STSB = "index genre filename year old_index source1 source2 sentence1 sentence2"

# task -> folder, {file: (header, labels or None)}; header "" = the file has none. The columns of
# text are filled with "<task> <file> <row> <column>", the others with "-".
LAYOUTS: dict[str, tuple[str, dict[str, tuple[str, tuple[str, ...] | None]]]] = {
    "cola": (
        "CoLA",
        {
            "train.tsv": ("", ("1", "0", "1")),
            "dev.tsv": ("", ("0", "1")),
            "test.tsv": ("index sentence", None),
        },
    ),
    "sst2": (
        "SST-2",
        {
            "train.tsv": ("sentence label", ("0", "1", "1")),
            "dev.tsv": ("sentence label", ("0", "1")),
            "test.tsv": ("index sentence", None),
        },
    ),
    "mrpc": (
        "MRPC",
        {
            "train.tsv": (MRPC, ("0", "1", "1")),
            "dev.tsv": (MRPC, ("1", "0")),
            "test.tsv": (MRPC.replace("Quality", "index"), None),
        },
    ),
    "stsb": (
        "STS-B",
        {
            "train.tsv": (STSB + " score", ("5.000", "0.25", "3.8")),
            "dev.tsv": (STSB + " score", ("0.000", "4.75")),
            "test.tsv": (STSB, None),
        },
    ),
    "qqp": (
        "QQP",
        {
            "train.tsv": ("id qid1 qid2 question1 question2 is_duplicate", ("0", "1", "0")),
            "dev.tsv": ("id qid1 qid2 question1 question2 is_duplicate", ("1", "0")),
            "test.tsv": ("id question1 question2", None),
        },
    ),
    "mnli": (
        "MNLI",
        {
            "train.tsv": (MNLI + " label1 gold_label", ("neutral", "entailment", "contradiction")),
            "dev_matched.tsv": (
                MNLI + " label1 label2 label3 label4 label5 gold_label",
                ("entailment", "neutral"),
            ),
            "dev_mismatched.tsv": (
                MNLI + " label1 label2 label3 label4 label5 gold_label",
                ("contradiction", "neutral"),
            ),
            "test_matched.tsv": (MNLI, None),
            "test_mismatched.tsv": (MNLI, None),
        },
    ),
    "qnli": (
        "QNLI",
        {
            "train.tsv": ("index question sentence label", ("entailment", "not_entailment")),
            "dev.tsv": ("index question sentence label", ("not_entailment", "entailment")),
            "test.tsv": ("index question sentence", None),
        },
    ),
    "rte": (
        "RTE",
        {
            "train.tsv": ("index sentence1 sentence2 label", ("entailment", "not_entailment")),
            "dev.tsv": ("index sentence1 sentence2 label", ("not_entailment", "entailment")),
            "test.tsv": ("index sentence1 sentence2", None),
        },
    ),
    "wnli": (
        "WNLI",
        {
            "train.tsv": ("index sentence1 sentence2 label", ("0", "1")),
            "dev.tsv": ("index sentence1 sentence2 label", ("1", "0")),
            "test.tsv": ("index sentence1 sentence2", None),
        },
    ),
}
LABELS = ("label", "score", "gold_label", "Quality", "is_duplicate")
TEXTS = ("sentence", "sentence1", "sentence2", "question", "question1", "question2")


def names(header: str) -> list[str]:
    return header.split(";") if ";" in header else header.split() or ["source", "label", "*", "s"]


def write(root: pathlib.Path, task: str) -> pathlib.Path:
    """Writes the folder of a task under `root`/glue and returns it."""
    folder_name, layout = LAYOUTS[task]
    folder = root / "glue" / folder_name
    folder.mkdir(parents=True)
    for file, (header, labels) in layout.items():
        lines = ["\t".join(names(header))] if header else []
        for row in range(2 if labels is None else len(labels)):
            fields = []
            for column in names(header):
                if column in LABELS and labels is not None:
                    fields.append(labels[row])
                elif column in TEXTS or column == "s" or "String" in column:
                    fields.append(f'{task} "{file} \u2028 é {row} {column} ')
                else:
                    fields.append("-")
            lines.append("\t".join(fields))
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def squad_questions() -> dict:
    """Two paragraphs, three questions, one with two right answers."""
    first = "  The cat sat on the old mat. It was a warm night in Paris."
    second = "Ada wrote the first program."

    def question(name, text, context, *answers):
        found = [{"text": a, "answer_start": context.index(a)} for a in answers]
        return {"id": name, "question": text, "answers": found}

    one = [
        question("q1", " Where did the cat sit? ", first, "on the old mat", "mat"),
        question("q2", "Where was the night warm?", first, "Paris"),
    ]
    two = [question("q3", "Who wrote the first program?", second, "Ada")]
    paragraphs = [{"context": first, "qas": one}, {"context": second, "qas": two}]
    return {"version": "1.1", "data": [{"title": "Tales", "paragraphs": paragraphs}]}


def write_squad(root: pathlib.Path) -> pathlib.Path:
    """Writes `root`/squad with both files."""
    folder = root / "squad"
    folder.mkdir()
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (folder / name).write_text(json.dumps(squad_questions()), encoding="utf-8")
    return folder
