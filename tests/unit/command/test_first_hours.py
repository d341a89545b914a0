"""What a user runs into in the first hours, and the test that shows how it is: `pytest -k NAME` runs one."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]

SHOWN_BY = {
    # the promise of the first page
    "make table1 HARDWARE=cpu2, killed and started again": "test_table1_on_two_ranks_killed_and_gone_on_repeats_nothing",
    "a table over two nodes": "test_a_suite_on_each_of_two_nodes_does_the_runs_together",
    "a table as one SLURM array job": "test_the_job_of_a_table",
    "the same command hands in what is still missing": "test_a_table_is_handed_in_once_and_what_is_missing_again",
    "PLAN=commands": "test_the_commands_of_a_plan_are_those_runs",
    "the micro batch is the largest that fits": "test_the_plans_largest_that_fits_is_taken",
    "and is halved where it does not fit": "test_two_ranks_go_on_with_half_to_the_same_result",
    "plans for other GPUs": "test_gpus_by_name_or_by_hand",
    # a result is what its name says
    "a kind of adapter without code is refused": "test_a_kind_without_code_is_refused",
    "other weights under a known name": "test_other_weights_of_that_name_are_refused",
    "a model.path that does not exist": "test_a_folder_that_does_not_exist_is_said_before_anything_is_handed_back",
    "a folder for a known file": "test_a_place_without_the_known_file_is_said_before_its_result_is_handed_back",
    "a data file that has changed": "test_a_data_file_with_another_content_is_refused",
    "hardware=gpu8 on a CPU": "test_hardware_is_looked_at_first",
    "an own model inherits no revision": "test_another_model_does_not_inherit_a_revision",
    "target_modules of the command line": "test_the_modules_of_the_command_line_are_those_that_are_adapted",
    # own methods and models
    "any method of PEFT's without Python": "test_what_peft_has_written_trains_merges_and_is_loaded",
    "its plan and its table": "test_any_method_of_pefts_stands_in_a_plan_and_a_table_by_a_row_alone",
    "a shape that is not known": "test_a_table_says_unknown",
    "an own folder as the model": "test_a_folder_has_its_own_name_and_fingerprint",
    "a rank that no module has": "test_a_rank_that_no_module_has_is_refused",
    # again, and elsewhere
    "FORCE=1, RESULTS=folder, nothing to run": "test_results_are_made_in_a_folder_of_their_own_and_made_again_by_force",
    "scale=lite, SEED=3": "test_a_variable_that_nothing_reads_is_refused",
    "PLAN=0": "test_what_make_passes_on",
    "PLAN=maybe": "test_yes_and_no_are_one_and_zero",
    "make without SCALE": "test_without_a_scale_it_is_said_which_is_taken",
    "no lr": "test_the_rate_that_a_search_chose",
    # help, and what is wrong
    "mora --help": "test_help_is_quick_and_imports_no_torch",
    "python run.py --help": "test_run_py_explains_itself_without_composing_anything",
    "a wrong line of run.py": "test_run_py_refuses_in_one_line",
    "a wrong line of mora": "test_mora_refuses_in_one_line",
    "MoraConfig(lora_alpha=16)": "test_an_option_of_loras_is_refused_with_what_to_use_instead",
    "a misspelt task": "test_a_misspelt_task_is_found_before_a_model_is_loaded",
    # a run that speaks
    "its beginning": "test_the_beginning_names_what_decides_the_result_and_where_it_will_be",
    "its end": "test_the_end_names_scores_errors_time_and_what_to_do_next",
    "its log in a file": "test_a_line_a_minute_where_there_is_no_terminal",
    "a suite's progress": "test_progress_says_where_runs_are_and_how_long_it_takes",
    "scale lite on a CPU": "test_a_long_run_on_a_cpu_is_said_before_it_begins",
    "a launcher that dies": "test_a_worker_whose_launcher_is_killed_is_stopped",
    # adapters that load
    "mora merge": "test_a_merged_run_is_a_checkpoint_like_any_other",
    "mora generate": "test_an_answer_is_that_of_the_run_by_whatever_name",
    "the card says import mora": "test_the_card_of_an_adapter_says_what_loads_it",
    # evaluation
    "an adapter that fits in part": "test_one_that_fits_in_part_or_not_at_all_is_refused",
    "an adapter's own tokenizer": "test_the_adapters_own_tokenizer_is_used",
    "a model with few positions": "test_it_is_scored_to_the_end_and_said_first",
    "a tokenizer that appends EOS": "test_prompts_of_an_evaluation_do_not_end",
    "llama_1b3 in a plan": "test_the_measured_1b3_shape_is_found_by_its_name_in_configs",
    # installing
    "pip fetches somebody else's package": "test_no_text_asks_pip_for_a_name_that_is_not_meant",
}


@pytest.fixture(scope="module")
def names():
    return {
        name for path in TESTS.rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }


@pytest.mark.parametrize("point", SHOWN_BY)
def test_the_test_that_shows_it_is_there(point, names):
    assert SHOWN_BY[point] in names
