"""dev.py: one command on a fresh machine, and at once on the second call."""

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import dev

ROOT = Path(__file__).parent.parent


@pytest.fixture
def project(tmp_path, monkeypatch):
    """dev.py set to work in an empty folder, with every command it would run recorded and none run."""
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    venv = tmp_path / ".venv"
    monkeypatch.setattr(dev, "PROJECT", tmp_path)
    monkeypatch.setattr(dev, "VENV", venv)
    monkeypatch.setattr(dev, "PYTHON", venv / "bin" / "python")
    monkeypatch.setattr(dev, "STAMP", venv / "stamp.json")
    monkeypatch.setattr(dev, "LOCK", tmp_path / ".venv.lock")
    monkeypatch.setattr(dev, "uv", str)
    monkeypatch.setattr(dev, "run", FakeMachine(venv))
    return tmp_path


class FakeMachine:
    """A machine that may lack ensurepip, or pip. As the real one, it leaves a half-made venv behind where ensurepip is missing."""

    def __init__(self, venv: Path) -> None:
        self.venv = venv
        self.has_ensurepip = True
        self.has_pip = True
        self.has_uv = False
        self.network = True
        self.commands = []

    def __call__(self, command):
        words = [Path(word).name if word.startswith("/") else word for word in command]
        words[0] = "system" if command[0] == sys.executable else words[0]
        self.commands.append(" ".join(words))
        return subprocess.CompletedProcess(command, 0 if self.succeeds(command) else 1, stdout="what it said")

    def succeeds(self, command) -> bool:
        in_venv = command[0].startswith(str(self.venv))
        if "--version" in command:
            return (self.venv / "bin" / "pip").exists() if in_venv else self.has_pip
        if "venv" in command:
            (self.venv / "bin").mkdir(parents=True)
            if "--without-pip" not in command and "/uv" not in command[0]:
                if not self.has_ensurepip:
                    return False
                (self.venv / "bin" / "pip").touch()
            (self.venv / "bin" / "python").symlink_to(sys.executable)
            return True
        return self.network

    @property
    def did(self) -> list[str]:
        return [command for command in self.commands if "--version" not in command]


# Setting up


def test_a_fresh_machine_gets_a_venv_and_an_editable_install(project):
    dev.set_up(["test"])
    assert dev.run.did == ["system -m venv .venv", "python -m pip install --quiet --editable .[test]"]


def test_a_second_call_runs_nothing(project):
    dev.set_up(["test"])
    dev.run.commands.clear()
    dev.set_up(["test"])
    dev.set_up()
    assert dev.run.commands == []


def test_another_extra_is_added_to_those_that_are_there(project):
    dev.set_up(["test"])
    dev.run.commands.clear()
    dev.set_up(["lint"])
    assert dev.run.did == ["python -m pip install --quiet --editable .[lint,test]"]
    dev.run.commands.clear()
    dev.set_up(["test", "lint"])
    assert dev.run.commands == []


def test_a_change_of_pyproject_installs_again_into_the_same_venv(project):
    dev.set_up()
    (project / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    dev.run.commands.clear()
    dev.set_up()
    assert dev.run.did == ["python -m pip install --quiet --editable ."]


def test_another_python_makes_the_venv_anew(project, monkeypatch):
    dev.set_up()
    monkeypatch.setattr(dev.sys, "version_info", (3, 99, 0))
    dev.run.commands.clear()
    dev.set_up()
    assert dev.run.did[0] == "system -m venv .venv"


def test_a_venv_that_was_moved_or_whose_python_has_gone_is_made_anew(project):
    dev.set_up()
    dev.PYTHON.unlink()
    assert dev.read_stamp() is None
    here = dev.Stamp(python="3.11", venv="/here", pyproject="x", extras=())
    there = dev.Stamp(python="3.11", venv="/there", pyproject="x", extras=())
    assert dev.missing(here, there) == "everything"


def test_a_first_set_up_that_was_cut_short_is_made_anew(project):
    dev.run.network = False
    with pytest.raises(dev.CannotSetUp):
        dev.set_up()
    dev.run.network = True
    dev.run.commands.clear()
    dev.set_up()
    assert dev.run.did[0] == "system -m venv .venv"


def test_an_update_that_fails_is_tried_again_in_the_venv_that_is_there(project):
    dev.set_up()
    dev.run.network = False
    for _ in range(2):
        dev.run.commands.clear()
        with pytest.raises(dev.CannotSetUp):
            dev.set_up(["test"])
        assert dev.run.did == ["python -m pip install --quiet --editable .[test]"]


def test_without_ensurepip_the_venv_borrows_pip(project):
    dev.run.has_ensurepip = False
    dev.set_up()
    assert dev.run.did == [
        "system -m venv .venv",
        "system -m venv --without-pip .venv",
        "system -m pip --python python install --quiet --editable .",
    ]


def test_without_ensurepip_and_pip_it_says_what_to_do_and_leaves_nothing(project):
    dev.run.has_ensurepip = dev.run.has_pip = False
    with pytest.raises(dev.CannotSetUp, match="apt install python3-venv") as error:
        dev.set_up()
    assert "what it said" in str(error.value)
    assert not dev.VENV.exists()


def test_a_uv_on_path_is_used_and_pip_where_it_fails(project, monkeypatch):
    monkeypatch.setattr(dev, "uv", lambda: "/usr/bin/uv")
    dev.run.network = False
    with pytest.raises(dev.CannotSetUp):
        dev.set_up()
    made, *installs = dev.run.did
    assert made.startswith("uv venv")
    assert [install.split()[0] for install in installs] == ["uv", "system"]


def test_an_installation_that_fails_shows_what_pip_said(project):
    dev.run.network = False
    with pytest.raises(dev.CannotSetUp, match="what it said"):
        dev.set_up()


def test_two_set_ups_at_once_make_one_venv(project):
    release, entered = threading.Event(), threading.Event()
    machine = dev.run

    def slow(command):
        entered.set()
        assert release.wait(10)
        return machine(command)

    dev.run = slow
    first = threading.Thread(target=dev.set_up)
    second = threading.Thread(target=dev.set_up)
    first.start()
    assert entered.wait(10)
    second.start()
    release.set()
    first.join()
    second.join()
    assert len(machine.did) == 2  # one venv, one install


def test_a_persons_pip_settings_cannot_send_packages_elsewhere(monkeypatch):
    monkeypatch.setenv("PIP_TARGET", "/elsewhere")
    monkeypatch.setenv("PIP_USER", "1")
    seen = dev.run(
        [sys.executable, "-c", "import os; print(os.environ.get('PIP_TARGET'), os.environ['PIP_USER'])"]
    )
    assert seen.stdout.split() == ["None", "0"]


# The command line


@pytest.mark.parametrize(
    ("rest", "processes"),
    [
        ([], "3"),
        (["-k", "claim"], "3"),
        (["tests/core"], "0"),
        (["-q", "tests/core/test_core.py::test_x", "tests/core"], "0"),
        (["tests/core", "tests/store"], "3"),
    ],
)
def test_the_core_s_tests_alone_take_one_process(rest, processes):
    assert dev.processes_for(rest) == processes


def test_what_dev_does_not_know_goes_to_pytest_in_order():
    arguments, rest = dev.parse(["test", "--fast", "-x", "tests/store", "-k", "claim or archive", "--lf"])
    assert arguments.fast
    assert rest == ["-x", "tests/store", "-k", "claim or archive", "--lf"]
    assert dev.pytest_arguments(True, "2", rest) == [
        "-n",
        "2",
        "--dist",
        "worksteal",
        "-m",
        "not slow",
        *rest,
    ]


def test_the_number_of_pytest_processes_can_be_chosen():
    arguments, rest = dev.parse(["test", "-n", "0", "--pdb"])
    assert dev.pytest_arguments(arguments.fast, arguments.n, rest) == [
        "-n",
        "0",
        "--dist",
        "worksteal",
        "--pdb",
    ]


@pytest.mark.parametrize("command", [["demo"], ["load"], ["run", "simulate"]])
def test_options_go_to_the_program_even_help(command):
    _, rest = dev.parse([*command, "--workers", "4", "--help"])
    assert rest == ["--workers", "4", "--help"]


@pytest.mark.parametrize(
    "command", [["lint", "--fast"], ["docs", "--fast"], ["setup", "--fast"], ["nothing"], []]
)
def test_what_makes_no_sense_is_a_usage_error(command, capsys):
    with pytest.raises(SystemExit) as error:
        dev.parse(command)
    assert error.value.code == 2
    assert "usage: dev.py" in capsys.readouterr().err


def test_run_knows_programs_of_the_suite_then_installed_ones_then_scripts(project):
    dev.set_up()
    assert dev.program("simulate") == [dev.PYTHON, "-m", "tests.simulation"]
    assert dev.program("pip") == [dev.VENV / "bin" / "pip"]
    assert dev.program("my_script.py") == [dev.PYTHON, "my_script.py"]


def test_help_needs_no_set_up(tmp_path):
    shutil.copy(ROOT / "dev.py", tmp_path)
    said = subprocess.run([sys.executable, "dev.py", "--help"], cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0
    for command in ("setup", "demo", "test", "lint", "docs", "load", "run"):
        assert f"\n    {command} " in said.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["dev.py"]


# The documentation


@pytest.fixture
def mkdocs(project, monkeypatch):
    """What dev.py calls MkDocs with, which succeeds."""
    calls = []
    monkeypatch.chdir(project)
    monkeypatch.setattr(dev, "SITE", project / "site")
    monkeypatch.setenv("NO_MKDOCS_2_WARNING", "")
    monkeypatch.setattr(dev.subprocess, "call", lambda words, **how: calls.append(words[1:]) or 0)
    monkeypatch.setattr(dev, "become", lambda *words: calls.append([*words[1:]]) or sys.exit())
    return calls


def test_the_documentation_is_built_strictly_and_its_place_is_said(project, mkdocs, capsys):
    assert dev.main(["docs"]) == 0
    assert mkdocs[-1] == ["-m", "mkdocs", "build", "--strict"]
    assert f"{project / 'site' / 'index.html'}\n" in capsys.readouterr().out
    assert dev.run.did[-1].endswith(".[docs]")


def test_the_documentation_is_served_strictly(mkdocs):
    with pytest.raises(SystemExit):
        dev.main(["docs", "--serve"])
    assert mkdocs[-1] == ["-m", "mkdocs", "serve", "--strict"]


def test_a_build_that_fails_says_no_place(mkdocs, monkeypatch, capsys):
    monkeypatch.setattr(dev.subprocess, "call", lambda words, **how: "mkdocs" in words)
    assert dev.main(["docs"]) == 1
    assert "site" not in capsys.readouterr().out


# The right Python


def test_an_old_python_gives_one_clear_line(monkeypatch):
    monkeypatch.setattr(dev.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(dev.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit) as error:
        dev.use_a_python_new_enough(["demo"])
    assert "3.11 or newer" in error.value.code
    assert "is 3.9.2" in error.value.code
    assert "\n" not in error.value.code


def test_an_old_python_hands_over_to_a_newer_one_on_path_that_works(monkeypatch):
    became = []
    monkeypatch.setattr(dev.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(dev.shutil, "which", lambda name: f"/shims/{name}")
    monkeypatch.setattr(dev, "new_enough", lambda python: python == "/shims/python3.12")
    monkeypatch.setattr(dev.os, "execv", lambda *call: became.append(call) or sys.exit())
    with pytest.raises(SystemExit):
        dev.use_a_python_new_enough(["demo", "--once"])
    assert became == [("/shims/python3.12", ["/shims/python3.12", str(ROOT / "dev.py"), "demo", "--once"])]


def test_a_shim_that_fails_is_not_new_enough(tmp_path):
    shim = tmp_path / "python3.13"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    assert not dev.new_enough(str(shim))
    assert dev.new_enough(sys.executable)


# A second Python


@pytest.fixture
def pythons(tmp_path, monkeypatch):
    """A machine with no Python but the one that runs dev.py, and a function that puts one on it."""

    def add(version, works=True, pyenv=True):
        folder = tmp_path / "versions" / version / "bin" if pyenv else tmp_path / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        minor = version.rpartition(".")[0]
        program = folder / ("python" if pyenv else f"python{minor}")
        program.write_text(f"#!/bin/sh\necho {version}\n" if works else "#!/bin/sh\nexit 127\n")
        program.chmod(0o755)
        return str(program)

    monkeypatch.setenv("PYENV_ROOT", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(sys, "version_info", (3, 11, 7))
    return add


def test_the_newest_python_is_found_on_path_and_among_pyenv_s(pythons):
    assert dev.newest_python() == ("3.11.7", sys.executable)
    pythons("3.12.1")
    pythons("3.12.9")
    assert dev.newest_python()[0] == "3.12.9", "the newest patch of it"
    pythons("3.14.0")
    assert dev.newest_python()[0] == "3.12.9", "3.14 is not supported"
    of_pyenv = pythons("3.13.0")
    assert dev.newest_python() == ("3.13.0", of_pyenv)
    on_path = pythons("3.13.2", pyenv=False)
    assert dev.newest_python() == ("3.13.2", on_path)


def test_a_python_that_does_not_run_is_passed_over(pythons):
    pythons("3.13.2", works=False, pyenv=False)
    assert dev.newest_python() == ("3.11.7", sys.executable)
    of_pyenv = pythons("3.13.0")
    assert dev.newest_python() == ("3.13.0", of_pyenv)


def test_where_the_newest_python_runs_us_nothing_more_is_run(pythons, capsys, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 13, 0))
    pythons("3.13.5")
    assert dev.main(["test", "--newest-python", "--fast"]) == 0
    assert "The newest supported Python here is 3.13.0, which runs dev.py" in capsys.readouterr().out
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    assert dev.newest_python() == ("3.13.5", dev.pythons_of("3.13")[0])


def test_the_newest_python_gets_a_venv_of_its_own(pythons, capsys, monkeypatch):
    python = pythons("3.13.0")
    became = []
    monkeypatch.setattr(dev, "become", lambda *words: became.append([*map(str, words)]))
    monkeypatch.setenv(dev.VENV_VARIABLE, ".venv")
    dev.main(["test", "--newest-python", "--fast", "-n", "1", "-k", "codec"])
    assert became == [[python, str(ROOT / "dev.py"), "test", "--fast", "-n", "1", "-k", "codec"]]
    assert dev.os.environ[dev.VENV_VARIABLE] == ".venv-3.13"
    assert f"The newest supported Python here is 3.13.0: {python}" in capsys.readouterr().out


def test_the_venv_s_folder_can_be_named():
    script = "import dev; print(dev.VENV, dev.PYTHON, dev.STAMP, dev.LOCK, sep='\\n')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={dev.VENV_VARIABLE: ".venv-3.13", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    venv = ROOT / ".venv-3.13"
    paths = [venv, venv / "bin" / "python", venv / "pgqrs-dev.json", ROOT / ".venv-3.13.lock"]
    assert done.stdout.split() == [str(path) for path in paths], done.stderr
