"""A UNet step under classifier-free guidance, without doing any work twice.

Guidance predicts the noise in the same latents without and with the prompt, as one batch of 2B.
Nothing before the first cross-attention depends on the prompt, so that part runs on B latents and
its output is repeated. The prompt is the same at every step, so the keys and values of the
cross-attentions are computed once per batch of images. Both are exact up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D, DownBlock2D
from torch import Tensor, nn


class PromptAttention:
    """Cross-attention with keys and values [B, heads, T, D] set beforehand.

    Replaces diffusers' AttnProcessor2_0, which it calls where no keys and values are set.
    """

    def __init__(self):
        self.plain = AttnProcessor2_0()
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def set_prompt(self, attn: Attention, text: Tensor) -> None:
        """`text`: the text encoder's states [B, T, C]."""
        self.key, self.value = (
            part.unflatten(2, (attn.heads, -1)).transpose(1, 2).contiguous()
            for part in (attn.to_k(text), attn.to_v(text))
        )

    def __call__(
        self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None
    ) -> Tensor:
        if self.key is None:
            return self.plain(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        query = attn.to_q(hidden_states).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        out = F.scaled_dot_product_attention(query, self.key, self.value)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


class GuidedUNet:
    """Runs a UNet as described above inside `prompt(...)`; outside, the UNet is unchanged.

    Hooks and attention processors are installed once and stay, because torch.compile would compile
    again if they changed with every batch. So `of` returns the same GuidedUNet for a UNet.
    """

    def __init__(self, unet: UNet2DConditionModel):
        self.unet, self.halved = unet, False
        self.attentions = []
        for module in unet.modules():
            if isinstance(module, Attention) and _takes_plain_text(unet, module):
                module.set_processor(PromptAttention())
                self.attentions.append(module)
        for module in before_the_prompt(unet):
            module.register_forward_pre_hook(self._first_half, with_kwargs=True)
            module.register_forward_hook(self._twice)

    @classmethod
    def of(cls, unet: UNet2DConditionModel) -> GuidedUNet:
        if not hasattr(unet, "guided"):
            unet.guided = cls(unet)
        return unet.guided

    @contextmanager
    def prompt(self, text: Tensor, guided: bool) -> Iterator[None]:
        """Within the context, steps use these texts: [2B, T, C], or [B, T, C] unless `guided`."""
        self.text, self.halved = text, guided
        try:
            for module in self.attentions:
                module.processor.set_prompt(module, text)
            yield
        finally:
            self.text, self.halved = None, False
            for module in self.attentions:
                module.processor.key = module.processor.value = None

    def __call__(self, latents: Tensor, time: Tensor) -> Tensor:
        """Predicted noise, one row per text, of latents [B, C, h, w] at a timestep (0-d)."""
        inputs = torch.cat([latents, latents]) if self.halved else latents
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        time = time.expand(len(inputs))
        return self.unet(inputs, time, encoder_hidden_states=self.text, return_dict=False)[0]

    def _first_half(self, module: nn.Module, args: tuple, kwargs: dict):
        if not self.halved:
            return None
        return (
            tuple(_half(value) for value in args),
            {name: _half(value) for name, value in kwargs.items()},
        )

    def _twice(self, module: nn.Module, args: tuple, output):
        return _repeat(output) if self.halved else None


def before_the_prompt(unet: UNet2DConditionModel) -> list[nn.Module]:
    """The modules whose output cannot depend on the prompt; each maps [B, ...] to [B, ...]."""
    modules: list[nn.Module] = [unet.conv_in]
    for block in unet.down_blocks:
        if type(block) is DownBlock2D:
            modules.append(block)
            continue
        if type(block) is CrossAttnDownBlock2D:
            modules.append(block.resnets[0])
            transformer = block.attentions[0]
            first = getattr(transformer, "transformer_blocks", [None])[0]
            if first is not None and not first.only_cross_attention:
                modules += [transformer.norm, transformer.proj_in, first.norm1, first.attn1]
        break
    return modules


def _takes_plain_text(unet: UNet2DConditionModel, attn: Attention) -> bool:
    """Whether it is a cross-attention to the text encoder's states, with nothing added."""
    plain = attn.is_cross_attention and type(attn.processor) is AttnProcessor2_0
    extras = (attn.group_norm, attn.spatial_norm, attn.norm_cross, attn.norm_q, attn.norm_k)
    extras += (unet.encoder_hid_proj,)
    plain = plain and all(extra is None for extra in extras)
    return plain and not attn.residual_connection and attn.rescale_output_factor == 1


def _half(value):
    return value[: len(value) // 2] if isinstance(value, Tensor) else value


def _repeat(output):
    """Tensors [B, ...], also inside tuples, repeated to [2B, ...]."""
    if isinstance(output, tuple):
        return tuple(_repeat(part) for part in output)
    return torch.cat([output, output])
