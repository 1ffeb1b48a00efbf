"""Configuration: frozen dataclasses, validated once and then trusted.

Each section belongs to one part of the package; presets are functions that return complete configurations.
"""

from echotts.config.complete import Config, to_dict
from echotts.config.data import FRAME_RATE_HZ, Bucket, DataConfig
from echotts.config.learning import (
    MAX_RANK,
    ROWS_PER_TEACHER,
    FlowConfig,
    InitName,
    LossName,
    OptimConfig,
    OptimizerName,
    TuneConfig,
    TuneName,
)
from echotts.config.model import (
    MAX_SIZE,
    AttentionName,
    DtypeName,
    EncoderConfig,
    ModelConfig,
    RematName,
    read_model_config,
)
from echotts.config.presets import DEFAULT_CODEC, PRESETS, demo, echo_1b3, echo_840m, nearest_preset, preset
from echotts.config.run import HELDOUT_VOICES, SEED_BITS, BestName, RunConfig, check_seed
