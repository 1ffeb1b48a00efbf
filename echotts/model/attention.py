"""Attention: plain softmax attention, encoder self-attention, joint attention of the decoder."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float

from echotts.model.layers import Linear, RMSNorm, rms_normalise, rotate

MASKED_SCORE = -1e30  # finite: a row without visible keys attends uniformly instead of becoming NaN
MANY_SCORES = 1 << 16  # per row and head: above, the scores of all heads no longer fit a CPU's cache


@runtime_checkable
class Attend(Protocol):
    """Softmax attention (model/fused.py chooses one): q (b t h d), k and v (b s h d) -> (b t h d), scale 1/sqrt(d).

    `visible` (b s) is True for keys that may be attended, None for all; `causal` masks keys after the query (t = s).
    """

    def __call__(self, q: Any, k: Any, v: Any, visible: Any = None, *, causal: bool = False) -> Any: ...


def attend(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h d"],
    visible: Bool[Array, "b s"] | None = None,
    *,
    causal: bool = False,
) -> Float[Array, "b t h d"]:
    """Attention compiled by XLA, on any platform: matrix products and a float32 softmax."""
    scores = jnp.einsum("bthd,bshd->bhts", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    scores = _hide(scores, None if visible is None else visible[:, None, None], causal)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights, v)


def attend_by_head(
    q: Float[Array, "b t h d"],
    k: Float[Array, "b s h d"],
    v: Float[Array, "b s h d"],
    visible: Bool[Array, "b s"] | None = None,
    *,
    causal: bool = False,
) -> Float[Array, "b t h d"]:
    """`attend` for CPUs: with many scores, processes one head at a time, so that its scores stay in the cache."""
    if q.shape[1] * k.shape[1] < MANY_SCORES:
        return attend(q, k, v, visible, causal=causal)

    def one(head: tuple[Array, Array, Array]) -> Array:
        q, k, v = head  # (b t d), (b s d), (b s d)
        scores = jnp.einsum("btd,bsd->bts", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
        scores = _hide(scores, None if visible is None else visible[:, None], causal)
        weights = jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
        summed = jnp.einsum("bts,bsd->btd", weights.astype(v.dtype), v)
        # divided here, which takes fewer divisions than normalising the weights
        return (summed / weights.sum(axis=-1, keepdims=True)).astype(v.dtype)

    by_head = lax.map(one, (jnp.moveaxis(q, 2, 0), jnp.moveaxis(k, 2, 0), jnp.moveaxis(v, 2, 0)))
    return jnp.moveaxis(by_head, 0, 2)


class HeadNorms(NamedTuple):
    """Parameters that turn the projections of queries and keys into heads."""

    q_gain: Any  # (h d) of the RMS norms
    k_gain: Any
    eps: float
    turned: int  # number of first heads that RoPE rotates


@runtime_checkable
class HeadAttention(Protocol):
    """Everything between a layer's input projections and its output projection; model/fused.py chooses one.

    q and gate (b t w) and the parts of keys and values (b s w) are unprocessed projections. Queries and keys are
    normalised per head (except key parts marked in `normed`); q and the first key part are rotated by `rope`; the
    queries attend to all parts in one softmax; sigmoid(gate) scales the result (b t w). `visible` (b, sum of s) and
    `causal` are as in `Attend`.
    """

    def __call__(
        self,
        q: Any,
        keys: Sequence[Any],
        values: Sequence[Any],
        gate: Any,
        norms: HeadNorms,
        rope: Any,
        visible: Any = None,
        *,
        normed: Sequence[bool],
        causal: bool = False,
    ) -> Any: ...


@functools.cache  # cached, since model structures compare this function by identity
def with_heads(attend: Attend) -> HeadAttention:
    """`HeadAttention` around a softmax attention, compiled by XLA."""

    def attend_heads(
        q: Array,
        keys: Sequence[Array],
        values: Sequence[Array],
        gate: Array,
        norms: HeadNorms,
        rope: Array,
        visible: Array | None = None,
        *,
        normed: Sequence[bool],
        causal: bool = False,
    ) -> Array:
        heads = len(norms.q_gain)
        q = rotate(norm_heads(_split_heads(q, heads), norms.q_gain, norms.eps), rope, norms.turned)
        split = [_split_heads(part, heads) for part in keys]
        parts = [
            part if done else norm_heads(part, norms.k_gain, norms.eps)
            for part, done in zip(split, normed, strict=True)
        ]
        parts[0] = rotate(parts[0], rope, norms.turned)
        k = parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
        v = _split_heads(values[0] if len(values) == 1 else jnp.concatenate(values, axis=1), heads)
        return _join_heads(attend(q, k, v, visible, causal=causal)) * jax.nn.sigmoid(gate)

    return attend_heads


plain_attention = with_heads(attend)


def _hide(scores: Array, visible: Array | None, causal: bool) -> Array:
    """Scores (... t s) with masked keys set to MASKED_SCORE."""
    if visible is not None:
        scores = jnp.where(visible, scores, MASKED_SCORE)
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, MASKED_SCORE)
    return scores


class ConditionKeysValues(NamedTuple):
    """Keys and values of text (b n w) and speaker (b p w) for one decoder layer; stacked, with a layer axis first."""

    text_keys: Any
    text_values: Any
    speaker_keys: Any
    speaker_values: Any


class SelfAttention(nnx.Module):
    """Encoder self-attention: q/k norm per head, RoPE on all heads, sigmoid output gate."""

    def __init__(self, width: int, heads: int, *, eps: float, rngs: nnx.Rngs):
        self.heads = heads
        self.wq = Linear(width, width, rngs=rngs)
        self.wk = Linear(width, width, rngs=rngs)
        self.wv = Linear(width, width, rngs=rngs)
        self.wgate = Linear(width, width, rngs=rngs)
        self.wo = Linear(width, width, rngs=rngs)
        self.q_norm = RMSNorm(heads, width // heads, eps=eps)
        self.k_norm = RMSNorm(heads, width // heads, eps=eps)

    def __call__(
        self,
        x: Float[Array, "b s e"],
        visible: Bool[Array, "b s"] | None,
        rope: Float[Array, "2 s d"],
        attend: HeadAttention,
        *,
        causal: bool,
    ) -> Float[Array, "b s e"]:
        norms = HeadNorms(self.q_norm.weight[...], self.k_norm.weight[...], self.q_norm.eps, self.heads)
        q, k, v, gate = self.wq(x), self.wk(x), self.wv(x), self.wgate(x)
        return self.wo(attend(q, [k], [v], gate, norms, rope, visible, normed=[False], causal=causal))


class JointAttention(nnx.Module):
    """Latents attend to [themselves, text, speaker] in one softmax.

    RoPE rotates the first half of the heads of q and of the latents' own keys; condition keys are not rotated.
    All three kinds of keys share one k_norm. The latents' own keys are all visible.
    """

    def __init__(self, width: int, heads: int, text_width: int, speaker_width: int, *, eps: float, rngs: nnx.Rngs):
        self.heads = heads
        self.wq = Linear(width, width, rngs=rngs)
        self.wgate = Linear(width, width, rngs=rngs)
        self.wk_self = Linear(width, width, rngs=rngs)
        self.wv_self = Linear(width, width, rngs=rngs)
        self.wk_text = Linear(text_width, width, rngs=rngs)
        self.wv_text = Linear(text_width, width, rngs=rngs)
        self.wk_speaker = Linear(speaker_width, width, rngs=rngs)
        self.wv_speaker = Linear(speaker_width, width, rngs=rngs)
        self.wo = Linear(width, width, rngs=rngs)
        self.q_norm = RMSNorm(heads, width // heads, eps=eps)
        self.k_norm = RMSNorm(heads, width // heads, eps=eps)

    def project_conditions(
        self, text_state: Float[Array, "b n e"], speaker_state: Float[Array, "b p f"]
    ) -> ConditionKeysValues:
        """This layer's unnormalised keys and values of both conditions, which depend on neither x nor t."""
        return ConditionKeysValues(
            text_keys=self.wk_text(text_state),
            text_values=self.wv_text(text_state),
            speaker_keys=self.wk_speaker(speaker_state),
            speaker_values=self.wv_speaker(speaker_state),
        )

    def norm_keys(self, conditions: ConditionKeysValues) -> ConditionKeysValues:
        """The conditions with normalised keys: computed once in sampling, and inside the attention in training."""

        def norm(keys: Array) -> Array:
            return _join_heads(self.k_norm(_split_heads(keys, self.heads)))

        return conditions._replace(text_keys=norm(conditions.text_keys), speaker_keys=norm(conditions.speaker_keys))

    def text_scores(
        self, y: Float[Array, "b t w"], text_state: Float[Array, "b n e"], rope: Float[Array, "2 t d"]
    ) -> Float[Array, "b t n"]:
        """The scores of the latents for the text, before the softmax, averaged over the heads; float32."""
        q, k = (_split_heads(x, self.heads) for x in (self.wq(y), self.wk_text(text_state)))
        q = rotate(self.q_norm(q), rope, self.heads // 2)
        scores = jnp.einsum("bthd,bnhd->btn", q, self.k_norm(k), preferred_element_type=jnp.float32)
        return scores * (q.shape[-1] ** -0.5 / self.heads)

    def __call__(
        self,
        y: Float[Array, "b t w"],
        conditions: ConditionKeysValues,
        visible: Bool[Array, "r s"],
        rope: Float[Array, "2 t d"],
        attend: HeadAttention,
        *,
        normed: bool,
        own: Bool[Array, "b t"] | None = None,
    ) -> Float[Array, "b t w"]:
        """`visible` covers the joined keys [latents, text, speaker], s = t + n + p; `normed`: condition keys are.

        Rows of y beyond the r rows of the conditions attend only to their own latents, of these only to those visible
        in `own` (None: all), which equals masking both conditions, at lower cost.
        """
        norms = HeadNorms(self.q_norm.weight[...], self.k_norm.weight[...], self.q_norm.eps, self.heads // 2)
        q, k, v, gate = self.wq(y), self.wk_self(y), self.wv_self(y), self.wgate(y)
        rows = visible.shape[0]
        keys = [k[:rows], conditions.text_keys, conditions.speaker_keys]
        values = [v[:rows], conditions.text_values, conditions.speaker_values]
        attended = attend(q[:rows], keys, values, gate[:rows], norms, rope, visible, normed=[False, normed, normed])
        if rows < y.shape[0]:
            seen = None if own is None else own[rows:]
            alone = attend(q[rows:], [k[rows:]], [v[rows:]], gate[rows:], norms, rope, seen, normed=[False])
            attended = jnp.concatenate([attended, alone])
        return self.wo(attended)


def norm_heads(x: Float[Array, "b t h d"], gain: Float[Array, "h d"], eps: float) -> Float[Array, "b t h d"]:
    """RMSNorm of each head with its gain: computed in float32, returned in the dtype of x."""
    return (rms_normalise(x, eps) * gain.astype(jnp.float32)).astype(x.dtype)


def _split_heads(x: Float[Array, "b t w"], heads: int) -> Float[Array, "b t h d"]:
    return x.reshape(*x.shape[:2], heads, -1)


def _join_heads(x: Float[Array, "b t h d"]) -> Float[Array, "b t w"]:
    return x.reshape(*x.shape[:2], -1)
