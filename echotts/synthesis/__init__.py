"""Text to speech, optionally in the voice of a reference: a checkpoint, its codec and the sampler in one class.

tts = EchoTTS.load("model.safetensors")
tts.synthesize("Hello.", speaker_ref="ref.mp3", seed=42).save("hello.wav")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from echotts.synthesis.speech import Speech
    from echotts.synthesis.tts import EchoTTS

__all__ = ["EchoTTS", "Speech"]


def __getattr__(name: str) -> Any:
    """Imports jax only when the class is first used; checks of files and references do not wait for it."""
    if name == "EchoTTS":
        from echotts.synthesis.tts import EchoTTS

        return EchoTTS
    if name == "Speech":
        from echotts.synthesis.speech import Speech

        return Speech
    raise AttributeError(f"module 'echotts.synthesis' has no attribute {name!r}")
