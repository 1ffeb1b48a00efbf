"""Round-trip measures: zero without loss, ordered like perceived quality, and a page with players."""

import json
from pathlib import Path

import numpy as np
import pytest

from echotts.codec import Codec
from echotts.codec.evaluation import format_table, latent_statistics, round_trip, summarise, write_report
from echotts.codec.evaluation.measures import level_db, si_sdr_db, spectral_distances, stoi
from echotts.codec.evaluation.round_trips import disturbed
from echotts.spectrogram import draw_spectrogram
from tests.codec.conftest import noise

RATE = 16000
TIME = np.arange(RATE) / RATE
TONE = (0.4 * np.sin(2 * np.pi * 440 * TIME) + 0.1 * np.sin(2 * np.pi * 1500 * TIME)).astype(np.float32)
SPEECHLIKE = (noise(2 * RATE) * (0.55 + 0.45 * np.sin(2 * np.pi * 4 * np.arange(2 * RATE) / RATE))).astype(np.float32)


def test_equal_sounds_are_at_distance_zero():
    assert spectral_distances(TONE, TONE, RATE) == (0, 0, 0)
    assert si_sdr_db(TONE, TONE) > 100 and level_db(TONE, TONE) == 0
    assert stoi(SPEECHLIKE, SPEECHLIKE, RATE) == pytest.approx(1)


def test_a_gain_moves_log_distances_by_its_logarithm_and_leaves_si_sdr_and_stoi():
    audio = SPEECHLIKE
    mel, stft, convergence = spectral_distances(noise(RATE), noise(RATE) / 2, RATE)
    np.testing.assert_allclose([mel, stft], np.log10(2), rtol=2e-2)
    np.testing.assert_allclose(convergence, 0.5, rtol=1e-5)
    np.testing.assert_allclose(level_db(audio, audio / 2), -6.02, atol=0.01)
    assert si_sdr_db(audio, audio / 2) > 100
    assert stoi(audio, audio / 2, RATE) == pytest.approx(1)


def test_noise_at_a_known_level_gives_its_ratio():
    disturbed_tone = TONE + np.float32(0.1 * TONE.std()) * noise(RATE)
    np.testing.assert_allclose(si_sdr_db(TONE, disturbed_tone), 20, atol=0.3)
    worse = spectral_distances(TONE, TONE + np.float32(0.3 * TONE.std()) * noise(RATE), RATE)
    assert worse > spectral_distances(TONE, disturbed_tone, RATE)
    np.testing.assert_allclose(spectral_distances(TONE, 0 * TONE, RATE)[2], 1)


def test_stoi_is_that_of_the_package_pystoi():
    pystoi = pytest.importorskip("pystoi")
    for level in (0.1, 1.0):
        degraded = SPEECHLIKE + level * noise(2 * RATE, seed=9)
        expected = pystoi.stoi(SPEECHLIKE.astype(float), degraded.astype(float), RATE)
        assert stoi(SPEECHLIKE, degraded.astype(np.float32), RATE) == pytest.approx(expected, abs=0.01)


def test_silence_is_compared_without_dividing_by_zero():
    silence = np.zeros(RATE, np.float32)
    assert spectral_distances(silence, silence, RATE) == (0, 0, 0)
    assert np.isfinite(si_sdr_db(silence, silence)) and level_db(silence, silence) == 0
    assert stoi(TONE[:2000], TONE[:2000], RATE) is None


def test_long_clips_are_measured_in_blocks(monkeypatch: pytest.MonkeyPatch):
    whole = spectral_distances(TONE, 0.9 * TONE, RATE)
    monkeypatch.setattr("echotts.codec.evaluation.measures._BLOCK_FRAMES", 7)
    np.testing.assert_allclose(spectral_distances(TONE, 0.9 * TONE, RATE), whole, rtol=1e-6)


def test_noisy_and_clipped_conditions_have_the_stated_levels():
    noisy = disturbed(TONE, "noisy")
    np.testing.assert_allclose(si_sdr_db(TONE, noisy), 20, atol=0.3)
    np.testing.assert_array_equal(disturbed(TONE, "noisy"), noisy)
    clipped = disturbed(0.1 * TONE, "clipped")
    assert np.abs(clipped).max() == 1 and np.mean(np.abs(clipped) == 1) > 0.3
    assert disturbed(TONE, "clean") is TONE


def listen(clip: str, before: np.ndarray, after: np.ndarray, rate: int) -> dict[str, float]:
    return {"words": 4.0, "words_wrong": 2.0, "words_wrong_before": 1.0, "similarity": 0.5}


def test_round_trips_are_measured_summarised_and_shown(tiny: Codec, tmp_path: Path):
    found = [round_trip(tiny, f"clip <{seed}>", 0.2 * noise(2000, seed=seed), "clean", listen) for seed in range(2)]
    results = [row for row, _, _ in found]
    summary = summarise(results)
    assert (summary["clips"], summary["seconds"]) == (2, 0.5)
    assert summary["mel_distance"] == np.mean([result.mel_distance for result in results])
    assert (summary["word_errors"], summary["word_errors_of_recordings"], summary["similarity"]) == (0.5, 0.25, 0.5)
    assert summary["encode_per_s"] > 0 and summary["peak_memory_bytes"] > 1e6

    figures = summary | latent_statistics(tiny, [0.2 * noise(2000)])
    assert 0 <= figures["active_channels"] <= tiny.latent_channels and figures["kl"] >= 0
    summaries = {("a", "clean"): figures, ("b", "clean"): summary}
    table = format_table(summaries).splitlines()
    assert table[0].split() == ["a,", "clean", "b,", "clean"] and any("word errors" in line for line in table)
    write_report(tmp_path, summaries, results, [(row, before, after, 8000) for row, before, after in found])
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [line["clip"] for line in lines] == ["clip <0>", "clip <1>"] and lines[0]["words_wrong"] == 2
    page = (tmp_path / "index.html").read_text()
    assert "clip &lt;0&gt;" in page and page.count("<audio") == 4 and page.count("data:image/png") == 4
    assert len(list(tmp_path.glob("*.flac"))) == 4
    assert len(json.loads((tmp_path / "summary.json").read_text())) == 2

    with pytest.raises(ValueError, match="too short"):
        round_trip(tiny, "short", noise(1000))
    with pytest.raises(ValueError, match="no clips"):
        summarise([])


def test_a_spectrogram_is_a_png_also_of_silence_and_of_a_single_sample():
    for sound in (TONE, 0 * TONE, TONE[:1]):
        assert draw_spectrogram(sound, RATE).startswith(b"\x89PNG")
