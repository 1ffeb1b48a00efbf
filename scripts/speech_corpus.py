"""Creates recordings to train the `speech` codec:

    python scripts/speech_corpus.py --texts texts/train.txt --output corpus --english english

Many voices with permissive licences, in many recording conditions (echotts/data/teachers/rooms.py). flite, festival and
espeak-ng take minutes per hour of speech and run first; Kokoro follows: clean into --english (also the start of the
corpus of `make english-corpus`), with a varied copy of each clip in --output. An interrupted run can be resumed.
Excluded, to measure a codec on unseen voices: flite rms, festival ked_diphone and the Kokoro mix HELD_OUT_KOKORO.
Needs the extra teachers and apt-get install flite festival festvox-kallpc16k festvox-us-slt-hts.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from echotts.audio import HEADROOM_PEAK
from echotts.data.teachers import speak
from echotts.data.teachers.rooms import vary
from echotts.data.teachers.speak import TABLE, Settings
from echotts.files import atomic_write

HELD_OUT_KOKORO = "jf_nezumi:50+jm_kumo:50"
STYLES = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")
PAIRS = tuple(f"{a}:50+{b}:50" for i, a in enumerate(STYLES) for b in STYLES[i + 1 :])
KOKORO = (*STYLES, *(pair for pair in PAIRS if pair != HELD_OUT_KOKORO))
LANGUAGES = (
    *("en-us", "en-gb-x-rp", "en-gb-scotland", "en-029"),
    *("es", "fr", "de", "it", "pt-br", "ru", "nl", "pl", "sv", "tr"),
)
VARIANTS = (
    *("f1", "f2", "f3", "f4", "f5", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "Andy", "Annie", "belinda"),
    *("Denis", "iven", "klatt2", "klatt4", "linda", "steph2"),
)
ESPEAK = tuple(f"{LANGUAGES[i % len(LANGUAGES)]}+{VARIANTS[i % len(VARIANTS)]}" for i in range(60))
FAST = (  # teacher, voices, clips
    ("flite", ("slt", "awb", "kal16", "kal"), 3200),
    ("festival", ("cmu_us_slt_arctic_hts", "kal_diphone"), 1400),
    ("espeak", ESPEAK, 4200),
)
PART_HOURS = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True, help="sentences, one per line (scripts/english_texts.py)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the varied recordings")
    parser.add_argument("--english", type=Path, required=True, help="folder of Kokoro's clean recordings")
    parser.add_argument("--kokoro_hours", type=float, default=25.0, help="hours of Kokoro")
    parser.add_argument("--processes", type=int, default=1, help="number of processes")
    arguments = parser.parse_args()
    texts = arguments.texts.read_text().splitlines()
    order = np.random.default_rng(1).permutation(len(texts))
    first = 0
    for teacher, voices, clips in FAST:
        chosen = [texts[i] for i in order[first : first + clips]]
        first += clips
        settings = Settings(
            teacher=teacher, voices=voices, pace=(0.85, 1.2), change=vary, processes=arguments.processes
        )
        say(chosen, arguments.output / teacher, settings)
    hours = 0.0
    while hours < arguments.kokoro_hours:
        hours += PART_HOURS
        settings = Settings(teacher="kokoro", voices=KOKORO, hours=hours, processes=arguments.processes)
        say(texts, arguments.english, settings)
        vary_folder(arguments.english, arguments.output / "kokoro")


def say(texts: Sequence[str], output: Path, settings: Settings) -> None:
    def show(stage: str, done: int, total: int, refused: int) -> None:
        if done % 50 == 0:
            print(f"{output}: {stage}, {done} of {total} clips, {refused} refused", flush=True)

    print(f"{output}: {speak(texts, output, settings, show)}", flush=True)


def vary_folder(source: Path, output: Path) -> None:
    """Creates a varied copy of every recording in `source` that `output` lacks, and the table of all."""
    rows = [json.loads(line) for line in (source / TABLE).read_text().splitlines()]
    for number, row in enumerate(rows):
        if not (output / row["audio"]).is_file():
            samples, rate = soundfile.read(source / row["audio"], dtype="float32")
            samples = vary(samples, rate, np.random.default_rng((2, number)))
            samples *= min(1.0, HEADROOM_PEAK / max(float(np.abs(samples).max()), 1e-9))
            with atomic_write(output / row["audio"]) as temporary:
                soundfile.write(temporary, samples, rate, format="FLAC", subtype="PCM_16")
        row["duration_s"] = round(soundfile.info(output / row["audio"]).duration, 3)
    with atomic_write(output / TABLE) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
