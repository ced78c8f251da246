"""The command line. Imports click and nothing heavier, so that ``--help`` answers at once."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from portproof import __version__
from portproof.errors import InputError, MirrorError, PortproofError

if TYPE_CHECKING:
    from portproof.check import Settings
    from portproof.compare.policy import Policy
    from portproof.mirror import Mirror
    from portproof.plan import Phase
    from portproof.report import Report

EXIT_CODES = {"same": 0, "differs": 1, "undecided": 2}
_FILE = click.Path(path_type=Path)
_CHECKS = ("parameters", "forward", "stages", "counts", "function", "training", "batchnorm", "steps", "precision")


def main() -> None:
    """Run the command line; ends the process with 0 same, 1 differs, 2 could not be judged."""
    debug = "--debug" in sys.argv[1:]
    # Leaving through SystemExit stops the workers and removes what is half done; 143 is what a shell expects.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        code = cli.main(prog_name="portproof", standalone_mode=False)
    except PortproofError as error:
        _say_error(error, debug)
        code = 2
    except click.exceptions.Abort:
        click.echo("Interrupted.", err=True)
        code = 130
    except click.ClickException as error:
        error.show()
        code = 2
    except BrokenPipeError:
        # Whoever read our output has gone; Python would complain again while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 2
    except OSError as error:
        advice = " Free some space, or set TMPDIR." if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else ""
        _say_error(error, debug, f"{error.filename or 'A file'}: {error.strerror or error}.{advice}")
        code = 2
    except Exception as error:
        text = (
            f"portproof itself failed: {type(error).__name__}: {error}. Please report it, with the output of --debug."
        )
        _say_error(error, debug, text)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


def _say_error(error: Exception, debug: bool, message: str = "") -> None:
    from portproof.report.terminal import render_error

    shown = error if isinstance(error, PortproofError) else PortproofError(message)
    if debug and not shown.details:
        import traceback

        shown.details = "".join(traceback.format_exception(error))
    render_error(shown, debug=debug)


def _options(*options: Callable[..., Any]) -> Callable[[Any], Any]:
    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


_debug = click.option(
    "--debug", is_flag=True, expose_value=False, help="Show tracebacks of errors, also of the workers."
)
_output = _options(
    click.option("--json", "json_file", type=_FILE, metavar="FILE", help="Write the report as JSON (see `judge`)."),
    click.option("--junit", "junit_file", type=_FILE, metavar="FILE", help="Write the checks as JUnit XML."),
    click.option("--policy", "policy_file", type=_FILE, metavar="FILE", help="Limits, as TOML (README: Limits)."),
    click.option("-q", "--quiet", is_flag=True, help="Print the verdict's line alone."),
    click.option("-v", "--verbose", is_flag=True, help="Print every detail of every check."),
    _debug,
)
_running = _options(
    click.option("--torch-python", metavar="PYTHON", help="Interpreter that runs the PyTorch side."),
    click.option("--tensorflow-python", metavar="PYTHON", help="Interpreter that runs the TensorFlow side."),
    click.option("--seed", default=0, show_default=True, help="Seed of weights and inputs."),
    click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Threads per side."),
    click.option(
        "--lanes", type=click.IntRange(1, 2), default=2, show_default=True, help="Processes for TensorFlow's phases."
    ),
    click.option("--timeout", type=click.FloatRange(1), default=600, show_default=True, help="Seconds."),
)
_comparing = _options(
    click.option(
        "--weights",
        default="shared",
        show_default=True,
        metavar="shared|own|FILE",
        help="Give both sides the original's weights, made to excite every path; let each keep its own; or load a "
        "checkpoint (.pth, .pt, .safetensors, .weights.h5, .keras) and carry it over.",
    ),
    click.option("--traces", type=_FILE, metavar="DIR", help="Keep both traces in this folder."),
)
_only = click.option(
    "--only", multiple=True, type=click.Choice(_CHECKS), help="Run these checks alone (may be repeated)."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="portproof")
@_debug
def cli() -> None:
    """Prove that a model ported from PyTorch to TensorFlow is the same model.

    Exit codes: 0 the same, 1 it differs, 2 it could not be judged.
    """


@cli.command()
@click.option("--torch", "torch_factory", metavar="WHERE:FACTORY", help="Module or .py file, and the function in it.")
@click.option("--tensorflow", "tensorflow_factory", metavar="WHERE:FACTORY", help="The same for the Keras model.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="[NAME=]SHAPE[:DTYPE]",
    help="Shape with the batch first, e.g. 2,100,40 or ids=2,16:'int64<1000'; images as NCHW. May be repeated.",
)
@click.option("--same-layout", is_flag=True, help="Do not give TensorFlow the channels of images last.")
@click.option("--batches", default="1,3", show_default=True, help="Further batch sizes to try; empty for none.")
@click.option("--mirror", "name", metavar="NAME", help="A registered mirror instead of two factories.")
@_only
@_comparing
@_running
@_output
def check(
    torch_factory: str | None,
    tensorflow_factory: str | None,
    inputs: tuple[str, ...],
    same_layout: bool,
    batches: str,
    name: str | None,
    only: tuple[str, ...],
    **options: Any,
) -> int:
    """Judge a pair of models of your own."""
    from portproof.mirror import InputSpec, Mirror, get
    from portproof.plan import phases_for

    if name:
        if torch_factory or tensorflow_factory or inputs:
            raise InputError(
                "--mirror NAME brings its own factories and inputs: leave out --torch, --tensorflow, --input."
            )
        mirror = get(name)
    else:
        if not torch_factory or not tensorflow_factory or not inputs:
            raise InputError(
                "check needs --torch WHERE:FACTORY, --tensorflow WHERE:FACTORY and at least one --input SHAPE "
                "(or --mirror NAME; `portproof list` shows the names)."
            )
        layout = "same" if same_layout else "auto"
        specs = [
            InputSpec.parse(text, default_name="x" if i == 0 else f"x{i}", layout=layout)
            for i, text in enumerate(inputs)
        ]
        subject = tensorflow_factory.rpartition(":")[0]
        mirror = Mirror(Path(subject).stem, torch_factory, tensorflow_factory, tuple(specs), _batch_sizes(batches))
    return _run_check(mirror, phases_for(only), **options)


@cli.command()
@click.argument("words", nargs=-1, metavar="[NAME]")
@click.option(
    "--audio", multiple=True, type=_FILE, metavar="FILE...", help="WAV files to try instead of the mirror's clips."
)
@_comparing
@_running
@_output
def smoke(words: tuple[str, ...], audio: tuple[Path, ...], **options: Any) -> int:
    """Quick look at a registered mirror: counts, shapes, finite outputs, gradients, and the float64 proof."""
    from portproof import mirror as registry
    from portproof.plan import SMOKE

    # click's options take one value each; after --audio *.wav the other files arrive here.
    names = [word for word in words if not audio or word in registry.names()]
    if len(names) > 1:
        raise InputError(f"smoke takes one mirror, not {len(names)}: {', '.join(names)}.")
    audio += tuple(Path(word) for word in words if word not in names)
    mirror = _mirror(names[0] if names else "")
    return _run_check(mirror, SMOKE, samples=_read_audio(mirror, audio) if audio else None, **options)


@cli.command()
@click.argument("name", default="", metavar="[NAME]")
@_only
@_comparing
@_running
@_output
def parity(name: str, only: tuple[str, ...], **options: Any) -> int:
    """All checks on a registered mirror: function, gradients, training, optimizers, precision."""
    from portproof.plan import phases_for

    return _run_check(_mirror(name), phases_for(only), **options)


@cli.command()
@click.argument("a", type=_FILE)
@click.argument("b", type=_FILE)
@_output
def compare(a: Path, b: Path, policy_file: Path | None, **output: Any) -> int:
    """Judge two stored traces: torch with TensorFlow, or any two of one side."""
    from portproof.compare import compare as compare_traces
    from portproof.compare.verdict import judge
    from portproof.report import Report
    from portproof.trace import Trace

    policy = _policy(policy_file)
    facts = compare_traces(Trace.open(a), Trace.open(b))
    return _finish(Report(facts, judge(facts, policy)), **output)


@cli.command(name="judge")
@click.argument("report", type=_FILE)
@_output
def judge_report(report: Path, policy_file: Path | None, **output: Any) -> int:
    """Judge the measurements of a stored report again, under another policy; nothing is run."""
    from portproof.report import Report

    loaded = Report.load(report)
    policy = _policy(policy_file)
    return _finish(loaded.rejudged(policy) if policy else loaded, **output)


@cli.command()
@click.argument("side", type=click.Choice(["torch", "tensorflow"]))
@click.argument("target", type=_FILE)
@click.option("--mirror", "name", default="", metavar="NAME", help="The mirror whose side it is.")
@click.option("--factory", metavar="WHERE:FACTORY", help="A factory of your own instead.")
@click.option("--input", "inputs", multiple=True, metavar="[NAME=]SHAPE[:DTYPE]", help="Inputs for --factory.")
@click.option("--weights-from", type=_FILE, metavar="TRACE", help="Take the weights of this trace.")
@click.option("--python", metavar="PYTHON", help="Interpreter to run it in.")
@click.option("--seed", default=0, show_default=True, help="Seed of weights and inputs.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@_only
@_debug
def capture(
    side: str,
    target: Path,
    name: str,
    factory: str | None,
    inputs: tuple[str, ...],
    weights_from: Path | None,
    python: str | None,
    seed: int,
    threads: int,
    only: tuple[str, ...],
) -> int:
    """Capture one SIDE alone into the folder TARGET, to be compared elsewhere or later."""
    from portproof.check import Settings
    from portproof.check import capture as capture_side
    from portproof.mirror import InputSpec, Mirror
    from portproof.plan import phases_for
    from portproof.report.progress import Progress
    from portproof.trace import Trace

    if factory:
        if not inputs:
            raise InputError("--factory needs at least one --input SHAPE.")
        specs = tuple(InputSpec.parse(text, default_name="x" if i == 0 else f"x{i}") for i, text in enumerate(inputs))
        mirror = Mirror(Path(factory.rpartition(":")[0]).stem, factory, factory, specs)
    else:
        mirror = _mirror(name)
    settings = Settings(seed=seed, threads=threads, interpreters={side: python} if python else None)
    source = Trace.open(weights_from) if weights_from else None
    with Progress() as progress:
        trace = capture_side(
            mirror, side, target, phases=phases_for(only), settings=settings, weights_from=source, progress=progress
        )
    click.echo(f"{trace.path}: {len(trace.manifest.tensors)} tensors")
    return 0


@cli.command(name="list")
@_debug
def list_mirrors() -> int:
    """The registered mirrors."""
    from portproof import mirror
    from portproof.report.listing import render_list

    render_list([mirror.get(name) for name in mirror.names()])
    return 0


@cli.command()
@click.argument("name", default="", metavar="[NAME]")
@_running
@_debug
def show(name: str, **running: Any) -> int:
    """Layers, shapes and parameters of both sides, side by side."""
    import tempfile

    from portproof.check import check as run_check
    from portproof.plan import phases_for
    from portproof.report.listing import render_show
    from portproof.report.progress import Progress
    from portproof.trace import Trace

    with tempfile.TemporaryDirectory(prefix="portproof-") as folder:
        traces = Path(folder) / "traces"
        settings = _settings(weights="shared", traces=traces, **running)
        with Progress() as progress:
            run_check(_mirror(name), phases=phases_for(["stages"]), settings=settings, progress=progress)
        render_show(Trace.open(traces / "torch", verify=False), Trace.open(traces / "tensorflow", verify=False))
    return 0


@cli.command()
@click.option("--torch-python", metavar="PYTHON", default=sys.executable, help="Interpreter of the PyTorch side.")
@click.option(
    "--tensorflow-python", metavar="PYTHON", default=sys.executable, help="Interpreter of the TensorFlow side."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print what is wrong, and nothing else.")
@_debug
def doctor(torch_python: str, tensorflow_python: str, as_json: bool, quiet: bool) -> int:
    """Versions, builds, CPU, threads, hidden GPUs; what is wrong with it, and the fix."""
    from portproof import doctor as examination

    return examination.run(torch_python=torch_python, tensorflow_python=tensorflow_python, as_json=as_json, quiet=quiet)


def _mirror(name: str) -> Mirror:
    from portproof.mirror import get
    from portproof.mirrors import DEFAULT

    return get(name or DEFAULT)


def _batch_sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(each) for each in text.split(",") if each.strip())
    except ValueError:
        sizes = (0,)
    if any(size < 1 for size in sizes):
        raise InputError(f"--batches {text!r} is not a list of positive numbers such as 1,3.")
    return sizes


def _read_audio(mirror: Mirror, files: tuple[Path, ...]) -> dict[str, Any]:
    from portproof.data.wav import read_wav

    if mirror.audio is None:
        raise MirrorError(f"The mirror {mirror.name} does not take audio: leave out --audio.")
    return {str(file): mirror.audio(*read_wav(file)) for file in files}


def _settings(
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


def _run_check(
    mirror: Mirror,
    phases: tuple[Phase, ...],
    *,
    json_file: Path | None,
    junit_file: Path | None,
    policy_file: Path | None,
    quiet: bool,
    verbose: bool,
    **running: Any,
) -> int:
    from portproof.check import check as run_check
    from portproof.report.progress import Progress

    settings, policy = _settings(**running), _policy(policy_file)
    with Progress(quiet=quiet) as progress:
        report = run_check(mirror, phases=phases, settings=settings, policy=policy, progress=progress)
    return _finish(report, json_file=json_file, junit_file=junit_file, quiet=quiet, verbose=verbose)


def _finish(report: Report, *, json_file: Path | None, junit_file: Path | None, quiet: bool, verbose: bool) -> int:
    from portproof.report.console import render_report

    if json_file:
        report.save(json_file)
    if junit_file:
        from portproof.report.junit import write_junit

        write_junit(report, junit_file)
    render_report(report, quiet=quiet, verbose=verbose)
    return EXIT_CODES[report.verdict.outcome]


def _policy(path: Path | None) -> Policy | None:
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
