"""The runner of honest runs: many checks of one mirror's two equal sides, in workers that stay."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from portproof.check import Settings, check
from portproof.errors import PortproofError
from portproof.honest.conditions import Conditions, draw_conditions, other_sizes
from portproof.honest.result import REFUSED, HonestResult, Nearest, Run
from portproof.plan import FORWARD
from portproof.processes import Servers

if TYPE_CHECKING:
    from portproof.compare.policy import Policy
    from portproof.mirror import Mirror
    from portproof.report import Report

_PER_WORKER = 60  # runs until the workers are started anew: what frameworks leave behind must not add up


def run(
    mirror: Mirror,
    runs: int,
    *,
    jobs: int = 1,
    seed: int = 0,
    settings: Settings | None = None,
    policy: Policy | None = None,
    progress: Callable[[Run, Report | None], None] | None = None,
) -> HonestResult:
    """Check a mirror against itself ``runs`` times, ``jobs`` at once, under conditions drawn by ``seed``.

    Raises:
        PortproofError: the mirror cannot be run at all.
    """
    settings, started = settings or Settings(), time.perf_counter()
    sizes = accepted_sizes(mirror, settings)
    drawn = draw_conditions(mirror, runs, seed, sizes)
    environment: dict[str, Any] = {}

    stop = threading.Event()

    def work(chunk: Sequence[Conditions]) -> list[Run]:
        found = []
        with TemporaryDirectory(prefix="portproof-", ignore_cleanup_errors=True) as logs, Servers() as servers:
            own = replace(settings, servers=servers, logs=Path(logs))
            for each in chunk:
                if stop.is_set():
                    break
                found.append(_run(mirror, each, own, policy, environment, progress))
        return found

    with ThreadPoolExecutor(jobs) as pool:
        try:
            done = [each for found in pool.map(work, _chunks(drawn)) for each in found]
        except BaseException:
            stop.set()  # an interrupt, or a defect of portproof: no use in going on
            raise
    done.sort(key=lambda each: int(each.conditions["index"]))
    seconds = round(time.perf_counter() - started, 1)
    return HonestResult(mirror.name, seed, tuple(sizes), environment, tuple(done), seconds)


def accepted_sizes(mirror: Mirror, settings: Settings) -> list[tuple[tuple[int, ...], ...]]:
    """The mirror's own input sizes, and some others that both of its sides take."""
    own = tuple(spec.shape[1:] for spec in mirror.inputs)
    found = [own]
    with Servers() as servers:
        check(replace(mirror, samples=None), phases=(FORWARD,), settings=replace(settings, servers=servers))
        for sizes in other_sizes(mirror):
            specs = tuple(replace(spec, shape=(2, *size)) for spec, size in zip(mirror.inputs, sizes, strict=True))
            tried = replace(mirror, inputs=specs, batches=(1,), samples=None)
            try:
                check(tried, phases=(FORWARD,), settings=replace(settings, servers=servers))
            except PortproofError:
                continue  # sizes that the model is not made for
            found.append(sizes)
    return found


def _run(
    mirror: Mirror,
    conditions: Conditions,
    settings: Settings,
    policy: Policy | None,
    environment: dict[str, Any],
    progress: Callable[[Run, Report | None], None] | None,
) -> Run:
    started = time.perf_counter()
    own = replace(settings, seed=conditions.seed, start=conditions.start, threads=conditions.threads)
    report: Report | None = None
    try:
        report = check(conditions.of(mirror), phases=conditions.phases, settings=own, policy=policy)
    except PortproofError as error:
        found = Run(conditions.to_json(), REFUSED, str(error), (), {}, 0.0)
    else:
        environment.update({name: side["environment"] for name, side in report.facts.sides.items()})
        checks = report.verdict.checks
        found = Run(
            conditions.to_json(),
            report.verdict.outcome,
            "" if report.same else report.verdict.summary,
            tuple(each.name for each in checks if each.status in ("fail", "unknown")),
            {
                each.name: Nearest(each.measured, each.allowed, each.where)
                for each in checks
                if each.measured is not None and each.allowed is not None
            },
            0.0,
        )
    found = replace(found, seconds=round(time.perf_counter() - started, 3))
    if progress:
        progress(found, report)
    return found


def _chunks(drawn: Iterable[Conditions]) -> list[list[Conditions]]:
    """Runs that share workers: of one number of threads, ordered by sizes so that each model is made once."""
    chunks: list[list[Conditions]] = []
    for each in sorted(drawn, key=lambda each: (each.threads, each.sizes, each.index)):
        if not chunks or len(chunks[-1]) == _PER_WORKER or chunks[-1][0].threads != each.threads:
            chunks.append([])
        chunks[-1].append(each)
    return chunks
