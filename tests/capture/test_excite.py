"""Exciting a model: no path stays idle, the statistics fit the data, and the values depend on seed and name alone."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from portproof.capture.excite import excite, start_from  # noqa: E402 - after torch is known to be there
from portproof.models.repvit import KWSRepViT_Torch  # noqa: E402
from portproof.values import Start  # noqa: E402

pytestmark = pytest.mark.torch

nn = torch.nn


class Residual(nn.Module):
    """What initialisation leaves idle: a branch that ends in a zero BatchNorm, layer scale, zero biases."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.zeros(8, 1, 1))
        self.head = nn.Linear(8, 5)
        nn.init.zeros_(self.norm.weight)
        nn.init.zeros_(self.stem.bias)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        x = x + self.norm(self.conv(x))
        return self.head((x * (1 + self.scale)).mean((2, 3)))


def excited(seed: int = 0, model: Any = None) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = Residual() if model is None else model
    x = torch.randn((4, 3, 9, 7), generator=torch.Generator().manual_seed(1))
    excite(model, lambda: model(x), seed)
    return model, x


def test_no_tensor_stays_constant() -> None:
    model, _ = excited()
    floats = {name: t for name, t in model.state_dict().items() if t.is_floating_point()}
    assert floats
    assert not [name for name, tensor in floats.items() if bool((tensor == tensor.flatten()[0]).all())]
    assert bool(torch.isfinite(torch.cat([tensor.flatten() for tensor in floats.values()])).all())


def test_statistics_are_those_of_the_data_moved_a_little() -> None:
    model, x = excited()
    seen = []
    model.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(x)
    mean, variance = seen[0].mean((0, 2, 3)), seen[0].var((0, 2, 3))
    # Moved by 0.1 standard deviations and exp(0.2), times normal numbers, of which 16 stay below 4 in all but 1e-3.
    assert bool(((model.norm.running_mean - mean).abs() < 0.4 * variance.sqrt()).all())
    assert bool(((model.norm.running_var / variance).log().abs() < 0.8).all())
    # Moved indeed: statistics that were mixed up between layers or passes would show.
    assert bool((model.norm.running_mean != mean).all())


def test_the_output_depends_on_the_input_and_on_every_parameter() -> None:
    model, x = excited()
    model.eval()
    output = model(x)
    # Centred: the entries of the batch differ by about as much as they are large.
    assert float(output.detach().std(0).min()) > 0.1 * float(output.detach().abs().max())
    torch.nn.functional.cross_entropy(output, torch.arange(4)).backward()
    assert all(float(parameter.grad.abs().max()) > 0 for parameter in model.parameters())


def test_values_are_float32_numbers() -> None:
    model, _ = excited()
    double = Residual().double()
    x = torch.randn((4, 3, 9, 7), dtype=torch.float64)
    excite(double, lambda: double(x), 0)
    for tensor in (*model.state_dict().values(), *double.state_dict().values()):
        if tensor.is_floating_point():
            assert bool((tensor.float().to(tensor.dtype) == tensor).all())


def same(a: Any, b: Any) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_the_seed_decides() -> None:
    assert same(excited()[0], excited()[0])
    assert not same(excited()[0], excited(seed=1)[0])


def test_the_order_of_definition_does_not_matter() -> None:
    def model(names: list[str]) -> Any:
        # Normalisations side by side, so that no random initialisation depends on the order either.
        parts = nn.ModuleDict(OrderedDict((name, nn.BatchNorm2d(3)) for name in names))
        parts.forward = lambda x: sum(parts[name](x) for name in sorted(names))  # type: ignore[method-assign]
        return excited(model=parts)[0]

    assert same(model(["a", "b", "c"]), model(["c", "a", "b"]))


def test_mode_and_momentum_are_put_back() -> None:
    for training in (True, False):
        model = Residual().train(training)
        model.norm.momentum = 0.03
        excited(model=model)
        assert model.training == training
        assert model.norm.momentum == 0.03
    assert not any(module._forward_hooks for module in model.modules())


def test_deep_networks_stay_at_ordinary_sizes() -> None:
    # specs: with naive random values the logits of this network reached 672.
    model = KWSRepViT_Torch()
    x = torch.randn((3, 100, 40), generator=torch.Generator().manual_seed(1))
    excite(model, lambda: model(x), 0)
    with torch.no_grad():
        output = model.eval()(x)
    assert 1e-3 < float(output.abs().max()) < 30
    assert float(output.std(0).max()) > 1e-3


def test_models_without_normalisation_and_with_tied_or_integer_tensors() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight
            self.register_buffer("index", torch.zeros(3, dtype=torch.int64))
            self.empty = nn.Parameter(torch.zeros(0))

        def forward(self, x: Any) -> Any:
            return self.second(self.first(x.mean((2, 3))))[:, self.index]

    model, _ = excited(model=Odd())
    assert model.second.weight is model.first.weight
    assert torch.equal(model.index, torch.zeros(3, dtype=torch.int64))


def test_a_model_that_yields_nan_keeps_finite_weights() -> None:
    class NaNs(Residual):
        def forward(self, x: Any) -> Any:
            return super().forward(torch.log(-1 - x.abs()))

    model, _ = excited(model=NaNs())
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


class Deep(nn.Module):
    """Without any normalisation, at default initialisation: every layer passes on a third of what it is given."""

    def __init__(self, depth: int = 12) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(depth)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x).mean((2, 3)))


def test_without_normalisation_the_input_still_reaches_the_output() -> None:
    torch.manual_seed(0)
    with torch.no_grad():
        faded = Deep().body(torch.randn(4, 3, 9, 7))
    assert float(faded.std(0).mean()) < 1e-3  # what it would be
    model, x = excited(model=Deep())
    with torch.no_grad():
        value = x
        for layer in model.body:
            value = layer(value)
            varies = float((value - value.mean((0, 2, 3), keepdim=True)).std())
            assert 0.25 * 0.99 <= varies <= 4 * 1.01
        assert float(model(x).std(0).mean()) > 0.1
    assert all(torch.equal(p, p.double().float().double().to(p.dtype)) for p in model.parameters())


def kernels(model: Any) -> dict[str, Any]:
    return {name: each.detach().clone() for name, each in model.named_parameters() if each.dim() > 1}


def test_kernels_are_scaled_and_redrawn_at_their_own_size() -> None:
    torch.manual_seed(0)
    model = Residual()
    nn.init.normal_(model.head.weight, 0.5, 0.1)
    nn.init.normal_(model.scale)
    before, bias = kernels(model), model.conv.bias
    start_from(model, Start(gain=8.0), 0)
    for name, kernel in kernels(model).items():
        assert bool((kernel == 8 * before[name]).all())
    assert bias is model.conv.bias
    start_from(model, Start(gain=0.125, kernels="heavy"), 3)
    for name, kernel in kernels(model).items():
        assert not bool((kernel == before[name]).all())
        assert float(kernel.mean()) == pytest.approx(float(before[name].mean()), abs=1e-6)
        assert float(kernel.std()) == pytest.approx(float(before[name].std()), rel=1e-5)
    again = kernels(model)
    start_from(model, Start(kernels="heavy"), 3)
    assert all(float((kernel - again[name]).abs().max()) < 1e-5 for name, kernel in kernels(model).items())


def test_a_plain_start_changes_nothing() -> None:
    model = Residual()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    start_from(model, Start(excite=False), 0)
    assert all(bool((each == before[name]).all()) for name, each in model.state_dict().items())


@pytest.mark.parametrize("value", [0.0, 0.3, 1e4])
def test_channels_that_do_not_vary_are_not_divided_by_their_rounding(value: float) -> None:
    """With all inputs equal the variance of a channel is its rounding error: dividing by it leaves noise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    x = torch.full((4, 3, 5, 5), value)
    excite(model, lambda: model(x), 0)
    with torch.no_grad():
        reached = model[0](x)
    size = reached.square().mean((0, 2, 3)).sqrt()
    # Moved by a fifth in the logarithm, as all statistics are, so three standard deviations of that.
    assert bool((model[1].running_var.sqrt() >= 0.1 * size * math.exp(-0.5 * 3 * 0.2)).all())
    assert float(model.double()(x.double()).abs().max()) < 100


def test_a_head_whose_rows_are_equal_is_not_centred_to_noise() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    excite(model, lambda: model(torch.ones((4, 3, 4))), 0)
    assert float(model(torch.ones((4, 3, 4))).abs().min()) > 1e-3
    varied = torch.randn((4, 3, 4), generator=torch.Generator().manual_seed(1))
    excite(model, lambda: model(varied), 0)
    assert float(model(varied).mean(0).abs().max()) < 1e-6
