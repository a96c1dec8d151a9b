"""A zygote: an agent that is started once and forked for each guest.

It is an agent in every respect until it would take its channel. The supervisor
starts it with a socket as fd 3 and puts a module in C into its root, which no
guest's root has (internal/container/zygote says what it does).
"""

from __future__ import annotations

import gc
import posix
import sys

_CONTROL = 3
_MODULE = "/usr/lib/psi/_zygote.so"


def is_zygote() -> bool:
    """Whether this agent was started as a zygote: guests have no fd 3 when they start."""
    try:
        return posix.fstat(_CONTROL).st_mode >> 12 == 0o14
    except OSError:
        return False


def serve() -> None:
    """Makes guests, and returns in each of them; the zygote itself never does."""
    import _imp

    if len(posix.listdir("/proc/self/task")) != 1:
        sys.exit("psi: what is preloaded has started threads, which a fork would lose")
    spec = sys.modules["_frozen_importlib"].ModuleSpec("_zygote", None, origin=_MODULE)
    module = _imp.create_dynamic(spec)
    _imp.exec_dynamic(module)
    gc.collect()
    gc.freeze()  # what is here stays: a collection in a guest would copy every page of it
    module.serve()
    gc.unfreeze()
    if "numpy.random" in sys.modules:  # Python's own random sees to itself
        sys.modules["numpy.random"].seed()
    for finder in sys.path_importer_cache.values():
        if finder is not None:
            finder.invalidate_caches()  # the zygote's root has more in it
