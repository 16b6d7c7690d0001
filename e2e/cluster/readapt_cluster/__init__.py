"""A real Kubernetes on one Debian machine, for Readapt's tests and demo. See `docs/local-cluster.md`.

`cli` parses a command; `control_plane` is the library for tests; `node` brings up the whole machine.
Every other module is one noun that these three use.
"""
