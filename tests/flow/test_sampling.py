"""The sampler: the golden trajectory, both kinds of guidance, the interval, and reuse of the compiled loop."""

import dataclasses
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from echotts.flow.grids import EPSS, time_grid
from echotts.flow.options import GUIDANCE_INTERVAL, PRESETS, SamplerConfig, sampler_config
from echotts.flow.sampling import Schedule, branch_conditions, encode_conditions, guided_velocity, sample
from echotts.model import Conditions
from tests.blockdit_golden import Golden, assert_golden
from tests.compiling import as_users_compile


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LinearVelocity:
    """A simple velocity: 10 for visible text, 100 for a visible speaker, t, and x itself."""

    own: Any
    traces: ClassVar[list[int]] = []  # rows of every traced call

    def modulate(self, t: Any) -> Any:
        return t[None]

    def velocity(self, x: Any, modulation: Any, conditions: Conditions) -> Any:
        (t,) = modulation
        LinearVelocity.traces.append(x.shape[0])
        heard = (
            conditions.speaker_keys[0, :, 0, 0, 0] * conditions.speaker_values[0, :, 0, 0, 0]
        )  # both scaled: squared
        visible = 10.0 * conditions.text_mask.any(axis=1) + 100.0 * jnp.sqrt(heard) * conditions.speaker_mask.any(
            axis=1
        )
        visible = jnp.pad(visible, (0, x.shape[0] - len(visible)))  # the last rows may go without conditions
        return self.own * x + (visible + t)[:, None, None]


def some_conditions(rows: int = 2) -> Conditions:
    keys = jnp.ones((1, rows, 3, 2, 4))
    return Conditions(keys, keys, keys, keys, jnp.ones((rows, 3), bool), jnp.ones((rows, 3), bool))


def numpy_euler(noise: Any, config: SamplerConfig) -> np.ndarray:
    """The expected result of `sample` with LinearVelocity(0.5), row by row, in float64."""
    x = np.asarray(noise, np.float64) * config.truncation
    low, high = config.guided
    before, width = np.zeros_like(x), None
    for i, (t, after) in enumerate(itertools.pairwise(config.times.astype(np.float64))):
        speaker = 100 * (config.speaker_kv_scale if t >= config.speaker_kv_until - 1e-6 else 1.0)
        velocity = 0.5 * x + 10 + speaker + t
        if low - 1e-6 <= t <= high + 1e-6:
            branches = list(config.branches.items())
            # a branch lacks what it drops, so v_c - v_branch is just that
            for (no_text, no_speaker), scale in [branches[i % len(branches)]] if config.alternating else branches:
                velocity = velocity + scale * (10 * no_text + speaker * no_speaker)
        if config.rescale and t < 1:
            (k, s), snr = config.rescale, (1 - t) ** 2 / t**2
            ratio = (snr * s**2 + 1) / (snr * s**2 / k + 1)
            velocity = (ratio * ((1 - t) * velocity + x) - x) / (1 - t)
        step = velocity
        if config.solver == "ab2" and width is not None:
            step = velocity + (t - after) / (2 * width) * (velocity - before)
        x, before, width = x - step * (t - after), velocity, t - after
    return x


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("tiny_sampler")


@as_users_compile()
def test_four_steps_equal_the_golden_trajectory(golden: Golden):
    config = SamplerConfig(steps=golden.meta["steps"], cfg_scale=golden.meta["cfg_scale"])
    model, schedule = golden.model(), jax.tree.map(jnp.asarray, Schedule.of(config))
    conditions = encode_conditions(model, *golden.conditions())

    @jax.jit
    def step(model: Any, x: Any, i: Any) -> Any:
        branched = branch_conditions(conditions, tuple(config.branches))
        t, after = schedule.times[i], schedule.times[i + 1]
        velocity = guided_velocity(model, x, model.modulate(t[None]), branched, jnp.asarray(schedule.scales))
        return x - velocity * (t - after)

    x = golden["in_noise"]
    for i, expected in enumerate(golden["out_trajectory"]):
        assert float(schedule.times[i]) == float(golden["t_schedule"][i])
        x = step(model, x, jnp.int32(i))
        assert_golden(x, expected)
    assert_golden(sample(model, conditions, golden["in_noise"], config), golden["out_latent"])


CONFIGS = {
    "joint": SamplerConfig(steps=5, cfg_scale=2.0),
    "joint within an interval": SamplerConfig(steps=8, cfg_scale=2.0, interval=(0.3, 0.8)),
    "independent": SamplerConfig(steps=8, text_scale=3.0, speaker_scale=0.5),
    "text only, factors": SamplerConfig(steps=4, text_scale=3.0, time_scale=0.999, truncation=0.8),
    "none": SamplerConfig(steps=3, cfg_scale=0.0),
    "second order": SamplerConfig(steps=6, cfg_scale=2.0, solver="ab2"),
    "second order on uneven steps": SamplerConfig(steps=7, cfg_scale=2.0, solver="ab2", grid="epss", sway=-1.0),
    "sway": SamplerConfig(steps=8, sway=-1.0, interval=(0.3, 0.8)),
    "epss": SamplerConfig(steps=5, grid="epss", time_scale=0.999),
    "alternating": SamplerConfig(steps=7, text_scale=3.0, speaker_scale=0.5, alternating=True, interval=(0.2, 1.0)),
    "alternating between one": SamplerConfig(steps=4, text_scale=3.0, alternating=True),
    "rescaled": SamplerConfig(steps=8, cfg_scale=0.5, rescale=(1.2, 3.0)),
    "speaker scaled": SamplerConfig(steps=16, text_scale=1.0, speaker_scale=2.0, speaker_kv_scale=1.5),
    "everything": SamplerConfig(
        steps=12,
        text_scale=1.0,
        speaker_scale=2.0,
        alternating=True,
        solver="ab2",
        grid="epss",
        sway=-0.5,
        time_scale=0.999,
        truncation=0.9,
        rescale=(1.2, 3.0),
        speaker_kv_scale=1.5,
        speaker_kv_until=0.6,
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_guidance_adds_what_each_branch_lacks_within_its_interval(name: str):
    noise = jax.random.normal(jax.random.key(0), (2, 4, 3))
    actual = sample(LinearVelocity(jnp.float32(0.5)), some_conditions(), noise, CONFIGS[name])
    np.testing.assert_allclose(actual, numpy_euler(noise, CONFIGS[name]), rtol=1e-4)


def test_one_compiled_loop_serves_all_numbers_of_a_bucket():
    noise, model = jnp.ones((2, 7, 3)), LinearVelocity(jnp.float32(0.5))
    sample(model, some_conditions(), noise, SamplerConfig(steps=4))
    traced = len(LinearVelocity.traces)
    assert sorted(LinearVelocity.traces[-2:]) == [2, 4]  # one row per sample outside the interval, two within
    for config in (
        SamplerConfig(steps=9, cfg_scale=1.5),
        SamplerConfig(steps=6, interval=GUIDANCE_INTERVAL, time_scale=0.999, truncation=0.8),
    ):
        actual = sample(LinearVelocity(jnp.float32(0.5)), some_conditions(), noise + 1, config)
        np.testing.assert_allclose(actual, numpy_euler(noise + 1, config), rtol=1e-4)
    assert len(LinearVelocity.traces) == traced
    sample(model, some_conditions(), jnp.ones((2, 8, 3)), SamplerConfig(steps=4))
    assert len(LinearVelocity.traces) > traced  # another bucket is another compilation


def test_the_next_32_steps_are_another_loop_and_as_exact():
    noise, model = jnp.ones((2, 7, 3)), LinearVelocity(jnp.float32(0.5))
    for config in (SamplerConfig(steps=32), SamplerConfig(steps=33, interval=GUIDANCE_INTERVAL)):
        np.testing.assert_allclose(
            sample(model, some_conditions(), noise, config), numpy_euler(noise, config), rtol=1e-4
        )


def test_steps_outside_the_interval_never_run_the_guidance_branches():
    """Branches that would poison the result with NaN must not be run there."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Poisoned:
        unused: Any

        def modulate(self, t: Any) -> Any:
            return t[None]

        def velocity(self, x: Any, modulation: Any, conditions: Conditions) -> Any:
            return x * (1.0 if x.shape[0] == 2 else jnp.nan)

    outside = SamplerConfig(steps=4, interval=(0.9, 0.95))  # no step of the grid 1, 0.75, 0.5, 0.25
    assert outside.guided_steps == (0, 0)
    assert np.isfinite(sample(Poisoned(jnp.zeros(())), some_conditions(), jnp.ones((2, 4, 3)), outside)).all()


def test_the_interval_includes_both_its_ends():
    assert SamplerConfig(steps=32, interval=(0.5, 1.0)).guided_steps == (0, 17)
    assert SamplerConfig(steps=10, interval=(0.3, 0.7)).guided_steps == (3, 8)
    assert SamplerConfig(steps=32).guided_steps == (0, 32)
    assert SamplerConfig(text_scale=3.0).guided == GUIDANCE_INTERVAL


def test_a_dropped_condition_is_only_a_mask():
    conditions = some_conditions()
    branched = branch_conditions(conditions, ((True, False), (False, True)))
    np.testing.assert_array_equal(branched.text_mask.any(axis=1), [True, True, False, False, True, True])
    np.testing.assert_array_equal(branched.speaker_mask.any(axis=1), [True, True, True, True, False, False])
    assert branched.text_keys.shape == (1, 6, 3, 2, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps 0"),
        ({"steps": 1025}, "1 to 1,024"),
        ({"interval": (0.8, 0.2)}, "0.8..0.2"),
        ({"time_scale": 1.5}, "time_scale 1.5"),
        ({"cfg_scale": float("nan")}, "finite"),
    ],
)
def test_a_wrong_sampler_setting_is_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        SamplerConfig(**arguments)


def test_grids_run_from_noise_to_data_and_sway_spends_its_steps_near_the_noise():
    for steps in EPSS:
        for sway in (0.0, -1.0, 0.5):
            times = time_grid(steps, "epss", sway)
            assert (times[0], times[-1], len(times)) == (1.0, 0.0, steps + 1)
            assert (np.diff(times) < 0).all()
    # F5-TTS in its own time, s = 1 - t: s + c (cos(pi s / 2) - 1 + s)
    s = np.linspace(0, 1, 9)
    np.testing.assert_allclose(1 - time_grid(8, sway=-1.0), s - (np.cos(np.pi / 2 * s) - 1 + s), atol=1e-6)
    assert time_grid(8, sway=-1.0)[4] > 0.5
    with pytest.raises(ValueError, match="the epss grid knows 5, 6, 7, 10, 12, 16 steps, not 8"):
        SamplerConfig(steps=8, grid="epss")


def test_the_second_order_method_is_nearer_to_the_exact_flow():
    noise = jnp.ones((2, 4, 3))

    def error(config: SamplerConfig) -> float:
        exact = numpy_euler(noise, SamplerConfig(steps=1024, cfg_scale=0.0))
        return float(np.abs(sample(LinearVelocity(jnp.float32(0.5)), some_conditions(), noise, config) - exact).max())

    euler, second = (error(SamplerConfig(steps=16, cfg_scale=0.0, solver=solver)) for solver in ("euler", "ab2"))
    assert second < euler / 5


def test_scaling_the_speaker_is_undone_exactly():
    """Steps after the border see the cached keys themselves, bit for bit: nothing is multiplied and divided again."""
    noise, model = jnp.ones((2, 4, 3)), LinearVelocity(jnp.float32(0.5))
    never = SamplerConfig(steps=4, cfg_scale=0.0, speaker_kv_scale=1.7, speaker_kv_until=1.0, time_scale=0.5)
    plain = SamplerConfig(steps=4, cfg_scale=0.0, time_scale=0.5)
    np.testing.assert_array_equal(
        sample(model, some_conditions(), noise, never), sample(model, some_conditions(), noise, plain)
    )


def test_presets_are_typed_and_take_other_values_for_some_of_their_fields():
    assert all(isinstance(config, SamplerConfig) for config in PRESETS.values())
    assert sampler_config() == sampler_config("quality", steps=None) == SamplerConfig()
    flat = sampler_config("echo-high-speaker-cfg-flat", guidance_interval=(0.2, 1.0))
    assert (flat.text_scale, flat.speaker_scale, flat.rescale, flat.interval) == (3.0, 8.0, (1.2, 3.0), (0.2, 1.0))
    assert sampler_config("echo-high-cfg", cfg_scale=2.0).branches == {(True, True): 2.0}
    with pytest.raises(ValueError, match=r"preset 'Quality': choose one of draft, .*echo-high-cfg"):
        sampler_config("Quality")
    with pytest.raises(ValueError, match="sampler option 'stepz': known are steps, "):
        sampler_config(stepz=3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sway": 2.0}, "sway 2.0"),
        ({"rescale": (0.0, 3.0)}, "rescale"),
        ({"solver": "heun"}, "solver"),
        ({"cfg_scale": 0.0, "alternating": True}, "needs a guidance scale"),
        ({"speaker_kv_layers": 0}, "speaker_kv_layers"),
        ({"speaker_kv_scale": float("nan")}, "finite"),
    ],
)
def test_odd_options_are_one_line(options: dict[str, Any], words: str):
    with pytest.raises((ValueError, TypeError), match=words):  # types are checked by the tests' own import hook
        SamplerConfig(**options)
