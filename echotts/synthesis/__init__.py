"""Text, and a voice if wanted, to speech: a checkpoint, its codec and the sampler behind one class.

tts = EchoTTS.load("model.safetensors")
tts.synthesize("Hello.", speaker_ref="ref.mp3", seed=42).save("hello.wav")
"""

from echotts.synthesis.references import check_reference
from echotts.synthesis.speech import Speech
from echotts.synthesis.tts import EchoTTS

__all__ = ["EchoTTS", "Speech", "check_reference"]
