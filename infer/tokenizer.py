"""From segments to token ids: the chat template around them, image tokens from the segments alone.

A user's text is tokenised with special tokens disabled, so ``<|image_pad|>`` in it stays text. The
ids are those that mlx-vlm gets by rendering and tokenising the whole string, whenever the text holds
no special token.
"""

import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from cache.base.errors import CheckpointError
from checkpoint.backend import import_mlx
from checkpoint.config import Checkpoint
from checkpoint.loading import readable_folder
from infer.request import Image, Request, Segment, Text, Turn


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """Where an image's tokens lie in a prompt: ``[start, start + num_tokens)``."""

    start: int
    num_tokens: int
    grid_thw: tuple[int, int, int]


def mrope_positions(
    num_tokens: int, images: tuple[ImageSpan, ...], merge_size: int
) -> tuple[NDArray[np.int32], int]:
    """Return the positions of a prompt of ``num_tokens`` tokens with ``images`` in ascending order.

    They are ``(3, 1, num_tokens)``, and with them comes the ``rope_delta`` that is added to the cache offset
    later. Text counts on along all three axes; an image spans rows and columns of its merged grid, and the
    text after it goes on from its largest position.
    """
    parts: list[NDArray[np.int32]] = []
    at = next_position = 0
    for image in images:
        parts.append(_text(image.start - at, next_position))
        next_position += image.start - at
        grid = _grid(image.grid_thw, merge_size) + next_position
        parts.append(grid)
        next_position = int(grid.max()) + 1
        at = image.start + image.num_tokens
    parts.append(_text(num_tokens - at, next_position))
    next_position += num_tokens - at
    return np.concatenate(parts, axis=1)[:, None, :], next_position - num_tokens


def _text(num_tokens: int, start: int) -> NDArray[np.int32]:
    return np.tile(np.arange(start, start + num_tokens, dtype=np.int32), (3, 1))


def _grid(grid_thw: tuple[int, int, int], merge_size: int) -> NDArray[np.int32]:
    time, height, width = grid_thw
    axes = np.indices((time, height // merge_size, width // merge_size), dtype=np.int32)
    return axes.reshape(3, -1)


_KEPT_PROMPTS, _KEPT_IDS = 256, 1_000_000

_Said = tuple[str, tuple[str | None, ...]]  # a role, and its texts; ``None`` among them is an image


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Token ids of one prompt, and where its images lie in them, in order."""

    ids: tuple[int, ...]
    images: tuple[ImageSpan, ...]


class ChatTokenizer:
    """The tokenizer and chat template of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        """Load the tokenizer.

        Raises:
            CheckpointError: the folder has no tokenizer or no chat template.
        """
        import_mlx()
        from mlx_vlm.models.base import load_chat_template
        from transformers import AutoTokenizer

        try:
            with readable_folder(checkpoint) as path:
                self._tokenizer: Any = AutoTokenizer.from_pretrained(str(path))
                load_chat_template(self._tokenizer, path)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{checkpoint.path} has no tokenizer that loads ({' '.join(str(error).split())[:160]}): "
                "download the checkpoint again."
            ) from error
        if not self._tokenizer.chat_template:
            raise CheckpointError(f"{checkpoint.path} has no chat template: download the checkpoint again.")
        self._path = checkpoint.path
        self._opens_think: dict[bool, bool] = {}
        self._tokens = checkpoint.tokens
        self._known: dict[tuple[tuple[_Said, ...], bool], tuple[tuple[int, ...], ...]] = {}
        self._num_kept_ids = 0
        self._image_token: str = self._tokenizer.convert_ids_to_tokens(checkpoint.tokens.image) or ""
        if not self._special_pattern.fullmatch(self._image_token):
            raise CheckpointError(
                f"The tokenizer of {checkpoint.path} knows no image token {checkpoint.tokens.image}: "
                "download the checkpoint again, with its tokenizer files."
            )

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end an answer: the checkpoint's and the tokenizer's own."""
        own = self._tokenizer.eos_token_id
        return frozenset([*self._tokens.eos, *([own] if own is not None else [])])

    def opens_think(self, thinking: bool) -> bool:
        """Tell whether the template itself opens a ``<think>`` block that the answer then closes."""
        if thinking not in self._opens_think:
            self._opens_think[thinking] = (
                self._render([{"role": "user", "content": []}], thinking).rstrip().endswith("<think>")
            )
        return self._opens_think[thinking]

    @property
    def backend(self) -> Any:
        """The transformers tokenizer itself, for those who constrain what it decodes."""
        return self._tokenizer

    def prompt(self, request: Request) -> PromptTokens:
        """Return the ids of a request's prompt. Raises ``CheckpointError`` as ``encode`` does."""
        if not request.chat:
            texts = (part.text for part in request.segments if isinstance(part, Text))
            return PromptTokens(tuple(self.text_ids("".join(texts))), ())
        return self.encode(
            request.segments, request.system, thinking=request.thinking, earlier=request.earlier
        )

    def encode(
        self,
        segments: Iterable[Segment],
        system: str | None = None,
        *,
        thinking: bool = False,
        earlier: tuple[Turn, ...] = (),
    ) -> PromptTokens:
        """Return the ids of a user turn made of ``segments``, ready for the answer.

        Before it come a system text and ``earlier`` turns. ``thinking`` lets the answer begin with reasoning,
        in families whose template has a switch for that.

        Raises:
            CheckpointError: the chat template takes no such turns.
        """
        turns = (*earlier, Turn("user", tuple(segments)))
        if system is not None:
            turns = (Turn("system", (Text(system),)), *turns)
        frames = [part.frame for turn in turns for part in turn.segments if isinstance(part, Image)]
        said = tuple(
            (turn.role, tuple(part.text if isinstance(part, Text) else None for part in turn.segments))
            for turn in turns
        )
        around = self._around_images(said, thinking)
        ids = list(around[0])
        images: list[ImageSpan] = []
        for frame, following in zip(frames, around[1:], strict=True):
            images.append(ImageSpan(len(ids), frame.num_tokens, frame.grid_thw))
            ids += [self._tokens.image] * frame.num_tokens
            ids += following
        return PromptTokens(tuple(ids), tuple(images))

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of an answer, without special tokens."""
        text: str = self._tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text

    def _around_images(self, said: tuple[_Said, ...], thinking: bool) -> tuple[tuple[int, ...], ...]:
        """Return the ids before, between and after the images.

        Kept for the next frame: a prompt is asked of every frame, and only the images differ.
        """
        known = (said, thinking)
        if known not in self._known:
            if len(self._known) >= _KEPT_PROMPTS or self._num_kept_ids >= _KEPT_IDS:
                self._known.clear()
                self._num_kept_ids = 0
            parts: list[list[int]] = [[]]
            for special, text in self._pieces(said, thinking):
                if special == self._image_token:
                    parts.append([])
                else:
                    parts[-1] += self._special_ids(special)
                parts[-1] += self.text_ids(text)
            self._known[known] = tuple(map(tuple, parts))
            self._num_kept_ids += sum(map(len, parts))
        return self._known[known]

    def _pieces(self, said: tuple[_Said, ...], thinking: bool) -> list[tuple[str, str]]:
        """Split the rendered turns into (special token, text that follows it).

        User text is rendered as a nonce that no template knows, so only the template's own special
        tokens are split at; then it is put back, whole, beside the template text around it.
        """
        nonces = {uuid.uuid4().hex: text for _, texts in said for text in texts if text is not None}
        named = iter(nonces)
        messages: list[dict[str, Any]] = []
        for role, texts in said:
            content = [
                {"type": "image"} if text is None else {"type": "text", "text": next(named)} for text in texts
            ]
            # A user's turn is a list in every template; the others have one text each.
            messages.append({"role": role, "content": content if role == "user" else content[0]["text"]})
        parts = self._special_pattern.split(self._render(messages, thinking))
        texts_between = [_put_back(text, nonces) for text in parts[0::2]]
        return list(zip(["", *parts[1::2]], texts_between, strict=True))

    def _render(self, messages: list[dict[str, Any]], thinking: bool) -> str:
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=thinking,  # a template without that switch does not look at it
            )
        except TemplateError as error:
            raise CheckpointError(
                f"The chat template of {self._path} refuses the prompt ({error}): leave out --system."
            ) from error
        return rendered

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        specials = sorted(self._tokenizer.all_special_tokens, key=len, reverse=True)
        added = [str(token) for token in self._tokenizer.added_tokens_decoder.values() if token.special]
        return re.compile("(" + "|".join(map(re.escape, dict.fromkeys([*added, *specials]))) + ")")

    def _special_ids(self, special: str) -> list[int]:
        return [int(self._tokenizer.convert_tokens_to_ids(special))] if special else []

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a text, in which nothing is read as a special token."""
        if not text:
            return []
        return list(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def _put_back(text: str, nonces: dict[str, str]) -> str:
    return re.sub("|".join(nonces), lambda match: nonces[match[0]], text) if nonces else text
