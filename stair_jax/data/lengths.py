"""How many tokens the batches of `data.batches` hold. Needs numpy alone."""

import numpy as np

Batch = dict[str, np.ndarray]


def real_tokens(batch: Batch) -> int:
    """Returns how many positions of a batch hold a token of a row, the rest is padding."""
    if "reach" in batch:
        # Padding sees itself alone and lies at position 0; the first token of a piece has others
        # after it.
        alone = batch["reach"] == 1 + np.arange(batch["reach"].shape[-1])
        return int(np.sum(~alone | (batch["positions"] > 0)))
    return int(row_lengths(batch).sum())


def row_lengths(batch: Batch) -> np.ndarray:
    """Returns the tokens of each row of a batch that is not packed, 0 of an absent one.

    A row ends with the last token that is trained or compared, or whose score is read.
    """
    if "read" in batch:
        pairs = batch["tokens"].ndim == 4  # each side of a pair is a row that is read once
        weight, read = batch["weight"], batch["read"]
        lengths = np.where((weight[..., None] if pairs else weight) > 0, read + 1, 0)
        return lengths if pairs else lengths.max(axis=-1)
    ends = batch.get("loss_mask", batch.get("step_mask"))
    assert ends is not None
    if "sft_mask" in batch:
        ends = ends.copy()
        ends[..., 0, :] |= batch["sft_mask"]
    lengths = ends.shape[-1] - np.argmax(ends[..., ::-1], axis=-1)
    return np.where(ends.any(axis=-1), lengths, 0)


def padding_share(batch: Batch) -> float:
    """Returns the share of padding in the positions that are computed.

    A micro-batch without any weight is none of them: the step passes over it.
    """
    weight = batch["sft_weight"] if "sft_weight" in batch else batch["weight"]
    used = int(np.sum(weight.reshape(len(weight), -1).any(axis=-1)))
    return 1 - real_tokens(batch) / max(used * batch["tokens"][0].size, 1)
