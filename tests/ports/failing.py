"""Factories that fail, in every way that ends a worker; they import no framework before they have to."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def raises():
    raise KeyError("weights/stem")


def not_a_model():
    return {"weights": 3}


def needs_arguments(classes):
    return classes


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def leaves():
    """Ends the process, with a last word."""
    print("no licence for this model", file=sys.stderr, flush=True)
    os._exit(7)


def killed_in_second_lane():
    """Dies in the process that the worker forked, and is a model in the worker itself."""
    import pairs_keras

    # A fork has its parent's command line; the worker's parent is the command, whose line is another one.
    ours, parents = (Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (os.getpid(), os.getppid()))
    if ours == parents:
        killed()
    return pairs_keras.perceptron()


def sleeps():
    """A torch model that sleeps when it is called, and says in the folder PORTPROOF_TEST_FOLDER who does."""
    import torch

    class Sleeper(torch.nn.Linear):
        def forward(self, x):
            Path(os.environ["PORTPROOF_TEST_FOLDER"], "pid").write_text(str(os.getpid()))
            time.sleep(60)
            return super().forward(x)

    return Sleeper(6, 4)


def chatters():
    """The perceptron, with output of its own on both streams."""
    import pairs_torch

    print("loading ...", flush=True)
    os.write(1, b"from C\n")
    return pairs_torch.perceptron()
