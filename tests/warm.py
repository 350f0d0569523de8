"""Processes that begin with the package imported: one process imports it, and is forked for each of them.

`python warm.py serve SOCKET TESTS` imports and waits. `python warm.py kernel SOCKET CONNECTION` asks it for a Jupyter
kernel, `python warm.py run SOCKET SCRIPT ...` for a script, `python warm.py run SOCKET -m MODULE ...` for a module.
Each lives as long as what it asked for and ends as that ends, so that whoever started it sees an ordinary process."""

import gc
import json
import os
import runpy
import signal
import socket
import sys
import threading
import traceback


def serve(path, tests):
    "Fork a process for each caller, until the tests are gone, of which this is the process number."
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as a kernel has it before it imports
    import ipykernel.kernelapp  # noqa: F401
    import psutil
    import torch.distributed.run  # noqa: F401
    import vat_nb.all  # noqa: F401

    gc.freeze()  # children need not look through what was imported
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries the children
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{path}.new")
        server.listen()
        os.rename(f"{path}.new", path)  # whoever sees it can connect
        server.settimeout(5)
        while psutil.pid_exists(int(tests)):
            try:
                caller, _ = server.accept()
            except TimeoutError:
                continue
            if not os.fork():
                server.close()
                become(caller)
            caller.close()


def become(caller):
    "Take folder, environment and output of the caller, do what it asks for, and tell it how that ended."
    message, files, _, _ = socket.recv_fds(caller, 1 << 20, 2)
    request = json.loads(message)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.environ.pop("JPY_PARENT_PID", None)  # or a kernel would end, since its parent is another
    for target, file in zip((1, 2), files):
        os.dup2(file, target)
    caller.send(str(os.getpid()).encode())
    threading.Thread(target=lambda: (caller.recv(1), os._exit(1)), daemon=True).start()  # the caller was killed
    code = {"kernel": be_kernel, "run": be_script}[request["kind"]](*request["arguments"])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    caller.send(bytes([code]))
    os._exit(code)


def be_kernel(connection):
    "Be a Jupyter kernel until it is told to end."
    from ipykernel.kernelapp import launch_new_instance

    sys.path[0] = ""  # as in a kernel that is started by itself
    launch_new_instance(argv=["-f", connection])
    return 0


def be_script(*command):
    "Be what `python` makes of a command; returns its exit code."
    try:
        if command[0] == "-m":
            sys.argv[:] = command[1:]
            runpy.run_module(command[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv[:] = command
            sys.path[0] = os.path.dirname(command[0])
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def ask(kind, path, *arguments):
    "Ask for a process, pass signals on to it, and end as it ends."
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        request = dict(kind=kind, arguments=arguments, folder=os.getcwd(), environment=dict(os.environ))
        socket.send_fds(server, [json.dumps(request).encode()], [1, 2])
        process = int(server.recv(32))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, lambda number, _: os.kill(process, number))
        sys.exit(code[0] if (code := server.recv(1)) else 1)


if __name__ == "__main__":
    serve(*sys.argv[2:]) if sys.argv[1] == "serve" else ask(*sys.argv[1:])
