"""Programs of speaking for a device that need not be here."""

import jax

from echotts.codec.config import CodecConfig
from echotts.config import demo
from echotts.flow.options import SamplerConfig
from echotts.synthesis.lowered import lower_speaking


def test_speaking_is_three_programs_of_shapes_alone():
    codec = CodecConfig(encoder_dim=8, decoder_dim=64, latent_dim=32)
    found = lower_speaking(demo().model, codec, SamplerConfig(), jax.devices()[0])
    assert {name: runs for name, (_, runs) in found.items()} == {"conditions": 1, "sampling": 1, "codec": 4}
    assert "tensor<1x375x" in found["sampling"][0].as_text()
