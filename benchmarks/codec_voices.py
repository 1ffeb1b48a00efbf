"""Evaluates a speech codec on unseen voices: word errors, level and speaker similarity of round trips.

    python -m benchmarks.codec_voices --sets heldout --texts english/texts/heldout.txt --codec demo speech.safetensors

Six sets of about 40 clips, created in the folder --sets if missing: human prompts (Debian's
asterisk-core-sounds-en and -wav), telephone speech and an audio book
(pocketsphinx-testdata, ten clips), flite's voice rms, festival's ked_diphone and the Kokoro mix that
scripts/speech_corpus.py excludes, speaking held-out texts (scripts/english_texts.py), and built-in held-out digits.
Whisper base transcribes every clip before and after; transcripts are cached in {sets}/heard.json, so recordings are
transcribed only once. Word errors are totals over a set's words, levels and similarities means over its clips. Needs
the extras eval, asr and teachers, and apt-get install asterisk-core-sounds-en{,-wav} pocketsphinx-testdata flite
festvox-kdlpc16k. --codec also accepts the run directory of a running training.
"""

import argparse
import gzip
import hashlib
import json
import re
import shutil
import wave
from pathlib import Path

import numpy as np

from echotts.cli.codec.evaluate import Listener, clips_of
from echotts.codec import load_codec
from echotts.codec.evaluation import round_trip, summarise
from echotts.data.prepare.demo import corpus_path
from echotts.data.prepare.recordings import list_recordings
from echotts.data.teachers.speak import Settings, speak
from echotts.evaluation.asr import load_recogniser
from echotts.evaluation.voices import VoiceEncoder
from echotts.files import atomic_write
from scripts.speech_corpus import HELD_OUT_KOKORO

CLIPS = 40
LOUDNESS_LUFS = -16.0
PROMPTS = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
PROMPT_TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
SPHINX = Path("/usr/share/pocketsphinx/test/data")
SPHINX_TEXTS = ("librivox/transcription", "cards/cards.transcription")
WORDS = range(6, 15)  # numbers of words of spoken texts
TARGETS = "targets: word errors at most 4 points above the recordings' (digits 0.5), level within 1 dB, similarity 0.8"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True, help="folder of the held-out sets")
    parser.add_argument("--texts", type=Path, help="held-out sentences, one per line, to be spoken")
    parser.add_argument("--codec", nargs="*", default=["demo"], help="codecs: files, run directories, built-in names")
    parser.add_argument("--only", nargs="*", help="names of sets; default: all")
    parser.add_argument("--limit", type=int, default=CLIPS, help="clips per set")
    arguments = parser.parse_args()
    sources = make_sets(arguments.sets, arguments.texts)
    recogniser, voices = Remembering(arguments.sets / "heard.json"), VoiceEncoder()
    print("| codec | voices | clips | words | word errors: recordings | after the codec | level, dB | similarity |")
    print("|---|---|---|---|---|---|---|---|")
    for spec in arguments.codec:
        codec = load_codec(spec)
        for name, source in sources.items():
            if arguments.only and name not in arguments.only:
                continue
            texts = {one.origin: str(one.meta["text"]) for one in list_recordings(source)}
            listener = Listener(recogniser, voices, texts)
            clips = clips_of(source, codec.sample_rate, LOUDNESS_LUFS, name, arguments.limit)
            rows = [round_trip(codec, origin, clip, "clean", listener.recognise)[0] for origin, clip in clips]
            recogniser.keep()
            figures, words = summarise(rows), sum(row.heard["words"] for row in rows)
            print(
                f"| {spec} | {name} | {len(rows)} | {words:.0f} | {figures['word_errors_of_recordings']:.1%} | "
                f"{figures['word_errors']:.1%} | {figures['level_db']:+.2f} | {figures['similarity']:.3f} |",
                flush=True,
            )
    print(TARGETS)


class Remembering:
    """Whisper base with a cache of results."""

    def __init__(self, path: Path) -> None:
        self._whisper, self._path = load_recogniser("base"), path
        self._heard: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        self.normalise = self._whisper.normalise

    def recognise(self, samples: np.ndarray, rate: int) -> str:
        key = hashlib.sha256(samples.tobytes() + str(rate).encode()).hexdigest()
        if key not in self._heard:
            self._heard[key] = self._whisper.recognise(samples, rate)
        return self._heard[key]

    def keep(self) -> None:
        with atomic_write(self._path) as temporary:
            temporary.write_text(json.dumps(self._heard, indent=0), encoding="utf-8")


def make_sets(folder: Path, texts: Path | None) -> dict[str, str]:
    """Name -> source of recordings. Creates missing sets; SystemExit if texts are needed and missing."""
    if not (folder / "prompts").is_dir():
        make_prompts(folder / "prompts")
    if not (folder / "people").is_dir():
        make_people(folder / "people")
    for name, teacher, voice in (
        ("flite rms", "flite", "rms"),
        ("festival ked", "festival", "ked_diphone"),
        ("kokoro mix", "kokoro", HELD_OUT_KOKORO),
    ):
        if texts is not None:  # resumes
            lines = [line for line in texts.read_text().splitlines() if len(line.split()) in WORDS]
            speak(lines[:CLIPS], folder / name, Settings(teacher=teacher, voices=(voice,)))
        elif not (folder / name).is_dir():
            raise SystemExit(f"{folder / name} is missing: give --texts to create it")
    spoken = {path.name: str(path) for path in sorted(folder.glob("[!.]*")) if path.is_dir()}
    return spoken | {"digits": str(corpus_path() / "heldout-*.tar.gz")}


def said_prompts() -> list[tuple[Path, str]]:
    """All prompts with their texts; those with text in brackets, which is a sound or a remark, are left out."""
    lines = re.findall(r"^([\w-]+): (.+)$", gzip.decompress(PROMPT_TEXTS.read_bytes()).decode(), re.M)
    said = [(PROMPTS / f"{name}.wav", text) for name, text in lines if not re.search(r"[\[\](){}/<>]", text)]
    return [(file, text) for file, text in said if file.is_file()]


def make_prompts(folder: Path) -> None:
    """CLIPS prompts of 5 to 30 words, evenly over the list."""
    there = [(file, text) for file, text in said_prompts() if len(text.split()) in range(5, 31)]
    chosen = [there[i] for i in np.linspace(0, len(there) - 1, CLIPS).astype(int)]
    write_table(folder, [(source, source.name, text, "Allison") for source, text in chosen])


def make_people(folder: Path) -> None:
    """The recordings of pocketsphinx-testdata that are sentences, and their texts."""
    rows = []
    for table in SPHINX_TEXTS:
        for text, name in re.findall(r"<s> (.*?) +</s> \((.+)\)", (SPHINX / table).read_text()):
            rows.append(((SPHINX / table).parent / f"{name}.wav", f"{name}.wav", text, table.partition("/")[0]))
    write_table(folder, rows)


def write_table(folder: Path, rows: list[tuple[Path, str, str, str]]) -> None:
    """Copies of (source, name, text, speaker) and the table that names them, which appear together."""
    temporary = folder.with_name(f".{folder.name}")
    temporary.mkdir(parents=True, exist_ok=True)
    lines = []
    for source, name, text, speaker in rows:
        shutil.copy(source, temporary / name)
        with wave.open(str(source)) as sound:
            seconds = sound.getnframes() / sound.getframerate()
        lines.append({"audio": name, "text": text, "speaker": speaker, "duration_s": round(seconds, 3)})
    (temporary / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    temporary.rename(folder)


if __name__ == "__main__":
    main()
