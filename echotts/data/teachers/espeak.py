"""espeak-ng through its C library in the espeakng-loader wheel: speech, and phonemes of single words.

The program is licensed under GPL-3.0, which does not cover its output. Its output is not bitwise reproducible.
"""

import ctypes
from pathlib import Path

import numpy as np

from echotts.audio import Samples

INSTALL_HINT = "pip install 'echotts[teachers]'"
NORMAL_RATE_WPM = 175
_AUDIO_RETRIEVAL = 1  # espeak_AUDIO_OUTPUT: samples are passed to the callback, not played
_UTF8 = 1
_POSITION_CHARACTER = 1
_RATE_PARAMETER = 1
_IPA_TIED = 0x02 | 0x80 | ord("^") << 8  # IPA, with the letters of one phoneme joined by ^


class Espeak:
    """A voice is a language and, after a plus, a variant: `en-us+f2`.

    The library keeps process-wide state: create only one instance, and use it from one thread.
    """

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"espeak-ng is missing: {INSTALL_HINT}") from error
        library = self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        self._data = Path(espeakng_loader.get_data_path())
        self.rate_hz = library.espeak_Initialize(_AUDIO_RETRIEVAL, 0, str(self._data).encode(), 0)
        if self.rate_hz <= 0:
            raise RuntimeError(f"espeak-ng found no voice data in {self._data}: reinstall espeakng-loader")
        self._pieces: list[np.ndarray] = []
        self._callback = _CALLBACK(self._keep)
        library.espeak_SetSynthCallback(self._callback)
        library.espeak_Synth.argtypes = [ctypes.c_char_p, ctypes.c_size_t, *[ctypes.c_uint] * 4, *[ctypes.c_void_p] * 2]
        library.espeak_TextToPhonemes.restype = ctypes.c_char_p

    def voices(self) -> list[str]:
        variants = sorted(file.name for file in (self._data / "voices" / "!v").iterdir())
        return ["en-us", *(f"en-us+{variant}" for variant in variants)]

    def check(self, voice: str) -> None:
        language, _, variant = voice.partition("+")
        if variant and not (self._data / "voices" / "!v" / variant).is_file():
            raise ValueError(f"espeak-ng has no variant {variant!r} (as in en-us+f2)")
        if self._library.espeak_SetVoiceByName(language.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {language!r}: en-us, en-gb-x-rp, es, ...")

    def licence(self, voice: str) -> str:
        return "espeak-ng (GPL-3.0-or-later; its output is not covered)"

    def say(self, text: str, voice: str, pace: float = 1.0) -> tuple[Samples, int]:
        self._pieces.clear()
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}")
        self._library.espeak_SetParameter(_RATE_PARAMETER, round(NORMAL_RATE_WPM * pace), 0)
        encoded = text.encode()
        failed = self._library.espeak_Synth(encoded, len(encoded) + 1, 0, _POSITION_CHARACTER, 0, _UTF8, None, None)
        if failed:
            raise RuntimeError(f"espeak-ng could not speak {text!r} in voice {voice!r}")
        self._library.espeak_Synchronize()
        if not self._pieces:
            raise ValueError(f"espeak-ng produced no audio for {text!r}")
        return np.concatenate(self._pieces).astype(np.float32) / 32768, self.rate_hz

    def phonemes(self, word: str) -> str:
        """One English word in IPA, with the letters of a diphthong or affricate joined by ^."""
        self._library.espeak_SetVoiceByName(b"en-us")
        text = ctypes.c_char_p(word.encode())
        return (self._library.espeak_TextToPhonemes(ctypes.byref(text), _UTF8, _IPA_TIED) or b"").decode().strip()

    def _keep(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, _events: int) -> int:
        if samples and count > 0:
            self._pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
