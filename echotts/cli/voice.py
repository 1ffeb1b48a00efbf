"""`echotts voice`: saves and manages voices made from recordings, for `echotts speak --voice NAME`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from echotts.cli.app import choose, parse

PROG = "echotts voice"


@dataclass(frozen=True, kw_only=True)
class SaveArguments:
    """Save a voice: the best parts of recordings of one person, encoded once; or the voice that a run trained."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the voice: letters, digits, _ . and -. An existing voice with this name is replaced."""
    recordings: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Recordings of the voice, any format and rate, 0.5 to 300 seconds each. The clearest phrases are used, up to the
    length of the model's reference window. Or one run directory of echotts train --tune inversion."""
    checkpoint: str | None = None
    """Model to use the voice with, as for echotts speak. None: the built-in one."""
    codec: str | None = None
    """Codec instead of the one that the checkpoint names."""

    def __post_init__(self) -> None:
        if not self.recordings:
            raise ValueError("give at least one recording of the voice")


@dataclass(frozen=True, kw_only=True)
class NameArguments:
    """A saved voice."""

    name: Annotated[str, tyro.conf.Positional]
    """Name of the voice."""


@dataclass(frozen=True, kw_only=True)
class NoArguments:
    """List the saved voices."""


def main(argv: list[str]) -> int:
    """Runs the sub-command in `argv`; returns the exit code."""
    commands = {
        "save": ("save a voice from one or several recordings", _save),
        "list": ("list the saved voices", _list),
        "info": ("show the codec and recordings of a saved voice", _info),
        "remove": ("delete a saved voice", _remove),
    }
    return choose(PROG, "Voices for echotts speak --voice NAME.", commands, argv)


def _save(argv: list[str]) -> int:
    arguments = parse(SaveArguments, argv, prog=f"{PROG} save")
    from echotts.synthesis.references import check_recording
    from echotts.synthesis.voices import check_name, save_voice

    check_name(arguments.name)
    if len(arguments.recordings) == 1 and arguments.recordings[0].is_dir():
        return _save_trained(arguments.name, arguments.recordings[0])
    for recording in arguments.recordings:
        check_recording(recording)
    from echotts.synthesis import EchoTTS

    voice = EchoTTS.load(arguments.checkpoint, arguments.codec).record_voice(arguments.recordings)
    path = save_voice(arguments.name, voice)
    print(f"{path}: {voice.duration_s:.2f} s of {len(arguments.recordings)} recordings")
    return 0


def _save_trained(name: str, run_dir: Path) -> int:
    from echotts.checkpoint.weights import load_inversion
    from echotts.synthesis.voices import save_voice, trained_voice

    latent, facts = load_inversion(run_dir)
    path = save_voice(name, trained_voice(latent, facts, run_dir.name))
    size_kb = path.stat().st_size / 1e3
    print(f"{path}: {size_kb:.0f} kB, trained for {facts.step} steps, for the model given as --init_from")
    return 0


def _list(argv: list[str]) -> int:
    parse(NoArguments, argv, prog=f"{PROG} list")
    from echotts.synthesis.voices import list_voices, voices_folder

    names = list_voices()
    print("\n".join(names) if names else f"{voices_folder()}: no voice is saved yet")
    return 0


def _info(argv: list[str]) -> int:
    arguments = parse(NameArguments, argv, prog=f"{PROG} info")
    from echotts.synthesis.voices import find_voice, read_voice

    path = find_voice(arguments.name)
    voice = read_voice(path)
    frames, channels = voice.latent.shape
    print(f"{path}: {voice.duration_s:.2f} s, latents {frames} x {channels}")
    print(f"codec {voice.about.codec_id}, weights {voice.about.weights_hash}")
    print(f"recordings: {', '.join(voice.about.recordings)}")
    return 0


def _remove(argv: list[str]) -> int:
    arguments = parse(NameArguments, argv, prog=f"{PROG} remove")
    from echotts.synthesis.voices import find_voice

    path = find_voice(arguments.name)
    path.unlink()
    print(f"{path}: removed")
    return 0
