"""Time of a student's few steps against its model's guided ones, and how far the latents of both end apart.

    python -m benchmarks.student --checkpoint model.safetensors [--texts 8] [--rounds 5]    # a minute on one core

The checkpoint has a student (echotts train --distil_from). Texts of the built-in corpus, one at a time, each in the
voice of a reference. Sides take turns in one process; the best round of each counts, without compilation.
latents: CPU seconds from token ids to latents, encoding of text and voice included (target of 4 steps: a sixth).
speech: CPU seconds of `synthesize`, with the codec. distance: root mean square of the difference from the latents of 32
guided steps from the same noise, relative to those latents.
"""

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.measure import best_of
from echotts import EchoTTS
from echotts.data.prepare.demo import corpus_path
from echotts.evaluation.clips import choose_references, read_clips
from echotts.flow.options import SamplerConfig, sampler_config

STUDENT_STEPS = (1, 2, 4, 8)
GUIDED_STEPS = (32, 16, 8, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint")
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    tts = EchoTTS.load(given.checkpoint)
    clips, pool = read_clips(corpus_path(), "heldout"), read_clips(corpus_path(), "reference")
    clips = clips[:: max(1, len(clips) // given.texts)][: given.texts]
    voices = [tts.encode_reference((one.samples, 16_000)) for one in choose_references(clips, pool)]

    def latents(sampler: SamplerConfig) -> list[Any]:
        prompts = [tts._prompt(tts._given(one.text), voice, 0) for one, voice in zip(clips, voices, strict=True)]
        return [tts._synthesizer.latents([prompt], tts.window_s, sampler, rows=1)[0] for prompt in prompts]

    def speech(sampler: SamplerConfig) -> list[Any]:
        return [
            speech
            for one, voice in zip(clips, voices, strict=True)
            for speech in tts.pieces(one.text, voice, duration=tts.window_s, sampler=sampler)
        ]

    samplers = {f"{steps} guided steps": sampler_config("quality", steps=steps) for steps in GUIDED_STEPS}
    samplers |= {"4 unguided steps": sampler_config("quality", steps=4, cfg_scale=0.0)}
    samplers |= {f"{steps} steps of the student": sampler_config("student", steps=steps) for steps in STUDENT_STEPS}
    ends = {name: np.stack(latents(sampler)) for name, sampler in samplers.items()}
    wanted = next(iter(ends.values()))
    times = [best_of(sides(run, samplers), given.rounds) for run in (latents, speech)]
    print(f"{len(clips)} texts, windows of {tts.window_s:.2f} s, CPU seconds of a text, best of {given.rounds}")
    slow = [next(iter(spent.values())).cpu for spent in times]
    for name, end in ends.items():
        cells = [
            f"{title} {spent[name].cpu / len(clips):.3f} s ({first / spent[name].cpu:.1f} times as fast)"
            for title, spent, first in zip(("latents", "speech"), times, slow, strict=True)
        ]
        away = np.sqrt(np.mean((end - wanted) ** 2) / np.mean(wanted**2))
        print(f"  {name:24s} {', '.join(cells)}, distance {away:.3f}")


def sides(run: Callable[[SamplerConfig], Any], samplers: dict[str, SamplerConfig]) -> dict[str, Callable[[], Any]]:
    return {name: lambda sampler=sampler: run(sampler) for name, sampler in samplers.items()}


if __name__ == "__main__":
    main()
