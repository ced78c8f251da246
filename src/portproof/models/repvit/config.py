"""RepViT's configuration: the rows of the official code, and the same rows checked and with every width worked out.

Imports no framework. Source: "RepViT: Revisiting Mobile CNN From ViT Perspective" (CVPR 2024) and its official code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Stride = int | tuple[int, int]
Row = tuple[int, int, int, int, int, Stride]


@dataclass(frozen=True, slots=True)
class Variant:
    """One network of the family: ``widths`` of its stages and how many stride-1 blocks each has (``depths``).

    A block of stride ``stride`` precedes every stage but the first. Row of stage and block: ``hs_from`` is the first
    stage whose rows say ``use_hs``, which has no effect and is carried for the official rows' sake.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    stride: Stride = 2
    in_channels: int = 3
    hs_from: int = 2

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows ``(k, t, c, use_se, use_hs, stride)`` of the official code."""
        rows: list[Row] = []
        for stage, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            hs = int(stage >= self.hs_from)
            if stage:
                rows.append((3, 2, width, 0, hs, self.stride))
            # SqueezeExcite in every other block, and in the last of an odd number not, unless it is the only one.
            gated = [int(i % 2 == 0 and (i + 1 < depth or depth == 1)) for i in range(depth)]
            rows += [(3, 2, width, use_se, hs, 1) for use_se in gated]
        return tuple(rows)


# Widths and depths from table 1 of the paper and model/repvit.py of the official code; KWS is this project's own.
VARIANTS: dict[str, Variant] = {
    "repvit_m0_6": Variant((40, 80, 160, 320), (2, 2, 9, 1)),
    "repvit_m0_9": Variant((48, 96, 192, 384), (3, 3, 15, 2)),
    "repvit_m1_0": Variant((56, 112, 224, 448), (3, 3, 15, 2)),
    "repvit_m1_1": Variant((64, 128, 256, 512), (3, 3, 13, 2)),
    "repvit_m1_5": Variant((64, 128, 256, 512), (5, 5, 25, 4)),
    "repvit_m2_3": Variant((80, 160, 320, 640), (7, 7, 35, 2)),
    "repvit_kws": Variant((24, 48, 96), (3, 6, 2), stride=(2, 1), in_channels=1, hs_from=1),
}

# k, t, c, use_se, use_hs, stride: kernel, expansion, output channels, SqueezeExcite, unused, (time, frequency)
KWS_TINY_CFGS: tuple[Row, ...] = VARIANTS["repvit_kws"].rows

KWS_INPUT_SHAPE = (100, 40)  # (time, mel): one second in hops of 10 ms, 40 mel bands

HEAD_STD = 0.02  # of the normal distribution, cut off at ±2, that the linear layers of the ImageNet heads start from

BN_EPSILON = 1e-5  # PyTorch's default, which the official code uses throughout; Keras' own is 1e-3
BN_MOMENTUM = 0.1  # PyTorch's convention, the weight of the new batch; Keras' is 1 - this


def make_divisible(value: float, divisor: int, *, round_limit: float = 0.9) -> int:
    """Return the multiple of ``divisor`` nearest to ``value`` (halves up), at least ``divisor``.

    Where rounding down would go below ``round_limit * value``, the next multiple is taken. The official code widens
    its layers with 0.9, and SqueezeExcite (after timm) takes 0, which rounds to the nearest.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * value else rounded


@dataclass(frozen=True, slots=True)
class BlockConfig:
    """One RepViT block with its widths worked out; ``stride`` is (time, frequency) or (height, width)."""

    in_channels: int
    out_channels: int
    kernel_size: int
    stride: tuple[int, int]
    use_se: bool

    @property
    def hidden_channels(self) -> int:
        """Width inside the channel mixer: the expansion of 2 that every RepViT has."""
        return 2 * self.out_channels

    @property
    def downsamples(self) -> bool:
        """Whether the token mixer strides, and so changes channels, instead of being RepVGGDW."""
        return self.stride != (1, 1)


@dataclass(frozen=True, slots=True)
class RepViTConfig:
    """A whole network up to its pooling: the stem (3x3 at stride 2, twice), then the blocks; ``rows`` is its source."""

    rows: tuple[Row, ...]
    in_channels: int
    stem_channels: int
    blocks: tuple[BlockConfig, ...]

    @property
    def out_channels(self) -> int:
        """Width of the features that reach the classifier."""
        return self.blocks[-1].out_channels

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """Positions in ``features`` (the stem is 0) of the last block of each stage; a stride begins a new one."""
        starts = [index for index, block in enumerate(self.blocks) if block.downsamples and index]
        return (*starts, len(self.blocks))

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[Any]], *, in_channels: int) -> RepViTConfig:
        """Check rows of the official form ``(k, t, c, use_se, use_hs, stride)`` and work out the widths.

        Raises ``ValueError``, which names the row, for anything that the official blocks cannot be built from.
        """
        if not rows:
            raise ValueError("cfgs is empty: RepViT needs at least one row (k, t, c, use_se, use_hs, stride)")
        checked = tuple(_row(f"cfgs[{index}]={row!r}", row) for index, row in enumerate(rows))
        stem_channels = checked[0][2]
        if stem_channels % 2:
            raise ValueError(f"cfgs[0]: c={stem_channels} must be even, for the stem starts at half that width")
        blocks: list[BlockConfig] = []
        channels = stem_channels
        for index, (kernel_size, _, width, use_se, _, stride) in enumerate(checked):
            block = BlockConfig(
                in_channels=channels,
                out_channels=make_divisible(width, 8),
                kernel_size=kernel_size,
                stride=stride if isinstance(stride, tuple) else (stride, stride),
                use_se=bool(use_se),
            )
            if not block.downsamples and channels != block.out_channels:
                raise ValueError(
                    f"cfgs[{index}]={checked[index]!r}: a block of stride 1 keeps its channels, "
                    f"but this one goes from {channels} to {block.out_channels}"
                )
            blocks.append(block)
            channels = block.out_channels
        return cls(rows=checked, in_channels=in_channels, stem_channels=stem_channels, blocks=tuple(blocks))


def squeeze_channels(channels: int) -> int:
    """Hidden width of SqueezeExcite over ``channels``: a quarter, rounded to a multiple of 8."""
    return make_divisible(channels * 0.25, 8, round_limit=0.0)


def check_num_classes(num_classes: int) -> int:
    """Return ``num_classes`` if a classifier can be that wide, else raise ``ValueError``."""
    if not _is_int(num_classes) or num_classes < 1:
        raise ValueError(f"num_classes must be a positive integer, got {num_classes!r}")
    return int(num_classes)


def check_distillation(logits: object, kind: str, alpha: float, temperature: float) -> None:
    """Raise ``ValueError`` for what the distillation loss cannot be computed from."""
    if not isinstance(logits, (tuple, list)) or len(logits) != 2:
        raise ValueError("logits must be those of both heads: build with distillation=True, and call in train mode")
    if kind not in ("hard", "soft"):
        raise ValueError(f"kind must be hard or soft, got {kind!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature!r}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _row(where: str, row: Sequence[Any]) -> Row:
    """Check one row by itself and return it as plain numbers and tuples."""
    if not isinstance(row, (tuple, list)) or len(row) != 6:
        raise ValueError(f"{where}: a row has 6 entries (k, t, c, use_se, use_hs, stride)")
    kernel_size, expansion, channels, use_se, use_hs, stride = row
    if not _is_int(kernel_size) or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"{where}: k must be a positive odd integer, got {kernel_size!r}")
    if expansion != 2:
        raise ValueError(f"{where}: t must be 2, the only expansion that RepViT has, got {expansion!r}")
    if not _is_int(channels) or channels < 1:
        raise ValueError(f"{where}: c must be a positive integer, got {channels!r}")
    for name, flag in (("use_se", use_se), ("use_hs", use_hs)):
        if flag not in (0, 1):
            raise ValueError(f"{where}: {name} must be 0 or 1, got {flag!r}")
    steps = tuple(stride) if isinstance(stride, (tuple, list)) else (stride,)
    if len(steps) not in (1, 2) or any(not _is_int(step) or step not in (1, 2) for step in steps):
        raise ValueError(f"{where}: stride must be 1, 2 or a pair of these, got {stride!r}")
    checked_stride = steps[0] if len(steps) == 1 else (steps[0], steps[1])
    return kernel_size, 2, channels, int(use_se), int(use_hs), checked_stride
