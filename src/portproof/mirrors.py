"""The mirrors that ship: models of ``portproof.models`` with their inputs, registered through the entry point group."""

from __future__ import annotations

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


repvit_kws = Mirror(
    name="repvit-kws",
    torch="portproof.models.repvit:KWSRepViT_Torch",
    tensorflow="portproof.models.repvit:KWSRepViT_TF",
    inputs=(InputSpec("x", (2, 100, 40)),),
    samples=_spoken_samples,
    audio=_audio_features,
    description="RepViT keyword spotter, log-mel (100, 40) to 2 logits",
)

DEFAULT = repvit_kws.name
