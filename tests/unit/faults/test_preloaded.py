"""What a fork has before it asks for anything: a module that the fork server cannot find is left out without a word."""

import pytest

from mora.faults import forked


@pytest.mark.parametrize("module", ["mora.train.worker", "in_every_fork", "trainer_runs"])
def test_a_fork_begins_with_the_modules_of_the_suite_and_of_its_tests(module):
    asked = f"import sys; sys.exit({module!r} not in sys.modules)"
    process = forked.context.Process(target=exec, args=(asked,))  # a function of this file would import pytest first
    process.start()
    process.join(120)
    assert process.exitcode == 0
