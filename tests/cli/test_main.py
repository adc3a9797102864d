"""The command line as such: help, exit codes, one line for every error, signals, streams that fail."""
from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import q8c
from q8c.cli import run as run_verb
from q8c.cli.main import VERBS
from tests.cli.support import ROOT, Cli, spawn

NAMES = [module.__name__.rpartition(".")[2] for module in VERBS]
HELP_SECONDS = 0.15
SIGNALLED = "import os, signal, q8c.codegen.parallel as p\np.generate = lambda *a: os.kill(os.getpid(), signal.{})"


def test_help_of_everything(cli: Cli) -> None:
    top = cli.good("--help")
    for name in NAMES:
        assert f"    {name}" in top
        text = cli.good(name, "--help")
        assert text.startswith(f"usage: q8c {name}") and "-v, --verbose" in text
    assert cli.good("--version") == f"q8c {q8c.__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, q8c.cli.main as m; m.parser().format_help(); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"numpy", "llvmlite", "onnx", "onnxruntime", "networkx", "q8c.ir", "logging"} & set(loaded.split())


def test_help_is_instant() -> None:
    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "q8c", "--help"], cwd=ROOT, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert min(once() for _ in range(5)) <= HELP_SECONDS


@pytest.mark.parametrize(("words", "says"), [
    ([], "arguments are required: VERB"),
    (["compil"], "invalid choice: 'compil'"),
    (["run"], "required: model"),
    (["run", "m.q8c", "--bogus"], "unrecognized arguments: --bogus"),
    (["run", "m.q8c", "-t", "0"], "expected an integer of at least 1, got '0'"),
    (["run", "m.q8c", "-t", "999"], "expected at most 256, got '999'"),
    (["run", "m.q8c", "-t", "two"], "expected an integer of at least 1, got 'two'"),
    (["bench", "m.q8c", "-n", "-3"], "expected"),
    (["opt"], "which graph?"),
], ids=str)
def test_wrong_words(cli: Cli, words: list[str], says: str) -> None:
    assert says in cli.bad(2, *words)


@pytest.mark.parametrize("verb", ["run", "inspect", "check", "bench", "verify"])
def test_files_that_are_not_there_or_not_compiled_models(cli: Cli, verb: str, tmp_path: Path) -> None:
    assert "none.q8c" in cli.bad(1, verb, tmp_path / "none.q8c")
    assert "regular file" in cli.bad(1, verb, tmp_path)
    text = tmp_path / "text\nwith a line.q8c"
    text.write_text("hello\n" * 1000)
    assert "not a" in cli.bad(1, verb, text)


def test_an_error_nobody_foresaw_is_one_line_too(cli: Cli, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_verb, "facts", lambda array: 1 // 0)
    assert "internal error: ZeroDivisionError: " in cli.bad(1, "run", compiled, "--json")
    done = cli("run", compiled, "--json", "-vv")
    assert done.code == 1 and "Traceback" in done.err and done.err.endswith("by zero\n")


def test_out_of_memory_is_said(cli: Cli, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(array: object) -> None:
        raise MemoryError
    monkeypatch.setattr(run_verb, "facts", greedy)
    assert "out of memory" in cli.bad(1, "run", compiled, "--json")


@pytest.mark.parametrize(("number", "code", "says"), [(signal.SIGINT, 130, "interrupted"),
                                                      (signal.SIGTERM, 143, "terminated")])
def test_a_signal_while_compiling_leaves_what_was_there(mlp: Path, tmp_path: Path, number: signal.Signals, code: int,
                                                       says: str) -> None:
    output = tmp_path / "m.q8c"
    output.write_bytes(b"before")
    done = spawn("compile", mlp, "-o", output, prelude=SIGNALLED.format(number.name))
    assert (done.returncode, done.stdout, done.stderr) == (code, "", f"q8c: {says}\n")
    assert output.read_bytes() == b"before" and list(tmp_path.iterdir()) == [output]


def test_a_signal_while_writing_leaves_what_was_there(mlp: Path, tmp_path: Path) -> None:
    output = tmp_path / "m.q8c"
    output.write_bytes(b"before")
    prelude = ("import os, signal, q8c.runtime.writer as w\n"
               "w.Writer.image = lambda *a: os.kill(os.getpid(), signal.SIGTERM)")
    done = spawn("compile", mlp, "-o", output, prelude=prelude)
    assert (done.returncode, done.stderr) == (143, "q8c: terminated\n")
    assert output.read_bytes() == b"before" and list(tmp_path.iterdir()) == [output]


def test_a_reader_that_goes_away(compiled: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "q8c", "inspect", "--ir", compiled], stdout=write, cwd=ROOT,
                          stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_full_disk_behind_standard_output(compiled: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "q8c", "inspect", compiled], stdout=full, cwd=ROOT,
                              stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "q8c: No space left on device\n")


def test_names_the_terminal_cannot_print(compiled: Path, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xc3\xa9\xff.q8c"
    os.link(compiled, odd)
    for path in (odd, odd + b"x"):
        done = subprocess.run([sys.executable, "-m", "q8c", "inspect", path], capture_output=True, cwd=ROOT,
                              env=os.environ | {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"})
        assert done.returncode == (0 if path == odd else 1)
        assert b"caf\\xe9\\udcff.q8c" in done.stdout + done.stderr


def test_without_the_compiler_installed(mlp: Path, compiled: Path, tmp_path: Path) -> None:
    """Verbs that compile say how to get it, the others do not need it."""
    prelude = ("import importlib.util as u\nfind = u.find_spec\n"
               "u.find_spec = lambda name, package=None: None if name == 'llvmlite' else find(name, package)\n"
               "sys.modules['llvmlite'] = None")
    for words in (["compile", mlp], ["verify", compiled], ["run", mlp]):
        done = spawn(*words, prelude=prelude)
        assert (done.returncode, done.stderr) == (
            1, "q8c: compiling needs llvmlite, not installed here: pip install 'q8c[compile]'\n")
    for words in (["run", compiled], ["inspect", compiled], ["bench", compiled, "-n", "2"]):
        done = spawn(*words, prelude=prelude)
        assert (done.returncode, done.stderr) == (0, "")
