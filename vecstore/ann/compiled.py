"""Are the kernels compiled? Compiling them once per machine, and finding them again.

Compiling takes many seconds, so that nobody waits for it: the first process that wants a compiled
kernel starts a process that compiles all, and numpy answers until it is done. What was compiled
lies in a folder named after all that it depends on, a file for each kernel. It is a pickle, and
loading a foreign one runs its code: a folder that others can write to is not used at all.

numba is imported when there is something to load or to compile, never before.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import platform
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from vecstore.errors import VecstoreError

Kernel = Callable[..., int]
Name = Literal["search", "excerpt", "compare", "compare_rows", "compare_bits"]
State = Literal["compiled", "compiling", "numpy"]
Progress = Callable[[str], object]

# Looking into the folder costs some 20 us.
SECONDS_BETWEEN_LOOKS = 0.05
# Until a new process runs and has forked; and until its child has taken the lock.
SECONDS_TO_FORK, SECONDS_TO_START = 5.0, 20.0
# An attempt that left nothing is not repeated sooner, in whatever process.
SECONDS_TO_RETRY = 600.0
# What numpy compares in the time that it takes to import numba.
ENOUGH = 4 << 30
# What other versions compiled is removed when it is so old; where it is still used it is made anew.
SECONDS_TO_KEEP = 90 * 24 * 3600.0

KERNELS: tuple[Name, ...] = get_args(Name)
_LOCK = "lock"
# Forked away at once: whoever started it has no child to wait for.
_PROGRAM = (
    "import os, sys; os.fork() and os._exit(0); os.nice(10); sys.path[:] = sys.argv[1:];"
    "from vecstore.ann import compiled; compiled.compile_now()"
)


@dataclass(frozen=True, slots=True)
class Compiled:
    """What `compile_now` did.

    Attributes:
        kernels: The compiled functions, in this process.
        folder: Where they are kept; None if only here.
        fresh: Whether one was not there before.
        seconds: How long it took.
    """

    kernels: dict[Name, Kernel]
    folder: Path | None
    fresh: bool
    seconds: float


def compile_now(progress: Progress | None = None) -> Compiled:
    """Compile every kernel, unless that was done before; `progress` is told each step.

    Raises:
        VecstoreError: numba cannot be imported, or cannot compile here.
    """
    say, begun, where = progress or (lambda step: None), time.perf_counter(), cache_folder()
    with _Folder.opened(where) as found, _compiling(found, say):
        say("Compiling")
        stores = {name: finder.compile(found) for name, finder in _finders.items()}
    kept = all(store.kept for store in stores.values())
    if where is not None and kept:
        _remove_old(where)
    fresh = not all(store.hit for store in stores.values())
    kernels = {name: finder.kernel for name, finder in _finders.items() if finder.kernel}
    return Compiled(kernels, where if kept else None, fresh, time.perf_counter() - begun)


def ready(name: Name = "search") -> Kernel | None:
    """A compiled kernel, or None as long as numpy has to answer; compiling has begun then."""
    return _finders[name].ready()


def ready_after(name: Name, size: int) -> Kernel | None:
    """As `ready`, but a kernel that is not loaded is so only where that pays.

    For those with a twin that is hardly slower than importing numba: not before it has dealt with
    ENOUGH bytes. `size` is how many it would deal with now.
    """
    return ready(name) if _finders[name].pays(size) else None


def loaded(name: Name) -> bool:
    """Whether a kernel is here already."""
    return _finders[name].kernel is not None


def state(name: Name = "search") -> State:
    """What `ready` found last."""
    return _finders[name].state


def folder() -> Path | None:
    """The folder that compiled kernels are kept in; None if there is none to be trusted."""
    where = cache_folder()
    with _Folder.opened(where) as found:
        return where if found else None


# Where they are kept


def cache_home() -> Path | None:
    """The user's folder of caches; None if there is none."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    if Path(named).is_absolute():
        return Path(named)
    with contextlib.suppress(RuntimeError):
        return Path.home() / ".cache"
    return None


def cache_folder() -> Path | None:
    """The folder of what was compiled here from this version; None if there is no home for it."""
    home, version = cache_home(), _version()
    return home / "vecstore" / f"kernels-{version}" if home and version else None


def _remove_old(current: Path) -> None:
    """Remove what other versions compiled long ago."""
    import shutil

    for path in current.parent.glob("kernels-*"):
        with contextlib.suppress(OSError):
            old = time.time() - path.lstat().st_mtime > SECONDS_TO_KEEP
            if old and path != current and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)


@functools.cache
def _version() -> str | None:
    """A digest of all that decides what compiling makes, and whether it runs here."""
    # Here and below: what `import vecstore` need not wait for is imported where it is used.
    import importlib.metadata
    from importlib.util import find_spec

    try:
        spec = find_spec("vecstore.kernels")
        source = spec and spec.loader and spec.loader.get_source(spec.name)  # type: ignore[attr-defined]
        versions = [importlib.metadata.version(name) for name in ("numba", "llvmlite")]
    except (ImportError, AttributeError, OSError):
        return None
    if not source:
        return None
    parts = [source, *versions, sys.version, platform.machine(), _processor()]
    return _digest("\0".join(parts).encode()).hex()[:20]


def _digest(data: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(data).digest()


def _processor() -> str:
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open() as lines:
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return ""


class _Folder:
    """A folder that nobody else can write to, held open so that it stays the one looked at."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path | None) -> Iterator[_Folder | None]:
        """Open the folder, which is made if need be; None if it cannot be used."""
        descriptor = None
        with contextlib.suppress(OSError):
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.mkdir(mode=0o700, exist_ok=True)
                descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        if descriptor is None:
            yield None
            return
        try:
            yield cls(descriptor) if _is_ours(os.fstat(descriptor)) else None
        finally:
            os.close(descriptor)

    def open(self, name: str, flags: int) -> int:
        """Open a file of the folder; the descriptor is the caller's to close."""
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, 0o600, dir_fd=self._descriptor)

    def has(self, name: str) -> bool:
        """Whether the folder has such a file."""
        try:
            os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
        except OSError:
            return False
        return True

    def read(self, name: str) -> bytes | None:
        """The payload of a file; None if there is none, or it is not what was written."""
        try:
            with os.fdopen(self.open(name, os.O_RDONLY), "rb") as file:
                if not _is_ours(os.fstat(file.fileno())):
                    return None
                value = file.read()
        except OSError:
            return None
        size = len(_digest(b""))
        # Machine code with a flipped bit would crash, and not raise.
        return value[size:] if _digest(value[size:]) == value[:size] else None

    def write(self, name: str, payload: bytes) -> None:
        """Write a file, all or nothing."""
        unfinished = f"{name}.{os.getpid()}"
        descriptor = self.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_digest(payload) + payload)
            os.replace(unfinished, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        except BaseException:
            self.remove(unfinished)
            raise

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._descriptor)


def _is_ours(found: os.stat_result) -> bool:
    foreign = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return found.st_uid == os.geteuid() and not foreign


# Who compiles: a lock that goes with its process. When it was last taken tells of failed attempts.


@contextlib.contextmanager
def _compiling(folder: _Folder | None, progress: Progress) -> Iterator[None]:
    """Be the only one who compiles; wait for another."""
    with contextlib.ExitStack() as held:
        # Where files cannot be locked, two may compile.
        with contextlib.suppress(OSError):
            if folder is not None:
                lock = folder.open(_LOCK, os.O_RDWR | os.O_CREAT)
                held.callback(os.close, lock)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    progress("Waiting for another process that compiles")
                    fcntl.flock(lock, fcntl.LOCK_EX)
                os.utime(lock)
        yield


def _last_attempt(folder: _Folder) -> tuple[bool, float]:
    """Whether somebody compiles now, and how many seconds ago the last attempt began."""
    try:
        lock = folder.open(_LOCK, os.O_RDWR)
    except OSError:
        return False, float("inf")
    try:
        age = time.time() - os.fstat(lock).st_mtime
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True, age
    except OSError:
        return False, float("inf")
    finally:
        os.close(lock)
    # A clock that was put back says nothing.
    return False, age if age >= 0 else float("inf")


def _start_compiling() -> bool:
    """Start a process that compiles, quietly; return whether it was started."""
    import subprocess

    program = sys.executable or ""
    # A program that embeds Python may give its own name.
    if getattr(sys, "frozen", False) or not Path(program).name.startswith("python"):
        return False
    root = str(Path(__file__).parents[2])
    paths = [path for path in sys.path if Path(path).is_absolute()]
    quiet = subprocess.DEVNULL
    try:
        done = subprocess.run(
            [program, "-I", "-c", _PROGRAM, *paths, root],
            stdin=quiet,
            stdout=quiet,
            stderr=quiet,
            cwd="/",
            start_new_session=True,
            timeout=SECONDS_TO_FORK,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


# numba's side


class _Store:
    """What numba's dispatcher asks of a cache, with one file for the one function it holds."""

    cache_path = None

    def __init__(self, name: Name, folder: _Folder | None, *, may_compile: bool) -> None:
        self.name = name
        self._folder = folder
        self._may_compile = may_compile
        self.hit = False
        self.kept = False

    def load_overload(self, signature: Any, context: Any) -> Any:
        """The compile result, or None; numba compiles then.

        Raises:
            LookupError: There is none, and nothing may be compiled.
        """
        context.refresh()
        # A pickle of another make may raise anything.
        with contextlib.suppress(Exception):
            result = self._load(signature, context)
            self.hit = self.kept = True
            return result
        if not self._may_compile:
            raise LookupError(f"no compiled {self.name} is kept")
        return None

    def _load(self, signature: Any, context: Any) -> Any:
        import pickle

        from numba.core import compiler

        payload = self._folder.read(self.name) if self._folder else None
        if payload is None:
            raise LookupError("nothing is kept")
        key, parts = pickle.loads(payload)
        if key != self._key(signature, context.codegen()):
            raise LookupError("what is kept is for another processor")
        result: Any = compiler.CompileResult
        return result._rebuild(context, *parts)

    def save_overload(self, signature: Any, result: Any) -> None:
        """Keep a compile result, if there is somewhere to keep it."""
        from numba.core import serialize

        pickled: Any = serialize.dumps
        # A full disk costs the next process a compilation, and nobody an answer.
        with contextlib.suppress(OSError):
            if self._folder is not None:
                key = self._key(signature, result.codegen)
                self._folder.write(self.name, pickled((key, result._reduce())))
                self.kept = True

    @staticmethod
    def _key(signature: Any, codegen: Any) -> tuple[Any, ...]:
        return str(signature), codegen.magic_tuple()


def _dispatcher(store: _Store) -> Kernel:
    """A kernel, loaded or compiled."""
    import numba

    from vecstore import kernels

    function = getattr(kernels, store.name)
    dispatcher: Any = numba.njit(nogil=True, fastmath=kernels.FLOAT_MATH)(function)
    dispatcher._cache = store
    dispatcher.compile(kernels.ENTRY)
    # A call with other types is an error, and no reason to compile for half a minute.
    dispatcher.disable_compile()
    kernel: Kernel = dispatcher
    return kernel


def _numba_is_locked() -> bool:
    """Whether another thread compiles, or did so when this process was forked."""
    module = sys.modules.get("numba.core.compiler_lock")
    lock = getattr(getattr(module, "global_compiler_lock", None), "_lock", None)
    if lock is None or not lock.acquire(blocking=False):
        return lock is not None
    lock.release()
    return False


class Finder:
    """Looks for a compiled kernel, and has it compiled. There is one of each per process.

    Attributes:
        name: The kernel's name.
        state: What was found when it was last looked for.
        kernel: The compiled kernel, once it is here.
    """

    def __init__(self, name: Name = "search") -> None:
        self.name = name
        self.state: State = "numpy"
        self.kernel: Kernel | None = None
        self._lock = threading.Lock()
        self._next_look = 0.0
        self._started: float | None = None
        self._hopeless = False
        # Bytes that its twin has dealt with meanwhile.
        self._passed = 0

    def ready(self) -> Kernel | None:
        """As the function of that name."""
        if self.kernel is not None or self._hopeless or time.monotonic() < self._next_look:
            return self.kernel
        # Who finds another thread looking, or importing numba, answers with numpy.
        if not self._lock.acquire(blocking=False):
            return None
        try:
            with _Folder.opened(cache_folder()) as folder:
                self.state = self._look(folder)
            self._next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS
        finally:
            self._lock.release()
        return self.kernel

    def pays(self, size: int) -> bool:
        """Whether the kernel is here, or its twin has dealt with enough bytes without it."""
        if self.kernel is None:
            self._passed += size
        return self.kernel is not None or self._passed >= ENOUGH

    def compile(self, folder: _Folder | None) -> _Store:
        """Compile the kernel, unless that was done before; return where it was looked for.

        Raises:
            VecstoreError: numba cannot be imported, or cannot compile here.
        """
        store = _Store(self.name, folder, may_compile=True)
        try:
            self.kernel = _dispatcher(store)
        except Exception as error:
            raise VecstoreError(f"the search cannot be compiled here: {error}") from error
        self.state = "compiled"
        return store

    def forked(self) -> None:
        """In a forked child: no thread is left that could release the locks."""
        self._lock = threading.Lock()
        # Loading takes numba's lock, which cannot be made anew: numpy answers then.
        self._hopeless = self._hopeless or (self.kernel is None and _numba_is_locked())

    def _look(self, folder: _Folder | None) -> State:
        if folder is None:
            self._hopeless = True
            return "numpy"
        # Asked first: a file that is written meanwhile must be seen.
        compiling, age = _last_attempt(folder)
        if folder.has(self.name):
            # Anything may go wrong with a numba that is not fit for this numpy.
            with contextlib.suppress(Exception):
                self.kernel = _dispatcher(_Store(self.name, folder, may_compile=False))
                return "compiled"
            folder.remove(self.name)
        if compiling:
            return "compiling"
        if self._started is not None:
            # The process takes the lock when Python and we are imported, and frees it at the end.
            if age > time.monotonic() - self._started < SECONDS_TO_START:
                return "compiling"
        elif age > SECONDS_TO_RETRY and _start_compiling():
            self._started = time.monotonic()
            return "compiling"
        self._hopeless = True
        return "numpy"


_finders = {name: Finder(name) for name in KERNELS}


def _forked() -> None:
    for finder in _finders.values():
        finder.forked()


os.register_at_fork(after_in_child=_forked)
