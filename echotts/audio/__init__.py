"""Audio input and output: reading, resampling, loudness, writing. Mono float32 with full scale 1."""

from echotts.audio.levels import (
    HEADROOM_PEAK,
    OUTPUT_LOUDNESS_LUFS,
    OUTPUT_RMS,
    OUTPUT_STRATEGIES,
    SILENT_PEAK,
    OutputStrategy,
    Samples,
    clipped_share,
    loudness_normalise,
    measure_loudness,
    normalise_output,
    output_gain,
    resample,
    sound_span,
    trim_silence,
)
from echotts.audio.reading import AUDIO_SUFFIXES, LONGEST_S, TooLong, open_recording, read_audio
from echotts.audio.writing import MP3_RATE_KBPS, check_mp3_rate, check_suffix, synthetic_tags, write_audio
