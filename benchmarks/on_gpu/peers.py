"""What transformers and PyTorch make of the same work on the same device.

Each function runs in a process of its own, while JAX holds no memory. Where the libraries are
missing, the functions say so and pass.
"""

import statistics
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.on_gpu.child import Job, LeftOut, Wrong
from benchmarks.on_gpu.sizes import prompt_ids
from stair_jax.data.batches import SftBatch

if TYPE_CHECKING:
    import torch
    import transformers
else:
    try:
        import torch
        import transformers
    except ImportError:
        torch = transformers = None

AGREE = 1e-3  # of logits in float32
LOSS_AGREES = 1e-2  # of a step in bfloat16
TIMED = 5


def _device() -> str:
    """Returns where torch computes.

    Raises:
      LeftOut: without the libraries.
    """
    if torch is None or transformers is None:
        raise LeftOut("no torch")
    transformers.logging.set_verbosity_error()
    return "cuda" if torch.cuda.is_available() else "cpu"


def _model(size: str, dtype: str, device: str) -> Any:
    """Returns transformers' Llama of one of our sizes, with weights of its own."""
    from benchmarks import roofline

    config = transformers.LlamaConfig.from_dict(roofline.SPECS[size].to_hf())
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_GB(device: str) -> float | None:
    return torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None


def right(job: Job) -> None:
    """Compares what the step `engine` has left behind with transformers, of the same weights.

    Raises:
      Wrong: where they differ by more than rounding.
    """
    device = _device()
    with np.load(job.path / "right.npz") as file:
        data = {name: file[name] for name in file}
    model = _model(job.sizes.right.size, "float32", device).eval()
    _load(model, data)
    prompts, answers = data["prompts"], data["answers"]
    with torch.inference_mode():
        found, sequences = _greedy(model, prompts, answers.shape[1], device), []
        equal = float((found == answers).mean())
        for row, answer in enumerate(answers):
            sequences.append([*prompts[row][prompts[row] >= 0].tolist(), *answer.tolist()])
        apart = logp_apart = 0.0
        for row, ids in enumerate(sequences):
            logits = model(torch.tensor([ids], device=device)).logits[0].float()
            logits = logits[len(ids) - answers.shape[1] - 1 : -1].cpu().numpy()
            ours = data["logits"][row]
            finite = np.isfinite(ours)
            apart = max(apart, float(np.abs(logits - ours)[finite].max()))
            logits[~finite] = -np.inf
            logp = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
            own = np.take_along_axis(logp, answers[row][:, None], axis=-1)[:, 0]
            logp_apart = max(logp_apart, float(np.abs(own - data["logps"][row]).max()))
    job.report(logits_apart=apart, engine_logps_apart=logp_apart, greedy_tokens_equal=equal)
    loss, norm = _training_step(model, data)
    ratio = float(data["train_grad_norm"]) / norm
    job.report(
        train_loss=float(data["train_loss"]),
        train_loss_apart=abs(loss - data["train_loss"]),
        train_grad_norm_ratio=ratio,
    )
    faults = []
    if not max(apart, logp_apart) <= AGREE:
        faults.append(f"logits {apart:.2g} and log-probs {logp_apart:.2g} apart")
    if equal < 0.97:
        faults.append(f"{equal:.3f} of the greedy tokens are equal")
    if not abs(loss - data["train_loss"]) <= LOSS_AGREES or not 0.9 < ratio < 1.1:
        faults.append(f"loss {loss - data['train_loss']:.2g} apart, gradient norms {ratio:.3f}")
    if faults:
        raise Wrong("; ".join(faults))


def _load(model: Any, data: dict[str, np.ndarray]) -> None:
    """Gives the model our weights."""
    own = {name.removeprefix("params."): x for name, x in data.items() if name[:7] == "params."}
    state = {
        "model.embed_tokens.weight": own["embed"],
        "model.norm.weight": own["norm"],
        "lm_head.weight": own["head"],
    }
    names = {
        "wq": "self_attn.q_proj",
        "wk": "self_attn.k_proj",
        "wv": "self_attn.v_proj",
        "wo": "self_attn.o_proj",
        "w_gate": "mlp.gate_proj",
        "w_up": "mlp.up_proj",
        "w_down": "mlp.down_proj",
        "attn_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
    }
    for name, theirs in names.items():
        for layer, x in enumerate(own[f"layers.{name}"]):
            if x.ndim == 3:  # heads apart: behind the model's width, or before it
                x = x.reshape(-1, x.shape[-1]) if name == "wo" else x.reshape(x.shape[0], -1)
            state[f"model.layers.{layer}.{theirs}.weight"] = x.T
    model.load_state_dict({k: torch.tensor(np.array(x)) for k, x in state.items()}, strict=True)


def _greedy(model: Any, prompts: np.ndarray, new: int, device: str) -> np.ndarray:
    """Returns generate's likeliest tokens; the last of the vocabulary is never taken."""
    never = model.config.vocab_size - 1
    out = model.generate(
        torch.tensor(np.maximum(prompts, 0), device=device),
        attention_mask=torch.tensor((prompts >= 0).astype(np.int64), device=device),
        generation_config=transformers.GenerationConfig(
            do_sample=False, max_new_tokens=new, pad_token_id=0, suppress_tokens=[never]
        ),
    )
    return out[:, prompts.shape[1] :].cpu().numpy()


def _training_step(model: Any, data: dict[str, np.ndarray]) -> tuple[float, float]:
    """Returns loss and gradient norm of a step in float32 on the batch that we trained on."""
    from benchmarks.torch_trainer import Trainer

    trainer = Trainer(model, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=1.0)
    tokens = data["train_tokens"]
    return trainer.sft(_all_trained(tokens), 0.0), trainer.grad_norm


def _all_trained(tokens: np.ndarray) -> SftBatch:
    """Returns rows of which every token is trained but the first, which nothing is before."""
    batch = SftBatch.empty(tokens)
    batch.weight[:], batch.loss_mask[:, 1:] = 1, True
    return batch


def training(job: Job) -> None:
    """Files steps of SFT: autocast to bfloat16, sdpa, fused AdamW; recomputing, and keeping all."""
    device, sizes = _device(), job.sizes.training
    from benchmarks.torch_trainer import Trainer

    model = _model(sizes.size, "float32", device)
    trainer = Trainer(
        model, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=1.0, half=True
    )
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    found = _timed(job, trainer, "torch, checkpointing", job.some(sizes.rows), device)
    job.report(torch_sft_tokens_per_s=found)
    model.gradient_checkpointing_disable()
    kept = _timed(job, trainer, "torch, all kept", job.some(sizes.kept_rows), device)
    job.report(torch_sft_tokens_per_s=max(found, kept))


def _timed(job: Job, trainer: Any, label: str, rows: int, device: str) -> float:
    """Files and returns the tokens a second of a step."""
    sizes = job.sizes.training
    tokens = np.random.default_rng(0).integers(
        0, trainer.model.config.vocab_size, (rows, sizes.tokens)
    )
    batch = _all_trained(tokens.astype(np.int32))
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    losses, times = [], []
    for _ in range(3 + TIMED):
        start = time.perf_counter()
        losses.append(trainer.sft(batch, 1e-4))
        _wait(device)
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times[3:])
    job.row(
        "torch_training",
        label,
        step_ms=1e3 * seconds,
        tokens_per_s=tokens.size / seconds,
        peak_GB=_peak_GB(device),
        losses=losses[:3],
    )
    return tokens.size / seconds


def generate(job: Job) -> None:
    """Files transformers' generate on the prompts of the search: bfloat16, sdpa, left padding."""
    device = _device()
    size, (prompts, new) = job.sizes.search_engine.size, job.sizes.generated
    model = _model(size, "bfloat16", device).eval()
    for name, rows in (("", job.some(prompts)), ("_wide", job.some(4 * prompts))):
        rate = _generated(job, model, rows, new, device)
        job.report(**{f"generate{name}_tokens_per_s": rate, f"generate{name}_rows": rows})


def _generated(job: Job, model: Any, rows: int, new: int, device: str) -> float:
    """Returns new tokens a second, the prompt's pass included: the median of three calls."""
    vocab, length = model.config.vocab_size, job.sizes.search.prompt
    ids = [prompt_ids(i, vocab, length) for i in range(rows)]
    width = max(map(len, ids))
    padded = torch.tensor([[0] * (width - len(x)) + x for x in ids], device=device)
    real = torch.tensor([[0] * (width - len(x)) + [1] * len(x) for x in ids], device=device)
    config = transformers.GenerationConfig(
        do_sample=True,
        temperature=1.2,
        top_k=50,
        top_p=0.9,
        max_new_tokens=new,
        min_new_tokens=new,
        pad_token_id=0,
    )
    times = []
    for _ in range(4):
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(padded, attention_mask=real, generation_config=config)
        _wait(device)
        times.append(time.perf_counter() - start)
        if tuple(out.shape) != (rows, width + new):
            raise RuntimeError(f"expected {new} new tokens in {rows} rows, found {out.shape}")
    return rows * new / statistics.median(times[1:])
