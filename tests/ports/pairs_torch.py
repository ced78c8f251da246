"""PyTorch models as users write them, small; pairs_keras.py holds their ports under the same names."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Classifier(nn.Module):
    """Image classifier with a flatten in front of its head: (N, 3, 17, 13) -> (N, 5)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.pool = nn.MaxPool2d(2)
        self.body = nn.Conv2d(6, 8, 3)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.pool(functional.relu(self.norm(self.stem(x))))
        return self.head(self.flatten(functional.relu(self.body(x))))


classifier = Classifier


class TwoInputs(nn.Module):
    """Token ids (N, 7) below 50 and features (N, 7, 3) -> logits (N, 4), states (N, 7, 6), and the ids as they came."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 6)
        self.project = nn.Linear(3, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, ids, features):
        states = self.embedding(ids) + self.project(features)
        return {"logits": self.head(states.mean(1)), "states": states, "ids": ids}


two_inputs = TwoInputs


class Reordered(nn.Module):
    """Layers defined in another order than they are executed in; (N, 6) -> (N, 6)."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(6, 6)
        self.middle = nn.Linear(6, 6)
        self.first = nn.Linear(6, 6)

    def forward(self, x):
        return self.last(torch.tanh(self.middle(torch.tanh(self.first(x)))))


reordered = Reordered


class Perceptron(nn.Module):
    """(N, 6) -> (N, 4)."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(6, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        return self.head(torch.relu(self.hidden(x)))


perceptron = Perceptron


def seeded():
    """The same weights whenever it is called, for runs in which each side keeps its own."""
    model = Perceptron()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.copy_((torch.arange(parameter.numel()).reshape(parameter.shape) * 7 % 11 - index) / 8)
    return model


def with_dropout():
    return nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.4), nn.ReLU(), nn.Linear(8, 4))


class Casting(Perceptron):
    """Computes its hidden layer in float32 whatever it is given."""

    def forward(self, x):
        hidden = functional.linear(x.float(), self.hidden.weight.float(), self.hidden.bias.float())
        return self.head(torch.relu(hidden).to(x.dtype))


casting = Casting


class Stubborn(Perceptron):
    """Raises in float64."""

    def forward(self, x):
        return super().forward(x.to(torch.float32))


stubborn = Stubborn


class Shared(nn.Module):
    """One layer called twice."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.mix(torch.tanh(self.mix(x)))))


shared = Shared


def in_place():
    """ReLUs that overwrite what the layers before them returned."""
    return nn.Sequential(
        nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Conv1d(4, 4, 1), nn.ReLU(inplace=True)
    )


class Gated(nn.Module):
    """Functions between the layers: (N, 6) -> (N, 4)."""

    def __init__(self):
        super().__init__()
        self.value = nn.Linear(6, 5)
        self.gate = nn.Linear(6, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x):
        gated = self.value(x) * torch.sigmoid(self.gate(x))
        return self.head(gated - gated.mean(1, keepdim=True))


gated = Gated


def separable():
    return nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4))


class NaNs(Perceptron):
    def forward(self, x):
        return self.head(torch.log(self.hidden(x) - 1e6))


nans = NaNs


class Pooled(nn.Module):
    """Sizes that no stride or window divides: (N, 2, 15, 11) -> (N, 3)."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(2, 4, (3, 2), stride=(2, 3)), nn.LeakyReLU(0.1), nn.AvgPool2d(2), nn.Conv2d(4, 3, 1)
        )

    def forward(self, x):
        return self.features(x).mean((2, 3))


pooled = Pooled
