"""What a NORA-1.5 network looks like, as written in its `config.json`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Markers of an image in the prompt."""

    image: int
    video: int
    vision_start: int
    vision_end: int


@dataclass(frozen=True, slots=True)
class ExpertConfig:
    """Flow-matching action expert; its heads are as wide as those of the language model."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    num_hidden_layers: int
    rope_theta: float = 10_000.0


@dataclass(frozen=True, slots=True)
class Nora15Config:
    """A whole network. `alpha` weighs the flow loss, `flow_steps` is the number of Euler steps.

    Action tokens are the `num_action_tokens` ids from `action_token_min`; `image_size` in px.
    """

    text_config: TextConfig
    vision_config: VisionConfig
    token_ids: TokenIds
    expert: ExpertConfig
    horizon: int
    action_dim: int
    action_token_min: int
    num_action_tokens: int
    alpha: float
    flow_steps: int = 10
    image_size: int = 224
    lowercase_instruction: bool = True

    def __post_init__(self) -> None:
        text, vision, expert = self.text_config, self.vision_config, self.expert
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


NORA15_3B = Nora15Config(
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
    expert=ExpertConfig(
        hidden_size=768,
        intermediate_size=2048,
        num_attention_heads=6,
        num_key_value_heads=2,
        num_hidden_layers=36,
    ),
    horizon=5,
    action_dim=7,
    action_token_min=151_665,
    num_action_tokens=2048,
    alpha=10.0,
)
