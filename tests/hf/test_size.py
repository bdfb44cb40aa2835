"""Import onto meshes and streaming export: placement, memory, bytes."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import transformers
from jax.sharding import NamedSharding, PartitionSpec

from stair_jax import mesh as mesh_lib
from stair_jax.hf import exporter, importer, metadata, names, tags
from stair_jax.model import transformer
from stair_jax.run import hashes
from tests.support.hf_folders import TINY, edit_tensors, load, make_tokenizer, save, weights


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "model")


def on_a_mesh(spec, shape):
    """Returns the shardings of a model's parameters over eight devices."""
    draw = functools.partial(transformer.init, spec)
    shapes = jax.eval_shape(draw, jax.random.key(0))
    return mesh_lib.shardings(transformer.logical_axes(spec), mesh_lib.make(shape), shapes)


WIDE = dataclasses.replace(TINY, D=16, F=8, V=264, vocab=264, qkv_bias=True, family="qwen2")


@pytest.mark.parametrize("shape", [(1, 4, 2), (2, 1, 4)])
def test_import_places_every_shard_and_export_gathers_them(tmp_path, shape):
    folder, places = save(tmp_path / "a", WIDE, shard_bytes=9_000), on_a_mesh(WIDE, shape)
    _, params = importer.load_onto(folder, places)
    there = lambda x, place: x.sharding.is_equivalent_to(place, x.ndim)  # noqa: E731
    assert jax.tree.all(jax.tree.map(there, params, places))
    assert any(not x.is_fully_replicated for x in jax.tree.leaves(places))
    jax.tree.map(np.testing.assert_array_equal, params, weights(WIDE))
    exporter.save(
        tmp_path / "b",
        WIDE,
        params,
        make_tokenizer(),
        end_ids=[256],
        dtype="float32",
        shard_bytes=9_000,
    )
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    exact = exporter.export_report(tmp_path / "b", WIDE, params, [[1, 2]], dtype="float32")
    assert exact["against"]["reload"] == 0


def contents(folder):
    """Returns the bytes of all weights of a folder, by file."""
    files = {p.name: p.read_bytes() for p in folder.iterdir() if "safetensors" in p.name}
    assert files
    return files


def test_import_in_bfloat16_rounds_once(tmp_path):
    folder = save(tmp_path / "model")
    whole, half = importer.load_onto(folder)[1], importer.load_onto(folder, dtype="bfloat16")[1]
    assert {x.dtype for x in jax.tree.leaves(half)} == {np.dtype(ml_dtypes.bfloat16)}
    assert not np.array_equal(half["embed"].astype(np.float32), whole["embed"])
    same = lambda a, b: np.testing.assert_array_equal(a, np.asarray(b).astype(a.dtype))  # noqa: E731
    jax.tree.map(same, half, whole)


@pytest.mark.parametrize("kind", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_are_read_as_they_are(folder, kind):
    name = "model.layers.1.mlp.up_proj.weight"
    want = np.ascontiguousarray(weights(TINY)["layers"]["w_up"][1].T.astype(kind))
    edit_tensors(folder, lambda t: t.update({name: want}))
    got = importer.load_onto(folder)[1]["layers"]["w_up"]
    np.testing.assert_array_equal(got[1], want.T.astype(np.float32))
    np.testing.assert_array_equal(got[2], weights(TINY)["layers"]["w_up"][2])


def test_a_stack_is_filled_in_its_own_memory(folder):
    """Import of a large model has no room for a second stack."""
    rule = next(r for r in names.RULES if r.ours == "layers/w_up")
    place = NamedSharding(mesh_lib.make((1, 1, 1)), PartitionSpec())
    form = {"rule": rule, "spec": TINY, "place": place, "dtype": np.dtype(np.float32)}
    stack, x = (jax.device_put(jnp.zeros(n), place) for n in [(3, 12, 7), (7, 12)])
    where = stack.unsafe_buffer_pointer()
    filled = importer._filled(stack, x + 1, np.int32(1), **form)
    assert stack.is_deleted()
    assert filled.unsafe_buffer_pointer() == where
    assert filled.sum() == 12 * 7 == filled[1].sum()


def test_large_tensors_leave_the_devices_in_parts(tmp_path, monkeypatch):
    whole = contents(save(tmp_path / "a"))
    monkeypatch.setattr(exporter, "_PULLED", 100)
    sizes = []
    cut = exporter._cut
    monkeypatch.setattr(
        exporter,
        "_cut",
        lambda x, start, size: sizes.append(size * x[:1].nbytes) or cut(x, start, size=size),
    )
    assert contents(save(tmp_path / "b")) == whole
    assert max(sizes) <= 12 * 32  # no more than a row beyond what is allowed
    assert len(sizes) > 300


def test_a_written_file_has_an_aligned_header_and_no_gap(folder):
    raw = (folder / metadata.WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    assert length % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    spans = sorted(entry["data_offsets"] for entry in header.values())
    assert [a for a, _ in spans] == [0, *(b for _, b in spans[:-1])]
    assert spans[-1][1] == len(raw) - 8 - length


def test_added_tags_stay_on_the_devices(tmp_path):
    spec = dataclasses.replace(WIDE, V=258, vocab=258)
    _, params = importer.load_onto(save(tmp_path / "a", spec), on_a_mesh(spec, (1, 4, 2)))
    with jax.transfer_guard_device_to_host("disallow"):
        _, after, grown = tags.add_tags(make_tokenizer(), spec, params, seed=5)
    assert (after.V, after.vocab) == (264, 261)
    want = tags.add_tags(make_tokenizer(), spec, weights(spec), seed=5)[2]
    assert not np.array_equal(grown["embed"][257], params["embed"][257])
    np.testing.assert_allclose(grown["embed"], want["embed"], atol=1e-6)
    assert len(grown["embed"].sharding.device_set) == 8


THEIRS = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
}


@pytest.mark.parity
@pytest.mark.parametrize("family", THEIRS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_shards_tied_with_added_tokens_come_back_byte_for_byte(tmp_path, family, dtype):
    """Written by transformers, read by us, written by us: the same tensors in every byte."""
    torch = pytest.importorskip("torch")
    name = THEIRS[family][0]
    tokenizer = make_tokenizer()
    config = getattr(transformers, f"{name}Config")(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        tie_word_embeddings=True,
        initializer_range=0.3,
        max_position_embeddings=64,
        eos_token_id=256,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    tokenizer.add_tokens(["<extra>", "<other>"])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    room = 23 if dtype == "float32" else 12  # two files each
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "a", max_shard_size=f"{room}KB")
    tokenizer.save_pretrained(tmp_path / "a")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) == 2
    spec, params, got = load(tmp_path / "a")
    assert (spec.vocab, spec.tied) == (259, True)
    assert got.convert_tokens_to_ids("<other>") == 258
    exporter.save(
        tmp_path / "b",
        spec,
        params,
        got,
        end_ids=[256, 258],
        dtype=dtype,
        source=tmp_path / "a",
        shard_bytes=room * 1000,
    )
    a, b = (raw_tensors(tmp_path / x) for x in "ab")
    assert "lm_head.weight" not in b
    assert a == b
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "b").eos_token_id == [256, 258]
    auto, ids = transformers.AutoModelForCausalLM, torch.tensor([[1, 257, 258, 3]])
    with torch.no_grad():
        x, y = (
            auto.from_pretrained(tmp_path / f, dtype=torch.float32, trust_remote_code=False)(
                ids
            ).logits
            for f in "ab"
        )
    assert (x == y).all()
    assert metadata.load_spec_and_tokenizer(tmp_path / "b")[1].get_vocab() == tokenizer.get_vocab()


def raw_tensors(folder):
    """Returns dtype, shape and bytes of each tensor of a folder."""
    found = {}
    for file in folder.glob("*.safetensors"):
        for name, x in safetensors.numpy.load_file(file).items():
            found[name] = (str(x.dtype), x.shape, x.tobytes())
    return found


def test_what_cannot_be_written_leaves_nothing_half_done(tmp_path, monkeypatch):
    def full(_file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporter.os, "fsync", full)
    with pytest.raises(OSError, match=r"model was not written: .*No space left on device"):
        save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_digest_does_not_depend_on_the_parts_it_is_taken_in(monkeypatch):
    whole = hashes.digest_of(weights(TINY))
    monkeypatch.setattr(hashes, "_PART", 100)
    assert len(list(hashes._parts(weights(TINY)["embed"]))) > 100
    assert hashes.digest_of(weights(TINY)) == whole
