"""The operations that have more than one implementation, and which one runs.

Shape letters: B batch  T queries  S keys  N query heads  K kv heads  G = N/K  H head dim
"""

import functools
import logging
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from stair_jax.kernels import paged_attention as paged_kernel
from stair_jax.kernels import plans as kernel_plans
from stair_jax.kernels import top_k as top_k_kernel
from stair_jax.ops import chunked_logp as linear_logp_body
from stair_jax.ops import products

log = logging.getLogger(__name__)

ATTENTION = ("auto", "xla", "cudnn")
PAGED = ("auto", "xla", "pallas")
QUERY_BLOCKS, LEAST_QUERIES = 8, 512  # of packed rows in cuDNN: at most so many, at least so long
NO_KEYS = paged_kernel.EMPTY  # the log-sum-exp of attention over no keys
merge_attention = paged_kernel.merge
top_k = top_k_kernel.exact_top_k  # XLA alone sorts whole rows of logits on a GPU
group_maxima, GROUP = top_k_kernel.group_maxima, top_k_kernel.GROUPS[0]


def matmul(
    x: Float[Array, "..."], w: Float[Array, "..."], *, over: int = 1, out: Any = jnp.float32
) -> jax.Array:
    """Returns the product over the last `over` axes of x and the first of w, in the dtype `out`.

    It multiplies in the dtype of `x`, in the backward pass as well, and adds in float32. Give `w`
    as it is stored, not cast: its gradient then comes in that dtype, see `products.dot_general`.

    It is handed to XLA as one 2-D product: with batch and time apart, the weight gradients are
    transposed copies first, which costs a sixth of a training step on CPU.
    """
    rows, outer = x.shape[: x.ndim - over], w.shape[over:]
    x_2 = x.reshape(math.prod(rows), -1)
    w_2 = w.reshape(x_2.shape[1], -1)
    y_2: Any = products.dot_general(x_2, w_2, (((1,), (0,)), ((), ())), out)
    return y_2.reshape(*rows, *outer)


def attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S K H"],
    v: Float[Array, "B S K H"],
    *,
    mask: Bool[Array, "B T S"] | None = None,
    causal: bool = False,
    reach: Int[Array, "B S"] | None = None,
    implementation: str = "auto",
    recompute: bool = False,
) -> Float[Array, "B T N H"]:
    """Returns grouped-query attention, softmax(q kᵀ / √H) v, with the softmax in float32.

    Args:
        mask: True where a query sees a key; every query must see one key at least.
        causal: query t sees the keys 0..t (T = S).
        reach: query t sees key s where s <= t < reach[s] (T = S), see `visible`. Exactly one of
            `mask`, `causal` and `reach` is given.
        implementation: "xla" runs everywhere; "cudnn" is fused, for `causal` and `reach` in 16 bit
            on a GPU; "auto" takes "cudnn" where it can run, else "xla", and logs the choice once.
        recompute: the backward pass computes the scores again instead of keeping them, as a
            fused implementation does in any case.

    Raises:
        ValueError: an unknown implementation, or one that cannot run here.
    """
    if implementation not in ATTENTION:
        raise ValueError(f"attention {implementation!r} is unknown, expected one of {ATTENTION}")
    if (mask is not None) + causal + (reach is not None) != 1:
        raise ValueError("attention wants exactly one of mask, causal and reach")
    if mask is None and q.shape[1] != k.shape[1]:
        raise ValueError(f"causal attention wants T = S, found {q.shape[1]} and {k.shape[1]}")
    refusal = _cudnn_refusal(q, masked=mask is not None, packed=reach is not None)
    if implementation == "auto":
        implementation = "xla" if refusal else "cudnn"
        _say_once("attention", implementation, refusal)
    elif implementation == "cudnn" and refusal:
        raise ValueError(f"attention 'cudnn' cannot run here: {refusal}")
    if implementation == "cudnn":
        if reach is not None:
            return _cudnn_by_blocks(q, k, v, reach)
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation="cudnn")
    seen = mask if reach is None else visible(reach)
    # The layers are scanned, so XLA cannot take the two computations for one.
    body = jax.checkpoint(_xla, prevent_cse=False) if recompute else _xla
    return body(q, k, v, seen)


def visible(
    reach: Int[Array, "B S"], first: int = 0, stop: int | None = None
) -> Bool[Array, "B T U"]:
    """Returns who sees whom in rows of depth-first order: [b, t, s] where s <= t < reach[b, s].

    With `reach` the end of the subtree of a token's node, that is causality along every path; for
    sequences side by side it is causality within each.

    Args:
        first: the first of the T queries; all are tokens `first` to `stop`.
        stop: the end of the queries, and of the U keys; by default the end of the row.
    """
    stop = reach.shape[1] if stop is None else stop
    t_1T1, s_11U = jnp.arange(first, stop)[None, :, None], jnp.arange(stop)[None, None]
    return (s_11U <= t_1T1) & (t_1T1 < reach[:, None, :stop])


def _cudnn_by_blocks(
    q: jax.Array, k: jax.Array, v: jax.Array, reach: Int[Array, "B S"]
) -> jax.Array:
    """Returns attention of packed rows, one block of queries after the other.

    cuDNN takes a mask as a bias that it adds to all scores, T x S of a call. A block of queries is
    a call of its own over the keys up to its end: with n blocks the bias is an n-th, and the
    products (n + 1) / 2n of those over all keys.
    """
    T = q.shape[1]
    size = max(-(-T // QUERY_BLOCKS), LEAST_QUERIES)
    size += size % 2  # cuDNN wants even lengths under a bias

    def attend(
        q: jax.Array, k: jax.Array, v: jax.Array, reach: jax.Array, first: int, stop: int
    ) -> jax.Array:
        mask = visible(reach, first, stop)[:, None]
        queries, keys, values = q[:, first:stop], k[:, :stop], v[:, :stop]
        return jax.nn.dot_product_attention(
            queries, keys, values, mask=mask, implementation="cudnn"
        )

    # What cuDNN computed is kept. Slices and biases are made again in the backward pass: kept, they
    # would lie beside the feed-forward's activations, where a step's memory peaks.
    block = jax.checkpoint(attend, policy=is_fused_attention, static_argnums=(4, 5))
    blocks = [block(q, k, v, reach, first, min(first + size, T)) for first in range(0, T, size)]
    return jnp.concatenate(blocks, axis=1)


def is_fused_attention(primitive: Any, *_: Any, **__: Any) -> bool:
    """Returns whether a primitive is cuDNN's attention, as JAX names it."""
    return "dot_product_attention" in primitive.name


def _cudnn_refusal(q: jax.Array, *, masked: bool, packed: bool) -> str:
    """Returns why cuDNN cannot serve this call, or nothing when it can."""
    dtype, head_dim = q.dtype, q.shape[-1]
    if masked:
        return "it is used for causal attention without a mask"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"cuDNN computes in bfloat16 or float16, found {dtype}"
    if head_dim % 8:
        return f"it wants a head dim divisible by 8, found {head_dim}"
    if packed and q.shape[1] % 2:
        return f"it wants an even number of tokens for packed rows, found {q.shape[1]}"
    if jax.default_backend() != "gpu":
        return f"it needs a GPU, found {jax.default_backend()}"
    return ""


@functools.cache
def _say_once(what: str, choice: str, refusal: str) -> None:
    log.info("%s auto: %s%s", what, choice, f" ({refusal})" if refusal else "")


def linear_logp(
    hidden: Float[Array, "X D"],
    head: Float[Array, "V D"],
    target: Int[Array, " X"],
    wanted: Bool[Array, " X"],
    *,
    vocab: int,
    chunk: int,
) -> tuple[Float[Array, " X"], Bool[Array, " X"]]:
    """Returns log softmax(head h) at each wanted target, float32 nats, and whether it is the top.

    Positions that are not wanted cost nothing; they get 0 and False. A target that shares the
    largest logit counts as the top. On a mesh, positions lie over data and fsdp and the head as
    `mesh.RULES` has it; matrix products are those of the dtype of `hidden`, while the head's
    gradient is summed in float32 and comes in the dtype of `head`.

    Args:
        vocab: rows of the head that are tokens; those from there on are padding, of probability 0.
        chunk: positions whose logits a device holds at once.

    Raises:
        ValueError: a `vocab` or a `chunk` out of range.
    """
    if not 0 < vocab <= head.shape[0]:
        raise ValueError(f"vocab {vocab}, expected 1 to the {head.shape[0]} rows of the head")
    if chunk < 1:
        raise ValueError(f"chunk {chunk}, expected 1 or more positions")
    plan = linear_logp_body.plan(hidden, head, vocab=vocab, chunk=chunk)
    return linear_logp_body.linear_logp(plan, hidden, head, target, wanted)


def paged_attention(
    q: Float[Array, "R K M H"],
    k: Float[Array, "L P K Z H"],
    v: Float[Array, "L P K Z H"],
    layer: Int[Array, ""] | int,
    table: Int[Array, "R W"],
    length: Int[Array, " R"],
    *,
    scale: float,
    implementation: str,
) -> tuple[Float[Array, "R K M H"], Float[Array, "R K M"]]:
    """Returns attention of M queries a row and kv head over the row's pages, and its log-sum-exp.

    All queries of a row see its first `length` tokens; a row without any gets zeros and `NO_KEYS`.

    Args:
        k: keys of the whole pool; a layer of it is never copied. So is `v`.
        table: page ids; the token at position p lies in page table[p // Z] at p % Z.
        implementation: "xla" runs everywhere; "pallas" is fused, for a GPU. See `paged_choice`.
    """
    bodies = {"xla": paged_kernel.reference, "pallas": paged_kernel.paged_attention}
    body = functools.partial(bodies[implementation], scale=scale)
    ways = dict(jax.sharding.get_abstract_mesh().shape).get("tensor", 1)
    if implementation == "pallas" and ways > 1 and k.shape[2] % ways == 0:
        # XLA cannot look into a kernel: left to itself it would gather the whole pool.
        heads, pool, same = P(None, "tensor"), P(None, None, "tensor"), P()
        body = jax.shard_map(
            body,
            in_specs=(heads, pool, pool, same, same, same),
            out_specs=(heads, heads),
            check_vma=False,
        )
    return body(q, k, v, jnp.asarray(layer), table, length)


def paged_choice(implementation: str) -> str:
    """Returns the implementation of paged attention that runs here: "xla" or "pallas".

    "auto" takes "pallas" where it can run, else "xla", and logs the choice once.

    Raises:
        ValueError: an unknown implementation, or one that cannot run here.
    """
    if implementation not in PAGED:
        raise ValueError(f"attention {implementation!r} is unknown, expected one of {PAGED}")
    backend = jax.default_backend()
    refusal = "" if backend == "gpu" else f"pallas needs a GPU, found {backend}"
    if implementation == "auto":
        implementation = "xla" if refusal else "pallas"
        _say_once("paged attention", implementation, refusal)
    elif implementation == "pallas" and refusal:
        raise ValueError(f"attention 'pallas' cannot run here: {refusal}")
    return implementation


def keep_plans(path: pathlib.Path) -> None:
    """Makes this process use the kernel's plans of a run, kept in `path`; none exist off a GPU.

    They decide the order of sums: a run that goes on must not get another one, tuned meanwhile.

    Raises:
        ValueError: a file that cannot be read.
    """
    if jax.default_backend() == "gpu":
        kernel_plans.keep(path, jax.local_devices()[0].device_kind)


def _xla(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns attention as two einsums; causal where `mask` is None.

    Heads come first and a group's queries lie below each other as rows R = G T: both products are
    then plain batched ones, which costs a quarter less on CPUs. The division by the softmax's sum
    comes last, over H columns in place of S.
    """
    B, T, N, H = q.shape
    S, K = k.shape[1], k.shape[2]
    G = N // K
    rows = lambda x: x.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)  # noqa: E731
    q_BKRH, k_BKSH, v_BKSH = rows(q), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    heads = ((0, 1), (0, 1))
    score_BKRS = products.dot_general(q_BKRH, k_BKSH, (((3,), (3,)), heads), jnp.float32)
    keep = jnp.tril(jnp.ones((1, T, S), bool)) if mask is None else mask
    score_BKRS = jnp.where(jnp.tile(keep, (1, G, 1))[:, None], score_BKRS * H**-0.5, -jnp.inf)
    top_BKR1 = jax.lax.stop_gradient(score_BKRS.max(axis=-1, keepdims=True))
    weight_BKRS = jnp.exp(score_BKRS - top_BKR1)
    out_BKRH: Any = products.dot_general(
        weight_BKRS.astype(v.dtype), v_BKSH, (((3,), (2,)), heads), jnp.float32
    )
    out_BKGTH = (out_BKRH / weight_BKRS.sum(axis=-1, keepdims=True)).reshape(B, K, G, T, H)
    return out_BKGTH.transpose(0, 3, 1, 2, 4).reshape(B, T, N, H).astype(v.dtype)
