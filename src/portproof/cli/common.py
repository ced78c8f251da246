"""What the commands share: options, how they become settings, and how a run ends. Imports click and nothing heavier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from portproof.errors import InputError

if TYPE_CHECKING:
    from portproof.check import Settings
    from portproof.compare.policy import Policy
    from portproof.mirror import Mirror
    from portproof.report import Report

EXIT_CODES = {"same": 0, "differs": 1, "undecided": 2}
FILE = click.Path(path_type=Path)
CHECKS = ("parameters", "forward", "stages", "counts", "function", "training", "batchnorm", "steps", "precision")


def options(*options: Callable[..., Any]) -> Callable[[Any], Any]:
    """Several options as one decorator."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


debug = click.option(
    "--debug", is_flag=True, expose_value=False, help="Show tracebacks of errors, also of the workers."
)
output = options(
    click.option("--json", "json_file", type=FILE, metavar="FILE", help="Write the report as JSON (see `judge`)."),
    click.option("--junit", "junit_file", type=FILE, metavar="FILE", help="Write the checks as JUnit XML."),
    click.option("--html", "html_file", type=FILE, metavar="FILE", help="Write one HTML page, plots included."),
    click.option("--policy", "policy_file", type=FILE, metavar="FILE", help="Limits, as TOML (README: Limits)."),
    click.option("-q", "--quiet", is_flag=True, help="Print the verdict's line alone."),
    click.option("-v", "--verbose", is_flag=True, help="Print every detail of every check."),
    debug,
)
running = options(
    click.option("--torch-python", metavar="PYTHON", help="Interpreter that runs the PyTorch side."),
    click.option("--tensorflow-python", metavar="PYTHON", help="Interpreter that runs the TensorFlow side."),
    click.option("--seed", default=0, show_default=True, help="Seed of weights and inputs."),
    click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads per side."),
    click.option(
        "--lanes", type=click.IntRange(1, 2), default=2, show_default=True, help="Processes for TensorFlow's phases."
    ),
    click.option("--timeout", type=click.FloatRange(1), default=600, show_default=True, help="Seconds."),
)
pair = options(
    click.option(
        "--torch", "torch_factory", metavar="WHERE:FACTORY", help="Module or .py file, and the function in it."
    ),
    click.option("--tensorflow", "tensorflow_factory", metavar="WHERE:FACTORY", help="The same for the Keras model."),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="Shape with the batch first, e.g. 2,100,40 or ids=2,16:'int64<1000'; images as NCHW. May be repeated.",
    ),
    click.option("--same-layout", is_flag=True, help="Do not give TensorFlow the channels of images last."),
    click.option("--batches", default="1,3", show_default=True, help="Further batch sizes to try; empty for none."),
)
weights = click.option(
    "--weights",
    default="shared",
    show_default=True,
    metavar="shared|own|FILE",
    help="Give both sides the original's weights, made to excite every path; let each keep its own; or load a "
    "checkpoint (.pth, .pt, .safetensors, .weights.h5, .keras) and carry it over.",
)
comparing = options(
    weights,
    click.option("--traces", type=FILE, metavar="DIR", help="Keep both traces in this folder."),
)
only = click.option(
    "--only", multiple=True, type=click.Choice(CHECKS), help="Run these checks alone (may be repeated)."
)


def mirror_named(name: str) -> Mirror:
    """The registered mirror of this name, or the default one."""
    from portproof.mirror import get
    from portproof.mirrors import DEFAULT

    return get(name or DEFAULT)


def mirror_of(
    name: str | None,
    torch_factory: str | None,
    tensorflow_factory: str | None,
    inputs: tuple[str, ...],
    same_layout: bool,
    batches: str,
) -> Mirror:
    """The mirror that the options `pair`, or else its name, stand for.

    Raises:
        InputError: neither or both were given.
    """
    from portproof.mirror import InputSpec, Mirror, get

    if name:
        if torch_factory or tensorflow_factory or inputs:
            raise InputError(
                "A mirror by name brings its own factories and inputs: leave out --torch, --tensorflow, --input."
            )
        return get(name)
    if not torch_factory or not tensorflow_factory or not inputs:
        raise InputError(
            "A pair of your own needs --torch WHERE:FACTORY, --tensorflow WHERE:FACTORY and at least one --input SHAPE "
            "(or the name of a registered mirror; `portproof list` shows them)."
        )
    layout = "same" if same_layout else "auto"
    specs = [
        InputSpec.parse(text, default_name="x" if i == 0 else f"x{i}", layout=layout) for i, text in enumerate(inputs)
    ]
    subject = Path(tensorflow_factory.rpartition(":")[0]).stem
    return Mirror(subject, torch_factory, tensorflow_factory, tuple(specs), _batch_sizes(batches))


def _batch_sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(each) for each in text.split(",") if each.strip())
    except ValueError:
        sizes = (0,)
    if any(size < 1 for size in sizes):
        raise InputError(f"--batches {text!r} is not a list of positive numbers such as 1,3.")
    return sizes


def make_settings(
    *,
    weights: str,
    traces: Path | None,
    torch_python: str | None,
    tensorflow_python: str | None,
    seed: int,
    threads: int,
    lanes: int,
    timeout: float,
    samples: dict[str, Any] | None = None,
) -> Settings:
    """What the options `running` and `comparing` say."""
    from portproof.check import Settings

    named = {"torch": torch_python, "tensorflow": tensorflow_python}
    return Settings(
        weights=weights if weights in ("shared", "own") else Path(weights),
        interpreters={side: path for side, path in named.items() if path},
        seed=seed,
        threads=threads,
        lanes=lanes,
        timeout=timeout,
        traces=traces,
        samples=samples,
    )


def finish(
    report: Report,
    *,
    json_file: Path | None,
    junit_file: Path | None,
    html_file: Path | None,
    quiet: bool,
    verbose: bool,
) -> int:
    """Write and print a report; returns the exit code."""
    from portproof.report.console import render_report

    if json_file:
        report.save(json_file)
    if junit_file:
        from portproof.report.junit import write_junit

        write_junit(report, junit_file)
    if html_file:
        from portproof.report.html import write_page

        write_page(report, html_file)
    render_report(report, quiet=quiet, verbose=verbose)
    return EXIT_CODES[report.verdict.outcome]


def read_policy(path: Path | None) -> Policy | None:
    """The policy of a TOML file; ``None`` for none.

    Raises:
        InputError: it cannot be read, or is no policy.
    """
    if path is None:
        return None
    import tomllib

    from portproof.compare.policy import Policy

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a policy in TOML: {error}.") from error
    return Policy.from_mapping(values, str(path))
