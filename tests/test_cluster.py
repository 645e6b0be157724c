"""What a process knows about the others."""

import pytest

from maskdino_jax.cluster import Membership, membership


def test_a_process_without_a_launcher_is_alone():
    assert membership(None, None, None, {}) is None
    assert membership(None, None, None, {"SLURM_NTASKS": "1", "OMPI_COMM_WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize("launcher", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_launchers_that_jax_knows_are_left_to_it(launcher):
    assert membership(None, None, None, {launcher: "4"}) == Membership()


def test_flags_go_before_the_environment():
    environment = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert membership(None, None, None, environment) == Membership(coordinator="a:1", count=4, index=3)
    assert membership("b:2", 2, 0, environment) == Membership(coordinator="b:2", count=2, index=0)


def test_an_indexed_kubernetes_job_names_the_index():
    environment = {"JAX_COORDINATOR_ADDRESS": "job-0:1234", "JAX_NUM_PROCESSES": "2", "JOB_COMPLETION_INDEX": "1"}
    assert membership(None, None, None, environment) == Membership(coordinator="job-0:1234", count=2, index=1)


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ((None, 2, 0), {}, "need --coordinator=HOST:PORT"),
        (("host", 2, 0), {}, "--coordinator=host: give HOST:PORT"),
        (("host:1", None, 0), {}, "--processes=0 and --process=0: give the number of processes"),
        (("host:1", 2, None), {}, "--process=-1"),
        (("host:1", 2, 2), {}, "--processes=2 and --process=2"),
        ((None, None, None), {"SLURM_NTASKS": "many"}, "SLURM_NTASKS='many' in the environment: give a whole number"),
    ],
)
def test_what_is_missing_is_named(arguments, environment, message):
    with pytest.raises(ValueError, match=message):
        membership(*arguments, environment)
