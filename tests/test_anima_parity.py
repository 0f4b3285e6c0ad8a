"""Anima computes what diffusers' pipeline does: text, latents, schedule, pictures; and its key map
is complete."""

from functools import lru_cache
from types import SimpleNamespace

import fakes_anima as fakes
import pytest
import torch

import resalign as ra
from resalign.backend.families import find_family
from resalign.backend.families.base.sources import written_by
from resalign.backend.model.encode import decode_latents, encode_images, encode_prompts
from resalign.backend.model.generate import generate_latents

ANIMA = find_family("anima")
PROMPTS = ["a cat", "", "one big dog on a very small chair"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return ra.load_checkpoint(fakes.write_split(tmp_path_factory.mktemp("anima") / "models"))


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import AnimaAutoBlocks, FlowMatchEulerDiscreteScheduler

    found = AnimaAutoBlocks().init_pipeline()
    found.update_components(
        **fakes.build_networks(), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        tokenizer=fakes.byte_tokenizer("qwen"), t5_tokenizer=fakes.byte_tokenizer("t5"),
    )  # fmt: skip
    return found


@pytest.fixture
def without_torchvision(monkeypatch):
    """Diffusers resizes its mask, which is zero everywhere, with torchvision: any way will do."""
    from diffusers.models.transformers import transformer_cosmos

    def resize(mask, size, interpolation):
        return torch.nn.functional.interpolate(mask, size, mode=interpolation)

    stub = SimpleNamespace(
        functional=SimpleNamespace(resize=resize),
        InterpolationMode=SimpleNamespace(NEAREST="nearest"),
    )
    monkeypatch.setattr(transformer_cosmos, "transforms", stub, raising=False)


@lru_cache(maxsize=2)
def published_network(layers):
    with torch.device("meta"):
        return ANIMA.networks.build(
            "transformer", ANIMA.config("transformer") | {"num_layers": layers}
        )


# --- text --------------------------------------------------------------------------------------


def test_prompts_are_encoded_as_the_pipeline_does(model, pipeline):
    """The empty prompt included: it has no Qwen token, and its T5 token meets zeros."""
    from diffusers.modular_pipelines.anima.before_denoise import AnimaTextConditioningStep as Step
    from diffusers.modular_pipelines.anima.encoders import AnimaTextEncoderStep

    found = encode_prompts(model, PROMPTS)["context"]
    told = AnimaTextEncoderStep.encode_prompt(
        pipeline, PROMPTS, prepare_unconditional_embeds=False, device=torch.device("cpu")
    )
    names = ("qwen_prompt_embeds", "qwen_attention_mask", "t5_input_ids", "t5_attention_mask")
    with torch.no_grad():
        expected = Step._condition_prompt_embeds(
            pipeline, *(told[name] for name in names), torch.device("cpu"), torch.float32,
            torch.float32,
        )  # fmt: skip
    assert found.shape == (3, 512, fakes.TEXT_WIDTH)
    torch.testing.assert_close(found, expected)
    assert found[1, 0].abs().min() > 0 and not found[1, 1:].any()


def test_a_prompts_vectors_do_not_depend_on_its_companions(model):
    together = encode_prompts(model, PROMPTS)["context"]
    for number, prompt in enumerate(PROMPTS):
        torch.testing.assert_close(together[number], encode_prompts(model, [prompt])["context"][0])


def test_a_long_prompt_is_cut_and_said_so(model, caplog):
    """T5's end stays where it was: the last of its 512 tokens."""
    ids, mask, targets, kept = ANIMA.texts.tokenise(model, ["x" * 600])
    assert ids.shape == targets.shape == (1, 512) and mask.all() and kept.all()
    assert targets[0, -1] == fakes.T5_TOKENS.index("</s>") and "are ignored" in caplog.text


def test_another_t5_tokenizer_is_refused(model):
    """Its tokens have numbers that the conditioner has no vector for."""
    tokens = ANIMA.texts.tokenise(model, ["a cat"])
    tokens[2][0, 0] = fakes.VOCABULARY
    with pytest.raises(ra.CheckpointError, match=r"beyond the 272.*t5_tokenizer"):
        ANIMA.texts.encode(model, tokens)


# --- latents and schedule ----------------------------------------------------------------------


def test_pictures_become_normalised_latents_and_come_back(model, pipeline):
    from diffusers.modular_pipelines.anima.encoders import encode_vae_image

    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = encode_images(model, images)
    with torch.no_grad():
        expected = encode_vae_image(
            images, pipeline.vae, None, torch.device("cpu"), torch.float32, 16
        )  # type: ignore[arg-type]
        raw = pipeline.vae.encode(images.unsqueeze(2)).latent_dist.mode()
        pictures = pipeline.vae.decode(raw, return_dict=False)[0].squeeze(2)
    assert found.shape == (2, 16, 8, 12)
    torch.testing.assert_close(found, expected.squeeze(2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(decode_latents(model, found), pictures, atol=1e-4, rtol=1e-3)


def test_sides_are_multiples_of_a_patch(model):
    """8 pixels are one element of a latent, but two elements are one token."""
    with pytest.raises(ra.DataError, match="multiples of 16"):
        model.latent_space.shape(64, 72)
    assert model.latent_space.shape(64, 80) == (16, 8, 10)


def test_training_times_are_not_shifted_but_those_of_sampling_are():
    process = ANIMA.process("it", ANIMA.config("scheduler"))
    times = process.sample_times(4000, torch.Generator().manual_seed(0)) / 1000
    assert times.median() == pytest.approx(0.5, abs=0.02)
    assert times.std() == pytest.approx(0.208, abs=0.01)  # of a sigmoid of N(0, 1)
    sigmas = process.sampler(4).sigmas.tolist()
    assert sigmas == pytest.approx([1, 0.9, 0.75, 0.5, 0])  # 3t / (1 + 2t)


@pytest.mark.parametrize("config", [{"use_dynamic_shifting": True}, {"shift": 0.5},
                                    {"_class_name": "EulerDiscreteScheduler"}])  # fmt: skip
def test_schedulers_of_other_models_are_refused(config):
    with pytest.raises(ra.CheckpointError, match="its scheduler"):
        ANIMA.process("it", ANIMA.config("scheduler") | config)


def test_images_are_sampled_as_the_pipeline_samples_them(model, pipeline, without_torchvision):
    """Guidance, schedule, mask, positions and times at once, not square."""
    found = generate_latents(
        model, ["a cat"], seeds=[7], steps=3, guidance=4.0, height=64, width=96
    )
    noise = torch.randn(16, 8, 12, generator=torch.Generator().manual_seed(7))[None]
    state = pipeline(
        prompt="a cat", latents=noise.unsqueeze(2), num_inference_steps=3, height=64, width=96,
        output_type="pt",
    )  # fmt: skip
    torch.testing.assert_close(found, state.get("latents").squeeze(2), atol=2e-5, rtol=1e-4)


# --- key map -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "size"), [(28, 1.956e9), (20, None), (36, None)])
def test_the_map_is_closed_at_the_true_depth(layers, size):
    """All tensors of the published model and of its variants have a place of their own."""
    network = published_network(layers)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if size:
        count = sum(tensor.numel() for tensor in network.parameters())
        assert count == pytest.approx(size, rel=1e-3)
    sources = ANIMA.tensors.denoiser_sources(network.config)
    assert sources.keys() == shapes.keys()
    pieces, missing = written_by(shapes, sources)
    assert not missing and len(pieces) == len(shapes)
    assert all(own[0].rows is None and own[0].part == "whole" for own in pieces.values())


def test_the_map_is_that_of_diffusers_own_converter(model):
    from diffusers.loaders.single_file_utils import (
        convert_cosmos_transformer_checkpoint_to_diffusers,
    )

    original = fakes.build_networks()["transformer"].state_dict()
    native = fakes.native_denoiser(original)
    converted = convert_cosmos_transformer_checkpoint_to_diffusers(
        {f"net.{name}": tensor for name, tensor in native.items()}
    )
    sources = ANIMA.tensors.denoiser_sources(model.denoiser.config)
    assert {source.name for source in sources.values()} == native.keys()
    for name, source in sources.items():
        tensor = native[source.name]
        assert torch.equal(tensor, converted[name]) and torch.equal(tensor, original[name]), name


@pytest.mark.parametrize("residuals", [1, 2])
def test_the_vaes_map_is_closed_and_unique(residuals):
    from diffusers import AutoencoderKLQwenImage

    from resalign.backend.families.anima.vae_names import own_name

    with torch.device("meta"):
        state = AutoencoderKLQwenImage(base_dim=4, num_res_blocks=residuals).state_dict()
    native = fakes.native_vae(state, residuals)  # type: ignore[arg-type]
    assert len(native) == len(state) and not any("resnets" in name for name in native)
    assert {own_name(name, residuals) for name in native} == state.keys()


def test_the_published_vae_has_the_map_of_diffusers_own_converter():
    """At two residual layers a level; diffusers' map knows no other number."""
    from diffusers import AutoencoderKLQwenImage
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    from resalign.backend.families.anima.vae_names import own_name

    with torch.device("meta"):
        state = AutoencoderKLQwenImage(base_dim=4).state_dict()
    native = fakes.native_vae(state, 2)  # type: ignore[arg-type]
    converted = convert_wan_vae_to_diffusers({name: name for name in native})
    assert {file: own for own, file in converted.items()} == {
        name: own_name(name, 2) for name in native
    }


def test_names_go_there_and_back():
    from resalign.backend.families.anima.names import module_of, native

    modules = [name.removesuffix(".weight") for name in published_network(28).state_dict()]
    assert [module_of(native(module)) for module in modules] == modules
    assert module_of("blocks.0.attn.qkv") is None and module_of("llm_adapter.norm") is None
