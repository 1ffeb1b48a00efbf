"""Text, and a voice if wanted, to speech: a checkpoint, its codec and the sampler behind one class.

tts = EchoTTS.load("model.safetensors")
tts.synthesize("Hello.", speaker_ref="ref.mp3", seed=42).save("hello.wav")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from echotts.synthesis.speech import Speech
    from echotts.synthesis.tts import EchoTTS

__all__ = ["EchoTTS", "Speech"]


def __getattr__(name: str) -> Any:
    """Imports jax when the class is first asked for: checks of files and references do not wait for it."""
    if name == "EchoTTS":
        from echotts.synthesis.tts import EchoTTS

        return EchoTTS
    if name == "Speech":
        from echotts.synthesis.speech import Speech

        return Speech
    raise AttributeError(f"module 'echotts.synthesis' has no attribute {name!r}")
