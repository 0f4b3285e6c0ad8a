"""Files of the published width, one block of each kind, random weights in bfloat16.

Slow: they take a gigabyte each. What was hardened at this width is in docs/families.md.
"""

import pytest
from family_cases import ANIMA, CASES, KLEIN, Z_IMAGE
from family_checks import adapter_of, linear_layers
from wide_checkpoints import published_width, write_wide

import resalign as ra
from resalign.backend.checkpoint.load import check_loadable
from resalign.backend.checkpoint.verify import verify_export

pytestmark = pytest.mark.slow
BLOCKS = {  # part of the layers' names, what they are without, layers, tensors of the file
    ANIMA.name: ("transformer_blocks", ".norm", 10, 10),
    KLEIN.name: ("transformer_blocks", "|", 14, 10),
    Z_IMAGE.name: ("layers.0", "adaLN", 7, 5),
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_file_of_the_true_width_is_changed_in_its_tensors_only(case, tmp_path):
    """Queries, keys and values lie in one tensor of klein and of Z-Image, one by one in Anima."""
    part, without, layers, tensors = BLOCKS[case.name]
    source = write_wide(case, tmp_path)
    info = check_loadable(source)
    assert info.configs["transformer"] == published_width(case)
    text = case.family.config("text_encoder")
    for field in ("hidden_size", "intermediate_size", "num_attention_heads"):
        assert info.configs["text_encoder"][field] == text[field]
    from torch import device

    with device("meta"):
        network = case.family.networks.build("transformer", info.configs["transformer"])
    names = linear_layers(network, part, without)
    adapter = adapter_of(network, *names, rank=4, alpha=4.0)
    target = tmp_path / "wide-hardened.safetensors"
    report = ra.export_merged(source, adapter, target)
    changed = verify_export(source, target, adapter).changed
    assert len(names) == layers and len(changed) == report.touched == tensors
    assert report.rounding_error < 0.02
