"""Tests of pyisolate: `python3 -m unittest discover -s python/tests -t python`, as root.

They use the real psi-shim and real containers (found as pyisolate finds them: $PSI_SHIM, $PSI_ROOTFS, the
checkout's bin/ and build/rootfs). What has no guest in it (policies, errors, frames, installation) is
tested alone.
"""
