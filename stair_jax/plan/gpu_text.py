"""What the text of a program that XLA compiled for a GPU shows, and only that: pure functions.

`parse` reads the text of `jax.stages.Compiled.as_text()`. The other functions return what should
not be there, or what should be, as lines for people to read. They need neither JAX nor a GPU.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

LARGE = 2**20  # bytes from which an array counts: a layer's smallest matrix over 8 GPUs has as many
GATHERS = ("all-gather", "reduce-scatter")  # what FSDP needs for each matrix
COLLECTIVES = (*GATHERS, "all-reduce", "all-to-all", "collective-permute", "ragged-all-to-all")
_BYTES = {"bf16": 2, "f16": 2, "f32": 4, "f64": 8, "s32": 4, "u32": 4, "s64": 8, "u64": 8}
# Only the same bytes under another name or shape, or a part of a tuple.
_VIEWS = ("bitcast", "optimization-barrier", "copy-done", "all-gather-done", "reduce-scatter-done")
# What reads a matrix to make something else of it, or changes a pool in place.
_WORK = ("dot", "convolution", "custom-call", "gather", "scatter", "dynamic-update-slice", "reduce")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    type: str  # "bf16[4096,1024]{1,0}", or a tuple of such
    op: str
    operands: tuple[str, ...]
    line: str
    root: bool

    @property
    def arrays(self) -> list[tuple[str, tuple[int, ...]]]:
        """Dtype and shape of each array of the result."""
        found = re.findall(r"(\w+)\[([\d,]*)\]", re.sub(r"\{[^{}]*\}", "", self.type))
        return [(dtype, tuple(map(int, dims.split(","))) if dims else ()) for dtype, dims in found]

    @property
    def bytes(self) -> int:
        """Bytes of the largest array of the result."""
        return max((_BYTES.get(t, 1) * math.prod(dims) for t, dims in self.arrays), default=0)

    @property
    def total(self) -> int:
        """Bytes of all arrays of the result."""
        return sum(_BYTES.get(t, 1) * math.prod(dims) for t, dims in self.arrays)

    @property
    def source(self) -> str:
        """The path of JAX's operation, such as "jit(_step)/while/body/layers/dot_general"."""
        return self.attribute(r'op_name="([^"]*)"')

    def attribute(self, pattern: str) -> str:
        """Returns what the pattern's group finds in the line, or nothing."""
        match = re.search(pattern, self.line)
        return match[1] if match else ""

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs, a `while`'s condition left out."""
        found = re.findall(
            r"\b(?:calls|body|to_apply|called_computations)=\{?%([\w.\-]+)", self.line
        )
        branches = self.attribute(r"branch_computations=\{([^}]*)\}")
        pair = re.findall(r"(?:true|false)_computation=%([\w.\-]+)", self.line)
        return found + re.findall(r"%([\w.\-]+)", branches) + pair


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program: its computations by name, in the order they run."""

    computations: dict[str, list[Instruction]]
    entry: str

    def has(self, name: str, ops: Sequence[str]) -> bool:
        """Returns whether a computation, or one that it calls, has one of some operations."""
        return any(
            i.op in ops or any(self.has(called, ops) for called in i.called)
            for i in self.computations.get(name, ())
        )


def parse(text: str) -> Program:
    """Returns the program of a compiled text.

    Raises:
        ValueError: the text has no ENTRY.
    """
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (found := _instruction(line)):
            current.append(found)
    if not entry:
        raise ValueError("the text has no ENTRY: it is not that of a compiled program")
    return Program(computations, entry)


def _instruction(line: str) -> Instruction | None:
    start = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not start:
        return None
    rest = line[start.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    op = re.match(r"\s*([\w\-]+)\(", rest[end:])
    if not op:
        return None
    first = end + op.end()
    inside = rest[first : _closing(rest, first - 1)]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return Instruction(start[2], rest[:end], op[1], operands, line.strip(), bool(start[1]))


def _closing(text: str, at: int) -> int:
    """Returns where the bracket that opens at `at` closes."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"a bracket does not close: {text[:200]}")


def passes(program: Program, size: int) -> list[str]:
    """Returns what runs always and reads or writes an array of at least `size` bytes.

    Loops and branches themselves only hand such arrays on; what is in them is left out.
    """
    instructions = program.computations[program.entry]
    large = {i.name for i in instructions if i.bytes >= size}
    free = ("parameter", "tuple", "get-tuple-element", "bitcast", "conditional", "while")
    return [
        i.name
        for i in instructions
        if i.op not in free and (i.name in large or large.intersection(i.operands))
    ]


# Products


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product."""

    where: str  # JAX's path
    dtypes: tuple[str, str]
    text: str  # "f32[8192,4096] x f32[4096,1024]"

    @property
    def of_a_layer(self) -> bool:
        """Whether it belongs to one of the decoder's layers: Flax calls them so."""
        return _in_a_layer(self.where)

    @property
    def float32(self) -> bool:
        """Whether it multiplies float32 by float32 (TF32 on a GPU), be it of rounded numbers."""
        return self.dtypes == ("f32", "f32")


def products(program: Program) -> list[Product]:
    """Returns all matrix products: dots, those inside fusions (Triton's) too, and cuBLAS' calls."""
    found = []
    for instructions in program.computations.values():
        types = {i.name: i for i in instructions}
        for i in instructions:
            if i.op != "dot" and not (
                i.op == "custom-call"
                and "matmul" in i.line + "gemm"
                and re.search(r'target="__cublas', i.line)
            ):
                continue
            sides = [types[name].arrays[0] for name in i.operands[:2]]
            text = " x ".join(f"{t}[{','.join(map(str, dims))}]" for t, dims in sides)
            found.append(Product(i.source, (sides[0][0], sides[1][0]), text))
    return found


def float32_products(program: Program) -> list[str]:
    """Returns a layer's products of float32 by float32: there should be none."""
    return [p.text for p in products(program) if p.of_a_layer and p.float32]


# Weights


def written(program: Program) -> list[str]:
    """Returns where a weight, or what is made of weights alone, is written: nowhere, at best.

    Weights are arrays of 16 bits and at least `LARGE` that the program is given, the pool too. A
    copy, slice or join of them is a second reading and a writing of what a product could have read
    in place. Products, gathers of rows and changes in place are none.
    """
    return [f"{i.op} {i.type.split('{')[0]} {i.source}" for i in _DataFlow(program).written]


def moved(program: Program) -> list[str]:
    """Returns the collectives that move a weight or the pool between GPUs: in decoding, none."""
    return [f"{i.op} {i.type.split('{')[0]} {i.source}" for i in _DataFlow(program).moved]


class _DataFlow:
    """Follows what the program is given through loops, calls, copies and fusions."""

    def __init__(self, program: Program):
        self.program = program
        self.written: list[Instruction] = []
        self.moved: list[Instruction] = []
        parameters = [i for i in program.computations[program.entry] if i.op == "parameter"]
        given = {int(i.attribute(r"parameter\((\d+)\)")): _weight(i) for i in parameters}
        self._follow(program.entry, [given[n] for n in range(len(given))])

    def _follow(self, name: str, given: Sequence[Any]) -> Any:
        """Returns whether a computation's result is a weight: a bool, or one for each element."""
        known: dict[str, Any] = {}
        result: Any = False
        for i in self.program.computations[name]:
            known[i.name] = self._one(
                i, [known.get(operand, False) for operand in i.operands], given
            )
            result = known[i.name] if i.root else result
        return result

    def _one(self, i: Instruction, sides: list[Any], given: Sequence[Any]) -> Any:
        if i.op == "parameter":
            return given[int(i.attribute(r"parameter\((\d+)\)"))]
        if i.op == "tuple":
            return sides
        if i.op == "get-tuple-element":
            index = int(i.attribute(r"index=(\d+)"))
            return sides[0][index] if isinstance(sides[0], list) else sides[0]
        if i.op in _VIEWS:
            return sides[0]
        if i.op in ("while", "call", "conditional", "async-start"):
            # A loop changes the pool in place; what goes in as a weight stays one.
            results = [
                self._follow(called, arguments) for called, arguments in self._calls(i, sides)
            ]
            return sides[0] if i.op == "while" else results[0] if results else False
        return self._writes(i, any(map(_any, sides)))

    def _calls(self, i: Instruction, sides: list[Any]) -> Iterator[tuple[str, list[Any]]]:
        for n, called in enumerate(i.called):
            yield called, [sides[n + 1]] if i.op == "conditional" else sides

    def _writes(self, i: Instruction, weight: bool) -> bool:
        """Files an instruction that writes or moves a weight; returns whether its result is one."""
        if not weight or i.bytes < LARGE or i.op in _WORK:
            return False
        if any(self.program.has(called, _WORK) for called in i.called):
            return False
        if i.op.removesuffix("-start") in COLLECTIVES:
            self.moved.append(i)
        else:
            self.written.append(i)
        return True


def _weight(i: Instruction) -> bool:
    return i.bytes >= LARGE and i.arrays[0][0] in ("bf16", "f16")


def _any(x: Any) -> bool:
    return any(map(_any, x)) if isinstance(x, list) else bool(x)


# Collectives


@dataclasses.dataclass(frozen=True)
class Collective:
    """An all-gather or reduce-scatter of a matrix."""

    text: str
    bytes: int  # of the larger of what it takes and what it gives
    between: int  # products, kernels and fusions while it runs; -1 where the GPU waits for it

    @property
    def apart(self) -> bool:
        """Whether the GPU works while it runs."""
        return self.between > 0


def gathers(program: Program) -> list[Collective]:
    """Returns the all-gathers and reduce-scatters of at least `LARGE` in the loops over layers.

    Those of the layers that XLA takes out of a loop, the first or the last, are left out.
    """
    held = {
        name
        for name, own in program.computations.items()
        if any(_in_a_layer(i.source) for i in own)
    }
    loops = {
        called
        for own in program.computations.values()
        for i in own
        if i.op == "while"
        for called in i.called
    }
    found = []
    for name in held & loops:
        own = program.computations[name]
        if not any(i.op == "while" and held & {*i.called} for i in own):
            found += _gathers(own)
    return found


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The collectives of one kind in one call of a program."""

    op: str
    count: int
    bytes: int  # of the larger of what each takes and what it gives, on one device, all together


def traffic(program: Program) -> list[Traffic]:
    """Returns what a call moves between devices, by kind, loops counted as often as they run.

    A loop that XLA does not know the length of counts once.
    """
    totals: dict[str, list[int]] = {}
    for (op, size), times in _moves(program, program.entry, {}).items():
        total = totals.setdefault(op, [0, 0])
        total[0] += times
        total[1] += times * size
    return [Traffic(op, count, size) for op, (count, size) in sorted(totals.items())]


def _moves(
    program: Program, name: str, known: dict[str, dict[tuple[str, int], int]]
) -> dict[tuple[str, int], int]:
    """Returns how often a computation runs a collective of a kind and size."""
    if name in known:
        return known[name]
    found: dict[tuple[str, int], int] = {}
    own = program.computations.get(name, [])
    by_name = {i.name: i for i in own}
    for i in own:
        op = i.op.removesuffix("-start")
        if op in COLLECTIVES:
            given = sum(by_name[o].total for o in i.operands if o in by_name)
            # What is started gives back what it was given, too.
            taken = i.total - given if i.op.endswith("-start") else i.total
            key = op, max(given, taken)
            found[key] = found.get(key, 0) + 1
            continue
        times = int(i.attribute(r'known_trip_count"?:\{"n":"(\d+)"') or 1) if i.op == "while" else 1
        for called in i.called:
            for key, count in _moves(program, called, known).items():
                found[key] = found.get(key, 0) + times * count
    known[name] = found
    return found


def waiting(found: Sequence[Collective]) -> float:
    """Returns the share, by bytes, that the GPU waits for; 0 where there are no collectives."""
    total = sum(c.bytes for c in found)
    return sum(c.bytes for c in found if not c.apart) / total if total else 0.0


def _gathers(instructions: Sequence[Instruction]) -> list[Collective]:
    found, by_name = [], {i.name: i for i in instructions}
    ends = {
        i.operands[0]: n
        for n, i in enumerate(instructions)
        if i.op.endswith("-done") and i.operands
    }
    for n, i in enumerate(instructions):
        if not _of_a_matrix(i):
            continue
        between = -1
        if i.name in ends and '"is_sync":true' not in i.line:
            inside = instructions[n + 1 : ends[i.name]]
            between = sum(k.op in ("custom-call", "dot", "fusion", "while") for k in inside)
        size = max([i.bytes, *(by_name[o].bytes for o in i.operands if o in by_name)])
        found.append(Collective(f"{i.op} {i.type}", size, between))
    return found


def _of_a_matrix(i: Instruction) -> bool:
    asynchronous = i.op == "async-start" and any(f"{op}" in i.line for op in GATHERS)
    if i.op.removesuffix("-start") not in GATHERS and not asynchronous:
        return False
    return i.bytes >= LARGE and _in_a_layer(i.source)


def _in_a_layer(source: str) -> bool:
    return "/layers" in source  # as Flax names what the decoder scans over
