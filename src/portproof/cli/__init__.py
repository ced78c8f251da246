"""The command line. Imports click and nothing heavier, so that ``--help`` answers at once."""

from __future__ import annotations

import errno
import os
import signal
import sys

import click

from portproof import __version__
from portproof.cli import checking, common, diagnose, looking, selftest, traces
from portproof.errors import PortproofError


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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="portproof")
@common.debug
def cli() -> None:
    """Prove that a model ported from PyTorch to TensorFlow is the same model.

    Exit codes: 0 the same, 1 it differs, 2 it could not be judged.
    """


for _module in (checking, diagnose, selftest, traces, looking):
    for _command in _module.COMMANDS:
        cli.add_command(_command)
