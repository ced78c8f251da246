"""What reports say in words, wherever they are shown: names of the sides, how each was built, checks in sections."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from portproof.compare.divergence import Divergence
    from portproof.compare.facts import Facts, Measurement


class Named(Protocol):
    """A check, of one run or of one cell of the matrix."""

    @property
    def name(self) -> str:
        """What it is called in code."""

    @property
    def title(self) -> str:
        """What it is called in a report."""


_Named = TypeVar("_Named", bound=Named)


@dataclass(frozen=True)
class Section:
    """Checks that belong together. ``said`` is what the heading says already, and is left out of the titles."""

    heading: str
    names: tuple[str, ...]
    said: str = ""
    columns: tuple[str, ...] = ("measured", "limit")

    @property
    def own_error(self) -> bool:
        """Whether a value of the original stands beside that of the port, besides the limit."""
        return len(self.columns) == 3

    def holds(self, check: Named) -> bool:
        """Whether the check belongs here, by its name."""
        return any(check.name == name or check.name.startswith((f"{name}-", f"{name}.")) for name in self.names)

    def title(self, check: Named) -> str:
        """The check's title without what the heading says already."""
        return re.sub(self.said, "", check.title)


STRUCTURE = Section(
    "structure", ("cpu", "parameters", "weights", "stages", "outputs", "dropout", "coverage", "forward", "float64")
)
SECTIONS = (
    STRUCTURE,
    Section("gradients that are not zero", ("count",), "^(live|non-zero) gradients of (the )?", ("port", "original")),
    Section("same function: eval mode, float64", ("function",), ", eval mode, float64$"),
    Section("same function: training, float64", ("training", "batchnorm", "sgd", "adamw"), ", training mode, float64$"),
    Section(
        "same precision: error in float32",
        ("precision",),
        "^float32 error of (the )?",
        ("port", "original", "limit"),
    ),
    Section("float32 against float32, no float64 proof", ("fallback",), r", float32 \(no float64 proof\)$"),
    Section("further checks", ()),
)


def in_sections(checks: Sequence[_Named]) -> Iterator[tuple[Section, list[_Named]]]:
    """All checks, each in the first section that holds it; empty sections are left out."""
    left = list(checks)
    for section in SECTIONS:
        found = [check for check in left if section.holds(check) or not section.names]
        left = [check for check in left if check not in found]
        if found:
            yield section, found


def side_names(facts: Facts) -> tuple[str, str]:
    """What the two sides are called: original and port, or which framework and version for any other two traces."""
    a, b = facts.sides["a"], facts.sides["b"]
    if (a["side"], b["side"]) == ("torch", "tensorflow"):
        return "original", "port"
    return f"a: {framework(a)}", f"b: {framework(b)}"


def subject(facts: Facts) -> str:
    """What was compared, by name."""
    return " and ".join(dict.fromkeys(str(side["subject"]) for side in facts.sides.values()))


def framework(side: dict[str, Any]) -> str:
    """Framework and version of a side."""
    return f"{side['environment']['framework']} {side['environment']['version']}"


def built(side: dict[str, Any]) -> str:
    """Framework, build, Python and threads of a side, in one line."""
    environment = side["environment"]
    python = environment.get("machine", {}).get("python", {}).get("version")
    threads = environment.get("threads")
    parts = [
        framework(side),
        f"keras {environment['keras']}" if "keras" in environment else "",
        f"{environment['build']} build" if "build" in environment else "",
        f"Python {python}" if python else "",
        f"{environment['cpu_capability']} kernels" if "cpu_capability" in environment else "",
        f"{threads} thread{'' if threads == 1 else 's'}" if threads else "",
    ]
    return ", ".join(part for part in parts if part)


def machine(side: dict[str, Any]) -> str:
    """CPU and accelerators of a side, in one line."""
    found = side["environment"].get("machine", {})
    seen = side["environment"]["accelerators"]
    present = [str(each) for each in found.get("accelerators", ()) if each not in seen]
    parts = [
        found.get("cpu", {}).get("model", "unknown CPU"),
        f"accelerators VISIBLE: {', '.join(seen)}" if seen else "no accelerator visible",
        f"hidden: {', '.join(present)}" if present else "",
    ]
    return ", ".join(part for part in parts if part)


def weights(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Where both sides have their weights from."""
    carried = {("give", "take"): "the original's, carried over", ("take", "give"): "the port's, carried over"}
    seeds = dict.fromkeys([a["seed"], b["seed"]])
    return f"{carried.get((a['weights'], b['weights']), 'of each side itself')}; seed {' and '.join(map(str, seeds))}"


def measured_at(facts: Facts, found: Divergence) -> Measurement | None:
    """The measurement that a divergence was found in."""
    wanted = (found.phase, found.layer, found.name, found.relative)
    return next(
        (each for each in facts.measurements if (each.phase, each.layer, each.name, each.distance.relative) == wanted),
        None,
    )


def diverged(found: Divergence) -> str:
    """Which of a layer's values differs, in which mode and precision."""
    mode = "" if " mode" in found.what else ", training mode" if found.phase == "float64.train" else ", eval mode"
    return f"{found.what}{mode if found.what == 'output' else ''}, {found.phase.partition('.')[0]}"


def reached(found: Divergence) -> str:
    """Whether a diverging layer's inputs agree; empty where that is no question."""
    if found.what != "output":
        return ""
    if found.inputs_agree:
        return "its inputs agree: the difference begins here"
    return "what reaches it differs already: look at the code between the layers in front of it"
