"""Names of layers by the paths of stacked parameters: `layer_03`, or `decoder_layer_03`.

A model keeps its layers in `stacks/<k>/...` of one tower, or of several (`towers/encoder/...`).
"""

from collections.abc import Iterable, Mapping


def stack_of(path: str) -> str:
    """`towers/decoder/stacks/0` of a parameter in it."""
    parts = path.split("/")
    return "/".join(parts[: parts.index("stacks") + 2])


def tower_of(stack: str) -> str:
    """`decoder` of `towers/decoder/stacks/0`."""
    return stack.rpartition("stacks/")[0].rstrip("/").rpartition("/")[2]


def firsts(sizes: Mapping[str, int]) -> dict[str, int]:
    """{stack: number of what lies in the stacks before it, of the same tower}.

    Args:
      sizes: {stack: number of what lies in it}.
    """
    made: dict[str, int] = {}
    done: dict[str, int] = {}
    for stack in sorted(sizes, key=lambda name: int(name.rpartition("/")[2])):
        tower = tower_of(stack)
        made[stack] = done.get(tower, 0)
        done[tower] = made[stack] + sizes[stack]
    return made


def prefixes(stacks: Iterable[str]) -> dict[str, str]:
    """{stack: what its layers' names begin with}: nothing where there is one tower alone."""
    towers = {stack: tower_of(stack) for stack in stacks}
    several = len(set(towers.values())) > 1
    return {stack: f"{tower}_" if several else "" for stack, tower in towers.items()}
