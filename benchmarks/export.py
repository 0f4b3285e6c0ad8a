"""Export against `cp` of the same file: seconds and peak memory.

    python benchmarks/export.py --scratch FOLDER [--repeats 3] [--cold] [--json FILE]

Writes a random checkpoint of SD 1.5's size (about 2 GB in fp16) and one of SDXL's (about 7 GB),
with the real tensor names, types and shapes. Then, in turn, `cp` followed by fsync, and the export
of an adapter of rank 4 on all attention projections, in a process of its own. Both write a new file
and end with it on disk. The seconds of the export leave out the import of torch; the JSON has both.

The export is measured twice: as it is by default, and with the SHA-256 of the new file too
(`hash_file=True`, one more reading of it).

Page cache: the source is read once before each measurement, so that both read from memory what
fits there (the larger file may not); `sync` before each empties the queue of the disk. With --cold
the cache is dropped instead (Linux, root): then both read from the disk. Peak memory is the
process's largest resident set (VmHWM), without the page cache; of it, the imports take `base`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"sd1": "SD 1.5", "sdxl": "SDXL base"}
GB = 1e9


def use_checkout() -> None:
    """Make this checkout importable as `resalign`, whatever its folder is called."""
    spec = importlib.util.spec_from_file_location(
        "resalign", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    sys.modules["resalign"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def layout(family: str) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a single-file checkpoint: networks built on the meta device."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    from resalign.backend.families import find_family
    from resalign.backend.families.clip.names import clip_sources, open_clip_sources
    from resalign.backend.families.unet.names import unet_ldm_names
    from resalign.backend.families.unet.vae_names import vae_sources

    def config(name: str) -> dict:
        return {k: v for k, v in find_family(family).config(name).items() if not k.startswith("_")}

    found: dict[str, tuple[int, ...]] = {}

    def add(network, names) -> None:
        for name, tensor in network.state_dict().items():
            known = name if name in names else "text_model." + name
            source = names[known]
            ldm, part, rows = (source, "whole", None) if isinstance(source, str) else source
            shape = tuple(tensor.shape)
            if part == "matrix":
                shape = (*shape, 1, 1)
            elif rows is not None:  # q, k and v are rows of one tensor
                shape = (3 * shape[0], *shape[1:])
            elif part == "transposed":
                shape = shape[::-1]
            found[ldm] = shape

    with torch.device("meta"):
        unet = config("unet")
        add(UNet2DConditionModel.from_config(unet), unet_ldm_names(unet))
        vae = config("vae")
        add(AutoencoderKL.from_config(vae), vae_sources(vae))
        text = config("text_encoder")
        prefix = "cond_stage_model." if family == "sd1" else "conditioner.embedders.0."
        names = clip_sources(text, prefix + "transformer.text_model.")
        add(CLIPTextModel(CLIPTextConfig(**text)), names)
        if family == "sdxl":
            second = config("text_encoder_2")
            names = open_clip_sources(second, "conditioner.embedders.1.model.", projection=True)
            add(CLIPTextModelWithProjection(CLIPTextConfig(**second)), names)
    return dict(sorted(found.items()))


def write_checkpoint(path: Path, family: str) -> None:
    """Random fp16 weights of spread 0.02, tensor by tensor."""
    import torch

    shapes, header, end = layout(family), {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = torch.Generator().manual_seed(0)
    noise = (torch.randn(1 << 22, generator=random) * 0.02).half()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, entry in header.items():
            left = 0 if name == "__metadata__" else int(torch.Size(entry["shape"]).numel())
            while left:
                count = min(left, len(noise))
                file.write(noise[:count].numpy().tobytes())
                left -= count


def export_once(source: Path, target: Path, hash_file: bool) -> None:
    """Export in a process of its own; print the cost as JSON."""
    started = time.monotonic()
    use_checkout()
    import torch

    from resalign.backend.adapter.lora import Adapter
    from resalign.backend.checkpoint.detect import detect
    from resalign.backend.checkpoint.save import export_merged
    from resalign.backend.families.unet.names import unet_ldm_names

    info = detect(source)
    names = unet_ldm_names(info.configs["unet"])
    random, tensors = torch.Generator().manual_seed(0), {}
    for name in names:
        module = name.removesuffix(".weight")
        if module.endswith((".to_q", ".to_k", ".to_v", ".to_out.0")):
            out, width = info.headers[source].tensors[names[name]].shape
            tensors[module + ".lora_A.weight"] = torch.randn(4, width, generator=random) * 0.02
            tensors[module + ".lora_B.weight"] = torch.randn(out, 4, generator=random) * 0.02
    base, begun, cpu = peak_bytes(), time.monotonic(), time.process_time()
    report = export_merged(source, Adapter(tensors, 4, 4.0), target, hash_file=hash_file)
    ended = time.monotonic()
    print(json.dumps({
        "seconds": ended - begun, "with_imports": ended - started,
        "cpu": time.process_time() - cpu,
        "peak": peak_bytes(), "base": base, "touched": report.touched,
    }))  # fmt: skip


def peak_bytes() -> int:
    """Largest resident set of this process so far."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def copy_once(source: Path, target: Path) -> float:
    """Seconds of `cp` and fsync."""
    begun = time.monotonic()
    subprocess.run(["cp", str(source), str(target)], check=True)
    handle = os.open(target, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)
    return time.monotonic() - begun


def prepare(source: Path, cold: bool) -> None:
    """The source in the page cache or nothing in it, and nothing left for the disk to do."""
    os.sync()
    if cold:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        return
    with source.open("rb", buffering=0) as file:
        while file.read(1 << 24):
            pass


def measure(family: str, scratch: Path, repeats: int, cold: bool) -> dict:
    source, target = scratch / f"{family}.safetensors", scratch / f"{family}-copy.safetensors"
    write_checkpoint(source, family)
    copies, exports, hashed = [], [], []
    try:
        for _ in range(repeats):
            prepare(source, cold)
            copies.append(copy_once(source, target))
            target.unlink()
            for kind, found in (("default", exports), ("hashed", hashed)):
                prepare(source, cold)
                command = [sys.executable, __file__, "--export", str(source), str(target), kind]
                ran = subprocess.run(command, check=True, capture_output=True, text=True)
                found.append(json.loads(ran.stdout.splitlines()[-1]))
                target.unlink()
        size = source.stat().st_size
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    copied = statistics.median(copies)
    exported = statistics.median(run["seconds"] for run in exports)
    peak = max(run["peak"] for run in exports)
    return {
        "model": SIZES[family],
        "bytes": size,
        "touched": exports[0]["touched"],
        "copy_seconds": copies,
        "export_seconds": [run["seconds"] for run in exports],
        "export_with_imports_seconds": [run["with_imports"] for run in exports],
        "export_cpu_seconds": [run["cpu"] for run in exports],
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "cold": cold,
        "hashed_seconds": [run["seconds"] for run in hashed],
        "hashed_ratio": statistics.median(run["seconds"] for run in hashed) / copied,
        "ratios_by_round": [run["seconds"] / c for run, c in zip(exports, copies, strict=True)],
        "ratio": exported / copied,
        "ratio_of_best": min(run["seconds"] for run in exports) / min(copies),
        "peak_bytes": peak,
        "base_bytes": max(run["base"] for run in exports),
        "peak_share_of_source": peak / size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scratch", type=Path, required=False, help="folder with 16 GB free")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--families", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--cold", action="store_true", help="drop the page cache first (root)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--export", type=Path, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.export:
        source, target, kind = given.export
        export_once(source, target, hash_file=kind.name == "hashed")
        return
    if given.scratch is None:
        parser.error("name a scratch folder: --scratch FOLDER")
    use_checkout()
    given.scratch.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(given.scratch).free < 16 * GB:
        parser.error(f"{given.scratch} has less than 16 GB free")
    rows = []
    print(
        "model       GB    cp (s)            export (s)        ratio (best)   peak GB (base)  share"
    )
    for family in given.families:
        row = measure(family, given.scratch, given.repeats, given.cold)
        rows.append(row)
        print(
            f"{row['model']:<10} {row['bytes'] / GB:5.2f}  {span(row['copy_seconds']):<17} "
            f"{span(row['export_seconds']):<17} {row['ratio']:.2f} ({row['ratio_of_best']:.2f})    "
            f"with the file's hash {span(row['hashed_seconds'])} {row['hashed_ratio']:.2f}  "
            f"{row['peak_bytes'] / GB:.2f} ({row['base_bytes'] / GB:.2f})     "
            f"{row['peak_share_of_source']:.2f}",
            flush=True,
        )
    text = json.dumps(rows, indent=2)
    if given.json:
        given.json.write_text(text + "\n", encoding="utf-8")
    print(text)


def span(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()
