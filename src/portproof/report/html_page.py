"""What the HTML page of one run shows, in the order in which it stands there: plain data for the template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from portproof.compare.checks import FAIL, NOTE, PASS, UNKNOWN, Check, same_shape
from portproof.compare.verdict import DIFFERS, UNDECIDED, Verdict
from portproof.report import words
from portproof.report.html_figures import Figure, Other, figures, others
from portproof.report.html_plot import number
from portproof.report.terminal import shape

if TYPE_CHECKING:
    from portproof.compare.divergence import Divergence
    from portproof.compare.facts import Facts
    from portproof.report import Report

SIGNS = {PASS: "✓", FAIL: "✗", NOTE: "·", UNKNOWN: "?"}
WORDS = {PASS: "pass", FAIL: "fail", NOTE: "note", UNKNOWN: "open"}
OUTCOMES = {"same": (PASS, "SAME"), "differs": (FAIL, "DIFFERS"), "undecided": (UNKNOWN, "UNDECIDED")}
POLICY = {
    "float64": "relative difference in float64",
    "conditioning": "more for tensors that amplify rounding: times their float32 error, times 2^-29",
    "float64_most": "what conditioning may raise the limit to",
    "steps": "times the float64 limit, after optimizer steps",
    "precision": "the port's float32 error, in multiples of the original's",
    "precision_floor": "float32 errors below this are never judged",
    "dead": "share of its layer's largest below which a gradient counts as zero",
    "float32": "last resort, where neither side runs in float64",
}


@dataclass(frozen=True, slots=True)
class CheckRow:
    """One check. ``own`` is the original's own error, where it stands beside that of the port."""

    name: str
    title: str
    status: str
    value: str
    own: str
    limit: str
    where: str
    count: int
    details: tuple[str, ...]
    open: bool


@dataclass(frozen=True, slots=True)
class Fact:
    """A named value of both sides; ``differs`` if the sides do not agree on it."""

    name: str
    a: str
    b: str

    @property
    def differs(self) -> bool:
        """Whether the two sides have different values."""
        return self.a != self.b


@dataclass(frozen=True, slots=True)
class Explanation:
    """What explains a divergence: settings that differ, likely causes, what was proven. ``strong`` stands out."""

    name: str
    texts: tuple[str, ...]
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Diverged:
    """The first divergence, with the values of both sides; ``heading`` says what values they are."""

    layer: str
    other: str
    tensor: str
    what: str
    reached: str
    relative: str
    heading: str
    values: tuple[str, str]
    bad: tuple[int, int]
    overall: str
    explanations: tuple[Explanation, ...]


@dataclass(frozen=True)
class Page:
    """Everything on the page of one run."""

    subject: str
    status: str
    outcome: str
    sentence: str
    meaning: str
    numbers: tuple[tuple[str, str], ...]
    names: tuple[str, str]
    short: tuple[str, str]
    sections: tuple[tuple[str, tuple[CheckRow, ...]], ...]
    figures: tuple[Figure, ...]
    others: tuple[Other, ...]
    diverged: Diverged | None
    stages: tuple[dict[str, Any], ...]
    samples: tuple[tuple[str, str, str, str], ...]
    sides: tuple[Fact, ...]
    environment: tuple[Fact, ...]
    settings: tuple[dict[str, Any], ...]
    policy: tuple[tuple[str, str, str], ...]
    notes: tuple[tuple[str, str], ...]
    logs: tuple[tuple[str, str], ...]
    seconds: tuple[tuple[str, str, str], ...]


def page_of(report: Report) -> Page:
    """Everything that the page of this report shows."""
    facts, verdict, recorded = report.facts, report.verdict, report.recorded
    names = words.side_names(facts)
    short = names if names == ("original", "port") else ("a", "b")
    status, outcome = OUTCOMES[verdict.outcome]
    sides = facts.sides
    return Page(
        subject=words.subject(facts),
        status=status,
        outcome=outcome,
        sentence=verdict.summary[:1].upper() + verdict.summary[1:],
        meaning=_meaning(verdict),
        numbers=tuple(_numbers(report)),
        names=names,
        short=short,
        sections=tuple(
            (section.heading, tuple(_check(section, check) for check in found))
            for section, found in words.in_sections(verdict.checks)
        ),
        figures=tuple(figures(facts, verdict, short)),
        others=tuple(others(facts, verdict)),
        diverged=_diverged(facts, verdict.divergence) if verdict.divergence else None,
        stages=tuple(_stages(facts)),
        samples=tuple(_samples(facts, recorded)),
        sides=(
            Fact("framework", words.framework(sides["a"]), words.framework(sides["b"])),
            Fact("built as", words.built(sides["a"]), words.built(sides["b"])),
            Fact("factory", str(sides["a"]["factory"]), str(sides["b"]["factory"])),
            Fact("machine", words.machine(sides["a"]), words.machine(sides["b"])),
            Fact("weights", *[words.weights(sides["a"], sides["b"])] * 2),
        ),
        environment=tuple(_facts_of(sides["a"]["environment"], sides["b"]["environment"])),
        settings=facts.settings,
        policy=tuple((name, f"{value:.3g}", POLICY.get(name, "")) for name, value in asdict(verdict.policy).items()),
        notes=tuple(_notes(facts, names)),
        logs=tuple((str(side), str(path)) for side, path in recorded.get("logs", {}).items()),
        seconds=tuple(_seconds(recorded)),
    )


def _meaning(verdict: Verdict) -> str:
    judged = {check.name.partition("-")[0] for check in verdict.checks}
    if verdict.outcome == UNDECIDED:
        return "Neither sameness nor a difference is shown. What stands open below says what is missing."
    if verdict.outcome == DIFFERS:
        found = verdict.divergence
        if found is None:
            return "The failed checks below say where the two part; no single layer begins it."
        cause = f" Likely cause: {found.causes[0]}." if found.causes else ""
        begins = "begins there" if found.inputs_agree else "is first seen there"
        return f"What differs {begins}, and whatever comes after it differs too.{cause}"
    if "function" not in judged:
        return "Of what was asked, nothing differs. A float64 proof, layer by layer, was not part of it."
    more = {"training": "gradients and training", "sgd": "optimizer steps", "precision": "float32 precision"}
    missing = [text for name, text in more.items() if name not in judged]
    proven = (
        "With the same weights and inputs, in float64, no layer's output differs by more than rounding: "
        "the two compute the same function"
    )
    if not missing:
        return f"{proven}, also in training, and the port rounds no worse than the original in float32."
    return f"{proven}. Not asked: {', '.join(missing)}."


def _numbers(report: Report) -> Iterator[tuple[str, str]]:
    """What a reader looks for first."""
    facts, verdict, recorded = report.facts, report.verdict, report.recorded
    status = Counter(check.status for check in verdict.checks)
    counted = [f"{status[each]} {WORDS[each]}" for each in (PASS, FAIL, UNKNOWN, NOTE) if status[each]]
    yield "checks", ", ".join(counted)
    for check in verdict.checks:
        if check.name == "coverage":
            yield "layers", check.value
        if check.name in ("function-layers", "fallback-layers"):
            yield "largest difference of a layer", f"{check.value}, limit {check.limit}"
        if check.name == "precision-layers":
            yield "float32 error of a layer", f"{check.value}, limit {check.limit}"
    a = facts.structure.counts["a"]
    yield "trainable values", f"{a['trainable']:,} in {a['trainable_tensors']:,} tensors"
    if isinstance(seconds := recorded.get("seconds"), (int, float)):
        yield "took", f"{seconds:.1f} s"
    if "at" in recorded:
        yield "finished", str(recorded["at"]).replace("T", " ")[:16] + " UTC"


def _check(section: words.Section, check: Check) -> CheckRow:
    value, _, own = check.value.partition(" (original ")
    told = section is not words.STRUCTURE or check.status in (FAIL, UNKNOWN)
    return CheckRow(
        name=check.name,
        title=section.title(check),
        status=check.status,
        value=value if section.own_error else check.value,
        own=own.rstrip(")") if section.own_error else "",
        limit=check.limit if told else "",
        where=check.where if check.count > 1 else "",
        count=check.count,
        details=check.details,
        open=check.status in (NOTE, UNKNOWN) and len(check.details) <= 4,
    )


def _diverged(facts: Facts, found: Divergence) -> Diverged:
    measured = words.measured_at(facts, found)
    values = f"{found.value_a:.9g}", f"{found.value_b:.9g}"
    if values[0] == values[1]:
        values = repr(found.value_a), repr(found.value_b)
    bad, overall = (0, 0), ""
    heading = f"worst value, at {list(found.index)}" if found.index else "value"
    what = f"{words.diverged(found)}: relative difference"
    if found.what == "float32 error":  # then the values are those of the errors
        what = "output, eval mode: float32 error against its own float64"
        heading, values = "error", (number(found.value_a), number(found.value_b))
    elif measured is not None:
        distance = measured.distance
        bad = distance.bad_a, distance.bad_b
        overall = f"max abs {distance.max_abs:.3g}, cosine {distance.cosine:.9g}, shape {shape(distance.shape_a)}"
        if distance.shape_a != distance.shape_b:
            values, overall = (f"shape {shape(distance.shape_a)}", f"shape {shape(distance.shape_b)}"), ""
    return Diverged(
        layer=found.layer,
        other=found.other if found.other != found.layer else "",
        tensor=found.name if found.name != found.layer else "",
        what=what,
        reached=words.reached(found),
        relative=number(found.relative),
        heading=heading,
        values=values,
        bad=bad,
        overall=overall,
        explanations=tuple(_explanations(found)),
    )


def _explanations(found: Divergence) -> Iterator[Explanation]:
    """From what is merely seen to what is known; what comes last weighs most."""
    if found.settings:
        yield Explanation("settings that differ", found.settings)
    if found.causes:
        yield Explanation("likely cause", found.causes, strong=True)


def _stages(facts: Facts) -> Iterator[dict[str, Any]]:
    for row in facts.structure.stages:
        if row["b"] is None:
            status, b = NOTE, "no counterpart" if row["other"] is None else "not recorded"
        else:
            status, b = (PASS if same_shape(row["a"], row["b"]) else FAIL), shape(row["b"])
        yield {"name": row["name"], "kind": row["kind"], "a": shape(row["a"]), "b": b, "status": status}


def _samples(facts: Facts, recorded: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Name, outputs of both sides and class of every real example."""
    found, names = facts.samples, recorded.get("samples", [])
    if not found or len(names) != len(found["a"]):
        return
    for name, x, y in zip(names, found["a"], found["b"], strict=True):
        classes = dict.fromkeys(row.index(max(row)) for row in (x, y))
        outputs = ["  ".join(f"{value:+.6f}" for value in row) for row in (x, y)]
        yield str(name), outputs[0], outputs[1], " and ".join(map(str, classes))


def _facts_of(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[Fact]:
    """Two nested mappings as named values."""
    for key in dict.fromkeys([*a, *b]):
        x, y = a.get(key), b.get(key)
        if isinstance(x, Mapping) or isinstance(y, Mapping):
            below = [each if isinstance(each, Mapping) else {} for each in (x, y)]
            yield from _facts_of(below[0], below[1], f"{prefix}{key} / ")
        else:
            yield Fact(f"{prefix}{key}", _plain(x), _plain(y))


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "" if value is None else str(value)


def _notes(facts: Facts, names: tuple[str, str]) -> Iterator[tuple[str, str]]:
    for name, side in zip(names, (facts.sides["a"], facts.sides["b"]), strict=True):
        for note in side["notes"]:
            yield name, str(note)
    for note, count in Counter(each.note for each in facts.measurements if each.note).items():
        yield "measured", f"{note} ({count:,} tensors)"


def _seconds(recorded: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """How long each phase took on both sides."""
    steps = list(recorded.get("steps", {}).values())
    if len(steps) == 2:
        for phase in dict.fromkeys([*steps[0], *steps[1]]):
            yield phase, *(f"{side[phase]:.2f}" if phase in side else "" for side in steps)
