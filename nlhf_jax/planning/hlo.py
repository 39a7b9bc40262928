"""What a compiled program's text says of its decode loop: which collectives run for every token.

XLA's own cost analysis counts a loop's body once, and its text has no trip counts for TPU, so the
loops inside the body, rings of collectives, are counted by the constant that ends them.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_ITEMSIZE = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2}
_ITEMSIZE |= {"f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{\s*$")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.+)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|branch_computations)=\{?%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Collectives:
    """How many collectives, and bytes that a chip sends by them."""

    count: float
    sent: float


@dataclasses.dataclass(frozen=True)
class _Instruction:
    result: str
    op: str
    rest: str


def decode_collectives(text: str) -> Collectives | None:
    """Those in the body of the rollout's loop; None if the text shows no such loop."""
    computations = _computations(text)
    for instructions in computations.values():
        for instruction in instructions:
            name = re.search(r'op_name="([^"]*)"', instruction.rest)
            if instruction.op == "while" and name and re.search(r"rollout/while$", name[1]):
                body = re.search(r"body=%?([\w.\-]+)", instruction.rest)
                if body is not None:
                    found = list(_collectives(computations, body[1], 1.0))
                    return Collectives(sum(n for n, _ in found), sum(n * sent for n, sent in found))
    return None


def all_collectives(text: str) -> Collectives:
    """Those of a whole program, its loops' as often as they run."""
    entry = re.search(r"^ENTRY %?([\w.\-]+) ", text, re.MULTILINE)
    assert entry is not None, "the text of a compiled program has an entry"
    found = list(_collectives(_computations(text), entry[1], 1.0))
    return Collectives(sum(n for n, _ in found), sum(n * sent for n, sent in found))


def _computations(text: str) -> dict[str, list[_Instruction]]:
    found: dict[str, list[_Instruction]] = {}
    current: list[_Instruction] | None = None
    for line in text.splitlines():
        if current is None:
            if match := _COMPUTATION.match(line):
                current = found.setdefault(match[1], [])
        elif line.startswith("}"):
            current = None
        elif (match := _INSTRUCTION.match(line)) and (parsed := _parsed(match[2])):
            current.append(parsed)
    return found


def _parsed(text: str) -> _Instruction | None:
    """`f32[2]{0} add(%a, %b), metadata=...`; the result may be a tuple in brackets."""
    depth = 0
    for end, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and character == " ":
            op = re.match(r"([\w\-]+)\(", text[end + 1 :])
            return op and _Instruction(text[:end], op[1], text[end + 1 :])
    return None


def _collectives(
    computations: dict[str, list[_Instruction]], name: str, times: float
) -> Iterator[tuple[float, float]]:
    """(how often, bytes sent each time) for the collectives of a computation and what it calls."""
    instructions = computations.get(name, [])
    if "async_collective_fusion" in name and not any(
        "AsyncCollectiveStart" in instruction.rest for instruction in instructions
    ):
        return  # a later link of a chain whose first one has been counted
    for instruction in instructions:
        op = instruction.op.removesuffix("-start")
        if op in _COLLECTIVES:
            yield times, _sent(op, instruction)
        elif op == "while":
            body = re.search(r"body=%?([\w.\-]+)", instruction.rest)
            condition = re.search(r"condition=%?([\w.\-]+)", instruction.rest)
            if body and condition:
                trips = _trips(computations.get(condition[1], []))
                yield from _collectives(computations, body[1], times * trips)
        elif op in ("fusion", "call", "conditional", "async"):
            for called in _CALLED.findall(instruction.rest):
                yield from _collectives(computations, called, times)


def _sent(op: str, instruction: _Instruction) -> float:
    """Bytes that one chip sends, see `wire`; of what is started, by its largest part."""
    arrays = [
        _ITEMSIZE[kind] * math.prod(int(size) for size in shape.split(",") if size)
        for kind, shape in _ARRAY.findall(instruction.result)
        if kind in _ITEMSIZE
    ]
    whole = instruction.op.endswith("-start") and op != "all-reduce"
    result = max(arrays, default=0) if whole else sum(arrays)
    if op == "collective-permute":
        return result
    members = _members(instruction.rest)
    if op == "reduce-scatter" and not whole:
        result *= members
    return (2 if op == "all-reduce" else 1) * result * (members - 1) / members


def _members(rest: str) -> int:
    """How many chips take part: `{{0,1},{2,3}}`, `[2,2]<=...` or axes of a named mesh."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(listed[1].split(","))
    if shape := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(shape[1])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'?(\w+)'?=(\d+)", mesh[1]))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"\w+", mesh[2]))
    return 1


def _trips(condition: list[_Instruction]) -> int:
    """By the constant that a loop's counter is compared with; 1 if there is none."""
    bounds = [
        int(found[1])
        for instruction in condition
        if instruction.op == "constant"
        and (found := re.match(r"constant\((\d+)\)", instruction.rest))
    ]
    return max(1, min(bounds, default=1))
