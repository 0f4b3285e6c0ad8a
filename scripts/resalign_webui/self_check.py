"""Tests a Python as the worker's: `python -I self_check.py` exits with 0, or prints what fails.

Loads the demo checkpoint, hardens it for one step with a simulated user, and exports it: an
mere import would not show that diffusers, PEFT, transformers and torch are compatible.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from dataclasses import replace
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def harden_once(folder: Path) -> None:
    """Harden the demo checkpoint for one step on the CPU, and export it into `folder`."""
    spec = spec_from_file_location(
        "resalign", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    resalign = module_from_spec(spec)
    sys.modules["resalign"] = resalign
    spec.loader.exec_module(resalign)
    import_module("resalign.backend.worker.serve")
    art = import_module("resalign.backend.demo.art")
    plans = import_module("resalign.backend.demo.plans")
    data = {}
    for name, classes in (("forget", art.UNSAFE), ("retain", art.BENIGN), ("inner", art.BENIGN)):
        data[name] = folder / name
        art.write_image_set(data[name], art.sample_specs(4, 0, classes), 0)
    plan = plans.resalign_plan(data, warm_up=0, steps=1)
    user = replace(plan.fine_tunes[0], steps=2, batch=2)
    still = replace(plan.regulator, enabled=False)  # two inner steps, no more
    plan = replace(plan, fine_tunes=(user,), forget_batch=2, retain_batch=2, regulator=still)
    model = resalign.load_checkpoint(plans.CHECKPOINT, device="cpu")
    result = resalign.harden(model, plan)
    resalign.export_merged(model, result.adapter, folder / "hardened.safetensors")


def main() -> int:
    try:
        with tempfile.TemporaryDirectory() as folder:
            harden_once(Path(folder))
    except Exception as error:  # the last line is what install.py repeats
        traceback.print_exc()
        print(f"ERROR {type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
