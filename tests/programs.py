"""Processes of their own without the seconds that the imports take: forked from a server that has them done."""

import io
import multiprocessing
import os
import runpy
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from keepfit_clip.cli import main
from keepfit_clip.cli.console import console

forkserver = multiprocessing.get_context("forkserver")  # one server per process of pytest, begun when first asked
forkserver.set_forkserver_preload(["keepfit_clip.training.main", "tests.programs"])


class Program:
    """`python -m MODULE WORDS` as a real process that can be killed; what it says goes to a file."""

    def __init__(self, module, words, environment=None):
        number, name = tempfile.mkstemp(prefix="program-", suffix=".log")  # a pipe that nobody reads would stop it
        os.close(number)
        self.output = Path(name)
        self._process = forkserver.Process(target=_run_module, args=(module, list(words), name, environment))
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        assert self._process.exitcode is not None, "the program does not come to an end"


def _run_module(module, words, output, environment):
    import torch

    torch.set_num_threads(1)
    with open(output, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment or {})
    multiprocessing.set_start_method("fork", force=True)  # of workers, as in a program begun by hand
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def call(*words):
    """`keepfit-clip WORDS` in this process, as the console script calls it: returncode, stdout and stderr."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with mock.patch.object(sys, "argv", ["keepfit-clip", *map(str, words)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        except Exception as error:  # as Python itself would end
            import traceback

            traceback.print_exception(error)
            code = 1
        finally:
            console.stderr = False  # `--json -` ends with its process
    return SimpleNamespace(returncode=code or 0, stdout=out.getvalue(), stderr=err.getvalue())
