from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

from mora.suite.gpus import GpuSlots, visible


def test_runs_side_by_side_are_spread_over_the_gpus():
    slots, together = GpuSlots(4, ["0", "1"]), Barrier(4)

    def run(_):
        with slots.take(ranks=1) as env:
            together.wait(10)
            return env

    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(run, range(4)))
    assert sorted(env["CUDA_VISIBLE_DEVICES"] for env in taken) == ["0", "0", "1", "1"]
    assert {env["MORA_SIDE_BY_SIDE"] for env in taken} == {"2"}


def test_a_place_is_free_again_after_a_run_that_failed():
    slots = GpuSlots(1, ["3"])
    for _ in range(2):
        try:
            with slots.take(ranks=1) as env:
                raise OSError
        except OSError:
            assert env["CUDA_VISIBLE_DEVICES"] == "3"


def test_several_ranks_see_every_gpu_and_without_a_gpu_nothing_is_hidden():
    with GpuSlots(2, ["0", "1"]).take(ranks=2) as env:
        assert "CUDA_VISIBLE_DEVICES" not in env
    with GpuSlots(3, []).take(ranks=1) as env:
        assert env == {"MORA_SIDE_BY_SIDE": "3"}


def test_what_the_user_hid_stays_hidden(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert visible() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible() == []
