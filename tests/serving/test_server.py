"""`serve`: every request gets its own answer, and what is wrong is one line with a status of 4xx."""

import http.client
import json
import logging
import os
import shlex
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import polars as pl
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import fuxictr_llm
from fuxictr_llm.__main__ import main
from fuxictr_llm.commands.serve import listening
from fuxictr_llm.common.files import digest_of_file
from fuxictr_llm.serving.load import load_model
from fuxictr_llm.serving.server import server_of
from support import edit, flip_a_byte

REQUESTS, THREADS = int(os.environ.get("SERVE_REQUESTS", "500")), 8
ROW = {"color": "red", "city": "Oslo", "user": "7", "tags": "new^hot"}
LIMIT = 50


@contextmanager
def running(served, threads=4):
    """The port of a server, and the server, which has ended when the block has."""
    listener = listening("127.0.0.1", 0)
    server = server_of(served, LIMIT, threads)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


def ask(port, body, path="/predict", method="POST", to=None):
    """Status and answer; `to` is a connection that goes on."""
    connection = to or http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body))
    response = connection.getresponse()
    status, answer = response.status, json.loads(response.read())
    if to is None:
        connection.close()
    return status, answer


def test_many_requests_over_eight_threads_get_their_own_answers(shop):
    served, rows = load_model("served"), pl.read_csv("raw/test.csv", infer_schema=False).to_dicts()
    asked = [rows[start : start + 1 + start % 5] for start in range(60)]
    expected = [served.predict_raw(part).tolist() for part in asked]
    assert len({tuple(answer) for answer in expected}) > 50

    def of_thread(thread, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
        places = [place % len(asked) for place in range(thread, REQUESTS, THREADS)]
        wrong = [place for place in places if not is_right(ask(port, asked[place], to=connection), place)]
        connection.close()
        return len(places), wrong

    def is_right(answer, place):
        return answer[0] == 200 and answer[1]["probabilities"]["click"] == expected[place]

    with running(served) as (port, _), ThreadPoolExecutor(THREADS) as pool:
        done = list(pool.map(of_thread, range(THREADS), [port] * THREADS))
    assert sum(count for count, _ in done) == REQUESTS and not [wrong for _, wrong in done if wrong]


def test_an_answer_says_what_was_unusual_and_which_model_it_is(shop):
    served = load_model("served")
    with running(served) as (port, _):
        status, health = ask(port, None, "/health", "GET")
        assert (
            status == 200 and health["status"] == "ok" and health["columns"] == [*ROW] and health["labels"] == ["click"]
        )
        for body in (ROW, [ROW], {**ROW, "tags": ["new", "hot"], "more": {"a": [1]}}):
            assert ask(port, body)[1]["probabilities"] == {"click": served.predict_raw(ROW).tolist()}
        assert ask(port, {**ROW, "tags": []})[1]["empty_cells"] == {"tags": 1}
        rows = [{**ROW, "city": "Paris", "tags": "new^cold^old"}, {"color": None, "city": "", "user": 7}]
        answer = ask(port, rows)[1]
        assert ask(port, [])[1]["probabilities"] == {"click": []}
    assert answer == {
        "probabilities": {"click": served.predict_raw(rows).tolist()},
        "unseen_values": {"city": 1, "tags": 1},
        "empty_cells": {"color": 1, "city": 1, "tags": 1},
        "model": "DeepFM",
        "version": fuxictr_llm.__version__,
        "sha256": digest_of_file("served/config.json"),
    }


BAD = {
    "no JSON": (b"{rows", 400, "the body is no JSON (Expecting property name"),
    "nothing": (b"", 400, "the body is no JSON (Expecting value"),
    "no text": (b"\xff\xfe", 400, "the body is no JSON ('utf-8' codec"),
    "nested": (b"[" * 100_000, 400, "the body is no JSON (maximum recursion depth"),
    "NaN": (b'{"color": NaN}', 400, "the body is no JSON (it has NaN, which is no number)"),
    "twice": (b'{"color": "red", "color": "blue"}', 400, "the body is no JSON (it has 'color' twice)"),
    "half a sign": (json.dumps({**ROW, "color": "\ud800"}).encode(), 400, "column 'color'"),
    "a number": (3, 400, "the body must be a row (an object) or a list of rows (got 3)"),
    "list of no row": ([ROW, "red"], 400, 'row 2 must be an object (got "red")'),
    "missing column": ({"colour": "red", "city": "", "user": "", "tags": ""}, 400, "no column 'color'; did you mean 'colour'?"),
    "list": ({**ROW, "color": ["red"]}, 400, "column 'color' holds lists, and is of single values"),
    "object": ({**ROW, "user": {"id": 7}}, 400, "column 'user' holds values of type Struct"),
    "mixed": ([ROW, {**ROW, "user": [7]}], 400, "column 'user' holds values of several types"),
    "mixed objects": ([ROW, {**ROW, "tags": {"a": 1}}], 400, "column 'tags' holds values of several types"),
    "list of objects": ({**ROW, "tags": [{"a": 1}]}, 400, "column 'tags'"),
    "list of lists": ({**ROW, "tags": [["new"]]}, 400, "column 'tags'"),
    "too many": ([ROW] * (LIMIT + 1), 413, "the body has 51 rows; the limit is 50 (--max-rows)"),
    "too long": (b" " * (2**20 + 1), 413, "the body has more than 1,048,576 bytes; send fewer rows"),
}  # fmt: skip


def test_bad_input_is_a_status_and_one_line(shop, caplog):
    found = {}
    with running(load_model("served")) as (port, _):
        for case, (body, _, _) in BAD.items():
            found[case] = ask(port, body)
        assert ask(port, None, "/predict", "GET") == (405, {"error": "Method Not Allowed"})
        assert ask(port, ROW, "/other") == (404, {"error": "Not Found"})
        with socket.create_connection(("127.0.0.1", port)) as leaving:
            leaving.sendall(b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n[")
        assert ask(port, ROW)[0] == 200
    for case, (_, status, message) in BAD.items():
        assert found[case][0] == status and message in found[case][1]["error"], (case, found[case])
        assert "\n" not in found[case][1]["error"] and len(found[case][1]["error"]) < 300
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def held(shop, monkeypatch):
    """A model whose predictions wait until an event is set; with it a semaphore, released when one begins."""
    served, let, begun = load_model("served"), threading.Event(), threading.Semaphore(0)
    predict = served.predict

    def wait(batch):
        begun.release()
        assert let.wait(60)
        return predict(batch)

    monkeypatch.setattr(served, "predict", wait)
    yield served, let, begun
    let.set()


def test_health_answers_while_all_threads_predict(held):
    served, let, begun = held
    with running(served, threads=2) as (port, _), ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(ask, port, ROW) for _ in range(3)]
        assert begun.acquire(timeout=60) and begun.acquire(timeout=60)
        assert ask(port, None, "/health", "GET")[0] == 200
        assert not begun.acquire(timeout=0.2)  # the third request waits for a thread
        let.set()
        assert [answer.result(60)[0] for answer in answers] == [200] * 3


def test_a_server_that_is_to_end_finishes_its_answers(held):
    served, let, begun = held
    with running(served) as (port, server), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, port, ROW)
        assert begun.acquire(timeout=60)
        server.should_exit = True
        let.set()
        assert answer.result(60)[0] == 200


def test_the_requests_that_the_page_shows(shop):
    page = (Path(fuxictr_llm.__file__).parent / "serving" / "README.md").read_text(encoding="utf-8")
    shown = [shlex.split(line) for line in page.splitlines() if line.startswith("curl ")]
    with running(load_model("served")) as (port, _):
        for _, url, *data in shown:
            path = url.removeprefix("localhost:8000")
            status, answer = ask(port, data[1].encode() if data else None, path, "POST" if data else "GET")
            assert status == 200 and answer["model"] == "DeepFM"
            if data and data[1].startswith("["):
                assert answer["unseen_values"] == {"city": 1} and answer["empty_cells"] == {
                    "city": 1,
                    "user": 1,
                    "tags": 1,
                }
    assert len(shown) == 3


def free_port():
    with listening("127.0.0.1", 0) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_a_signal(shop, capsys, sent):
    _, run = shop
    port = free_port()

    def client():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        for _ in range(600):
            with suppress(ConnectionRefusedError):
                connection.connect()
                break
            time.sleep(0.1)  # until the command listens
        connection.request("GET", "/health")
        status = connection.getresponse().status
        os.kill(os.getpid(), sent)  # which the server handles now
        return status

    with ThreadPoolExecutor(1) as pool:
        status = pool.submit(client)
        assert main(["serve", "--model", run if sent == signal.SIGINT else "served", "--port", str(port)]) == 0
        assert status.result(60) == 200
    printed = capsys.readouterr()
    assert printed.out == f"serving DeepFM at http://127.0.0.1:{port}; Ctrl-C ends it\n" and not printed.err


def without_preprocessing():
    shutil.rmtree("served")
    shutil.copytree(Path(__file__).parents[1] / "saved" / "exported", "served")


BAD_STARTS = {
    "port": (["--port", "70000"], None, "--port 70000 is not between 0 (any that is free) and 65535"),
    "host": (
        ["--host", "192.0.2.1"],
        None,
        "--host '192.0.2.1' is no address of this machine (Cannot assign requested address)\n",
    ),
    "name": (["--host", "ä" * 70], None, f"--host '{'ä' * 70}' is no name of a machine"),
    "no host": (["--host", ""], None, "--host is empty"),
    "rows": (["--max-rows", "0"], None, "--max-rows 0 is less than 1"),
    "threads": (["--threads", "0"], None, "--threads 0 is less than 1"),
    "weights": ([], lambda: flip_a_byte("served/model.safetensors"), "is not the file that was exported"),
    "vocabularies": ([], lambda: flip_a_byte("served/vocabularies.parquet"), "is not the file that was exported"),
    "newer": ([], lambda: edit("served/config.json", '"format": 1', '"format": 2'), "has format 2, this version reads"),
    "earlier": ([], without_preprocessing, "by an earlier version, without preprocessing"),
    "no export": ([], lambda: shutil.rmtree("served"), "unknown run 'served'"),
}


@pytest.mark.parametrize("case", BAD_STARTS)
def test_a_server_that_cannot_start_is_one_line(shop, capsys, case):
    words, damage, message = BAD_STARTS[case]
    if damage:
        damage()
    assert main(["serve", "--model", "served", "--port", "0", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_a_port_in_use_is_one_line(capsys):
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert main(["serve", "--model", "served", "--port", str(port)]) == 2
    assert (
        capsys.readouterr().err
        == f"error: --port {port} of 127.0.0.1 is in use; choose another (0: any that is free)\n"
    )


def test_without_the_extra_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve", "--model", "served"]) == 2
    assert "serve needs starlette, uvicorn: pip install 'fuxictr-llm[serve]'" in capsys.readouterr().err
