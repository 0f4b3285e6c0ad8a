"""Names in the original layout and in diffusers: complete, one to one, and as others map them."""

import pytest
import torch
from fakes_checkpoint import FAMILIES, build_networks, ldm_tensors

from resalign.backend.families import find_family
from resalign.backend.families.clip.names import clip_sources, open_clip_sources
from resalign.backend.families.unet.names import transformer_depths, unet_ldm_names
from resalign.backend.families.unet.vae_names import current_vae_name, vae_sources

# Parameters of the published networks.
PARAMETERS = {
    ("sd1", "unet"): 859_520_964,
    ("sd2", "unet"): 865_910_724,
    ("sdxl", "unet"): 2_567_463_684,
    ("sd1", "vae"): 83_653_863,
    ("sd1", "text_encoder"): 123_060_480,
    ("sd2", "text_encoder"): 340_387_840,
    ("sdxl", "text_encoder_2"): 694_659_840,
}
TENSORS = {"sd1": 686, "sd2": 686, "sdxl": 1680}


def published(family, component):
    """A network of the published size without storage."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = {k: v for k, v in find_family(family).config(component).items() if k[0] != "_"}
    with torch.device("meta"):
        if component == "unet":
            return UNet2DConditionModel.from_config(config)
        if component == "vae":
            return AutoencoderKL.from_config(config)
        kind = CLIPTextModelWithProjection if component == "text_encoder_2" else CLIPTextModel
        return kind(CLIPTextConfig(**{k: v for k, v in config.items() if k != "architectures"}))


@pytest.mark.parametrize(("family", "component"), PARAMETERS)
def test_shipped_configs_build_networks_of_the_published_size(family, component):
    network = published(family, component)

    assert sum(tensor.numel() for tensor in network.parameters()) == PARAMETERS[family, component]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_of_a_published_unet_has_exactly_one_ldm_name(family):
    names = unet_ldm_names(find_family(family).config("unet"))

    assert set(names) == set(published(family, "unet").state_dict())
    assert len(set(names.values())) == len(names) == TENSORS[family]


@pytest.mark.parametrize(
    ("family", "diffusers", "ldm"),
    [
        (
            "sd1",
            "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight",
            "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
        ),
        ("sd1", "up_blocks.0.upsamplers.0.conv.bias", "output_blocks.2.1.conv.bias"),
        ("sd1", "up_blocks.2.upsamplers.0.conv.bias", "output_blocks.8.2.conv.bias"),
        ("sd1", "down_blocks.2.downsamplers.0.conv.weight", "input_blocks.9.0.op.weight"),
        ("sdxl", "add_embedding.linear_2.bias", "label_emb.0.2.bias"),
        (
            "sdxl",
            "mid_block.attentions.0.transformer_blocks.9.ff.net.2.weight",
            "middle_block.1.transformer_blocks.9.ff.net.2.weight",
        ),
        ("sdxl", "up_blocks.1.upsamplers.0.conv.weight", "output_blocks.5.2.conv.weight"),
    ],
)
def test_names_known_from_the_published_files(family, diffusers, ldm):
    assert (
        unet_ldm_names(find_family(family).config("unet"))[diffusers]
        == "model.diffusion_model." + ldm
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_unet_names_agree_with_the_converter_of_diffusers(family):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = find_family(family).config("unet")
    names = unet_ldm_names(config)
    numbered = {ldm: torch.tensor([float(i)]) for i, ldm in enumerate(names.values())}

    theirs = convert_ldm_unet_checkpoint(dict(numbered), config)

    assert {name: tensor.item() for name, tensor in theirs.items()} == {
        name: numbered[ldm].item() for name, ldm in names.items()
    }


def test_vae_names_agree_with_the_converter_of_diffusers():
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    config = find_family("sd1").config("vae")
    sources = vae_sources(config)
    assert set(sources) == set(published("sd1", "vae").state_dict())
    assert {s.part for n, s in sources.items() if ".attentions.0.to_" not in n} == {"whole"}
    numbered = {s.name: torch.full((1, 1, 1, 1), float(i)) for i, s in enumerate(sources.values())}

    theirs = convert_ldm_vae_checkpoint(dict(numbered), config)

    assert {name: tensor.item() for name, tensor in theirs.items()} == {
        name: numbered[source.name].item() for name, source in sources.items()
    }


def test_open_clip_parts_agree_with_the_converter_of_diffusers():
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    networks = build_networks("sdxl")
    tensors = ldm_tensors(networks, "sdxl")
    prefix = "conditioner.embedders.1.model."
    encoder = networks["text_encoder_2"]

    theirs = convert_open_clip_checkpoint(encoder, dict(tensors), prefix=prefix)
    ours = open_clip_sources(encoder.config.to_dict(), prefix, projection=True)

    assert set(ours) == {name for name in theirs if "position_ids" not in name}
    for name, source in ours.items():
        tensor = tensors[source.name]
        if source.rows is not None:
            tensor = tensor[slice(*source.rows)]
        if source.part == "transposed":
            tensor = tensor.T
        assert torch.equal(tensor, theirs[name]), name


def test_clip_names_are_those_of_transformers():
    state = published("sd1", "text_encoder").state_dict()
    names = {"text_model." + name.removeprefix("text_model.") for name in state}

    found = clip_sources(
        find_family("sd1").config("text_encoder"), "cond_stage_model.transformer.x."
    )

    assert set(found) == {name for name in names if "position_ids" not in name}
    assert len(found) == 196
    assert all(s.name.startswith("cond_stage_model.transformer.x.") for s in found.values())


@pytest.mark.parametrize(
    "shape",
    [
        {"block_out_channels": (32, 64), "depths": (1, 0), "layers_per_block": 1},
        {"block_out_channels": (32, 32), "depths": (0, 3), "layers_per_block": 3},
        {"block_out_channels": (64, 32, 32, 64), "depths": (1, 1, 1, 1), "layers_per_block": 2},
        {"block_out_channels": (32, 64, 64), "depths": (0, 1, 2), "layers_per_block": 2},
    ],
)
def test_any_width_and_depth_is_covered_one_to_one(shape):
    from diffusers import UNet2DConditionModel

    depths = shape.pop("depths")
    config = {
        **shape,
        "down_block_types": ["CrossAttnDownBlock2D" if d else "DownBlock2D" for d in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if d else "UpBlock2D" for d in depths[::-1]],
        "transformer_layers_per_block": [depth or 1 for depth in depths],
        "cross_attention_dim": 32,
        "attention_head_dim": 8,
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)

    names = unet_ldm_names(config)

    assert set(names) == set(unet.state_dict())
    assert len(set(names.values())) == len(names)


def test_depths_are_read_from_single_numbers_lists_and_reversed_lists():
    config = {
        "block_out_channels": [32, 64],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    }
    assert transformer_depths(config) == ([1, 0], 1, [0, 1])
    config["transformer_layers_per_block"] = [2, 3]
    assert transformer_depths(config) == ([2, 0], 3, [0, 2])
    config["reverse_transformer_layers_per_block"] = [3, 5]
    assert transformer_depths(config) == ([2, 0], 3, [0, 5])


def test_old_names_of_the_vae_attention_become_the_present_ones():
    new = "decoder.mid_block.attentions.0.to_out.0.weight"

    assert current_vae_name("decoder.mid_block.attentions.0.proj_attn.weight") == new
    assert current_vae_name(new) == new


def test_an_sdxl_checkpoint_has_four_networks():
    assert find_family("sdxl").components == ("unet", "text_encoder", "text_encoder_2", "vae")
