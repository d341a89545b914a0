"""Two ranks on the CPU, forked."""

import os
import socket
import traceback

from forked import context

WORLD = 2


def on_ranks(function, *args, world=WORLD):
    """What `function(*args)` returned on each rank; the first exception of a rank, with its traceback, fails the caller."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    answers = context.Queue()
    processes = [context.Process(target=_rank, args=(r, world, port, answers, function, args)) for r in range(world)]
    for process in processes:
        process.start()
    try:
        results = {}
        while len(results) < world:
            r, result, error = answers.get(timeout=120)
            assert error is None, f"rank {r}: {error}"
            results[r] = result
        return [results[r] for r in range(world)]
    finally:
        for process in processes:
            process.join(timeout=0.1)
            process.kill()


def _rank(rank, world, port, answers, function, args):
    import torch
    import torch.distributed as dist

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo")
        answers.put((rank, function(*args), None))
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
    finally:
        answers.close()
        answers.join_thread()
        os._exit(0)
