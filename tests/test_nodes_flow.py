"""Flow-matching families in ComfyUI: the backend gets what their files would give, with the host's
CLIP and VAE at work; an adapter goes back onto weights that hold several matrices each."""

import importlib
import sys
import types
from pathlib import Path

import fakes_bridge
import fakes_bridge_flow as fakes
import pytest
import torch
from safetensors.torch import load_file

import resalign as ra
from resalign.backend.adapter.dense import DenseAdapter
from resalign.backend.adapter.lora import Adapter
from resalign.backend.data.assembly import encode_texts
from resalign.backend.data.cache import EncodingCache, fingerprint
from resalign.backend.data.encoded_file import load_encoded
from resalign.backend.errors import DataError
from resalign.backend.families.base.sources import swap_halves
from resalign.backend.model.encode import decode_latents, encode_images, encode_prompts

PROMPTS = ["a cat", "größer: (a dog:1.2)"]


@pytest.fixture(scope="module", params=fakes.HOSTS, ids=str)
def host(request):
    return request.param


@pytest.fixture(scope="module")
def models(host, tmp_path_factory):
    return tmp_path_factory.mktemp(str(host)) / "models"


@pytest.fixture(scope="module")
def filed(host, models):
    return host.from_files(models)


@pytest.fixture(scope="module")
def source(host, models, filed):
    return models / host.fakes.DENOISER_FILE


parts, bridge = fakes.bridge_fixtures()


def pictures(count=2):
    return torch.rand(count, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


def equal_parts(found, expected):
    assert found.parts.keys() == expected.parts.keys()
    for name, part in expected.parts.items():
        torch.testing.assert_close(found[name], part, atol=1e-5, rtol=1e-4)


def test_the_backend_gets_the_model_that_its_files_give(host, bridge, parts, filed):
    with torch.inference_mode(), bridge.to_backend(*parts) as backend:
        assert backend.family is host.family and backend.resolution == 1024
        found, expected = backend.denoiser.state_dict(), filed.denoiser.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert backend.process.fingerprint() == filed.process.fingerprint()
        texts = encode_prompts(backend, PROMPTS)
        equal_parts(texts, encode_prompts(filed, PROMPTS))
        latents = encode_images(backend, pictures())
        torch.testing.assert_close(latents, encode_images(filed, pictures()), atol=1e-5, rtol=1e-4)
        shown = decode_latents(backend, latents)
        torch.testing.assert_close(shown, decode_latents(filed, latents), atol=1e-5, rtol=1e-4)
        tensors = [*backend.denoiser.parameters(), *texts.parts.values(), latents]
        assert not any(tensor.is_inference() for tensor in tensors)
    assert parts[1].asked == PROMPTS, "ComfyUI's CLIP read them, once each"


def test_the_empty_prompt_is_comfyuis(host, bridge, parts, filed):
    """It has no token of Qwen3 in Anima, where ComfyUI reads a token of padding."""
    with bridge.to_backend(*parts) as backend:
        found, own = (encode_prompts(one, [""])["context"] for one in (backend, filed))
    assert torch.isfinite(found).all()
    assert torch.allclose(found, own, atol=1e-5) == (host is not fakes.ANIMA)


def test_encodings_are_kept_by_what_is_connected(bridge, tmp_path):
    """Another CLIP, a LoRA on it, or another text is encoded again; nothing else is."""
    model, clip, vae = fakes.KLEIN.parts()
    cache = EncodingCache(tmp_path / "cache")
    with bridge.to_backend(model, clip, vae) as backend:
        first = fingerprint(*backend.text_encoders)
        one = encode_texts(backend, ["a cat"], cache=cache)
        again = encode_texts(backend, ["a cat"], cache=cache)
        assert clip.asked == ["a cat"] and torch.equal(one["context"], again["context"])
    name = next(iter(clip.patcher.tensors))
    clip.patcher.patches[name] = [(1.0, torch.ones_like(clip.patcher.tensors[name]))]
    with bridge.to_backend(model, clip, vae) as backend:
        assert fingerprint(*backend.text_encoders) != first


def test_a_lora_on_the_text_conditioner_inside_the_model_counts(bridge, tmp_path):
    model, clip, vae = fakes.ANIMA.parts()
    name = "diffusion_model.llm_adapter.out_proj.weight"
    with bridge.to_backend(model, clip, vae) as backend:
        before = encode_prompts(backend, ["a cat"])["context"]
        first = fingerprint(*backend.text_encoders)
        held = backend.text_encoders[1].out_proj.weight
        assert torch.equal(held, model.tensors[name])
    model.patches[name] = [(0.5, torch.ones_like(model.tensors[name]))]
    with bridge.to_backend(model, clip, vae) as backend:
        changed = backend.text_encoders[1].out_proj.weight
        torch.testing.assert_close(changed, model.tensors[name] + 0.5)
        assert not torch.allclose(encode_prompts(backend, ["a cat"])["context"], before, atol=1e-3)
        assert fingerprint(*backend.text_encoders) != first


def test_brackets_are_characters(bridge):
    """They are for the files of the family, and its trainers: ComfyUI would read weights."""
    parts = fakes.ANIMA.parts()
    with bridge.to_backend(*parts) as backend:
        encode_prompts(backend, ["(a cat:1.2)"])
    assert parts[1].options == {"disable_weights": True}


def test_memory_is_planned_for_what_does_not_stay_comfyuis(host, bridge, parts, monkeypatch):
    plan = importlib.import_module("resalign.backend.memory.plan")
    memory = importlib.import_module("resalign.nodes.memory")
    monkeypatch.setattr(plan, "plan_memory", lambda _, family, *, configs, **__: configs)
    monkeypatch.setattr(memory, "find_spec", lambda name: None)
    found = memory.predicted(parts[0], None, None, None)
    inner = {"text_conditioner"} if host is fakes.ANIMA else set()
    assert set(found) == {"transformer", "vae", *inner}


def test_the_host_is_asked_to_unload_its_clip_when_it_has_encoded(bridge, monkeypatch):
    management = sys.modules["comfy.model_management"]  # the fake
    clip = fakes.Clip(fakes.KLEIN)
    text = importlib.import_module("resalign.nodes.bridge.text").HostText(clip)
    said = []
    monkeypatch.setattr(management, "unload_all_models", lambda: said.append(True))
    text.to("cpu")
    text.to("meta")
    assert not said
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args: self.__init__(clip))
    text.to("cpu")
    assert said == [True]


# --- an adapter back onto the MODEL ---------------------------------------------------------------


def low_rank(model, names, rank=2):
    random = torch.Generator().manual_seed(3)
    tensors = {}
    for name in names:
        rows, columns = model.denoiser.get_submodule(name).weight.shape
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, columns, generator=random)
        tensors[f"{name}.lora_B.weight"] = torch.randn(rows, rank, generator=random)
    return Adapter(tensors, rank, 3.0)


@pytest.mark.parametrize("chosen", ["all of a fused weight", "a part of it", "of their own"])
def test_the_patched_model_is_the_exported_file(host, bridge, parts, filed, source, chosen):
    kinds = {"all of a fused weight": host.fused[:3], "a part of it": host.fused[-1:-3:-1]}
    names = kinds.get(chosen, host.others) or host.others[:1]
    patched = assert_is_exported(host, bridge, parts[0], low_rank(filed, names), source)
    assert len(patched.patches) == (1 if chosen in kinds else len(host.others))


def test_a_dense_change_is_too(host, bridge, parts, filed, source):
    random = torch.Generator().manual_seed(0)
    names = [f"{name}.weight" for name in (*host.others, *host.fused[1:2])]
    changes = {
        name: torch.randn(filed.denoiser.get_parameter(name).shape, generator=random)
        for name in names
    }
    assert_is_exported(host, bridge, parts[0], DenseAdapter(changes), source)


def assert_is_exported(host, bridge, model, adapter, source):
    lora = bridge.lora_model(adapter, bridge.places_of(model))
    patched = bridge.with_adapter(model, lora)
    target = source.with_name(f"out-{len(list(source.parent.iterdir()))}.safetensors")
    ra.export_merged(source, adapter, target)
    expected = host.held(load_file(target))
    found = bridge.unet_tensors(patched)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=2e-5, rtol=1e-5)
    before = bridge.unet_tensors(model)
    changed = {name for name in found if not torch.equal(found[name], before[name])}
    assert changed == {name.removeprefix("diffusion_model.") for name in patched.patches}
    bare = bridge.without_adapter(patched, lora)
    assert bare is not None and bridge.fingerprint(bare) == bridge.fingerprint(model)
    return patched


def test_samples_of_a_fused_weight_are_those_of_its_rows(host, bridge, parts, filed):
    matrices = bridge.base_matrices(parts[0])
    for name in (*host.fused, *host.others):
        assert torch.equal(matrices[name], filed.denoiser.get_submodule(name).weight)
    if host is fakes.KLEIN:
        held = parts[0].tensors["diffusion_model.final_layer.adaLN_modulation.1.weight"]
        assert torch.equal(swap_halves(held), matrices["norm_out.linear"])


# --- files ----------------------------------------------------------------------------------------


def test_what_is_connected_is_compared_with_its_files(host, bridge, parts, models, source):
    model, clip, vae = parts
    vae.patcher = fakes_bridge.ModelPatcher(as_loaded(load_file(models / host.fakes.VAE_FILE)))
    assert bridge.difference_from_file(model, clip, vae, source) == ""
    for part, words in ((clip.patcher, "the CLIP: "), (vae.patcher, "the VAE: "),
                        (model, "the MODEL: ")):  # fmt: skip
        own, part.tensors = part.tensors, {n: t + 1 for n, t in part.tensors.items()}
        assert bridge.difference_from_file(model, clip, vae, source).startswith(words)
        part.tensors = own
    if host.family.host.within:
        model.tensors = {n: t + ("llm_adapter" in n) for n, t in model.tensors.items()}
        assert bridge.difference_from_file(model, clip, vae, source).startswith("the MODEL: ")


def as_loaded(tensors):
    """ComfyUI has these convolutions outside of the halves."""
    named = {n.removeprefix("encoder.").removeprefix("decoder."): t for n, t in tensors.items()
             if "quant_conv" in n}  # fmt: skip
    return tensors | named


def test_a_process_of_its_own_is_told_the_files_of_clip_and_vae(
    host, bridge, parts, models, source, tmp_path
):
    """Found by the loaders, else by the graph, else as the only fitting file of the host."""
    sources = importlib.import_module("resalign.nodes.sources")
    model, clip, vae = parts
    files = {"diffusion_models/a-base": host.fakes.DENOISER_FILE,
             "text_encoders/b": host.fakes.TEXT_FILE, "vae/c": host.fakes.VAE_FILE}  # fmt: skip
    own = tmp_path / "models"
    for name, file in files.items():
        (own / name).parent.mkdir(exist_ok=True)
        (own / f"{name}.safetensors").symlink_to(models / file)
    alone = tmp_path / "elsewhere" / "a-base.safetensors"
    alone.parent.mkdir()
    alone.symlink_to(source)
    expected = {"text_encoder": str(own / "text_encoders/b.safetensors"),
                "vae": str(own / "vae/c.safetensors")}  # fmt: skip
    assert sources.companions(model, clip, vae, alone) == expected
    clip.patcher.cached_patcher_init = (None, ([str(models / host.fakes.TEXT_FILE)],))
    prompt = {"1": {"inputs": {"vae_name": "c.safetensors"}}, "2": {"inputs": {"vae": ["1", 0]}}}
    hidden = types.SimpleNamespace(prompt=prompt, unique_id="2")
    found = sources.companions(model, clip, vae, alone, hidden)
    assert found == {**expected, "text_encoder": str(models / host.fakes.TEXT_FILE)}


def test_a_denoisers_file_is_found_in_the_graph_and_in_the_list(bridge, tmp_path):
    sources = importlib.import_module("resalign.nodes.sources")
    file = tmp_path / "models/diffusion_models/klein.safetensors"
    file.parent.mkdir()
    file.touch()
    prompt = {"1": {"inputs": {"unet_name": file.name}}, "2": {"inputs": {"model": ["1", 0]}}}
    hidden = types.SimpleNamespace(prompt=prompt, unique_id="2")
    assert sources.source_file(None, hidden) == file
    assert sources.model_files() == [file.name] and sources.model_file(file.name) == file


def test_a_denoiser_alone_is_exported_for_load_diffusion_model(
    host, bridge, source, tmp_path, monkeypatch
):
    folder_paths = sys.modules["folder_paths"]  # the fake
    export = importlib.import_module("resalign.nodes.export")
    whole = host.fakes.write_whole(tmp_path / "base-whole.safetensors")
    assert export.folder_kind(source) == "diffusion_models"
    assert export.folder_kind(whole) == export.folder_kind(None) == "checkpoints"
    old, new = tmp_path / "models/unet", tmp_path / "models/diffusion_models"
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda kind: [str(old), str(new)])
    target = export.target_file("diffusion_models", "models/checkpoints", "a", overwrite=False)
    assert target == new / "a.safetensors"
    assert export.shown(target) == "models/diffusion_models/a.safetensors"
    # extra_model_paths.yaml with is_default puts a folder of any name first
    first, second = tmp_path / "disk/sd", tmp_path / "models/checkpoints"
    monkeypatch.setattr(folder_paths, "get_folder_paths", lambda kind: [str(first), str(second)])
    target = export.target_file("checkpoints", "models/checkpoints", "a", overwrite=False)
    assert target == first / "a.safetensors"


def test_a_name_in_both_folders_stands_for_either_file(bridge, tmp_path):
    folder_paths = sys.modules["folder_paths"]  # the fake
    sources = importlib.import_module("resalign.nodes.sources")
    further = importlib.import_module("resalign.nodes.further")
    for kind, names in (("checkpoints", "ab"), ("diffusion_models", "bc")):
        folder = Path(folder_paths.get_folder_paths(kind)[0])
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / f"{name}.safetensors").write_bytes(kind.encode())
    listed = {name: sources.model_file(name).read_text() for name in sources.model_files()}
    assert listed == {
        "a.safetensors": "checkpoints",
        "b.safetensors": "checkpoints",
        "diffusion_models/b.safetensors": "diffusion_models",
        "c.safetensors": "diffusion_models",
    }
    # a sibling, of which klein's files are denoisers, is chosen from the same list
    (sibling,) = (each for each in further.further_inputs() if each.id == "sibling")
    assert set(listed) < set(sibling.options["options"])
    assert Path(further.sibling_of("c.safetensors", None)).read_text() == "diffusion_models"


# --- data of the graph ----------------------------------------------------------------------------


def stored(latents, conditioning):
    images = importlib.import_module("resalign.nodes.images")
    return images.store_latents([{"samples": latents}], [conditioning])


def test_latents_and_conditioning_of_the_graph_are_those_of_the_model(host, bridge, parts, filed):
    """Made by Make Training Dataset; also where a process of its own reads the files."""
    model, clip, vae = parts
    latents = vae.encode(((pictures(1) + 1) / 2).movedim(1, -1))
    folder = stored(latents, clip.encode_from_tokens_scheduled(clip.tokenize("a cat")))
    with bridge.to_backend(model, clip, vae) as backend:
        for one in (backend, filed):
            encoded = load_encoded(one, folder)
            expected = encode_images(backend, pictures(1))
            torch.testing.assert_close(encoded.buckets[0].latents, expected, atol=1e-5, rtol=1e-4)
            equal_parts(encoded.conditioning, encode_prompts(filed, ["a cat"]))
            types_of = {name: part.dtype for name, part in encoded.empty.parts.items()}
            found = {name: part.dtype for name, part in encoded.conditioning.parts.items()}
            assert found == types_of
            predicted = one.denoise(expected, torch.full((1,), 500.0), encoded.conditioning)
            assert torch.isfinite(predicted).all()


def test_a_short_conditioning_of_klein_begins_with_zeros(bridge):
    parts = fakes.KLEIN.parts()
    context = torch.randn(1, 200, 3 * fakes.KLEIN.fakes.TEXT_WIDTH)
    folder = stored(torch.randn(1, 128, 4, 4), [[context, {"pooled_output": None}]])
    with bridge.to_backend(*parts) as backend:
        found = load_encoded(backend, folder).conditioning["context"][0]
    assert torch.equal(found[312:], context[0]) and not found[:312].any()


def test_weights_of_words_in_the_graph_scale_the_vectors_of_anima(bridge):
    parts = fakes.ANIMA.parts()
    latents, clip = torch.randn(1, 16, 1, 8, 8), parts[1]
    ((states, entries),) = clip.encode_from_tokens_scheduled(clip.tokenize("a cat"))
    weights = entries["t5xxl_weights"] = entries["t5xxl_weights"].clone()
    weights[1:3] = 2.0
    folder = stored(latents, [[states, entries]])
    with bridge.to_backend(*parts) as backend:
        found = load_encoded(backend, folder).conditioning["context"][0]
        plain = encode_prompts(backend, ["a cat"])["context"][0]
    torch.testing.assert_close(found[1:3], 2 * plain[1:3])
    torch.testing.assert_close(found[3:], plain[3:])


def test_captions_of_anima_reach_the_text_conditioner_a_few_at_a_time(bridge):
    """As where the model encodes them itself: hundreds at once would take gigabytes."""
    parts = fakes.ANIMA.parts()
    clip, sizes = parts[1], []
    prompts = [f"cat {number:02}" for number in range(20)]
    entries = [clip.encode_from_tokens_scheduled(clip.tokenize(each))[0] for each in prompts]
    folder = stored(torch.randn(20, 16, 1, 8, 8), entries)
    with bridge.to_backend(*parts) as backend:
        conditioner = backend.text_encoders[-1]
        hook = conditioner.register_forward_pre_hook(
            lambda module, given, named: sizes.append(len(named["source_hidden_states"])),
            with_kwargs=True,
        )
        found = load_encoded(backend, folder).conditioning["context"]
        hook.remove()
        plain = encode_prompts(backend, prompts)["context"]
    assert sum(sizes) - 1 == 20 and max(sizes) == 8, "one is the empty caption"
    torch.testing.assert_close(found, plain)


def test_a_conditioning_of_qwen_without_tokens_of_t5_is_refused():
    """The CLIP of ACE-Step 1.5 has a Qwen3 of this size, and no T5."""
    with pytest.raises(DataError, match="no t5xxl_ids: Anima reads Qwen3's states with T5's"):
        fakes.ANIMA.family.host.prompts.read(torch.zeros(1, 3, 8), {})
