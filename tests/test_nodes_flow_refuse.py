"""ComfyUI's nodes refuse, of flow-matching families, parts of other models, other kinds of
sampling, and relatives that share names, each by its name."""

import importlib

import fakes_bridge
import fakes_bridge_flow as fakes
import pytest
import torch

from resalign.backend.data.encoded_file import load_encoded
from resalign.backend.errors import CheckpointError, ConfigError, DataError
from resalign.backend.model.encode import encode_images, encode_prompts
from resalign.backend.plan.attack import FineTuneAttack
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.probe import ProbePlan
from resalign.backend.probe.carry_out import check_attacks


@pytest.fixture(params=fakes.HOSTS, ids=str)
def host(request):
    return request.param


parts, bridge = fakes.bridge_fixtures()


@pytest.mark.parametrize(
    ("host", "clip", "words"),
    [
        # one layer instead of three: the same file, loaded for another family
        (fakes.KLEIN, fakes.Clip(fakes.Z_IMAGE), r"a width of 96.*type flux2"),
        (fakes.Z_IMAGE, fakes.Clip(fakes.KLEIN), r"\[512, 96\].*a width of 32.*type lumina2"),
        (fakes.ANIMA, fakes.Clip(fakes.ANIMA, 16), r"16\], but.*a width of 32.*Qwen3 0\.6B"),
    ],
    ids=["flux2_klein", "z_image", "anima"],
)
def test_a_clip_of_the_wrong_type_is_refused(bridge, host, clip, words):
    model, _, vae = host.parts()
    with (
        bridge.to_backend(model, clip, vae) as backend,
        pytest.raises(CheckpointError, match=words),
    ):
        encode_prompts(backend, ["a cat"])


def test_a_clip_of_another_model_is_refused(host, bridge, parts):
    clip = fakes_bridge.Clip({"clip_l.transformer.x": torch.zeros(1)})
    with (
        pytest.raises(CheckpointError, match=rf"no {host.part}.*{host.loader}"),
        bridge.to_backend(parts[0], clip, parts[2]),
    ):
        pass


def test_another_layer_of_the_clip_is_refused(bridge, parts):
    parts[1].layer_idx = -3
    with (
        pytest.raises(CheckpointError, match="Set Last Layer is -3"),
        bridge.to_backend(*parts),
    ):
        pass


@pytest.mark.parametrize(
    ("host", "vae"),
    [(fakes.ANIMA, fakes.ZImageVae), (fakes.Z_IMAGE, fakes.AnimaVae)],
    ids=["anima", "z_image"],
)
def test_a_vae_of_as_many_channels_but_of_pictures_or_videos_is_refused(bridge, host, vae):
    model, clip, _ = host.parts()
    with (
        bridge.to_backend(model, clip, vae()) as backend,
        pytest.raises(CheckpointError, match="connect the VAE of its family"),
    ):
        encode_images(backend, torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize("kind", [fakes_bridge.EPS, fakes.IMG_TO_IMG_FLOW])
def test_another_kind_of_sampling_is_refused(bridge, parts, kind):
    model = parts[0]
    model.sampling = fakes_bridge.sampling(fakes_bridge.ModelSamplingFlux, kind)
    with pytest.raises(CheckpointError, match=r"samples as .* as a flow"):
        bridge.prediction_of(model)


def test_the_hosts_text_encoder_is_not_trained(bridge, parts):
    attack = FineTuneAttack(name="deep", text_encoder=True)
    plan = ProbePlan(concepts=(Concept("a", ("a",)),), fine_tunes=(attack,))
    with (
        bridge.to_backend(*parts) as backend,
        pytest.raises(ConfigError, match=r"attack deep: its text encoder is the host's"),
    ):
        check_attacks(backend, plan, {})
    probe = importlib.import_module("resalign.nodes.probe")
    kept, said = probe.without_text_training(plan)
    assert not kept.fine_tunes[0].text_encoder and said[0].startswith("deep: trains the denoiser")


# --- data of the graph ----------------------------------------------------------------------------


def of_another(bridge, host, other):
    """A set that was encoded with the CLIP of another family with as many channels."""
    images = importlib.import_module("resalign.nodes.images")
    clip = fakes.Clip(other)
    folder = images.store_latents(
        [{"samples": torch.randn(1, 16, 8, 8)}], [clip.encode_from_tokens_scheduled(
            clip.tokenize("a cat"))],
    )  # fmt: skip
    with bridge.to_backend(*host.parts()) as backend:
        load_encoded(backend, folder)


def test_conditioning_of_another_family_is_refused_by_anima(bridge):
    with pytest.raises(DataError, match=r"has no states_mask: Anima reads.*Qwen3 0\.6B"):
        of_another(bridge, fakes.ANIMA, fakes.Z_IMAGE)


def test_conditioning_of_anima_is_refused_by_another_family(bridge):
    with pytest.raises(DataError, match="has no mask conditioning"):
        of_another(bridge, fakes.Z_IMAGE, fakes.ANIMA)


def test_a_video_is_refused(bridge):
    images = importlib.import_module("resalign.nodes.images")
    with pytest.raises(DataError, match=r"\(1, 16, 2, 8, 8\).*those of videos"):
        list(images._samples({"samples": torch.zeros(1, 16, 2, 8, 8)}))


# --- relatives ------------------------------------------------------------------------------------


def meta(sizes):
    return {name: torch.empty(size, device="meta") for name, size in sizes.items()}


def flux(image=64, text=4096, *more):
    return meta({"double_blocks.0.img_attn.qkv.weight": (9, 3), "img_in.weight": (3072, image),
                 "txt_in.weight": (3072, text), **dict.fromkeys(more, (1, 1))})  # fmt: skip


def klein(width, *more):
    return meta({"double_stream_modulation_img.lin.weight": (1, 1), "img_in.weight": (width, 128),
                 "txt_in.weight": (width, 7680), "time_in.in_layer.weight": (width, 256),
                 "double_blocks.0.img_attn.norm.query_norm.weight": (128,),
                 "double_blocks.0.img_mlp.2.weight": (width, 3 * width),
                 **dict.fromkeys(more, (1, 1))})  # fmt: skip


def lumina(width, *more):
    return meta({"noise_refiner.0.attention.k_norm.weight": (128,),
                 "noise_refiner.0.attention.qkv.weight": (3 * width, width),
                 "cap_embedder.1.weight": (width, 2560), **dict.fromkeys(more, (1,))})  # fmt: skip


def z_image(channels=16, *more):
    return lumina(3840, "cap_pad_token", *more) | meta({"x_embedder.weight": (3840, 4 * channels)})


def cosmos(channels=16, *more):
    """The denoiser of Cosmos Predict2, 2048 wide; `channels` without that of the mask."""
    block = "blocks.0."
    return meta({"x_embedder.proj.1.weight": (2048, 4 * (channels + 1)),
                 block + "mlp.layer1.weight": (8192, 2048),
                 block + "self_attn.q_norm.weight": (128,),
                 block + "cross_attn.k_proj.weight": (2048, 1024),
                 block + "adaln_modulation_self_attn.1.weight": (256, 2048),
                 "final_layer.linear.weight": (64, 2048),
                 **dict.fromkeys(more, (1, 1))})  # fmt: skip


ADAPTER = "llm_adapter.blocks.0.cross_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (klein(6144, "guidance_in.in_layer.weight"), "FLUX.2 dev"),
        (klein(4096), "FLUX.2 klein 9B"),
        (flux(64, 4096, "guidance_in.in_layer.weight"), r"is FLUX.1 dev, Krea or Kontext, which"),
        (flux(), "is FLUX.1 schnell, which"),
        (flux(384), r"FLUX.1 Fill.*384 input channels"),
        (flux(64, 3584), "LongCat Image"),
        (flux(64, 2048, "double_blocks.0.img_mlp.gate_proj.weight"), "Ovis Image"),
        (flux(64, 4096, "distilled_guidance_layer.norms.0.weight"), "is Chroma, which"),
        (flux(64, 4096, "distilled_guidance_layer.norms.0.scale", "nerf_blocks.0.norm.scale"),
         "Chroma Radiance"),
        (meta({"joint_blocks.0.context_block.attn.qkv.weight": (1,)}), "Stable Diffusion 3"),
        (lumina(2304), "is Lumina Image 2, which"),
        (lumina(2304, "clip_text_pooled_proj.0.weight"), "is NewBie, which"),
        (z_image(16, "siglip_embedder.0.weight"), "is Z-Image Omni, which"),
        (z_image(16, "dec_net.cond_embed.weight"), "is Z-Image in pixel space, which"),
        (z_image(33), r"takes 33 channels, not 16: a control or otherwise extended variant of Z-"),
        (lumina(3840), r"a variant of Z-Image without all of its tensors"),
        (cosmos(), "has the denoiser of Cosmos Predict2 without a text conditioner"),
        (cosmos(17), "has the denoiser of Cosmos Predict2 without a text conditioner"),
        (cosmos(17, ADAPTER), r"takes 17 channels, not 16: a video, inpainting"),
    ],
)  # fmt: skip
def test_relatives_in_memory_are_refused_by_name(bridge, tensors, words):
    model = fakes_bridge.ModelPatcher({f"diffusion_model.{n}": t for n, t in tensors.items()})
    with pytest.raises(CheckpointError, match=words):
        bridge.denoiser_config(model)
