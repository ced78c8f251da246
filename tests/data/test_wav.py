"""Reading WAV files: every sample format, written here byte by byte, and every way in which a file can be broken."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portproof.data.wav import read_speech, read_wav, resample
from portproof.errors import InputError

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
# Sub-format GUID of WAVE_FORMAT_EXTENSIBLE after its first two bytes, which are the plain format's number.
GUID_TAIL = bytes.fromhex("000000001000800000aa00389b71")
RAMP = [-1.0, -0.75, -0.5, 0.0, 0.25, 0.5, 0.75]  # exact at 8 bits and more


def chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def encode(values: list[float], bits: int, kind: int) -> bytes:
    if kind == FLOAT:
        return np.array(values, f"<f{bits // 8}").tobytes()
    integers = [round(value * 2 ** (bits - 1)) for value in values]
    if bits == 8:
        return bytes(value + 128 for value in integers)  # 8-bit WAV is unsigned
    return b"".join(value.to_bytes(bits // 8, "little", signed=True) for value in integers)


def wav(
    values: list[float],
    *,
    bits: int = 16,
    kind: int = PCM,
    extensible: bool = False,
    rate: int = 16_000,
    channels: int = 1,
    before: bytes = b"",
) -> bytes:
    """A WAV file by its definition (RIFF MCI 1.0; the extensible form after Microsoft's mmreg.h)."""
    block = channels * bits // 8
    form = struct.pack("<HHIIHH", EXTENSIBLE if extensible else kind, channels, rate, rate * block, block, bits)
    if extensible:
        form += struct.pack("<HHIH", 22, bits, 0, kind) + GUID_TAIL
    body = b"WAVE" + chunk(b"fmt ", form) + before + chunk(b"data", encode(values, bits, kind))
    return chunk(b"RIFF", body)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "clip.wav"


@pytest.mark.parametrize("extensible", [False, True], ids=["plain", "extensible"])
@pytest.mark.parametrize(("bits", "kind"), [(8, PCM), (16, PCM), (24, PCM), (32, PCM), (32, FLOAT), (64, FLOAT)])
def test_every_sample_format_is_exact(file: Path, bits: int, kind: int, extensible: bool) -> None:
    file.write_bytes(wav(RAMP, bits=bits, kind=kind, extensible=extensible, rate=22_050))
    samples, rate = read_wav(file)
    assert samples.tolist() == RAMP
    assert samples.dtype == np.float64
    assert rate == 22_050


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
def test_largest_and_smallest_steps(file: Path, bits: int) -> None:
    step = 2.0 ** (1 - bits)
    file.write_bytes(wav([1 - step, step, -step, -1.0], bits=bits))
    assert read_wav(file)[0].tolist() == [1 - step, step, -step, -1.0]


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_are_averaged(file: Path, channels: int) -> None:
    samples = np.zeros((len(RAMP), channels))
    samples[:, 0] = RAMP
    samples[:, -1] = 0.5
    file.write_bytes(wav(samples.ravel().tolist(), channels=channels, bits=24))
    np.testing.assert_allclose(read_wav(file)[0], (np.array(RAMP) + 0.5) / channels, rtol=0, atol=1e-15)


def test_floats_a_little_over_full_scale_are_kept(file: Path) -> None:
    file.write_bytes(wav([1.5, -1.25], bits=32, kind=FLOAT))
    assert read_wav(file)[0].tolist() == [1.5, -1.25]


def test_other_chunks_before_and_after_do_not_matter(file: Path) -> None:
    content = wav(RAMP, before=chunk(b"LIST", b"INFOodd") + chunk(b"fact", b"\7\0\0\0"))
    file.write_bytes(content + chunk(b"junk", b"x" * 33))
    assert read_wav(file)[0].tolist() == RAMP


def test_big_endian_is_read(file: Path) -> None:
    data = np.array([16_384, -8_192], ">i2").tobytes()
    form = struct.pack(">4sIHHIIHH", b"fmt ", 16, PCM, 1, 16_000, 32_000, 2, 16)
    file.write_bytes(b"RIFX" + struct.pack(">I", 4 + 24 + 12) + b"WAVE" + form + struct.pack(">4sI", b"data", 4) + data)
    assert read_wav(file)[0].tolist() == [0.5, -0.25]


@pytest.mark.parametrize("length", [0xFFFF_FFFF, 0x7FFF_F000])
def test_length_that_a_pipe_left_unknown_is_no_truncation(file: Path, length: int) -> None:
    content = wav(RAMP)
    at = content.index(b"data") + 4
    file.write_bytes(content[:at] + struct.pack("<I", length) + content[at + 4 :])
    assert read_wav(file)[0].tolist() == RAMP


def test_name_does_not_matter_and_may_be_a_string(tmp_path: Path) -> None:
    (tmp_path / "größe ☃.dat").write_bytes(wav(RAMP))
    assert read_wav(str(tmp_path / "größe ☃.dat"))[0].tolist() == RAMP


def nan_file(value: float) -> bytes:
    return wav([0.0, value, 0.0], bits=32, kind=FLOAT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"", "the file is empty", id="empty"),
        pytest.param(b"RIFF", "not a WAV file", id="four bytes"),
        pytest.param(b"RIFF\x24\0\0\0WAVE", "damaged WAV file", id="twelve bytes"),
        pytest.param(b"yes, no\n" * 100, "not a WAV file; convert it first, for example: ffmpeg", id="text"),
        pytest.param(b"ID3\4\0\0\0\0\0\0" + b"\xff\xfb\x90\x64" * 500, "not a WAV file", id="MP3 with a tag"),
        pytest.param(b"\xff\xfb\x90\x64" * 500, "not a WAV file", id="MP3"),
        pytest.param(b"fLaC" + bytes(100), "not a WAV file", id="FLAC"),
        pytest.param(b"RIFF\x24\0\0\0AVI " + bytes(100), "not a WAV file", id="other RIFF"),
        pytest.param(wav([0.5] * 100)[:-1], "truncated, 1 bytes are missing", id="truncated by one byte"),
        pytest.param(wav([0.5] * 100)[:144], "truncated, 100 bytes are missing", id="truncated by half"),
        pytest.param(wav([0.5] * 100)[:44], "truncated, 200 bytes are missing", id="header only"),
        pytest.param(wav([0.5] * 100)[:30], "damaged WAV file", id="half a header"),
        pytest.param(wav([]), "without samples", id="no samples"),
        pytest.param(wav(RAMP, rate=0), "damaged WAV file", id="0 Hz"),
        pytest.param(wav(RAMP, rate=1), "the header says 1 Hz", id="1 Hz"),
        pytest.param(wav(RAMP, rate=10**8), "the header says 100000000 Hz", id="100 MHz"),
        pytest.param(wav(RAMP, channels=0), "damaged WAV file", id="no channels"),
        pytest.param(nan_file(np.nan), "holds NaN or infinite samples", id="NaN"),
        pytest.param(nan_file(np.inf), "holds NaN or infinite samples", id="infinity"),
        pytest.param(nan_file(-12_000.0), "samples reach 12000, but full scale is 1", id="integers as floats"),
    ],
)
def test_broken_file_gives_one_message_that_names_it(file: Path, content: bytes, message: str) -> None:
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_wav(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert message in text
    assert ";" in text  # what is wrong; what to do
    assert "\n" not in text


def test_missing_file_and_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.wav: cannot be read \(No such file or directory\)"):
        read_wav(tmp_path / "nowhere.wav")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        read_wav(tmp_path)


# Damage anywhere in the header, and the first samples of an extensible stereo file.
@given(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 255)), min_size=1, max_size=6))
@settings(deadline=None, max_examples=150)
def test_any_damage_is_either_harmless_or_an_input_error(
    tmp_path_factory: pytest.TempPathFactory, damage: list[tuple[int, int]]
) -> None:
    content = bytearray(wav([0.25, -0.25] * 50, bits=24, channels=2, extensible=True))
    for at, value in damage:
        content[at] = value
    file = tmp_path_factory.getbasetemp() / "damaged.wav"
    file.write_bytes(content)
    try:
        samples, rate = read_wav(file)
    except InputError as error:
        assert str(error).startswith(f"{file}: ")  # noqa: PT017 - either outcome is right
    else:
        assert samples.ndim == 1
        assert 0 < samples.size <= len(content)
        assert np.isfinite(samples).all()
        assert 4_000 <= rate <= 768_000


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 96_000])
@pytest.mark.parametrize("hertz", [100.0, 440.0, 3_000.0])
def test_resampling_keeps_a_sine(rate: int, hertz: float) -> None:
    sine = np.sin(2 * np.pi * hertz * np.arange(rate) / rate)
    resampled = resample(sine, rate)
    assert resampled.shape == (16_000,)
    expected = np.sin(2 * np.pi * hertz * np.arange(16_000) / 16_000)
    inner = slice(1_600, -1_600)  # away from the edges, where the filter sees the silence outside
    # "HQ" is specified at 20 bits, that is 1e-6 of full scale; phase and amplitude count too.
    np.testing.assert_allclose(resampled[inner], expected[inner], rtol=0, atol=1e-5)
    assert np.abs(np.fft.rfft(resampled)).argmax() == hertz


def test_resampling_removes_what_16_khz_cannot_hold() -> None:
    sine = np.sin(2 * np.pi * 11_000 * np.arange(44_100) / 44_100)  # would be heard at 5 kHz
    assert np.abs(resample(sine, 44_100)[1_600:-1_600]).max() < 1e-5


def test_equal_rates_change_nothing() -> None:
    waveform = np.random.default_rng(0).normal(size=1_000)
    assert resample(waveform, 16_000) is waveform


@pytest.mark.parametrize(("rate", "new_rate"), [(0, 16_000), (16_000, 3_999), (10**6, 16_000)])
def test_impossible_rates_are_refused(rate: int, new_rate: int) -> None:
    with pytest.raises(InputError, match="cannot resample"):
        resample(np.zeros(100), rate, new_rate)


def test_read_speech_is_at_16_khz(file: Path) -> None:
    file.write_bytes(wav([0.5] * 4_000, rate=8_000))
    assert read_speech(file).shape == (8_000,)


def test_read_speech_refuses_what_16_khz_leaves_nothing_of(file: Path) -> None:
    file.write_bytes(wav([0.5], rate=48_000))
    with pytest.raises(InputError, match=r"clip\.wav: shorter than one sample at 16000 Hz"):
        read_speech(file)


def test_importing_loads_neither_soundfile_nor_soxr() -> None:
    code = "import sys, portproof.data.wav; print({'soundfile', 'soxr', 'cffi', 'scipy'} & set(sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == "set()"
