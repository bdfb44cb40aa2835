"""How much memory training and decoding take on a device, from sizes and settings alone.

Nothing is compiled. What is counted was held against memory as XLA compiles it (Llama 8B on eight
GPUs) and against the peak of processes (SmolLM2 135M on a CPU). Bytes are named by what they hold.

Shape letters: see `stair_jax.model.spec.Spec`; T tokens of the longest row.
"""

import dataclasses
from collections.abc import Mapping

from stair_jax.config.schema import EngineConfig, TrainConfig
from stair_jax.model.spec import Spec

Amount = int | float  # of bytes or values
Bytes = Mapping[str, Amount]
ITEM = {"float32": 4, "bfloat16": 2}
# Arrays that lie side by side while a layer's gradients are computed, by their width.
_LAYER_D, _LAYER_HEADS, _LAYER_F, _SCORES = 6, 4, 6, 3
_LOGITS = 2  # a chunk's logits and their gradients
# XLA's code for an engine's program on a CPU, and what compiling it leaves behind: a layer's part.
CODE_BYTES = 2.9e6


@dataclasses.dataclass(frozen=True)
class Split:
    """Over how many devices rows, weights and heads are split."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    @property
    def rows(self) -> int:
        """Devices that have rows of their own."""
        return self.data * self.fsdp

    @property
    def weights(self) -> int:
        """Devices that have a part of each weight."""
        return self.fsdp * self.tensor


@dataclasses.dataclass(frozen=True)
class Pass:
    """What a device computes in one forward and backward pass."""

    rows: int
    length: int  # tokens of a row
    accumulates: bool  # whether a batch takes more than one pass

    @classmethod
    def of(cls, config: TrainConfig, sides: int, split: Split) -> "Pass":
        """Returns the largest pass; `sides` are the rows of an example, two of a pair."""
        length, shards = config.buckets[-1], split.rows
        most = max(config.micro_tokens // (length * sides) // shards, 1)
        examples = min(most, -(-config.batch // shards))
        return cls(examples * sides, length, config.batch > most * shards)

    @property
    def tokens(self) -> int:
        """Tokens, padding included."""
        return self.rows * self.length


def kept_a_token(spec: Spec, remat: str, length: int, *, fused: bool) -> Amount:
    """Returns how many values of a layer the forward pass keeps for each token, by `remat`."""
    heads = (spec.N + 2 * spec.K) * spec.H
    if remat == "full":
        return spec.D
    if remat == "products":
        return 3 * spec.D + heads + 2 * spec.F
    scores = 0 if fused or remat == "attention" else 2 * spec.N * length
    return 6 * spec.D + 2 * heads + 2 * spec.N * spec.H + 4 * spec.F + scores


def training(
    spec: Spec,
    config: TrainConfig,
    *,
    trained: int,
    frozen: Amount,
    sides: int,
    head: bool,
    split: Split,
    fused: bool,
    new_rows: int = 0,
) -> Bytes:
    """Returns the bytes of a device while it trains.

    Args:
      spec: of the model.
      config: of the trainer.
      trained: parameters that are trained: all, or those of adapters.
      frozen: bytes of all weights that are only read.
      sides: rows of an example.
      head: whether tokens go through the vocabulary's head.
      split: of the mesh.
      fused: whether attention never forms its scores, as cuDNN's does not.
      new_rows: tokens that the checkpoint did not have; beside adapters their rows are trained.
    """
    own, item = trained / split.weights, ITEM[config.compute_dtype]
    one = Pass.of(config, sides, split)
    heads = (spec.N + 2 * spec.K) * spec.H
    width = _LAYER_D * spec.D + (_LAYER_HEADS * heads + _LAYER_F * spec.F) / split.tensor
    scores = 0 if fused else _SCORES * 4 * spec.N / split.tensor * one.length
    kept = kept_a_token(spec, config.remat, one.length, fused=fused)
    found = {
        "weights": own * ITEM[config.param_dtype],
        "moments": 8 * own,
        "gradients": 4 * own * (1 + one.accumulates),
        "the start, to compare": 2 * own,
        "frozen weights": frozen / split.weights,
        "activations": one.tokens * (item * (spec.L * kept + width) + scores),
    }
    if head:
        found["head"] = _head(spec, config, one, split, trained=not config.lora_rank)
    if config.lora_rank and new_rows:
        found["tables with new rows"] = _tables(spec, config, split, head=head)
    return {name: size for name, size in found.items() if size}


def _head(spec: Spec, config: TrainConfig, one: Pass, split: Split, *, trained: bool) -> Amount:
    """Returns the bytes of logits, of the head put together, and of its gradient."""
    rows, item = spec.V / split.tensor, ITEM[config.compute_dtype]
    gathered = rows * spec.D * item if split.fsdp > 1 or config.compute_dtype != "float32" else 0
    logits = _LOGITS * 4 * min(config.head_chunk, one.tokens) * rows
    return logits + gathered + trained * 4 * rows * spec.D


def _tables(spec: Spec, config: TrainConfig, split: Split, *, head: bool) -> Amount:
    """Returns the bytes of the tables of tokens with new rows put in, and of their gradients.

    These are of all rows, though only the new ones are kept: of the embedding in the compute
    dtype, of the head in float32.
    """
    size, item = spec.V / split.tensor * spec.D, ITEM[config.compute_dtype]
    tables = 2 if head and not spec.tied else 1
    return size * (item * tables + item + 4 * head)


def engine(spec: Spec, config: EngineConfig, *, pool: Amount, programs: int, tensor: int) -> Bytes:
    """Returns the bytes of a replica on each of its devices.

    Args:
      spec: of the model.
      config: of the engine.
      pool: bytes of its pool of keys, all devices together.
      programs: kept as code of a CPU; 0 for other devices.
      tensor: devices that share the weights.
    """
    item, views = ITEM[config.dtype], 0.0
    if programs:  # a CPU's slots keep a copy of their keys
        views = config.slots * config.max_context * keys_a_token(spec, config.dtype)
    found = {
        "weights": spec.parameters * item / tensor,
        "pool of keys": pool / (tensor if spec.K % tensor == 0 else 1),
        "the slots' own keys": views,
        "programs": programs * spec.L * CODE_BYTES,
        "logits": 4 * 4 * config.slots * spec.V / tensor,
    }
    return {name: size for name, size in found.items() if size}


def keys_a_token(spec: Spec, dtype: str) -> int:
    """Returns the bytes of a token's keys and values in all layers."""
    return 2 * spec.L * spec.K * spec.H * ITEM[dtype]
