"""Between ComfyUI and the backend: MODEL, CLIP and VAE in, an adapter out.

checks.py    what can be hardened, and where a MODEL comes from
identity.py  a fingerprint of what is connected
model.py     MODEL, CLIP and VAE to the backend's Model; vae.py: its VAE; text.py: its CLIP
adapter.py   the backend's adapter onto a MODEL
provenance.py  whether a MODEL is what it is called
from_file.py   whether MODEL, CLIP and VAE are what a file holds
"""

from .adapter import lora_model as lora_model
from .adapter import with_adapter as with_adapter
from .checks import check_model as check_model
from .checks import check_parts as check_parts
from .checks import is_patched as is_patched
from .checks import source_of as source_of
from .from_file import decision_for as decision_for
from .from_file import difference_from_file as difference_from_file
from .identity import fingerprint as fingerprint
from .model import decision_of as decision_of
from .model import denoiser_config as denoiser_config
from .model import encodes_text as encodes_text
from .model import family_of as family_of
from .model import key_map as key_map
from .model import places_of as places_of
from .model import prediction_of as prediction_of
from .model import process_decision as process_decision
from .model import resolution_of as resolution_of
from .model import to_backend as to_backend
from .model import unet_tensors as unet_tensors
from .provenance import base_matrices as base_matrices
from .provenance import is_hardened as is_hardened
from .provenance import is_same as is_same
from .provenance import mark as mark
from .provenance import module_weights as module_weights
from .provenance import weights_of as weights_of
from .provenance import without_adapter as without_adapter
