"""Networks from a host's tensors: the same as from the file, or a refusal."""

import pytest
import torch
from fakes_checkpoint import build_networks, ldm_tensors, write_tiny_checkpoint

from resalign.backend.checkpoint import in_memory
from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.errors import CheckpointError
from resalign.backend.families import find_family

UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer."
WIDE = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


def part(tensors, prefix):
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


@pytest.fixture(scope="module")
def networks():
    return {family: build_networks(family) for family in ("sd1", "sd2", "sdxl")}


@pytest.fixture
def unet(networks):
    return lambda family="sd1": part(ldm_tensors(networks[family], family), UNET)


@pytest.fixture
def text(networks):
    return part(ldm_tensors(networks["sd1"], "sd1"), TEXT)


def text_encoder(family, component, tensors, skip_last=0):
    networks = find_family(family).networks
    return networks.text_encoder("the CLIP", component, tensors, skip_last=skip_last)


def predict(unet, context, added=None):
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=random)
    hidden = torch.randn(2, 77, context, generator=random)
    return unet(
        latents, torch.tensor([1, 601]), encoder_hidden_states=hidden, added_cond_kwargs=added
    ).sample


def added(unet):
    width = unet.add_embedding.linear_1.in_features - 6 * unet.config.addition_time_embed_dim
    return {"text_embeds": torch.ones(2, width), "time_ids": torch.full((2, 6), 64.0)}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_tensors_give_the_denoiser_that_their_file_gives(tmp_path, unet, family):
    path = write_tiny_checkpoint(tmp_path / "a.safetensors", family, torch.float32)
    loaded = load_checkpoint(path).denoiser
    built = in_memory.denoiser_from_tensors("the MODEL", unet(family), find_family(family))
    width = loaded.config.cross_attention_dim
    more = added(loaded) if family == "sdxl" else None
    with torch.no_grad():
        assert torch.equal(predict(built, width, more), predict(loaded, width, more))
    assert not built.training and not any(p.requires_grad for p in built.parameters())


def test_the_names_of_modules_lead_to_the_weights(networks, unet):
    tensors = unet()
    family = find_family("sd1")
    config = in_memory.denoiser_config("the MODEL", tensors, family)
    names = in_memory.denoiser_modules(family, config)
    state = networks["sd1"]["unet"].state_dict()
    assert {name + ".weight" for name in names} == {n for n in state if n.endswith(".weight")}
    for diffusers, ldm in names.items():
        assert torch.equal(state[diffusers + ".weight"], tensors[ldm + ".weight"])


def test_missing_and_surplus_tensors_are_named(unet):
    tensors = unet()
    del tensors["time_embed.0.bias"]
    tensors["time_embed.9.bias"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"^the MODEL: 1 tensors missing \(time_embed.0.bias"):
        in_memory.denoiser_from_tensors("the MODEL", tensors, find_family("sd1"))
    del tensors["time_embed.9.bias"]
    tensors["time_embed.0.bias"] = torch.zeros(128)
    in_memory.denoiser_from_tensors("the MODEL", tensors, find_family("sd1"))
    tensors["extra.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"1 unexpected \(extra.weight\)"):
        in_memory.denoiser_from_tensors("the MODEL", tensors, find_family("sd1"))


def test_a_denoiser_that_reads_more_channels_is_refused(unet):
    """An inpainting model reads a mask and a masked picture beside the latents."""
    tensors = unet()
    first = tensors["input_blocks.0.0.weight"]
    tensors["input_blocks.0.0.weight"] = torch.zeros(first.shape[0], 9, 3, 3)
    with pytest.raises(CheckpointError, match=r"^the MODEL is .*npaint"):
        in_memory.denoiser_from_tensors("the MODEL", tensors, find_family("sd1"))


def test_a_distilled_layout_is_refused_not_guessed(unet):
    """KOALA leaves out layers: one residual block a level where SDXL has two."""
    tensors = {n: t for n, t in unet("sdxl").items() if not n.startswith("input_blocks.2.")}
    with pytest.raises(CheckpointError, match="the MODEL"):
        in_memory.denoiser_from_tensors("the MODEL", tensors, find_family("sdxl"))


@pytest.mark.parametrize(
    ("width", "sizes", "family"),
    [(768, False, "sd1"), (1024, False, "sd2"), (2048, True, "sdxl")],
)
def test_the_family_is_told_by_the_width_of_the_text(width, sizes, family):
    tensors = {WIDE: torch.empty(320, width)}
    if sizes:
        tensors["label_emb.0.0.weight"] = torch.empty(1280, 2816)
    assert in_memory.denoiser_family("the MODEL", tensors).name == family


@pytest.mark.parametrize(
    "tensors",
    [
        {WIDE: torch.empty(320, 1280)},  # SDXL's refiner
        {WIDE: torch.empty(320, 2048)},  # wide text, no size embedding
        {WIDE: torch.empty(320, 768), "label_emb.0.0.weight": torch.empty(1, 1)},
        {"double_blocks.0.img_attn.qkv.weight": torch.empty(9, 3)},  # Flux
    ],
)
def test_other_families_are_refused(tensors):
    with pytest.raises(CheckpointError, match=r"is none of Stable Diffusion 1.x, .*other families"):
        in_memory.denoiser_family("the MODEL", tensors)


@pytest.mark.parametrize("skip", [0, 1])
def test_a_text_encoder_ends_where_it_is_told_and_is_normed_there(networks, text, skip):
    original = networks["sd1"]["text_encoder"]
    built = text_encoder("sd1", "text_encoder", text, skip_last=skip)
    tokens = torch.randint(0, 40000, (2, 77), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden = original(tokens, output_hidden_states=True).hidden_states[-1 - skip]
        inner = getattr(original, "text_model", original)
        wanted = inner.final_layer_norm(hidden)
        assert torch.allclose(built(tokens).last_hidden_state, wanted, atol=1e-6)
    assert {p.dtype for p in built.parameters()} == {torch.float32}


def test_clip_skip_cannot_skip_every_layer(text):
    with pytest.raises(CheckpointError, match="CLIP skip leaves none of its"):
        text_encoder("sd1", "text_encoder", text, skip_last=99)


def test_a_text_encoder_with_a_tensor_missing_is_refused(text):
    del text["text_model.final_layer_norm.bias"]
    with pytest.raises(CheckpointError, match=r"the CLIP: 1 tensors missing \(final_layer_norm"):
        text_encoder("sd1", "text_encoder", text)


def test_what_a_text_encoder_never_reads_may_be_there(text):
    text |= {"text_model.logit_scale": torch.tensor(4.6), "logit_scale": torch.tensor(4.6)}
    text_encoder("sd1", "text_encoder", text)


def test_the_second_text_encoder_of_sdxl_keeps_its_projection(networks):
    original = networks["sdxl"]["text_encoder_2"]
    tensors = {
        n if n.startswith("text_") else "text_model." + n: t
        for n, t in original.state_dict().items()
    }
    built = text_encoder("sdxl", "text_encoder_2", tensors)
    tokens = torch.full((1, 77), 49407)
    with torch.no_grad():
        one = built(tokens, output_hidden_states=True)
        two = original(tokens, output_hidden_states=True)
    assert torch.equal(one.text_embeds, two.text_embeds)
    assert torch.equal(one.hidden_states[-2], two.hidden_states[-2])
