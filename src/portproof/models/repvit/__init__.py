"""RepViT in PyTorch and TensorFlow; asking for one side's class imports that side's framework and no other."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from portproof.models.repvit.config import KWS_TINY_CFGS

if TYPE_CHECKING:
    from portproof.models.repvit.tensorflow_model import KWSRepViT as KWSRepViT_TF
    from portproof.models.repvit.torch_model import KWSRepViT as KWSRepViT_Torch

__all__ = ["KWS_TINY_CFGS", "KWSRepViT_TF", "KWSRepViT_Torch"]

_LAZY = {  # public name: (module, name in it)
    "KWSRepViT_TF": ("tensorflow_model", "KWSRepViT"),
    "KWSRepViT_Torch": ("torch_model", "KWSRepViT"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    value = getattr(import_module(f"{__name__}.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
