"""The processes of one run, started on this machine and connected over the loopback."""

import contextlib
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Group:
    """The command in several processes, with the output of each in a file.

    `flags` go to all of them, `last` to the last one, `settings` to the environment, and `code`,
    by the index of a process, runs before the command.
    """

    def __init__(self, workdir, number, *flags, last=(), code=None, **settings):
        place = [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={number}"]
        self.outputs = [workdir.with_name(f"{workdir.name}.{index}") for index in range(number)]
        self.processes = []
        for index, output in enumerate(self.outputs):
            command = [
                sys.executable, "main.py", "--config=tests/faults/small.py", *flags,
                f"--workdir={workdir}", *([*place, f"--process_id={index}"] if number > 1 else []),
                *(last if index == number - 1 else []),
            ]  # fmt: skip
            environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""} | settings
            if code and index in code:
                folder = output.with_suffix(f".{index}.site")
                folder.mkdir(exist_ok=True)
                (folder / "sitecustomize.py").write_text(code[index])
                environment["PYTHONPATH"] = f"{folder}{os.pathsep}{ROOT}"
            with output.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
                    )
                )

    def text(self):
        return "\n".join(output.read_text() for output in self.outputs)

    def lines(self, index):
        """Return what a process has printed, without gloo's own lines."""
        lines = self.outputs[index].read_text().splitlines()
        return [line for line in lines if not line.startswith("[Gloo]")]

    def alive(self):
        return all(process.poll() is None for process in self.processes)

    def wait(self, timeout=300):
        """Return the exit statuses."""
        return [process.wait(timeout) for process in self.processes]

    def finish(self):
        """Wait for a good end."""
        assert set(self.wait()) == {0}, self.text()
        assert "Traceback" not in self.text()

    def wait_for(self, pattern, timeout=300):
        """Return once process 0 has printed a pattern."""
        end = time.monotonic() + timeout
        while not re.search(pattern, self.outputs[0].read_text(), re.MULTILINE):
            assert time.monotonic() < end and self.alive(), self.text()
            time.sleep(0.05)

    def send(self, index, number):
        with contextlib.suppress(ProcessLookupError):
            self.processes[index].send_signal(number)

    def kill(self):
        """End what is left."""
        for process in self.processes:
            process.kill()
        self.wait()
