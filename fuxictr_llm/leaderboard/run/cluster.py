"""A Ray cluster that a leaderboard may use: joined or started, and each of its nodes checked."""

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import OTHER_CACHE, cache_dir, writable_dir
from fuxictr_llm.common.runs import versions
from fuxictr_llm.leaderboard.run.jobs import CODE
from fuxictr_llm.leaderboard.run.node import CACHE_VARIABLE, variables

SECONDS_TO_ANSWER = 10.0  # of a cluster's head
# What begins a connection of gRPC, which Ray's head speaks: the preface of HTTP/2 and a frame of no settings. The
# answer begins with a frame of settings: its length (3 bytes), its type, ... (RFC 9113, 3.4 and 4.1)
PREFACE, TYPE_AT, SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), 3, 4
SECONDS_TO_START = 300.0  # of a worker on each node, which imports torch
PACKAGES = ("fuxictr-llm", "fuxictr", "torch")  # those that decide results
AUTO = "auto"


def connect(address: str) -> None:
    """Join the cluster at an address, or with `auto` that of this machine, which is started where there is none.

    A process that is connected stays so.

    Raises:
        UserError: nobody answers there, or one of another version.
    """
    import ray

    if ray.is_initialized():
        return
    if address != AUTO:
        _check_answers(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == AUTO:
            ray.init(include_dashboard=False, **options)
        else:
            ray.init(address, **options)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"--ray {address}: {reason_of(error)}") from error


def _check_answers(address: str) -> None:
    """Check that something like Ray's head does; Ray itself tries for minutes, and may end the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise UserError(f"--ray {address}: give auto, or HOST:PORT of the cluster's head, as 10.0.0.1:6379")
    try:
        connection = socket.create_connection((host, int(port)), timeout=SECONDS_TO_ANSWER)
    except (OSError, OverflowError) as error:
        raise UserError(f"--ray {address}: nobody answers there ({error}); is the cluster up?") from error
    answer, with_tls = b"", os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
    with connection, contextlib.suppress(OSError):  # it hangs up, or says nothing
        connection.sendall(PREFACE)
        answer = connection.recv(TYPE_AT + 1)
    if answer[TYPE_AT:] != bytes([SETTINGS]) and not with_tls:
        raise UserError(f"--ray {address}: what answers there is no Ray; give its head's port, often 6379")


def live_nodes() -> list[Mapping[str, Any]]:
    """The nodes of the cluster, as Ray describes them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def name_of(node: Mapping[str, Any]) -> str:
    """What messages call a node; several may have one address."""
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def check_nodes() -> bool:
    """Check that each node has what this machine has; whether all use this machine's cache.

    Raises:
        UserError: a node does not answer, or has no or another fuxictr-llm, fuxictr or torch.
    """
    import ray

    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    with NamedTemporaryFile(dir=writable_dir(cache_dir() / "locks", OTHER_CACHE), prefix="ray-") as mark:
        probe, nodes = ray.remote(_probe()), live_nodes()
        asked = [
            probe.options(num_cpus=0, scheduling_strategy=strategy(node["NodeID"], soft=False)).remote(
                Path(mark.name).name, variables().get(CACHE_VARIABLE), PACKAGES
            )
            for node in nodes
        ]
        try:
            answers = ray.get(asked, timeout=SECONDS_TO_START)
        except ray.exceptions.RayError as error:
            raise UserError(f"a node of the Ray cluster does not answer: {reason_of(error)}") from error
    for node, facts in zip(nodes, answers, strict=True):
        check_facts(name_of(node), facts)
    return all(facts["uses_cache"] for facts in answers)


def check_facts(node: str, facts: Mapping[str, Any]) -> None:
    """Check what a node says of itself.

    Raises:
        UserError: it has no or another fuxictr-llm, fuxictr or torch.
    """
    same = "; install the same on all nodes"
    if error := facts.get("error"):
        raise UserError(f"the Ray node {node} cannot import fuxictr_llm: {error}{same}")
    own = versions()
    for name in PACKAGES:
        if facts["versions"].get(name) != own.get(name):
            raise UserError(f"the Ray node {node} has {name} {facts['versions'].get(name)}, not {own.get(name)}{same}")
    if facts["code"] != CODE:
        raise UserError(f"the Ray node {node} has other code of fuxictr-llm {own['fuxictr-llm']}{same}")


def _probe() -> Callable[..., dict[str, Any]]:
    """A function that Ray sends as it is, for a node without the package to say so."""

    def facts_of_node(mark: str, given_cache: str | None, packages: tuple[str, ...]) -> dict[str, Any]:
        from pathlib import Path

        try:
            from fuxictr_llm.common.files import cache_dir
            from fuxictr_llm.common.runs import versions
            from fuxictr_llm.leaderboard.run.jobs import CODE
        except ImportError as error:
            return {"error": str(error)}
        found = {name: version for name, version in versions().items() if name in packages}
        cache = Path(given_cache) if given_cache else cache_dir()
        return {"versions": found, "code": CODE, "uses_cache": (cache / "locks" / mark).exists()}

    return facts_of_node
