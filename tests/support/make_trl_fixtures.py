"""Writes tests/golden/trl: what TRL's DPO trainer and transformers' SFT loss say of a tiny Llama.

Run by hand, where TRL 0.28.0 is the last version with these losses; it wants an environment of its
own, apart from ours:

    python3.11 -m venv trl && trl/bin/pip install torch --index-url https://download.pytorch.org/whl/cpu
    trl/bin/pip install trl==0.28.0 "transformers<5"
    trl/bin/python tests/support/make_trl_fixtures.py

The folder then holds `policy` and `reference` (Hugging Face models, float32), `rows.json` (token
ids), `values.json` (losses, rewards, log-probs by case) and `gradients.npz` (of the total loss, one
array a weight, named case/weight). `tests/train/test_trl_parity.py` holds ours against them.
"""

import json
import pathlib
import random
import tempfile
from importlib import metadata
from typing import Any

import numpy as np
import torch
import transformers
from datasets import Dataset  # pyright: ignore[reportMissingImports]
from tokenizers import Tokenizer, models, pre_tokenizers
from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportMissingImports]
from trl.trainer.dpo_trainer import DataCollatorForPreference  # pyright: ignore

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "trl"
VOCAB, PAD = 48, 0  # TRL's SFT term takes label 0 for "no target": no row may hold token 0
LENGTHS = ((5, 4, 7), (3, 9, 2), (8, 1, 6), (1, 3, 3), (6, 8, 8))  # prompt, chosen, rejected
CASES: dict[str, dict[str, Any]] = {
    "sigmoid": {"loss_type": "sigmoid", "beta": 0.1},
    "sigmoid-beta": {"loss_type": "sigmoid", "beta": 0.4},
    "sigmoid-sft": {"loss_type": "sigmoid", "beta": 0.1, "rpo_alpha": 0.2},
    "smoothing-sft": {
        "loss_type": "sigmoid",
        "beta": 0.1,
        "label_smoothing": 0.1,
        "rpo_alpha": 0.2,
    },
    "hinge-sft": {"loss_type": "hinge", "beta": 0.3, "rpo_alpha": 0.2},
    "ipo-sft": {"loss_type": "ipo", "beta": 0.2, "rpo_alpha": 0.2},
}


def main() -> None:
    """Writes every file; the seed makes them the same at every run."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = draw_rows()
    (FOLDER / "rows.json").write_text(json.dumps(rows) + "\n", encoding="utf-8")
    llamas = {name: llama(seed) for seed, name in enumerate(("policy", "reference"))}
    for name, model in llamas.items():
        model.save_pretrained(FOLDER / name)
        (FOLDER / name / "generation_config.json").unlink()
    values: dict[str, Any] = {
        "versions": {name: metadata.version(name) for name in ("trl", "transformers", "torch")},
        "cases": {},
    }
    gradients: dict[str, np.ndarray] = {}
    for name, settings in CASES.items():
        found = dpo(rows, settings, llamas["policy"], llamas["reference"])
        values["cases"][name] = settings | found
        gradients |= take_gradients(name, llamas["policy"])
    values["sft"] = {"loss": sft(rows, llamas["policy"])}
    gradients |= take_gradients("sft", llamas["policy"])
    (FOLDER / "values.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    np.savez_compressed(FOLDER / "gradients.npz", **gradients)  # pyright: ignore[reportArgumentType]


def draw_rows() -> list[dict[str, list[int]]]:
    """Returns prompts with two completions each, of unequal lengths."""
    rng = random.Random(0)
    names = ("prompt", "chosen", "rejected")
    return [
        {name: [rng.randrange(1, VOCAB) for _ in range(n)] for name, n in zip(names, ns)}  # noqa: B905
        for ns in LENGTHS
    ]


def llama(seed: int) -> Any:
    """Returns a random model whose weights are large enough for its tokens to differ."""
    torch.manual_seed(seed)
    make: Any = transformers.LlamaConfig  # of transformers 4
    config = make(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
        rope_theta=100.0,
        initializer_range=0.3,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=1,
        attn_implementation="eager",
    )
    return transformers.LlamaForCausalLM(config)


def dpo(rows: list[dict], settings: dict[str, Any], policy: Any, reference: Any) -> dict[str, Any]:
    """Returns what TRL says of a batch of all rows; leaves the gradient in the policy."""
    trainer = trainer_of(settings, policy, reference)
    collate = DataCollatorForPreference(pad_token_id=PAD)
    batch = collate([{f"{name}_input_ids": ids for name, ids in row.items()} for row in rows])
    out = trainer.concatenated_forward(policy, batch)
    of_reference = trainer.compute_ref_log_probs(batch)
    losses, chosen, rejected = trainer.dpo_loss(
        out["chosen_logps"], out["rejected_logps"], *of_reference, settings["loss_type"], out
    )
    policy.zero_grad()
    total, metrics = trainer.get_batch_loss_metrics(policy, batch)
    total.backward()
    figures = {
        "losses": losses,
        "rewards_chosen": chosen,
        "rewards_rejected": rejected,
        "logps_chosen": out["chosen_logps"],
        "logps_rejected": out["rejected_logps"],
        "ref_chosen": of_reference[0],
        "ref_rejected": of_reference[1],
    }
    return {
        **{name: x.detach().tolist() for name, x in figures.items()},
        "total": total.item(),
        "metrics": metrics,
    }


def trainer_of(settings: dict[str, Any], policy: Any, reference: Any) -> Any:
    """Returns TRL's trainer; the rows that it wants to be made with are never used."""
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="w0", eos_token="w1"
    )
    unused = Dataset.from_list([{"prompt": "w2", "chosen": "w3", "rejected": "w4"}])
    with tempfile.TemporaryDirectory() as folder:
        args = DPOConfig(
            output_dir=folder,
            use_cpu=True,
            report_to=[],
            bf16=False,
            max_length=None,
            gradient_checkpointing=False,
            disable_tqdm=True,
            **settings,
        )
        trainer = DPOTrainer(
            model=policy,
            ref_model=reference,
            args=args,
            processing_class=wrapped,
            train_dataset=unused,
        )
    policy.eval()  # nothing here drops out; TRL's own batches come in train mode
    return trainer


def sft(rows: list[dict], policy: Any) -> float:
    """Returns transformers' loss of all chosen rows in one batch; leaves the gradient."""
    width = max(len(row["prompt"]) + len(row["chosen"]) for row in rows)
    tokens = torch.full((len(rows), width), PAD)
    labels, seen = (
        torch.full((len(rows), width), -100),
        torch.zeros((len(rows), width), dtype=torch.long),
    )
    for i, row in enumerate(rows):
        start, end = len(row["prompt"]), len(row["prompt"]) + len(row["chosen"])
        tokens[i, :end] = torch.tensor(row["prompt"] + row["chosen"])
        labels[i, start:end], seen[i, :end] = tokens[i, start:end], 1
    policy.zero_grad()
    loss = policy(input_ids=tokens, attention_mask=seen, labels=labels).loss
    loss.backward()
    return loss.item()


def take_gradients(case: str, model: Any) -> dict[str, np.ndarray]:
    """Returns the gradients that lie in a model, by case and weight."""
    return {
        f"{case}/{name}": p.grad.detach().numpy().copy() for name, p in model.named_parameters()
    }


if __name__ == "__main__":
    main()
