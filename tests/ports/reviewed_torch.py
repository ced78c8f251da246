"""Originals for ways to be wrong that a review found: dropout, outputs, branches, a bias in front of a BatchNorm."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(6, 8), nn.Dropout(0.1), nn.Linear(8, 4)

    def forward(self, x):
        return self.b(self.drop(torch.relu(self.a(x))))


class FunctionalDropping(Dropping):
    """Dropout as a function, which no walk over the modules finds."""

    def forward(self, x):
        return self.b(functional.dropout(torch.relu(self.a(x)), 0.2, self.training))


class Projected(nn.Module):
    """A residual block whose projection is defined and run last; a bias in front of a BatchNorm, too."""

    def __init__(self):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.c2, self.b2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.down = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        y = self.b2(self.c2(torch.relu(self.b1(self.c1(x)))))
        return self.head(torch.relu(y + self.down(x)).mean((2, 3)))


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(x)


class WithClass(Sequence):
    def forward(self, x):
        logits = self.head(x)
        return logits, logits.argmax(-1)


class Activated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.b(functional.gelu(self.a(x)))
