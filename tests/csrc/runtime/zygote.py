"""Runs pieces of Python, each in a fork of this process, which has imported torch and ftrt._C.

The driver and NVRTC are opened once a process, and which one depends on the environment; so each
piece needs a process of its own, and a fork spares it the seconds of the imports. Reads one JSON
line a request, {"code", "environment"}, and answers with one, {"status", "result", "output"}: how
the fork ended (as os.waitstatus_to_exitcode says it), what the code left in `result`, and what it
printed.
"""

import json
import os
import sys
import tempfile
import traceback

from ftrt.kernels import runtime
from ftrt.kernels.native import native

NAMES = {"native": native(), "runtime": runtime}


def fork(request, answer, output):
    """Run the code in a child; returns its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    os.environ.update(request["environment"])
    status = 1
    try:
        names = dict(NAMES)
        exec(compile(request["code"], "<test>", "exec"), names)
        answer.write(json.dumps(names.get("result")))
        answer.flush()
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main():
    for line in sys.stdin:
        with tempfile.TemporaryFile("w+") as answer, tempfile.TemporaryFile("w+") as output:
            status = fork(json.loads(line), answer, output)
            answer.seek(0)
            output.seek(0)
            result = json.loads(answer.read() or "null")
            print(json.dumps({"status": status, "result": result, "output": output.read()}))
            sys.stdout.flush()


if __name__ == "__main__":
    main()
