"""Make the clips: ``python -m portproof.data.clips.make_clips [FOLDER]``, the folder of this file if none is given.

Speech comes from espeak-ng 1.51, a formant synthesizer, so the clips are nobody's voice. Running it again gives the
same bytes: the synthesizer leaves nothing to chance with these voices, NumPy promises that PCG64's raw output never
changes, and the rest ends in integers. Another espeak-ng speaks a little differently.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portproof.data.features import CLIP_SAMPLES, SAMPLE_RATE
from portproof.data.wav import read_speech
from portproof.errors import InputError, PortproofError, SetupError

WORDS = ("yes", "no")
VOICES = {  # espeak-ng's names: language, then speaker variant (f: female, m: male)
    "american": "en-us+f2",
    "british": "en-gb",
    "scottish": "en-gb-scotland+m3",
}
WORDS_PER_MINUTE = 150
AUDIBLE = 1e-3  # of full scale: what is below it before and after the word is cut off
SPEECH_PEAK = 16_384  # half of full scale
# Bits of the noise, sign included. Under speech it stands for a room and peaks 60 dB below full scale: digital silence
# would leave most of the front end's output at one constant.
FLOOR_BITS = 6
NOISE_BITS = 11  # of the clip that is noise only: peaks 30 dB below full scale


def noise(seed: int, bits: int) -> NDArray[np.int64]:
    """Uniform white noise: (16000,) of integers in [-2**(bits-1), 2**(bits-1))."""
    raw: NDArray[np.uint64] = np.random.PCG64(seed).random_raw(CLIP_SAMPLES)
    return (raw >> np.uint64(64 - bits)).astype(np.int64) - (1 << (bits - 1))


def speech(word: str, voice: str) -> NDArray[np.int64]:
    """One word in the middle of one second: (16000,) of 16-bit values, half of full scale at its peak.

    Raises:
        SetupError: espeak-ng is missing or fails.
        InputError: the word is longer than a second.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "word.wav")
        command = ["espeak-ng", "-v", voice, "-s", str(WORDS_PER_MINUTE), "-w", str(file), word]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise SetupError("espeak-ng is not installed; on Debian: apt-get install espeak-ng") from error
        except subprocess.CalledProcessError as error:
            raise SetupError(f"espeak-ng failed for voice {voice!r}: {error.stderr.strip()}") from error
        waveform = read_speech(file)
    audible = np.flatnonzero(np.abs(waveform) > AUDIBLE)
    spoken = waveform[audible[0] : audible[-1] + 1]
    if spoken.size > CLIP_SAMPLES:
        raise InputError(
            f"{word!r} takes {spoken.size / SAMPLE_RATE:.2f} s with voice {voice!r}; choose a shorter word"
        )
    clip = np.zeros(CLIP_SAMPLES, np.int64)
    start = (CLIP_SAMPLES - spoken.size) // 2
    clip[start : start + spoken.size] = np.rint(spoken / np.abs(spoken).max() * SPEECH_PEAK).astype(np.int64)
    return clip


def write_clip(path: Path, samples: NDArray[np.int64]) -> None:
    """Write 16-bit values as a mono WAV file at 16 kHz with the plain 44-byte header."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.astype("<i2").tobytes())


def make_clips(folder: Path) -> None:
    """Write every clip into ``folder``, which exists; errors as :func:`speech`."""
    spoken = [(word, name) for word in WORDS for name in VOICES]
    for seed, (word, name) in enumerate(spoken):
        write_clip(folder / f"{word}_{name}.wav", speech(word, VOICES[name]) + noise(seed, FLOOR_BITS))
    write_clip(folder / "noise.wav", noise(len(spoken), NOISE_BITS))


if __name__ == "__main__":
    try:
        make_clips(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
    except PortproofError as error:
        sys.exit(f"error: {error}")
