"""The bridge in a real ComfyUI: both run the same weights and must say the same."""

import json
import subprocess
from pathlib import Path

import pytest
from host_checkpoints import write_reduced_checkpoint
from host_comfyui import host_paths

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def found(tmp_path_factory, root):
    folder, python = host_paths()
    checkpoint = write_reduced_checkpoint(tmp_path_factory.mktemp("host") / "reduced.safetensors")
    script = Path(__file__).with_name("host_bridge.py")
    done = subprocess.run(
        [python, str(script), str(folder.resolve()), str(checkpoint), str(root)],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    print(done.stdout.splitlines()[-1])
    return json.loads(done.stdout.splitlines()[-1])


def test_the_denoiser_predicts_what_comfyui_predicts(found):
    assert (found["family"], found["prediction"]) == ("sd1", "epsilon")
    assert found["eps_size"] > 0.05
    assert found["eps"] <= 1e-5


def test_an_adapter_on_the_model_does_what_it_did_in_the_backend(found):
    assert found["adapter_effect"] > 1e-2
    assert found["adapter"] <= 1e-5
    assert found["without"] == [True, True]
    assert found["hardened"] == [True, True, False, False]
    assert (found["patched_at_first"], found["patched"]) == (False, True)


def test_patches_on_the_model_are_part_of_what_the_backend_sees(found):
    assert found["patched_eps"] <= 1e-5


def test_text_is_encoded_as_comfyui_does_with_and_without_clip_skip(found):
    assert found["skip_effect"] > 1e-2
    assert found["text"] <= 1e-4 and found["text_skip_2"] <= 1e-4


def test_nothing_of_the_backend_is_an_inference_tensor_so_it_can_be_trained(found):
    assert found["inference_tensors"] == 0
    assert found["trains"]


def test_the_vae_encodes_and_decodes(found):
    assert found["latent_shape"] == [1, 4, 8, 8]
    assert found["image_shape"] == [1, 3, 64, 64]


def test_no_weights_are_left_behind(found):
    assert found["left"] == [True, True, True]


def test_the_fingerprint_is_of_the_weights_and_of_all_that_changes_them(found):
    assert found["same_when_cloned"] and found["same_when_loaded_again"]
    assert found["others_differ"] == [True, True, True]


def test_the_source_is_the_file_or_unknown(found):
    assert found["source"] is None or found["source"].endswith("reduced.safetensors")
