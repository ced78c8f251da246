"""The mirrors that ship: models of ``portproof.models`` with their inputs, registered through the entry point group."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from portproof.mirror import InputSpec, Mirror

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def _audio_features(waveform: NDArray[Any], sample_rate: int) -> NDArray[np.float32]:
    import numpy as np

    from portproof.data.features import log_mel, one_second
    from portproof.data.wav import resample

    return log_mel(one_second(resample(waveform, sample_rate))).astype(np.float32)


def _spoken_samples() -> dict[str, NDArray[np.float32]]:
    from portproof.data.clips import clips
    from portproof.data.wav import read_wav

    return {name: _audio_features(*read_wav(path)) for name, path in clips()}


_SHAPES = "portproof.models.repvit.shapes:shapes_of({})"

repvit_kws = Mirror(
    name="repvit-kws",
    torch="portproof.models.repvit:KWSRepViT_Torch",
    tensorflow="portproof.models.repvit:KWSRepViT_TF",
    inputs=(InputSpec("x", (2, 100, 40)),),
    samples=_spoken_samples,
    audio=_audio_features,
    description="RepViT keyword spotter, log-mel (100, 40) to 2 logits",
    shapes=_SHAPES.format("variant='repvit_kws', num_classes=2"),
    fused="repvit-kws-fused",
)

repvit_kws_fused = replace(
    repvit_kws,
    name="repvit-kws-fused",
    torch=f"{repvit_kws.torch}(fused=True)",
    tensorflow=f"{repvit_kws.tensorflow}(fused=True)",
    description="RepViT keyword spotter, re-parameterized",
    training=False,
    shapes=_SHAPES.format("variant='repvit_kws', num_classes=2, fused=True"),
    fused="",
)


def _images(variant: str) -> tuple[Mirror, Mirror, Mirror]:
    """One network of the ImageNet family: with a plain head, with the distillation head, and re-parameterized."""
    name = variant.replace("_", "-")
    title = f"RepViT-{variant[7:].replace('_', '.').upper()}"

    def mirror(ending: str, description: str, **form: bool) -> Mirror:
        arguments = ", ".join(f"{key}={value}" for key, value in form.items())
        call = f"{variant}({arguments})" if form else variant
        return Mirror(
            name + ending,
            torch=f"portproof.models.repvit.torch_model:{call}",
            tensorflow=f"portproof.models.repvit.tensorflow_model:{call}",
            inputs=(_IMAGES,),
            description=f"{title}, {description}",
            training=not form.get("fused", False),
            shapes=_SHAPES.format(", ".join(filter(None, (f"{variant=}", arguments)))),
            fused="" if form.get("fused") else f"{name}-fused",
        )

    return (
        mirror("", "images to 1000 logits"),
        mirror("-distilled", "with the distillation head: two logits in training", distillation=True),
        mirror("-fused", "re-parameterized", fused=True),
    )


# Small, for what a check finds does not depend on the size; not square and partly odd, so that a mistaken axis or
# padding shows; four images, for with two every BatchNorm of the head would see nothing but ±1.
_IMAGES = InputSpec("x", (4, 3, 64, 50))

repvit_m0_6, repvit_m0_6_distilled, repvit_m0_6_fused = _images("repvit_m0_6")
repvit_m0_9, repvit_m0_9_distilled, repvit_m0_9_fused = _images("repvit_m0_9")
repvit_m1_0, repvit_m1_0_distilled, repvit_m1_0_fused = _images("repvit_m1_0")
repvit_m1_1, repvit_m1_1_distilled, repvit_m1_1_fused = _images("repvit_m1_1")
repvit_m1_5, repvit_m1_5_distilled, repvit_m1_5_fused = _images("repvit_m1_5")
repvit_m2_3, repvit_m2_3_distilled, repvit_m2_3_fused = _images("repvit_m2_3")

DEFAULT = repvit_kws.name
