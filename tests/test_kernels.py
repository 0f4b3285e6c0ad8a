"""The choice of kernels: what is tried, what is kept, and that it changes no result."""

from __future__ import annotations

import pytest
import torch
from test_harden import plan, run, same

from fakes import encoded_data, tiny_model
from resalign.backend.errors import ConfigError
from resalign.backend.hardening import optimisers
from resalign.backend.hardening.run import harden
from resalign.backend.model import kernels as module
from resalign.backend.model.kernels import Kernels, applied, choose_kernels
from resalign.backend.plan.kernels import KernelConfig
from resalign.backend.run.folder import RunFolder


def work() -> None: ...


@pytest.fixture
def on_gpu(monkeypatch):
    """A choice as on a GPU with xformers: what runs is on the CPU, times are made up."""

    def candidates(config, device, twice, own):
        return [
            Kernels(a, f, "fused", "a GPU")
            for a in (["sdpa"] if twice else ["sdpa", "xformers"])
            for f in (["contiguous", "channels_last"] if own else ["contiguous"])
            if config.attention in ("auto", a) and config.memory_format in ("auto", f)
        ]

    monkeypatch.setattr(module, "candidates", candidates)


@pytest.fixture
def unet(monkeypatch):
    """A small network that can be told to use xformers, and remembers it."""
    network = tiny_model().denoiser
    network.told = []
    monkeypatch.setattr(
        type(network), "enable_xformers_memory_efficient_attention",
        lambda self: self.told.append("xformers"),
    )  # fmt: skip
    return network


def test_on_a_cpu_nothing_is_measured():
    def never() -> None:
        raise AssertionError

    found = choose_kernels(tiny_model().denoiser, KernelConfig(), never)
    assert (found.name, found.optimiser) == ("sdpa, contiguous", "foreach")
    assert not found.milliseconds


@pytest.mark.parametrize(
    ("times", "best"),
    [
        ((3, 2, 5, 4), "sdpa, channels_last"),
        ((3, 4, 1, 2), "xformers, contiguous"),
        ((1, 2, 3, 4), "sdpa, contiguous"),
    ],
)
def test_the_quickest_is_chosen_and_all_times_are_kept(on_gpu, unet, times, best):
    seconds = dict(
        zip([("sdpa", False), ("sdpa", True), ("xformers", False), ("xformers", True)], times,
            strict=True)
    )  # fmt: skip

    def timed(_, device):
        relaid = unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
        return seconds["xformers" if unet.told else "sdpa", relaid] / 1000

    processors = dict(unet.attn_processors)
    found = choose_kernels(unet, KernelConfig(), work, seconds=timed)
    assert found.name == best
    assert found.milliseconds == {
        f"{attention}, {'channels_last' if relaid else 'contiguous'}": time
        for (attention, relaid), time in seconds.items()
    }
    assert unet.attn_processors == processors and unet.conv_in.weight.is_contiguous()


def test_what_does_not_run_here_is_left_out_and_says_why(on_gpu, unet):
    def timed(_, device):
        if unet.told:
            raise NotImplementedError("No operator found\nwith a long list")
        return 1.0

    found = choose_kernels(unet, KernelConfig(memory_format="contiguous"), work, seconds=timed)
    assert found.name == "sdpa, contiguous"
    assert found.left_out == {"xformers, contiguous": "No operator found"}


def test_a_mistake_in_the_pass_itself_is_no_reason_to_leave_something_out(on_gpu, unet):
    def timed(_, device):
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        choose_kernels(unet, KernelConfig(), work, seconds=timed)


def test_a_run_keeps_to_what_it_began_with(on_gpu, unet):
    """A choice that is still to be had is kept; one that is not is made anew."""
    began = Kernels("xformers", "channels_last", "fused", "a GPU", {"a": 1.0}).to_json()
    kept = choose_kernels(unet, KernelConfig(), work, began=began, seconds=lambda *_: 1.0)
    assert kept.to_json() == began
    asked = KernelConfig(attention="sdpa")
    anew = choose_kernels(unet, asked, work, began=began, seconds=lambda *_: 1.0)
    assert anew.attention == "sdpa" and anew.milliseconds


def test_a_hosts_network_is_not_laid_out_anew_unasked(on_gpu, unet):
    found = choose_kernels(unet, KernelConfig(), work, own=False, seconds=lambda *_: 1.0)
    assert not any("channels_last" in name for name in found.milliseconds)


def test_what_cannot_be_had_is_refused():
    asked = KernelConfig(attention="xformers")
    with pytest.raises(ConfigError, match="needs a CUDA device, not cpu"):
        choose_kernels(tiny_model().denoiser, asked, work)
    with pytest.raises(ConfigError, match="attention is 'fast'"):
        KernelConfig(attention="fast")  # type: ignore[arg-type]


def test_xformers_is_refused_where_a_second_derivative_is_asked_for(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="no second derivative"):
        module._require_xformers(torch.device("cuda"), True)
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="xformers is not installed"):
        module._require_xformers(torch.device("cuda"), False)


@pytest.mark.slow
def test_channels_last_is_the_same_network_to_rounding_and_leaves_no_trace():
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.denoiser.state_dict().items()}
    changes = {"kernels": KernelConfig(memory_format="channels_last")}
    found = harden(model, plan(**changes), data=encoded_data())
    assert found.kernels is not None and found.kernels.memory_format == "channels_last"
    expected = run(plan())
    for name, tensor in found.adapter.tensors.items():
        torch.testing.assert_close(tensor, expected.adapter.tensors[name], rtol=1e-3, atol=1e-4)
    for name, tensor in model.denoiser.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.is_contiguous()


def test_only_frozen_weights_are_laid_out_anew():
    model = tiny_model()
    chosen = Kernels("sdpa", "channels_last", "foreach", "cpu")
    with applied(model.denoiser, chosen):
        assert not model.denoiser.conv_in.weight.is_contiguous()
    assert model.denoiser.conv_in.weight.is_contiguous()


@pytest.mark.slow
def test_the_record_says_what_trained_and_a_resumed_run_keeps_to_it(tmp_path):
    def stop(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    asked = plan(kernels=KernelConfig(memory_format="channels_last"))
    with pytest.raises(KeyboardInterrupt):
        run(asked, tmp_path, stop)
    with RunFolder.open(tmp_path, read_only=True) as folder:
        kept = folder.kernels()
    assert kept is not None
    assert (kept["attention"], kept["memory_format"]) == ("sdpa", "channels_last")
    assert (kept["optimiser"], kept["device"]) == ("foreach", "cpu")
    resumed = run(asked, tmp_path)
    assert resumed.kernels is not None and resumed.kernels.to_json() == kept
    assert same(resumed, run(asked))


@pytest.mark.slow
def test_fused_adamw_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    """The kernels that CUDA uses, here on the CPU, which has them too."""
    monkeypatch.setattr(optimisers, "optimiser_options", lambda device: {"fused": True})
    expected = run(plan())

    def stop(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan(), tmp_path, stop)
    assert same(run(plan(), tmp_path), expected)
