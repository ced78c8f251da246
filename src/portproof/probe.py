"""What a framework says of itself: a script for `portproof doctor`, fed to the interpreter that is to be examined.

It needs nothing but the standard library and the framework, so that it also runs where portproof is not installed and
with a Python too old for it. Prints one line of JSON, the last one of its output.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from importlib.util import cache_from_source, find_spec
from typing import Any

DISTRIBUTIONS = (
    "torch",
    "tensorflow-cpu",
    "tensorflow",
    "keras",
    "tf-keras",
    "numpy",
    "protobuf",
    "ml-dtypes",
    "h5py",
)


def probe_torch() -> dict[str, Any]:
    """Version, build, devices and kernels of torch. Raises whatever its import raises."""
    import torch

    torch.zeros(1).numpy()  # fails where torch was built for another NumPy
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    xpu = getattr(torch, "xpu", None)
    if xpu is not None and xpu.is_available():
        devices += [f"xpu:{index}" for index in range(xpu.device_count())]
    versions = torch.version
    build = f"cuda {versions.cuda}" if versions.cuda else f"rocm {versions.hip}" if versions.hip else "cpu"
    return {
        "version": torch.__version__,
        "build": build,
        "file": torch.__file__,
        "accelerators": devices,
        "threads": f"{torch.get_num_threads()} intra-op, {torch.get_num_interop_threads()} inter-op",
        "kernels": f"{torch.backends.cpu.get_cpu_capability()}"
        f", oneDNN {'on' if torch.backends.mkldnn.is_available() else 'off'}"
        f", MKL {'on' if torch.backends.mkl.is_available() else 'off'}",
    }


def probe_tensorflow() -> dict[str, Any]:
    """Version, build, devices and kernels of TensorFlow and its Keras. Raises whatever their import raises."""
    import tensorflow as tf

    build = tf.sysconfig.get_build_info()
    kind = "cuda" if build.get("is_cuda_build") else "rocm" if build.get("is_rocm_build") else "cpu"
    threading = tf.config.threading
    return {
        "version": tf.__version__,
        "build": kind,
        "file": tf.__file__,
        "keras": tf.keras.__version__,
        "accelerators": [device.name for device in tf.config.list_physical_devices() if device.device_type != "CPU"],
        "threads": f"{_or_auto(threading.get_intra_op_parallelism_threads(), 'TF_NUM_INTRAOP_THREADS')} intra-op, "
        f"{_or_auto(threading.get_inter_op_parallelism_threads(), 'TF_NUM_INTEROP_THREADS')} inter-op",
        "kernels": f"oneDNN {_onednn()}, XLA auto-clustering {'on' if tf.config.optimizer.get_jit() else 'off'}",
    }


def _or_auto(threads: int, variable: str) -> str:
    """TensorFlow answers 0 where the number comes from the environment or from the machine."""
    return str(threads or os.environ.get(variable, "automatic"))


def _onednn() -> str:
    try:
        from tensorflow.python.util import _pywrap_util_port  # no public function tells
    except ImportError:
        return "unknown"
    return "on" if _pywrap_util_port.IsMklEnabled() else "off"


def distributions() -> dict[str, str]:
    """Installed versions, by name."""
    from importlib import metadata

    found = {}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def main(arguments: list[str]) -> None:
    """Examine the framework that the first argument names."""
    framework = arguments[0]
    # Read from standard input, Python puts the working directory first: a ./torch.py there must not pass for torch.
    sys.path[:] = [entry for entry in sys.path if entry]
    answer: dict[str, Any] = {
        "python": platform.python_version(),
        "distributions": distributions(),
        "has_pip": find_spec("pip") is not None,
    }
    start = time.perf_counter()
    try:
        answer.update(probe_torch() if framework == "torch" else probe_tensorflow())
        answer["compiled"] = os.path.exists(cache_from_source(answer["file"]))
    except BaseException as error:  # an import may raise anything, SystemExit included
        answer["error"] = f"{type(error).__name__}: {error}"
    answer["seconds"] = round(time.perf_counter() - start, 1)
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
