"""A handle does not survive a fork: the child hears of it, and the parent notices nothing."""

import textwrap

import pytest

# The child runs `child()`; its exit code and the parent's later life are looked at.
FRAME = """
    import gc, os, signal, sys, threading, warnings
    import numpy as np
    import vecstore
    from vecstore import ClosedError
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    path = sys.argv[1]
    db = vecstore.open(path)
    points = db.collection("points", dim=2)
    points.add(vectors=[[1, 0], [0, 1]], ids=["a", "b"])
    signal.alarm(30)

    def refused(work):
        try:
            work()
        except ClosedError as error:
            assert "fork" in str(error), error
        else:
            raise AssertionError("it worked")

    def fork(child):
        pid = os.fork()
        if pid == 0:
            signal.alarm(20)
            code = 1
            try:
                child()
                code = 0
            except BaseException:
                import traceback
                traceback.print_exc()
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0

"""


@pytest.fixture
def forked(run_python, path):
    def run(program):
        return run_python(textwrap.dedent(FRAME) + textwrap.dedent(program), path)

    return run


def test_every_use_in_the_child_is_refused_with_a_clear_error(forked):
    forked("""
        view = db.snapshot()
        scan = points.scan()
        def child():
            assert db.closed
            for work in (
                lambda: points.count(),
                lambda: points.search([1, 0]),
                lambda: points.add(vectors=[1, 1]),
                lambda: points.get("a"),
                lambda: next(scan),
                lambda: points.stats(),
                lambda: db.collections(),
                lambda: db.collection("points"),
                lambda: db.stats(),
                lambda: db.check(),
                lambda: db.sync(),
                lambda: db.compact(),
                lambda: db.backup(path + ".copy"),
                lambda: db.snapshot(),
                lambda: db.transaction().__enter__(),
                lambda: view.collections(),
                lambda: view.collection("points"),
            ):
                refused(work)
            view.close()
            db.close()
            repr(db)
        fork(child)
        view.close()
        assert points.count() == 2
        assert db.check() == []
        db.close()
    """)


def test_the_child_can_open_the_file_again(forked):
    forked("""
        def child():
            with vecstore.open(path) as mine:
                there = mine.collection("points")
                there.add(vectors=[1, 1], ids=["c"])
                assert there.count() == 3
                assert mine.check() == []
        fork(child)
        assert points.count() == 3
        assert db.check() == []
        db.close()
    """)


def test_the_child_can_open_the_file_again_beside_an_open_snapshot(forked):
    forked("""
        def child():
            mine = vecstore.open(path)
            there = mine.collection("points")
            global db, points, view
            del db, points, view
            gc.collect()
            for i in range(20):
                there.upsert(vectors=[[1, i]], ids=["a"])
            mine.close()
        with db.snapshot() as view:
            before = view.collection("points").get("a", include=("vector",)).vector.tolist()
            fork(child)
            for i in range(20):
                points.upsert(vectors=[[2, i]], ids=["b"])
            # The pages of the snapshot were not used again, whatever the child gave up.
            found = view.collection("points").get("a", include=("vector",)).vector.tolist()
            assert found == before == [1, 0], found
            assert db._store._env.readers().count(str(os.getpid())) == 1
        assert db.check() == []
        db.close()
    """)


def test_what_the_child_forgets_stays_with_the_parent(forked):
    forked("""
        view = db.snapshot()
        def child():
            global db, points, view
            del db, points, view
            gc.collect()
        fork(child)
        assert view.collection("points").count() == 2
        assert db._store._env.readers().count(str(os.getpid())) == 1
        view.close()
        assert points.count() == 2
        db.close()
    """)


def test_a_fork_inside_a_transaction_leaves_the_transaction_to_the_parent(forked):
    forked("""
        def child():
            refused(points.count)
            refused(lambda: points.add(vectors=[1, 1]))
        with db.transaction():
            points.add(vectors=[1, 1], ids=["c"])
            fork(child)
            points.add(vectors=[1, 1], ids=["d"])
        assert points.count() == 4
        assert db.check() == []
        db.close()
    """)


def test_a_child_that_leaves_the_transaction_does_not_commit_it(forked):
    forked("""
        try:
            with db.transaction():
                points.add(vectors=[1, 1], ids=["c"])
                pid = os.fork()
                if pid == 0:
                    points = None
                else:
                    assert os.waitpid(pid, 0)[1] == 0
                    assert points.count() == 3
        except ClosedError:
            assert pid == 0
            os._exit(0)
        assert pid, "the child committed"
        assert points.count() == 3
        assert db.check() == []
        db.close()
    """)


def test_a_child_forked_while_other_threads_write_and_read_ends_normally(forked):
    forked("""
        stop = threading.Event()
        def write():
            n = 0
            while not stop.is_set():
                points.upsert(vectors=[[1, n]], ids=["c"])
                n += 1
        def read():
            while not stop.is_set():
                with db.snapshot() as view:
                    view.collection("points").search([1, 0])
        threads = [threading.Thread(target=work) for work in (write, write, read, read)]
        for thread in threads:
            thread.start()
        for i in range(6):
            pid = os.fork()
            if pid == 0:
                signal.alarm(20)
                refused(points.count)
                refused(lambda: points.add(vectors=[1, 1]))
                with vecstore.open(path) as mine:
                    assert mine.collection("points").count() >= 2
                del points, db
                gc.collect()
                # Not os._exit: the interpreter is taken down, and every object with it.
                stop.set()
                threading._shutdown = lambda: None
                sys.exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        for thread in threads:
            thread.join()
        assert points.count() == 3
        assert db.check() == []
        db.close()
    """)


def test_a_child_of_a_child_can_open_the_file_too(forked):
    forked("""
        def child():
            mine = vecstore.open(path)
            def grandchild():
                assert mine.closed
                with vecstore.open(path) as its:
                    assert its.collection("points").count() == 2
            fork(grandchild)
            assert mine.collection("points").count() == 2
            mine.close()
        fork(child)
        assert points.count() == 2
        db.close()
    """)


def test_the_child_does_not_keep_the_parent_from_compacting(forked):
    forked("""
        ready, go = os.pipe(), os.pipe()
        pid = os.fork()
        if pid == 0:
            os.write(ready[1], b"x")
            os.read(go[0], 1)
            os._exit(0)
        os.read(ready[0], 1)
        db.compact()
        assert points.count() == 2
        os.write(go[1], b"x")
        assert os.waitpid(pid, 0)[1] == 0
        db.close()
    """)


def test_the_child_does_not_keep_the_right_to_write(forked):
    forked("""
        ready, go = os.pipe(), os.pipe()
        with db.transaction():
            points.add(vectors=[1, 1], ids=["c"])
            pid = os.fork()
            if pid == 0:
                os.write(ready[1], b"x")
                os.read(go[0], 1)
                os._exit(0)
            os.read(ready[0], 1)
        points.add(vectors=[1, 1], ids=["d"], timeout=0)
        db.close()
        again = vecstore.open(path, timeout=0)
        again.collection("points").add(vectors=[1, 1], ids=["e"])
        again.close()
        os.write(go[1], b"x")
        assert os.waitpid(pid, 0)[1] == 0
    """)


def test_a_database_in_memory_does_not_survive_a_fork_either(forked):
    forked("""
        memory = vecstore.open(":memory:")
        kept = memory.collection("points", dim=2)
        kept.add(vectors=[1, 0])
        def child():
            refused(kept.count)
            memory.close()
            with vecstore.open(":memory:") as mine:
                assert mine.collections() == []
        fork(child)
        assert kept.count() == 1
        memory.close()
        db.close()
    """)


INDEXED = """
        from vecstore.ann import compiled
        lists = db.collection("lists", dim=8, index="ivf")
        vectors = np.random.default_rng(1).normal(size=(900, 8))
        lists.add(vectors=vectors[:600], ids=range(600))

        def answers(collection):
            found = collection.search_many(vectors[600:640], 5, threads=2)
            assert found[0].plan.method == "index"
            single = collection.search(vectors[600], 5)
            assert single == found[0]
            return [(hits.ids, hits.scores.tolist()) for hits in found]
"""


@pytest.mark.parametrize("engine", ["numpy", "compiled"])
def test_the_child_searches_through_an_index_and_changes_it(forked, engine):
    forked(
        INDEXED
        + f"        engine = {engine!r}"
        + """
        if engine == "compiled":
            compiled.compile_now()
        else:
            compiled.ready = lambda name: None
        before = answers(lists)
        def child():
            refused(lambda: lists.search(vectors[600]))
            refused(lambda: lists.search_many(vectors[600:640], 5, threads=2))
            with vecstore.open(path) as mine:
                there = mine.collection("lists")
                assert answers(there) == before
                there.add(vectors=vectors[600:], ids=range(600, 900))
                there.reindex("hash")
                answers(there)
                there.reindex("ivf")
                answers(there)
                assert mine.check() == []
        with db.snapshot() as view:
            fork(child)
            # The index as it was, with its lists gone from the newest version.
            assert answers(view.collection("lists")) == before
        assert lists.count() == 900
        assert lists.search(vectors[700], 5).ids[0] == 700
        answers(lists)
        assert db.check() == []
        db.close()
    """
    )


def test_a_child_forked_while_threads_search_and_change_an_index_ends_normally(forked, monkeypatch):
    # OpenBLAS survives no fork in the middle of a product that its threads share.
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    forked(
        INDEXED
        + """
        # Not while a thread loads it: numba's lock would be left to the child.
        compiled.compile_now()
        stop = threading.Event()
        def change():
            while not stop.is_set():
                lists.reindex("hash")
                lists.upsert(vectors=vectors[600:], ids=range(300))
                lists.reindex("ivf")
        def search():
            while not stop.is_set():
                lists.search_many(vectors[:20], 5, threads=2)
        threads = [threading.Thread(target=work) for work in (change, search, search)]
        for thread in threads:
            thread.start()
        def child():
            refused(lambda: lists.search(vectors[0]))
            with vecstore.open(path) as mine:
                for hits in mine.collection("lists").search_many(vectors[:20], 5, threads=2):
                    assert len(hits) == len(set(hits.ids)) == 5
        for i in range(4):
            fork(child)
        stop.set()
        for thread in threads:
            thread.join()
        answers(lists)
        assert db.check() == []
        db.close()
    """
    )


def test_a_child_makes_ids_though_a_thread_of_its_parent_was_at_it(forked):
    forked("""
        from vecstore import batches
        held, done = threading.Event(), threading.Event()
        def hold():
            with batches._last_id_lock:
                held.set()
                done.wait()
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        def child():
            with vecstore.open(path) as mine:
                mine.collection("points").add(vectors=[1, 1])
        fork(child)
        done.set()
        thread.join()
        assert points.count() == 3
        db.close()
    """)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_multiprocessing_open_the_file_themselves(run_python, path, tmp_path, method):
    program = tmp_path / "program.py"
    program.write_text("""
import multiprocessing, sys, warnings
warnings.filterwarnings("ignore", category=DeprecationWarning)
import vecstore

def work(number):
    with vecstore.open(sys.argv[1]) as mine:
        mine.collection("points").add(vectors=[1, number + 1], ids=[number])
        return mine.collection("points").get(number).id

if __name__ == "__main__":
    db = vecstore.open(sys.argv[1])
    db.collection("points", dim=2)
    with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
        assert pool.map(work, range(6)) == list(range(6))
        pool.close()
        pool.join()
    assert db.collection("points").count() == 6
    assert db.check() == []
    db.close()
""")
    run_python(f"import runpy; runpy.run_path({str(program)!r}, run_name='__main__')", path, method)


def test_a_child_forked_while_a_thread_compiles_searches_its_index(forked):
    """Nobody frees numba's lock in the child."""
    forked("""
        from numba.core.compiler_lock import global_compiler_lock
        from vecstore import maintenance
        maintenance.AUTO_ROWS, maintenance.AUTO_BYTES = 300, 1
        vectors = np.random.default_rng(1).normal(size=(600, 8))
        db.collection("indexed", dim=8).add(vectors=vectors)
        held, end = threading.Event(), threading.Event()

        def hold():
            with global_compiler_lock:
                held.set()
                end.wait()

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()

        def child():
            with vecstore.open(path) as mine:
                found = mine.collection("indexed").explain(vectors[7])
                assert (found.hits[0].id, found.method, found.answered_by) == (
                    found.hits.ids[0], "index", "numpy"
                )
        fork(child)
        end.set()
        thread.join()
        db.close()
    """)
