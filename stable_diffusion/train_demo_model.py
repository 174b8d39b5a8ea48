"""Train the demo's text-to-image model: a small but ordinary StableDiffusionPipeline.

    python -m stable_diffusion.train_demo_model    # some hours on 2 cores, minutes on a GPU

It sees the training partition of the demo faces only, in three stages: the autoencoder
(64x64 -> 16x16x4), the text encoder on the labels, and the UNet on cached latents with the text
encoder frozen, as in Stable Diffusion. (A text encoder trained along with the UNet did not tell
"smiling" from "not smiling" after 130,000 images: a smile is too few of the pixels.)
`--start stable_diffusion/demo_model` trains the committed model further, for prompts in new words.
Every stage saves checkpoints; the first and the last also draw a grid. The result is written in
diffusers' own format (safetensors, fp16) to stable_diffusion/demo_model/.

Interrupted; rerun the same command to resume.

The schedule has squared-cosine betas with v-prediction: under SD's own, a 16x16 latent keeps its
mean colour to the last step, which gives the samples colour casts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torchvision.utils import make_grid
from transformers import CLIPTextConfig, CLIPTextModel

from datasets import celeba, demo
from stable_diffusion.demo_captions import MAX_TOKENS, Captions, train_tokenizer
from stable_diffusion.demo_trainer import Trainer
from stable_diffusion.pipeline import pick_device
from utils.errors import exit_cleanly
from utils.files import atomic_path
from utils.metrics import group_index
from utils.options import ArgumentParser, path
from utils.progress import progress

HERE = Path(__file__).resolve().parent
SIZE, LATENT_CHANNELS, WIDTH = 64, 4, 128  # pixels, channels of a latent, text embedding
MIN_SNR = 5.0  # loss weight min(SNR, 5), Hang et al. 2023
CAPTION_DROPOUT = 0.1  # share of empty captions, for classifier-free guidance


def read_faces(root: Path) -> tuple[torch.Tensor, np.ndarray]:
    """uint8 [N, 3, 64, 64] and labels [N, 3] (Smiling, Male, Young in {0, 1}) of training faces."""
    table = celeba.read_table(root)
    table = table[table["partition"] == 0]
    labels = (table[["Smiling", "Male", "Young"]].to_numpy() > 0).astype(np.int64)
    images = np.empty((len(table), SIZE, SIZE, 3), dtype=np.uint8)
    for row, name in enumerate(progress(table.index, desc="reading faces", unit="face")):
        images[row] = np.asarray(Image.open(celeba.image_folder(root) / name).convert("RGB"))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), labels


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=LATENT_CHANNELS, sample_size=SIZE,
        block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=16,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
    )


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE // 4, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
        block_out_channels=(64, 96, 128), layers_per_block=1, cross_attention_dim=WIDTH,
        attention_head_dim=4, norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )


def new_text_encoder(tokenizer) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=MAX_TOKENS,
        projection_dim=WIDTH, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    ))


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False,
        timestep_spacing="trailing", set_alpha_to_one=True, steps_offset=1,
    )


def vae_loss(images: torch.Tensor, device):
    """L1 of pixels and of their horizontal and vertical differences, and a little KL."""

    def loss(vae, rows, generator):
        x = images[rows].to(device).float() / 127.5 - 1  # [B, 3, 64, 64]
        flip = torch.rand(len(rows), generator=generator) < 0.5
        x[flip] = x[flip].flip(-1)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
        y = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        edges = sum(F.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (-1, -2))
        return F.l1_loss(y, x) + edges + 1e-4 * posterior.kl().mean() / x[0].numel() * 48

    return loss


def tokenize(captions: Captions, labels, tokenizer, dropout: float, generator) -> torch.Tensor:
    """One caption for each row of `labels` [B, 3]; int64 [B, 77]."""
    draw = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
    text = ["" if draw.random() < dropout else captions.draw(*row, draw) for row in labels]
    return tokenizer(
        text, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
    ).input_ids


def text_loss(labels, captions: Captions, tokenizer, device):
    """Cross-entropy of a caption's labels, read off its final states along three fixed directions.

    It does on a small scale what CLIP's contrastive loss does for Stable Diffusion.
    """
    directions = torch.linalg.qr(
        torch.randn(WIDTH, 3, generator=torch.Generator().manual_seed(0))
    ).Q.to(device)

    def loss(text_encoder, rows, generator):
        tokens = tokenize(captions, labels[rows], tokenizer, 0.0, generator).to(device)
        logits = 2 * text_encoder(tokens)[0].float() @ directions  # [B, 77, 3]
        truth = torch.from_numpy(labels[rows]).to(logits)[:, None].expand_as(logits)
        ended = (tokens == tokenizer.eos_token_id).to(logits)[..., None]  # padding is eos, too
        each = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        return (each * ended).sum() / (3 * ended.sum())

    return loss


def unet_loss(latents, labels, captions: Captions, tokenizer, text_encoder, signal, device):
    """Min-SNR weighted v-prediction (Salimans and Ho 2022) with random empty captions.

    signal: the schedule's cumulative alphas, float [T] in [0, 1].
    """
    signal = signal.to(device)

    def loss(unet, rows, generator):
        tokens = tokenize(captions, labels[rows], tokenizer, CAPTION_DROPOUT, generator)
        with torch.no_grad():
            context = text_encoder(tokens.to(device))[0]  # [B, 77, WIDTH]
        mirrored = torch.randint(2, (len(rows),), generator=generator)
        x = latents[mirrored, rows].to(device)  # [B, 4, 16, 16]
        noise = torch.randn(x.shape, generator=generator).to(device)
        t = torch.randint(len(signal), (len(rows),), generator=generator).to(device)
        a = signal[t].sqrt().view(-1, 1, 1, 1)
        s = (1 - signal[t]).sqrt().view(-1, 1, 1, 1)
        v = unet(a * x + s * noise, t, context).sample.float()
        snr = signal[t] / (1 - signal[t])
        weight = snr.clamp(max=MIN_SNR) / (snr + 1)
        return (weight * (v - (a * noise - s * x)).square().mean(dim=(1, 2, 3))).mean() * 4

    return loss


@torch.no_grad()
def encode_all(vae, images: torch.Tensor, device) -> torch.Tensor:
    """Latent means, as is and mirrored, times the scaling factor: float32 [2, N, 4, 16, 16]."""
    parts = []
    for start in progress(range(0, len(images), 256), desc="latents", unit="batch"):
        x = images[start : start + 256].to(device).float() / 127.5 - 1
        parts.append(torch.stack([vae.encode(z).latent_dist.mean.cpu() for z in (x, x.flip(-1))]))
    latents = torch.cat(parts, dim=1)
    vae.register_to_config(scaling_factor=float(1 / latents.std()))
    return latents * vae.config.scaling_factor


def assemble(vae, text_encoder, unet, tokenizer) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )


def save_grid(path: Path, images: torch.Tensor, columns: int = 8) -> None:
    """images float [N, 3, H, W] in [-1, 1]."""
    grid = make_grid((images.clamp(-1, 1) + 1) / 2, nrow=columns)
    with atomic_path(path) as temporary:
        Image.fromarray((grid.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(
            temporary, "PNG"
        )


def sample_grid(path: Path, pipeline: StableDiffusionPipeline) -> None:
    """Eight faces of each Smiling/Male group, one row per group."""
    pipeline.set_progress_bar_config(disable=True)
    words = ("serious woman", "serious man", "smiling woman", "smiling man")
    prompts = [f"Portrait face photo of a {w}." for w in words for _ in range(8)]
    images = pipeline(
        prompts, num_inference_steps=20, guidance_scale=3.0, output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images
    save_grid(path, images.cpu().float() * 2 - 1)


def train_vae(args, images: torch.Tensor, groups: np.ndarray, device) -> AutoencoderKL:
    """The trained autoencoder; starts from random weights or its last checkpoint."""
    stage = Trainer(
        args.work / "vae", new_vae(), vae_loss(images, device), groups=groups,
        batch=args.batch_vae, steps=args.steps_vae, lr=1e-3, average=0.995, device=device,
    )

    @torch.no_grad()
    def reconstructions(average):
        x = images[:32].to(device).float() / 127.5 - 1
        y = average.decode(average.encode(x).latent_dist.mean).sample
        save_grid(args.work / "vae" / "grid.png", torch.stack([x, y], 1).flatten(0, 1).cpu())

    stage.run("autoencoder", args.bf16, reconstructions)
    return stage.average.eval()


@exit_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=path, default=Path("data/demo"), help="unpacked faces")
    parser.add_argument("--work", type=path, default=Path("data/demo_model"), help="checkpoints")
    parser.add_argument("--out", type=path, default=HERE / "demo_model")
    parser.add_argument("--start", type=path, help="demo model to train further: it keeps its "
                        "tokenizer and autoencoder, and learns today's captions")
    parser.add_argument("--steps-vae", type=int, default=2000)
    parser.add_argument("--steps-text", type=int, default=600)
    parser.add_argument("--steps-unet", type=int, default=9000)
    parser.add_argument("--batch-vae", type=int, default=8)
    parser.add_argument("--batch-unet", type=int, default=32)
    parser.add_argument("--bf16", action="store_true", help="autocast; faster where bf16 is native")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    args = parser.parse_args(argv)
    device = pick_device(args.device)
    torch.manual_seed(0)

    images, labels = read_faces(demo.unpack(args.data))
    groups = group_index(labels[:, 0], labels[:, 1])  # Smiling x Male, the demo's own pair
    captions = Captions()
    if args.start is None:
        tokenizer = train_tokenizer(captions)
        text_encoder, unet = new_text_encoder(tokenizer), new_unet()
        vae = train_vae(args, images, groups, device)
    else:
        given = StableDiffusionPipeline.from_pretrained(args.start, torch_dtype=torch.float32)
        tokenizer, text_encoder, unet = given.tokenizer, given.text_encoder, given.unet
        vae = given.vae.to(device).eval()
    latents = encode_all(vae, images, device)

    stage = Trainer(
        args.work / "text", text_encoder,
        text_loss(labels, captions, tokenizer, device), groups=groups,
        batch=64, steps=args.steps_text, lr=1e-3, average=0.99, device=device,
    )
    stage.run("text encoder", args.bf16, lambda average: None)
    text_encoder = stage.average.eval()

    stage = Trainer(
        args.work / "unet", unet,
        unet_loss(latents, labels, captions, tokenizer, text_encoder,
                  scheduler().alphas_cumprod, device), groups=groups,
        batch=args.batch_unet, steps=args.steps_unet, lr=1e-3, average=0.999, device=device,
    )
    stage.run("unet", args.bf16, lambda average: sample_grid(
        args.work / "unet" / "grid.png", assemble(vae, text_encoder, average, tokenizer)))
    pipeline = assemble(vae, text_encoder, stage.average, tokenizer)
    pipeline.to(torch.float16).save_pretrained(args.out, safe_serialization=True)
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    print(f"{args.out}: {size / 2**20:.1f} MiB; samples in {args.work}/unet/grid.png")


if __name__ == "__main__":
    main()
