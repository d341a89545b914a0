"""Root as others are: without the capabilities by which it reads and writes whatever a file's permissions say."""

from __future__ import annotations

import ctypes
import os
import sys

OVERRIDES = (1, 2, 3)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
PR_CAPBSET_DROP = 24
VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Sets(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def obey_permissions() -> None:
    """From now on this process and its children are bound by them; nothing to do for other users than root.

    Raises: OSError where that cannot be given up, as outside of Linux.
    """
    if os.geteuid() != 0:
        return
    if sys.platform != "linux":
        raise OSError("root cannot give up its rights here")
    libc, header, sets = ctypes.CDLL(None, use_errno=True), _Header(VERSION_3, 0), (_Sets * 2)()
    for capability in OVERRIDES:
        _check(libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))
    _check(libc.capget(ctypes.byref(header), sets))
    for capability in OVERRIDES:
        sets[0].effective &= ~(1 << capability)
        sets[0].permitted &= ~(1 << capability)
    _check(libc.capset(ctypes.byref(header), sets))


def _check(code: int) -> None:
    if code:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
