"""Log-probs of a chunk of logits at a time against all logits at once: values, gradients, text."""

import dataclasses
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from benchmarks import head_memory, roofline
from stair_jax import mesh as mesh_lib
from stair_jax import ops
from stair_jax.ops import chunked_logp
from tests.support.close import assert_sums_close, assert_trees_close

X, D, V = 88, 16, 56  # over 8 devices 11 positions each
MESHES = [(1, 8, 1), (1, 4, 2), (2, 2, 2)]


@dataclasses.dataclass
class Case:
    """Arguments, and what all logits at once make of them."""

    hidden: jax.Array
    head: jax.Array
    target: jax.Array
    wanted: jax.Array
    weight: jax.Array  # of each position in the sum that is differentiated
    vocab: int = V

    def loss(self, logp):
        return jnp.sum(logp * self.weight)

    def dense(self, hidden, head):
        logits = jnp.dot(hidden, head.astype(hidden.dtype).T, preferred_element_type=jnp.float32)
        logp = jax.nn.log_softmax(logits[:, : self.vocab], axis=-1)
        logp = logp[jnp.arange(len(logp)), self.target]
        return self.loss(jnp.where(self.wanted, logp, 0)), logp

    def chunked(self, chunk, hidden, head):
        logp, hit = ops.linear_logp(
            hidden, head, self.target, self.wanted, vocab=self.vocab, chunk=chunk
        )
        return self.loss(logp), (logp, hit)


def case(x=X, v=V, *, share=0.6, vocab=None, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    wanted = rng.random(x) < share
    wanted[: x // 8] = False  # a row without any, and on a mesh a device
    return Case(
        jnp.asarray(rng.normal(size=(x, D)), dtype),
        jnp.asarray(rng.normal(size=(v, D)) * 0.7),
        jnp.asarray(rng.integers(0, vocab or v, x)),
        jnp.asarray(wanted),
        jnp.asarray(rng.normal(size=x), jnp.float32),
        vocab or v,
    )


def grads_of(function, *args):
    """Returns ((value, rest), gradients) for the hidden states and the head."""
    return jax.jit(jax.value_and_grad(function, argnums=(0, 1), has_aux=True))(*args)


def assert_same(one, chunk, *placed):
    """The chunked value and gradients are the dense ones; returns the gradients."""
    args = one.hidden, one.head
    (want, logp), want_grads = grads_of(one.dense, *args)
    (got, (got_logp, _)), grads = grads_of(functools.partial(one.chunked, chunk), *(placed or args))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got_logp, np.where(one.wanted, logp, 0), rtol=1e-5, atol=1e-5)
    assert_trees_close(grads, want_grads)
    return grads


def place(mesh, x, *names):
    return jax.device_put(x, NamedSharding(mesh, mesh_lib.fit(names, x.shape, mesh)))


@pytest.mark.parametrize(
    ("x", "chunk", "share"),
    [
        (88, 16, 0.6),
        (89, 7, 0.6),
        (37, 1, 1.1),
        (700, 699, 0.4),
        (37, 1000, 0.6),
        (600, 600, 0.9),
        (3000, 4000, 0.9),
    ],
    ids=["chunks", "odd", "single", "one of two", "kept", "kept in pieces", "eighths"],
)
def test_chunked_equals_dense(x, chunk, share):
    one = case(x, share=share)
    plan = chunked_logp.plan(one.hidden, one.head, vocab=V, chunk=chunk)
    assert plan.keep == (x <= chunk)
    assert plan.chunk == {37: 37 if chunk > 1 else 1, 600: 256, 3000: 375}.get(x, chunk)
    assert_same(one, chunk)


@pytest.mark.parametrize("chunk", [5, 100])
def test_padding_of_the_vocabulary_has_no_probability_and_no_gradient(chunk):
    one = case(vocab=50)
    one.head = one.head.at[50:].set(30.0)
    counted = dataclasses.replace(one, vocab=V)
    assert abs(one.dense(one.hidden, one.head)[0] - counted.dense(one.hidden, one.head)[0]) > 1
    grads = assert_same(one, chunk)
    assert not np.asarray(grads[1][50:]).any()


@pytest.mark.parametrize("chunk", [5, 100])
def test_none_wanted_is_zero_with_gradients_of_zero(chunk):
    one = case(share=0.0)
    (value, (logp, hit)), grads = grads_of(
        functools.partial(one.chunked, chunk), one.hidden.at[3].set(jnp.inf), one.head
    )
    assert value == 0
    assert not np.asarray(logp).any()
    assert not np.asarray(hit).any()
    assert all((np.asarray(x) == 0).all() for x in grads)


@pytest.mark.parametrize("chunk", [9, 100])
def test_a_tied_heads_gradient_has_both_its_uses(chunk):
    one, inputs = case(), jnp.arange(X) % V
    hidden_of = lambda head: jnp.tanh(head[inputs] + one.hidden)  # noqa: E731
    body = functools.partial(one.chunked, chunk)
    want = jax.grad(lambda head: one.dense(hidden_of(head), head)[0])(one.head)
    got = jax.jit(jax.grad(lambda head: body(hidden_of(head), head)[0]))(one.head)
    untied = jax.jit(jax.grad(lambda head: body(hidden_of(one.head), head)[0]))(one.head)
    assert np.abs(got - untied).max() > 1e-2
    assert_sums_close(got, want)


@pytest.mark.parametrize("chunk", [16, 100])
def test_hits_are_the_largest_logits(chunk):
    one = case(vocab=50)
    one.head = one.head.at[50:].set(30.0)
    likeliest = np.asarray(one.hidden @ one.head.T)[:, :50].argmax(-1)
    one.target = jnp.asarray(np.where(np.arange(X) % 3, one.target, likeliest))
    hit = np.asarray(one.chunked(chunk, one.hidden, one.head)[1][1])
    assert 0 < hit.sum() < np.asarray(one.wanted).sum()
    np.testing.assert_array_equal(hit, one.wanted & (likeliest == one.target))


def test_bfloat16_states_leave_the_heads_gradient_in_float32():
    exact, one = case(4000, share=1.0), case(4000, share=1.0, dtype=jnp.bfloat16)
    want = grads_of(exact.dense, exact.hidden, exact.head)[1][1]
    errors = {}
    for chunk in (8, 4000):  # more chunks make it no worse, as a sum in bfloat16 would
        grads = grads_of(functools.partial(one.chunked, chunk), one.hidden, one.head)[1]
        assert [x.dtype for x in grads] == [jnp.bfloat16, jnp.float32]
        errors[chunk] = float(jnp.linalg.norm(grads[1] - want) / jnp.linalg.norm(want))
    assert min(errors.values()) > 1e-6
    # 3.6e-3 is the rounding of the states, alike on every CPU; sums in bfloat16 have 2.2e-2.
    assert max(errors.values()) < 1e-2, errors
    half = one.head.astype(jnp.bfloat16)
    assert grads_of(functools.partial(one.chunked, 8), one.hidden, half)[1][1].dtype == half.dtype


@pytest.mark.parametrize("shape", MESHES)
@pytest.mark.parametrize(("chunk", "vocab"), [(3, 50), (16, 27)])
def test_meshes_agree_with_one_device(shape, chunk, vocab):
    """With vocab 27 all tokens of the second device on the tensor axis are padding."""
    one, mesh = case(vocab=vocab), mesh_lib.make(shape)
    with jax.set_mesh(mesh):
        placed = place(mesh, one.hidden, "batch", None), place(mesh, one.head, "vocab", "embed")
        assert not placed[1].sharding.is_fully_replicated
        plan = chunked_logp.plan(*placed, vocab=vocab, chunk=chunk)
        assert plan.keep == (math.prod(shape[:2]) * chunk >= X)
        grads = assert_same(one, chunk, *placed)
    assert grads[1].sharding.is_equivalent_to(placed[1].sharding, 2)


@pytest.mark.parametrize(("x", "v", "d"), [(86, 56, 16), (88, 55, 16), (88, 56, 15), (7, 5, 3)])
def test_what_a_mesh_does_not_divide_is_replicated(x, v, d):
    one, mesh = case(x, v), mesh_lib.make((2, 2, 2))
    one.hidden, one.head = one.hidden[:, :d], one.head[:, :d]
    with jax.set_mesh(mesh):
        plan = chunked_logp.plan(one.hidden, one.head, vocab=v, chunk=4)
        assert (plan.rows != ("data", "fsdp")) + (plan.heads == ()) + (plan.widths == ()) >= 1
        assert_same(one, 4)


def test_a_chunk_or_vocabulary_out_of_range_is_refused():
    one = case()
    args = one.hidden, one.head, one.target, one.wanted
    with pytest.raises(ValueError, match="vocab 57, expected 1 to the 56 rows of the head"):
        ops.linear_logp(*args, vocab=57, chunk=4)
    with pytest.raises(ValueError, match="chunk 0, expected 1 or more"):
        ops.linear_logp(*args, vocab=V, chunk=0)


# What the compiled program holds

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
TEXT_X, TEXT_D, TEXT_V, TEXT_C = 8 * 60, 24, 1000, 16


@functools.cache
def text_of(shape, argnums=(0, 1), dtype="float32"):
    """The compiled text of value and gradient on 8 devices."""
    mesh = mesh_lib.make(shape)

    def like(size, dtype, *names):
        where = NamedSharding(mesh, mesh_lib.fit(names, size, mesh))
        return jax.ShapeDtypeStruct(size, dtype, sharding=where)

    def total(hidden, head, target, wanted):
        logp, _ = ops.linear_logp(hidden, head, target, wanted, vocab=TEXT_V, chunk=TEXT_C)
        return logp.sum()

    args = (
        like((TEXT_X, TEXT_D), jnp.dtype(dtype), "batch", None),
        like((TEXT_V, TEXT_D), jnp.float32, "vocab", "embed"),
        like((TEXT_X,), jnp.int32, "batch"),
        like((TEXT_X,), jnp.bool, "batch"),
    )
    with jax.set_mesh(mesh):
        program = jax.jit(jax.value_and_grad(total, argnums=argnums))
        return program.lower(*args).compile().as_text() or ""


def in_loops(text):
    """The text of all computations that a while loop runs, whatever they call included."""
    bodies = {}
    for block in re.split(r"\n(?=%|ENTRY)", text):
        if match := re.match(r"(?:ENTRY )?%?(\S+) \(", block):
            bodies[match[1]] = block
    calls = {n: set(re.findall(r"%([\w.\-]+)", b)) & set(bodies) - {n} for n, b in bodies.items()}
    seen, todo = set(), set(re.findall(r"(?:body|condition)=%?([\w.\-]+)", text))
    while todo:
        seen |= todo
        todo = set().union(*(calls[name] for name in todo)) - seen
    return "\n".join(bodies[name] for name in seen)


def moved(text, kind):
    """The elements of each array that collectives of a kind give back."""
    found = re.findall(rf"= (.*?) {kind}(?:-start)?\(", text)
    shapes = [s for line in found for s in re.findall(r"\w+\[([\d,]*)\]", line)]
    return [math.prod(map(int, s.split(","))) if s else 1 for s in shapes]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", MESHES)
def test_no_array_of_logits_is_larger_than_a_chunk(shape, dtype):
    text, columns = text_of(shape, dtype=dtype), TEXT_V // shape[2]
    shapes = [tuple(map(int, s.split(","))) for s in re.findall(r"f32\[(\d+(?:,\d+)*)\]", text)]
    sizes = [math.prod(s) // columns for s in shapes if columns in s]
    assert sizes.count(TEXT_C) > 2  # the logits themselves
    others = {size for size in sizes if size > TEXT_C}
    assert others == {TEXT_D}  # the head and its gradient
    assert max(math.prod(s) for s in shapes) == columns * TEXT_D


@pytest.mark.parametrize("shape", MESHES)
def test_the_head_is_moved_once_and_outside_the_loops(shape):
    text, whole = text_of(shape), TEXT_V // shape[2] * TEXT_D
    loops = in_loops(text)
    assert " dot(" in loops or "custom-call" in loops
    assert not [kind for kind in COLLECTIVES if f" {kind}" in loops]
    assert moved(text, "all-gather") == [whole]  # the backward pass takes that of the forward
    assert moved(text, "reduce-scatter") == [whole // shape[1]]
    summed = [n for n in moved(text, "all-reduce") if n >= whole // shape[1]]
    rows = TEXT_X // shape[0] // shape[1] * TEXT_D  # parts of the hidden states' gradient
    over_tensor, over_data = [rows] * (shape[2] > 1), [whole // shape[1]] * (shape[0] > 1)
    assert sorted(n for n in summed if n not in over_tensor) == over_data


def test_a_frozen_head_gets_no_gradient():
    trained, frozen = text_of((1, 4, 2)), text_of((1, 4, 2), argnums=(0,))
    gradient = rf"f32\[{TEXT_V // 2},{TEXT_D}\]\S* (?:add|fusion)\("
    assert moved(trained, "reduce-scatter")
    assert moved(trained, "all-gather") == moved(frozen, "all-gather")
    assert not moved(frozen, "reduce-scatter")
    assert re.search(gradient, in_loops(trained))
    assert not re.search(gradient, in_loops(frozen))


# The benchmark of its memory


def test_the_benchmark_measures_chunks_against_whole_logits():
    spec = dataclasses.replace(roofline.SPECS["miniature"], V=4000, vocab=4000)
    place = head_memory.Place(jax.devices()[0], "float32")
    chunked = functools.partial(head_memory.chunked, chunk=64)
    sides = (head_memory.log_softmax, head_memory.gathered, chunked)
    one, two, three = (head_memory.temporaries(side, place, spec, 2048) for side in sides)
    logits = 4 * 2048 * spec.V
    assert one >= two > logits > 5 * three > 5 * logits * 64 / 2048


def test_the_benchmarks_sides_agree():
    one = case()
    args = one.hidden, one.head, one.target, one.wanted
    want = head_memory.log_softmax(*args)
    np.testing.assert_allclose(head_memory.gathered(*args), want, rtol=1e-5)
    np.testing.assert_allclose(head_memory.chunked(*args, chunk=8), want, rtol=1e-5)


def test_the_benchmark_writes_its_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(head_memory, "gpus", lambda: {"a100": None})
    file = tmp_path / "head.json"
    options = ["--size", "miniature", "--rows", "2", "--length", "128", "--chunk", "32"]
    assert head_memory.main(["--out", str(file), *options]) == 0
    written = json.loads(file.read_text())
    assert written["load"] == {"size": "miniature", "rows": 2, "length": 128, "chunk": 32}
    assert [*written["claims"]] == ["share, cpu float32"]
    assert written["temporaries_bytes"]["a100 bfloat16"] is None
    assert re.search(r"a100 bfloat16 +no plugin", capsys.readouterr().out)
