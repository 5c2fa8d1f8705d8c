"""Prompts to the embeddings that a UNet attends to: each distinct one once, and not all of them for ever."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

_KEPT_BYTES: Final = 128 << 20  # 1,100 embeddings of Stable Diffusion 1.5 in a 16-bit dtype


class PromptEncoder:
    """Made of a CLIP tokenizer and text encoder. ``kept_bytes``: of embeddings, the least recently used go first."""

    def __init__(self, tokenizer: Any, encoder: Any, kept_bytes: int = _KEPT_BYTES) -> None:
        self._tokenizer, self._encoder = tokenizer, encoder
        self._length = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        self._kept_bytes = kept_bytes
        # By token ids, not text: a prompt may be 100 kB, of which the encoder sees 75 words.
        self._kept: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """(N, tokens, width), on the encoder's device in its dtype. What is beyond the last token is cut off."""
        made = {prompt: self._embedding(prompt) for prompt in dict.fromkeys(prompts)}
        return torch.stack([made[prompt] for prompt in prompts])

    def _embedding(self, prompt: str) -> Tensor:
        tokens = self._tokenizer(prompt, padding="max_length", max_length=self._length, truncation=True)
        key = tuple(tokens.input_ids)
        found = self._kept.pop(key, None)
        if found is None:
            found = self._encode(tokens)
        self._kept[key] = found
        while len(self._kept) > 1 and len(self._kept) * found.nbytes > self._kept_bytes:
            self._kept.popitem(last=False)
        return found

    def _encode(self, tokens: Any) -> Tensor:
        # One at a time, so that an embedding's last bits don't hang on who else was in the batch.
        device = self._encoder.device
        attention = None
        if getattr(self._encoder.config, "use_attention_mask", False):
            attention = torch.tensor([tokens.attention_mask], device=device)
        ids = torch.tensor([tokens.input_ids], device=device)
        embedding: Tensor = self._encoder(ids, attention_mask=attention)[0][0]
        return embedding
