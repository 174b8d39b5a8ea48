"""torch.compile for the networks of a pipeline, and from how many images on it pays."""

from __future__ import annotations

import math
import time

from diffusers import StableDiffusionPipeline

from stable_diffusion.pipeline import Sampler

FEW, MORE = 2, 4  # denoising steps of the timed batches; the others take as long


def compile_networks(pipe: StableDiffusionPipeline) -> None:
    """Have UNet and decoder compiled when they are first called. All batches have one shape."""
    pipe.unet.compile(dynamic=False)
    pipe.vae.decoder.compile(dynamic=False)


def draw(sampler: Sampler, batch_size: int, steps: int) -> float:
    """Seconds that a batch without a prompt takes in so many steps; its images are thrown away."""
    own = Sampler(
        sampler.pipe, steps=steps, guidance=sampler.guidance, decode_batch=sampler.decode_batch,
        height=sampler.latent_shape[1] * sampler.pipe.vae_scale_factor,
        width=sampler.latent_shape[2] * sampler.pipe.vae_scale_factor,
    )  # fmt: skip
    own.embed("")
    start = time.perf_counter()
    own.sample([""] * batch_size, range(batch_size)).cpu()  # which waits for the device
    return time.perf_counter() - start


def batch_seconds(sampler: Sampler, batch_size: int) -> float:
    """Seconds of a batch of all the sampler's steps, from two of few; the networks are warm."""
    few, more = (draw(sampler, batch_size, steps) for steps in (FEW, MORE))
    return few + max(0.0, more - few) / (MORE - FEW) * (len(sampler.timesteps) - FEW)


def break_even(start: float, eager: float, compiled: float) -> float:
    """Batches from which `start` seconds are regained; infinite where compiled is no faster.

    eager, compiled: seconds of a batch.
    """
    return math.ceil(start / (eager - compiled)) if compiled < eager else math.inf


def compile_and_say(sampler: Sampler, batch_size: int, left: int) -> str:
    """Compile the networks; a sentence on what it took and whether it pays for `left` images.

    Batches are timed before and after, which costs about twenty denoising steps.
    """
    draw(sampler, batch_size, FEW)  # what only a first batch takes
    eager = batch_seconds(sampler, batch_size)
    compile_networks(sampler.pipe)
    start = draw(sampler, batch_size, FEW)
    compiled = batch_seconds(sampler, batch_size)
    batches = break_even(start, eager, compiled)
    said = (f"compiled in {start:.0f} s: a batch of {batch_size} takes {compiled:.2f} s instead of "
            f"{eager:.2f}, which pays")
    if batches == math.inf:
        return f"{said} never; start without --compile"
    images = batches * batch_size
    advice = "" if images <= left else "; start without --compile"
    return f"{said} from {images} images, and {left} are to be made{advice}"
