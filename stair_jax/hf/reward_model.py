"""Reward models as Hugging Face folders: ours go out, ours and others' come in.

A model that is read at every step is a `...ForTokenClassification` with one label, one that is read
once a `...ForSequenceClassification`. Ours say in two keys of config.json how they are read and how
they are spoken to; others have their chat template.
"""

import copy
import dataclasses
import functools
import importlib.util
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from stair_jax import mesh as mesh_lib
from stair_jax import text
from stair_jax.hf import exporter, importer, metadata, names
from stair_jax.model import reward
from stair_jax.model.reward import Readout
from stair_jax.model.spec import FAMILIES, Spec

Params = Any  # the tree of `reward.init`
READOUT, CODEC = "stair_readout", "stair_codec"  # our keys of config.json
KIND_OF = {"eos": names.ONCE, "step_end": names.STEPS}  # by position of the read-out
_POSITION_OF = {kind: position for position, kind in KIND_OF.items()}
_SCORE = "score.weight"
# Tokens that pad, in tokenizers that name none: Llama 3.1's own, and ends of whole documents.
_PADS = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<|end_of_text|>")


@dataclasses.dataclass(frozen=True)
class RewardCheckpoint:
    """A reward model that was read from a folder."""

    spec: Spec
    params: Params  # as `reward.init` makes it
    readout: Readout
    tokenizer: Any
    codec: text.Codec | None  # of our own exports
    pad_id: int | None  # transformers reads a sequence at its last token that is another one

    @property
    def own(self) -> bool:
        """Whether the folder is an export of ours."""
        return self.codec is not None


def load(
    path: metadata.Path, mesh: jax.sharding.Mesh | None = None, dtype: str = "float32"
) -> RewardCheckpoint:
    """Returns a reward model from a folder or the hub, tensor by tensor as `importer.load_onto`.

    One that is not ours is taken for an outcome model by Bradley-Terry, with rewards in [-1, 1].

    Args:
        path: a folder or a hub name.
        mesh: where the parameters go; None for one device.
        dtype: of the parameters, "float32" or "bfloat16"; the score is float32 in any case.

    Raises:
        ValueError: whatever makes the folder unusable, in one line that names the file.
    """
    found = look(path)
    params = load_onto(path, found.spec, _places(found.spec, mesh), dtype)
    return dataclasses.replace(found, params=params)


def look(path: metadata.Path) -> RewardCheckpoint:
    """Returns a reward model without its parameters: all but their values is checked.

    Raises:
        ValueError: see `load`.
    """
    folder = metadata.resolve(path)
    file = folder / metadata.CONFIG
    config = metadata.read_json(file)
    spec, kind = _spec_and_kind(file, config)
    readout = _readout(file, config, kind)
    tokenizer = metadata.load_tokenizer(folder, spec)
    codec, pad_id = _codec(file, config, tokenizer), config.get("pad_token_id")
    if pad_id is not None and type(pad_id) is not int:
        raise ValueError(f"{file}: pad_token_id is {pad_id!r:.80}, expected an id or null")
    _check(folder, importer.tensors_of(folder), spec)
    return RewardCheckpoint(spec, None, readout, tokenizer, codec, pad_id)


def read_spec(path: metadata.Path) -> Spec:
    """Returns the sizes of a reward model's folder.

    Raises:
        ValueError: see `load`.
    """
    file = metadata.resolve(path) / "config.json"
    return _spec_and_kind(file, metadata.read_json(file))[0]


def load_onto(path: metadata.Path, spec: Spec, shardings: Any, dtype: str) -> Params:
    """Returns the parameters of a folder of these sizes, placed; see `load`."""
    folder = metadata.resolve(path)
    found = importer.tensors_of(folder)
    _check(folder, found, spec)
    return importer.placed(found, spec, shardings, dtype, names.ONCE)


def _places(spec: Spec, mesh: jax.sharding.Mesh | None) -> Any:
    if mesh is None:
        return None
    shapes = jax.eval_shape(functools.partial(reward.init, spec), jax.random.key(0))
    return mesh_lib.shardings(reward.logical_axes(spec), mesh, shapes)


def _spec_and_kind(file: pathlib.Path, config: Mapping[str, Any]) -> tuple[Spec, str]:
    """Returns sizes and kind; ValueError for whatever is no reward model with one label."""
    found = config.get("architectures") or []
    known = {
        _architecture(family, kind): (family, kind) for family in FAMILIES for kind in _POSITION_OF
    }
    architecture = next((name for name in known if found == [name]), None)
    if architecture is None:
        raise ValueError(
            f"{file}: unsupported architecture {found!r:.80}, expected one of {[*known]}"
        )
    family, kind = known[architecture]
    if (named := config.get("model_type")) != family:
        raise ValueError(f"{file}: model_type is {named!r}, expected {family!r} for {architecture}")
    # transformers writes num_labels as the length of id2label, and nothing where they are two.
    labels = config.get("id2label") or config.get("num_labels", 2)
    count = len(labels) if isinstance(labels, dict) else labels
    if count != 1 or type(count) is not int:
        raise ValueError(f"{file}: found {count!r:.80} labels, expected 1, the reward")
    body = {key: x for key, x in config.items() if key != "architectures"}
    return reward.scalar(metadata.spec_of(file, body)), kind


def _architecture(family: str, kind: str) -> str:
    return FAMILIES[family][0].removesuffix(names.POLICY) + kind


def _readout(file: pathlib.Path, config: Mapping[str, Any], kind: str) -> Readout:
    position = _POSITION_OF[kind]
    if READOUT not in config:
        return Readout(position=position, loss="bt", low=-1.0, high=1.0)
    try:
        readout = Readout.from_json(config[READOUT])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: {READOUT} cannot be read: {error}") from error
    if readout.position != position:
        raise ValueError(
            f"{file}: {READOUT} is at {readout.position!r}, expected {position!r} for a {kind}"
        )
    return readout


def _codec(file: pathlib.Path, config: Mapping[str, Any], tokenizer: Any) -> text.Codec | None:
    if READOUT not in config:
        return None
    try:
        return text.Codec(tokenizer, **config[CODEC])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: {CODEC} cannot be read: {error}") from error


def _check(folder: pathlib.Path, found: Mapping[str, importer.Tensor], spec: Spec) -> None:
    """Raises ValueError where the tensors are not those of a reward model of these sizes.

    An output head that was left in the file is not read.
    """
    wanted = names.tensors_of(spec, names.ONCE)
    if _SCORE not in found:
        others = sorted(set(found) - set(wanted))
        raise ValueError(f"{folder}: expected the tensor {_SCORE}, found {others[:3]} in its place")
    score = found[_SCORE]
    if score.shape[0] != 1:
        raise ValueError(
            f"{score.file}: {_SCORE} has {score.shape[0]} labels, expected 1, the reward"
        )
    ignored = {names.HEAD, names.BIAS.theirs}
    importer.check_names(folder, found, spec, kind=names.ONCE, ignored=ignored)
    importer.check_values(found, spec, names.ONCE)
    bias = found.get(names.BIAS.theirs)
    if bias is not None and (values := bias.read()).any():
        raise ValueError(f"{bias.file}: {bias.name} is {values.tolist()}, expected 0 or none")


def save(
    path: metadata.Path,
    spec: Spec,
    params: Params,
    readout: Readout,
    codec: text.Codec,
    *,
    dtype: str,
    source: metadata.Path | None = None,
    shard_bytes: int = exporter.SHARD_BYTES,
    card: str = "",
) -> None:
    """Writes a folder that transformers loads with equal scores; see `exporter.save`.

    The padding is never the end of a sequence: transformers reads a sequence at its last token that
    does not pad.

    Args:
        path: the folder, replaced where it exists.
        spec: sizes.
        params: the tree of `reward.init`, anywhere.
        readout: how the scores are read, written to config.json.
        codec: that the model was trained with; its template and system turn are written too.
        dtype: of the written weights, "float32" or "bfloat16".
        source: the checkpoint it was imported from.
        shard_bytes: a larger model is cut into several files with an index.
        card: text of README.md; empty for none.

    Raises:
        ValueError: an unknown dtype, or parameters that do not fit the sizes.
    """
    kind = KIND_OF[readout.position]
    more = {
        "architectures": [_architecture(spec.family, kind)],
        "num_labels": 1,
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        "problem_type": "regression",
        READOUT: readout.to_json(),
        CODEC: {
            "template": codec.template,
            "system": codec.system,
            "more_ends": sorted(codec.end_ids),
        },
    }
    exporter.save(
        path,
        reward.scalar(spec),
        params,
        _padding(codec),
        end_ids=[codec.eos_id],
        dtype=dtype,
        chat_template=codec.chat_template,
        source=source,
        shard_bytes=shard_bytes,
        kind=kind,
        more=more,
        card=card,
    )


def _padding(codec: text.Codec) -> Any:
    """Returns the codec's tokenizer, with a padding that does not end a sequence."""
    tokenizer = copy.deepcopy(codec.tokenizer)
    if tokenizer.pad_token_id in (None, codec.eos_id):
        vocabulary = tokenizer.get_vocab()
        known = [pad for pad in _PADS if vocabulary.get(pad, codec.eos_id) != codec.eos_id]
        tokenizer.pad_token = (known or [tokenizer.convert_ids_to_tokens(codec.pad_id)])[0]
    return tokenizer


def export_report(
    path: metadata.Path,
    spec: Spec,
    params: Params,
    readout: Readout,
    sequences: Sequence[Sequence[int]],
    *,
    dtype: str,
) -> dict[str, Any]:
    """Returns, and writes, how far an export's scores lie from ours; see `exporter.export_report`.

    Args:
        path: the export.
        spec: sizes.
        params: what was exported.
        readout: at "step_end" the scores of all tokens count, else those of the last.
        sequences: token ids, whole: for "eos" each ends with it.
        dtype: of the export.
    """
    spec, once = reward.scalar(spec), readout.position == "eos"
    expected = _scores(spec, exporter.rounded(params, dtype), sequences, once)
    places = exporter.places_of(params, read_spec(path), names.ONCE)
    reloaded = load_onto(path, read_spec(path), places, dtype)
    found = {"reload": _scores(read_spec(path), reloaded, sequences, once)}
    del reloaded
    if importlib.util.find_spec("torch") is not None:
        found["transformers"] = _scores_of_transformers(path, sequences, once)
    return exporter.write_report(path, sequences, expected, found)


def _scores(
    spec: Spec, params: Params, sequences: Sequence[Sequence[int]], once: bool
) -> list[np.ndarray]:
    scores = exporter.outputs(spec, params, sequences, reward.scores)
    return [row[-1:] if once else row for row in scores]


def _scores_of_transformers(
    path: metadata.Path, sequences: Sequence[Sequence[int]], once: bool
) -> list[np.ndarray]:
    """Returns the float32 scores that transformers computes, of one batch with padding."""
    import torch  # a heavy import of the parity check alone
    import transformers

    auto: Any = (
        transformers.AutoModelForSequenceClassification
        if once
        else transformers.AutoModelForTokenClassification
    )
    model = auto.from_pretrained(path, dtype=torch.float32, trust_remote_code=False).eval()
    width = max(len(ids) for ids in sequences)
    pad = model.config.pad_token_id
    rows = torch.tensor([[*ids, *[pad] * (width - len(ids))] for ids in sequences])
    real = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences])
    with torch.no_grad():
        logits = model(rows, attention_mask=real).logits.numpy()
    if once:
        return [*logits]
    return [row[: len(ids), 0] for row, ids in zip(logits, sequences, strict=True)]
