"""Both sides of RepViT and whole models, made once per module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from repvit_sides import SIDES, SMALL_CFGS, Side, excite


@pytest.fixture(scope="module")
def sides() -> Callable[[str], Side]:
    """Give a side by name, importing its framework when it is first asked for."""
    made: dict[str, Side] = {}

    def side(name: str) -> Side:
        if name not in made:
            made[name] = SIDES[name]()
        return made[name]

    return side


@pytest.fixture(scope="module")
def models(sides: Callable[[str], Side]) -> Callable[..., Any]:
    """Give the whole KWS model of a side in a dtype, made once, as initialized; tests must not change it."""
    made: dict[tuple[str, str], Any] = {}

    def model(name: str, dtype: str = "float32") -> Any:
        if (name, dtype) not in made:
            made[name, dtype] = sides(name).build(dtype=dtype)
        return made[name, dtype]

    return model


@pytest.fixture
def tf() -> Any:
    return pytest.importorskip("tensorflow")


@pytest.fixture
def small(sides: Any) -> Any:
    model = sides("tensorflow").build(SMALL_CFGS)
    excite(model)
    return model
