"""Work of a compiled program, operation by operation, read from its optimised HLO.

XLA's own cost analysis counts the body of a loop once; here an operation counts as often as it
runs. Bytes are those that cross the chip's main memory, with the padding of tiled layouts: arrays
that the compiler keeps on the chip (memory spaces `S(1)` and up) are free, and of a slice of a
large array only the slice is moved.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16, "c64": 64, "c128": 128, "token": 0}
COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"),
    *("ragged-all-to-all", "collective-broadcast"),
)
# Operations that move nothing by themselves.
_FREE = frozenset(
    (
        *("parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "domain"),
        *("partition-id", "replica-id", "after-all", "opt-barrier", "add-dependency"),
    )
)
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLS = "calls|to_apply|branch_computations|true_computation|false_computation"
_JOINS = 'custom_call_target="ConcatBitcast"'  # parts that were copied side by side
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a program: dtype, shape, and its layout as text, such as "1,0:T(8,128)S(1)"."""

    dtype: str
    shape: tuple[int, ...]
    layout: str = ""

    @property
    def on_chip(self) -> bool:
        """Whether it is kept outside of main memory."""
        return bool(re.search(r"S\([1-9]", self.layout))

    @functools.cached_property
    def num_bytes(self) -> int:
        """Bytes in memory, padded to whole tiles."""
        # The number in a name: f32, s8; of f8e4m3fn the one before its exponent.
        bits = _BITS.get(self.dtype) or int(re.sub(r"\D", "", self.dtype.partition("e")[0]) or 0)
        sizes = list(self.shape)
        order, _, tiles = self.layout.partition(":")
        if tile := re.match(r"T\(([\d,]+)\)", tiles):
            # The last size of a tile is along the axis whose neighbours are adjacent in memory.
            pairs = zip(order.split(","), reversed(tile[1].split(",")), strict=False)
            for axis, size in ((int(a), int(s)) for a, s in pairs if a):
                sizes[axis] = -(-sizes[axis] // size) * size
        return math.prod(sizes) * bits // 8


@dataclasses.dataclass(frozen=True)
class Operation:
    """An instruction: name, opcode, results, the text of its arguments, the rest of its line."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    arguments: str
    rest: str
    is_root: bool

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of its operands."""
        return tuple(_NAME.findall(self.arguments))

    @property
    def num_bytes(self) -> int:
        """Bytes of all results."""
        return sum(array.num_bytes for array in self.results)

    def attribute(self, name: str) -> str:
        """Text of an attribute; empty where there is none."""
        found = re.search(rf"[ ,]{name}=(\{{[^}}]*\}}|[^,\s]+)", self.rest)
        return found[1] if found else ""

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Computations that it calls."""
        found = re.findall(rf"(?:{_CALLS})=(\{{[^}}]*\}}|%[\w.\-]+)", self.rest)
        return tuple(name for text in found for name in _NAME.findall(text))


@dataclasses.dataclass(frozen=True)
class Work:
    """What one operation does in the whole program.

    Attributes:
      name, opcode: of the operation; a collective in a fusion has a `Work` of its own.
      op_name: where it comes from, as jax names it: "jit(f)/jvp()/while/body/dot_general".
      times: how often it runs.
      flops, bytes: each time; `bytes` crosses main memory.
      touched: bytes each time, wherever its arrays are.
      cycles: each time, as the compiler estimates; 0 where it says nothing.
      collective: kind, or "".
      sent: bytes each time of a collective's array: the whole one of a gather or a reduction.
      group: chips that take part in it.
    """

    name: str
    opcode: str
    op_name: str
    times: int
    flops: int = 0
    bytes: int = 0
    touched: int = 0
    cycles: int = 0
    collective: str = ""
    sent: int = 0
    group: int = 1


Computation = dict[str, Operation]
Size = Callable[[Array], int]


class Program:
    """A compiled program: `Program(compiled.as_text())`.

    Attributes:
      computations: {name: {name: operation}}.
      entry: name of the first.
      num_devices: that run it together.
      unknown_loops: loops whose number of turns the compiler does not tell; these count once.
    """

    def __init__(self, text: str):
        counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", text.partition("\n")[0])
        self.num_devices = math.prod(map(int, counts))
        self.computations: dict[str, Computation] = {}
        self.entry, self.unknown_loops, current = "", 0, None
        for line in text.splitlines():
            if header := re.match(r"(ENTRY )?%?([\w.\-]+) .*->.*\{\s*$", line):
                current = self.computations.setdefault(header[2], {})
                self.entry = header[2] if header[1] else self.entry
            elif current is not None and (operation := _operation(line)):
                current[operation.name] = operation
        if not self.entry:
            raise ValueError("no text of a compiled program: it has no ENTRY computation.")

    def work(self) -> list[Work]:
        """All operations that run."""
        self.unknown_loops = 0
        return list(self._walk(self.entry, 1))

    def _walk(self, name: str, times: int) -> Iterator[Work]:
        scope = self.computations[name]
        for operation in scope.values():
            opcode = operation.opcode
            # An asynchronous operation counts where it starts.
            if opcode in _FREE or opcode.endswith(("-done", "-update")) or _JOINS in operation.rest:
                continue
            if opcode == "while":
                body = _NAME.findall(operation.attribute("body"))[0]
                yield from self._walk(body, times * self._turns(operation))
            elif opcode == "conditional":
                branches = [list(self._walk(branch, times)) for branch in operation.called]
                yield from max(branches, key=lambda works: sum(w.flops + w.bytes for w in works))
            elif opcode in ("call", "async-start"):
                yield from self._walk(operation.called[0], times)
            else:
                yield from self._one(scope, operation, times)

    def _turns(self, loop: Operation) -> int:
        if found := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.rest):
            return int(found[1])
        # The loops of jax count from 0 while they are below a constant.
        condition = self.computations[_NAME.findall(loop.attribute("condition"))[0]]
        root = next(part for part in condition.values() if part.is_root)
        limits = [part.arguments for part in condition.values() if part.opcode == "constant"]
        if "direction=LT" in root.rest and len(limits) == 1 and limits[0].isdigit():
            return int(limits[0])
        self.unknown_loops += 1
        return 1

    def _one(self, scope: Computation, operation: Operation, times: int) -> Iterator[Work]:
        parts = [(scope, operation), *self._inside(operation)]
        cycles = re.search(r'"estimated_cycles":"(\d+)"', operation.rest)
        op_name = re.search(r'op_name="([^"]*)"', operation.rest)
        common = {"op_name": op_name[1] if op_name else "", "times": times}
        for inner, part in parts:
            if kind := _collective(part.opcode):
                yield Work(part.name, part.opcode, **common, **self._exchange(inner, part, kind))
                if part is operation:
                    return
        yield Work(
            operation.name,
            operation.opcode,
            **common,
            flops=sum(_flops(inner, part) for inner, part in parts),
            bytes=self._moved(scope, operation, _in_hbm),
            touched=self._moved(scope, operation, _anywhere),
            cycles=int(cycles[1]) if cycles else 0,
        )

    def _exchange(self, scope: Computation, operation: Operation, kind: str) -> dict:
        operands = [scope[name].num_bytes for name in operation.operands if name in scope]
        # An asynchronous start has its operands among its results; a gather's result is larger.
        sent = max(sum(operands), *(array.num_bytes for array in operation.results))
        if kind == "all-reduce":
            sent = sum(operands)
        return {"collective": kind, "sent": sent, "group": self._group(operation)}

    def _group(self, operation: Operation) -> int:
        """Chips of one group: of {{0,1},{2,3}}, or of [2,4]<=[8]; of {}: all."""
        if found := re.search(r"replica_groups=\[([\d,]+)\]<=", operation.rest):
            return int(found[1].split(",")[-1])
        if "replica_groups={}" in operation.rest:
            return self.num_devices
        found = re.search(r"replica_groups=\{\{([\d,]*)\}", operation.rest)
        return len(found[1].split(",")) if found else 2  # collective-permute: neighbours

    def _inside(self, operation: Operation) -> Iterator[tuple[Computation, Operation]]:
        """Operations of a fusion, those of fusions in it too."""
        for name in operation.called if operation.opcode == "fusion" else ():
            inner = self.computations[name]
            for part in inner.values():
                yield inner, part
                yield from self._inside(part)

    def _moved(self, scope: Computation, operation: Operation, size: Size) -> int:
        """Bytes read and written, an array's counted by `size`."""
        opcode, results = operation.opcode, operation.results
        operands = [scope[name] for name in operation.operands if name in scope]
        if opcode.endswith("-start"):  # its results hold its operands: each is moved once
            return sum(size(array) for array in results if array.shape)
        if opcode in _SLICES:
            return 2 * sum(map(size, results))
        if opcode == "dynamic-update-slice":
            return 2 * sum(map(size, operands[1].results))
        if opcode == "fusion":
            inner = self.computations[operation.called[0]]
            arrays = [array for operand in operands for array in operand.results]
            read = [self._read(inner, i, a) for i, a in enumerate(arrays) if size(a)]
            root = next(part for part in inner.values() if part.is_root)
            return sum(read) + self._written(inner, root, results, size)
        return sum(map(size, results)) + sum(size(a) for each in operands for a in each.results)

    def _read(self, inner: Computation, index: int, array: Array) -> int:
        """Bytes that a fusion reads of operand `index`: slices alone, where it uses no more."""
        text = str(index)
        for part in inner.values():
            if part.opcode == "parameter" and part.arguments == text:
                return min(array.num_bytes, self._used(inner, part, array.num_bytes))
        return array.num_bytes

    def _used(self, inner: Computation, value: Operation, whole: int) -> int:
        """Bytes of a value that are used in its computation."""
        total = 0
        for user in inner.values():
            if value.name not in user.operands:
                continue
            first = user.operands[0] == value.name
            if user.opcode == "bitcast":
                total += self._used(inner, user, whole)
            elif user.opcode == "fusion":
                called = self.computations[user.called[0]]
                total += self._read(called, user.operands.index(value.name), value.results[0])
            elif first and user.opcode in _SLICES:
                total += user.num_bytes
            elif not (first and user.opcode == "dynamic-update-slice"):
                return whole
        return total

    def _written(
        self, inner: Computation, root: Operation, results: Sequence[Array], size: Size
    ) -> int:
        """Bytes that a fusion writes: of an array that it updates in place, the slice alone."""
        whole = sum(map(size, results))
        if whole == 0:
            return 0
        if root.opcode == "bitcast" and root.operands[0] in inner:
            return self._written(inner, inner[root.operands[0]], results, size)
        if root.opcode == "tuple":
            pairs = zip(root.operands, results, strict=True)
            return sum(self._written(inner, inner[name], (array,), size) for name, array in pairs)
        if root.opcode == "fusion":
            called = self.computations[root.called[0]]
            root = next(part for part in called.values() if part.is_root)
            return self._written(called, root, results, size)
        if root.opcode == "dynamic-update-slice":
            return min(whole, inner[root.operands[1]].num_bytes)
        return whole


def _operation(line: str) -> Operation | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$", line)
    if not found:
        return None
    text = re.sub(r"/\*.*?\*/", "", found[3])
    end = _closing(text) if text.startswith("(") else text.index(" ")
    results = tuple(
        Array(dtype, tuple(int(n) for n in dims.split(",") if n), layout)
        for dtype, dims, layout in _ARRAY.findall(text[:end])
    )
    call = text[end:].strip()
    opcode = call.partition("(")[0]
    close = len(opcode) + _closing(call[len(opcode) :])
    arguments = call[len(opcode) + 1 : close - 1]
    return Operation(found[2], opcode, results, arguments, call[close:], bool(found[1]))


def _closing(text: str) -> int:
    """Index behind the parenthesis that closes the first character."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return index + 1
    return len(text)


def _in_hbm(array: Array) -> int:
    return 0 if array.on_chip else array.num_bytes


def _anywhere(array: Array) -> int:
    return array.num_bytes


def _collective(opcode: str) -> str:
    """Kind of a collective, or ""."""
    kind = opcode.removesuffix("-start")
    return kind if kind in COLLECTIVES else ""


def _flops(scope: Computation, operation: Operation) -> int:
    """FLOPs of a product, 2 for a multiply-add; 0 of other operations."""
    # Of GPUs most products are calls of cuBLAS.
    called = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', operation.rest)
    if operation.opcode == "dot" or (operation.opcode == "custom-call" and called):
        left = scope[operation.operands[0]].results[0].shape
        text = called[1] if called else operation.attribute("lhs_contracting_dims")
        summed = math.prod(left[int(d)] for d in re.findall(r"\d+", text))
        return 2 * math.prod(operation.results[0].shape) * summed
    if operation.opcode == "convolution":
        return _convolution_flops(scope, operation)
    if operation.opcode == "custom-call":  # of a Pallas kernel, by its own estimate
        found = re.search(r'"cost_estimate":\{[^}]*"flops":"?(\d+)', operation.rest)
        return int(found[1]) if found else _attention_flops(scope, operation)
    return 0


# Products in the kernels of splash attention: forward q k^T and p v; backward once more q k^T and
# dp = do v^T, then dq = ds k, or dk = ds^T q and dv = p^T do.
_PRODUCTS = {"fwd": 2, "dq": 3, "dkv": 4}


def _attention_flops(scope: Computation, operation: Operation) -> int:
    """FLOPs of splash attention, which makes no estimate; what a mask leaves out counts, too."""
    found = re.match(r"splash_m[hq]a_(fwd|dq|dkv)_", operation.name)
    if not found:
        return 0
    # After three arrays about the mask: q (..., S, D) and k (..., T, D).
    q, k = (scope[name].results[0].shape for name in operation.operands[3:5])
    return _PRODUCTS[found[1]] * 2 * math.prod(q) * k[-2]


def _convolution_flops(scope: Computation, operation: Operation) -> int:
    """FLOPs of a convolution, the form in which TPUs run products with several digits.

    2 * batch * features out * features in * the pairs (output, window) whose input is no padding.
    """
    left, kernel = (scope[name].results[0].shape for name in operation.operands[:2])
    out = operation.results[0].shape
    of_left, of_kernel, of_out = re.split("_|->", operation.attribute("dim_labels"))
    total = 2 * out[of_out.index("b")] * out[of_out.index("f")] * kernel[of_kernel.index("i")]
    window = re.search(r"window=\{([^}]*)\}", operation.rest)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}
    for axis in range(len(of_out) - 2):
        digits = {name: text.split("x")[axis] for name, text in fields.items()}
        total *= _pairs(
            left[of_left.index(str(axis))],
            kernel[of_kernel.index(str(axis))],
            out[of_out.index(str(axis))],
            int(digits.get("stride", 1)),
            int(digits.get("pad", "0_0").split("_")[0]),
            int(digits.get("lhs_dilate", 1)),
            int(digits.get("rhs_dilate", 1)),
        )
    return total


@functools.cache
def _pairs(size, window, outputs, stride, pad, dilation, window_dilation) -> int:
    """Pairs (output o, window k) with o * stride + k * window_dilation - pad in the input."""
    total = 0
    for k in range(window):
        first = k * window_dilation - pad
        total += sum(
            0 <= first + o * stride < (size - 1) * dilation + 1
            and (first + o * stride) % dilation == 0
            for o in range(outputs)
        )
    return total
