"""Attention of a few queries a row over keys that lie in pages of a pool: kernel and oracle.

Shape letters: R rows  K kv heads  M queries a row on one kv head  H head dim  L layers  P pages
W pages a row  Z tokens a page  S = W * Z  X splits of a row's tokens
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from stair_jax.kernels import plans  # pyright: ignore[reportAttributeAccessIssue]

if TYPE_CHECKING:  # a checker looks for it where it lies
    from kernels.plans import DEFAULT, Plan
else:
    from stair_jax.kernels.plans import DEFAULT, Plan

EMPTY = -1e30  # the log-sum-exp of no keys: finite, so that differences of it are never nan
TILE = 16  # a matrix unit's smallest side
QUERIES = 64  # queries of one program at most: more would not fit into its registers
STEP = 16384  # bytes of keys that a step of the loop reads: two steps in flight fill the memory bus
PROGRAMS = 512  # programs that fill a GPU of 132 multiprocessors a few times over
SPLITS = 16  # of one row at most: each writes its part of the result
_LOG2E = math.log2(math.e)


def paged_attention(
    q: Float[Array, "R K M H"],
    k: Float[Array, "L P K Z H"],
    v: Float[Array, "L P K Z H"],
    layer: Int[Array, ""] | int,
    table: Int[Array, "R W"],
    length: Int[Array, " R"],
    *,
    scale: float,
    plan: Plan | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "R K M H"], Float[Array, "R K M"]]:
    """Returns what `reference` returns, by one kernel that reads each key of a row once.

    Bytes: 2 K H sum(length) of the pool's dtype, the queries, and 4 R K M (H + 1) out, three times
    that with splits. FLOPs: 4 K M H sum(length); with M below 16 the matrix units do as many as
    with 16. So a decode step with M = 4 in bfloat16 does 4 FLOPs a byte: memory sets its time, and
    more queries a row (siblings over their shared prefix) cost nothing until M reaches a hundred.

    A row's result depends on its own queries, keys and length and on how many rows there are, not
    on W or on the other rows. On GPUs from sm_80; under a mesh, call it within `shard_map`.

    Args:
        q: queries; they are rounded to the pool's dtype, as the softmax's weights are.
        k: the whole pool, as is `v`, and `layer` into it: a slice of it would be copied.
        table: see `reference`.
        plan: None for that of the kind of GPU that is compiled for, see `plans.plan_for`.
        interpret: runs it on any device, slowly: for tests.

    Raises:
        ValueError: a body that is not one of `BODIES`.

    Source: Dao et al. 2022, "FlashAttention", algorithm 1; splits as in Dao et al. 2023,
    "Flash-Decoding for long-context inference".
    """
    R, K, M, H = q.shape
    L, P, _, Z, _ = k.shape
    size = _Size(K=K, M=M, H=H, P=P, Z=Z, W=table.shape[1])
    if plan is None:
        plan = DEFAULT if interpret else _plan_here(size, k.dtype.itemsize)
    if plan.body not in BODIES:
        raise ValueError(f"paged attention: no body {plan.body!r}, expected one of {[*BODIES]}")
    plan = _resolved(plan, size, rows=R, itemsize=k.dtype.itemsize)
    flat = (L * P * K * Z, H)  # a view: a row a token, so that one index a token finds it
    ints = (jnp.asarray(layer, jnp.int32)[None], table.astype(jnp.int32), length.astype(jnp.int32))
    out_XRKMH, lse_XRKM = BODIES[plan.body](
        *ints,
        q.astype(k.dtype),
        k.reshape(flat),
        v.reshape(flat),
        size=size,
        plan=plan,
        scale=scale,
        interpret=interpret,
    )
    if plan.splits == 1:
        return out_XRKMH[0], lse_XRKM[0]
    return _joined(out_XRKMH, lse_XRKM)


@dataclasses.dataclass(frozen=True)
class _Size:
    """The static sizes that the kernel's addresses need."""

    K: int
    M: int
    H: int
    P: int
    Z: int
    W: int

    @property
    def queries(self) -> int:
        """Queries of one program, padded to a matrix unit's side."""
        return min(QUERIES, max(TILE, _power_of_two(self.M)))

    @property
    def query_blocks(self) -> int:
        """Programs that a row's queries on one head are cut into."""
        return -(-self.M // self.queries)

    @property
    def columns(self) -> int:
        """The head dim, padded to a power of two."""
        return max(TILE, _power_of_two(self.H))


def _resolved(plan: Plan, size: _Size, *, rows: int, itemsize: int) -> Plan:
    """Returns the plan with what it left open: from the shapes that a row's result may depend on.

    The splits are so many that all programs fill the GPU. W has no part in it: it changes with the
    longest row of a batch, and would change the rounding of all the others.
    """
    block = min(128, max(TILE, STEP // (size.columns * itemsize)))
    fill = -(-PROGRAMS // (rows * size.K * size.query_blocks))
    splits = min(SPLITS, _power_of_two(fill))
    return dataclasses.replace(plan, block=plan.block or block, splits=plan.splits or splits)


def _plan_here(size: _Size, itemsize: int) -> Plan:
    """Returns the plan for the GPU that is compiled for: the mesh's, else the first one here."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.local_devices()[0]
    return plans.plan_for(device.device_kind, _case(size, itemsize))


def case_of(*, queries: int, head_dim: int, itemsize: int) -> str:
    """Returns what a plan for such calls is filed under, see `plans.choose`.

    Args:
        queries: M, of a row on one kv head.
        head_dim: H.
        itemsize: bytes of a key's element.
    """
    return _case(_Size(K=1, M=queries, H=head_dim, P=1, Z=1, W=1), itemsize)


def _case(size: _Size, itemsize: int) -> str:
    return plans.case_of(queries=size.queries, columns=size.columns, itemsize=itemsize)


def _power_of_two(x: int) -> int:
    """Returns the smallest power of two that is no less than x."""
    return 1 << max(0, x - 1).bit_length()


def _triton(
    layer: jax.Array,
    table: jax.Array,
    length: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    size: _Size,
    plan: Plan,
    scale: float,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """Returns each split's attention [X, R, K, M, H] and log-sum-exp [X, R, K, M], float32.

    All that is Pallas' and Triton's is here and in `_program`: a body of `BODIES`.
    """
    # From 0.11 on, JAX warns that this lowering will be removed some day; it is there in 0.12, and
    # no other serves sm_80. A user can do nothing about it, and under `-W error` a run would end.
    # JAX warns when it lowers, after this function has returned: so the filter has to outlive it.
    # It is set at every trace because whoever resets the filters (pytest, for each test) drops it.
    warnings.filterwarnings(
        "ignore", message="The Pallas Triton backend is deprecated", category=DeprecationWarning
    )
    R, X = table.shape[0], plan.splits
    seen = R * size.W * size.Z  # at most
    outs = [(X, R, size.K, size.M, size.H), (X, R, size.K, size.M)]
    call = pl.pallas_call(
        partial(_program, size=size, plan=plan, scale=scale),
        grid=(size.K * size.query_blocks, R, X),
        out_shape=[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in outs],
        compiler_params=triton.CompilerParams(num_warps=plan.warps, num_stages=plan.stages),
        cost_estimate=pl.CostEstimate(
            flops=4 * size.K * size.M * size.H * seen,
            bytes_accessed=2 * size.K * size.H * seen * k.dtype.itemsize,
            transcendentals=size.K * size.M * seen,
        ),
        interpret=interpret,
        name="paged_attention",
    )
    return tuple(call(layer, table, length, q, k, v))


# What computes the splits. Another body (jax_triton with the same program, Mosaic GPU) takes the
# same arguments: layer [1], table [R, W] and length [R] int32; q [R, K, M, H] and the flat pools
# [L P K Z, H] of one dtype; size, a plan with splits and block resolved, scale, interpret.
BODIES: dict[str, Callable[..., tuple[jax.Array, jax.Array]]] = {"triton": _triton}


def _program(
    layer_ref,
    table_ref,
    length_ref,
    q_ref,
    k_ref,
    v_ref,
    out_ref,
    lse_ref,
    *,
    size: _Size,
    plan: Plan,
    scale: float,
):
    """One program: some queries of one row on one kv head, over one split of the row's tokens."""
    s, block, Q = size, plan.block, size.queries
    head, part = pl.program_id(0) // s.query_blocks, pl.program_id(0) % s.query_blocks
    row, split = pl.program_id(1), pl.program_id(2)
    query_Q1, col_1H = part * Q + jnp.arange(Q)[:, None], jnp.arange(s.columns)[None]
    real_1H = col_1H < s.H
    q_QH = triton.load(
        q_ref.at[row, head, query_Q1, col_1H], mask=(query_Q1 < s.M) & real_1H, other=0.0
    )

    length = jnp.minimum(length_ref[row], s.W * s.Z)
    share = jnp.maximum(pl.cdiv(length, plan.splits), plan.share)
    share = pl.cdiv(share, block) * block  # whole blocks, but at the end
    first = split * share
    last = jnp.minimum(first + share, length)

    def step(i, carry):
        out_QH, top_Q, total_Q = carry
        pos_S = first + i * block + jnp.arange(block)
        seen_S = pos_S < last
        page_S = triton.load(table_ref.at[row, jax.lax.div(pos_S, s.Z)], mask=seen_S, other=0)
        token_S = ((layer_ref[0] * s.P + page_S) * s.K + head) * s.Z + jax.lax.rem(pos_S, s.Z)
        mask_SH = seen_S[:, None] & real_1H
        k_SH = triton.load(k_ref.at[token_S[:, None], col_1H], mask=mask_SH, other=0.0)
        score_QS = _dot(q_QH, k_SH, over=1) * (scale * _LOG2E)
        score_QS = jnp.where(seen_S[None], score_QS, EMPTY)
        # a step has one token at least, so the maximum is real and what is masked weighs nothing
        new_top_Q = jnp.maximum(top_Q, score_QS.max(axis=1))
        weight_QS = jnp.exp2(score_QS - new_top_Q[:, None])
        fade_Q = jnp.exp2(top_Q - new_top_Q)
        v_SH = triton.load(v_ref.at[token_S[:, None], col_1H], mask=mask_SH, other=0.0)
        out_QH = out_QH * fade_Q[:, None] + _dot(weight_QS.astype(v_SH.dtype), v_SH, over=0)
        return out_QH, new_top_Q, total_Q * fade_Q + weight_QS.sum(axis=1)

    zero_Q = jnp.zeros(Q, jnp.float32)
    start = (jnp.zeros((Q, s.columns), jnp.float32), zero_Q + EMPTY, zero_Q)
    steps = pl.cdiv(jnp.maximum(last - first, 0), block)
    out_QH, top_Q, total_Q = jax.lax.fori_loop(0, steps, step, start)
    some_Q = total_Q > 0
    total_Q = jnp.where(some_Q, total_Q, 1.0)
    lse_Q = jnp.where(some_Q, (top_Q + jnp.log2(total_Q)) / _LOG2E, EMPTY)
    triton.store(
        out_ref.at[split, row, head, query_Q1, col_1H],
        out_QH / total_Q[:, None],
        mask=(query_Q1 < s.M) & real_1H,
    )
    query_Q = part * Q + jnp.arange(Q)
    triton.store(lse_ref.at[split, row, head, query_Q], lse_Q, mask=query_Q < s.M)


def _dot(x: jax.Array, y: jax.Array, *, over: int) -> jax.Array:
    """Returns the float32 product over the last axis of x and the axis `over` of y.

    HIGHEST keeps float32 operands from being cut to 10 bits of mantissa; 16 bit ones are exact.
    """
    return jax.lax.dot_general(
        x,
        y,
        (((1,), (over,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _joined(out_XRKMH: jax.Array, lse_XRKM: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns attention over all splits: `merge`, of many."""
    top_RKM = lse_XRKM.max(axis=0)
    share_XRKM = jnp.exp(lse_XRKM - top_RKM[None])
    total_RKM = share_XRKM.sum(axis=0)
    out_RKMH = (out_XRKMH * share_XRKM[..., None]).sum(axis=0) / total_RKM[..., None]
    return out_RKMH, jnp.where(top_RKM > EMPTY, top_RKM + jnp.log(total_RKM), EMPTY)


def reference(
    q: Float[Array, "R K M H"],
    k: Float[Array, "L P K Z H"],
    v: Float[Array, "L P K Z H"],
    layer: Int[Array, ""] | int,
    table: Int[Array, "R W"],
    length: Int[Array, " R"],
    *,
    scale: float,
) -> tuple[Float[Array, "R K M H"], Float[Array, "R K M"]]:
    """Returns attention over the first `length` tokens of each row's pages, and its log-sum-exp.

    Args:
        k: the whole pool, of finite numbers; no layer of it is copied.
        table: page ids; the token at position p lies in page table[p // Z] at p % Z. Entries past
            the length may be any number.
        length: tokens that all queries of the row see. A row of none: zeros, and EMPTY.
    """
    R, K, _, H = q.shape
    Z = k.shape[3]
    # indexed by head too, so that the pages come out head-major and the products need no transpose
    at = (layer, table[:, None, :], jnp.arange(K)[None, :, None])
    k_RKSH = k.at[at].get(mode="clip").reshape(R, K, -1, H)
    v_RKSH = v.at[at].get(mode="clip").reshape(R, K, -1, H)
    score_RKMS = jnp.einsum(
        "RKMH,RKSH->RKMS", q.astype(k.dtype), k_RKSH, preferred_element_type=jnp.float32
    )
    seen_R11S = (jnp.arange(table.shape[1] * Z)[None] < length[:, None])[:, None, None]
    score_RKMS = jnp.where(seen_R11S, score_RKMS * scale, EMPTY)
    top_RKM1 = score_RKMS.max(axis=-1, keepdims=True)
    weight_RKMS = jnp.where(seen_R11S, jnp.exp(score_RKMS - top_RKM1), 0.0)
    total_RKM1 = weight_RKMS.sum(axis=-1, keepdims=True)
    out_RKMH = jnp.einsum(
        "RKMS,RKSH->RKMH", weight_RKMS.astype(v.dtype), v_RKSH, preferred_element_type=jnp.float32
    )
    some_RKM1 = total_RKM1 > 0
    total_RKM1 = jnp.where(some_RKM1, total_RKM1, 1.0)
    lse_RKM1 = jnp.where(some_RKM1, top_RKM1 + jnp.log(total_RKM1), EMPTY)
    return out_RKMH / total_RKM1, lse_RKM1[..., 0]


def merge(
    out1: Float[Array, "*B H"],
    lse1: Float[Array, "*B"],
    out2: Float[Array, "*B H"],
    lse2: Float[Array, "*B"],
) -> tuple[Float[Array, "*B H"], Float[Array, "*B"]]:
    """Returns attention over two disjoint sets of keys from that over each, in float32.

    With shares w = e^(lse - max lse), out = (w1 out1 + w2 out2) / (w1 + w2) and the log-sum-exp is
    max + ln(w1 + w2). A side of no keys (EMPTY) leaves the other side's output as it is; two of
    them give zeros and EMPTY.

    Source: FlashInfer, "Cascade Inference", https://flashinfer.ai/2024/02/02/cascade-inference.html
    """
    top = jnp.maximum(lse1, lse2)
    share1, share2 = jnp.exp(lse1 - top), jnp.exp(lse2 - top)
    total = share1 + share2
    out = (out1 * share1[..., None] + out2 * share2[..., None]) / total[..., None]
    return out, jnp.where(top > EMPTY, top + jnp.log(total), EMPTY)
