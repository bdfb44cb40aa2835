"""Checkpoint folders that say two things, or nonsense, or hold what cannot be computed with."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from stair_jax.hf import importer, metadata, reward_model, tags
from stair_jax.model.reward import Readout
from stair_jax.text import TAGS
from tests.support.hf_folders import TIED, TINY, edit_json, edit_tensors, save, weights
from tests.support.reward_folders import codec as reward_codec

NORM, UP = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return save(tmp_path_factory.mktemp("broken") / "model")


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return save(tmp_path_factory.mktemp("broken") / "model", shard_bytes=3_000)


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


@pytest.fixture
def cut(shards, tmp_path):
    return shutil.copytree(shards, tmp_path / "model")


def refused(folder, message):
    """Asserts that reading the headers of a folder ends in one line that names it."""
    with pytest.raises(ValueError, match=message) as error:
        importer.look(folder)
    assert "\n" not in str(error.value)
    assert folder.name in str(error.value)


TORN = {
    "not JSON.*twice, with two values": b'{"vocab_size": 271, "vocab_size": 11}',
    "nested too deeply": b"[" * 100_000,
    "nested too": b'{"a": ' * 100_000 + b"1" + b"}" * 100_000,
    "not JSON: 'utf-8'": b'{"model_type": "llam\xe9"}',
    "not JSON.*BOM": "\ufeff{}".encode(),
    "not JSON: 'utf-8' codec": "{}".encode("utf-16"),
    "found a NoneType, expected an object": b"null",
    "not JSON: Exceeds": b'{"vocab_size": ' + b"1" * 10_000 + b"}",
}


@pytest.mark.parametrize(("message", "raw"), TORN.items(), ids=TORN)
def test_files_that_are_no_table_are_refused_in_one_line(cut, message, raw):
    importer.look(cut)
    for name in ("config.json", metadata.INDEX):
        file = cut / name
        kept = file.read_bytes()
        file.write_bytes(raw)
        refused(cut, message)
        file.write_bytes(kept)


def test_a_key_may_stand_twice_with_one_value(folder):
    file = folder / "config.json"
    file.write_text(file.read_text().replace("{", '{"vocab_size": 271, "odd": NaN, ', 1))
    assert metadata.read_spec(folder) == TINY


def test_a_folder_in_the_place_of_a_file_is_refused(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refused(folder, r"config\.json cannot be read: Is a directory")


@pytest.mark.parametrize("value", [None, [], {}, "model.safetensors", [["a", "b"]]])
def test_an_index_without_a_table_of_files_is_refused(cut, value):
    edit_json(cut / metadata.INDEX, weight_map=value)
    refused(cut, f"{metadata.INDEX}: weight_map is .* expected the files by tensor")


@pytest.mark.parametrize("value", [7, None, ["a"], "../model/a.safetensors", "/etc/passwd"])
def test_an_index_names_files_of_its_folder(cut, value):
    names = json.loads((cut / metadata.INDEX).read_text())["weight_map"]
    edit_json(cut / metadata.INDEX, weight_map=names | {NORM: value})
    refused(cut, rf"'{NORM}' is in .* expected a file's name")


def test_index_and_shards_must_agree(cut):
    names = json.loads((cut / metadata.INDEX).read_text())["weight_map"]
    other = next(file for file in names.values() if file != names[NORM])
    assert importer.look(cut)[0] == TINY
    edit_json(cut / metadata.INDEX, weight_map=names | {NORM: other})
    refused(cut, rf"{NORM} is said to be in {other}, found it in \['{names[NORM]}'\]")
    edit_json(cut / metadata.INDEX, weight_map=names | {"lm_tail.weight": other})
    refused(cut, r"lm_tail\.weight is said to be in .* found it in \[\]")
    edit_json(cut / metadata.INDEX, weight_map={k: v for k, v in names.items() if k != NORM})
    refused(cut, rf"{NORM} is said to be in None")


def test_a_tensor_in_two_files_must_be_one_tensor(cut):
    names = json.loads((cut / metadata.INDEX).read_text())["weight_map"]
    other = cut / next(file for file in names.values() if file != names[NORM])
    tensors = safetensors.numpy.load_file(other)
    for change in (0, 1):
        safetensors.numpy.save_file(tensors | {NORM: weights(TINY)["norm"] + change}, other)
        if change:
            refused(cut, rf"{NORM} differs from that of")
        else:
            assert importer.look(cut)[0] == TINY


def test_two_sets_of_weights_are_refused(cut, whole):
    shutil.copy(whole / metadata.WEIGHTS, cut)
    refused(cut, f"found both {metadata.WEIGHTS} and {metadata.INDEX}")


def test_an_index_may_name_the_one_file(folder):
    names = dict.fromkeys(safetensors.numpy.load_file(folder / metadata.WEIGHTS), metadata.WEIGHTS)
    (folder / metadata.INDEX).write_text(json.dumps({"weight_map": names}))
    assert importer.look(folder)[0] == TINY


def test_adapters_beside_the_weights_are_refused(folder):
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, r"adapter_config\.json: adapters are not read")


@pytest.mark.parametrize("change", [{"num_hidden_layers": 10**9}, {"vocab_size": 272}])
def test_sizes_that_the_files_do_not_have_are_refused(folder, change):
    edit_json(folder / "config.json", **change)
    refused(folder, r"names 1000000000 layers|has shape \(271, 12\), expected \(272, 12\)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "bfloat16", "torch_dtype": "float16"}, "dtype is 'bfloat16' and torch_dtype"),
        ({"torch_dtype": "int3"}, "torch_dtype is 'int3', expected one of"),
        ({"dtype": ["float32"]}, "dtype is .* expected one of"),
    ],
)
def test_dtypes_that_are_none_or_two_are_refused(folder, change, message):
    edit_json(folder / "config.json", torch_dtype="float32", dtype="torch.float32")
    metadata.read_spec(folder)
    edit_json(folder / "config.json", **change)
    refused(folder, message)


@pytest.mark.parametrize("named", ["bfloat16", "float32"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_dtype_of_a_checkpoint_is_that_of_its_weights(tmp_path, dtype, named):
    folder = save(tmp_path / "model", dtype=dtype)
    edit_json(folder / "config.json", torch_dtype=named)
    assert importer.dtype_of(folder) == dtype


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [NORM, UP, "model.embed_tokens.weight"])
def test_weights_that_are_not_finite_are_refused_by_name(folder, name, bad):
    def spoil(tensors):
        tensors[name] = tensors[name].copy()
        tensors[name].flat[-1] = bad

    edit_tensors(folder, spoil)
    with pytest.raises(ValueError, match=rf"model\.safetensors: {name} has 1 values") as error:
        importer.load_onto(folder)
    assert "\n" not in str(error.value)


def test_a_weight_that_bfloat16_cannot_hold_is_refused_there_alone(folder):
    edit_tensors(folder, lambda t: t.update({NORM: np.full(12, 3.4e38, np.float32)}))
    assert np.isfinite(importer.load_onto(folder)[1]["norm"]).all()
    with pytest.raises(ValueError, match=rf"{NORM} has 12 values .* in bfloat16"):
        importer.load_onto(folder, dtype="bfloat16")


def test_a_reward_model_that_is_not_finite_is_refused(tmp_path):
    own, readout = reward_codec(), Readout(position="step_end", loss="bt", low=-1.0, high=1.0)
    spec = dataclasses.replace(TIED, V=own.size, vocab=own.size)
    params = {**weights(spec), "score": np.full(spec.D, np.nan, np.float32)}
    reward_model.save(tmp_path / "m", spec, params, readout, own, dtype="float32")
    with pytest.raises(ValueError, match=r"score\.weight has 12 values that are NaN"):
        reward_model.load(tmp_path / "m")


def with_words(words):
    """Returns a tokenizer of single characters, by id."""
    raw = Tokenizer(models.WordLevel(words, unk_token="a"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=raw)


def test_a_token_beyond_the_embedding_is_refused(folder):
    with_words({"a": 0, "b": 1, "c": 300}).save_pretrained(folder)
    with pytest.raises(ValueError, match="disagree, found token 'c' with id 300, expected ids"):
        metadata.load_spec_and_tokenizer(folder)


def test_a_special_token_with_the_id_of_a_word_is_refused(folder):
    tokenizer = with_words({"a": 0, "b": 1, "c": 4, "d": 5})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<x>"]})
    assert tokenizer.convert_tokens_to_ids(["<x>", "c"]) == [4, 4]
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="id 4 for both '<x>' and 'c'"):
        metadata.load_spec_and_tokenizer(folder)


@pytest.mark.parametrize("V", [20, 13], ids=["spare rows", "grown"])
def test_tags_get_ids_of_their_own_where_a_vocabulary_has_holes(tmp_path, V):
    tokenizer = with_words({"a": 0, "b": 1, "c": 4, "d": 12})
    spec, rows = tags.tag(tokenizer, dataclasses.replace(TINY, V=V, vocab=V))
    assert rows == [13, 14, 15, 16]
    assert (spec.V, spec.vocab) == ((20, 20) if V == 20 else (24, 17))
    tokenizer.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    for one in (tokenizer, again):
        assert one.encode("a" + "".join(TAGS) + "cd") == [0, *rows, 4, 12]
        assert set(TAGS) <= set(one.all_special_tokens)
        assert one.convert_ids_to_tokens([4, 12]) == ["c", "d"]


def test_ends_are_those_of_both_configurations(folder):
    edit_json(folder / "config.json", eos_token_id=[256, 3])
    edit_json(folder / "generation_config.json", eos_token_id=[7, 256])
    assert metadata.ends_of(folder, TINY) == {3, 7, 256}
    edit_json(folder / "config.json", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    assert metadata.ends_of(folder, TINY) == set()


@pytest.mark.parametrize("file", [metadata.CONFIG, metadata.GENERATION])
@pytest.mark.parametrize("value", ["256", True, 1.0, -1, 271, [256, None], [[256]], {"a": 1}])
def test_ends_that_are_no_tokens_are_refused(folder, file, value):
    edit_json(folder / file, eos_token_id=value)
    with pytest.raises(ValueError, match=rf"{file}: eos_token_id is .* expected ids of 0 to 270"):
        metadata.ends_of(folder, TINY)


def test_a_checkpoints_own_python_is_never_run(folder, tmp_path, monkeypatch):
    asked, ran = [], tmp_path / "ran"
    monkeypatch.setattr("builtins.input", lambda *_: asked.append("on standard input") or "y")
    code = f"open({str(ran)!r}, 'w')\nraise ValueError('here it ran')"
    (folder / "tokenization_mine.py").write_text(code)
    auto_map = {"AutoTokenizer": ["tokenization_mine.Mine", None]}
    edit_json(folder / "tokenizer_config.json", tokenizer_class="Mine", auto_map=auto_map)
    with pytest.raises(ValueError, match="the tokenizer cannot be read: ") as error:
        metadata.load_spec_and_tokenizer(folder)
    assert "\n" not in str(error.value)
    assert not asked
    assert not ran.exists()
