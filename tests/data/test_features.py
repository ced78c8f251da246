"""The speech front end: against an independent implementation, and facts about sounds whose picture is known."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from portproof.data.features import hz_from_mel, log_mel, mel_corners, mel_from_hz, mel_weights, one_second
from portproof.data.wav import read_speech
from portproof.errors import InputError

SECONDS = np.arange(16_000) / 16_000
CENTRES_HZ = hz_from_mel(mel_corners()[1:-1])

# Few distinct values over a long array: hypothesis fills the rest with one of them, so that examples stay small.
waveforms = npst.arrays(np.float64, st.integers(1, 20_000), elements=st.floats(-1.0, 1.0), fill=st.floats(-1.0, 1.0))


def noise(samples: int = 16_000, scale: float = 0.1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=scale, size=samples)


def reference_frame(waveform: np.ndarray, frame: int) -> list[float]:
    """One frame by the definition: a sum per Fourier coefficient, a loop per band, no FFT and no matrix."""
    power = []
    samples = [float(waveform[i]) if i < len(waveform) else 0.0 for i in range(160 * frame, 160 * frame + 400)]
    windowed = [
        x * math.sin(math.pi * n / 400) ** 2 for n, x in enumerate(samples)
    ]  # sin^2 is the periodic Hann window
    for k in range(257):
        real = math.fsum(x * math.cos(2 * math.pi * (k * n % 512) / 512) for n, x in enumerate(windowed))
        imaginary = math.fsum(x * math.sin(2 * math.pi * (k * n % 512) / 512) for n, x in enumerate(windowed))
        power.append(real**2 + imaginary**2)

    def mel(hertz: float) -> float:
        return 2595 * math.log10(1 + hertz / 700)

    step = (mel(7600) - mel(20)) / 41
    bands = []
    for band in range(40):
        centre = mel(20) + (band + 1) * step
        bands.append(math.fsum(p * max(0.0, 1 - abs(mel(31.25 * k) - centre) / step) for k, p in enumerate(power)))
    return [math.log(energy + 1e-6) for energy in bands]


@pytest.mark.parametrize("frame", [0, 1, 57, 98, 99])
def test_agrees_with_the_definition(frame: int) -> None:
    waveform = noise()
    np.testing.assert_allclose(log_mel(waveform)[frame], reference_frame(waveform, frame), rtol=0, atol=1e-10)


@pytest.mark.tensorflow
@pytest.mark.skipif(find_spec("tensorflow") is None, reason="TensorFlow is not installed")
def test_mel_weights_are_those_of_tensorflow() -> None:
    # In a process of its own, as everywhere: this one stays free of frameworks.
    code = (
        "import json, tensorflow as tf; print(json.dumps(tf.signal.linear_to_mel_weight_matrix("
        "40, 257, 16000, 20.0, 7600.0, dtype=tf.float64).numpy().tolist()))"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    weights = np.array(json.loads(run.stdout.splitlines()[-1]))
    np.testing.assert_allclose(mel_weights(), weights, rtol=0, atol=1e-12)


def test_mel_scale_is_htk_and_inverts() -> None:
    assert mel_from_hz(np.array([0.0, 700.0])) == pytest.approx([0.0, 2595 * math.log10(2)], abs=1e-12)
    assert mel_from_hz(np.array([1000.0])) == pytest.approx(1000.0, abs=0.02)  # the scale's anchor
    hertz = np.linspace(0.0, 8000.0, 100)
    np.testing.assert_allclose(hz_from_mel(mel_from_hz(hertz)), hertz, rtol=1e-12, atol=1e-9)


def test_every_band_sees_three_bins_and_none_sees_0_hz_or_the_top() -> None:
    assert (mel_weights() > 0).sum(axis=0).min() >= 3
    assert not mel_weights()[0].any()
    assert not mel_weights()[np.arange(257) * 31.25 >= 7600].any()


def test_cached_tables_cannot_be_changed_by_a_caller() -> None:
    with pytest.raises(ValueError, match="read-only"):
        mel_weights()[3, 3] = 7.0


@pytest.mark.parametrize("band", range(40))
def test_sine_at_a_centre_is_loudest_in_its_band(band: int) -> None:
    picture = log_mel(0.5 * np.sin(2 * np.pi * CENTRES_HZ[band] * SECONDS))
    assert (picture[:97].argmax(axis=1) == band).all()  # frames 97 and later see the end of the sine


# Below 200 Hz a band is narrower than the window's main lobe (4 * 16000 / 400 = 160 Hz).
@given(st.floats(200.0, 7400.0))
@settings(deadline=None, max_examples=50)
def test_sine_is_loudest_in_the_band_with_the_nearest_centre(hertz: float) -> None:
    loudest = int(log_mel(0.5 * np.sin(2 * np.pi * hertz * SECONDS))[50].argmax())
    distance = np.abs(mel_corners()[1:-1] - mel_from_hz(np.array([hertz])))
    # Half way between two centres, the spacing of bins decides.
    assert distance[loudest] <= distance.min() + 0.1 * np.diff(mel_corners()[:2])[0]


def test_click_is_seen_by_the_frames_that_cover_it_and_no_other() -> None:
    waveform = np.zeros(16_000)
    waveform[8_000] = 1.0
    heard = np.flatnonzero((log_mel(waveform) > np.log(1e-6)).any(axis=1))
    # Frame t covers 160 t to 160 t + 399; in frame 50 the click has the window's first weight, 0.
    assert heard.tolist() == [48, 49]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_silence_is_exactly_the_floor(dtype: type) -> None:
    picture = log_mel(np.zeros(16_000, dtype))
    assert picture.shape == (100, 40)
    assert picture.dtype == dtype
    assert (picture == dtype(np.log(1e-6))).all()


def test_rounding_to_16_bits_stays_below_the_floor() -> None:
    steps = np.random.default_rng(0).uniform(-0.5, 0.5, 16_000) / 32_768
    assert np.exp(log_mel(steps)).mean(axis=0).max() < 1.2e-6  # 1e-6 of it is the floor itself


def test_float32_is_the_float64_result_rounded_once() -> None:
    waveform = noise().astype(np.float32)
    assert (log_mel(waveform) == log_mel(waveform.astype(np.float64)).astype(np.float32)).all()


def test_batch_is_its_clips() -> None:
    batch = noise(6 * 16_000).reshape(2, 3, 16_000)
    pictures = log_mel(batch)
    assert pictures.shape == (2, 3, 100, 40)
    for index in np.ndindex(2, 3):
        np.testing.assert_allclose(pictures[index], log_mel(batch[index]), rtol=1e-13)


@given(waveforms)
@settings(deadline=None, max_examples=30)
def test_any_length_gives_the_same_finite_picture_twice(waveform: np.ndarray) -> None:
    before = waveform.copy()
    picture = log_mel(waveform)
    assert picture.shape == (100, 40)
    assert np.isfinite(picture).all()
    assert (picture >= np.log(1e-6)).all()
    assert (picture == log_mel(waveform)).all()
    assert (waveform == before).all()


@given(st.floats(-1e150, 1e150), st.integers(1, 400))
@settings(deadline=None, max_examples=30)
def test_extreme_samples_stay_finite(value: float, period: int) -> None:
    waveform = np.full(16_000, value)
    waveform[::period] *= -1
    assert np.isfinite(log_mel(waveform)).all()
    largest = np.full(16_000, np.finfo(np.float32).max, np.float32)
    assert np.isfinite(log_mel(largest)).all()


@given(waveforms, st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=30)
def test_gain_multiplies_energy_by_its_square(waveform: np.ndarray, gain: float) -> None:
    clip = one_second(waveform)
    energy = np.exp(log_mel(clip)) - 1e-6
    # Rounding in the FFT is relative to the largest coefficient, rounding in log and exp to energy plus floor.
    error = 1e-12 * (gain**2 * (energy.max() + 1e-6) + 1e-6)
    np.testing.assert_allclose(np.exp(log_mel(gain * clip)) - 1e-6, gain**2 * energy, rtol=0, atol=error)


@given(st.integers(1, 16_000))
@settings(deadline=None, max_examples=20)
def test_short_clips_are_padded_at_the_end(samples: int) -> None:
    waveform = noise(samples)
    clip = one_second(waveform)
    assert (clip[:samples] == waveform).all()
    assert not clip[samples:].any()
    assert (log_mel(waveform) == log_mel(clip)).all()


@given(st.integers(0, 40_000))
@settings(deadline=None, max_examples=20)
def test_word_in_a_long_recording_is_found_and_centred(start: int) -> None:
    word = noise(8_000)
    recording = np.zeros(48_000)
    recording[start : start + 8_000] = word
    clip = one_second(recording)
    assert np.square(clip).sum() >= 0.99 * np.square(word).sum()
    heard = np.flatnonzero(clip)
    if 8_000 <= start <= 32_000:  # otherwise the recording's own edge is in the way
        assert abs((heard[0] + heard[-1]) / 2 - 8_000) < 160  # within a hop of the middle


def test_steady_recording_is_cut_in_its_middle() -> None:
    recording = np.linspace(1.0, 1.001, 48_001)  # tells where the cut was, yet all seconds are equally loud to 1 %
    assert (one_second(recording) == recording[16_000:32_000]).all()


def test_loudest_second_of_noise_is_taken() -> None:
    recording = noise(64_000, scale=0.01)
    recording[30_000:46_000] *= 30
    clip = one_second(recording)
    best = recording[30_000:46_000]
    assert np.square(clip).sum() >= 0.99 * np.square(best).sum()


def test_result_is_never_a_view() -> None:
    for samples in (100, 16_000, 20_000):
        waveform = noise(samples)
        assert not np.shares_memory(one_second(waveform), waveform)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_samples_are_refused(dtype: type, value: float) -> None:
    waveform = np.zeros(16_000, dtype)
    waveform[77] = value
    with pytest.raises(InputError, match="NaN, infinite or beyond"):
        log_mel(waveform)


@pytest.mark.parametrize(
    ("waveform", "message"),
    [
        (np.zeros(16_000, np.int16), "divide integers by their full scale"),
        (np.zeros(0), "holds no samples"),
        (np.float64(0.5), r"not \(\)"),
        (np.zeros((2, 15_999)), r"shape \(\.\.\., 16000\), not \(2, 15999\)"),
        (np.full(16_000, 1e151), "beyond 1e"),
    ],
)
def test_unusable_waveforms_are_refused(waveform: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        log_mel(waveform)


def test_several_channels_are_not_one_second() -> None:
    with pytest.raises(InputError, match="average the channels"):
        one_second(np.zeros((16_000, 2)))


def test_other_sample_rates_are_refused() -> None:
    with pytest.raises(InputError, match="not 44100 Hz; resample"):
        log_mel(np.zeros(44_100), 44_100)


def test_real_recordings() -> None:
    folder = os.environ.get("PORTPROOF_SPEECH")
    if not folder:
        pytest.skip("PORTPROOF_SPEECH names no folder of recordings")
    files = sorted(Path(folder).glob("*.wav"))
    assert files, f"no .wav files in {folder}"
    for file in files:
        waveform = read_speech(file)
        picture = log_mel(waveform)
        assert picture.shape == (100, 40)
        assert np.isfinite(picture).all()
        clip = one_second(waveform)
        np.testing.assert_allclose(picture[50], reference_frame(clip, 50), rtol=0, atol=1e-10)
