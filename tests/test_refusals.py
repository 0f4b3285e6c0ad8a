"""Whatever cannot be hardened is refused by name, with what to do instead; each a real bad file."""

import json
import pickle
import struct
import zipfile

import pytest
import torch
from fakes_checkpoint import build_networks, ldm_tensors, write_sparse, write_tiny_folder
from safetensors import SafetensorError, safe_open

from resalign.backend.checkpoint.detect import detect
from resalign.backend.checkpoint.header import read_header
from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.errors import CheckpointError

UNET, VAE = "model.diffusion_model.", "first_stage_model."


def raw(path, header, data=b""):
    """A safetensors file with this header, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(begin, end, shape=None, dtype="U8"):
    return {"dtype": dtype, "shape": shape or [end - begin], "data_offsets": [begin, end]}


def named(*names, shape=(4, 4)):
    return {name: torch.empty(shape, device="meta") for name in names}


@pytest.fixture(scope="module")
def tiny():
    """Tensors of an SD 1.x file, without storage; copy before changing."""
    return {n: t.to("meta") for n, t in ldm_tensors(build_networks()).items()}


@pytest.fixture(scope="module")
def tiny_xl():
    return {n: t.to("meta") for n, t in ldm_tensors(build_networks("sdxl"), "sdxl").items()}


def refuse(path, says):
    with pytest.raises(CheckpointError, match=says) as error:
        load_checkpoint(path)
    assert path.name in str(error.value), "the file is not named"


# --- files that are not proper safetensors files -----------------------------------------------


def test_a_missing_file(tmp_path):
    refuse(tmp_path / "gone.safetensors", "does not exist: check the path")


def test_an_empty_file(tmp_path):
    path = tmp_path / "empty.safetensors"
    path.touch()
    refuse(path, "only 0 bytes: it is truncated; fetch it again")


def test_a_file_truncated_within_its_weights(tmp_path, tiny):
    path = write_sparse(tmp_path / "m.safetensors", tiny)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1000)
    refuse(path, "truncated: it has .* bytes of weights; fetch it again")


def test_a_file_truncated_within_its_header(tmp_path, tiny):
    path = write_sparse(tmp_path / "m.safetensors", tiny)
    with path.open("r+b") as file:
        file.truncate(2000)
    refuse(path, "truncated within its header")


@pytest.mark.parametrize("length", [2**64 - 1, 2**62, 200_000_000, 0])
def test_a_hostile_header_length_is_refused_without_allocating_it(tmp_path, length):
    path = tmp_path / "m.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{" + b" " * 100)
    refuse(path, f"claims a header of {length} bytes")


@pytest.mark.parametrize(
    ("header", "says"),
    [
        (b"{not json at all", "its header is not JSON"),
        (b'{"a": ' + b"[" * 200_000, "its header is not JSON"),
        (b'{"\xff": 1}', "its header is not JSON"),
        (b'{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},'
         b'"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}', "lists 'a' twice"),
        ({"__metadata__": {"a": 1}}, "must map names to strings"),
        ({"__metadata__": "text"}, "must map names to strings"),
        ({"a": 1}, "has no proper dtype, shape and data_offsets"),
        ({"a": {"dtype": "U8", "shape": [1]}}, "has no proper dtype"),
        ({"a": entry(0, 1, shape=[-1])}, "of the wrong kind"),
        ({"a": entry(0, 1, shape=[True])}, "of the wrong kind"),
        ({"a": entry(0, 1, shape=[1.0])}, "of the wrong kind"),
        ({"a": entry(0, 1, shape=[2**70])}, "of the wrong kind"),
        ({"a": entry(0, 1, shape=[1] * 5000)}, "of the wrong kind"),
        ({"a": entry(-1, 0, shape=[1])}, "of the wrong kind"),
        ({"a": entry(3, 1, shape=[1])}, "spans -2 bytes"),
        ({"a": entry(0, 3, shape=[3], dtype="F16")}, "spans 3 bytes"),
        ({"a": entry(0, 2), "b": entry(1, 3)}, "'b' overlaps another tensor"),
        ({"a": entry(0, 1), "b": entry(2, 3)}, "'b' leaves a hole of 1 bytes"),
        ({"a": entry(1, 3)}, "'a' leaves a hole of 1 bytes"),
        ({"a": entry(0, 900)}, "truncated: it has 3 of 900 bytes"),
        ({"a": entry(0, 1)}, "has 2 bytes after its last tensor"),
    ],
)  # fmt: skip
def test_a_damaged_header(tmp_path, header, says):
    path = raw(tmp_path / "m.safetensors", header, b"abc")
    refuse(path, says)
    with pytest.raises((SafetensorError, UnicodeDecodeError)):  # their reader refuses it as well
        safe_open(str(path), "pt").__enter__()


def test_a_proper_file_is_read_as_the_library_reads_it(tmp_path, tiny):
    path = write_sparse(tmp_path / "m.safetensors", tiny, "BF16", {"modelspec.title": "é"})
    header = read_header(path)

    with safe_open(str(path), "pt") as theirs:
        assert theirs.metadata() == header.metadata
        assert set(theirs.keys()) == set(header.tensors)
        for name, found in header.tensors.items():
            assert tuple(theirs.get_slice(name).get_shape()) == found.shape
            assert theirs.get_slice(name).get_dtype() == found.dtype


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "model.safetensors"])
@pytest.mark.parametrize("modern", [True, False])
def test_a_pickle_under_any_name_is_refused_and_never_run(tmp_path, name, modern):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was run",))

    path = tmp_path / name
    if modern:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Trap()))
    else:
        path.write_bytes(pickle.dumps({"state_dict": Trap()}) + bytes(1000))
    refuse(path, "is a pickle .*can run code.*convert it to .safetensors")


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"GGUF\x03\x00\x00\x00", "quantised GGUF file: give the original"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x89PNG\r\n\x1a\n", "is not a safetensors file"),
    ],
)
def test_other_formats_under_our_ending(tmp_path, start, says):
    path = tmp_path / "m.safetensors"
    path.write_bytes(start + bytes(range(256)) * 4)
    refuse(path, says)


# --- proper files that are not checkpoints of a supported family ----------------------------------


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "is a LoRA.*merge it"),
        (["unet.down_blocks.0.attentions.0.to_q.lora_A.weight"], "is a LoRA"),
        (["lora_unet_mid_block.hada_w1_a"], "is a LoRA"),
        (["unet.mid_block.attentions.0.to_q.lora.down.weight"], "is a LoRA"),
        (["emb_params"], "textual-inversion embedding"),
        (["control_model.input_blocks.0.0.weight"], "ControlNet"),
        (["controlnet_cond_embedding.conv_in.weight", "conv_in.weight"], "ControlNet"),
        (["down_blocks.0.motion_modules.0.norm.weight"], "motion module"),
        ([VAE + "decoder.conv_in.weight", VAE + "encoder.conv_in.weight"], "is a VAE alone.*whole"),
        (["decoder.conv_in.weight", "encoder.conv_in.weight", "quant_conv.bias"], "VAE alone"),
        (["text_model.encoder.layers.0.mlp.fc1.weight"], "text encoder alone"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "text encoder alone"),
        ([UNET + "input_blocks.0.0.weight"], "is a U-Net alone.*text encoder and VAE"),
        (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "is a U-Net alone"),
        ([UNET + "joint_blocks.0.x_block.attn.qkv.weight", VAE + "x"], "Stable Diffusion 3"),
        ([UNET + "double_blocks.0.img_attn.qkv.weight"], "Flux"),
        (["double_blocks.0.img_attn.qkv.weight"], "Flux"),
        ([UNET + "layers.0.attention.qkv.weight"], "transformer-based"),
        (["blocks.0.attn.qkv.weight"], "transformer-based"),
        ([UNET + "clip_mapper.weight"], "Stable Cascade"),
        ([UNET + "input_blocks.1.0.time_stack.in_layers.0.weight"], "video model"),
        (["a", "b"], "of an unknown layout"),
        (["unet.conv_in.weight", "vae.encoder.conv_in.weight"], "unknown layout .diffusers"),
    ],
)
def test_other_kinds_are_told_by_their_names(tmp_path, names, says):
    refuse(write_sparse(tmp_path / "m.safetensors", named(*names)), says)


def test_int8_weights_are_quantised_even_without_scales(tmp_path):
    name = UNET + "input_blocks.1.1.proj_in.weight"
    path = raw(tmp_path / "m.safetensors", {name: entry(0, 4, [2, 2], "I8")}, bytes(4))
    refuse(path, "quantised checkpoint .*is I8")


@pytest.mark.parametrize(
    ("channels", "says"),
    [
        (9, "inpainting"),
        (8, "InstructPix2Pix"),
        (5, "depth"),
        (7, "upscaling"),
        (16, "16 input"),
    ],
)
def test_additional_input_channels(tmp_path, tiny, channels, says):
    first = {UNET + "input_blocks.0.0.weight": torch.empty(32, channels, 3, 3, device="meta")}
    path = write_sparse(tmp_path / "m.safetensors", tiny | first)
    refuse(path, f"is an? .*{says}.*harden the text-to-image checkpoint")


def test_the_sdxl_refiner(tmp_path, tiny_xl):
    names = {n.replace("embedders.1.", "embedders.0."): t for n, t in tiny_xl.items()
             if "embedders.0." not in n}  # fmt: skip
    refuse(write_sparse(tmp_path / "m.safetensors", names), "SDXL refiner: harden the SDXL base")


def test_sd2_unclip(tmp_path, tiny):
    tensors = {n: t for n, t in tiny.items() if "cond_stage" not in n}
    more = named(UNET + "label_emb.0.0.weight", "cond_stage_model.model.token_embedding.weight")
    refuse(write_sparse(tmp_path / "m.safetensors", tensors | more), "unCLIP model")


def test_an_edm_schedule(tmp_path, tiny_xl):
    path = write_sparse(tmp_path / "m.safetensors", tiny_xl | named("edm_mean", "edm_std"))
    refuse(path, "EDM noise schedule")


@pytest.mark.parametrize("part", ["first_stage_model.", "cond_stage_model.", UNET])
def test_a_checkpoint_without_one_of_its_parts(tmp_path, tiny, part):
    tensors = {name: tensor for name, tensor in tiny.items() if not name.startswith(part)}
    refuse(write_sparse(tmp_path / "m.safetensors", tensors), "lacks|unknown layout")


def test_a_distilled_unet_whose_blocks_differ(tmp_path, tiny_xl):
    gone = UNET + "input_blocks.8.1.transformer_blocks.9."
    tensors = {name: tensor for name, tensor in tiny_xl.items() if not name.startswith(gone)}
    refuse(write_sparse(tmp_path / "m.safetensors", tensors), "SSD-1B or KOALA.*differ within")


def test_a_distilled_unet_without_attention_in_its_middle(tmp_path, tiny_xl):
    tensors = {n: t for n, t in tiny_xl.items() if not n.startswith(UNET + "middle_block.1.")}
    refuse(write_sparse(tmp_path / "m.safetensors", tensors), "SSD-1B or KOALA.*middle block")


def test_a_tiny_autoencoder_in_place_of_the_vae(tmp_path, tiny):
    tensors = {name: tensor for name, tensor in tiny.items() if not name.startswith(VAE)}
    path = write_sparse(tmp_path / "m.safetensors", tensors | named(VAE + "taesd_decoder.1.weight"))
    refuse(path, "TAESD in place of its VAE")


def test_parts_of_two_families_put_together(tmp_path, tiny):
    wide = {n: torch.empty(*t.shape[:-1], 64, device="meta") if "attn2.to_k" in n else t
            for n, t in tiny.items()}  # fmt: skip
    refuse(write_sparse(tmp_path / "m.safetensors", wide), "width 64, but .* give 32")


def test_widths_that_the_norms_do_not_divide(tmp_path, tiny):
    odd = {UNET + f"input_blocks.{i}.0.in_layers.2.weight": torch.empty(40, 32, 3, 3, device="meta")
           for i in (1, 2)}  # fmt: skip
    path = write_sparse(tmp_path / "m.safetensors", tiny | odd)
    refuse(path, r"32 groups do not divide; state them in the metadata key resalign\.config")


def test_a_text_encoder_with_another_vocabulary(tmp_path, tiny):
    name = "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"
    path = write_sparse(tmp_path / "m.safetensors", tiny | named(name, shape=(1000, 32)))
    refuse(path, "knows 1000 tokens")


# --- folders --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return write_tiny_folder(tmp_path / "folder")


def edit(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_folder_that_is_no_diffusers_folder(tmp_path, tiny):
    refuse(tmp_path, r"is not a diffusers folder \(it has no model_index\.json\)")
    write_sparse(tmp_path / "inside.safetensors", tiny)
    refuse(tmp_path, r"or give one of its files, e\.g\. inside\.safetensors")


def test_a_folder_of_an_sd3_or_flux_pipeline(tmp_path):
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    refuse(tmp_path, "holds a FluxPipeline")


def test_a_folder_with_pickled_weights_only(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(CheckpointError, match=r"only as a pickle \(diffusion_pytorch_model\.bin\)"):
        detect(folder)


def test_a_folder_without_weights_or_config(folder):
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="vae has no weights"):
        detect(folder)
    (folder / "vae" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json is missing"):
        detect(folder)


def test_a_shard_index_that_points_elsewhere(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    index = {"weight_map": {"conv_in.weight": "../vae/diffusion_pytorch_model.safetensors"}}
    weights.with_name(weights.name + ".index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="a file outside of its folder"):
        detect(folder)


@pytest.mark.parametrize(
    ("file", "fields", "says"),
    [
        ("unet/config.json", {"in_channels": 9}, "an inpainting model"),
        ("unet/config.json", {"class_embed_type": "projection"}, "another kind .*class_embed_type"),
        (
            "unet/config.json",
            {"time_cond_proj_dim": 256},
            "LCM.*time_cond_proj_dim",
        ),
        ("unet/config.json", {"_class_name": "UNetSpatioTemporalConditionModel"}, "another kind"),
        ("unet/config.json", {"transformer_layers_per_block": [[1, 2], 1, 1, 1]}, "another kind"),
        ("unet/config.json", {"mid_block_type": None}, "another kind .*mid_block_type"),
        ("unet/config.json", {"block_out_channels": "wide"}, "contradict"),
        ("unet/config.json", {"cross_attention_dim": 99}, "width 99, but .* give 32"),
        ("unet/config.json", {"layers_per_block": 4_000_000}, "more layers than any"),
        ("text_encoder/config.json", {"model_type": "t5"}, "is a t5, not CLIP"),
        ("text_encoder/config.json", {"num_hidden_layers": 10**9}, "more layers than any"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "predicts 'sample'"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "squaredcos_cap_v2"}, "noise sched"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, "betas of its own"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": -5}, "-5 steps"),
    ],
)
def test_a_folder_whose_configs_say_something_else(folder, file, fields, says):
    edit(folder / file, **fields)
    refuse(folder, says)


def test_a_config_that_is_no_json(folder):
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        detect(folder)


def test_a_folder_with_a_tensor_too_many(folder):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    header = read_header(weights)
    tensors = {n: torch.empty(e.shape, device="meta") for n, e in header.tensors.items()}
    write_sparse(weights, tensors | named("add_embedding.linear_1.weight"))
    refuse(folder, r"1 unexpected \(add_embedding\.linear_1\.weight\)")
