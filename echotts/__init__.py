"""Text and a voice in, speech out: a flow-matching diffusion transformer over codec latents, in JAX."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from echotts.synthesis import EchoTTS, Speech

__version__ = "0.1.0"
__all__ = ["EchoTTS", "Speech", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the synthesis (and with it jax) when it is first asked for: `--help` must not wait for it."""
    if name in ("EchoTTS", "Speech"):
        from echotts import synthesis

        return getattr(synthesis, name)
    raise AttributeError(f"module 'echotts' has no attribute {name!r}")
