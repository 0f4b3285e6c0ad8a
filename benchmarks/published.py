"""An outer step against the published code's, side by side: CPU seconds and peak memory.

    python benchmarks/published.py --published FOLDER --published-python PYTHON
        [--size tiny|small|full16|full] [--ours first_order at_once ...] [--repeats N]

FOLDER is a checkout of the published implementation (github.com/AntigoneRandy/ResAlign, head
14775d3), which is not part of this project and runs unmodified; PYTHON an environment with what it
was written for (diffusers 0.18.2, transformers 4.31.0, huggingface-hub 0.16.4, accelerate 0.21.0,
numpy 1.24.4, pandas). Only its pictures are replaced: latents and embeddings are random and in
memory, so that neither side pays for its text encoder, VAE or files.

Both take the same step: J = 3 users of 15 updates each (plain gradient descent, batch 1), one
sample of the concept, four to retain, LoRA of rank 4 on all attention projections; theirs with its
K = 5 fixed-point products, ours without products (`first_order`; `at_once`: the same with the
inner steps of all users in shared passes) and with four by finite differences (`richardson`).
They step in turn, each in its own process and on one thread; medians.
A bare pass is forward and backward of our network with the LoRA on it, batch 1.

Peak memory is VmHWM above the state when one network has been built: a second one counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from process_memory import forget_peak, resident

# widths, kinds of down blocks (C: with cross-attention), layers per block, context, heads, side
SIZES: dict[str, tuple[tuple[int, ...], str, int, int, int, int]] = {
    "tiny": ((32, 64), "DC", 1, 32, 4, 16),
    "small": ((64, 128, 256, 256), "CCCD", 2, 768, 8, 32),
    "full16": ((320, 640, 1280, 1280), "CCCD", 2, 768, 8, 16),
    "full": ((320, 640, 1280, 1280), "CCCD", 2, 768, 8, 32),
}
USERS, INNER_STEPS, RETAIN, RANK, PRODUCTS = 3, 15, 4, 4, 4
OURS = ("first_order", "at_once", "richardson")


def unet_settings(size: str) -> dict[str, Any]:
    widths, kinds, layers, context, heads, side = SIZES[size]
    down = {"C": "CrossAttnDownBlock2D", "D": "DownBlock2D"}
    return {
        "block_out_channels": widths, "layers_per_block": layers, "sample_size": side,
        "cross_attention_dim": context, "attention_head_dim": heads,
        "down_block_types": tuple(down[kind] for kind in kinds),
        "up_block_types": tuple(down[kind].replace("Down", "Up") for kind in reversed(kinds)),
    }  # fmt: skip


def theirs(size: str, folder: str) -> tuple[Callable[[], object], None, float]:
    """One outer step of the published code, and the memory with one network; in its environment."""
    import types

    import diffusers
    import torch
    import transformers  # noqa: F401  before the stand-in below, for which it would look

    sys.path.insert(0, folder)
    sys.modules["torchvision"] = vision = types.ModuleType("torchvision")
    vision.transforms = None  # type: ignore[attr-defined]  only its pictures need it
    from src.train import hypergrad, models, train

    side, context = SIZES[size][5], SIZES[size][3]
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(**unet_settings(size))
    before = resident("VmRSS")

    class Memory:
        """Its data set, without files."""

        def __init__(self, *_: object, **__: object) -> None:
            self.latents = torch.randn(32, 4, side, side)
            self.texts = torch.randn(32, 77, context)

        def __len__(self) -> int:
            return 32

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {
                "latents": self.latents[index], "text_embeddings": self.texts[index],
                "prompt": "", "timesteps": torch.randint(0, 1000, (1,)),
            }  # fmt: skip

        @staticmethod
        def collate_fn(batch: list[dict[str, Any]]) -> dict[str, Any]:
            return {
                name: torch.stack([one[name] for one in batch])
                for name in ("latents", "text_embeddings", "timesteps")
            }

    plain = dict(unet.state_dict())  # without the LoRA

    def second_network(*_: object, **__: object) -> Any:
        network = diffusers.UNet2DConditionModel(**unet_settings(size))
        network.load_state_dict(plain)
        return network

    train.NSFWDataset = Memory
    diffusers.UNet2DConditionModel.from_pretrained = second_network
    safety = models.SafetyModel(unet, train_method="full", rank=RANK)
    noise = diffusers.DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )

    def loader(batch: int) -> Any:
        data: Any = Memory()
        return torch.utils.data.DataLoader(
            data, batch_size=batch, shuffle=True, collate_fn=Memory.collate_fn, drop_last=True
        )

    settings = argparse.Namespace(
        retain_batch_size=RETAIN, retain_loss_weight=1.6, retain_data_dir="", device="cpu",
        model_path="", dynamic_weights=False, num_epochs=160, weight_rampup_epochs=0.5,
        outer_lambda=0.8, loss_mode="ga",
    )  # fmt: skip
    inner, outer, _, choose = train.create_loss_functions(
        safety, loader(1), noise, None, None, None, None, None, None, settings
    )
    users, loaders = [], {}
    for number in range(USERS):
        user = train.InnerLoopConfig("", 1e-4, INNER_STEPS, 1, "gd", name=f"u{number}")
        optimiser = train.create_inner_optimizer(user, inner(user))
        optimiser.config = user
        users.append(optimiser)
        loaders[user.name] = loader(1)
    theta = [p.detach().clone().requires_grad_(True) for p in safety.get_lora_params()]
    bilevel = hypergrad.BiLevelOptimizer(
        params=[p.detach().clone().requires_grad_(True) for p in theta], hparams=theta,
        inner_optimizers=users, outer_optimizer=torch.optim.AdamW(theta, lr=2e-4),
        inner_train_loaders=loaders, set_current_loader=choose, K=5, device="cpu",
        max_grad_norm=0.2, meta_rate=0.3, inner_sample_k=USERS, safety_model=safety,
        noise_scheduler=noise,
    )  # fmt: skip

    def step() -> None:
        _, told = bilevel.step(None, outer, 0.0)
        if not told or told["retry_count"]:
            raise RuntimeError(f"the published step failed or was repeated: {told}")

    return step, None, before


def ours(
    size: str, method: str, stack: ExitStack
) -> tuple[Callable[[], object], Callable[[], object], float]:
    """One outer step of this project, a bare pass of its network, the memory with the network."""
    import torch
    from diffusers import UNet2DConditionModel

    from resalign.backend.adapter.apply import AdaptedDenoiser
    from resalign.backend.data.batches import EncodedData
    from resalign.backend.data.encoded_set import Bucket, EncodedSet
    from resalign.backend.families import find_family
    from resalign.backend.families.base.conditioning import Conditioning
    from resalign.backend.families.base.process import (
        discrete_process,
        scaled_linear_alphas_cumprod,
    )
    from resalign.backend.hardening.setup import set_up
    from resalign.backend.hardening.training import train_step
    from resalign.backend.model.model import Model
    from resalign.backend.plan.adapter import AdapterConfig
    from resalign.backend.plan.concept import Concept
    from resalign.backend.plan.fine_tune import FineTuneConfig
    from resalign.backend.plan.hardening import HardeningPlan
    from resalign.backend.plan.regulator import RegulatorConfig
    from resalign.backend.plan.solver import SolverConfig

    side, context = SIZES[size][5], SIZES[size][3]
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**unet_settings(size)).eval()
    before = resident("VmRSS")
    schedule = discrete_process(scaled_linear_alphas_cumprod())
    model = Model(find_family("sd1"), unet, (), (), None, schedule, 8 * side)  # type: ignore[arg-type]
    texts = Conditioning({"context": torch.randn(1, 77, context)})
    bucket = Bucket(
        torch.randn(32, 4, side, side), torch.zeros(32, dtype=torch.long), torch.ones(32).double()
    )
    data = EncodedSet((bucket,), ("",), texts, texts)
    encoded = EncodedData({"c": data}, data, {"c": texts}, texts, {"retain": data})
    pool = tuple(
        FineTuneConfig(name=f"u{n}", learning_rate=1e-4, steps=INNER_STEPS, optimiser="sgd")
        for n in range(USERS)
    )
    plan = HardeningPlan(
        concepts=(Concept("c", prompts=("c",)),), fine_tunes=pool, configurations_per_step=USERS,
        outer_steps=1000, warm_up_steps=0, forget_batch=1, retain_batch=RETAIN,
        adapter=AdapterConfig(rank=RANK), regulator=RegulatorConfig(enabled=False),
        solver=SolverConfig(
            method="richardson" if method == "richardson" else "first_order",
            iterations=PRODUCTS, tolerance=0,
        ),
        users_at_once=USERS if method == "at_once" else 1,
    )  # fmt: skip
    denoiser = stack.enter_context(
        AdaptedDenoiser(model, plan.adapter, seed=plan.seed, precision=plan.precision)
    )
    setup = set_up(denoiser, plan, encoded)
    latents, noise = torch.randn(2, 1, 4, side, side).unbind()
    embedded, times = torch.randn(1, 77, context), torch.randint(0, 1000, (1,))
    leaves = list(denoiser.theta.values())

    def bare() -> None:
        predicted = unet(latents, times, embedded, return_dict=False)[0]
        torch.autograd.grad((predicted - noise).square().mean(), leaves)

    return partial(train_step, setup, 1), bare, before


def serve(side: str, size: str, folder: str) -> None:
    """Do what each line asks for (a step, a bare pass) and answer with its cost."""
    import torch

    torch.set_num_threads(1)
    answer = sys.stdout
    with ExitStack() as stack, redirect_stdout(sys.stderr):
        built = theirs(size, folder) if side == "theirs" else ours(size, side, stack)
        step, bare, before = built
        forget_peak()
        print(json.dumps({"ready": True}), file=answer, flush=True)
        for line in sys.stdin:
            work = step if line.strip() == "step" else bare
            assert work is not None
            started = time.process_time()
            work()
            found = {
                "seconds": time.process_time() - started,
                "peak_mib": resident("VmHWM") - before,
            }
            print(json.dumps(found), file=answer, flush=True)


class Process:
    """One side, waiting for what to do."""

    def __init__(self, python: str, side: str, size: str, folder: str) -> None:
        command = [python, __file__, "--serve", side, "--size", size, "--published", folder]
        # Both print a lot, and a full pipe would stop them
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        self.seconds: list[float] = []
        self.peak = 0.0
        self._answer()

    def ask(self, what: str, keep: list[float] | None = None) -> None:
        assert self._process.stdin
        print(what, file=self._process.stdin, flush=True)
        found = self._answer()
        if keep is not None:
            keep.append(found["seconds"])
        self.peak = max(self.peak, found["peak_mib"])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError(self._log.read()[-3000:])
        return json.loads(line)


def measure(size: str, repeats: int, folder: str, python: str, chosen: list[str]) -> dict[str, Any]:
    sides = {"theirs": Process(python, "theirs", size, folder)}
    sides |= {method: Process(sys.executable, method, size, folder) for method in chosen}
    bare: list[float] = []
    try:
        sides[chosen[0]].ask("bare")
        for _ in range(repeats):
            for process in sides.values():
                process.ask("step", process.seconds)
            for _ in range(5):
                sides[chosen[0]].ask("bare", bare)
    finally:
        for process in sides.values():
            process.close()
    floor, baseline = statistics.median(bare), statistics.median(sides["theirs"].seconds)
    found: dict[str, Any] = {"size": size, "repeats": repeats, "bare_pass": spread(bare)}
    for name, process in sides.items():
        pairs = zip(sides["theirs"].seconds, process.seconds, strict=True)
        found[name] = {
            "seconds": spread(process.seconds),
            "in_bare_passes": statistics.median(process.seconds) / floor,
            "times_faster": baseline / statistics.median(process.seconds),
            "times_faster_by_pair": spread([one / other for one, other in pairs]),
            "peak_mib": process.peak,
        }
    return found


def spread(values: list[float]) -> list[float]:
    """Median, least, most."""
    return [statistics.median(values), min(values), max(values)]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--published", required=True, help="a checkout of the published code")
    parser.add_argument("--published-python", default=sys.executable)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ours", nargs="*", choices=OURS, default=OURS, help="fewer at a time")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", choices=("theirs", *OURS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.serve, given.size, given.published)
        return
    found = measure(given.size, given.repeats, given.published, given.published_python, given.ours)
    print("side          step, CPU s (least to most)   bare passes   times faster   peak MiB")
    for name in ("theirs", *given.ours):
        row = found[name]
        middle, low, high = row["seconds"]
        print(
            f"{name:<12}  {middle:8.2f} ({low:.2f} to {high:.2f})      {row['in_bare_passes']:8.1f}"
            f"       {row['times_faster']:6.2f}       {row['peak_mib']:8.0f}"
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
