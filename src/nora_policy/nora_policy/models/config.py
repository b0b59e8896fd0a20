"""What a network of the NORA family looks like, as written in its `config.json`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """Language model of Qwen2.5-VL."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    rope_theta: float
    rms_norm_eps: float
    mrope_section: tuple[int, ...]
    tie_word_embeddings: bool

    def __post_init__(self) -> None:
        _require_positive(self)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size: expected a multiple of num_attention_heads "
                f"{self.num_attention_heads}, got {self.hidden_size}"
            )
        if 2 * sum(self.mrope_section) != self.head_dim:
            raise ValueError(
                f"mrope_section: expected a sum of {self.head_dim / 2:g} (half of the head), "
                f"got {list(self.mrope_section)}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionConfig:
    """Vision tower of Qwen2.5-VL."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    patch_size: int
    spatial_merge_size: int
    temporal_patch_size: int
    out_hidden_size: int
    window_size: int
    fullatt_block_indexes: tuple[int, ...]

    def __post_init__(self) -> None:
        _require_positive(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIds:
    """Markers of an image in the prompt."""

    image: int
    video: int
    vision_start: int
    vision_end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertConfig:
    """Flow-matching action expert; its heads are as wide as those of the language model."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    num_hidden_layers: int
    rope_theta: float = 10_000.0

    def __post_init__(self) -> None:
        _require_positive(self)


@dataclass(frozen=True, slots=True)
class TokenHeadConfig:
    """How FAST tokens are generated: `end_token` closes the turn.

    The logits of tokens that the text already contains are divided (if positive) or multiplied by
    `repetition_penalty`, as transformers does; 1 leaves them alone.
    """

    end_token: int
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not self.repetition_penalty > 0:
            raise ValueError(f"repetition_penalty: expected > 0, got {self.repetition_penalty}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NoraConfig:
    """A whole network: NORA (horizon 1) and NORA-Long without `expert`, NORA-1.5 with one.

    `alpha` weighs the flow loss, `flow_steps` is the number of Euler steps. Action tokens are the
    `num_action_tokens` ids from `action_token_min`; `image_size` in px.
    """

    text_config: TextConfig
    vision_config: VisionConfig
    token_ids: TokenIds
    horizon: int
    action_dim: int
    action_token_min: int
    num_action_tokens: int
    expert: ExpertConfig | None = None
    token_head: TokenHeadConfig | None = None
    alpha: float = 10.0
    flow_steps: int = 10
    image_size: int = 224
    lowercase_instruction: bool = True

    def __post_init__(self) -> None:
        text, vision = self.text_config, self.vision_config
        if self.expert is None and self.token_head is None:
            raise ValueError("expected expert, token_head or both, got neither")
        if self.expert is not None:
            self._check_expert(self.expert)
        if vision.out_hidden_size != text.hidden_size:
            raise ValueError(
                f"vision_config.out_hidden_size: expected {text.hidden_size}, "
                f"got {vision.out_hidden_size}"
            )
        if self.image_size % (vision.patch_size * vision.spatial_merge_size):
            raise ValueError(
                f"image_size: expected a multiple of "
                f"{vision.patch_size * vision.spatial_merge_size}, got {self.image_size}"
            )
        if self.action_token_min + self.num_action_tokens > text.vocab_size:
            raise ValueError(
                f"vocab_size: expected at least {self.action_token_min + self.num_action_tokens} "
                f"rows for the action tokens, got {text.vocab_size}"
            )

    @property
    def kind(self) -> str:
        """Name of the model in the papers."""
        if self.expert is not None:
            return "NORA-1.5"
        return "NORA" if self.horizon == 1 else "NORA-Long"

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that can give actions: `flow`, `fast` or both."""
        has_head = {"flow": self.expert is not None, "fast": self.token_head is not None}
        return tuple(name for name, has in has_head.items() if has)

    def _check_expert(self, expert: ExpertConfig) -> None:
        text = self.text_config
        for name in ("num_hidden_layers", "num_key_value_heads"):
            if getattr(expert, name) != getattr(text, name):
                raise ValueError(
                    f"expert.{name}: expected {getattr(text, name)} as in text_config, "
                    f"got {getattr(expert, name)}"
                )
        if expert.num_attention_heads % expert.num_key_value_heads:
            raise ValueError(
                f"expert.num_attention_heads: expected a multiple of num_key_value_heads "
                f"{expert.num_key_value_heads}, got {expert.num_attention_heads}"
            )


def _require_positive(config: TextConfig | VisionConfig | ExpertConfig) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, int | float) and not value > 0 and not isinstance(value, bool):
            raise ValueError(f"{field.name}: expected a number > 0, got {value}")


NORA_3B = NoraConfig(
    text_config=TextConfig(
        hidden_size=2048,
        intermediate_size=11008,
        num_hidden_layers=36,
        num_attention_heads=16,
        num_key_value_heads=2,
        vocab_size=153_713,
        rope_theta=1e6,
        rms_norm_eps=1e-6,
        mrope_section=(16, 24, 24),
        tie_word_embeddings=True,
    ),
    vision_config=VisionConfig(
        depth=32,
        hidden_size=1280,
        intermediate_size=3420,
        num_heads=16,
        patch_size=14,
        spatial_merge_size=2,
        temporal_patch_size=2,
        out_hidden_size=2048,
        window_size=112,
        fullatt_block_indexes=(7, 15, 23, 31),
    ),
    token_ids=TokenIds(image=151_655, video=151_656, vision_start=151_652, vision_end=151_653),
    horizon=1,
    action_dim=7,
    action_token_min=151_665,
    num_action_tokens=2048,
    token_head=TokenHeadConfig(end_token=151_645),
)
NORA_LONG_3B = dataclasses.replace(NORA_3B, horizon=5)
NORA15_3B = dataclasses.replace(
    NORA_LONG_3B,
    expert=ExpertConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_attention_heads=6,
        num_key_value_heads=2,
        num_hidden_layers=36,
    ),
)
