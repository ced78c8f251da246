"""Listings on the terminal: the registered mirrors, and the layers of two traces side by side."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from portproof.alignment import BOOKKEEPING
from portproof.compare.checks import FAIL, NOTE, PASS, same_shape
from portproof.report.multiply_adds import multiply_adds
from portproof.report.terminal import console_for, grid, mark, shape, table, text
from portproof.trace import Trace

if TYPE_CHECKING:
    from portproof.mirror import Mirror

_NARROW = 110  # columns; below, what is equal on both sides is shown once


def render_list(mirrors: Iterable[Mirror], *, console: Console | None = None) -> None:
    """Print what is registered: name, description, inputs and both factories."""
    console = console or console_for(sys.stdout)
    mirrors = list(mirrors)
    if not mirrors:
        console.print(
            "No mirror is registered: a package registers its own through the entry point group portproof.mirrors."
        )
    for mirror in mirrors:
        console.print(text(mirror.name, "bold") + text(f"  {mirror.description}" if mirror.description else ""))
        rows = grid()
        inputs = (f"{spec.name} {shape(spec.shape)} {spec.dtype}" for spec in mirror.inputs)
        for name, value in (("inputs", ", ".join(inputs)), ("torch", mirror.torch), ("tensorflow", mirror.tensorflow)):
            rows.add_row(text(f"  {name}"), text(value))
        console.print(rows)


@dataclass(frozen=True)
class _Row:
    """One layer on one side; ``trained`` and ``fixed`` count the values that it owns itself, ``macs`` multiply-adds."""

    kind: str
    shape: tuple[int, ...] | None
    trained: int
    fixed: int
    macs: int

    @property
    def output(self) -> str:
        return shape(self.shape) if self.shape is not None else "-"

    @property
    def values(self) -> str:
        return f"{self.trained:,} + {self.fixed:,}" if self.fixed else f"{self.trained:,}" if self.trained else "-"

    @property
    def multiply_adds(self) -> str:
        return f"{self.macs:,}" if self.macs else "-"

    def equals(self, other: _Row) -> bool:
        shapes = self.shape is None or other.shape is None or same_shape(self.shape, other.shape)
        return shapes and (self.trained, self.fixed, self.macs) == (
            other.trained,
            other.fixed,
            other.macs,
        )


def render_show(a: Trace, b: Trace, *, console: Console | None = None) -> None:
    """Print the layers of two traces in order of execution: kind, output shape, parameters and multiply-adds.

    Shown are layers that have no layers in them, and any other that owns parameters. Of the two numbers of values,
    ``48 + 48``, the second counts those that are not trained. Multiply-adds are those of one example.
    """
    from portproof.compare.pairing import Pairs

    console = console or console_for(sys.stdout)
    pairs = Pairs(a, b).layers.pairs
    rows_a, rows_b = _rows(a), _rows(b)
    names = (a.manifest.side, b.manifest.side) if a.manifest.side != b.manifest.side else ("a", "b")
    narrow = console.width < _NARROW
    pair = ("output", "values") if narrow else (f"output, {names[0]}", names[1], f"values, {names[0]}", names[1])
    layers = table("layer", "kind", *pair, "multiply-adds", "")
    for column in layers.columns[1:-1]:
        column.no_wrap = True
    for column in layers.columns[2 + len(pair) // 2 : -1]:
        column.justify = "right"
    alone: dict[str, list[str]] = {name: [] for name in names}
    differ = 0
    for name, row in rows_a.items():
        other = rows_b.pop(pairs.get(name, ""), None)
        equal = other is not None and row.equals(other)
        sign = mark(console, PASS if equal else FAIL, "" if equal else "differs")
        if other is None:
            alone[names[0]].append(name)
            sign = mark(console, NOTE, "alone")
        differ += other is not None and not equal
        kinds = dict.fromkeys([row.kind, other.kind if other else row.kind])
        layers.add_row(text(name), text("\n".join(kinds), "dim"), *_cells(row, other, narrow), sign)
    for name, row in rows_b.items():
        alone[names[1]].append(name)
        sign = mark(console, NOTE, "alone")
        layers.add_row(text(name), text(row.kind, "dim"), *_cells(None, row, narrow), sign)
    console.print(layers)
    console.print()
    console.print(_totals(a, b, names))
    for side, lonely in alone.items():
        if lonely:
            console.print(text(f"only in {side}: {', '.join(lonely)}"))
    paired = len(rows_a) - len(alone[names[0]])
    console.print(text(f"{paired} layers on both sides, {differ or 'none'} of them different"))


def _cells(a: _Row | None, b: _Row | None, narrow: bool) -> Iterator[Text]:
    """Outputs and values of both sides; on a narrow terminal in one column each, where what is equal stands once."""
    for first, second in (
        (a.output if a else "", b.output if b else ""),
        (a.values if a else "", b.values if b else ""),
    ):
        yield from (_once(first, second),) if narrow else (text(first), text(second))
    yield _once(a.multiply_adds if a else "", b.multiply_adds if b else "")


def _once(first: str, second: str) -> Text:
    return text("\n".join(part for part in dict.fromkeys([first, second]) if part))


def _rows(trace: Trace) -> dict[str, _Row]:
    """By layer, in order of execution; layers that no phase executed stand last."""
    shapes: dict[str, tuple[int, ...]] = {}
    for phase, calls in trace.manifest.calls.items():
        for call in calls:
            info = trace.manifest.tensors.get(f"{phase}/{call.outputs[0]}") if call.outputs else None
            if info is not None:
                shapes.setdefault(call.layer, info.shape)
    trained, fixed = Counter[str](), Counter[str]()
    for record in trace.manifest.parameters:
        if record.role not in BOOKKEEPING:
            (trained if record.trainable else fixed)[record.layer] += record.size
    records = {record.name: record for record in trace.manifest.layers}
    macs = multiply_adds(trace)
    order = [name for name in shapes if name in records] + [name for name in records if name not in shapes]
    return {
        name: _Row(records[name].kind, shapes.get(name), trained[name], fixed[name], macs.get(name, 0))
        for name in order
        if records[name].leaf or trained[name] or fixed[name]
    }


def _totals(a: Trace, b: Trace, names: tuple[str, str]) -> Table:
    from portproof.compare.structure import counts

    totals = grid()
    for name, trace in zip(names, (a, b), strict=True):
        each = counts(trace)
        trained = f"{each['trainable']:,} trainable values in {each['trainable_tensors']} tensors"
        fixed = f"{each['non_trainable']:,} others in {each['non_trainable_tensors']}"
        macs = f"{sum(multiply_adds(trace).values()):,} multiply-adds for one example"
        totals.add_row(text(name), text(f"{each['layers']} layers, {trained}, {fixed}, {macs}"))
    return totals
