"""The place of a process among several: from flags, or from the launcher that started it."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from resnet_cifar.errors import UserError


class Launch(NamedTuple):
    """The place of this process in a run; an empty coordinator is for JAX to find."""

    coordinator: str
    num_processes: int
    process_id: int
    local_id: int | None = None  # Among a launcher's processes on this machine; None by hand.


def find_launch(
    coordinator: str,
    num_processes: int | None,
    process_id: int | None,
    environment: Mapping[str, str] = os.environ,
) -> Launch | None:
    """Return the place that flags or a launcher give this process; None if it is alone.

    Args:
      coordinator: HOST:PORT of process 0, or "".
      num_processes: of the run; 1 leaves a launcher's process alone.
      process_id: of this process, from 0.
      environment: where SLURM and Open MPI leave theirs.

    Raises:
      UserError: the flags are incomplete or contradict each other.
    """
    if num_processes == 1:
        return None
    by_hand, local_id = num_processes is not None or process_id is not None, None
    if not by_hand and (place := launcher_place(environment)):
        num_processes, process_id, local_id = place
    if num_processes is None or process_id is None:
        if not by_hand and not coordinator:
            return None
        raise UserError(
            "--coordinator, --num_processes and --process_id belong together: give all three, or "
            "start the processes with srun or mpirun"
        )
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} is out of range: {num_processes} processes have the "
            f"numbers 0 to {num_processes - 1}"
        )
    findable = {"SLURM_STEP_NODELIST", "OMPI_MCA_orte_hnp_uri"} & environment.keys()
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdecimal()) and (coordinator or by_hand or not findable):
        raise UserError(
            f"--coordinator={coordinator} must be HOST:PORT, where process 0 runs and a free port "
            "there, such as node1:12345"
        )
    return Launch(coordinator, num_processes, process_id, local_id)


def launcher_place(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """Return the processes, the number of this one, and its number on this machine.

    They are those of SLURM's srun or of Open MPI; None if neither started several processes.
    """
    slurm = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    openmpi = ("SIZE", "RANK", "LOCAL_RANK")
    for names in (slurm, tuple(f"OMPI_COMM_WORLD_{name}" for name in openmpi)):
        # A batch script has some of SLURM's, but the list of nodes only within srun.
        needed = {*names, *(["SLURM_STEP_NODELIST"] if names == slurm else [])}
        if needed <= environment.keys() and int(environment[names[0]]) > 1:
            return tuple(int(environment[name]) for name in names)
    return None
