"""Text and a voice to speech: determinism, compilation, invalid arguments; checkpoints and their codecs."""

import dataclasses
import logging
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from echotts import EchoTTS
from echotts.audio.marking import MESSAGE, marked
from echotts.checkpoint.adapters import weights_hash
from echotts.checkpoint.export_file import save_export
from echotts.checkpoint.facts import CodecFacts, Facts
from echotts.checkpoint.interop import save_published
from echotts.checkpoint.weights import load_weights
from echotts.codec import CodecConfig, load_codec, registry, save_codec
from echotts.codec.backbone import init_params
from echotts.codec.watermark import init_watermark
from echotts.flow import sampling
from echotts.flow.options import SamplerConfig
from echotts.synthesis import batch, synthesizer
from echotts.synthesis.batch import make_noise
from echotts.synthesis.speech import KEPT_TAIL_FRAMES
from echotts.synthesis.synthesizer import Synthesizer
from echotts.synthesis.voices import About, Voice, save_voice
from tests.synthesis.conftest import HOP, RATE, SILENCE, say, voice
from tests.tiny_speaker import CHANNELS, CONFIG, FACTS, FRAMES, LinearCodec, random_params, tiny_tts

ROOT = Path(__file__).parents[2]


def test_the_same_seed_gives_the_same_bytes(tts, tmp_path):
    first, second = say(tts, ref=(voice(), RATE), seed=5), say(tts, ref=(voice(), RATE), seed=5)
    assert np.array_equal(first.samples, second.samples)
    assert np.array_equal(first.latents, second.latents)
    paths = [speech.save(tmp_path / name) for speech, name in ((first, "a.ogg"), (second, "b.ogg"))]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_seed_text_and_voice_all_change_the_speech(tts):
    usual = say(tts, ref=(voice(), RATE)).latents
    for other in (
        say(tts, ref=(voice(), RATE), seed=1),
        say(tts, "one six", ref=(voice(), RATE)),
        say(tts, ref=(voice(seed=1), RATE)),
        say(tts),
    ):
        length = min(len(usual), len(other.latents))
        assert np.abs(other.latents[:length] - usual[:length]).max() > 1e-3


def test_speech_equals_its_decoded_latents(tts):
    speech = say(tts)
    assert (speech.latents.shape[1], speech.sample_rate) == (CHANNELS, RATE)
    assert len(speech.samples) == len(speech.latents) * HOP
    assert np.allclose(speech.samples, tts.codec.decode(speech.latents[None])[0], atol=1e-6)
    assert speech.duration_s == pytest.approx(len(speech.latents) / 25)


def test_a_batch_equals_single_utterances(tts):
    texts, refs = ["one", "two two", "three"], [(voice(), RATE), None, (voice(2.0), RATE)]
    sampler = SamplerConfig(steps=2)
    together = tts.synthesize_batch(texts, refs, seeds=[4, 5, 6], sampler=sampler, rows=2)
    for text, ref, seed, speech in zip(texts, refs, (4, 5, 6), together, strict=True):
        alone = say(tts, text, ref, seed=seed)
        assert len(speech.latents) == len(alone.latents)
        assert np.abs(speech.latents - alone.latents).max() < 1e-4
    assert tts.synthesize_batch([]) == []


def test_two_text_lengths_and_one_reference_length_are_all_that_is_compiled(tts):
    for text in ("one", "x" * 23):
        say(tts, text, seed=0)
    compiled = (sampling._sample._cache_size(), sampling.encode_conditions._cache_size())
    for seed, length in enumerate((3, 7, 11, 12, 19, 22), 1):
        say(tts, "y" * length, seed=seed, duration=14.0 + seed)
        say(tts, "y" * length, ref=(voice(0.5 + 0.1 * seed), RATE), seed=seed, cfg_scale=2.0 + seed)
    assert (sampling._sample._cache_size(), sampling.encode_conditions._cache_size()) == compiled


def test_after_a_warm_up_nothing_is_compiled():
    tts = tiny_tts()
    tts.warm_up(steps=3)
    compiled = (sampling._sample._cache_size(), sampling.encode_conditions._cache_size())
    for text in ("one", "x" * 23):
        tts.synthesize(text, (voice(), RATE), steps=3)
    assert (sampling._sample._cache_size(), sampling.encode_conditions._cache_size()) == compiled


def test_a_slow_compilation_is_announced_once(monkeypatch, caplog):
    monkeypatch.setattr(batch, "SLOW_COMPILE_S", 0.05)
    slow = synthesizer.sample
    monkeypatch.setattr(synthesizer, "sample", lambda *given: time.sleep(0.5) or slow(*given))
    tts = tiny_tts()
    with caplog.at_level(logging.INFO):
        say(tts), say(tts)
    assert caplog.messages == ["compiling for batches of 1, up to 12 tokens and 1.3 s of speech; the result is cached"]


WRONG_ARGUMENTS = """
import numpy as np
from tests.tiny_speaker import CHANNELS, tiny_tts
tts, flat = tiny_tts(), np.zeros(8000, np.float32)
for given in (
    {"text": 42}, {"seed": -1}, {"seed": 1.5}, {"seed": 2**63}, {"speaker_ref": flat},
    {"speaker_ref": (np.stack([flat, flat]), 8000)}, {"speaker_ref": 3},
    {"speaker_ref": np.full((4, CHANNELS), np.nan)},
):
    try:
        tts.synthesize(**({"text": "one", "steps": 1} | given))
    except (TypeError, ValueError) as error:
        print(error)
try:
    next(tts.stream(42))
except TypeError as error:
    print(error)
"""


def test_argument_errors_name_the_argument_and_the_right_form():
    """In a subprocess, because under pytest jaxtyping raises its own errors first."""
    done = subprocess.run([sys.executable, "-c", WRONG_ARGUMENTS], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines() == [
        'text: 42 is int: give a string, as in "four two"',
        "seed: -1: give a whole number from 0 to 9223372036854775807",
        "seed: 1.5: give a whole number from 0 to 9223372036854775807",
        "seed: 9223372036854775808: give a whole number from 0 to 9223372036854775807",
        "speaker_ref: a bare waveform has no sample rate: give (samples, rate), or the path of a file",
        "speaker_ref: samples of shape (2, 8000): give one channel, as in (samples, rate)",
        "speaker_ref: int: give the path of a recording, (samples, rate) or a latent",
        "speaker_ref: the latent has values that are not finite (NaN or infinite)",
        'text: 42 is int: give a string, as in "four two"',
    ]


def test_model_and_speech_describe_themselves_in_one_line(tts):
    assert re.fullmatch(
        r"EchoTTS\(0\.\d M parameters, up to 1\.3 s and 23 bytes .*codec linear at 8000 Hz.*step 7\)", repr(tts)
    )
    assert re.fullmatch(r"Speech\(\d\.\d\d s at 8000 Hz, latents \d+ x 8\)", repr(say(tts)))


def test_duration_is_a_maximum_and_exceeding_the_window_is_logged(tts, caplog):
    assert len(say(tts, duration=0.4).latents) <= 10
    caplog.clear()  # in the message of a slow compilation
    with caplog.at_level(logging.WARNING):
        assert len(say(tts).latents) <= FRAMES
        assert not caplog.messages
        say(tts, duration=20.0)
    assert caplog.messages == ["duration 20.00 s exceeds the model's maximum of 1.28 s at once"]
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="give the maximum duration in seconds"):
            say(tts, duration=wrong)


def test_a_wrong_silence_latent_falls_back_on_energy(tts, monkeypatch):
    quiet = np.concatenate(
        [SILENCE + np.random.default_rng(0).standard_normal((12, CHANNELS)), np.repeat(SILENCE, 20, 0)]
    )
    monkeypatch.setattr(tts._synthesizer, "silence", np.full((1, CHANNELS), 50.0, np.float32))
    speech = tts._synthesizer.finish(quiet.astype(np.float32))
    assert len(speech.latents) == 12 + KEPT_TAIL_FRAMES
    assert len(speech.samples) == len(speech.latents) * HOP


def test_the_noise_of_a_longer_window_starts_with_that_of_a_shorter_one():
    assert np.array_equal(make_noise(3, 50, 8)[:20], make_noise(3, 20, 8))
    assert not np.array_equal(make_noise(3, 20, 8), make_noise(4, 20, 8))


def test_unspeakable_texts_are_rejected(tts):
    for empty in ("", "  \n"):
        with pytest.raises(ValueError, match="the text is empty"):
            say(tts, empty)
    with pytest.raises(ValueError, match="text has 24 bytes, at most 23 fit"):
        tts.synthesize_batch(["x" * 24])
    assert len(say(tts, "x" * 23).samples)
    with pytest.raises(ValueError, match="2 texts, 1 references and 2 seeds"):
        tts.synthesize_batch(["one", "two"], [None])


def test_markup_and_emoji_are_left_out_of_the_text_which_is_said_once(tts, caplog):
    written = say(tts, "<b>one</b> \n **two**\0 😀")
    assert caplog.messages == [
        "text: left out 2 tags, 1 control character, 1 emoji, 2 marks of Markdown: see docs/inference.md"
    ]
    np.testing.assert_array_equal(written.samples, say(tts, "one two").samples)
    assert np.array_equal(tts.synthesize_batch(["*one*"])[0].latents, tts.synthesize_batch(["one"])[0].latents)
    for silent in ("...", "😀 🎉", "<speak></speak>", "```\nx = 1\n```", "\x07"):
        for speak in (tts.synthesize, lambda text: tts.synthesize_batch([text])):
            with pytest.raises(ValueError, match="contains no letter or digit to speak"):
                speak(silent)
    with pytest.raises(ValueError, match="the text has 10,000,001 characters, at most 10,000,000 are spoken"):
        say(tts, "a" * 10_000_001)


def test_a_model_trained_with_emoji_and_markup_is_given_them(caplog):
    tts = tiny_tts()
    tts.raw_text = True
    assert not np.array_equal(say(tts, "*one* 😀").latents, say(tts, "one").latents)
    assert not caplog.messages


def test_a_silent_result_is_written_as_silence(tts, tmp_path, monkeypatch):
    monkeypatch.setattr(tts.codec, "decode", lambda latents: np.zeros((1, latents.shape[1] * HOP), np.float32))
    say(tts).save(tmp_path / "out.wav")
    assert not soundfile.read(tmp_path / "out.wav")[0].any()


def test_a_codec_or_tokenizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match="the model makes latents of 8 channels, but the codec linear takes 4"):
        Synthesizer(random_params(), CONFIG, FACTS, LinearCodec(4))


def test_published_weights_have_the_limits_of_published_training():
    bare = EchoTTS(Synthesizer(random_params(), CONFIG, Facts(weights="raw", step=1), LinearCodec()))
    assert (bare.limits.frames, bare.limits.tokens, bare.limits.reference_frames) == (768, 768, 512)
    assert np.array_equal(bare._synthesizer.silence, SILENCE)


@pytest.mark.parametrize("name", ["none.safetensors", "none.pkl", "no/such/run", "/no/such/run"])
def test_a_missing_checkpoint_is_one_line(name):
    with pytest.raises(FileNotFoundError, match="no such checkpoint") as caught:
        EchoTTS.load(name)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder as $HOME, with a tiny codec's file in it and exports that name it."""
    folder = tmp_path_factory.mktemp("home")
    sizes = CodecConfig(
        encoder_dim=4,
        encoder_rates=(4, 8, 10),
        latent_dim=16,
        decoder_dim=32,
        decoder_rates=(10, 8, 4),
        codebook_dim=CHANNELS,
        sample_rate=RATE,
    )
    narrow = dataclasses.replace(sizes, codebook_dim=4)
    configs = {"mine": sizes, "other": sizes, "narrow": narrow, "marked": sizes}
    for key, (name, config) in enumerate(configs.items()):
        params = init_params(config, jax.random.key(key))
        if name == "marked":
            params["watermark"] = init_watermark(jax.random.key(9), (4, 6, 8), (2, 4), message_channels=8)
        save_codec(folder / f"{name}.safetensors", params, config, name)
    mine = CodecFacts(id="mine", weights_hash=load_codec(folder / "mine.safetensors").weights_hash)
    save_export(folder / "model.safetensors", random_params(), CONFIG, dataclasses.replace(FACTS, codec=mine))
    save_export(folder / "nameless.safetensors", random_params(), CONFIG, FACTS)
    save_published(folder / "step_7.pkl", random_params(), step=7, samples_seen=70)
    return folder


class TestCheckpoints:
    """Loading: the codec is found by its name in the checkpoint, and another one needs an explicit request."""

    @pytest.fixture(autouse=True)
    def at_home(self, home, monkeypatch):
        monkeypatch.setenv("HOME", str(home))

    def test_a_codec_found_nowhere_is_an_error_with_the_remedy(self, home):
        with pytest.raises(FileNotFoundError, match=r"codec mine .* is neither built in nor in .*--codec"):
            EchoTTS.load(home / "model.safetensors")

    def test_the_codec_is_found_in_the_cache_by_its_hash_and_the_result_is_that_of_the_file(self, home):
        codec = load_codec(home / "mine.safetensors")
        cached = registry.cache_folder() / f"{codec.weights_hash}.safetensors"
        cached.parent.mkdir(parents=True)
        shutil.copy(home / "mine.safetensors", cached)
        found = EchoTTS.load(home / "model.safetensors")
        cached.unlink()
        told = EchoTTS.load(home / "model.safetensors", home / "mine.safetensors")
        assert found.facts.step == 7
        assert np.array_equal(say(found).samples, say(told).samples)

    def test_a_voice_trained_for_other_weights_is_refused(self, home, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        tts = EchoTTS.load(home / "nameless.safetensors", home / "mine.safetensors")
        about = {"codec_id": "mine", "weights_hash": tts.codec.weights_hash, "frame_rate_hz": tts.frame_rate_hz}
        latent = np.ones((8, CONFIG.latent_channels), np.float32)
        own = weights_hash(load_weights(home / "nameless.safetensors").params)
        fitting = save_voice("fitting", Voice(latent, About(**about, base=own)))
        np.testing.assert_array_equal(tts.encode_reference(fitting), latent[: tts.limits.reference_frames])
        other = save_voice("other", Voice(latent, About(**about, base="a" * 64)))
        with pytest.raises(ValueError, match=f"hash {'a' * 12}, but this model has {own[:12]}"):
            tts.encode_reference(other)

    def test_another_codec_is_used_only_on_request_and_logged(self, home, caplog):
        with caplog.at_level(logging.WARNING):
            EchoTTS.load(home / "model.safetensors", home / "other.safetensors")
        assert "is not the recorded one" in caplog.text

    def test_speech_carries_the_watermark_of_its_codec_unless_it_is_turned_off_which_is_said(self, home, caplog):
        ours, codec = (
            EchoTTS.load(home / "nameless.safetensors", home / "marked.safetensors"),
            load_codec(home / "marked.safetensors"),
        )
        speech = say(ours, duration=0.4)
        whole = codec.decode(speech.latents[None], np.array([MESSAGE]))[0]
        np.testing.assert_allclose(speech.samples[:HOP], whole[:HOP], atol=1e-5)
        assert not caplog.messages
        plain = EchoTTS.load(home / "nameless.safetensors", home / "marked.safetensors", watermark=False)
        assert [message for message in caplog.messages if "watermark off" in message]
        np.testing.assert_allclose(
            say(plain, duration=0.4).samples[:HOP], codec.decode(speech.latents[None])[0, :HOP], atol=1e-5
        )

    def test_speech_of_a_codec_without_a_watermark_carries_ours_however_it_is_made(self, home, caplog):
        given = home / "nameless.safetensors", home / "mine.safetensors"
        tts, plain = EchoTTS.load(*given), EchoTTS.load(*given, watermark=False)
        assert [message for message in caplog.messages if "watermark off" in message]
        assert tts.fingerprint != plain.fingerprint
        clean = say(plain, duration=0.4).samples
        wanted = marked(clean, RATE, MESSAGE)
        assert np.abs(wanted - clean).max() > 1e-3 * np.abs(clean).max()
        live = np.concatenate(
            [block.samples for block in tts.stream("one two", duration=0.4, sampler=SamplerConfig(steps=2))]
        )
        (batch,) = tts.synthesize_batch(["one two"], seeds=[0], duration=0.4, sampler=SamplerConfig(steps=2))
        for samples in (say(tts, duration=0.4).samples, live, batch.samples):
            np.testing.assert_allclose(samples, wanted, atol=1e-5)

    @pytest.mark.parametrize("codec", ["mine", "marked"])
    @pytest.mark.parametrize("speed", [0.6, 1.7])
    def test_stretched_speech_carries_our_watermark_whatever_the_codec_embeds(self, home, codec, speed):
        given = home / "nameless.safetensors", home / f"{codec}.safetensors"
        tts, plain = EchoTTS.load(*given), EchoTTS.load(*given)
        plain._message = None
        options = {"duration": 0.4, "speed": speed, "sampler": SamplerConfig(steps=2)}
        (wanted,) = plain.synthesize_batch(["one two"], seeds=[0], **options)
        (batch,) = tts.synthesize_batch(["one two"], seeds=[0], **options)
        live = np.concatenate([block.samples for block in tts.stream("one two", **options)])
        said = say(tts, duration=0.4, speed=speed)
        for samples in (batch.samples, live, said.samples):
            np.testing.assert_allclose(samples, marked(wanted.samples, RATE, MESSAGE), atol=1e-5)

    def test_a_file_of_speech_names_the_model_that_made_it(self, home, tmp_path):
        speech = say(EchoTTS.load(home / "nameless.safetensors", home / "mine.safetensors"), duration=0.4)
        assert "model: nameless.safetensors, step 7" in soundfile.SoundFile(speech.save(tmp_path / "a.flac")).comment
        recording = dataclasses.replace(speech, model=None)
        assert soundfile.SoundFile(recording.save(tmp_path / "a.wav")).comment == ""

    @pytest.mark.parametrize("name", ["nameless.safetensors", "step_7.pkl"])
    def test_a_checkpoint_that_names_no_codec_asks_for_one(self, home, name):
        with pytest.raises(
            ValueError, match=f"{name}: does not name the codec of its latents of 8 channels: .*--codec"
        ):
            EchoTTS.load(home / name)
        assert len(say(EchoTTS.load(home / name, home / "mine.safetensors"), duration=0.4).samples)

    def test_a_codec_of_other_channels_is_refused_with_both_numbers(self, home):
        with pytest.raises(ValueError, match=r"model\.safetensors: the model makes latents of 8 channels, .* takes 4"):
            EchoTTS.load(home / "model.safetensors", home / "narrow.safetensors")

    def test_damaged_and_hostile_checkpoints_are_one_line(self, home):
        whole = (home / "model.safetensors").read_bytes()
        (home / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
        (home / "hostile.pkl").write_bytes(pickle.dumps(print))
        (home / "folder").mkdir(exist_ok=True)
        for name, words in (
            ("cut.safetensors", "damaged"),
            ("hostile.pkl", "print"),
            ("folder", "no checkpoint found"),
        ):
            with pytest.raises((ValueError, OSError), match=words) as caught:
                EchoTTS.load(home / name, home / "mine.safetensors")
            assert name in str(caught.value)
            assert "\n" not in str(caught.value)
