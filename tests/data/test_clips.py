"""The clips that ship: present, as described, told apart by the front end, and made by the script beside them."""

from __future__ import annotations

import shutil
import subprocess
import wave
from pathlib import Path

import numpy as np
import pytest

from portproof.data.clips import clips
from portproof.data.clips import make_clips as maker
from portproof.data.features import log_mel
from portproof.data.wav import read_wav
from portproof.errors import SetupError

CLIPS = dict(clips())
VOICES = ["american", "british", "scottish"]


def picture(name: str) -> np.ndarray:
    return log_mel(read_wav(CLIPS[name])[0])


def test_both_words_in_every_voice_and_noise() -> None:
    assert list(CLIPS) == sorted([f"{word}_{voice}" for word in ("yes", "no") for voice in VOICES] + ["noise"])


@pytest.mark.parametrize("name", CLIPS)
def test_is_one_second_of_16_khz_mono_16_bits(name: str) -> None:
    with wave.open(str(CLIPS[name])) as file:
        assert file.getparams()[:4] == (1, 2, 16_000, 16_000)


@pytest.mark.parametrize("name", [name for name in CLIPS if name != "noise"])
def test_speech_lies_within_the_second(name: str) -> None:
    samples, _ = read_wav(CLIPS[name])
    assert 0.45 < np.abs(samples).max() < 0.55  # half of full scale
    loud = np.flatnonzero(np.abs(samples) > 0.01)
    assert loud[0] > 1_600  # at least 0.1 s before and after
    assert loud[-1] < 14_400


@pytest.mark.parametrize("voice", VOICES)
def test_yes_and_no_look_different(voice: str) -> None:
    assert np.abs(picture(f"yes_{voice}") - picture(f"no_{voice}")).max() > 3.0  # a factor of 20 in energy
    # The s of "yes" is a hiss; "no" has none: compare each clip's top ten bands (3.9 kHz up) with its loudest.
    hiss = {word: np.ptp([p[:, 30:].max(), p.max()]) for word in ("yes", "no") for p in [picture(f"{word}_{voice}")]}
    assert hiss["yes"] < hiss["no"]


def test_no_two_clips_are_alike() -> None:
    assert len({path.read_bytes() for path in CLIPS.values()}) == len(CLIPS)


def test_noise_is_made_again_bit_by_bit(tmp_path: Path) -> None:
    maker.write_clip(tmp_path / "noise.wav", maker.noise(6, maker.NOISE_BITS))
    assert (tmp_path / "noise.wav").read_bytes() == CLIPS["noise"].read_bytes()


def test_speech_is_made_again_bit_by_bit(tmp_path: Path) -> None:
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed")
    version = subprocess.run(["espeak-ng", "--version"], check=True, capture_output=True, text=True).stdout
    if " 1.51 " not in version:
        pytest.skip(f"the clips are espeak-ng 1.51's; this is {version.split('Data')[0].strip()}")
    maker.make_clips(tmp_path)
    made = {path.stem: path.read_bytes() for path in tmp_path.iterdir()}
    assert made == {name: path.read_bytes() for name, path in CLIPS.items()}


def test_says_so_without_espeak_ng(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="espeak-ng is not installed; on Debian: apt-get install espeak-ng"):
        maker.make_clips(tmp_path)


def test_passes_on_what_espeak_ng_complains_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "espeak-ng").write_text("#!/bin/sh\necho no such voice >&2\nexit 1\n")
    (tmp_path / "espeak-ng").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SetupError, match="'en-none': no such voice"):
        maker.speech("yes", "en-none")
