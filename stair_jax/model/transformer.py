"""The decoder: a Flax module over scanned layers, one program text for Llama, Qwen2 and Qwen3.

Shape letters (a suffix `x_BTD` is the shape of `x`):
  B batch   T tokens of this call   S key slots   D model   F ffn   V vocab   L layers
  N query heads   K kv heads   H head dim (h = H/2)
Parameters are declared where they are used, in float32, with their logical axes beside them, and
are cast to `dtype` to compute; norms, rotary embedding and softmax stay in float32.
"""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from stair_jax import mesh, ops
from stair_jax.model import lora
from stair_jax.model.cache import Rows
from stair_jax.model.layout import Layout
from stair_jax.model.spec import Spec

Params = Any  # a plain tree of arrays; those under "layers" have a leading layer axis
REMAT = ("none", "attention", "products", "full")
_NORMAL = nn.initializers.normal(0.02)  # of the embedding and the head
UNROLL = 4  # up to here the layers are unrolled: the tiny model trains a seventh faster on CPU


def rms_norm(x: Float[Array, "*B D"], g: Float[Array, " D"], eps: float) -> Float[Array, "*B D"]:
    """Returns x over its root mean square, times g; in float32, back to the dtype of `x`."""
    x32 = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + eps)
    gain = g.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + g.shape)
    return (x32 * scale * gain).astype(x.dtype)


def rope_frequencies(spec: Spec) -> np.ndarray:
    """Returns the angle per position of each pair of a head, [h] float32 radians.

    Source: Su et al. 2021, section 3.2.2; the scaling is Llama 3.1's (`llama-models`,
    `apply_scaling`): waves longer than original / low are slowed by `factor`, those shorter than
    original / high are kept, and a linear blend joins them.
    """
    exponent_h = np.arange(0, spec.H, 2, dtype=np.float32) / np.float32(spec.H)
    freq_h = 1.0 / np.float32(spec.theta) ** exponent_h
    s = spec.rope_scaling
    if s is None:
        return freq_h
    waves_h = s.original * freq_h / np.float32(2 * np.pi)  # turns within the original context
    keep_h = np.clip((waves_h - s.low) / (s.high - s.low), 0, 1)
    return (keep_h * freq_h + (1 - keep_h) * freq_h / s.factor).astype(np.float32)


def rope(
    x: Float[Array, "B T N H"], cos: Float[Array, "R T 1 h"], sin: Float[Array, "R T 1 h"]
) -> Float[Array, "B T N H"]:
    """Returns x turned by its angles; half-split layout as in Hugging Face checkpoints."""
    lo, hi = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([lo * cos - hi * sin, hi * cos + lo * sin], axis=-1).astype(x.dtype)


def _declare(module: nn.Module, name: str, shape: Any, axes: tuple[str | None, ...], init: Any):
    """Returns one float32 parameter of a module, declared with its logical axes."""
    x: Any = module.param(name, nn.with_logical_partitioning(init, axes), shape)
    return x


@dataclasses.dataclass(frozen=True)
class Joined:
    """Weights of a layer, without the layer axis, that one product can serve."""

    parts: tuple[str, ...]
    axes: tuple[str | None, ...]  # logical axes of the whole


# Query heads lie beside the key and value head that they read, [.., K, G + 2, H], so that a device
# that has some of the kv heads has a part of this by one cut.
JOINED = {
    "wqkv": Joined(("wq", "wk", "wv"), ("embed", "kv_head", None, "head")),
    "bqkv": Joined(("bq", "bk", "bv"), ("kv_head", None, "head")),
    "w_gate_up": Joined(("w_gate", "w_up"), ("embed", "ffn", None)),
}


def join(name: str, parts: Sequence[Any], spec: Spec) -> Any:
    """Returns the whole of JOINED[name] from its parts, all of JAX or all of NumPy."""
    xp = np if isinstance(parts[0], np.ndarray) else jnp
    if name == "w_gate_up":
        return xp.stack(parts, axis=-1)
    lead, H = parts[0].shape[:-2], parts[0].shape[-1]
    grouped = [x.reshape(*lead, spec.K, x.shape[-2] // spec.K, H) for x in parts]
    return xp.concatenate(grouped, axis=-2)


class Layer(nn.Module):
    """One pre-norm block. The carry is (activations, cache); XLA updates the cache in place."""

    spec: Spec
    dtype: Any
    attention: str
    recompute: bool = False  # attention's scores in the backward pass, instead of keeping them
    lora_scale: float = 0.0

    def weight(self, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...], init=None):
        """Returns one parameter as it is stored; `product` casts it to compute.

        Matrices start at 1 / sqrt(fan-in), which is 0.016 at D = 4096; the usual 0.02 leaves the
        attention of narrow models so flat that they learn to copy late.
        """
        fan_in = math.prod(shape[: 2 if axes[0] == "q_head" else 1])  # wo sums over heads too
        init = init or nn.initializers.normal(fan_in**-0.5)
        return _declare(self, name, shape, axes, init)

    def gain(self, name: str, size: int):
        """Returns the gain of a norm, in float32."""
        return _declare(self, name, (size,), (None,), nn.initializers.ones)

    def product(self, name: str, x: jax.Array, w: jax.Array, over: int = 1) -> jax.Array:
        """Returns x w, and what the adapter called `name` adds to it where there is one."""
        if not self.has_variable("lora", name):  # static
            return ops.matmul(x, w, over=over, out=self.dtype)
        y = ops.matmul(x, w, over=over)
        y += self.lora_scale * lora.product(x, self.get_variable("lora", name), over=over)
        return y.astype(self.dtype)

    def project(self, name: str, x_BTD: jax.Array, heads: int, axis: str) -> jax.Array:
        """Returns the projection of `x` to `heads` heads, with a bias where the spec has one."""
        s = self.spec
        w_DNH = self.weight(f"w{name}", (s.D, heads, s.H), ("embed", axis, "head"))
        y_BTNH = self.product(name, x_BTD, w_DNH)
        if s.qkv_bias:
            b_NH = self.weight(f"b{name}", (heads, s.H), (axis, "head"), nn.initializers.zeros)
            y_BTNH += b_NH[None, None].astype(self.dtype)
        return y_BTNH

    def project_together(self, x_BTD: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns queries, keys and values of `x` from one product; see `join`."""
        s = self.spec
        (B, T, _), G = x_BTD.shape, s.N // s.K
        w_DKXH = self.weight("wqkv", (s.D, s.K, G + 2, s.H), JOINED["wqkv"].axes)
        y_BTKXH = self.product("qkv", x_BTD, w_DKXH)
        if s.qkv_bias:
            shape, zeros = (s.K, G + 2, s.H), nn.initializers.zeros
            y_BTKXH += self.weight("bqkv", shape, JOINED["bqkv"].axes, zeros)[None, None]
        q_BTNH = y_BTKXH[..., :G, :].reshape(B, T, s.N, s.H)
        return q_BTNH, y_BTKXH[..., G, :], y_BTKXH[..., G + 1, :]

    @nn.compact
    def __call__(self, carry, layer, rows, cos, sin, reach):
        """Returns (the next carry, None), the form that `nn.scan` wants."""
        s = self.spec
        x_BTD, cache = carry
        h_BTD = rms_norm(x_BTD, self.gain("attn_norm", s.D), s.eps)
        if self.has_variable("params", "wqkv"):  # static, as below
            q_BTNH, k_BTKH, v_BTKH = self.project_together(h_BTD)
        else:
            q_BTNH = self.project("q", h_BTD, s.N, "q_head")
            k_BTKH = self.project("k", h_BTD, s.K, "kv_head")
            v_BTKH = self.project("v", h_BTD, s.K, "kv_head")
        if s.qk_norm:
            q_BTNH = rms_norm(q_BTNH, self.gain("q_norm", s.H), s.eps)
            k_BTKH = rms_norm(k_BTKH, self.gain("k_norm", s.H), s.eps)
        q_BTNH, k_BTKH = rope(q_BTNH, cos, sin), rope(k_BTKH, cos, sin)
        if cache is None:  # static: a different program, not a branch
            y_BTNH = ops.attention(
                q_BTNH,
                k_BTKH,
                v_BTKH,
                causal=reach is None,
                reach=reach,
                implementation=self.attention,
                recompute=self.recompute,
            )
        else:
            y_BTNH, cache = cache.attend(layer, rows, q_BTNH, k_BTKH, v_BTKH)
        wo_NHD = self.weight("wo", (s.N, s.H, s.D), ("q_head", "head", "embed"))
        x_BTD += self.product("o", y_BTNH, wo_NHD, over=2)

        h_BTD = rms_norm(x_BTD, self.gain("mlp_norm", s.D), s.eps)
        if self.has_variable("params", "w_gate_up"):
            w_DF2 = self.weight("w_gate_up", (s.D, s.F, 2), JOINED["w_gate_up"].axes)
            both_BTF2 = self.product("gate_up", h_BTD, w_DF2)
            gate_BTF, up_BTF = both_BTF2[..., 0], both_BTF2[..., 1]
        else:
            w_gate_DF = self.weight("w_gate", (s.D, s.F), ("embed", "ffn"))
            w_up_DF = self.weight("w_up", (s.D, s.F), ("embed", "ffn"))
            gate_BTF = self.product("gate", h_BTD, w_gate_DF)
            up_BTF = self.product("up", h_BTD, w_up_DF)
        w_down_FD = self.weight("w_down", (s.F, s.D), ("ffn", "embed"))
        x_BTD += self.product("down", nn.silu(gate_BTF) * up_BTF, w_down_FD)
        return (mesh.constrain(x_BTD, "batch", "time", None), cache), None


def _is_costly(primitive: Any, *_: Any, **params: Any) -> bool:
    """Returns whether "products" keeps what a primitive gives: what is dear to compute again.

    The scores of attention, where they are formed, are a batched product: they are not kept.
    """
    if "call_jaxpr" in params:  # a function with a gradient of its own: `products.dot_general`
        return any(_is_costly(e.primitive, **e.params) for e in params["call_jaxpr"].eqns)
    if primitive is jax.lax.dot_general_p:
        return not any(params["dimension_numbers"][1])
    return ops.is_fused_attention(primitive)


_RECOMPUTING: dict[str, Any] = {
    "full": partial(nn.remat, prevent_cse=False),
    "products": partial(nn.remat, prevent_cse=False, policy=_is_costly),
}


class Decoder(nn.Module):
    """A Llama-family decoder: tokens in, hidden states out, and the grown cache.

    `remat` is what the backward pass computes again: "full" keeps only each layer's input,
    "products" what products with weights and fused attention gave as well, "attention" all but
    attention's scores, "none" everything. `attention` is an implementation of `ops.attention`.
    Adapters, the collection "lora" of `lora.init`, count `lora_scale` times.
    """

    spec: Spec
    dtype: Any = jnp.bfloat16
    remat: str = "none"
    attention: str = "auto"
    lora_scale: float = 0.0

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        cache: Any = None,
        rows: Rows | None = None,
        layout: Layout | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """Returns hidden states after the final norm, and the cache with the new tokens in it.

        Without a cache: causal over T, where padding at the right changes nothing to its left; or
        along the paths of a `layout`. With one (see `model/cache.py`): `tokens` follow the
        `rows.length` tokens that each row has cached.
        """
        s, T = self.spec, tokens.shape[1]
        self._refuse_what_would_be_ignored(cache, rows, layout)
        pos_RT = jnp.arange(T)[None]  # R is 1 where all rows start at 0, else B
        if rows is not None:
            pos_RT = rows.length[:, None] + pos_RT
        if layout is not None:
            pos_RT = layout.positions
        reach_BT = None if layout is None else layout.reach
        freq_11h = jnp.asarray(rope_frequencies(s))[None, None]
        angle_RT1h = (pos_RT.astype(jnp.float32)[..., None] * freq_11h)[:, :, None]

        embed_VD = _declare(self, "embed", (s.V, s.D), ("vocab", "embed"), _NORMAL)
        if not s.tied:  # used by heads.logits
            _declare(self, "head", (s.V, s.D), ("vocab", "embed"), _NORMAL)
        x_BTD = mesh.constrain(embed_VD[tokens].astype(self.dtype), "batch", "time", None)
        angles = jnp.cos(angle_RT1h), jnp.sin(angle_RT1h)
        if rows is not None and isinstance(self.variables["params"].get("layers"), list):
            x_BTD, cache = self._one_by_one(x_BTD, cache, rows, *angles)
        else:
            x_BTD, cache = self._scanned(x_BTD, cache, rows, *angles, reach_BT)
        norm_D = _declare(self, "norm", (s.D,), (None,), nn.initializers.ones)
        return rms_norm(x_BTD, norm_D, s.eps), cache

    def _refuse_what_would_be_ignored(self, cache: Any, rows: Any, layout: Any) -> None:
        """Raises ValueError for arguments and adapters that the forward pass would not use."""
        if self.remat not in REMAT:
            raise ValueError(f"remat {self.remat!r} is unknown, expected one of {REMAT}")
        if (cache is None) != (rows is None):
            raise ValueError("the decoder wants a cache and rows together, found one of them")
        if layout is not None and rows is not None:
            raise ValueError("the decoder wants a layout or cached rows, found both")
        adapters = self.variables.get("lora")
        if adapters is None:
            return
        if unknown := ({*adapters} - {"layers"}) | ({*adapters["layers"]} - {*lora.TARGETS}):
            raise ValueError(f"lora: {sorted(unknown)} fit no target of {[*lora.TARGETS]}")
        if self.lora_scale == 0:
            raise ValueError("lora: adapters are given, but lora_scale is 0")
        if isinstance(self.variables["params"].get("layers"), list):
            raise ValueError("lora: weights parted by layer take no adapters, merge them first")

    def _scanned(
        self, x_BTD: jax.Array, cache: Any, rows: Rows | None, cos: Any, sin: Any, reach_BT: Any
    ) -> Any:
        """Returns activations and cache after all layers; it declares their parameters."""
        s = self.spec
        # Unrolled, XLA would see a recomputation as common and undo it: a scan keeps it apart.
        unroll = s.L if s.L <= UNROLL and self.remat == "none" else 1
        per_layer: Any = (0, *(nn.broadcast,) * 4)  # the layer index; the rest is shared
        layers = nn.scan(
            _RECOMPUTING.get(self.remat, lambda layer: layer)(Layer),
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=per_layer,
            length=s.L,
            unroll=unroll,
            metadata_params={nn.PARTITION_NAME: "layer"},
        )(
            s,
            self.dtype,
            self.attention,
            self.remat == "attention",
            self.lora_scale,
            name="layers",
        )
        return layers((x_BTD, cache), jnp.arange(s.L), rows, cos, sin, reach_BT)[0]

    def _one_by_one(self, x_BTD: jax.Array, cache: Any, rows: Rows, cos: Any, sin: Any) -> Any:
        """Returns what `_scanned` does, for parameters that `by_layer` has parted."""
        layer, carry = Layer(self.spec, self.dtype, self.attention), (x_BTD, cache)
        for i, params in enumerate(self.variables["params"]["layers"]):
            carry = layer.apply({"params": params}, carry, i, rows, cos, sin, None)[0]
        return carry


def _boxed(spec: Spec, key: jax.Array) -> Any:
    return Decoder(spec, jnp.float32).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def init(spec: Spec, key: jax.Array) -> Params:
    """Returns random float32 parameters, a plain tree; `key` is consumed. May be jitted."""
    return nn.meta.unbox(_boxed(spec, key))


def by_layer(params: Params) -> Params:
    """Returns parameters with a list of layers in place of arrays with a layer axis.

    For decoding: XLA copies what it slices off a stack, so every token would move all weights
    once more.
    """
    stacked = params["layers"]
    count = len(jax.tree.leaves(stacked)[0])
    layers = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(count)]
    return {**params, "layers": layers}


def logical_axes(spec: Spec) -> Any:
    """Returns the tree of `init` with a tuple of logical axis names for each parameter."""
    specs = nn.get_partition_spec(jax.eval_shape(partial(_boxed, spec), jax.random.key(0)))
    return jax.tree.map(tuple, specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))


def joined(params: Params, spec: Spec) -> Params:
    """Returns parameters of `by_layer` with the weights joined that one product can serve."""

    def of_layer(layer: Any) -> Any:
        wholes = {name: whole for name, whole in JOINED.items() if whole.parts[0] in layer}
        parts = {part for whole in wholes.values() for part in whole.parts}
        return {name: x for name, x in layer.items() if name not in parts} | {
            name: join(name, [layer[part] for part in whole.parts], spec)
            for name, whole in wholes.items()
        }

    return {**params, "layers": [of_layer(layer) for layer in params["layers"]]}


def logical_axes_by_layer(spec: Spec) -> Any:
    """Returns the logical axes of what `by_layer` returns; those of `joined` are in `JOINED`."""
    axes = logical_axes(spec)
    layer = jax.tree.map(lambda a: a[1:], axes["layers"], is_leaf=lambda a: isinstance(a, tuple))
    return {**axes, "layers": [layer] * spec.L}
