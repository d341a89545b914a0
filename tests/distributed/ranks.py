"""Two ranks on the CPU, forked: for one call, or for all the calls of a module."""

import os
import socket
import traceback
from multiprocessing.connection import wait

from forked import context

WORLD = 2
PATIENCE_S = 120.0


def on_ranks(function, *args, world=WORLD):
    """What `function(*args)` returned on each rank, in processes of its own."""
    with Ranks(world) as ranks:
        return ranks(function, *args)


class Ranks:
    """Processes of one group, which is joined once and left with the context, or when a call fails.

    For functions that leave nothing behind in their process that another one would notice.
    """

    def __init__(self, world=WORLD):
        self.world, self._pipes, self._processes = world, [], []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()

    def __call__(self, function, *args):
        """What `function(*args)` returned on each rank; the first exception of one, with its traceback, fails the caller."""
        if not self._processes:
            self._start()
        try:
            for pipe in self._pipes:
                pipe.send((function, args))
            results = {}
            while len(results) < self.world:
                ready = wait([pipe for pipe in self._pipes if pipe not in results], PATIENCE_S)
                assert ready, f"no answer for {PATIENCE_S:.0f} s"
                for pipe in ready:
                    results[pipe], error = pipe.recv()
                    assert error is None, f"rank {self._pipes.index(pipe)}: {error}"
            return [results[pipe] for pipe in self._pipes]
        except BaseException:
            self._end()
            raise

    def _start(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(self.world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.world, port, theirs))
            process.start()
            theirs.close()  # so that its end is noticed
            self._pipes.append(ours)
            self._processes.append(process)

    def _end(self):
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=0.1)
            process.kill()
            process.join()
        self._pipes, self._processes = [], []


def _serve(rank, world, port, pipe):
    import torch
    import torch.distributed as dist

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo")
        while True:
            function, args = pipe.recv()
            pipe.send((function(*args), None))
    except EOFError:  # the test has ended
        pass
    except BaseException:
        pipe.send((None, traceback.format_exc()))
    finally:
        os._exit(0)
