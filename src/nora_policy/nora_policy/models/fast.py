"""FAST action tokens: DCT over time, rounding, byte-level BPE (arXiv 2501.09747, algorithm 1).

A chunk becomes `round(scale * DCT-II(a))`, orthonormal along time, half to even; its coefficients
are read row by row (all dimensions of frequency 0, then of frequency 1, ...), each a character
`chr(q - min_token)` of a text that BPE compresses.

Legend: N chunks, T chunk step, A action dim, F frequency.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dct, idct
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nora_core.types import Float64
from nora_policy.models.action_range import action_range

TOKENIZER, SETTINGS = "tokenizer.json", "processor_config.json"
# As in FAST+. The characters of small coefficients are then all letters, so that the
# pre-tokenizer, which splits between letters, digits and signs, never cuts a chunk in pieces.
MIN_TOKEN = -354
SCALE = 10.0
VOCAB_SIZE = 2048
MIN_FREQUENCY = 2  # as in the original
# Characters of up to two bytes: far beyond what |a| <= 1 needs, and never a surrogate.
NUM_CODES = 0x800


@dataclass(frozen=True, slots=True)
class Settings:
    """What `processor_config.json` says of the numbers behind the characters."""

    scale: float
    min_token: int

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale: expected a number above 0, got {self.scale}")
        if not -NUM_CODES < self.min_token <= 0:
            raise ValueError(f"min_token: expected {1 - NUM_CODES} ... 0, got {self.min_token}")

    @classmethod
    def load(cls, path: Path) -> Settings:
        try:
            data = json.loads(path.read_text())
            return cls(float(data["scale"]), operator.index(data["min_token"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: expected scale and min_token: {error!r}") from error


class FastTokenizer:
    """Normalised chunks to token ids 0 ... `vocab_size` - 1 and back; has no state."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings) -> None:
        self.settings = settings
        self._bpe = tokenizer
        self.token_bytes = _token_bytes(tokenizer)

    @classmethod
    def load(cls, folder: Path) -> FastTokenizer:
        """Read a folder with the files of the public FAST tokenizers; runs no code of theirs.

        Raises:
            FileNotFoundError: names the file that is not there.
            ValueError: a file is not what it should be.
        """
        for name in (TOKENIZER, SETTINGS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name}: no such file (FAST tokenizer)")
        settings = Settings.load(folder / SETTINGS)
        try:
            return cls(Tokenizer.from_str((folder / TOKENIZER).read_text()), settings)
        except Exception as error:  # tokenizers raises nothing narrower
            raise ValueError(f"{folder / TOKENIZER}: {error}") from error

    def save(self, folder: Path) -> None:
        """Write the two files of the public layout."""
        folder.mkdir(parents=True, exist_ok=True)
        self._bpe.save(str(folder / TOKENIZER))
        data = {
            "scale": self.settings.scale,
            "min_token": self.settings.min_token,
            "vocab_size": self.vocab_size,
            "action_dim": None,
            "time_horizon": None,
        }
        (folder / SETTINGS).write_text(json.dumps(data, indent=2) + "\n")

    @classmethod
    def fit(
        cls, chunks: Iterable[NDArray[np.floating]], vocab_size: int = VOCAB_SIZE
    ) -> FastTokenizer:
        """A vocabulary for chunks like these, each (T, A), normalised to [-1, 1]."""
        settings = Settings(SCALE, MIN_TOKEN)
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=MIN_FREQUENCY,
            show_progress=False,
            # Every byte: any chunk can be written, and constrained decoding can always go on.
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        )

        def texts() -> Iterator[str]:
            for chunk in chunks:
                yield _text(_coefficients(chunk, settings), settings)

        tokenizer.train_from_iterator(texts(), trainer)
        return cls(tokenizer, settings)

    @property
    def vocab_size(self) -> int:
        return len(self.token_bytes)

    def encode(self, actions_TA: NDArray[np.floating]) -> list[int]:
        """Token ids. The DCT runs in the type of the input: ties depend on it.

        Raises:
            ValueError: not a finite (T, A) array, or a value far outside of [-1, 1].
        """
        coefficients_FA = _coefficients(actions_TA, self.settings)
        ids: list[int] = self._bpe.encode(_text(coefficients_FA, self.settings)).ids
        return ids

    def decode(self, ids: Sequence[int], horizon: int, action_dim: int) -> Float64:
        """Normalised actions (T, A) of exactly these sizes.

        Raises:
            ValueError: the ids are none of this vocabulary, are no text, have another number of
                coefficients, or are those of no chunk within [-1, 1].
        """
        coefficients_FA = self.coefficients(ids, horizon, action_dim)
        scale = self.settings.scale
        actions_TA: Float64 = idct(coefficients_FA / scale, axis=0, norm="ortho")
        if not action_range(horizon, scale).contains(coefficients_FA):
            raise ValueError(
                "action tokens: expected a chunk within [-1, 1] and rounding, "
                f"got actions of up to {np.abs(actions_TA).max():.3f}"
            )
        return actions_TA

    def coefficients(self, ids: Sequence[int], horizon: int, action_dim: int) -> NDArray[np.int64]:
        """Rounded coefficients (F, A), whatever their size; raises as `decode` otherwise."""
        for token in ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"action tokens: expected ids of 0 ... {self.vocab_size - 1}, got {token}"
                )
        try:
            text = b"".join(self.token_bytes[token] for token in ids).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"action tokens: they break a character in pieces: {error}") from None
        if len(text) != horizon * action_dim:
            raise ValueError(
                f"action tokens: expected {horizon} x {action_dim} = {horizon * action_dim} "
                f"coefficients, got {len(text)}"
            )
        codes = np.array([ord(character) for character in text])
        return codes.reshape(horizon, action_dim) + self.settings.min_token


def _coefficients(actions_TA: NDArray[np.floating], settings: Settings) -> NDArray[np.int64]:
    if actions_TA.ndim != 2 or not actions_TA.size or not np.isfinite(actions_TA).all():
        raise ValueError(
            f"actions: expected finite numbers of shape (T, A), got shape {actions_TA.shape}"
        )
    transformed_FA = dct(actions_TA, axis=0, norm="ortho")
    coefficients_FA: NDArray[np.int64] = np.around(transformed_FA * settings.scale).astype(int)
    smallest, largest = int(coefficients_FA.min()), int(coefficients_FA.max())
    if smallest < settings.min_token or largest - settings.min_token >= NUM_CODES:
        raise ValueError(
            f"actions: expected normalised ones, got {np.abs(actions_TA).max():.3g} at most"
        )
    return coefficients_FA


def _text(coefficients_FA: NDArray[np.int64], settings: Settings) -> str:
    return "".join(map(chr, (coefficients_FA - settings.min_token).ravel().tolist()))


def _token_bytes(tokenizer: Tokenizer) -> tuple[bytes, ...]:
    """The bytes of every id."""
    vocab = tokenizer.get_vocab(with_added_tokens=False)
    tokens = {index: token for token, index in vocab.items()}
    if sorted(tokens) != list(range(len(tokens))):
        raise ValueError(f"expected the ids 0 ... {len(tokens) - 1}, got gaps between them")
    byte_of = _byte_of_character()
    try:
        return tuple(bytes(byte_of[c] for c in tokens[i]) for i in range(len(tokens)))
    except KeyError as error:
        raise ValueError(f"expected a byte-level vocabulary, got character {error}") from None


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes a byte as itself where it prints, else as a letter from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(0x100)) - set(printable))
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + i): byte for i, byte in enumerate(others)}
