"""flite and festival, run as external programs."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import IO, cast

import soundfile

from echotts.audio import Samples

TIMEOUT_S = 60.0
VOICE_FOLDER = Path("/usr/share/festival/voices")
FESTIVAL_LICENCES = {
    "kal_diphone": "festvox (permissive, CMU and University of Edinburgh)",
    "ked_diphone": "festvox (permissive, University of Edinburgh)",
    "cmu_us_slt_arctic_hts": "festvox (permissive, CMU) and BSD-3-Clause",
}


class Flite:
    """CMU Flite with its compiled-in voices; one process per text."""

    def __init__(self) -> None:
        self._program = _program("flite")
        listed = subprocess.run([self._program, "-lv"], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        self._voices = [voice for voice in listed.stdout.partition(":")[2].split() if voice != "awb_time"]

    def voices(self) -> list[str]:
        return self._voices

    def check(self, voice: str) -> None:
        _one_of(voice, self._voices, "flite")

    def licence(self, voice: str) -> str:
        return "CMU Flite (permissive, BSD style)"

    def say(self, text: str, voice: str, pace: float = 1.0) -> tuple[Samples, int]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "said.wav"
            command = [self._program, "-voice", voice, "--setf", f"duration_stretch={1.0 / pace:.3f}"]
            subprocess.run([*command, "-t", text, "-o", str(path)], capture_output=True, timeout=TIMEOUT_S, check=True)
            return _read(path, text)


class Festival:
    """Festival with the installed voices; one long-lived process per voice."""

    def __init__(self) -> None:
        self._program = _program("festival")
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._folder = tempfile.TemporaryDirectory()
        self._voices = [name for name in FESTIVAL_LICENCES if list(VOICE_FOLDER.glob(f"*/{name}"))]

    def voices(self) -> list[str]:
        return self._voices

    def check(self, voice: str) -> None:
        _one_of(voice, self._voices, "festival")

    def licence(self, voice: str) -> str:
        return FESTIVAL_LICENCES[voice]

    def say(self, text: str, voice: str, pace: float = 1.0) -> tuple[Samples, int]:
        path = Path(self._folder.name) / "said.wav"
        path.unlink(missing_ok=True)
        process = self._process(voice)
        plain = text.encode("ascii", "ignore").decode().replace("\\", " ").replace('"', " ")
        _send(process, f"(Parameter.set 'Duration_Stretch {1.0 / pace:.3f})")
        _send(process, f'(utt.save.wave (utt.synth (Utterance Text "{plain}")) "{path}")')
        _send(process, '(format t "said\\n") (fflush nil)')
        for line in cast(IO[bytes], process.stdout):
            if b"said" in line:
                return _read(path, text)
        del self._running[voice]
        raise ValueError(f"festival stopped at {text!r}")

    def _process(self, voice: str) -> subprocess.Popen[bytes]:
        if voice not in self._running:
            self._running[voice] = subprocess.Popen(
                [self._program, "--pipe"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            _send(self._running[voice], f"(voice_{voice})")
        return self._running[voice]


def _send(process: subprocess.Popen[bytes], expression: str) -> None:
    pipe = cast(IO[bytes], process.stdin)
    pipe.write(expression.encode() + b"\n")
    pipe.flush()


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"the program {name} is missing: apt-get install {name} (or your system's package)")
    return found


def _one_of(voice: str, known: list[str], teacher: str) -> None:
    if voice not in known:
        raise ValueError(f"{teacher} has no voice {voice!r}: it has {', '.join(known)}")


def _read(path: Path, text: str) -> tuple[Samples, int]:
    try:
        samples, rate = soundfile.read(path, dtype="float32")
    except soundfile.SoundFileError:
        raise ValueError(f"no audio was produced for {text!r}") from None
    if not len(samples):
        raise ValueError(f"empty audio was produced for {text!r}")
    return samples, rate
