"""The sampler: the golden trajectory, both kinds of guidance, the interval, and reuse of the compiled loop."""

import dataclasses
import itertools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from echotts.flow.sampling import (
    GUIDANCE_INTERVAL,
    SamplerConfig,
    Schedule,
    branch_conditions,
    encode_conditions,
    guided_velocity,
    sample,
)
from echotts.model import Conditions
from tests.blockdit_golden import Golden, assert_golden


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
        visible = 10.0 * conditions.text_mask.any(axis=1) + 100.0 * conditions.speaker_mask.any(axis=1)
        visible = jnp.pad(visible, (0, x.shape[0] - len(visible)))  # the last rows may go without conditions
        return self.own * x + (visible + t)[:, None, None]


def some_conditions(rows: int = 2) -> Conditions:
    keys = jnp.ones((1, rows, 3, 2, 4))
    return Conditions(keys, keys, keys, keys, jnp.ones((rows, 3), bool), jnp.ones((rows, 3), bool))


def numpy_euler(noise: Any, config: SamplerConfig) -> np.ndarray:
    """The expected result of `sample` with LinearVelocity(0.5), row by row."""
    x = np.asarray(noise, np.float64) * config.truncation
    grid = config.time_scale * np.linspace(1, 0, config.steps + 1)
    for t, after in itertools.pairwise(grid):
        low, high = config.guided
        velocity = 0.5 * x + 110 + t
        if low <= t <= high:
            # a branch lacks what it drops, so v_c - v_branch is just that
            for (text, speaker), scale in config.branches.items():
                velocity = velocity + scale * (10 * text + 100 * speaker)
        x = x - velocity * (t - after)
    return x


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("tiny_sampler")


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
