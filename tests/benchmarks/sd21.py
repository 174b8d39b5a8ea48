"""Stable Diffusion 2.1-base's networks with random weights: its speed and memory without its file.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from stable_diffusion import model_files

TFLOP = 82.94  # an image: 50 guided steps and its decoding
SIDE = 512


def sd21(dtype: torch.dtype, device: torch.device) -> StableDiffusionPipeline:
    """Made on the device from the configuration; the tokenizer is the demo model's."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(model_files.DEMO_MODEL / "tokenizer")
    text = CLIPTextConfig(
        hidden_size=1024, intermediate_size=4096, num_attention_heads=16, num_hidden_layers=23,
        vocab_size=49408, projection_dim=512, hidden_act="gelu",
    )  # fmt: skip
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    with torch.device(device):
        unet = UNet2DConditionModel(
            sample_size=SIDE // 8, cross_attention_dim=1024, attention_head_dim=[5, 10, 20, 20],
            use_linear_projection=True,
        ).to(dtype)  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
            sample_size=SIDE, down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ).to(dtype)  # fmt: skip
        encoder = CLIPTextModel(text).to(dtype)
    return StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )
