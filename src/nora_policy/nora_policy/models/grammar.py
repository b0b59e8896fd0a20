"""Constrained decoding: the FAST token sequences that are chunks of T x A actions in [-1, 1].

A byte-level automaton over the vocabulary. Its state is the coefficients written so far and the
bytes of a character that is not complete; a token may follow if its bytes go on with characters
whose coefficients some chunk within [-1, 1] has. The end may follow the last coefficient only.

Legend: V FAST token, X place within a token, A action dim, F frequency, R long token, U column.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nora_core.types import Float64
from nora_policy.models.action_range import action_range
from nora_policy.models.fast import NUM_CODES, FastTokenizer

Bool = NDArray[np.bool_]
Int = NDArray[np.int16]
ANY = np.iinfo(np.int16)


@dataclass(frozen=True, slots=True)
class _Columns:
    """What long tokens (R) write into one dimension each: few different columns (U).

    `first_U`: place of the column's first character in its token, ascending; `size_U`: how many it
    has; `low_UF`, `high_UF`: as in the table; `column_RA`: the columns of every token.
    """

    token_R: NDArray[np.intp]
    column_RA: NDArray[np.intp]
    first_U: NDArray[np.intp]
    size_U: NDArray[np.intp]
    low_UF: Int
    high_UF: Int


@dataclass(frozen=True, slots=True)
class _Table:
    """Every token read after the same incomplete character.

    `low_XV`, `high_XV`: smallest and largest coefficient at each place (the same for a whole
    character, a range for an incomplete one at the end, anything behind that). `whole_V` and
    `size_V` count the characters without and with the incomplete one; `rest` are its bytes.
    `columns` are those of the long tokens, which write a dimension more than once.
    """

    low_XV: Int
    high_XV: Int
    whole_V: NDArray[np.intp]
    size_V: NDArray[np.intp]
    is_text_V: Bool
    rest: tuple[bytes, ...]
    columns: _Columns


class Grammar:
    """What may follow in a chunk of `horizon` x `action_dim` actions; shared by all sequences.

    Raises:
        ValueError: the horizon is too long, or the vocabulary lacks a byte that a chunk may need.
    """

    def __init__(self, tokenizer: FastTokenizer, horizon: int, action_dim: int) -> None:
        settings = tokenizer.settings
        self._tokenizer = tokenizer
        self.horizon, self.action_dim = horizon, action_dim
        self.size = horizon * action_dim
        self.end = tokenizer.vocab_size
        self.range = action_range(horizon, settings.scale)
        # Of the mean; other frequencies have none beyond it.
        largest = int(self.range.interval(np.zeros((1, 0), np.int64))[1][0])
        codes = range(-largest - settings.min_token, largest - settings.min_token + 1)
        if codes.start < 0 or codes.stop > NUM_CODES:
            raise ValueError(
                f"min_token: expected {largest + 1 - NUM_CODES} ... {-largest} "
                f"for {horizon} steps, got {settings.min_token}"
            )
        characters = [chr(code).encode() for code in codes]
        _require_bytes(tokenizer.token_bytes, characters)
        beginnings = sorted({text[:n] for text in characters for n in range(len(text))})
        self._tables = {
            rest: _table(tokenizer, rest, self.size, action_dim) for rest in beginnings
        }

    def decode(self, ids: Sequence[int]) -> Float64:
        """Normalised actions (T, A); raises as `FastTokenizer.decode`."""
        return self._tokenizer.decode(ids, self.horizon, self.action_dim)

    def table(self, rest: bytes) -> _Table:
        return self._tables[rest]

    def accepts(self, ids: Iterable[int]) -> bool:
        """Whether these tokens are a whole chunk."""
        state = DecodingState(self)
        for token in (*ids, self.end):
            if state.is_ended or not 0 <= token <= self.end or not state.allowed()[token]:
                return False
            state.append(token)
        return True


class DecodingState:
    """The state of decoding one token sequence; `ids` excludes the end token."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self.end = grammar.end
        self.max_tokens = 2 * grammar.size  # a token per byte
        self.ids: list[int] = []
        self._coefficients_FA = np.zeros((grammar.horizon, grammar.action_dim), np.int64)
        self._position = 0
        self._rest = b""
        self.is_ended = False

    def allowed(self) -> Bool:
        """Which tokens may follow (V + 1,); the last one is the end."""
        grammar = self._grammar
        allowed = np.zeros(grammar.end + 1, np.bool_)
        room = grammar.size - self._position
        if room == 0:
            allowed[grammar.end] = True
            return allowed
        table = grammar.table(self._rest)
        near = min(room, grammar.action_dim, len(table.low_XV))
        low_X, high_X = self._next_intervals(near)
        ok_V = (table.low_XV[:near] <= high_X[:, None]).all(axis=0)
        ok_V &= (table.high_XV[:near] >= low_X[:, None]).all(axis=0)
        ok_V &= table.is_text_V & (table.size_V <= room)
        columns = table.columns
        if ok_V[columns.token_R].any():
            ok_V[columns.token_R] &= self._are_in_range(columns)[columns.column_RA].all(axis=1)
        allowed[:-1] = ok_V
        return allowed

    def append(self, token: int) -> None:
        """Append a token that `allowed` admits."""
        if token == self.end:
            self.is_ended = True
            return
        table = self._grammar.table(self._rest)
        self.ids.append(token)
        count = int(table.whole_V[token])
        flat = self._coefficients_FA.reshape(-1)
        flat[self._position : self._position + count] = table.low_XV[:count, token]
        self._position += count
        self._rest = table.rest[token]

    def _next_intervals(self, count: int) -> tuple[Int, Int]:
        """Bounds of the next `count` coefficients, each of another dimension."""
        row, start = divmod(self._position, self._grammar.action_dim)
        pieces = []
        for k, dims in ((row, slice(start, start + count)), (row + 1, slice(0, start))):
            if k < self._grammar.horizon:
                pieces.append(self._grammar.range.interval(self._coefficients_FA[:k, dims].T))
        low, high = (np.concatenate(ends)[:count] for ends in zip(*pieces, strict=True))
        return low.astype(np.int16), high.astype(np.int16)

    def _are_in_range(self, columns: _Columns) -> Bool:
        """Whether every coefficient of a column may follow the earlier ones of its dimension."""
        grammar, (num_columns, depth) = self._grammar, columns.low_UF.shape
        row, start = divmod(self._position, grammar.action_dim)
        low_UF = np.empty((num_columns, row + 1 + depth), np.int64)
        high_UF = np.empty_like(low_UF)
        size_U = row + columns.size_U
        begins_below = np.searchsorted(columns.first_U, grammar.action_dim - start)
        for k, u in ((row, slice(0, begins_below)), (row + 1, slice(begins_below, None))):
            dim_u = (start + columns.first_U[u]) % grammar.action_dim
            low_UF[u, :k] = high_UF[u, :k] = self._coefficients_FA[:k, dim_u].T
            low_UF[u, k : k + depth] = columns.low_UF[u]
            high_UF[u, k : k + depth] = columns.high_UF[u]
        size_U[begins_below:] += 1
        return grammar.range.overlaps(low_UF, high_UF, size_U)


class FreeDecodingState:
    """Decoding without a grammar, as in the reference code: any tokens, at most `max_tokens`."""

    def __init__(self, end: int, max_tokens: int) -> None:
        self.end, self.max_tokens = end, max_tokens
        self.ids: list[int] = []
        self.is_ended = False

    def allowed(self) -> Bool:
        return np.ones(self.end + 1, np.bool_)

    def append(self, token: int) -> None:
        if not self.is_ended and token != self.end:
            self.ids.append(token)
        self.is_ended = self.is_ended or token == self.end or len(self.ids) == self.max_tokens


def _require_bytes(token_bytes: Sequence[bytes], characters: Sequence[bytes]) -> None:
    """With a token for every byte there is always a way to the end."""
    lacking = {byte for text in characters for byte in text} - {
        t[0] for t in token_bytes if len(t) == 1
    }
    if lacking:
        raise ValueError(
            f"FAST vocabulary: expected a token for every byte of a chunk, lacks {sorted(lacking)}"
        )


def _table(tokenizer: FastTokenizer, rest: bytes, limit: int, action_dim: int) -> _Table:
    """Read every token behind `rest`; tokens of more than `limit` characters are no text."""
    min_token = tokenizer.settings.min_token
    readings = [_read(rest + data) for data in tokenizer.token_bytes]
    is_text = [r is not None and 0 < len(r[0]) <= limit for r in readings]
    spans = [r[0] if ok and r else [] for r, ok in zip(readings, is_text, strict=True)]
    rests = [r[1] if ok and r else b"" for r, ok in zip(readings, is_text, strict=True)]
    size_V = np.array([len(span) for span in spans])
    low_XV = np.full((size_V.max(initial=1), len(spans)), ANY.min, np.int16)
    high_XV = np.full_like(low_XV, ANY.max)
    for token, span in enumerate(spans):
        for place, (low, high) in enumerate(span):
            low_XV[place, token], high_XV[place, token] = low + min_token, high + min_token
    whole_V = size_V - np.array([bool(data) for data in rests])
    columns = _columns(low_XV, high_XV, np.flatnonzero(size_V > action_dim), action_dim)
    return _Table(low_XV, high_XV, whole_V, size_V, np.array(is_text), tuple(rests), columns)


def _columns(low_XV: Int, high_XV: Int, token_R: NDArray[np.intp], action_dim: int) -> _Columns:
    depth = -(-len(low_XV) // action_dim)
    padding = ((0, depth * action_dim - len(low_XV)), (0, 0))
    # (A, R, F), low and high of a column one behind the other
    ends = [
        np.pad(x[:, token_R], padding, constant_values=fill).reshape(depth, action_dim, -1)
        for x, fill in ((low_XV, ANY.min), (high_XV, ANY.max))
    ]
    columns_ARF = np.concatenate(ends).transpose(1, 2, 0)
    unique = [np.unique(x_RF, axis=0, return_inverse=True) for x_RF in columns_ARF]
    sizes = [len(columns_UF) for columns_UF, _ in unique]
    starts = np.cumsum([0, *sizes[:-1]])
    column_RA = np.stack(
        [x.ravel() + start for (_, x), start in zip(unique, starts, strict=True)], 1
    )
    all_UF = np.concatenate([columns_UF for columns_UF, _ in unique])
    first_U = np.repeat(np.arange(action_dim), sizes)
    low_UF, high_UF = all_UF[:, :depth], all_UF[:, depth:]
    size_U = (low_UF != ANY.min).sum(axis=1)
    return _Columns(token_R, column_RA, first_U, size_U, low_UF, high_UF)


def _read(data: bytes) -> tuple[list[tuple[int, int]], bytes] | None:
    """UTF-8 of at most two bytes: smallest and largest code of every character.

    The last character may be incomplete; its bytes come back. None when it is no text.
    """
    spans = []
    place = 0
    while place < len(data):
        lead = data[place]
        if lead < 0x80:
            spans.append((lead, lead))
            place += 1
            continue
        if not 0xC2 <= lead < 0xE0:
            return None
        code = (lead & 0x1F) << 6
        if place + 1 == len(data):
            return [*spans, (code, code + 0x3F)], data[place:]
        follow = data[place + 1]
        if not 0x80 <= follow < 0xC0:
            return None
        spans.append((code + (follow & 0x3F),) * 2)
        place += 2
    return spans, b""
