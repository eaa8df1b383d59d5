"""The cache of the compiled search: trusted only where it is ours, mended when it is broken.

What is compiled once per machine is copied into folders of the tests; nothing is compiled here.
"""

import os
import subprocess
import sys
import time

import pytest

from vecstore.ann import compiled
from vecstore.ann.compiled import Finder


@pytest.fixture(scope="session")
def kept():
    """The bytes of the compiled search, from the user's cache if it was ever compiled here."""
    done = compiled.compile_now()
    assert done.folder is not None
    return (done.folder / "search").read_bytes()


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty folder of caches."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def finder(home):
    return Finder()


@pytest.fixture
def started(monkeypatch):
    """Processes that would have been started to compile."""
    calls = []
    monkeypatch.setattr(compiled, "_start_compiling", lambda: calls.append(time.time()) or True)
    return calls


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(compiled, "SECONDS_BETWEEN_LOOKS", 0.0)


def place(finder, payload):
    """Put a file where the compiled search is kept, as if it had been compiled here."""
    compiled.cache_folder().mkdir(parents=True, mode=0o700)
    file = compiled.cache_folder() / "search"
    file.write_bytes(payload)
    file.chmod(0o600)
    return file


def test_what_is_kept_is_loaded(finder, kept, started):
    place(finder, kept)

    assert finder.ready() is not None
    assert finder.ready() is finder.ready()
    assert finder.state == "compiled"
    assert not started


def test_while_there_is_none_one_process_compiles(finder, started, impatient):
    assert finder.state == "numpy"
    assert [finder.ready() for _ in range(3)] == [None, None, None]
    assert finder.state == "compiling"
    assert len(started) == 1


def test_what_another_process_compiled_is_found(finder, kept, started, impatient):
    assert finder.ready() is None
    (compiled.cache_folder() / "search").write_bytes(kept)

    assert finder.ready() is not None


def test_looks_are_rare(finder, kept, started, monkeypatch):
    monkeypatch.setattr(compiled, "SECONDS_BETWEEN_LOOKS", 1000.0)
    assert finder.ready() is None
    (compiled.cache_folder() / "search").write_bytes(kept)

    assert finder.ready() is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: b"",
        lambda value: value[:31],
        lambda value: value[: len(value) // 2],
        lambda value: value + b"\0",
        lambda value: value[:9000] + bytes([value[9000] ^ 1]) + value[9001:],
        lambda value: b"not a pickle",
        lambda value: compiled._digest(b"not a pickle") + b"not a pickle",
    ],
    ids=["empty", "no digest", "half", "longer", "a flipped bit", "text", "text with a digest"],
)
def test_a_broken_file_is_compiled_again(finder, kept, started, damage):
    file = place(finder, damage(kept))

    assert finder.ready() is None
    assert finder.state == "compiling"
    assert len(started) == 1
    assert not file.exists()


def test_a_file_for_another_processor_is_compiled_again(finder, kept, started, monkeypatch):
    place(finder, kept)
    monkeypatch.setattr(compiled._Store, "_key", lambda *parts: ("another",))

    assert finder.ready() is None
    assert len(started) == 1


def test_compiling_again_only_loads(finder, kept):
    place(finder, kept)

    with compiled._Folder.opened(compiled.cache_folder()) as folder:
        store = finder.compile(folder)

    assert store.hit
    assert store.kept
    assert finder.ready() is finder.kernel is not None


def test_what_old_versions_compiled_is_removed(home, finder, kept, tmp_path):
    place(finder, kept)
    now, caches = time.time(), compiled.cache_folder().parent
    ages = {"kernels-old": 100, "kernels-new": 80, "others-old": 100}
    for name, days in ages.items():
        (caches / name).mkdir()
        (caches / name / "search").write_bytes(b"")
        os.utime(caches / name, (now - days * 86_400,) * 2)
    (tmp_path / "elsewhere").mkdir()
    (caches / "kernels-link").symlink_to(tmp_path / "elsewhere")
    os.utime(caches / "kernels-link", (0, 0), follow_symlinks=False)
    os.utime(compiled.cache_folder(), (0, 0))

    compiled._remove_old(compiled.cache_folder())

    left = {path.name for path in caches.iterdir()}
    assert left == {compiled.cache_folder().name, "kernels-new", "others-old", "kernels-link"}
    assert (tmp_path / "elsewhere").exists()


# Whom to trust


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_can_write_to_is_not_used(finder, kept, started, mode):
    place(finder, kept)
    compiled.cache_folder().chmod(mode)

    assert finder.ready() is None
    assert finder.state == "numpy"
    assert not started


def test_a_file_that_others_can_write_to_is_not_used(finder, kept, started):
    place(finder, kept).chmod(0o666)

    assert finder.ready() is None


def test_a_folder_of_another_user_is_not_used(finder, kept, started, monkeypatch):
    place(finder, kept)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

    assert finder.ready() is None
    assert not started


@pytest.mark.parametrize("what", ["folder", "search"])
def test_links_are_not_followed(finder, kept, started, what, tmp_path):
    file = place(finder, kept)
    target = compiled.cache_folder() if what == "folder" else file
    moved = target.rename(tmp_path / "elsewhere")
    target.symlink_to(moved)

    assert finder.ready() is None


def test_the_folder_is_made_for_its_user_alone(finder, started):
    finder.ready()

    assert compiled.cache_folder().stat().st_mode & 0o777 == 0o700


def test_a_home_that_is_a_file_means_no_cache(home, started, monkeypatch):
    (home / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "file"))
    finder = Finder()

    assert finder.ready() is None
    assert finder.state == "numpy"
    assert not started


def test_a_relative_cache_home_is_passed_over(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert compiled.cache_home() == tmp_path / ".cache"


@pytest.mark.parametrize("part", ["source", "numba", "processor"])
def test_the_folder_depends_on_all_that_the_code_does(monkeypatch, part):
    before = compiled._version()
    if part == "source":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: _Spec())
    elif part == "numba":
        monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    else:
        monkeypatch.setattr(compiled, "_processor", lambda: "flags: none")
    compiled._version.cache_clear()

    after = compiled._version()

    monkeypatch.undo()
    compiled._version.cache_clear()
    assert after != before == compiled._version()


class _Spec:
    name, loader = "vecstore.kernels", property(lambda self: self)

    def get_source(self, name):
        return "another"


# Who compiles


LOCKED = """
import fcntl, pathlib, sys, time
with open(sys.argv[1], "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_nobody_is_started_while_another_process_compiles(finder, kept, started, impatient):
    compiled.cache_folder().mkdir(parents=True, mode=0o700)
    command = [sys.executable, "-c", LOCKED, str(compiled.cache_folder() / "lock")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        assert finder.ready() is None
        assert finder.state == "compiling"
        (compiled.cache_folder() / "search").write_bytes(kept)
        other.stdin.close()

    assert finder.ready() is not None
    assert not started


def test_an_attempt_that_failed_is_not_repeated_at_once(finder, started, impatient):
    compiled.cache_folder().mkdir(parents=True, mode=0o700)
    lock = compiled.cache_folder() / "lock"
    lock.touch()

    assert finder.ready() is None
    assert finder.state == "numpy"

    old = time.time() - compiled.SECONDS_TO_RETRY - 1
    os.utime(lock, (old, old))

    assert Finder().ready() is None
    assert len(started) == 1


def test_a_process_that_comes_to_nothing_is_given_up(finder, started, impatient):
    assert finder.ready() is None
    assert finder.state == "compiling"
    # The clock of a file system is a few milliseconds behind.
    time.sleep(0.05)
    (compiled.cache_folder() / "lock").touch()

    assert finder.ready() is None
    assert finder.state == "numpy"


def test_a_process_that_never_begins_is_given_up(finder, started, impatient, monkeypatch):
    monkeypatch.setattr(compiled, "SECONDS_TO_START", 0.0)
    assert finder.ready() is None
    assert finder.ready() is None

    assert finder.state == "numpy"


@pytest.mark.parametrize("program", ["", None, "/usr/sbin/uwsgi", "/nowhere/python3"])
def test_no_python_no_process(finder, monkeypatch, program):
    monkeypatch.setattr(sys, "executable", program)

    assert finder.ready() is None
    assert finder.state == "numpy"


def test_a_frozen_program_starts_nothing(finder, monkeypatch):
    monkeypatch.setattr(sys, "frozen", True, raising=False)

    assert finder.ready() is None
    assert finder.state == "numpy"


def test_the_process_runs_by_itself(home, monkeypatch):
    monkeypatch.setattr(
        compiled, "_PROGRAM", compiled._PROGRAM.split(";")[0] + "; open(sys.argv[-1], 'w').close()"
    )
    mark = home / "mark"
    monkeypatch.setattr(sys, "path", [*sys.path, str(home)])
    monkeypatch.setattr(compiled, "__file__", str(mark / "vecstore/ann/compiled.py"))

    assert compiled._start_compiling()

    for _ in range(500):
        if mark.exists():
            break
        time.sleep(0.02)
    assert mark.exists()


def test_the_process_compiles_into_the_cache(home, kept, run_python, finder):
    # Where it is there already it only has to be found.
    file = place(finder, kept)

    here = compiled._PROGRAM.replace("os.fork() and os._exit(0); os.nice(10);", "")
    run_python(here, *sys.path)

    assert file.read_bytes() == kept


# At the edges


def test_a_search_by_numpy_imports_no_numba(run_python, home):
    found = run_python("""
        import sys
        from vecstore.ann import compiled
        compiled._start_compiling = lambda: True
        assert compiled.ready() is None
        print("numba" in sys.modules, compiled.state())
    """)

    assert found.split() == ["False", "compiling"]


def test_without_a_jit_there_is_an_error_of_ours(run_python, home, monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")

    found = run_python("""
        import vecstore.errors
        from vecstore.ann import compiled
        try:
            compiled.compile_now()
        except vecstore.errors.VecstoreError as error:
            print(error)
    """)

    assert found.startswith("the search cannot be compiled here: ")


def test_a_fork_in_the_middle_of_a_look_leaves_no_lock(finder, kept):
    place(finder, kept)
    finder._lock.acquire()
    assert finder.ready() is None

    finder.forked()

    assert finder.ready() is not None


def test_a_full_disk_costs_no_answer(finder, kept, monkeypatch):
    place(finder, kept)
    store = compiled._Store("search", None, may_compile=True)

    class Full:
        def write(self, name, payload):
            raise OSError(28, "No space left on device")

    store._folder = Full()
    result = next(iter(compiled.compile_now().kernels["search"].overloads.values()))
    store.save_overload(result.signature, _Result(result))

    assert not store.kept


class _Result:
    def __init__(self, result):
        self.codegen = result.library.codegen

    def _reduce(self):
        return ()
