"""Predicted durations against recordings; what short windows do to short texts, and how much time they save.

    python -m benchmarks.length [--texts 110] [--checkpoint model.safetensors]    # minutes on two cores; extra eval

error: |predicted / recorded - 1| over the built-in held-out recordings of digits, each with a reference of its voice.
auto, longest: texts of one and two digits in windows by predicted duration (--duration auto) and in the longest one;
words wrong as heard by pocketsphinx, of those extra words (a text read twice) and last words that are missing; how many
had no end in their windows; CPU seconds of a text, without compilation. --speeds: word errors at other speeds.
"""

import argparse
import logging
import time

import numpy as np

from echotts import EchoTTS
from echotts.data.prepare.demo import DIGITS, corpus_path
from echotts.evaluation.clips import Clip, choose_references, read_clips
from echotts.evaluation.digits import DigitRecogniser
from echotts.synthesis.length import Duration
from echotts.synthesis.speech import Speech


def errors(tts: EchoTTS, clips: list[Clip], references: list[np.ndarray]) -> np.ndarray:
    """The relative errors of predicted durations."""
    return np.array(
        [
            tts.predict_duration(clip.text, reference) / (len(clip.samples) / 16_000) - 1
            for clip, reference in zip(clips, references, strict=True)
        ]
    )


def heard(recogniser: DigitRecogniser, texts: list[str], speeches: list[Speech]) -> str:
    """How many words are wrong, how many are too many, and how many texts lack their last word."""
    wrong = extra = cut = words = 0
    for text, speech in zip(texts, speeches, strict=True):
        said, found = text.split(), recogniser.recognise(speech.samples, speech.sample_rate)
        distance = list(range(len(found) + 1))  # Levenshtein
        for i, word in enumerate(said, 1):
            before, distance[0] = distance[0], i
            for j, other in enumerate(found, 1):
                before, distance[j] = distance[j], min(distance[j] + 1, distance[j - 1] + 1, before + (word != other))
        wrong += distance[-1]
        words += len(said)
        extra += max(0, len(found) - len(said))
        cut += len(found) < len(said) and found == said[: len(found)]
    return f"{wrong} of {words} words wrong, {extra} extra, {cut} last words missing"


class Resampled(logging.Handler):
    """Counts the texts that were synthesised twice."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        if "no end" in record.msg and isinstance(record.args, tuple):
            self.count += int(str(record.args[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint")
    parser.add_argument("--texts", type=int, default=110)
    parser.add_argument("--speeds", type=float, nargs="*", default=[])
    given = parser.parse_args()
    tts, recogniser, resampled = EchoTTS.load(given.checkpoint), DigitRecogniser(), Resampled()
    log = logging.getLogger("echotts.synthesis.synthesizer")
    log.setLevel(logging.DEBUG)
    log.addHandler(resampled)
    clips, pool = read_clips(corpus_path(), "heldout"), read_clips(corpus_path(), "reference")
    chosen = choose_references(clips, pool)
    voices = {clip.key: tts.encode_reference((clip.samples, 16_000)) for clip in pool}
    found = np.abs(errors(tts, clips, [voices[clip.key] for clip in chosen]))
    print(f"error: mean {found.mean():.1%}, 95 % below {np.quantile(found, 0.95):.1%}, {len(clips)} recordings")

    texts = [*DIGITS, *(f"{one} {two}" for one in DIGITS for two in DIGITS)]
    texts = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[: given.texts]]
    speakers = [voices[pool[number % len(pool)].key] for number in range(len(texts))]

    def speak(duration: Duration, speed: float = 1.0) -> list[Speech]:
        return [
            tts.synthesize(text, voice, seed=number, duration=duration, speed=speed)
            for number, (text, voice) in enumerate(zip(texts, speakers, strict=True))
        ]

    tts.warm_up()
    for name, duration in {"auto": "auto", "longest": tts.window_s}.items():
        resampled.count, began = 0, time.process_time()
        speeches = speak(duration)
        spent = (time.process_time() - began) / len(texts)
        print(f"{name}: {heard(recogniser, texts, speeches)}, {resampled.count} without an end, {spent:.3f} CPU s each")
    for speed in given.speeds:
        print(f"speed {speed}: {heard(recogniser, texts, speak('auto', speed))}")


if __name__ == "__main__":
    main()
