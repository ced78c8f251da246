"""Small originals to plant defects in: between them they have the layers that the catalogue looks for."""

from __future__ import annotations

import torch
from torch import nn


class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, 4, 1)
        self.act = nn.ReLU()
        self.fc2 = nn.Conv2d(4, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x):
        return x * self.gate(self.fc2(self.act(self.fc1(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """A depthwise branch, a 1x1 branch, and the identity."""

    def __init__(self, channels):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.GELU()

    def forward(self, x):
        return self.act(self.bn(self.depthwise(x) + self.pointwise(x) + x))


class Image(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(8)
        self.stem_act = nn.ReLU()
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.block1 = Block(8)
        self.gate = Gate(8)
        self.block2 = Block(8)
        self.flatten = nn.Flatten()
        self.dropout = nn.Dropout(0.3)
        self.classifier = nn.Linear(8 * 4 * 3, 5)

    def forward(self, x):
        x = self.down(self.stem_act(self.stem_bn(self.stem(x))))
        x = self.block2(self.gate(self.block1(x)))
        return self.classifier(self.dropout(self.flatten(x.permute(0, 2, 3, 1))))


def image():
    return Image()


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.num_heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.softmax = nn.Softmax(-1)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x, mask):
        batch, time, width = x.shape
        split = (batch, time, self.num_heads, width // self.num_heads)
        q, k, v = (p(x).reshape(split).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        scores = (q * split[-1] ** -0.5) @ k.transpose(2, 3) + mask
        return self.out_proj((self.softmax(scores) @ v).transpose(1, 2).reshape(x.shape))


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(2 * width, width)
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, x, mask):
        x = self.self_attn_layer_norm(x + self.self_attn(x, mask))
        return self.final_layer_norm(x + self.fc2(self.act(self.fc1(x))))


class Sequence(nn.Module):
    """Post-norm layers over learned positions; the score of the last valid frame."""

    def __init__(self, width=12, heads=3, time=7):
        super().__init__()
        self.proj = nn.Linear(5, width)
        self.embed_positions = nn.Embedding(time + 2, width)
        self.layer1 = Layer(width, heads)
        self.layer2 = Layer(width, heads)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(width, 4)

    def forward(self, x, mask):
        additive = torch.where(mask, 0.0, -30.0)[:, None, None].to(x.dtype)
        x = self.proj(x) + self.embed_positions(torch.arange(x.shape[1]) + 2)
        x = self.layer2(self.layer1(x, additive), additive)
        last = (mask.sum(1) - 1).clamp(min=0)
        return self.classifier(self.dropout(x[torch.arange(len(x)), last]))


def sequence():
    return Sequence()
