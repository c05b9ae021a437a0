"""The child process and its keeper, with the echo back end: everything here is about processes, not about models."""

import asyncio
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mesh.wire import engine_pb2
from node.config import NodeConfig
from node.engine import link as link_module
from node.engine import process as process_module
from node.engine.frames import FRAME_BYTES_MAX
from node.engine.process import EngineProcess
from node.errors import KithError
from scripts.daemons import until
from tests.node.engine.engines import PATIENCE, answer, ask, idle, running
from tests.node.engine.gguf_files import sample, write_parts

LONG = "word " * 3000
ROOT = Path(__file__).resolve().parents[3]


async def test_engine_answers_and_leaves_nothing_running() -> None:
    async with running() as watched:
        engine = watched.engine
        assert engine.state == "ready"
        assert engine.loaded is not None
        assert "echo" in engine.loaded.model
        assert engine.calibrated is not None
        assert engine.calibrated.decode_tokens_per_s == 200
        pid = engine.pid
        assert pid is not None
        text, reason, _ = await answer(engine, ask("One. Two. Three."))
        assert (text, reason) == ("One. Two.", "stop")
    assert engine.state == "stopped"
    assert not psutil.pid_exists(pid)
    assert watched.states == ["ready", "stopped"]


async def test_requests_share_the_engine() -> None:
    async with running(slots=4, echo_tokens_per_s=2000.0) as watched:
        texts = [f"Sentence number {i} is here. And its second." for i in range(12)]
        answers = await asyncio.gather(*(answer(watched.engine, ask(text)) for text in texts))
        assert [text for text, _, _ in answers] == texts


async def test_closing_the_iterator_cancels() -> None:
    async with running(echo_tokens_per_s=5.0) as watched:
        stream = watched.engine.generate(ask(LONG))
        async for event in stream:
            if event.WhichOneof("event") == "started":
                break
        await watched.until_slots_busy()
        await stream.aclose()
        assert (await idle(watched.engine)).slots_busy == 0


async def test_killed_child_fails_its_requests_and_is_replaced() -> None:
    async with running(echo_tokens_per_s=5.0) as watched:
        engine = watched.engine
        first = engine.pid
        assert first is not None
        asking = asyncio.ensure_future(answer(engine, ask(LONG)))
        while not (await engine.stats()).slots_busy:
            pass
        os.kill(first, signal.SIGKILL)
        with pytest.raises(KithError) as caught:
            await asking
        assert caught.value.code == "engine-gone"
        await watched.until(lambda: watched.states[-1] == "ready" and "restarting" in watched.states)
        assert engine.pid != first
        assert (await answer(engine, ask("Again.")))[0] == "Again."
        assert any("SIGKILL" in line for line in watched.lines)


@pytest.mark.parametrize("alone", [True, False], ids=["alone", "among others"])
async def test_a_request_hears_whether_it_was_alone_in_the_engine_that_died(alone: bool) -> None:
    async with running(slots=2, echo_tokens_per_s=5.0) as watched:
        engine = watched.engine
        assert engine.pid is not None
        asking = [asyncio.ensure_future(answer(engine, ask(f"{LONG} {number}"))) for number in range(2)]
        while (await engine.stats()).slots_busy < 2:
            pass
        if alone:
            asking.pop().cancel()
            while (await engine.stats()).slots_busy > 1:
                pass
        os.kill(engine.pid, signal.SIGKILL)
        for one in asking:
            with pytest.raises(KithError) as caught:
                await one
            assert caught.value.code == ("engine-gone" if alone else "engine-gone-shared")


async def test_frozen_child_is_killed_and_replaced() -> None:
    async with running(frozen_seconds=1.0, echo_tokens_per_s=5.0) as watched:
        first = watched.engine.pid
        assert first is not None
        asking = asyncio.ensure_future(answer(watched.engine, ask(LONG)))
        while not (await watched.engine.stats()).slots_busy:
            pass
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(KithError) as caught:
            await asking
        assert caught.value.code == "engine-gone"
        await watched.until(lambda: watched.states[-1] == "ready" and "restarting" in watched.states)
        assert not psutil.pid_exists(first)
        assert any("no progress" in line for line in watched.lines)


#: Python runs it in the child before anything else.
HANGING = """
import threading
from node.engine.echo import EchoBackend
submit = EchoBackend.submit
def hanging(self, request):
    if "hang" in str(request.command.generate.prompt):
        threading.Event().wait()
    submit(self, request)
EchoBackend.submit = hanging
"""


async def test_child_whose_worker_hangs_is_killed_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader answers, what it runs goes on, and yet no new request is ever served."""
    (tmp_path / "sitecustomize.py").write_text(HANGING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    async with running(hang_seconds=1.5, echo_tokens_per_s=60.0, slots=2) as watched:
        first = watched.engine.pid
        assert first is not None
        asking = asyncio.ensure_future(answer(watched.engine, ask(LONG)))
        await watched.until_slots_busy()
        stuck = asyncio.ensure_future(answer(watched.engine, engine_pb2.GenerateRequest(prompt="hang")))
        async with asyncio.timeout(PATIENCE):
            for task in (stuck, asking):
                with pytest.raises(KithError) as caught:
                    await task
                assert caught.value.code == "engine-gone-shared"
        await watched.until(lambda: watched.states[-1] == "ready" and "restarting" in watched.states)
        assert not psutil.pid_exists(first)
        assert any("no progress" in line for line in watched.lines)
        assert (await answer(watched.engine, ask("Again.")))[0] == "Again."


async def test_stopped_child_is_called_stalled_within_seconds_and_moves_again() -> None:
    async with running(echo_tokens_per_s=50.0) as watched:
        engine = watched.engine
        assert engine.pid is not None
        asking = asyncio.ensure_future(answer(engine, ask(LONG, max_tokens=20)))
        await watched.until_slots_busy()
        began = time.monotonic()
        os.kill(engine.pid, signal.SIGSTOP)
        await watched.until(lambda: engine.stalled)
        assert time.monotonic() - began < 4.0
        assert engine.state == "ready", "it may come back: its requests are kept"
        os.kill(engine.pid, signal.SIGCONT)
        await watched.until(lambda: not engine.stalled)
        assert (await asking)[1] == "length"
        assert watched.states == ["ready"] * 3


async def test_an_engine_that_rests_is_left_alone_until_something_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "LOOK_S", 0.001)
    monkeypatch.setattr(link_module, "REST_S", 3600.0)
    async with running(echo_tokens_per_s=5.0) as watched:
        engine = watched.engine
        for _ in range(100):  # longer than the first look takes
            await engine.stats()
        told = engine.figures
        for _ in range(100):
            await engine.stats()
        assert engine.figures is told, "nobody looked"
        asking = asyncio.ensure_future(answer(engine, ask(LONG, max_tokens=1000)))
        async with asyncio.timeout(PATIENCE):
            while not engine.figures.slots_busy:  # noqa: ASYNC110 - a look tells nobody
                await asyncio.sleep(0)
        assert engine.pid is not None
        asking.cancel()
        os.kill(engine.pid, signal.SIGKILL)
        await watched.until(lambda: "restarting" in watched.states)  # noticed at once, whether it rests or not


async def test_engine_that_keeps_dying_is_started_again_but_not_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks that kill it are no reason to do without it for ever."""
    monkeypatch.setattr(process_module, "RESTARTS_MAX", 2)
    monkeypatch.setattr(process_module, "RESTARTS_WINDOW_S", 1.0)
    monkeypatch.setattr(process_module, "BACKOFF_FIRST", 0.01)
    async with running() as watched:
        began = time.monotonic()
        for death in range(1, 6):
            assert watched.engine.pid is not None
            os.kill(watched.engine.pid, signal.SIGKILL)
            ready = watched.states.count("ready")
            await watched.until(
                lambda ready=ready: watched.engine.state == "failed" or watched.states.count("ready") > ready  # type: ignore[misc]
            )
            assert watched.engine.state == "ready", f"after {death} deaths"
        assert time.monotonic() - began > 2.0, "two restarts a second"


async def test_engine_that_does_not_come_up_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "RESTARTS_MAX", 2)
    monkeypatch.setattr(process_module, "BACKOFF_FIRST", 0.01)
    async with running() as watched:
        monkeypatch.setattr(process_module, "LOAD_SECONDS_MAX", 0.0)
        assert watched.engine.pid is not None
        os.kill(watched.engine.pid, signal.SIGKILL)
        await watched.until(lambda: watched.engine.state == "failed")
        assert "did not become ready in time; it failed 2 times in a row." in watched.engine.problem
        with pytest.raises(KithError, match="failed") as caught:
            await watched.engine.count_tokens(["x"])
        assert caught.value.code == "engine-not-ready"


async def test_an_engine_that_dies_while_no_file_can_be_opened_is_started_again_later() -> None:
    async with running() as watched:
        engine = watched.engine
        assert engine.pid is not None
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))  # what is open stays so
        try:
            os.kill(engine.pid, signal.SIGKILL)
            await watched.until(
                lambda: any("can not be started: Too many open files" in line for line in watched.lines)
            )
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await watched.until(lambda: engine.state == "ready")
        assert (await answer(engine, ask("Again.")))[0] == "Again."


async def test_a_shortage_that_lasts_does_not_end_the_engine_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """That nothing can be started says nothing of the model: six tries were over in 13 s."""
    monkeypatch.setattr(process_module, "RESTARTS_MAX", 2)
    monkeypatch.setattr(process_module, "RESTARTS_WINDOW_S", 0.05)
    monkeypatch.setattr(process_module, "BACKOFF_FIRST", 0.01)
    async with running() as watched:
        engine = watched.engine
        assert engine.pid is not None

        async def tried() -> bool:
            return sum("Too many open files" in line for line in watched.lines) >= 5 or engine.state == "failed"

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))  # what is open stays so
        try:
            os.kill(engine.pid, signal.SIGKILL)
            await until(tried, PATIENCE, "five tries")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        await watched.until(lambda: engine.state in ("ready", "failed"))
        assert (await answer(engine, ask("Again.")))[0] == "Again."


async def test_an_engine_that_dies_while_no_thread_can_be_started_is_started_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """asyncio starts one for each child; in a container whose processes are counted it may not."""
    async with running() as watched:
        engine = watched.engine
        assert engine.pid is not None
        with monkeypatch.context() as crowded:

            async def refuse(*_: object, **__: object) -> None:
                raise RuntimeError("can't start new thread")

            crowded.setattr(asyncio, "create_subprocess_exec", refuse)
            os.kill(engine.pid, signal.SIGKILL)
            await watched.until(lambda: any("can't start new thread" in line for line in watched.lines))
        await watched.until(lambda: engine.state == "ready")
        assert (await answer(engine, ask("Again.")))[0] == "Again."


async def test_unknown_engine_is_refused(tmp_path: Path) -> None:
    engine = EngineProcess(NodeConfig(data_dir=tmp_path, engine="abacus"), None, lambda _: None)
    with pytest.raises(KithError, match="no engine named 'abacus'"):
        await engine.start()
    assert engine.state == "failed"
    assert engine.pid is None


async def test_cancelled_start_leaves_nothing_running(tmp_path: Path) -> None:
    engine = EngineProcess(NodeConfig(data_dir=tmp_path, engine="echo"), None, lambda _: None)
    before = {child.pid for child in psutil.Process().children()}
    starting = asyncio.ensure_future(engine.start())
    async with asyncio.timeout(PATIENCE):
        while {child.pid for child in psutil.Process().children()} <= before:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert {child.pid for child in psutil.Process().children()} <= before
    assert engine.state == "stopped"


async def test_request_that_no_frame_holds_is_refused() -> None:
    async with running() as watched:
        with pytest.raises(KithError) as caught:
            await answer(watched.engine, ask("x" * (FRAME_BYTES_MAX + 1)))
        assert caught.value.code == "prompt-too-long"
        assert (await answer(watched.engine, ask("Still here.")))[0] == "Still here."


async def test_prompt_beyond_the_context_is_refused() -> None:
    async with running(ctx=100) as watched:
        with pytest.raises(KithError, match="holds 100") as caught:
            await answer(watched.engine, ask("word " * 100))
        assert caught.value.code == "prompt-too-long"


async def test_requests_before_start_and_after_stop_are_refused(tmp_path: Path) -> None:
    engine = EngineProcess(NodeConfig(data_dir=tmp_path, engine="echo"), None, lambda _: None)
    with pytest.raises(KithError, match="starting"):
        await engine.stats()
    await engine.start()
    await engine.stop()
    with pytest.raises(KithError, match="stopped"):
        await engine.stats()
    await engine.stop()


async def test_score_and_counts_are_the_same_on_every_node() -> None:
    request = engine_pb2.ScoreRequest(prompt="Which?", continuations=["red", "green", "dark blue"])
    async with running() as watched:
        first = await watched.engine.score(request)
        assert await watched.engine.count_tokens(["two words", "你好，世界", ""]) == [2, 5, 0]
    async with running() as watched:
        second = await watched.engine.score(request)
    assert list(first.log_probabilities) == list(second.log_probabilities)
    assert len(set(first.log_probabilities)) == 3
    assert list(first.token_counts) == [1, 1, 2]


def test_child_goes_when_its_daemon_is_killed() -> None:
    program = (
        "import asyncio\nfrom pathlib import Path\nfrom node.config import NodeConfig\n"
        "from node.engine.process import EngineProcess\n"
        "async def main():\n"
        "    engine = EngineProcess(NodeConfig(data_dir=Path('x'), engine='echo'), None, print)\n"
        "    await engine.start()\n    print(engine.pid, flush=True)\n    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=ROOT) as daemon:
        assert daemon.stdout is not None
        child = psutil.Process(int(daemon.stdout.readline()))
        daemon.kill()
        daemon.wait()
        gone, _ = psutil.wait_procs([child], timeout=PATIENCE)
        assert gone == [child]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("node.engine.process", ["numpy", "llama_cpp", "jinja2", "httpx2"]),
        ("node.engine.child", ["numpy", "grpc", "cvxpy", "rich", "typer", "asyncio", "httpx2"]),
        ("node.engine.llama_backend", ["grpc", "cvxpy", "rich", "typer", "llama_cpp", "httpx2"]),
    ],
)
def test_imports_are_light(module: str, heavy: list[str]) -> None:
    program = f"import sys, {module}\nprint(*sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []


def test_folder_named_node_is_not_imported(tmp_path: Path) -> None:
    """A daemon started in some project's folder must not run that project's code."""
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "__init__.py").write_text("raise SystemExit('wrong code')\n")
    program = (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport asyncio\nfrom pathlib import Path\n"
        "from node.config import NodeConfig\nfrom node.engine.process import EngineProcess\n"
        "async def main():\n"
        "    engine = EngineProcess(NodeConfig(data_dir=Path('x'), engine='echo'), None, print)\n"
        "    await engine.start()\n    print(engine.state)\n    await engine.stop()\n"
        "asyncio.run(main())\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment,
    )
    assert done.stdout.strip() == "ready", done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what the limits are")
async def test_the_child_has_less_than_a_program_has() -> None:
    async with running(memory_limit_bytes=3 << 30) as watched:
        child = psutil.Process(watched.engine.pid)
        assert child.rlimit(psutil.RLIMIT_CORE) == (0, 0)
        assert child.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
        assert child.rlimit(psutil.RLIMIT_NOFILE) == (512, 512)
        assert child.rlimit(psutil.RLIMIT_DATA) == (3 << 30, 3 << 30)
        told = await asyncio.to_thread(Path(f"/proc/{child.pid}/status").read_text)
        assert "NoNewPrivs:\t1" in told


def test_a_pin_of_a_model_in_several_files_says_that_it_pins_the_first_only(tmp_path: Path) -> None:
    for count in (1, 2):
        first = write_parts(sample(), tmp_path, count)[0]
        pin = hashlib.sha256(first.read_bytes()).hexdigest()
        said: list[str] = []
        EngineProcess(NodeConfig(data_dir=tmp_path, model_sha256=pin), first, said.append).check_model()
        assert said == (["model_sha256 pins only the first of the model's 2 files"] if count == 2 else [])
