"""`echotts speak`: synthesises a text to a file or live to standard output, or the rows of a script to a folder."""

import functools
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from echotts.cli import piped
from echotts.cli.app import UsageError, parse
from echotts.cli.progress import Progress
from echotts.cli.speech_flags import STANDARD_STREAM, Arguments

if TYPE_CHECKING:
    from echotts.evaluation.ranking import Ranking
    from echotts.synthesis import EchoTTS
    from echotts.synthesis.recording import Level

PROG = "echotts speak"


def main(argv: list[str]) -> int:
    """Parses the arguments, checks files, loads, speaks; returns the exit code."""
    arguments = parse(Arguments, argv, prog=PROG)
    if arguments.live:
        piped.check_standard_output()
    if arguments.script is not None:
        return _speak_script(arguments, arguments.script, _checked(_reference(arguments)))
    arriving = arguments.live and arguments.text == STANDARD_STREAM
    text = piped.arriving_text() if arriving else read_text(arguments)
    reference = _reference(arguments)
    check_files(arguments, reference)
    _checked(reference)
    if arguments.live:
        return _speak_live(arguments, text, reference)
    assert isinstance(text, str)
    return _speak_to_file(arguments, text, reference)


def _reference(arguments: Arguments) -> Path | None:
    """The file of the voice."""
    if arguments.voice is None:
        return arguments.speaker_ref
    from echotts.synthesis.voices import find_voice

    return find_voice(arguments.voice)


def _checked(reference: Path | None) -> Path | None:
    from echotts.synthesis.references import check_recording

    if reference is not None:
        check_recording(reference)
    return reference


def _load(arguments: Arguments) -> tuple["EchoTTS", float]:
    """The model, and how many seconds it took to load."""
    from echotts.synthesis.locate import DEMO, locate_checkpoint

    checkpoint = None if arguments.checkpoint in (None, DEMO) else locate_checkpoint(arguments.checkpoint)
    from echotts.synthesis import EchoTTS  # imports jax, which takes longer than the checks above

    began = time.perf_counter()
    tts = EchoTTS.load(
        checkpoint,
        arguments.codec,
        weights=arguments.weights,
        dtype=arguments.dtype,
        adapter=arguments.adapter,
        watermark=arguments.watermark == "on",
    )
    tts.raw_text = arguments.raw_text
    return tts, time.perf_counter() - began


def _speak_live(arguments: Arguments, text: str | Iterable[str], reference: Path | None) -> int:
    tts, load_s = _load(arguments)
    options = {"duration": arguments.length(), "speed": arguments.speed, "sampler": arguments.sampler(tts.has_student)}
    blocks = tts.stream(text, reference, seed=arguments.seed, **options)
    written = piped.write(blocks, arguments.pipe, arguments.normalise or "clip")
    print(f"{written}, loaded in {load_s:.2f} s", file=sys.stderr)
    return 0


def _speak_to_file(arguments: Arguments, text: str, reference: Path | None) -> int:
    tts, load_s = _load(arguments)
    from echotts.synthesis.recording import record_text

    began = time.perf_counter()
    with Progress() as progress:
        recorded = record_text(
            tts,
            text,
            None if reference is None else tts.encode_reference(reference),
            arguments.output,
            _level(arguments),
            latents=arguments.save_latents,
            on_piece=lambda done, total: progress("pieces spoken", done, total) if total > 1 else None,
            choose=_load_ranking(arguments, tts),
            seed=arguments.seed,
            duration=arguments.length(),
            speed=arguments.speed,
            sampler=arguments.sampler(tts.has_student),
            candidates=arguments.candidates,
        )
    took_s = time.perf_counter() - began
    print(
        f"{arguments.output}: {recorded.duration_s:.2f} s at {tts.sample_rate} Hz, synthesised in {took_s:.2f} s "
        f"({recorded.new_s / took_s:.2f} s of audio per second, compilation included), loaded in {load_s:.2f} s"
    )
    return 0


def _speak_script(arguments: Arguments, script: Path, reference: Path | None) -> int:
    """Speaks the rows of a script to a folder; exit code 1 if one of them failed."""
    from echotts.audio import check_mp3_rate
    from echotts.synthesis.script import read_script

    check_mp3_rate(arguments.mp3_rate)
    folder = arguments.output
    rows, failures = read_script(script, folder)
    tts, load_s = _load(arguments)
    from echotts.synthesis.script_run import MANIFEST, Options, run_script

    ranking = _load_ranking(arguments, tts)
    options = Options(
        seed=arguments.seed,
        duration=arguments.length(),
        speed=arguments.speed,
        sampler=arguments.sampler(tts.has_student),
        level=_level(arguments),
        reference=reference,
        rows=arguments.rows,
        candidates=arguments.candidates,
        choose=ranking,
        score=(lambda: asdict(ranking.reset())) if ranking else dict,
    )
    began = time.perf_counter()
    with Progress() as progress:
        tally = run_script(tts, script, rows, failures, folder, options, functools.partial(progress, "rows spoken"))
    took_s = time.perf_counter() - began
    print(
        f"{folder / MANIFEST}: {tally.spoken} rows spoken in {took_s:.2f} s, {tally.finished} were finished, "
        f"{tally.failed} failed, loaded in {load_s:.2f} s"
    )
    return 1 if tally.failed else 0


def _level(arguments: Arguments) -> "Level":
    from echotts.synthesis.recording import Level

    return Level(arguments.normalise or "peak", arguments.loudness, arguments.mp3_rate)


def _load_ranking(arguments: Arguments, tts: "EchoTTS") -> "Ranking | None":
    """What chooses one of several candidates; None if there is one."""
    if arguments.candidates == 1:
        return None
    from echotts.evaluation.ranking import load_ranking

    return load_ranking(tts.codec.decode, tts.sample_rate, arguments.language)


def check_files(arguments: Arguments, reference: Path | None) -> None:
    """Checks that the outputs can be written and would not replace an input; OSError or ValueError if not."""
    from echotts.audio import check_mp3_rate, check_suffix
    from echotts.files import check_outputs

    check_mp3_rate(arguments.mp3_rate)
    outputs = [] if arguments.live else [check_suffix(arguments.output), arguments.save_latents]
    inputs = [reference, arguments.text_file, arguments.checkpoint, arguments.adapter, arguments.codec]
    check_outputs(filter(None, outputs), filter(None, inputs))


def read_text(arguments: Arguments) -> str:
    """The text to speak, from the flag, standard input or the file; UsageError if the input or file is empty."""
    if arguments.text == STANDARD_STREAM:
        text = "".join(piped.arriving_text()).strip()
        if not text:
            raise UsageError("standard input: there is no text")
    elif arguments.text is not None:
        text = arguments.text
    else:
        assert arguments.text_file is not None
        from echotts import files

        text = files.read_text(arguments.text_file).strip()
        if not text:
            raise UsageError(f"{arguments.text_file}: the file is empty")
    if arguments.normalise_text:
        from echotts.text.tokens import normalise_text

        text = normalise_text(text)
    return text
