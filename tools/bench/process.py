"""Starting a measured process on the first cores of the machine, and waiting for it: its output and its peak memory."""

import os
import subprocess
import tempfile


class Failed(Exception):
    """A side that did not do its job: one line that says why."""


def spawn(options, command, **pipes):
    cores = sorted(os.sched_getaffinity(0))[:options.threads]
    threads = str(options.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "APUS_CACHE": str(options.cache)}
    return subprocess.Popen([str(part) for part in command], env=environment,
                            preexec_fn=lambda: os.sched_setaffinity(0, cores), **pipes)


def wait(process, name, errors=None):
    """Ends well or raises Failed with the last lines of its errors; gives the peak resident size in bytes."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = ""
        if errors is not None:
            errors.seek(0)
            said = "; ".join(line.strip() for line in errors.read().strip().splitlines()[-2:])
        raise Failed(f"{name}: exit {process.returncode}: {said}")
    return usage.ru_maxrss * 1024


def anonymous(process):
    """Bytes of a running process that belong to no file."""
    try:
        with open(f"/proc/{process.pid}/status") as status:
            return next((int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon")), 0)
    except FileNotFoundError:
        return 0


def run(options, command, stdin=None):
    """What a command wrote to standard output, and its peak memory."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        memory = wait(spawn(options, command, stdin=stdin, stdout=output, stderr=errors), command[0], errors)
        output.seek(0)
        return output.read(), memory
