"""A served model behind HTTP: rows in JSON go in, probabilities in JSON come out.

`POST /predict` takes a row (an object) or a list of rows, `GET /health` says which model answers. What is wrong with a
request is a status of 4xx, with one line.
"""

import json
from typing import Any

import uvicorn
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

import fuxictr_llm
from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.serving.config import parse_json
from fuxictr_llm.serving.load import ServedModel
from fuxictr_llm.serving.rows import as_frame, row_in_words

AFFECTS_RESULTS = False  # see common/code_digest.py

BYTES_A_ROW, LEAST_BYTES = 2**14, 2**20  # a body may have so many bytes for each row that is allowed; in all, at least
SECONDS_TO_FINISH = 30  # for the requests that are being answered when the server is to end


def server_of(served: ServedModel, max_rows: int, threads: int) -> uvicorn.Server:
    """A server whose `run(sockets=[...])` ends at SIGINT and SIGTERM and raises them again then.

    Args:
        served: a model whose export has its preprocessing.
        max_rows: of a request.
        threads: predict at the same time; more requests wait.

    Raises:
        UserError: the export has no preprocessing, or it is damaged.
    """
    answers = Answers(served, max_rows, threads)
    routes = [Route("/predict", answers.predict, methods=["POST"]), Route("/health", answers.health, methods=["GET"])]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _refused, ClientDisconnect: _left, 500: _failed})
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
    )
    return uvicorn.Server(config)


class Answers:
    """What the server says; arguments as for `server_of`."""

    def __init__(self, served: ServedModel, max_rows: int, threads: int):
        self._served, self._raw, self._max_rows = served, served.raw, max_rows
        self._most_bytes = max(max_rows * BYTES_A_ROW, LEAST_BYTES)
        self._threads = CapacityLimiter(threads)
        version = fuxictr_llm.__version__
        self._model = {"model": served.config["model"], "version": version, "sha256": served.sha256}

    async def health(self, _: Request) -> Response:
        """The model, and what it asks for; never waits for a prediction."""
        asked = {"columns": self._raw.needed, "labels": self._served.labels, "max_rows": self._max_rows}
        return JSONResponse({"status": "ok", **self._model, **asked})

    async def predict(self, request: Request) -> Response:
        """The probabilities of the rows in the body, in their order."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._most_bytes:
                raise HTTPException(413, f"the body has more than {self._most_bytes:,} bytes; send fewer rows")
        try:
            return JSONResponse(await to_thread.run_sync(self._answer, bytes(body), limiter=self._threads))
        except UserError as error:
            raise HTTPException(400, str(error)) from error

    def _answer(self, body: bytes) -> dict[str, Any]:
        rows, labels = self._rows(body), self._served.labels
        if rows:
            self._raw.check_there(dict.fromkeys(name for row in rows for name in row), self._raw.needed)
        batch, counts = self._raw(as_frame(rows, self._raw.needed, self._raw.lists), row_in_words)
        columns = self._served.predict(batch).reshape(len(rows), len(labels)).T
        return {
            "probabilities": {label: of.tolist() for label, of in zip(labels, columns, strict=True)},
            "unseen_values": counts.unseen,
            "empty_cells": counts.blank,
            **self._model,
        }

    def _rows(self, body: bytes) -> list[dict[str, Any]]:
        try:
            rows = parse_json(body.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise UserError(f"the body is no JSON ({reason_of(error)})") from error
        if isinstance(rows, dict):
            return [rows]
        if not isinstance(rows, list):
            raise UserError(f"the body must be a row (an object) or a list of rows (got {json.dumps(rows)[:100]})")
        if len(rows) > self._max_rows:
            raise HTTPException(413, f"the body has {len(rows):,} rows; the limit is {self._max_rows:,} (--max-rows)")
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                raise UserError(f"{row_in_words(index)} must be an object (got {json.dumps(row)[:100]})")
        return rows


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _left(_: Request, __: Exception) -> Response:
    return Response(status_code=400)  # which nobody reads


async def _failed(_: Request, __: Exception) -> Response:
    return JSONResponse({"error": "a fault of the server, whose log says more"}, 500)
