"""What a hybrid model is made of: one frozen record, and its two Hugging Face spellings.

A model is a string of layer characters (M = Mamba-2, E = mixture of experts, * = attention, - = dense MLP) and a few sizes.
Field names are those of Hugging Face's `NemotronHConfig` wherever it has one, so that a config.json reads as this file does.
Sources of the released shapes: Megatron-LM examples/post_training/modelopt/conf/nvidia/NVIDIA-Nemotron-3-{Nano,Super,Ultra}*.sh and
the Nemotron 3 reports; standard deviations follow the fit sqrt(0.8 / hidden).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LAYER_NAMES = {  # pattern character -> spellings in config.json: transformers >= 5.2x first, then NVIDIA's (Ultra, Lightning)
    "M": ("linear_attention", "mamba"),
    "E": ("moe",),
    "*": ("full_attention", "attention"),
    "-": ("mlp",),
}
_CHARACTER_OF = {name: character for character, names in LAYER_NAMES.items() for name in names}

SUPER_PATTERN = "MEMEMEM*E" * 3 + "MEMEMEMEM*E" * 4 + "ME" * 3 + "M*E" + "ME" * 4
ULTRA_PATTERN = "ME" * 3 + ("M*E" + "ME" * 2 + "M*E" + "ME" * 3 + "M*E" + "ME" * 3) * 4 + "ME"
NANO_PATTERN = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"


@dataclass(frozen=True, kw_only=True)
class HybridConfig:
    """Shape of a hybrid model. Raises ValueError, naming the field, for a shape that cannot be built."""

    pattern: str  # one character a layer, see LAYER_NAMES
    vocab_size: int = 131072
    hidden_size: int = 2688

    # attention: grouped queries, no positional encoding
    num_attention_heads: int = 32
    num_key_value_heads: int = 2
    head_dim: int = 128

    # Mamba-2
    mamba_num_heads: int = 64
    mamba_head_dim: int = 64
    ssm_state_size: int = 128
    n_groups: int = 8
    conv_kernel: int = 4
    chunk_size: int = 32  # of the SSD scan in others' code, kept for their config.json: kernels here choose their own, and any value gives the same result
    time_step_min: float = 1e-3  # these three shape the initial dt_bias only: dt itself is never clamped
    time_step_max: float = 0.1
    time_step_floor: float = 1e-4

    # dense MLP ("-")
    intermediate_size: int = 3712

    # mixture of experts ("E"); moe_latent_size None: experts work on the hidden state itself
    n_routed_experts: int = 128
    num_experts_per_tok: int = 6
    moe_intermediate_size: int = 1856
    moe_shared_expert_intermediate_size: int = 3712
    moe_latent_size: int | None = None
    routed_scaling_factor: float = 2.5
    norm_topk_prob: bool = True

    # multi-token prediction: one shared block applied mtp_depth times; depth 0 = no block
    mtp_pattern: str = "*E"
    mtp_depth: int = 0

    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.0173
    max_position_embeddings: int = 262144
    pad_token_id: int = 0
    bos_token_id: int = 1
    eos_token_id: int = 2

    def __post_init__(self) -> None:
        for label, pattern in (("pattern", self.pattern), ("mtp_pattern", self.mtp_pattern)):
            if not pattern or set(pattern) - set(LAYER_NAMES):
                raise ValueError(f"{label} must be a non-empty string of {' '.join(LAYER_NAMES)}, not {pattern!r}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (isinstance(value, bool) or not isinstance(value, int)):
                raise ValueError(f"{field.name} must be an integer, not {value!r}")
            if field.type == "int" and value < 1 and not field.name.endswith("_token_id") and field.name != "mtp_depth":
                raise ValueError(f"{field.name} must be at least 1, not {value}")
        if self.mtp_depth < 0:
            raise ValueError(f"mtp_depth must be at least 0, not {self.mtp_depth}")
        if self.moe_latent_size is not None and self.moe_latent_size < 1:
            raise ValueError(f"moe_latent_size must be at least 1 or null, not {self.moe_latent_size}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"num_attention_heads ({self.num_attention_heads}) must be a multiple of "
                             f"num_key_value_heads ({self.num_key_value_heads})")
        if self.mamba_num_heads % self.n_groups:
            raise ValueError(f"mamba_num_heads ({self.mamba_num_heads}) must be a multiple of n_groups ({self.n_groups})")
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ValueError(f"num_experts_per_tok ({self.num_experts_per_tok}) exceeds n_routed_experts ({self.n_routed_experts})")

    # ---- derived sizes

    @property
    def d_inner(self) -> int:
        """Width of the Mamba mixer's inside: heads x head_dim."""
        return self.mamba_num_heads * self.mamba_head_dim

    @property
    def conv_dim(self) -> int:
        """Channels of the causal convolution: [x | B | C]."""
        return self.d_inner + 2 * self.n_groups * self.ssm_state_size

    @property
    def expert_size(self) -> int:
        """Width experts read and write: the latent, or the hidden size where there is none."""
        return self.moe_latent_size or self.hidden_size

    @property
    def has_mtp(self) -> bool:
        return self.mtp_depth > 0

    # ---- named shapes

    @classmethod
    def nano(cls, **changes: Any) -> HybridConfig:
        """Nemotron 3 Nano 30B-A3B."""
        return cls(**{"pattern": NANO_PATTERN} | changes)

    @classmethod
    def super(cls, **changes: Any) -> HybridConfig:
        """Nemotron 3 Super 120B-A12B: LatentMoE, MTP."""
        return cls(**dict(
            pattern=SUPER_PATTERN, hidden_size=4096, mamba_num_heads=128, n_routed_experts=512, num_experts_per_tok=22,
            moe_intermediate_size=2688, moe_shared_expert_intermediate_size=5376, moe_latent_size=1024, routed_scaling_factor=5.0,
            intermediate_size=5376, mtp_depth=2, initializer_range=0.014) | changes)

    @classmethod
    def ultra(cls, **changes: Any) -> HybridConfig:
        """Nemotron 3 Ultra 550B-A55B: LatentMoE, MTP."""
        return cls(**dict(
            pattern=ULTRA_PATTERN, hidden_size=8192, num_attention_heads=64, mamba_num_heads=256, n_routed_experts=512, num_experts_per_tok=22,
            moe_intermediate_size=5120, moe_shared_expert_intermediate_size=10240, moe_latent_size=2048, routed_scaling_factor=5.0,
            intermediate_size=10240, mtp_depth=2, initializer_range=0.0099) | changes)

    @classmethod
    def tiny(cls, vocab_size: int = 4096, **changes: Any) -> HybridConfig:
        """The demo's model: every kind of layer of Super, small enough to train in minutes on two CPU cores."""
        return cls._small(128, "MEM*EME", dict(vocab_size=vocab_size) | changes)

    @classmethod
    def small(cls, vocab_size: int = 8192, **changes: Any) -> HybridConfig:
        """The next rung: twice tiny's width, 14 layers."""
        return cls._small(256, "MEMEM*EMEMEM*E", dict(vocab_size=vocab_size, n_routed_experts=16) | changes)

    @classmethod
    def medium(cls, vocab_size: int = 16384, **changes: Any) -> HybridConfig:
        """Four times tiny's width, 26 layers: an evening on one GPU."""
        return cls._small(512, "MEMEM*EMEMEM*EMEMEM*EMEMEM", dict(vocab_size=vocab_size, n_routed_experts=32, num_experts_per_tok=4) | changes)

    @classmethod
    def _small(cls, hidden: int, pattern: str, changes: dict[str, Any]) -> HybridConfig:
        """Super's proportions at a small width: every matrix side a multiple of 32, as NVFP4 wants."""
        return cls(**dict(
            pattern=pattern, hidden_size=hidden, num_attention_heads=hidden // 32, num_key_value_heads=max(1, hidden // 128), head_dim=32,
            mamba_num_heads=hidden // 32, mamba_head_dim=64, ssm_state_size=32, n_groups=1, intermediate_size=2 * hidden,
            n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=hidden, moe_shared_expert_intermediate_size=hidden,
            moe_latent_size=hidden // 2, routed_scaling_factor=2.5, mtp_depth=2, initializer_range=round(math.sqrt(0.8 / hidden), 4),
            max_position_embeddings=131072) | changes)

    # ---- Hugging Face

    def to_hf(self) -> dict[str, Any]:
        """config.json of a `NemotronH` folder: today's names, and the older pattern string beside them for NVIDIA's own code.

        `mtp_depth` is ours: the released configs do not say how often the shared MTP block is applied.
        """
        sizes = dataclasses.asdict(self)
        for name in ("pattern", "mtp_pattern", "mtp_depth"):
            del sizes[name]
        mtp = {"num_nextn_predict_layers": 0}
        if self.has_mtp:
            mtp = {"num_nextn_predict_layers": 1, "mtp_depth": self.mtp_depth, "mtp_hybrid_override_pattern": self.mtp_pattern,
                   "mtp_layers_block_type": [LAYER_NAMES[c][0] for c in self.mtp_pattern]}
        return {
            "architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h", **sizes,
            "hybrid_override_pattern": self.pattern, "layers_block_type": [LAYER_NAMES[c][0] for c in self.pattern],
            "num_hidden_layers": len(self.pattern), **mtp,
            "attention_bias": False, "mamba_proj_bias": False, "mlp_bias": False, "use_bias": False, "use_conv_bias": True,
            "mamba_hidden_act": "silu", "mlp_hidden_act": "relu2", "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
            "attention_dropout": 0.0, "hidden_dropout": 0.0, "tie_word_embeddings": False, "residual_in_fp32": False,
            "time_step_limit": [0.0, {"__float__": "Infinity"}], "mamba_ssm_cache_dtype": "float32",
        }

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> HybridConfig:
        """Read config.json in either spelling. Raises ValueError for what the released models do not have (biases, tied head, ...)."""
        if config.get("model_type", "nemotron_h") != "nemotron_h":
            raise ValueError(f"config.json is of a {config['model_type']!r} model, not nemotron_h")
        for key, wanted in _FIXED.items():
            value = config.get(key, wanted)
            if value is not None and value != wanted:
                raise ValueError(f"config.json: {key}={value!r} is not supported (only {wanted!r})")
        _check_time_step_limit(config.get("time_step_limit"))
        pattern = _pattern(config, "layers_block_type", "hybrid_override_pattern")
        if pattern is None:
            raise ValueError("config.json names no layers: neither layers_block_type nor hybrid_override_pattern")
        blocks = config.get("num_nextn_predict_layers") or 0
        if blocks not in (0, 1):
            raise ValueError(f"config.json: num_nextn_predict_layers={blocks} (only one shared MTP block is supported)")
        names = {field.name for field in dataclasses.fields(cls)} - {"pattern", "mtp_pattern", "mtp_depth"}
        known = {name: config[name] for name in names if config.get(name) is not None}
        if isinstance(known.get("eos_token_id"), (list, tuple)):
            known["eos_token_id"] = known["eos_token_id"][0]
        defaults = {name: value for name, value in _HF_DEFAULTS.items() if name not in known}
        return cls(pattern=pattern, mtp_pattern=_pattern(config, "mtp_layers_block_type", "mtp_hybrid_override_pattern") or "*E",
                   mtp_depth=int(config.get("mtp_depth", 2)) if blocks else 0, **known, **defaults)


_FIXED = {"tie_word_embeddings": False, "attention_bias": False, "mamba_proj_bias": False, "mlp_bias": False, "use_bias": False,
          "use_conv_bias": True, "mamba_hidden_act": "silu", "mlp_hidden_act": "relu2", "n_group": 1, "topk_group": 1, "n_shared_experts": 1,
          "sliding_window": None}

_HF_DEFAULTS = {  # transformers' NemotronHConfig, where it differs from ours: an absent key means its value
    "hidden_size": 4096, "num_key_value_heads": 8, "mamba_num_heads": 128, "chunk_size": 128, "intermediate_size": 21504, "n_routed_experts": 8,
    "num_experts_per_tok": 2, "moe_intermediate_size": 7688, "moe_shared_expert_intermediate_size": 7688, "routed_scaling_factor": 1.0,
    "initializer_range": 0.02, "max_position_embeddings": 4096}


def _pattern(config: Mapping[str, Any], list_key: str, string_key: str) -> str | None:
    """The layers as characters: the string if there is one, else the list of names."""
    if config.get(string_key):
        return config[string_key]
    if not config.get(list_key):
        return None
    unknown = [name for name in config[list_key] if name not in _CHARACTER_OF]
    if unknown:
        raise ValueError(f"config.json: {list_key} holds {unknown[0]!r} (known: {', '.join(_CHARACTER_OF)})")
    return "".join(_CHARACTER_OF[name] for name in config[list_key])


def _check_time_step_limit(limit: Any) -> None:
    """Released models do not clamp dt; transformers writes inf as {"__float__": "Infinity"}, NVIDIA's scripts as float max."""
    if limit is None:
        return
    low, high = (float(bound["__float__"]) if isinstance(bound, Mapping) else float(bound) for bound in limit)
    if low > 0.0 or high < 1e30:
        raise ValueError(f"config.json: time_step_limit=({low}, {high}) is not supported (dt is not clamped)")
