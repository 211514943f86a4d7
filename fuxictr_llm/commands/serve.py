"""`serve`: a trained model behind HTTP."""

import argparse
import contextlib
import errno
import importlib.util
import socket

from fuxictr_llm.commands import Commands, add_served_model, default_jobs, new_command, served_model_of
from fuxictr_llm.common.errors import UserError, reason_of

NEEDED = ("starlette", "uvicorn")


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "answer raw rows over HTTP: JSON in, probabilities out"
    parser = new_command(commands, "serve", execute, text)
    add_served_model(parser)
    text = "address to listen on (default: 127.0.0.1, for this machine alone); whoever reaches it is answered"
    parser.add_argument("--host", default="127.0.0.1", help=text)
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: 8000)")
    parser.add_argument("--max-rows", type=int, default=1000, metavar="N", help="of a request (default: 1000)")
    text = "how many requests are answered at the same time (default: one a core, at most 8)"
    parser.add_argument("--threads", type=int, metavar="N", help=text)


def execute(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C or SIGTERM; requests that are being answered then are finished."""
    threads = default_jobs() if args.threads is None else args.threads
    for name, value in (("--max-rows", args.max_rows), ("--threads", threads)):
        if value < 1:
            raise UserError(f"{name} {value} is less than 1")
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"serve needs {', '.join(missing)}: pip install 'fuxictr-llm[serve]'")
    # Clients can connect from now on, and are answered once the model is loaded.
    with listening(args.host, args.port) as listener, served_model_of(args) as served:
        from fuxictr_llm.serving.server import server_of

        server = server_of(served, args.max_rows, threads)
        host, port = listener.getsockname()[:2]
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        print(f"serving {served.config['model']} at http://{where}; Ctrl-C ends it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended by it, in its own way
            server.run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """A socket to which clients can connect.

    Raises:
        UserError: the port is in use, this user may not have it, or the host is no address of this machine.
    """
    if not 0 <= port < 2**16:
        raise UserError(f"--port {port} is not between 0 (any that is free) and {2**16 - 1}")
    if not host:  # which would be all addresses
        raise UserError("--host is empty; give 127.0.0.1 for this machine alone, 0.0.0.0 for all of its addresses")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port} of {host} is in use; choose another (0: any that is free)") from error
        if error.errno == errno.EACCES:
            raise UserError(f"--port {port} is not for this user; choose one above 1023") from error
        why = (error.strerror or reason_of(error)).partition(" (while attempting")[0]
        raise UserError(f"--host {host!r} is no address of this machine ({why})") from error
    except (UnicodeError, TypeError) as error:  # of letters that no name has
        raise UserError(f"--host {host!r} is no name of a machine ({reason_of(error)})") from error
