"""Export a Flax model as a Hugging Face folder.

One sees the files, and that transformers, which reads the folder back, computes the same logits.
It needs PyTorch (`pip install torch`), which stair_jax does not.
"""

import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stair_jax.hf import exporter
from stair_jax.miniature import tokenizer
from stair_jax.model import heads, transformer
from stair_jax.model.spec import Spec
from stair_jax.text import Codec

codec = Codec(tokenizer.build(), "llama3")
spec = Spec.plain(codec.size, L=2, D=32, N=4, K=2, H=8, F=64, eps=1e-5, theta=100.0)
params = jax.jit(transformer.init, static_argnums=0)(spec, jax.random.key(0))


@jax.jit
def logits(params, tokens):
    """Returns the logits [rows, tokens, vocabulary] of a whole forward pass."""
    hidden, _ = transformer.Decoder(spec, jnp.float32).apply({"params": params}, tokens)
    return heads.logits(params, hidden, spec)


ids = codec.prompt_ids("what is 4 plus 3 ?")
ours = np.asarray(logits(params, jnp.array([ids])))[0]

with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place) / "model"
    exporter.save(
        folder,
        spec,
        params,
        codec.tokenizer,
        end_ids=codec.end_ids,
        dtype="float32",
        chat_template=codec.chat_template,
    )
    print(*sorted(path.name for path in folder.iterdir()), sep="\n")
    chat = [{"role": "user", "content": "what is 4 plus 3 ?"}]
    asked = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        chat, add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder)(**asked).logits[0].numpy()

print("same tokens:", asked["input_ids"][0].tolist() == ids)
print(f"largest difference of {theirs.size} logits: {np.abs(ours - theirs).max():.1e}")
