"""One job in a process of its own, for hosts whose process must not load what we need.

protocol.py   what goes over the pipes       requests.py   what may be asked for
serve.py      the process                    hardening.py, exporting.py, drawing.py,
                                             checking.py   the jobs

The protocol is described for other programs in docs/formats.md.
"""
