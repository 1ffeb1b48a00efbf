"""Error rates of the watermark of speech, its level, cost, and what it does to word errors and similarity.

    python -m benchmarks.watermark [--clips 40] [--listen 20] [--unmarked FOLDER ...]    # ten minutes on one core

Prompts of a human speaker (Debian's asterisk-core-sounds-en-wav) are encoded and decoded by the built-in codec, marked,
changed in each of many ways (CHANGES), and examined whole and after cropping to 5 and 3 s at a random place. A miss is
a recording in which no mark is found; a wrong message is one that is found with other bits. False alarms: all prompts
as they are, the --clips after each change but without a mark, and the recordings in the folders --unmarked. --listen N:
the first N clips are transcribed by Whisper base before and after marking (extras asr and eval).
"""

import argparse
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from benchmarks.codec_voices import PROMPTS, said_prompts
from echotts.audio import AUDIO_SUFFIXES, Samples, read_audio, resample
from echotts.audio.detecting import RATE_HZ, Detection, Detector
from echotts.audio.marking import MESSAGE, Marker, marked, marked_blocks
from echotts.audio.writing import FORMATS, mp3_level
from echotts.codec import Codec, load_codec

CROPS_S = (5.0, 3.0)
LEAST_S = 5.0
UNMARKED = 300  # recordings of each folder
BANDS_HZ = (0, 300, 700, 1100, 1500, 2300, 3500, 8000)
SENT = "".join(map(str, MESSAGE))
Change = Callable[[Samples, int, np.random.Generator], tuple[Samples, int]]


def encoded(samples: Samples, rate: int, **options: object) -> Samples:
    """A round trip through one of libsndfile's formats."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", samplerate=rate, channels=1, **options) as file:  # type: ignore[arg-type]
        file.write(np.clip(samples, -1, 1))
    buffer.seek(0)
    return soundfile.read(buffer, dtype="float32")[0]


def mp3(kbps: int) -> Change:
    def change(samples: Samples, rate: int, rng: np.random.Generator) -> tuple[Samples, int]:
        return encoded(samples, rate, **FORMATS[".mp3"], compression_level=mp3_level(kbps, rate)), rate

    return change


def resampled(new_rate: int) -> Change:
    return lambda samples, rate, rng: (resample(samples, rate, new_rate), new_rate)


def noisy(snr_db: float) -> Change:
    def change(samples: Samples, rate: int, rng: np.random.Generator) -> tuple[Samples, int]:
        noise = rng.standard_normal(len(samples)) * samples.std() * 10 ** (-snr_db / 20)
        return (samples + noise).astype(np.float32), rate

    return change


def recoded(samples: Samples, rate: int, rng: np.random.Generator) -> tuple[Samples, int]:
    """A neural codec again: what is left is what the codec keeps of it."""
    codec = load_codec("speech")
    heard = resample(samples, rate, codec.sample_rate)
    return np.asarray(codec.decode(codec.encode(heard[None])))[0, : len(heard)], codec.sample_rate


def wide_mp3(samples: Samples, rate: int, rng: np.random.Generator) -> tuple[Samples, int]:
    return mp3(64)(resample(samples, rate, 44100), 44100, rng)


def telephone(samples: Samples, rate: int, rng: np.random.Generator) -> tuple[Samples, int]:
    return encoded(resample(samples, rate, 8000), 8000, format="WAV", subtype="GSM610"), 8000


def echoing(samples: Samples, rate: int, rng: np.random.Generator) -> tuple[Samples, int]:
    """A room: exponentially decaying noise, reverberation time 0.3 s, 10 dB below the direct sound."""
    times = np.arange(round(0.3 * rate)) / rate
    tail = rng.standard_normal(len(times)) * np.exp(-6.9 * times / 0.3)
    tail *= 10 ** (-10 / 20) / np.sqrt(np.sum(tail**2))
    tail[0] = 1.0
    size = len(samples) + len(tail)
    return np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)[: len(samples)], rate


CHANGES: dict[str, Change] = {
    "none": lambda samples, rate, rng: (samples, rate),
    "mp3, 128 kbit/s": mp3(128),
    "mp3, 64 kbit/s": mp3(64),
    "mp3, 32 kbit/s": mp3(32),
    "44.1 kHz, mp3, 64 kbit/s": wide_mp3,
    "ogg (Vorbis)": lambda samples, rate, rng: (encoded(samples, rate, **FORMATS[".ogg"]), rate),
    "resampled to 8 kHz": resampled(8000),
    "resampled to 16 kHz": resampled(16000),
    "resampled to 24 kHz": resampled(24000),
    "resampled to 44.1 kHz": resampled(44100),
    "gain -30 dB, 16 bit": lambda samples, rate, rng: (np.round(samples * 0.0316 * 32768) / 32768, rate),
    "white noise, 30 dB below": noisy(30),
    "white noise, 25 dB below": noisy(25),
    "white noise, 20 dB below": noisy(20),
    "white noise, 10 dB below": noisy(10),
    "GSM 06.10, 8 kHz": telephone,
    "reverberation, 10 dB below": echoing,
    "the codec speech again": recoded,
    "1 % faster": lambda samples, rate, rng: (resample(samples, round(1.01 * rate), rate), rate),
}


def examine(samples: Samples, rate: int) -> Detection:
    detector = Detector(1)
    detector.push(resample(samples.astype(np.float32), rate, RATE_HZ)[None])
    return detector.finish()


def spoken(codec: Codec, count: int) -> tuple[list[Samples], list[str]]:
    """Prompts of at least LEAST_S, evenly over the list, as the codec decodes them, and their texts."""
    long = [(path, text) for path, text in said_prompts() if soundfile.info(path).duration >= LEAST_S]
    chosen = [long[i] for i in np.linspace(0, len(long) - 1, count).astype(int)]
    recordings = [read_audio(path, codec.sample_rate) for path, _ in chosen]
    clips = [np.asarray(codec.decode(codec.encode(one[None])))[0, : len(one)] for one in recordings]
    return clips, [text for _, text in chosen]


def pieces(samples: Samples, rate: int, rng: np.random.Generator) -> Iterator[Samples]:
    yield samples
    for seconds in CROPS_S:
        start = rng.integers(0, max(1, len(samples) - round(seconds * rate)))
        yield samples[start : start + round(seconds * rate)]


def error_rates(clips: list[Samples], rate: int) -> None:
    """Misses and wrong messages of marked clips, found marks of the same without."""
    print("| change | missed: whole | 5 s | 3 s | wrong messages | found in unmarked |\n|---|---|---|---|---|---|")
    for name, change in CHANGES.items():
        missed, wrong, alarms, tried = np.zeros(1 + len(CROPS_S), int), 0, 0, 0
        for number, clip in enumerate(clips):
            for mark in (MESSAGE, None):
                rng = np.random.default_rng(number)
                changed, new_rate = change(marked(clip, rate, mark), rate, rng)
                found = [examine(piece, new_rate).message for piece in pieces(changed, new_rate, rng)]
                if mark is None:
                    alarms, tried = alarms + sum(one is not None for one in found), tried + len(found)
                    continue
                missed += [one is None for one in found]
                wrong += sum(one not in (None, SENT) for one in found)
        shares = " | ".join(f"{count / len(clips):.1%}" for count in missed)
        print(f"| {name} | {shares} | {wrong} of {tried - missed.sum()} | {alarms} of {tried} |", flush=True)


def false_alarms(name: str, files: list[Path]) -> None:
    found = [examine(read_audio(path, RATE_HZ), RATE_HZ) for path in files]
    scores = np.array([one.score for one in found])
    alarms = sum(one.message is not None for one in found)
    best = f"scores {scores.mean():.2f} on average, at most {scores.max():.2f}"
    print(f"{name}: {alarms} false alarms in {len(files)} recordings, {best}", flush=True)


def audibility(clips: list[Samples], rate: int) -> None:
    """Level of the change below the speech, overall and per band."""
    speech, change = np.zeros(len(BANDS_HZ) - 1), np.zeros(len(BANDS_HZ) - 1)
    for clip in clips:
        added = marked(clip, rate, MESSAGE) - clip
        bins = np.fft.rfftfreq(len(clip), 1 / rate)
        for total, signal in ((speech, clip), (change, added)):
            total += np.histogram(bins, BANDS_HZ, weights=np.abs(np.fft.rfft(signal)) ** 2)[0]
    print(f"the change is {10 * np.log10(speech.sum() / change.sum()):.1f} dB below the speech; per band:")
    for low, high, ratio in zip(BANDS_HZ, BANDS_HZ[1:], change / speech, strict=False):
        print(f"  {low} to {high} Hz: {10 * np.log10(ratio + 1e-12):.1f} dB")


def cost(clips: list[Samples], rate: int) -> None:
    seconds = sum(map(len, clips)) / rate
    for name, call in {
        "marking whole pieces": lambda: [marked(clip, rate, MESSAGE) for clip in clips],
        "marking in blocks of 80 ms": lambda: [
            list(marked_blocks(np.array_split(clip, len(clip) * 12 // rate), Marker(rate, MESSAGE))) for clip in clips
        ],
        "detection": lambda: [examine(clip, rate) for clip in clips],
    }.items():
        began = time.process_time()
        call()
        print(
            f"{name}: {1000 * (time.process_time() - began) / seconds:.1f} ms of CPU per second of speech at {rate} Hz"
        )


def listening(clips: list[Samples], texts: list[str], rate: int) -> None:
    """Word errors of Whisper before and after marking, and the similarity of the voice before and after."""
    from echotts.evaluation.asr import listen, load_recogniser
    from echotts.evaluation.voices import VoiceEncoder

    whisper, voices, similar = load_recogniser("base"), VoiceEncoder(), []
    words, wrong = 0, np.zeros(2, int)
    for clip, text in zip(clips, texts, strict=True):
        versions = clip, marked(clip, rate, MESSAGE)
        errors = [listen(whisper, text, version, rate) for version in versions]
        words += errors[0].words
        wrong += [one.words_wrong for one in errors]
        first, second = voices.embed([(version, rate) for version in versions])
        similar.append(float(first @ second))
    print(f"words wrong of {words} in {len(clips)} clips: {wrong[0]} before, {wrong[1]} after marking")
    print(f"similarity of the voices before and after: mean {np.mean(similar):.4f}, at least {min(similar):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--listen", type=int, default=0)
    parser.add_argument("--unmarked", type=Path, nargs="*", default=[], help="folders of recordings without a mark")
    arguments = parser.parse_args()
    codec = load_codec("speech")
    clips, texts = spoken(codec, arguments.clips)
    audibility(clips, codec.sample_rate)
    cost(clips, codec.sample_rate)
    error_rates(clips, codec.sample_rate)
    false_alarms("prompts", sorted(PROMPTS.rglob("*.wav")))
    for folder in arguments.unmarked:
        files = sorted(path for path in folder.rglob("*") if path.suffix in AUDIO_SUFFIXES)
        false_alarms(folder.name, files[:: max(1, len(files) // UNMARKED)])
    if arguments.listen:
        listening(clips[: arguments.listen], texts[: arguments.listen], codec.sample_rate)


if __name__ == "__main__":
    main()
