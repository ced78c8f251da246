"""The tensors of a RepViT's state dict by name, from its configuration alone: official names, PyTorch's layout.

Imports no framework, so that a checkpoint can be recognised before one is imported.
"""

from __future__ import annotations

from collections.abc import Iterator

from portproof.models.repvit.config import VARIANTS, BlockConfig, RepViTConfig, squeeze_channels

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def shapes_of(
    variant: str, num_classes: int = 1000, *, distillation: bool = False, fused: bool = False
) -> dict[str, tuple[int, ...]]:
    """`state_shapes` of a network by its name among the variants."""
    network = VARIANTS[variant]
    config = RepViTConfig.from_rows(network.rows, in_channels=network.in_channels)
    return state_shapes(config, num_classes, distillation=distillation, fused=fused, plain_head=variant == "repvit_kws")


def state_shapes(
    config: RepViTConfig, num_classes: int, *, distillation: bool = False, fused: bool = False, plain_head: bool = False
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor; a ``plain_head`` is one linear layer, as in the KWS network and fused ones."""
    half, width = config.stem_channels // 2, config.out_channels
    found = dict(_conv_bn("features.0.0", (half, config.in_channels, 3, 3), fused=fused))
    found |= _conv_bn("features.0.2", (config.stem_channels, half, 3, 3), fused=fused)
    for index, block in enumerate(config.blocks, start=1):
        found |= _block(f"features.{index}", block, fused=fused)
    if plain_head or fused:
        found |= _biased("classifier", (num_classes, width))
        return found
    for head in ("classifier.classifier", "classifier.classifier_dist")[: 1 + distillation]:
        found |= _batch_norm(f"{head}.bn", width)
        found |= _biased(f"{head}.l", (num_classes, width))
    return found


def _block(path: str, block: BlockConfig, *, fused: bool) -> Shapes:
    into, out, hidden, size = block.in_channels, block.out_channels, block.hidden_channels, block.kernel_size
    mixer = f"{path}.token_mixer"
    if block.downsamples:
        yield from _conv_bn(f"{mixer}.0", (into, 1, size, size), fused=fused)
        yield from _conv_bn(f"{mixer}.2", (out, into, 1, 1), fused=fused)
    elif fused:
        yield from _biased(f"{mixer}.0", (into, 1, 3, 3))
    else:
        yield from _conv_bn(f"{mixer}.0.conv", (into, 1, 3, 3), fused=False)
        yield from _biased(f"{mixer}.0.conv1", (into, 1, 1, 1))
        yield from _batch_norm(f"{mixer}.0.bn", into)
    if block.use_se:
        squeezed = squeeze_channels(into)
        yield from _biased(f"{mixer}.1.fc1", (squeezed, into, 1, 1))
        yield from _biased(f"{mixer}.1.fc2", (into, squeezed, 1, 1))
    yield from _conv_bn(f"{path}.channel_mixer.m.0", (hidden, out, 1, 1), fused=fused)
    yield from _conv_bn(f"{path}.channel_mixer.m.2", (out, hidden, 1, 1), fused=fused)


def _conv_bn(path: str, kernel: tuple[int, ...], *, fused: bool) -> Shapes:
    if fused:
        yield from _biased(path, kernel)
    else:
        yield f"{path}.c.weight", kernel
        yield from _batch_norm(f"{path}.bn", kernel[0])


def _biased(path: str, kernel: tuple[int, ...]) -> Shapes:
    yield f"{path}.weight", kernel
    yield f"{path}.bias", kernel[:1]


def _batch_norm(path: str, channels: int) -> Shapes:
    yield from ((f"{path}.{name}", (channels,)) for name in ("weight", "bias", "running_mean", "running_var"))
    yield f"{path}.num_batches_tracked", ()
