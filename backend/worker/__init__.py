"""Runs one job in a process of its own, for hosts whose process must not load what we need.

    protocol.py   messages between host and worker
    requests.py   what a host may ask for
    serve.py      the process
    process.py    starts and stops it, in the host's process
    checking.py, hardening.py, probing.py, trying.py, exporting.py, resuming.py
                  each calls one function of backend/jobs and reports its result

docs/formats.md describes the protocol for other programs.
"""
