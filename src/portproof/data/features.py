"""The speech front end: one second of sound in, a (100, 40) picture of log mel energies out; NumPy only.

Both sides of a mirror are fed with the output of this one front end, so it can never be the reason that they differ.

The chain, for a waveform at 16 kHz with full scale at +-1:

1. **Frames**: 400 samples (25 ms) every 160 samples (10 ms). Frame t starts at sample 160 t; the clip is padded with
   240 zeros at the end, so that 16,000 samples give exactly 100 frames, as ``tf.signal.frame(pad_end=True)`` does.
2. **Window**: Hann, *periodic*: ``0.5 - 0.5 cos(2 pi n / 400)``. The periodic form is the one meant for spectra (one
   more sample would begin the next period) and the default of both ``torch.hann_window`` and ``tf.signal.hann_window``,
   so the chain can be rebuilt in either framework without an argument to forget.
3. **Power spectrum**: ``|rfft(frame, 512)|**2``, not scaled: 257 bins, 31.25 Hz apart.
4. **Mel bands**: 40 triangles between 20 Hz and 7600 Hz on the HTK mel scale, ``mel(f) = 2595 log10(1 + f / 700)``
   (Young et al., The HTK Book, "Filterbank Analysis"). As in ``tf.signal.linear_to_mel_weight_matrix``, corners are
   equally spaced in mel, sides are straight in mel rather than in Hz, every peak is 1, and the 0 Hz bin counts for
   nothing.
5. **Logarithm**: natural, ``log(energy + 1e-6)``. Rounding to 16 bits leaves at most 2e-7 in a band (1/12 of a step
   squared, times the window's energy of 150, times the band's width of up to 15 bins): 1e-6 hides it and little else.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from portproof.errors import InputError

SAMPLE_RATE = 16_000  # Hz
CLIP_SAMPLES = 16_000  # one second
FRAME_SAMPLES = 400  # 25 ms
HOP_SAMPLES = 160  # 10 ms
FFT_SAMPLES = 512  # the next power of two after a frame
FRAMES = 100  # ceil(CLIP_SAMPLES / HOP_SAMPLES)
BANDS = 40
LOWEST_HZ = 20.0
HIGHEST_HZ = 7600.0
ENERGY_FLOOR = 1e-6

# Squares of larger samples, summed over a frame and a band, leave float64's range (1.8e308).
LARGEST_SAMPLE = 1e150
# Windows this near to the loudest one count as equally loud: see one_second().
EQUALLY_LOUD = 0.99

Floats = NDArray[np.floating[Any]]


def mel_from_hz(hertz: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """HTK mel scale: any shape of frequencies in Hz, in mel (float64); 1000 Hz is 1000 mel to within 0.02 mel."""
    return np.asarray(2595.0 * np.log10(1.0 + hertz / 700.0), dtype=np.float64)


def hz_from_mel(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of :func:`mel_from_hz`: mel to Hz (float64)."""
    return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0), dtype=np.float64)


@cache
def mel_corners() -> NDArray[np.float64]:
    """Corners of the 40 triangles in mel: (42,) float64, read-only; band b spans [b] to [b+2] and peaks at [b+1]."""
    low, high = mel_from_hz(np.array([LOWEST_HZ, HIGHEST_HZ]))
    corners: NDArray[np.float64] = np.linspace(low, high, BANDS + 2)
    corners.flags.writeable = False
    return corners


@cache
def mel_weights() -> NDArray[np.float64]:
    """Weight of every spectrum bin in every mel band: (257, 40) float64 in [0, 1], read-only."""
    bins = mel_from_hz(np.fft.rfftfreq(FFT_SAMPLES, 1.0 / SAMPLE_RATE))[:, np.newaxis]
    corners = mel_corners()
    left, peak, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (bins - left) / (peak - left), (right - bins) / (right - peak)
    weights: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    weights.flags.writeable = False
    return weights


@cache
def hann_window() -> NDArray[np.float64]:
    """The periodic Hann window of one frame: (400,) float64, read-only."""
    window: NDArray[np.float64] = 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(FRAME_SAMPLES) / FRAME_SAMPLES)
    window.flags.writeable = False
    return window


def one_second(waveform: Floats) -> Floats:
    """Cut or pad a clip to exactly one second.

    A shorter clip gets zeros at its end. From a longer one the loudest second (largest sum of squares) is taken, since
    a keyword in a long recording is rarely in its first second. All windows within 1 % of the loudest one's energy
    count as equally loud, and the middle one of them is taken: a word shorter than a second, with silence around it,
    then stands in the middle of the clip instead of touching an edge, and rounding cannot decide where the cut falls.
    So the clip holds at least 99 % of the energy that any second of the recording holds.

    Args:
        waveform: (samples,) of float32 or float64 at 16 kHz, at least one sample.

    Returns:
        (16000,) of the same dtype; never a view of ``waveform``.

    Raises:
        InputError: not one channel, no samples, not float32 or float64, or samples that are NaN, infinite or beyond
            1e150.
    """
    waveform = _checked(waveform)
    if waveform.ndim != 1:
        raise InputError(f"one channel of samples is needed, not shape {waveform.shape}; average the channels")
    if waveform.size == 0:
        raise InputError("the waveform holds no samples; give at least one")
    if waveform.size <= CLIP_SAMPLES:
        return np.pad(waveform, (0, CLIP_SAMPLES - waveform.size))
    energy_before = np.concatenate([[0.0], np.cumsum(np.square(waveform, dtype=np.float64))])
    energy = energy_before[CLIP_SAMPLES:] - energy_before[:-CLIP_SAMPLES]
    loud = np.flatnonzero(energy >= EQUALLY_LOUD * energy.max())
    start = int(loud[(loud.size - 1) // 2])
    return waveform[start : start + CLIP_SAMPLES].copy()


def log_mel(waveform: Floats, sample_rate: int = SAMPLE_RATE) -> Floats:
    """Log mel energies of one-second clips; the module's docstring gives every step.

    Everything is computed in float64 whatever the input, so a float32 waveform gives the float64 result rounded once,
    with every NumPy (the FFT of NumPy 1 knows float64 only, that of NumPy 2 also float32).

    Args:
        waveform: (samples,) of any length, which goes through :func:`one_second`, or a batch (..., 16000); float32 or
            float64, full scale at +-1.
        sample_rate: of the waveform, in Hz. Anything but 16,000 is refused; ``portproof.data.wav.resample`` converts.

    Returns:
        (100, 40), or (..., 100, 40) for a batch: frames by bands, natural logarithm of energy, in the waveform's dtype.
        Always finite, and never below ``log(1e-6)`` (about -13.8), the value of digital silence.

    Raises:
        InputError: another sample rate, shape or dtype, or samples that are NaN, infinite or beyond 1e150.
    """
    if sample_rate != SAMPLE_RATE:
        raise InputError(f"the front end takes {SAMPLE_RATE} Hz, not {sample_rate} Hz; resample the waveform first")
    waveform = _checked(waveform)
    if waveform.ndim == 1:
        waveform = one_second(waveform)
    elif waveform.shape[-1:] != (CLIP_SAMPLES,):
        raise InputError(
            f"a batch of clips has shape (..., {CLIP_SAMPLES}), not {waveform.shape}; cut each clip with one_second()"
        )
    padding = (FRAMES - 1) * HOP_SAMPLES + FRAME_SAMPLES - CLIP_SAMPLES
    padded = np.pad(waveform.astype(np.float64), [(0, 0)] * (waveform.ndim - 1) + [(0, padding)])
    frames = sliding_window_view(padded, FRAME_SAMPLES, axis=-1)[..., ::HOP_SAMPLES, :]
    spectrum = np.fft.rfft(frames * hann_window(), FFT_SAMPLES)
    energy = (np.square(spectrum.real) + np.square(spectrum.imag)) @ mel_weights()
    return np.asarray(np.log(energy + ENERGY_FLOOR), dtype=waveform.dtype)


def _checked(waveform: Floats) -> Floats:
    """``waveform`` itself, if its dtype and values can be used."""
    waveform = np.asarray(waveform)
    if waveform.dtype not in (np.float32, np.float64):
        raise InputError(
            f"samples are {waveform.dtype}, but float32 or float64 with full scale at 1 is needed; "
            "divide integers by their full scale, 32768 for 16 bits"
        )
    # Said this way round, the comparison also fails for NaN; in float32 the bound itself would be infinite.
    if not float(np.abs(waveform).max(initial=0.0)) <= LARGEST_SAMPLE:
        raise InputError(f"the waveform holds samples that are NaN, infinite or beyond {LARGEST_SAMPLE:g}; remove them")
    return waveform
