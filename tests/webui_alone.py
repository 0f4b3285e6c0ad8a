"""`resalign ui` in an environment that has gradio and nothing else of ours: PORT FOLDER [AUTH]."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
port, folder, *auth = sys.argv[1:]

spec = spec_from_file_location(
    "resalign", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
)
module = module_from_spec(spec)
sys.modules["resalign"] = module
spec.loader.exec_module(module)
import_module("resalign.scripts.resalign_webui.alone").serve(
    checkpoints=Path(folder), loras=Path(folder), output=Path(folder), port=int(port), auth=auth,
    say=lambda text: print(json.dumps({"said": text, "url": f"http://127.0.0.1:{port}/"}),
                           flush=True),
)  # fmt: skip
