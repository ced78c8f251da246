"""WAV files: read any usual kind as one channel of floats, and bring it to 16 kHz.

Decoding is libsndfile's work, through ``soundfile``: it knows every sample format and WAVE_FORMAT_EXTENSIBLE, where the
standard library's ``wave`` knows integer PCM only. Resampling is the SoX resampler's, through ``soxr``: half a megabyte
where SciPy is a hundred, with a documented passband and stopband, and no filter to design here. Both are imported at
first use.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portproof.data.features import SAMPLE_RATE
from portproof.errors import InputError

# Bounds around what is in use: telephone speech has 8 kHz, studio converters reach 768 kHz. A broken header that says
# 1 Hz would otherwise make resampling ask for 16,000 times the memory of the file.
SAMPLE_RATES = (4_000, 768_000)  # Hz
# 24 dB over full scale: no honest float recording goes there, but one whose integers were stored unscaled does.
LOUDEST_FLOAT = 16.0
# Writers to a pipe cannot go back to fill in the length. They leave the largest number: 2**32 - 1 (ffmpeg), or about
# 2**31 (espeak-ng and SoX, up to 4 kB less).
UNKNOWN_LENGTH = 0x7FFF_F000  # bytes


def read_wav(path: str | Path) -> tuple[NDArray[np.float64], int]:
    """Read a WAV file as one channel.

    Takes RIFF files with 8, 16, 24 or 32-bit PCM, float32 or float64, plain or WAVE_FORMAT_EXTENSIBLE, and the
    compressed kinds that libsndfile decodes (A-law, mu-law, ADPCM). Several channels are averaged.

    Args:
        path: the file; its name does not matter, its content does.

    Returns:
        Samples, (samples,) float64, at least one, all finite: integers divided by their full scale, so in [-1, 1);
        floats as they are, which may be beyond, up to 16. And the sample rate in Hz, 4,000 to 768,000.

    Raises:
        InputError: the file cannot be read, is no WAV file, is empty, truncated or damaged, or holds samples that are
            NaN, infinite or far beyond full scale.
    """
    import soundfile

    content = _read_riff(path)
    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".")
        raise InputError(f"{path}: damaged WAV file ({reason}); save it again as PCM WAV") from error
    if samples.size == 0:
        raise InputError(f"{path}: WAV file without samples; record or export it again")
    if not SAMPLE_RATES[0] <= rate <= SAMPLE_RATES[1]:
        raise InputError(
            f"{path}: the header says {rate} Hz, and {SAMPLE_RATES[0]} to {SAMPLE_RATES[1]} Hz is possible; "
            "save it again with its true sample rate"
        )
    if not np.isfinite(samples).all():
        raise InputError(f"{path}: holds NaN or infinite samples; export it again, best as 16-bit PCM")
    loudest = np.abs(samples).max()
    if loudest > LOUDEST_FLOAT:
        raise InputError(f"{path}: samples reach {loudest:g}, but full scale is 1; divide them by their full scale")
    return samples.mean(axis=1), int(rate)


def resample(waveform: NDArray[np.float64], rate: int, new_rate: int = SAMPLE_RATE) -> NDArray[np.float64]:
    """Change the sample rate; with equal rates the waveform comes back as it is.

    SoX resampler, quality "HQ": linear phase without delay, passband to 0.91 of the lower Nyquist frequency, 120 dB
    rejection. Peaks between the samples become samples, so the result may reach a little over full scale.

    Args:
        waveform: (samples,) float64.
        rate: of the waveform, in Hz, 4,000 to 768,000.
        new_rate: wanted, in Hz, within the same bounds.

    Returns:
        (samples * new_rate / rate, rounded,) float64; empty where that is less than half a sample.

    Raises:
        InputError: a rate out of bounds.
    """
    import soxr

    for value in (rate, new_rate):
        if not SAMPLE_RATES[0] <= value <= SAMPLE_RATES[1]:
            raise InputError(f"cannot resample {value} Hz; use {SAMPLE_RATES[0]} to {SAMPLE_RATES[1]} Hz")
    if rate == new_rate:
        return waveform
    return np.asarray(soxr.resample(waveform, rate, new_rate, quality="HQ"), dtype=np.float64)


def read_speech(path: str | Path) -> NDArray[np.float64]:
    """Read a WAV file for the front end: one channel at 16 kHz, (samples,) float64, of any length.

    Raises:
        InputError: as :func:`read_wav`, and when nothing is left at 16 kHz.
    """
    waveform = resample(*read_wav(path))
    if waveform.size == 0:
        raise InputError(f"{path}: shorter than one sample at {SAMPLE_RATE} Hz; give a longer recording")
    return waveform


def _read_riff(path: str | Path) -> bytes:
    """Content of a file that starts as a WAV file and holds as much as its header says."""
    try:
        with open(path, "rb") as file:
            # The first bytes decide before the rest is read: a wrong file may be of any size.
            content = file.read(12)
            if not content:
                raise InputError(f"{path}: the file is empty; record or export it again")
            if content[:4] not in (b"RIFF", b"RIFX") or content[8:] != b"WAVE":
                raise InputError(
                    f"{path}: not a WAV file; convert it first, for example: "
                    f"ffmpeg -i INPUT -ac 1 -ar {SAMPLE_RATE} OUTPUT.wav"
                )
            content += file.read()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a WAV file") from error
    missing = _missing_bytes(content)
    if missing > 0:
        raise InputError(f"{path}: truncated, {missing} bytes are missing at its end; copy or export it again")
    return content


def _missing_bytes(content: bytes) -> int:
    """By how many bytes a RIFF file is shorter than its data chunk says; libsndfile would read the rest, silently."""
    header = ">4sI" if content.startswith(b"RIFX") else "<4sI"
    start = 12
    while start + 8 <= len(content):
        name, length = struct.unpack_from(header, content, start)
        start += 8
        if name == b"data":
            return 0 if length >= UNKNOWN_LENGTH else start + length - len(content)
        start += length + length % 2  # chunks begin at even places
    return 0  # no data chunk: libsndfile says so
