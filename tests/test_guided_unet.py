"""The guided step does no work twice, and predicts the same noise."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel

from stable_diffusion.guided_unet import GuidedUNet, PromptAttention

# Where the first cross-attention is: in the first block (Stable Diffusion), after one without, and
# only in the middle.
BLOCKS = {
    "first": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "second": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "middle": ("DownBlock2D", "DownBlock2D"),
}


def small_unet(blocks: str, linear: bool = True) -> UNet2DConditionModel:
    torch.manual_seed(0)
    down = BLOCKS[blocks]
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=2,
        norm_num_groups=4,
        cross_attention_dim=12,
        attention_head_dim=2,
        use_linear_projection=linear,
        down_block_types=down,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in down[::-1]),
    ).eval()


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(3, 4, 8, 8, generator=generator)
    return {"latents": latents, "text": torch.randn(6, 5, 12, generator=generator)}


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize("blocks", list(BLOCKS))
@torch.inference_mode()
def test_the_noise_is_the_plain_unets(batch, blocks, linear):
    unet, latents, text = small_unet(blocks, linear), batch["latents"], batch["text"]
    twice = torch.cat([latents, latents])
    times = (torch.tensor(7), torch.tensor(500))
    plain = [unet(twice, time, encoder_hidden_states=text).sample for time in times]
    alone = unet(latents, times[0], encoder_hidden_states=text[:3]).sample
    assert not torch.allclose(plain[0][:3], plain[0][3:], atol=1e-3)  # the text does something
    guided = GuidedUNet.of(unet)
    with guided.prompt(text, True):
        ours = [guided(latents, time) for time in times]
        again = guided(latents, times[0])
    assert torch.equal(again, ours[0])
    for one, other in zip(ours, plain, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    with guided.prompt(text[:3], False):  # without guidance nothing is halved
        assert torch.allclose(guided(latents, times[0]), alone, atol=1e-5)
    # outside, the network is as it was
    assert torch.equal(unet(twice, times[1], encoder_hidden_states=text).sample, plain[1])


@torch.inference_mode()
def test_the_work_is_done_once(batch):
    unet = small_unet("second")
    guided = GuidedUNet.of(unet)
    seen: dict[str, list[int]] = {}
    for name, module in unet.named_modules():
        inner = getattr(module, "forward", None)

        def count(x, *rest, inner=inner, name=name, **named):
            seen.setdefault(name, []).append(len(x))
            return inner(x, *rest, **named)

        if not list(module.children()):
            module.forward = count
    with guided.prompt(batch["text"], True):
        for time in (900, 500, 100):
            guided(batch["latents"], torch.tensor(time))
    first = "down_blocks.1.attentions.0.transformer_blocks.0"
    for name in ("conv_in", "down_blocks.0.resnets.1.conv2", f"{first}.attn1.to_v"):
        assert seen[name] == [3, 3, 3]
    for name in (f"{first}.attn2.to_q", f"{first}.ff.net.2", "down_blocks.1.resnets.1.conv1"):
        assert seen[name] == [6, 6, 6]
    keys = [name for name in seen if name.endswith(("attn2.to_k", "attn2.to_v"))]
    assert len(keys) == 2 * 6  # two down, one in the middle, three up
    assert all(seen[name] == [6] for name in keys)  # once for all steps


def test_a_second_user_of_the_network_shares_the_hooks():
    unet = small_unet("first")
    guided = GuidedUNet.of(unet)
    processors = [module.processor for module in guided.attentions]
    assert GuidedUNet.of(unet) is guided
    assert [module.processor for module in guided.attentions] == processors
    assert all(type(processor) is PromptAttention for processor in processors)
    assert len(unet.conv_in._forward_hooks) == 1
