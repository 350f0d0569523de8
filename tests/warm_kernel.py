"""Kernels that begin with the package imported: one process imports it, and is forked for each notebook.

`python warm_kernel.py serve SOCKET` imports and waits. `python warm_kernel.py start SOCKET CONNECTION` asks it for a
kernel and lives as long as that does, so that Jupyter sees an ordinary kernel."""

import json
import os
import signal
import socket
import sys
import threading


def serve(path):
    "Fork a kernel for each caller, until the tests that started this process are gone."
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # as a kernel has it before it imports
    import ipykernel.kernelapp
    import vat_nb.all  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system buries the children
    tests = os.getppid()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        server.settimeout(5)
        while os.getppid() == tests:
            try:
                caller, _ = server.accept()
            except TimeoutError:
                continue
            if not os.fork():
                server.close()
                become_kernel(caller, ipykernel.kernelapp.launch_new_instance)
            caller.close()


def become_kernel(caller, launch):
    "Take folder, environment and output of the caller, and be a kernel until it ends."
    message, files, _, _ = socket.recv_fds(caller, 1 << 20, 2)
    asked = json.loads(message)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.environ.pop("JPY_PARENT_PID", None)  # or the kernel would end, since its parent is another
    for target, file in zip((1, 2), files):
        os.dup2(file, target)
    sys.path[0] = ""  # as in a kernel that is started by itself
    caller.send(str(os.getpid()).encode())
    threading.Thread(target=lambda: (caller.recv(1), os._exit(1)), daemon=True).start()  # Jupyter killed the caller
    launch(argv=["-f", asked["connection"]])
    os._exit(0)


def start(path, connection):
    "Ask for a kernel, pass signals on to it, and end when it ends."
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(path)
        asked = dict(connection=connection, folder=os.getcwd(), environment=dict(os.environ))
        socket.send_fds(server, [json.dumps(asked).encode()], [1, 2])
        kernel = int(server.recv(32))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(kernel, number))
        server.recv(1)


if __name__ == "__main__":
    {"serve": serve, "start": start}[sys.argv[1]](*sys.argv[2:])
