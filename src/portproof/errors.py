"""The errors that portproof shows to a person: one message that says what is wrong and what to do."""

from __future__ import annotations


class PortproofError(Exception):
    """Something could not be judged: the message is complete and shown without a traceback (exit code 2).

    ``details`` is what `--debug` shows below it, such as the traceback of a worker.
    """

    details: str = ""


class MirrorError(PortproofError):
    """A mirror, a factory or its inputs cannot be used as given."""


class TraceError(PortproofError):
    """A stored trace is truncated, tampered with or of another schema."""


class TransferError(PortproofError):
    """Weights cannot be carried over: tensors are missing, left over or of the wrong shape."""


class CheckpointError(PortproofError):
    """A checkpoint file cannot be read safely, or is not what its name says."""


class WorkerError(PortproofError):
    """A worker process failed, or the user's code in it."""

    def __init__(self, message: str, *, details: str = "") -> None:
        super().__init__(message)
        self.details = details


class SetupError(PortproofError):
    """The environment cannot run this: a framework is missing, or an accelerator is visible."""


class InputError(PortproofError):
    """An input file or a command line value cannot be used as given."""
