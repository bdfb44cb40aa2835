"""The trainers in PyTorch, on transformers' Llama: what ours are measured against.

As good as a careful user would have them, and better than the usual tools where that was easy: no
data loader; no padding mask, since padding lies on the right; the head only at trained positions;
the fused optimiser; both sides of a pair in one pass; the reference's log-probs are given.
"""

import contextlib
import pathlib
from typing import Any

import numpy as np
import torch
import transformers

from stair_jax.data.batches import PairBatch, SftBatch


def load(folder: pathlib.Path) -> Any:
    """Returns the model of a Hugging Face folder, in float32 on the CPU."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )


class Trainer:
    """A model, AdamW, and the two losses, of batches [rows, ...] of one step.

    Args:
      model: a causal model of transformers, in float32; it stays where it is.
      half: whether products run in bfloat16, by autocast.
    """

    def __init__(
        self,
        model: Any,
        *,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        clip_norm: float,
        half: bool = False,
    ):
        self.model = model.train()  # a Llama has no dropout
        self.grad_norm = float("nan")  # of the last step, before clipping
        self._clip_norm, self._half, self._device = clip_norm, half, model.device
        self._optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=0.0,
            betas=(beta1, beta2),
            eps=eps,
            weight_decay=weight_decay,
            fused=True,
        )

    def sft(self, batch: SftBatch, lr: float) -> float:
        """Takes one step on the mean over all trained tokens; returns that loss."""
        tokens_BT, mask_BT = self._on(batch.tokens).long(), self._on(batch.loss_mask)
        with self._precision():
            loss = -self._logp(tokens_BT, mask_BT).mean()
        return self._step(loss, lr)

    def dpo(self, batch: PairBatch, lr: float, *, beta: float, sft_coef: float) -> float:
        """Takes one step on the mean over pairs, with the SFT term; returns that loss."""
        tokens_B2T, step_B2T = self._on(batch.tokens).long(), self._on(batch.step_mask)
        sft_BT = self._on(batch.sft_mask)
        wanted_B2T = step_B2T.clone()
        wanted_B2T[:, 0] |= sft_BT
        flat = tokens_B2T.shape[0] * 2, tokens_B2T.shape[2]
        with self._precision():
            logp = self._logp(tokens_B2T.reshape(flat), wanted_B2T.reshape(flat))
        zeros_B2T = torch.zeros(wanted_B2T.shape, device=self._device)
        logp_B2T = zeros_B2T.masked_scatter(wanted_B2T, logp)
        policy_B2 = (logp_B2T * step_B2T).sum(-1)
        reward_B2 = beta * (policy_B2 - self._on(batch.ref_logp))
        margin_B = reward_B2[:, 0] - reward_B2[:, 1]
        nll_B = -(logp_B2T[:, 0] * sft_BT).sum(-1) / sft_BT.sum(-1)
        preference = -torch.nn.functional.logsigmoid(margin_B)
        return self._step(preference.mean() + sft_coef * nll_B.mean(), lr)

    def _logp(self, tokens_BT: torch.Tensor, wanted_BT: torch.Tensor) -> torch.Tensor:
        """Returns the log-probabilities of the wanted tokens, one after another."""
        hidden_BTD = self.model.model(input_ids=tokens_BT, use_cache=False).last_hidden_state
        wanted = wanted_BT[:, 1:]
        logits = self.model.lm_head(hidden_BTD[:, :-1][wanted])
        return -torch.nn.functional.cross_entropy(
            logits, tokens_BT[:, 1:][wanted], reduction="none"
        )

    def _step(self, loss: torch.Tensor, lr: float) -> float:
        loss.backward()
        if self._clip_norm:
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._clip_norm)
            self.grad_norm = float(norm)
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        self._optimiser.step()
        self._optimiser.zero_grad()
        return float(loss.detach())

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if not self._half:
            return contextlib.nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)

    def _on(self, x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(x)).to(self._device)
