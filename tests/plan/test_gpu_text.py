"""The checks of compiled text, each on a text that is well and on one that is not."""

import pytest

from stair_jax.plan import gpu_text

# As XLA prints programs for GPUs, cut to what the checks read.
STEP = """\
HloModule jit__step, is_scheduled=true

%gemm (p.0: bf16[64,32], p.1: bf16[64,48]) -> f32[32,48] {{
  %p.0 = bf16[64,32]{{1,0}} parameter(0)
  %p.1 = bf16[64,48]{{1,0}} parameter(1)
  %a.1 = {inside}[64,32]{{1,0}} convert(%p.0)
  %b.1 = {inside}[64,48]{{1,0}} convert(%p.1)
  ROOT %dot.1 = f32[32,48]{{1,0}} dot(%a.1, %b.1), lhs_contracting_dims={{0}}, rhs_contracting_dims={{0}}, metadata={{op_name="jit(_step)/while/body/{where}/dot_general"}}
}}

ENTRY %main.2 (x.1: bf16[64,32], w.1: {left}[32,48]) -> f32[32,48] {{
  %x.1 = bf16[64,32]{{1,0}} parameter(0)
  %w.1 = {left}[32,48]{{1,0:S(0)}} parameter(1)
  %f.1 = (f32[64,32]{{1,0}}, s8[4194304]{{0}}) fusion(%x.1), kind=kLoop, calls=%other
  %y.1 = f32[64,32]{{1,0}} get-tuple-element(%f.1), index=0
  %custom-call.1 = (f32[64,48]{{1,0}}, s8[4194304]{{0}}) custom-call(%y.1, %w.1), custom_call_target="__cublas$lt$matmul", metadata={{op_name="jit(_step)/jvp(Decoder)/layers/layers.project/dot_general"}}
  %z.1 = f32[64,48]{{1,0}} get-tuple-element(%custom-call.1), index=0
  ROOT %fusion.2 = f32[32,48]{{1,0}} fusion(%x.1, %z.1), kind=kCustom, calls=%gemm
}}
"""  # noqa: E501


def step(*, left="bf16", inside="bf16", where="layers"):
    return gpu_text.parse(STEP.format(left=left, inside=inside, where=where))


def test_a_product_of_float32_by_float32_is_found_in_libraries_and_inside_fusions():
    assert gpu_text.float32_products(step()) == []
    assert gpu_text.float32_products(step(left="f32")) == ["f32[64,32] x f32[32,48]"]
    inside = step(inside="f32")
    assert gpu_text.float32_products(inside) == ["f32[64,32] x f32[64,48]"]
    assert len(gpu_text.products(inside)) == 2


def test_products_outside_the_layers_may_be_float32():
    program = step(inside="f32", where="reward.scores")
    assert gpu_text.float32_products(program) == []
    assert [p.of_a_layer for p in gpu_text.products(program)] == [False, True]


DECODE = """\
HloModule jit_decode_chunk

%joined (a: bf16[1024,512], b: bf16[1024,512]) -> bf16[1024,1024] {{
  %a = bf16[1024,512]{{1,0}} parameter(0)
  %b = bf16[1024,512]{{1,0}} parameter(1)
  ROOT %c = bf16[1024,1024]{{1,0}} concatenate(%a, %b), dimensions={{1}}
}}

%rows (a: bf16[1024,512], i: s32[1024]) -> bf16[1024,512] {{
  %a = bf16[1024,512]{{1,0}} parameter(0)
  %i = s32[1024]{{0}} parameter(1)
  ROOT %g = bf16[1024,512]{{1,0}} gather(%a, %i), offset_dims={{1}}
}}

%silu (h: bf16[1024,1024]) -> bf16[1024,1024] {{
  %h = bf16[1024,1024]{{1,0}} parameter(0)
  ROOT %s = bf16[1024,1024]{{1,0}} multiply(%h, %h)
}}

%body (t: (s32[], bf16[1024,512], bf16[1024,512], bf16[2,64,8,16,128])) -> (s32[], bf16[1024,512], bf16[1024,512], bf16[2,64,8,16,128]) {{
  %t = (s32[], bf16[1024,512]{{1,0}}, bf16[1024,512]{{1,0}}, /*index=3*/bf16[2,64,8,16,128]{{4,3,2,1,0}}) parameter(0)
  %n = s32[] get-tuple-element(%t), index=0
  %wq = bf16[1024,512]{{1,0}} get-tuple-element(%t), index=1
  %wk = bf16[1024,512]{{1,0}} get-tuple-element(%t), index=2
  %pool = bf16[2,64,8,16,128]{{4,3,2,1,0}} get-tuple-element(%t), index=3
  %ids = s32[1024]{{0}} iota(), iota_dimension=0
  %x = bf16[1024,512]{{1,0}} fusion(%wq, %ids), kind=kLoop, calls=%rows
  %view = bf16[512,1024]{{0,1}} bitcast(%wk)
  %q = (bf16[1024,1024]{{1,0}}, s8[4194304]{{0}}) custom-call(%x, %view), custom_call_target="__cublas$lt$matmul"
  %h = bf16[1024,1024]{{1,0}} get-tuple-element(%q), index=0
  %act = bf16[1024,1024]{{1,0}} fusion(%h), kind=kLoop, calls=%silu
  {line}
  %new = bf16[2,64,8,16,128]{{4,3,2,1,0}} scatter(%pool, %ids, %act), to_apply=%silu
  ROOT %out = (s32[], bf16[1024,512]{{1,0}}, bf16[1024,512]{{1,0}}, bf16[2,64,8,16,128]{{4,3,2,1,0}}) tuple(%n, %wq, %wk, %new)
}}

%go (t.1: (s32[], bf16[1024,512], bf16[1024,512], bf16[2,64,8,16,128])) -> pred[] {{
  %t.1 = (s32[], bf16[1024,512]{{1,0}}, bf16[1024,512]{{1,0}}, bf16[2,64,8,16,128]{{4,3,2,1,0}}) parameter(0)
  ROOT %p = pred[] constant(true)
}}

ENTRY %main (q.1: bf16[1024,512], k.1: bf16[1024,512], pool.1: bf16[2,64,8,16,128]) -> (s32[], bf16[1024,512], bf16[1024,512], bf16[2,64,8,16,128]) {{
  %q.1 = bf16[1024,512]{{1,0}} parameter(0)
  %k.1 = bf16[1024,512]{{1,0}} parameter(1)
  %pool.1 = bf16[2,64,8,16,128]{{4,3,2,1,0}} parameter(2)
  %zero = s32[] constant(0)
  %start = (s32[], bf16[1024,512]{{1,0}}, bf16[1024,512]{{1,0}}, bf16[2,64,8,16,128]{{4,3,2,1,0}}) tuple(%zero, %q.1, %k.1, %pool.1)
  ROOT %while.1 = (s32[], bf16[1024,512]{{1,0}}, bf16[1024,512]{{1,0}}, bf16[2,64,8,16,128]{{4,3,2,1,0}}) while(%start), condition=%go, body=%body
}}
"""  # noqa: E501
POOL = "bf16[2,64,8,16,128]{4,3,2,1,0}"
WRITING = {
    "join": "%w = bf16[1024,1024]{1,0} fusion(%wq, %wk), kind=kLoop, calls=%joined",
    "copy": "%w = bf16[1024,512]{0,1} copy(%wq)",
    "transpose of a view": "%w = bf16[1024,512]{1,0} transpose(%view), dimensions={1,0}",
    "slice of the pool": "%w = bf16[1,64,8,16,128]{4,3,2,1,0} slice(%pool), slice={[0:1]}",
    "copy of the pool": f"%w = {POOL} copy(%pool)",
    "in float32": "%w = f32[1024,512]{1,0} convert(%wq)",
}
HARMLESS = {
    "nothing": "",
    "a small slice": "%w = bf16[8,512]{1,0} slice(%wq), slice={[0:8], [0:512]}",
    "a copy of activations": "%w = bf16[1024,1024]{0,1} copy(%act)",
    "a sum of activations": "%w = bf16[1024,512]{1,0} all-reduce(%x), to_apply=%silu",
}


@pytest.mark.parametrize("line", WRITING.values(), ids=WRITING)
def test_a_weight_that_is_written_in_a_step_is_found(line):
    [found] = gpu_text.written(gpu_text.parse(DECODE.format(line=line)))
    assert found.split()[0] in line


@pytest.mark.parametrize("line", HARMLESS.values(), ids=HARMLESS)
def test_products_rows_changes_in_place_and_activations_write_no_weight(line):
    program = gpu_text.parse(DECODE.format(line=line))
    assert gpu_text.written(program) == []
    assert gpu_text.moved(program) == []


@pytest.mark.parametrize("what", ["wq", "pool", "view"])
@pytest.mark.parametrize("end", ["", "-start"])
def test_a_collective_of_a_weight_or_of_the_pool_is_found(what, end):
    line = f"%w = bf16[8192,512]{{1,0}} all-gather{end}(%{what}), dimensions={{0}}"
    program = gpu_text.parse(DECODE.format(line=line))
    [found] = gpu_text.moved(program)
    assert found.startswith(f"all-gather{end} bf16[8192,512]")
    assert gpu_text.written(program) == []


LAYER = """\
HloModule jit__step

%layer (t: (f32[512,1024], bf16[64,1024])) -> (f32[512,1024], bf16[64,1024]) {{
  %t = (f32[512,1024]{{1,0}}, bf16[64,1024]{{1,0}}) parameter(0)
  %w = bf16[512,1024]{{1,0}} get-tuple-element(%t), index=0
  %x = bf16[64,1024]{{1,0}} get-tuple-element(%t), index=1
{lines}
  ROOT %out = (f32[512,1024]{{1,0}}, bf16[64,1024]{{1,0}}) tuple(%w, %x)
}}

%pass (t.2: (f32[512,1024], bf16[64,1024])) -> (f32[512,1024], bf16[64,1024]) {{
  %t.2 = (f32[512,1024]{{1,0}}, bf16[64,1024]{{1,0}}) parameter(0)
  %w = bf16[512,1024]{{1,0}} get-tuple-element(%t.2), index=0
  %first = bf16[4096,1024]{{1,0}} all-gather(%w), metadata={{op_name="jit(_step)/layers/reshape"}}
  ROOT %l = (f32[512,1024]{{1,0}}, bf16[64,1024]{{1,0}}) while(%t.2), condition=%go, body=%layer
}}

ENTRY %main (t.1: (f32[512,1024], bf16[64,1024])) -> f32[512,1024] {{
  %t.1 = (f32[512,1024]{{1,0}}, bf16[64,1024]{{1,0}}) parameter(0)
  ROOT %m = (f32[512,1024]{{1,0}}, bf16[64,1024]{{1,0}}) while(%t.1), condition=%go, body=%pass
}}
"""
WHERE = 'metadata={op_name="jit(_step)/Decoder._scanned/while/body/layers/reshape"}'
START = f"  %s = ((bf16[512,1024]{{1,0}}), bf16[4096,1024]{{1,0}}) all-gather-start(%w), {WHERE}"
DONE = f"  %d = bf16[4096,1024]{{1,0}} all-gather-done(%s), {WHERE}"
WORK = "  %f = bf16[64,1024]{1,0} fusion(%x), kind=kLoop, calls=%silu"


def gathered(*lines):
    [found] = gpu_text.gathers(gpu_text.parse(LAYER.format(lines="\n".join(lines))))
    return found


def test_a_gather_is_apart_where_the_gpu_works_while_it_runs():
    apart = gathered(START, WORK, "  %v = bf16[1024,64]{0,1} bitcast(%f)", DONE)
    assert apart.between == 1
    assert apart.apart
    assert apart.bytes == 8 * 2**20


WAITING = {
    "one instruction": (WORK, f"  %s = bf16[4096,1024]{{1,0}} all-gather(%w), {WHERE}"),
    "nothing between": (WORK, START, DONE),
    "a view between": (WORK, START, "  %v = bf16[1024,64]{0,1} bitcast(%x)", DONE),
    "said to be synchronous": (
        f'{START}, backend_config={{"collective_backend_config":{{"is_sync":true}}}}',
        WORK,
        DONE,
    ),
    "a reduce-scatter": (WORK, f"  %s = f32[512,1024]{{1,0}} reduce-scatter(%w), {WHERE}"),
}


@pytest.mark.parametrize("lines", WAITING.values(), ids=WAITING)
def test_a_gather_that_the_gpu_waits_for_is_not(lines):
    assert not gathered(*lines).apart


def test_the_share_that_is_waited_for_goes_by_the_bytes_moved():
    large = gathered(START, WORK, DONE)
    small = gathered(f"  %s = f32[256,1024]{{1,0}} reduce-scatter(%w), {WHERE}")
    assert (large.bytes, small.bytes) == (8 * 2**20, 2**20)
    assert gpu_text.waiting([large, small]) == 1 / 9
    assert gpu_text.waiting([]) == 0


def test_small_gathers_and_those_outside_the_layers_do_not_count():
    small = f"  %s = bf16[512,16]{{1,0}} all-gather(%w), {WHERE}"
    head = '  %s = bf16[4096,1024]{1,0} all-gather(%w), metadata={op_name="jit(_step)/head"}'
    for line in (small, head):
        lines = f"{WORK}, {WHERE}\n{line}"
        assert gpu_text.gathers(gpu_text.parse(LAYER.format(lines=lines))) == []


def test_a_text_that_is_no_compiled_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        gpu_text.parse("module @jit__step {\n  func.func public @main() {\n  }\n}\n")


DRAW = """\
ENTRY %main.4 (x.1: f32[8,1000], t.1: f32[8]) -> s32[8] {{
  %x.1 = f32[8,1000]{{1,0}} parameter(0)
  %t.1 = f32[8]{{0}} parameter(1)
  %largest.1 = f32[8,10]{{1,0}} fusion(%x.1), kind=kInput, calls=%fused_reduce
  %scaled.1 = {scaled}{{1,0}} fusion(%x.1, %t.1), kind=kLoop, calls=%fused_divide
  %both.1 = (f32[8,1000]{{1,0}}, f32[8,10]{{1,0}}) tuple(%x.1, %largest.1)
  ROOT %cond.1 = s32[8]{{0}} conditional(%t.1, %both.1, %scaled.1), branch_computations={{%a, %b}}
}}
"""


def test_readings_of_all_logits_are_counted_but_not_what_hands_them_on():
    size = 4 * 8 * 1000
    small = gpu_text.parse(DRAW.format(scaled="f32[8]"))
    assert gpu_text.passes(small, size) == ["largest.1", "scaled.1"]
    assert gpu_text.passes(small, size + 1) == []
    elsewhere = DRAW.format(scaled="f32[8,1000]").replace("fusion(%x.1, %t.1)", "fusion(%t.1)")
    assert gpu_text.passes(gpu_text.parse(elsewhere), size) == ["largest.1", "scaled.1"]  # writes
    without = DRAW.format(scaled="f32[8]").replace("fusion(%x.1, %t.1)", "fusion(%t.1)")
    assert gpu_text.passes(gpu_text.parse(without), size) == ["largest.1"]


MOVING = """
HloModule jit_step, is_scheduled=true

%body (p: (f32[8])) -> (f32[8]) {
  %p = (f32[8]{0}) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=0
  %g = f32[64]{0} all-gather(%x), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %start = (f32[64]{0}, f32[8]{0}) reduce-scatter-start(%g), dimensions={0}
  %y = f32[8]{0} reduce-scatter-done(%start)
  ROOT %t = (f32[8]{0}) tuple(%y)
}

%cond (p: (f32[8])) -> pred[] {
  %p = (f32[8]{0}) parameter(0)
  ROOT %c = pred[] constant(true)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %all = f32[8]{0} all-reduce(%a), to_apply=%sum
  %in = (f32[8]{0}) tuple(%all)
  %w = (f32[8]{0}) while(%in), condition=%cond, body=%body, NOTE={"known_trip_count":{"n":"5"}}
  ROOT %out = f32[8]{0} get-tuple-element(%w), index=0
}
"""


def test_collectives_count_as_often_as_their_loop_runs():
    found = gpu_text.traffic(gpu_text.parse(MOVING))
    assert [(t.op, t.count, t.bytes) for t in found] == [
        ("all-gather", 5, 5 * 256),
        ("all-reduce", 1, 32),
        ("reduce-scatter", 5, 5 * 256),
    ]
    once = gpu_text.traffic(gpu_text.parse(MOVING.replace("known_trip_count", "other")))
    assert [t.count for t in once] == [1, 1, 1]
