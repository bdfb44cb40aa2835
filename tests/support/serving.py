"""A server over a tiny model, on a real socket of this machine.

The model says what it is told: its layers add nothing, its table is one-hot, and its head has for
each token the one that follows. `NEXT` begins what it answers to every chat, and "loop" goes on for
ever. So all texts are known, and every part behind the weights is the product's own.
"""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import socket
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import PreTrainedTokenizerFast

from stair_jax import text
from stair_jax.config.schema import EngineConfig
from stair_jax.config.stages import BASELINES, SFT
from stair_jax.engine import placing
from stair_jax.engine.engine import Engine
from stair_jax.engine.likelihood import Alternatives
from stair_jax.log.metrics import Metrics
from stair_jax.miniature import tokenizer as mini
from stair_jax.model import heads, transformer
from stair_jax.run.known_models import Model
from stair_jax.run.lineage import Lineage
from stair_jax.run.models import Policy
from stair_jax.run.workdir import Run
from stair_jax.serve import running
from stair_jax.serve.limits import Limits
from stair_jax.serve.served import Served
from stair_jax.text import OUTPUT, OUTPUT_END, STEP, STEP_END, Codec
from tests.support import specs
from tests.support.configs import tiny
from tests.support.scripted import ScriptedRewardModel

CHAIN = [mini.HEADER_END, STEP, "problem", "is", "safe", STEP_END]
CHAIN += [OUTPUT, "final", "answer", ":", "yes", "it", "can", OUTPUT_END]
REASONING, CONTENT = "problem is safe", "yes it can"
ANSWER = " ".join(CHAIN[1:])
WORDS = [*CHAIN[2:], "loop", "what", "can", "you", "do", "?", "end", "one", "two", "three"]
VOCABULARY = list(dict.fromkeys([*mini.SPECIALS, *mini.ROLES, *WORDS]))
SPEC = specs.llama(L=1, D=len(VOCABULARY), N=2, K=1, H=8, F=16, V=len(VOCABULARY))
ENGINE = EngineConfig(
    slots=4, page_size=4, pool_bytes=0, max_context=96, chunk=2, prefill_rows=2, dtype="float32"
)
SHARP = 12.0  # of the logits: nats between the token that follows and the others
TIMEOUT_S = 120.0
KEY = "a-key-of-many-letters"


def make_tokenizer():
    ids = {word: i for i, word in enumerate(VOCABULARY)}
    raw = Tokenizer(tokenizer_models.WordLevel(ids, unk_token=mini.UNK))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=mini.PAD,
        unk_token=mini.UNK,
        bos_token=mini.BOS,
        eos_token=mini.EOS,
        extra_special_tokens=[mini.HEADER, mini.HEADER_END, *text.TAGS],
        clean_up_tokenization_spaces=False,
    )


@functools.cache
def codec():
    return Codec(make_tokenizer(), "llama3")


def id_of(word):
    return VOCABULARY.index(word)


@functools.cache
def talking():
    """Weights of a model that says CHAIN behind a chat, and "loop" behind "loop"."""
    params = jax.device_get(transformer.init(SPEC, jax.random.key(0)))
    follows = dict(itertools.pairwise(CHAIN)) | {
        "loop": "loop",
        "one": "two",
        "end": mini.EOS,
    }
    head = np.zeros((SPEC.V, SPEC.D), np.float32)
    for word, after in follows.items():
        head[id_of(after), id_of(word)] = 1.0
    layers = dict(params["layers"])
    for name in ("wo", "w_down"):
        layers[name] = np.zeros_like(layers[name])
    norm = np.full_like(params["norm"], SHARP / np.sqrt(SPEC.D))
    return params | {
        "embed": np.eye(SPEC.V, dtype=np.float32),
        "head": head,
        "norm": norm,
        "layers": layers,
    }


@functools.cache
def random_weights():
    """Weights of a model whose words depend on all before them."""
    params = jax.device_get(transformer.init(SPEC, jax.random.key(3)))
    return jax.tree.map(lambda x: x * 4 if x.ndim > 2 else x * 1.5, params)


def serve_model(folder, name="sft", weights=None, *, direct=False, search=False, **change):
    """A model ready to be served, with an engine of its own."""
    config = dataclasses.replace(ENGINE, **change)
    run = Run(tiny(workdir=str(folder)), folder, Lineage(folder / "lineage.json"), Metrics(folder))
    run.config.evaluate.max_tokens = 40
    model = Model(name, name, BASELINES if direct else SFT)
    if search and "prm" not in run.lineage.entries:
        run.lineage.begin("prm", "prm", {}, ())
        run.lineage.finish("prm", "prm", readout=ScriptedRewardModel.readout.to_json())
    (placed,) = placing.place(SPEC, weights or talking(), [None], dtype="float32")
    return Served(
        name=name,
        run=run,
        policy=Policy(model, SPEC, None, codec()),
        engine=Engine(SPEC, placed, config=config, stops=codec().stops, vocab=codec().size),
        reader=Alternatives(SPEC, placed, config=config),
        reward_model=ScriptedRewardModel(codec()) if search else None,
    )


class Running:
    """A server in a thread of its own, until `stop`."""

    def __init__(self, models, key="", **limits):
        self.models, self.failed = models, None
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.root = f"http://127.0.0.1:{self.port}"
        self.url = f"{self.root}/v1"
        slots = sum(model.engine.config.slots for model in models)
        self.limits = Limits(**{"slots": slots, "timeout_s": TIMEOUT_S, "drain_s": 20.0} | limits)
        self._key, self._started = key, threading.Event()
        self._thread = threading.Thread(target=self._run, name="server")
        self._thread.start()
        assert self._started.wait(TIMEOUT_S)

    def _run(self):
        self.failed = asyncio.run(
            running.listen(self.models, self._listening, self.limits, self._key, self._begun)
        )

    def _begun(self, desk, server):
        self.desk, self.server, self._loop = desk, server, asyncio.get_running_loop()
        self._started.set()

    def tell(self, what):
        """Calls something in the server's event loop, and waits for it."""

        async def told():
            what()

        asyncio.run_coroutine_threadsafe(told(), self._loop).result(TIMEOUT_S)

    def ask_to_stop(self):
        """What SIGTERM does."""
        self.server.should_exit = True

    def stop(self):
        self.ask_to_stop()
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()
        self._listening.close()


@contextlib.contextmanager
def serving(models, key="", **limits):
    server = Running(models, key, **limits)
    try:
        yield server
    finally:
        server.stop()


def pages_used(model):
    return model.engine.occupancy["pages_used"]


def pages_held(model):
    """What the scripted reward model still holds of sequences."""
    return model.reward_model.held


def wait_until(true, seconds=TIMEOUT_S):
    """Waits for something that another thread does."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.005)


def greedy(model, ids, count):
    """What the model's decoder says by one forward a token, without engine or cache."""
    weights = random_weights() if model == "random" else talking()
    ids = list(ids)
    for _ in range(count):
        ids.append(int(logps_of(weights, ids)[-1].argmax()))
        if ids[-1] in codec().end_stop:
            break
    return ids


def logps_of(weights, ids):
    """Log-probs of what may follow each token, [N, V], from one forward."""
    row = np.zeros((1, ENGINE.max_context), np.int32)
    row[0, : len(ids)] = ids
    return np.asarray(_forward(weights, row))[0, : len(ids)]


@jax.jit
def _forward(params, tokens):
    hidden, _ = transformer.Decoder(SPEC, jnp.float32).apply({"params": params}, tokens)
    return jax.nn.log_softmax(heads.logits(params, hidden, SPEC))
