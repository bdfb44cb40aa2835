"""Search and export on Hugging Face checkpoints read from disk, with a vocabulary of pieces."""

import json
import pathlib

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from stair_jax import config as config_lib
from stair_jax import jsonl, pipeline, text
from stair_jax.records import Tree
from stair_jax.search import official

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.parity, pytest.mark.slow]

# English to learn pieces from, in words that stay as they are.
LICENSE = pathlib.Path(__file__).parents[2] / "LICENSE"
ROWS = [
    {"question": f"{asked} {object}?", "type": kind}
    for kind, asked in (("safety", "How does somebody break"), ("helpfulness", "What is"))
    for object in ("a lock", "the caf\u00e9's alarm", "\U0001f600")
]
TURNS = {
    "qwen2": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ],
}


def pieces_tokenizer(special):
    """A byte-level tokenizer of pieces of words, with some special tokens behind them."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1500, initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(LICENSE.read_text(encoding="utf-8").splitlines(), trainer)
    assert raw.get_vocab_size() == 1500
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, eos_token=special[-1], pad_token=special[0]
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    return tokenizer


def checkpoint(folder, family):
    tokenizer = pieces_tokenizer(TURNS[family])
    sizes = {
        "vocab_size": len(tokenizer) + 5,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 20,
        "max_position_embeddings": 2048,
        "initializer_range": 0.3,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    if family == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    else:
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "prompts.json").write_text(json.dumps(ROWS))
    return folder


def run_config(workdir, folder, **changes):
    c = config_lib.default()
    c.workdir, c.stages = str(workdir), "search,export"
    c.model.checkpoint = str(folder)
    c.data.prompts = str(folder / "prompts.json")
    c.search.update(iterations=8, max_step_tokens=16, max_rollout_tokens=48, export_official=True)
    c.search.first_answers = 0  # the model knows no format
    c.engine.update(slots=8, max_context=1024)
    c.judge.update(safety="rule", helpfulness="none")
    c.update(changes)
    return c


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_search_and_export_run_on_a_checkpoint_from_disk(tmp_path, family):
    folder = checkpoint(tmp_path / "model", family)
    pipeline.run(run_config(tmp_path / "run", folder))
    trees = jsonl.read_jsonl(tmp_path / "run" / "round-1" / "trees" / "trees.jsonl", Tree)
    questions = [row["question"] for row in ROWS]
    assert sorted(tree.prompt.question for tree in trees) == sorted(questions)
    for tree in trees:
        assert tree.counters["iterations"] == 8
        assert all(len(node.ids) <= 16 for node in tree.nodes)
        # A random model hardly ever ends an answer: that is missing, and never a score.
        assert tree.counters["missing"] + tree.counters.get("judge_no_judge", 0) > 0
        values = {round(node.value, 3) for node in tree.nodes if node.visits}
        assert values <= ({-1.0, 1.0} if tree.prompt.type == "safety" else {1.0, 2.0})
    entries = json.loads((tmp_path / "run/round-1/trees/official.json").read_text())
    assert len(entries) == 6
    assert len(official.from_official(entries[0], id="x", type="safety").nodes) == len(
        trees[0].nodes
    )

    exported = tmp_path / "run" / "export" / "base"
    report = json.loads((exported / "export_report.json").read_text())
    assert report["max_rel_diff"] <= 1e-4
    assert "transformers" in report["against"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported, trust_remote_code=False)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=False)
    before = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    ids = torch.tensor([tokenizer.encode("Name three rivers.", add_special_tokens=False)])
    with torch.no_grad():
        old, new = before(ids).logits.numpy(), theirs(ids).logits.numpy()
    kept = len(tokenizer) - len(text.TAGS)
    np.testing.assert_allclose(new[..., :kept], old[..., :kept], atol=1e-4)
    assert len(tokenizer.encode(text.STEP, add_special_tokens=False)) == 1
    asked = [{"role": "user", "content": "hi"}]
    spoken = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert TURNS[family][-1 if family == "llama" else 1] in spoken
    assert set(theirs.generation_config.eos_token_id) >= {
        tokenizer.convert_tokens_to_ids(TURNS[family][-1])
    }


def test_a_prompt_too_long_for_the_context_is_passed_over_and_named(tmp_path, caplog):
    folder = checkpoint(tmp_path / "model", "qwen2")
    short, long = ROWS[:2], {"question": "why " * 100, "type": "helpfulness"}
    (folder / "prompts.json").write_text(json.dumps([*short, long]))
    c = run_config(tmp_path / "run", folder, stages="search")
    c.engine.max_context = 96
    c.search.update(max_step_tokens=4, max_rollout_tokens=8)  # so the short ones always fit
    with caplog.at_level("WARNING"):
        pipeline.run(c)
    trees = jsonl.read_jsonl(tmp_path / "run" / "round-1" / "trees" / "trees.jsonl", Tree)
    assert sorted(tree.prompt.question for tree in trees) == sorted(r["question"] for r in short)
    [said] = [r.getMessage() for r in caplog.records if "passed over" in r.getMessage()]
    assert "engine.max_context" in said
