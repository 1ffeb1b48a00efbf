"""The cost of a compiled TPU program, read from its text: a small one here, the real step in the tpu_compile lane."""
# ruff: noqa: E501 - lines of a program are as long as the compiler writes them

import dataclasses

import pytest

from echotts.config import demo
from echotts.training import cost, plan
from echotts.training.cost import estimate
from echotts.training.flops import CHIPS
from echotts.training.program import Program
from echotts.training.topology import parse_topology

V4 = CHIPS["v4"]
CYCLES_MS = V4.clock_hz / 1e3


def config_of(cycles_ms: float) -> str:
    return f'backend_config={{"estimated_cycles":"{round(cycles_ms * CYCLES_MS)}"}}'


def where(frame: int) -> str:
    return f'metadata={{op_name="jit(train_step)/while/body/dot_general" stack_frame_id={frame}}}'


PROGRAM = f"""HloModule jit_train_step, is_scheduled=true

FileNames
1 "/home/anyone/echotts/model/layers.py"
2 "/usr/lib/python3/flax/nnx.py"

FunctionNames
1 "Linear.__call__"
2 "scan_layers.<locals>.body"

FileLocations
1 {{file_name_id=1 function_name_id=1 line=42 end_line=42 column=1 end_column=2}}
2 {{file_name_id=2 function_name_id=2 line=7 end_line=7 column=1 end_column=2}}

StackFrames
1 {{file_location_id=1 parent_frame_id=1}}
2 {{file_location_id=2 parent_frame_id=2}}

%fused_product (p: bf16[64,64]) -> bf16[64,64] {{
  ROOT %convolution.1 = bf16[64,64]{{1,0:T(8,128)(2,1)}} convolution(%p, %p), dim_labels=bf_io->bf
}}

%scattered (p: bf16[64,64]) -> bf16[2,64] {{
  %all-reduce.1 = bf16[64,64]{{1,0}} all-reduce(%p), replica_groups=[1,32]<=[32], to_apply=%add
  ROOT %dynamic-slice.1 = bf16[2,64]{{1,0}} dynamic-slice(%all-reduce.1, %i)
}}

%bound (p: s32[]) -> pred[] {{
  %constant.1 = s32[] constant(24)
  ROOT %compare.1 = pred[] compare(%p, %constant.1), direction=LT
}}

%condition (p: (s32[], bf16[64,64])) -> pred[] {{
  ROOT %fusion.9 = pred[] fusion(%gte), kind=kLoop, calls=%bound
}}

%body (p: (s32[], bf16[64,64])) -> (s32[], bf16[64,64]) {{
  %all-gather-start.1 = (bf16[2,1000000]{{1,0}}, bf16[64,1000000]{{1,0:T(8,128)}}) all-gather-start(%p), replica_groups=mesh['axis_0'=32,'axis_1'=1] {{'axis_0'}}, dimensions={{0}}
  %fusion.1 = bf16[64,64]{{1,0}} fusion(%p), kind=kOutput, calls=%fused_product, {where(2)}, {config_of(0.5)}
  %all-gather-done.1 = bf16[64,1000000]{{1,0:T(8,128)}} all-gather-done(%all-gather-start.1)
  ROOT %copy.1 = bf16[64,64]{{0,1}} copy(%fusion.1), {config_of(0.25)}
}}

ENTRY %main (p: bf16[64,64]) -> bf16[64,64] {{
  %while.1 = (s32[], bf16[64,64]) while(%tuple.1), condition=%condition, body=%body
  %fusion.2 = bf16[2,64]{{1,0}} fusion(%while.1), kind=kCustom, calls=%scattered
  %kernel.1 = bf16[64,64]{{1,0}} custom-call(%while.1), custom_call_target="tpu_custom_call", operand_layout_constraints={{bf16[64,64]{{1,0}}}}, frontend_attributes={{kernel_metadata={{
"flops": "275000000000", "grid_steps": "1000"
}}}}, {where(1)}
  %kernel.2 = bf16[64,64]{{1,0}} custom-call(%while.1), custom_call_target="tpu_custom_call", operand_layout_constraints={{bf16[64,64]{{1,0}}}}, frontend_attributes={{kernel_metadata={{}}}}
  ROOT %fusion.3 = bf16[64,64]{{1,0}} fusion(%kernel.1), kind=kLoop, calls=%bound, {config_of(2)}
}}
"""


def test_cycles_are_added_up_along_the_calls_with_loops_as_often_as_they_run():
    found = estimate(PROGRAM, V4)
    assert found.products_s == pytest.approx(24 * 0.5e-3)
    assert found.copies_s == pytest.approx(24 * 0.25e-3)
    assert found.fusions_s == pytest.approx(2e-3)
    assert found.compute_s == pytest.approx(20e-3)


def test_kernels_are_priced_by_the_work_they_state_and_the_others_are_counted():
    found = estimate(PROGRAM, V4)
    assert found.kernels_s == pytest.approx(1e-3 / cost.KERNEL_SHARE + 1000 * cost.GRID_STEP_S)
    assert found.unknown_kernels == 1


def test_collectives_cost_their_bytes_minus_overlapping_computation():
    found = estimate(PROGRAM, V4)
    gathered, scattered = 128_000_000 * 31 // 32, 64 * 64 * 2 * 31 // 32
    assert found.collectives == {"all-gather": 24, "reduce-scatter": 1}
    assert found.collective_bytes == 24 * gathered + scattered
    assert found.collectives_s == pytest.approx(found.collective_bytes / 150e9)
    assert found.hidden_s == pytest.approx(24 * 0.5e-3)
    shown = found.compute_s + found.kernels_s + found.collectives_s - found.hidden_s
    assert found.step_s == pytest.approx(shown)


def test_operations_name_the_innermost_line_of_this_package():
    costliest = estimate(PROGRAM, V4).operations
    product = next(one for one in costliest if one.kind == "product")
    assert (product.source, product.runs) == ("model/layers.py:42 Linear.__call__", 24)
    assert costliest == sorted(costliest, key=lambda one: -one.seconds)


@pytest.mark.parametrize(
    ("groups", "ways"),
    [
        ("replica_groups=[8,4]<=[32]", 4),
        ("replica_groups={{0,1},{2,3}}", 2),
        ("replica_groups=mesh['a'=4,'b'=8] {'a','b'}", 32),
        ("replica_groups=mesh['a'=16,'b'=1,'c'=2], device_ids=([2,16]T(1,0)) {'a'}", 16),
    ],
)
def test_groups_of_chips_are_read_in_each_notation(groups, ways):
    text = PROGRAM.replace("replica_groups=[1,32]<=[32]", groups)
    line = next(line for line in Program(text).computations["scattered"] if line.opcode == "all-reduce")
    assert cost._group(line.rest) == ways


def test_groups_of_chips_in_an_unknown_notation_are_an_error_and_not_a_collective_for_free():
    with pytest.raises(ValueError, match=r"replica_groups=@torus.*unknown"):
        estimate(PROGRAM.replace("replica_groups=[1,32]<=[32]", "replica_groups=@torus"), V4)


def test_a_step_is_turned_into_utilisation_hours_and_a_price():
    config = demo()
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, remat="full"),
        optim=dataclasses.replace(config.optim, steps=3600),
    )
    slice_, bucket = parse_topology("v4-8"), config.data.buckets[0]
    step = estimate(PROGRAM, V4)
    found = plan.step_time(config, slice_, bucket, step, chip_hour_price=2.0)
    by_formula = plan.plan_bucket(config, slice_, bucket)
    assert found.mfu_share == pytest.approx(by_formula.step_flops / (4 * 275e12 * step.step_s))
    assert found.hfu_share == pytest.approx(found.mfu_share * 4 / 3)  # the forward pass once more
    assert found.run_hours == pytest.approx(step.step_s)
    assert found.run_price == pytest.approx(4 * 2.0 * step.step_s)
    assert found.step_price == pytest.approx(4 * 2.0 * step.step_s / 3600)
    assert len(found.to_dict()["cost"]["operations"]) <= cost.COSTLIEST
