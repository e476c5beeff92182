"""Work read from the text of compiled programs."""

import pathlib

import jax
import jax.numpy as jnp
import pytest

from mpojax.training.aot import hlo

# A step as the TPU compiler writes it: a loop of 6 turns whose body slices a stack of matrices,
# multiplies (as a convolution), updates a stack in place, and gathers over groups of 4.
TPU = (pathlib.Path(__file__).parent / "step.hlo").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def work():
    return {work.name: work for work in hlo.Program(TPU).work()}


def test_operations_of_loops_count_as_often_as_they_run(work):
    product = work["fusion.1"]
    assert (product.times, product.flops) == (6, 2 * 64 * 256 * 128)
    assert product.cycles == 3000
    assert product.op_name.endswith("while/body/dot_general")


def test_of_slices_and_updates_in_place_only_the_slice_moves(work):
    # One matrix, the result, and the index; the activations are on the chip.
    assert work["fusion.1"].bytes == 2 * (256 * 128 + 64 * 128) + 4
    assert work["fusion.2"].bytes == 2 * 2 * 64 * 128 + 4  # the row is read and written


def test_collectives(work):
    gather, reduction = work["gather-start"], work["sum"]
    assert (gather.collective, gather.times, gather.group) == ("all-gather", 6, 4)
    assert gather.sent == 64 * 256 * 2
    # Rows of 24 are padded to the 128 lanes of a tile, 3 of them to 4.
    assert (reduction.collective, reduction.group, reduction.sent) == ("all-reduce", 2, 4 * 128 * 4)


def test_a_collective_over_all():
    head, _, rest = TPU.partition("\n")
    text = rest.replace("replica_groups=[2,4]<=[8]", "replica_groups={}")
    program = hlo.Program(f"{head}, num_partitions=8\n{text}")
    assert program.num_devices == 8
    assert {work.group for work in program.work() if work.collective == "all-gather"} == {8}


def test_kernels_of_attention_count_their_products():
    sizes = ["bf16[2,12,1024,64]{3,2,1,0}", "bf16[2,4,512,64]{3,2,1,0}"]
    lines = ["ENTRY %main (q: bf16[2,12,1024,64], k: bf16[2,4,512,64]) -> bf16[2,12,1024,64] {"]
    lines += ["  %m = s8[1,2,2]{2,1,0} constant(0)"]
    lines += [f"  %q = {sizes[0]} parameter(0)", f"  %k = {sizes[1]} parameter(1)"]
    call = "custom-call(%m, %m, %m, %q, %k)"
    lines += [f"  ROOT %splash_mha_dq_no_residuals.1 = {sizes[0]} {call}", "}"]
    (work,) = hlo.Program("\n".join(lines)).work()
    assert work.flops == 3 * 2 * 2 * 12 * 1024 * 512 * 64


def test_no_text_of_a_program():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.Program("HloModule nothing")


def test_a_loop_of_unknown_length_counts_once():
    unknown = TPU.replace('"known_trip_count":{"n":"6"}', "")
    program = hlo.Program(unknown)
    assert {work.times for work in program.work()} == {1}
    assert program.unknown_loops == 1
    counted = "%i.1 = s32[] get-tuple-element(%state.1), index=0\n  %n = s32[] constant(9)\n  "
    compared = "ROOT %less = pred[] compare(%i.1, %n), direction=LT"
    end = "ROOT %less = pred[]{:T(512)} constant(false)"
    program = hlo.Program(unknown.replace(end, counted + compared))
    assert {work.times for work in program.work()} == {1, 9}


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("f32[3,24]", 3 * 24 * 4),
        ("bf16[12,64,16,192]{3,2,1,0:T(8,128)(2,1)}", 12 * 64 * 16 * 256 * 2),
        ("bf16[12,64,16,192]{3,1,0,2:T(8,128)(2,1)S(1)}", 12 * 64 * 16 * 256 * 2),
        ("f8e4m3fn[100]{0:T(1024)}", 1024),
        ("pred[]{:T(512)}", 1),
        ("s4[7]", 3),
    ],
)
def test_bytes_of_layouts(text, num_bytes):
    line = f"  %x = {text} constant(0)"
    assert hlo._operation(line).num_bytes == num_bytes


def test_convolutions_with_windows():
    """An outer product of digits, as the TPU compiler writes it: every pair once."""
    program = (pathlib.Path(__file__).parent / "digits.hlo").read_text(encoding="utf-8")
    (work,) = hlo.Program(program).work()
    assert work.flops == 2 * (3 * 4) * 12 * (4 * 4 * 32)


def test_products_that_a_gpu_leaves_to_a_library():
    dimensions = '"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"]'
    config = (
        f'{{"gemm_backend_config":{{"alpha_real":1,"dot_dimension_numbers":{{{dimensions}}}}}}}'
    )
    call = (
        "  ROOT %gemm = (bf16[4,8,32]{2,1,0}, s8[4096]{0}) custom-call(%x, %w), "
        f'custom_call_target="__cublas$gemm", backend_config={config}'
    )
    lines = ["ENTRY %main (x: bf16[4,8,16], w: bf16[4,16,32]) -> bf16[4,8,32] {"]
    lines += ["  %x = bf16[4,8,16]{2,1,0} parameter(0)", "  %w = bf16[4,16,32]{2,1,0} parameter(1)"]
    (work,) = hlo.Program("\n".join([*lines, call, "}"])).work()
    assert work.flops == 2 * 4 * 8 * 16 * 32


def test_a_program_of_this_machine():
    def layers(x, w):
        return jax.lax.scan(lambda x, one: (x @ one, None), x, w)[0]

    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((32, 64), (6, 64, 64))]
    text = jax.jit(layers).lower(*arrays).compile().as_text()
    program = hlo.Program(text)
    work = program.work()
    assert sum(each.times * each.flops for each in work) == 6 * 2 * 32 * 64 * 64
    assert program.unknown_loops == 0
