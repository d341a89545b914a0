"""python out_of_memory.py -m mora.train RUN_DIR: the worker on a device that from pass FROM on holds LIMIT sequences.

The last rank alone runs out, as one does first. A fork is limited by `limit`.
"""

import os
import runpy
import sys

import torch

from mora.train.engine import TorchEngine

passes = 0


def limited(backward):
    def inside(self, micro, loss_tokens):
        global passes
        passes += 1
        last = int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1
        if last and passes >= int(os.environ["FROM"]) and micro.input_ids.shape[0] > int(os.environ["LIMIT"]):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return backward(self, micro, loss_tokens)

    return inside


def limit():
    TorchEngine.backward = limited(TorchEngine.backward)
    if "RANK" in os.environ:
        from mora.train.zero import ZeroEngine  # and DeepSpeed

        ZeroEngine.backward = limited(ZeroEngine.backward)


if __name__ == "__main__":
    limit()
    torch.set_num_threads(1)
    sys.argv = ["mora.train", sys.argv[-1]]
    runpy.run_module("mora.train", run_name="__main__")
