"""Load a Stable Diffusion model from wherever it is, and turn seeds and prompts into pixels.

UNet, VAE, text encoder and scheduler are diffusers' own. The loop differs from a call of
StableDiffusionPipeline: prompt embeddings are computed once, guidance repeats no work
(guided_unet.py), each image's noise has its own generator, latents stay in fp32, and nothing waits
for the device between batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import diffusers
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline

from stable_diffusion.guided_unet import GuidedUNet
from stable_diffusion.model_files import PAPER_MODEL, read_pipeline, refusal
from stable_diffusion.prompt_set import PromptSet
from utils.devices import pick
from utils.errors import UserError
from utils.options import check_device

# The paper's sampler (AIM-Fair release: DDIM, eta 0, 50 steps, guidance 9).
PAPER_DEFAULTS = {"scheduler": "ddim", "steps": 50, "guidance": 9.0, "batch_size": 28}
DEMO_DEFAULTS = {"scheduler": "dpmsolver++", "steps": 10, "guidance": 3.0, "batch_size": 50}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU_DECODE = 10  # images decoded at once; in a batch of 48 each takes 20% longer


def pick_device(name: str) -> torch.device:
    """The device of --device: auto is a GPU where there is one, each process of a launcher's own.
    Raises UserError for another name, and for a GPU that this machine does not have."""
    check_device(name)
    return torch.device(pick(name))


def load_pipeline(
    model: str,
    *,
    scheduler: str = "ddim",
    precision: str = "fp32",
    device: str = "auto",
    config: str = PAPER_MODEL,
) -> StableDiffusionPipeline:
    """Load `model`: "demo", a hub id, a diffusers folder, or one .ckpt or .safetensors file.

    Weights are read as safetensors, or from a .ckpt with torch's weights_only, so nothing in a file
    is executed. There is no safety checker. `config` (hub id or folder) gives a single file its
    tokenizer and architecture; diffusers' default for SD 2 is a repository that went offline.
    Raises UserError where the model is missing or cannot be read.
    """
    target = pick_device(device)
    pipe = read_pipeline(model, PRECISIONS[precision], config)
    _check_parts(model, pipe)
    check_precision(pipe, PRECISIONS[precision])
    return ready(pipe, scheduler, target)


def ready(
    pipe: StableDiffusionPipeline, scheduler: str, device: torch.device
) -> StableDiffusionPipeline:
    """The pipeline on the device with that sampler, laid out for speed; it is changed in place."""
    pipe.scheduler = make_scheduler(scheduler, pipe.scheduler.config)
    pipe.to(device)
    for part in (pipe.unet, pipe.vae):
        part.eval().requires_grad_(False)
        part.to(memory_format=torch.channels_last)  # convolutions: also faster on a CPU
    return pipe


def make_scheduler(name: str, config) -> DDIMScheduler | DPMSolverMultistepScheduler:
    """A sampler with the model's own noise schedule; DDIM runs with eta 0."""
    if name == "ddim":
        return DDIMScheduler.from_config(config)
    # A DDIM config has "leading", with which few steps start well below full noise.
    return DPMSolverMultistepScheduler.from_config(
        config, algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="linspace"
    )


def _check_parts(model: str, pipe: StableDiffusionPipeline) -> None:
    """Raise UserError for parts that do not fit: an inpainting model, SDXL, a mixed folder."""
    unet, channels = pipe.unet.config, pipe.vae.config.latent_channels
    width = pipe.text_encoder.config.hidden_size
    if not unet.in_channels == unet.out_channels == channels:
        cause = f"its UNet maps {unet.in_channels} channels to {unet.out_channels}, its VAE has "
        raise refusal(model, f"{cause}{channels}, so it is not a plain text-to-image model")
    if unet.cross_attention_dim != width:
        cause = f"its UNet reads text of width {unet.cross_attention_dim}, its text encoder gives "
        raise refusal(model, f"{cause}{width}")
    words, known = len(pipe.tokenizer), pipe.text_encoder.config.vocab_size
    if not known / 2 < words <= known:  # from an empty folder transformers makes an empty tokenizer
        raise refusal(model, f"its tokenizer has {words} tokens, its text encoder {known}")


def check_precision(pipe: StableDiffusionPipeline, dtype: torch.dtype) -> None:
    """Raise UserError where a network is not in that precision, which the manifest records."""
    for name in ("unet", "vae", "text_encoder"):
        found = getattr(pipe, name).dtype
        if found != dtype:
            raise UserError(
                f"diffusers {diffusers.__version__} made the model's {name} {found} and not "
                f"{dtype}, as versions below 0.40 do: run pip install -r requirements.txt"
            )


def weights_fingerprint(pipe: StableDiffusionPipeline) -> str:
    """12 hex digits of the UNet's first and last layer, which change when a model is retrained."""
    digest = hashlib.sha256()
    for layer in (pipe.unet.conv_in, pipe.unet.conv_out):
        digest.update(layer.weight.detach().float().contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:12]


def check_lengths(prompts: PromptSet, tokenizer, path: str) -> None:
    """Raise UserError for a prompt that the text encoder would cut off."""
    for (y, a), texts in prompts.groups.items():
        for number, text in enumerate(texts, 1):
            tokens = len(tokenizer(text).input_ids)
            if tokens > tokenizer.model_max_length:
                raise UserError(
                    f"--prompts {path}: prompt {number} of group {y}_{a} has {tokens} tokens, more "
                    f"than the model's {tokenizer.model_max_length}; make it shorter"
                )


class Sampler:
    """Turns prompts and noise seeds into batches of images, with one loaded pipeline."""

    def __init__(
        self,
        pipe: StableDiffusionPipeline,
        *,
        steps: int,
        guidance: float,
        height: int,
        width: int,
        decode_batch: int | None = None,
    ):
        """height, width: in pixels. decode_batch: images decoded at once."""
        self.pipe, self.guidance, self.decode_batch = pipe, guidance, decode_batch
        self.device, self.dtype = pipe.unet.device, pipe.unet.dtype
        self.unet = GuidedUNet.of(pipe.unet)
        factor = pipe.vae_scale_factor
        self.latent_shape = (pipe.unet.config.in_channels, height // factor, width // factor)
        pipe.scheduler.set_timesteps(steps)  # on the CPU: indexing must not wait for a GPU
        self.timesteps = list(pipe.scheduler.timesteps)
        self.device_timesteps = pipe.scheduler.timesteps.to(self.device)
        self.embeddings: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def embed(self, prompt: str) -> torch.Tensor:
        """The text encoder's output [T, D] for one prompt, computed once.

        Prompts are encoded one at a time, so that an embedding has the same bits whatever other
        prompts a run needs.
        """
        if prompt not in self.embeddings:
            embedding, _ = self.pipe.encode_prompt(prompt, self.device, 1, False)
            self.embeddings[prompt] = embedding[0]
        return self.embeddings[prompt]

    def embed_all(self, prompts: Iterable[str]) -> None:
        """Embed them, and the empty one of the guidance, so that no batch has to wait for it."""
        for prompt in dict.fromkeys([*([""] if self.guidance > 1 else []), *prompts]):
            self.embed(prompt)

    def noise(self, seeds: Sequence[int]) -> torch.Tensor:
        """Initial latents float32 [B, C, h, w], each image's from its own CPU generator.

        The generator uses the low 32 bits of a seed. Among the paper's 42,000 images two share
        their noise with a chance of 0.2, their prompt as well with one of 0.001.
        """
        rows = [
            torch.randn(self.latent_shape, generator=torch.Generator("cpu").manual_seed(seed))
            for seed in seeds
        ]
        noise = torch.stack(rows)
        if self.device.type == "cuda":
            noise = noise.pin_memory()
        return noise.to(self.device, non_blocking=True)

    @torch.inference_mode()
    def sample(self, prompts: Sequence[str], seeds: Sequence[int]) -> torch.Tensor:
        """Denoise and decode one batch; uint8 [B, H, W, 3] on the device.

        Classifier-free guidance takes one UNet forward of 2B; without it (guidance <= 1), one of B.
        """
        scheduler, guided = self.pipe.scheduler, self.guidance > 1
        text = [self.embed(prompt) for prompt in prompts]
        if guided:
            text = [self.embed("")] * len(prompts) + text
        text = torch.stack(text)  # [2B, T, D]
        latents = self.noise(seeds) * scheduler.init_noise_sigma
        scheduler.set_timesteps(len(self.timesteps))  # a multistep solver forgets the last batch
        if isinstance(scheduler, DPMSolverMultistepScheduler):
            scheduler.set_begin_index(0)
        with self.unet.prompt(text, guided):
            for t, device_t in zip(self.timesteps, self.device_timesteps, strict=True):
                inputs = scheduler.scale_model_input(latents, t).to(self.dtype)
                out = self.unet(inputs, device_t)
                out = out.float()  # the solver subtracts close numbers, so in fp32
                if guided:
                    unconditional, conditional = out.chunk(2)
                    out = unconditional + self.guidance * (conditional - unconditional)
                latents = scheduler.step(out, t, latents, return_dict=False)[0]
        return self._decode(latents)

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents float32 [B, C, h, w] to pixels uint8 [B, H, W, 3]."""
        vae = self.pipe.vae
        latents = (latents / vae.config.scaling_factor).to(vae.dtype)
        latents = latents.contiguous(memory_format=torch.channels_last)
        size = CPU_DECODE if self.device.type == "cpu" else len(latents)
        pieces = [
            vae.decode(piece, return_dict=False)[0]
            for piece in latents.split(self.decode_batch or size)
        ]
        pixels = torch.cat(pieces).float()
        pixels = (pixels * 127.5 + 127.5).round_().clamp_(0, 255)
        return pixels.to(torch.uint8).permute(0, 2, 3, 1)
