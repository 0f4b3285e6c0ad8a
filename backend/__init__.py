"""The engine behind every front end. Imports torch when used, never a host.

The public names are those of the package's root; this file exists so that Forge's own
`backend` (a namespace package) is never merged with ours.
"""
