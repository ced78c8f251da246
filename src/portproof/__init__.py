"""portproof: proves that a model ported from PyTorch to TensorFlow is the same model.

The public names are loaded when they are first asked for, so that the command line answers before NumPy is imported,
and comparing and reporting work without either framework.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from portproof.check import capture, check
    from portproof.compare import compare
    from portproof.compare.policy import Policy
    from portproof.compare.verdict import judge
    from portproof.errors import PortproofError
    from portproof.mirror import InputSpec, Mirror
    from portproof.repair import diagnose
    from portproof.report import Report
    from portproof.trace import Trace

__version__ = "0.1.0"
__all__ = [
    "InputSpec",
    "Mirror",
    "Policy",
    "PortproofError",
    "Report",
    "Trace",
    "capture",
    "check",
    "compare",
    "diagnose",
    "judge",
]

_HOMES = {
    "InputSpec": "mirror",
    "Mirror": "mirror",
    "Policy": "compare.policy",
    "PortproofError": "errors",
    "Report": "report",
    "Trace": "trace",
    "capture": "check",
    "check": "check",
    "compare": "compare",
    "diagnose": "repair",
    "judge": "compare.verdict",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


class _Package(ModuleType):
    """`check`, `capture` and `compare` are functions here, although submodules of the same names exist.

    Importing a submodule puts it into its package under its name, over whatever stands there; a property stays.
    """

    check = property(lambda _: __getattr__("check"), lambda *_: None)
    capture = property(lambda _: __getattr__("capture"), lambda *_: None)
    compare = property(lambda _: __getattr__("compare"), lambda *_: None)


sys.modules[__name__].__class__ = _Package
