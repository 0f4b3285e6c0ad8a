"""A family is one value: nothing else knows its name, and tensors map to rows of modules."""

import io
import re
import tokenize

import pytest
import torch
from fakes_checkpoint import FAMILIES
from safetensors.torch import load_file, save_file

from resalign.backend.adapter.lora import Adapter
from resalign.backend.checkpoint.export.slices import Tally, check_touched, touched_tensors
from resalign.backend.checkpoint.export.stream import rewrite
from resalign.backend.checkpoint.header import read_header
from resalign.backend.errors import ConfigError, DataError, ExportError
from resalign.backend.families import all_families, find_family, register
from resalign.backend.families.base.conditioning import Conditioning
from resalign.backend.families.base.latent_space import LatentSpace
from resalign.backend.families.base.sources import Source, written_by

WIDTH = 6
FUSED = {  # q, k, v and the input of an MLP in one tensor of the file, as in transformers
    "block.q.weight": Source("block.linear1.weight", rows=(0, WIDTH)),
    "block.k.weight": Source("block.linear1.weight", rows=(WIDTH, 2 * WIDTH)),
    "block.v.weight": Source("block.linear1.weight", rows=(2 * WIDTH, 3 * WIDTH)),
    "block.mlp.weight": Source("block.linear1.weight", rows=(3 * WIDTH, 7 * WIDTH)),
    "block.out.weight": Source("block.out.weight"),
}


# --- names -------------------------------------------------------------------------------------


def test_no_family_is_named_outside_of_families(package_folder):
    """Strings and identifiers; comments and prose about SD 1.x may say what they like."""
    known = "|".join(dict.fromkeys((*FAMILIES, *(each.name for each in all_families()), "klein")))
    names = re.compile(rf"['\"_.]({known})\b|^({known})$", re.IGNORECASE)
    wrong = []
    for folder in ("backend", "nodes", "scripts"):
        for path in sorted((package_folder / folder).rglob("*.py")):
            if "families" in path.relative_to(package_folder).parts:
                continue
            text = path.read_text(encoding="utf-8")
            for token in tokenize.generate_tokens(io.StringIO(text).readline):
                quoted = token.type == tokenize.STRING and not token.string.startswith('"""')
                if (quoted or token.type == tokenize.NAME) and names.search(token.string):
                    wrong.append(f"{path.relative_to(package_folder)}:{token.start[0]}")
    assert wrong == []


def test_families_are_found_by_name_and_registered_once():
    assert [family.name for family in all_families()][:3] == list(FAMILIES)
    with pytest.raises(ConfigError, match=r"choose from sd1.*flux2_klein, anima, z_image"):
        find_family("flux")
    register(find_family("sd1"))
    assert len({family.name for family in all_families()}) == len(all_families())


# --- rows of a file's tensor -------------------------------------------------------------------


def write_fused(path, dtype=torch.float16):
    random = torch.Generator().manual_seed(0)
    tensors = {
        "block.linear1.weight": torch.randn(7 * WIDTH, WIDTH, generator=random),
        "block.norm.weight": torch.randn(WIDTH, generator=random),
        "block.out.weight": torch.randn(WIDTH, WIDTH, generator=random),
    }
    save_file({name: tensor.to(dtype) for name, tensor in tensors.items()}, path)
    return path


def adapter_on(*modules, rank=2):
    random = torch.Generator().manual_seed(1)
    tensors = {}
    for name in modules:
        source = FUSED[name + ".weight"]
        rows = source.rows[1] - source.rows[0] if source.rows else WIDTH
        tensors[name + ".lora_A.weight"] = torch.randn(rank, WIDTH, generator=random)
        tensors[name + ".lora_B.weight"] = torch.randn(rows, rank, generator=random)
    return Adapter(tensors, rank, 1.0)


def export(source, target, adapter):
    header, tally = read_header(source), Tally()
    touched, missing = written_by(adapter.parameters, FUSED)
    assert missing == []
    check_touched(source.name, [header], touched, adapter)
    changes = {name: tally.change(name, pieces, adapter) for name, pieces in touched.items()}
    rewrite(source, target, header, changes, lambda hashes: {})
    return tally


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "modules",
    [("block.q",), ("block.v", "block.q"), ("block.q", "block.k", "block.v", "block.mlp"),
     ("block.k", "block.out")],
)  # fmt: skip
def test_each_module_is_added_to_its_own_rows_of_a_fused_tensor(tmp_path, dtype, modules):
    """As when the parts are merged by hand; all other rows and tensors keep every bit."""
    source, adapter = write_fused(tmp_path / "in.safetensors", dtype), adapter_on(*modules)

    tally = export(source, tmp_path / "out.safetensors", adapter)

    before, after = load_file(source), load_file(tmp_path / "out.safetensors")
    expected = {name: tensor.clone() for name, tensor in before.items()}
    for module in modules:
        place = FUSED[module + ".weight"]
        own = expected[place.name][slice(*place.rows)] if place.rows else expected[place.name]
        own.copy_((own.float() + adapter.delta(module)).to(dtype))
    for name, tensor in expected.items():
        assert torch.equal(after[name], tensor), name
        changed = (tensor != before[name]).any()
        assert changed == any(FUSED[m + ".weight"].name == name for m in modules)
    assert tally.touched == len({FUSED[module + ".weight"].name for module in modules})


def test_what_a_fused_tensor_loses_is_counted_over_all_its_rows(tmp_path):
    """One tensor, however many modules write into it; its change is that of all of them."""
    source = write_fused(tmp_path / "in.safetensors", torch.float32)
    adapter = adapter_on("block.q", "block.k")

    tally = export(source, tmp_path / "out.safetensors", adapter)

    weight = load_file(source)["block.linear1.weight"][: 2 * WIDTH]
    change = torch.cat([adapter.delta("block.q"), adapter.delta("block.k")])
    assert tally.touched == 1 and tally.largest_change_in == "block.linear1.weight"
    assert tally.largest_change == pytest.approx((change.norm() / weight.norm()).item(), rel=1e-5)


def test_an_adapter_of_another_width_is_refused(tmp_path):
    source, adapter = write_fused(tmp_path / "in.safetensors"), adapter_on("block.q")
    adapter.tensors["block.q.lora_B.weight"] = torch.zeros(WIDTH + 1, 2)
    with pytest.raises(ExportError, match=r"has 6 rows for it, .*block.q changes \[7, 6\]"):
        export(source, tmp_path / "out.safetensors", adapter)
    assert not (tmp_path / "out.safetensors").exists()


def test_a_module_without_a_place_is_named():
    assert written_by(["block.q.weight", "block.z.weight"], FUSED)[1] == ["block.z.weight"]


def test_rows_are_read_back_as_they_were_written(tmp_path):
    from resalign.backend.checkpoint.tensors import TensorFile

    path = write_fused(tmp_path / "in.safetensors")
    whole = load_file(path)["block.linear1.weight"]
    with TensorFile(path, read_header(path)) as file:
        for name, source in FUSED.items():
            if source.rows:
                assert torch.equal(file.read(source), whole[slice(*source.rows)]), name


def test_tensors_kept_in_another_shape_are_not_rewritten():
    class Transposed:
        path, family = __import__("pathlib").Path("m.safetensors"), find_family("sd1")

        def sources(self, component):
            return {"q.weight": Source("q", "transposed")}

    adapter = Adapter({"q.lora_A.weight": torch.zeros(1, 2)}, 1, 1.0)
    with pytest.raises(ExportError, match="in another shape"):
        touched_tensors(Transposed(), adapter)  # type: ignore[arg-type]


# --- conditioning and latents ------------------------------------------------------------------


def told(batch=3):
    return Conditioning(
        {
            "context": torch.arange(batch * 4.0).view(batch, 2, 2),
            "mask": torch.ones(batch, 2, dtype=torch.bool),
            "time_ids": torch.full((batch, 6), 2051.0),
        }
    )


def test_a_bundle_is_taken_apart_and_put_together_by_sample():
    whole = told()
    assert len(whole) == 3 and "mask" in whole and "pooled" not in whole
    parts = [whole[:1], whole[torch.tensor([1, 2])]]
    again = Conditioning.cat(parts)
    assert all(torch.equal(again[name], part) for name, part in whole.parts.items())
    assert len(whole[:1].expand(5)) == 5
    assert (
        whole.without("mask").beside(Conditioning({"mask": whole["mask"]})).shapes == whole.shapes
    )
    with pytest.raises(ValueError, match="others lack"):
        Conditioning.cat([whole, whole.without("mask")])


def test_only_activations_are_cast():
    """2051 is not a number in bfloat16, and a mask is none."""
    cast = told().to("cpu", torch.bfloat16)
    assert cast["context"].dtype == torch.bfloat16 and cast["mask"].dtype == torch.bool
    assert cast["time_ids"].unique().tolist() == [2051.0]


def test_samples_are_replaced_in_every_part():
    empty = Conditioning({"context": -torch.ones(1, 2, 2), "mask": torch.zeros(1, 2).bool()})
    mixed = told().without("time_ids").where(torch.tensor([True, False, True]), empty)
    assert (mixed["context"][[0, 2]] == -1).all() and not mixed["mask"][[0, 2]].any()
    assert torch.equal(mixed["context"][1], told()["context"][1]) and mixed["mask"][1].all()


def test_latents_are_shifted_scaled_and_back():
    space = LatentSpace(channels=16, stride=16, scale=0.5, shift=0.25)
    z = torch.randn(1, 16, 2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(space.normalised(z), (z - 0.25) * 0.5)
    torch.testing.assert_close(space.raw(space.normalised(z)), z)
    assert space.shape(32, 48) == (16, 2, 3) and space.pixels(z) == (32, 48)
    with pytest.raises(DataError, match="multiples of 16"):
        space.shape(32, 40)


@pytest.mark.parametrize(
    ("family", "scale"), [("sd1", 0.18215), ("sd2", 0.18215), ("sdxl", 0.13025)]
)
def test_a_vaes_config_tells_its_latent_space(family, scale):
    latents = find_family(family).latents
    assert latents.space({}) == LatentSpace(4, 8, scale)
    other = {"latent_channels": 16, "block_out_channels": [8, 8], "scaling_factor": 0.36,
             "shift_factor": 0.1}  # fmt: skip
    assert latents.space(other) == LatentSpace(16, 2, 0.36, 0.1)
