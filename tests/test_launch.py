"""Where a process finds its place among several."""

import pytest

from resnet_cifar.errors import UserError
from resnet_cifar.launch import Launch, find_launch

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[3-4]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
OPENMPI = {f"OMPI_COMM_WORLD_{name}": value for name, value in
           {"SIZE": "2", "RANK": "1", "LOCAL_RANK": "0"}.items()}  # fmt: skip
ORTE = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:5"}


@pytest.mark.parametrize(
    ("flags", "environment", "launch"),
    [
        (("", None, None), {}, None),
        (("a:1", 2, 0), {}, Launch("a:1", 2, 0)),
        (("", None, None), SLURM, Launch("", 8, 5, 1)),
        (("a:1", None, None), SLURM, Launch("a:1", 8, 5, 1)),
        (("", 1, None), SLURM, None),
        (("", None, None), SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        (("", None, None), {k: v for k, v in SLURM.items() if "STEP" not in k}, None),
        (("", None, None), OPENMPI | ORTE, Launch("", 2, 1, 0)),
        (("a:1", None, None), OPENMPI, Launch("a:1", 2, 1, 0)),
        (("", None, None), {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),
    ],
)
def test_flags_and_launchers_place_a_process(flags, environment, launch):
    assert find_launch(*flags, environment) == launch


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (("a:1", 2, None), {}, "belong together: give all three"),
        (("a:1", None, None), {}, "belong together"),
        (("a:1", 2, 2), {}, "--process_id=2 is out of range: 2 processes have the numbers 0 to 1"),
        (("a", 2, 0), {}, "--coordinator=a must be HOST:PORT"),
        (("", 2, 0), {}, "--coordinator= must be HOST:PORT"),
        (("", None, None), OPENMPI, "--coordinator= must be HOST:PORT"),
    ],
)
def test_incomplete_places_are_refused(flags, environment, message):
    with pytest.raises(UserError, match=message):
        find_launch(*flags, environment)
