"""One function per job that a user asks for; command line, worker and nodes call the same ones.

    check.py     check_job      everything that can be known before weights are loaded
    harden.py    harden_job     harden a checkpoint or a loaded model, new or continued
    probe.py     probe_job      fine-tune checkpoints and write the report
    export.py    export_job     the hardened checkpoint of a run; lora_job: its adapter as a LoRA
    try_lora.py  try_lora_job   the same LoRA on the original and on the hardened checkpoint
    verify.py    verify_job     compare a hardened file with its header, source and probe
    follow.py    follow         what the ranks other than the first do of these

A front end parses, calls one of them and shows what comes back. live_state.py and previews.py
are what a user sees meanwhile.
"""
