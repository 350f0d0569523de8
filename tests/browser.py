"A notebook in JupyterLab in a real browser: opened with parameters, run, controls moved, pictures seen to change."

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
ARTEFACTS = PROJECT / "artefacts"  # screenshots to look at
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# files of up to a gigabyte can be sent, as in `make lab`
LARGE = "--ServerApp.tornado_settings={'websocket_max_message_size': 1073741824}"
PICTURES = ".jp-OutputArea img, .jupyter-widgets img"
QUIET = (
    "favicon",
    "Failed to load resource",
)  # console errors that say nothing about a notebook: answers of the server that are not 200


def find_chromium():
    "Path of the browser; skips the test where there is none."
    pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
    names = os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"
    program = next((p for n in names if n and (p := shutil.which(n))), None)
    if not program:
        pytest.skip(
            "no Chromium on this machine: install it (Debian: apt-get install chromium), or set CHROMIUM to its path"
        )
    return program


@contextmanager
def jupyterlab(root, **environment):
    "JupyterLab on the folder `root`, with this checkout's vat_nb in its kernels; gives its address and token."
    home, token, root = Path(root) / ".jupyter", secrets.token_hex(16), Path(root)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    settings = {  # cells out of sight are drawn too; no question about news; no call to a server of extensions
        "settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings": dict(windowingMode="none"),
        "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings": dict(
            fetchNews="false", checkForUpdates=False, doNotDisturbMode=True
        ),
        "config/labconfig/page_config.json": dict(
            buildCheck=False, disabledExtensions={"@jupyterlab/extensionmanager-extension": True}
        ),
    }
    for name, values in settings.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(json.dumps(values))
    folders = {f"JUPYTER_{k}_DIR": str(home / k.lower()) for k in ("CONFIG", "RUNTIME")} | {
        f"JUPYTERLAB_{k}_DIR": str(home / k.lower()) for k in ("SETTINGS", "WORKSPACES")
    }
    env = (
        {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}
        | folders
        | dict(PYTHONPATH=str(PROJECT), OMP_NUM_THREADS="1", IPYTHONDIR=str(home / "ipython"))
        | environment
    )
    command = (
        f"--no-browser --allow-root --ip=127.0.0.1 --port={port} --ServerApp.port_retries=0 "
        f"--IdentityProvider.token={token} --expose-app-in-browser"
    ).split()
    command += [
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.news_url=None",
        f"--ServerApp.root_dir={root}",
        LARGE,
    ]
    log = (root / "jupyterlab.log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", *command],
        cwd=root,
        env=env,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        for _ in range(600):
            if server.poll() is not None:
                raise RuntimeError((root / "jupyterlab.log").read_text()[-3000:])
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token={token}", timeout=2)
            except OSError:
                time.sleep(0.1)
            else:
                break
        yield f"http://127.0.0.1:{port}", token
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
        log.close()


class Notebook:
    "A notebook that is open in the browser; `page` is playwright's."

    def __init__(self, page):
        self.page, self.console = page, []
        page.on("console", lambda m: m.type == "error" and self.console.append(m.text))
        page.on("pageerror", lambda e: self.console.append(f"page error: {e}"))

    # --- running
    def start(self):
        "Run all cells, without waiting."
        self.page.evaluate("""() => {
            const context = window.jupyterapp.shell.currentWidget.sessionContext;
            window.ran = false; window.faults = [];
            context.iopubMessage.connect((_, m) => {
                window.heard = performance.now();
                if (m.header.msg_type === 'error') window.faults.push(m.content.traceback.join('\\n'));
                if (m.header.msg_type === 'stream' && /Traceback|Exception/.test(m.content.text))
                    window.faults.push(m.content.text);
            });
            window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => { window.ran = true; });
        }""")

    def run(self, timeout=120):
        "Run all cells and wait until they are done; timeout in s."
        self.start()
        return self.wait(timeout)

    def wait(self, timeout=120):
        "Wait until all cells ran and the kernel is idle."
        self.page.wait_for_function("window.ran", timeout=1000 * timeout)
        return self.idle(timeout)

    def idle(self, timeout=60):
        "Wait until the kernel has nothing to do and has been quiet for 0.3 s."
        self.page.evaluate("window.heard = performance.now()")
        self.page.wait_for_function(
            "performance.now() - window.heard > 300 && "
            "window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'",
            timeout=1000 * timeout,
        )
        return self

    def errors(self):
        "What went wrong until the kernel was idle: tracebacks of cells and of controls, and errors of the page."
        self.idle()
        shown = "nodes => nodes.map(n => n.innerText)"
        outputs = self.page.eval_on_selector_all(
            '[data-mime-type="application/vnd.jupyter.error"], .jp-OutputArea-output.jp-mod-error', shown
        )
        faults = [re.sub(r"\x1b\[[\d;]*m", "", f) for f in self.page.evaluate("window.faults || []")]
        return list(dict.fromkeys([*outputs, *faults, *(c for c in self.console if not any(q in c for q in QUIET))]))

    def not_run(self):
        "Code cells that did not run, by their first line."
        return self.page.evaluate("""() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.cells
            .filter(c => c.cell_type === 'code' && c.source.trim() && c.execution_count === null)
            .map(c => c.source.split('\\n')[0])""")

    # --- looking
    def text(self):
        "All words in the outputs."
        return "\n".join(self.page.eval_on_selector_all(".jp-Cell-outputArea", "nodes => nodes.map(n => n.innerText)"))

    def wait_text(self, words, timeout=60):
        "Wait until some words stand in the outputs."
        self.page.wait_for_function(
            "w => [...document.querySelectorAll('.jp-Cell-outputArea')].some(n => n.innerText.includes(w))",
            arg=words,
            timeout=1000 * timeout,
        )

    def sources(self, selector=PICTURES):
        "`src` of every picture that matches and has something in it."
        return self.page.eval_on_selector_all(selector, "nodes => nodes.filter(n => n.naturalWidth).map(n => n.src)")

    def wait_change(self, before, selector=PICTURES, timeout=60):
        "Wait until the pictures' `src` are not those of `before`, which `sources` gave."
        other = (
            "([selector, before]) => { "
            "const now = [...document.querySelectorAll(selector)].filter(n => n.naturalWidth).map(n => n.src); "
            "return now.length && JSON.stringify(now) !== JSON.stringify(before); }"
        )
        self.page.wait_for_function(other, arg=[selector, before], timeout=1000 * timeout)

    @contextmanager
    def changes(self, selector=PICTURES, timeout=60):
        "What is done in this `with` must give a picture another `src`; then the page is at rest. timeout in s."
        before = self.sources(selector)
        yield
        self.wait_change(before, selector, timeout)
        self.idle(timeout)
        # several keys are several drawings, and the kernel is idle between two of them
        while (now := self.sources(selector)) != before:
            before = now
            self.page.wait_for_timeout(150)
            self.idle(timeout)

    def interrupt(self):
        "Stop what runs, as the stop button does."
        self.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.interrupt()")
        self.wait()

    def screenshot(self, name, most=9000):
        "The whole notebook as artefacts/NAME.png, at most this many pixels high."
        ARTEFACTS.mkdir(exist_ok=True)
        size = self.page.viewport_size
        self.page.set_viewport_size(size | dict(height=most))
        self.page.wait_for_timeout(300)
        self.page.evaluate("document.querySelectorAll('.jp-WindowedPanel-outer').forEach(n => n.scrollTop = 0)")
        bottom = self.page.evaluate(
            "Math.max(...[...document.querySelectorAll('.jp-Notebook .jp-Cell')]"
            ".map(n => n.getBoundingClientRect().bottom))"
        )
        self.page.set_viewport_size(size | dict(height=min(max(round(bottom) + 60, size["height"]), most)))
        self.page.wait_for_timeout(300)
        self.page.screenshot(path=ARTEFACTS / f"{name}.png")
        self.page.set_viewport_size(size)
        return ARTEFACTS / f"{name}.png"

    # --- controls, named by their description
    def control(self, description, kind=".jupyter-widgets"):
        "The control with a description beside it."
        return (
            self.page.locator(kind)
            .filter(has=self.page.locator(".widget-label, .widget-label-basic", has_text=description))
            .last
        )

    def move(self, description, key="ArrowRight", times=1):
        "Move a slider with the keyboard."
        handle = self.control(description, ".widget-slider, .widget-inline-hbox").locator(".noUi-handle").first
        handle.focus()
        for _ in range(times):
            handle.press(key)

    def pick(self, description, option):
        "Choose an option of a dropdown or a list, by its words."
        self.control(description, ".widget-dropdown, .widget-select, .widget-select-multiple").locator(
            "select"
        ).select_option(label=option)

    def options(self, description):
        "The words of a dropdown's options."
        return (
            self.control(description, ".widget-dropdown, .widget-select, .widget-select-multiple")
            .locator("option")
            .all_inner_texts()
        )

    def other(self, description):
        "The words of a dropdown's first option that is not chosen."
        chosen = (
            self.control(description, ".widget-dropdown").locator("select").evaluate("n => n.selectedOptions[0].label")
        )
        return next(o for o in self.options(description) if o != chosen)

    def tick(self, description, on=True):
        "Tick a checkbox, or take the tick away."
        self.page.locator(".widget-checkbox", has_text=description).last.locator("input[type=checkbox]").set_checked(on)

    def press(self, words):
        "Press a button or a toggle button."
        self.page.locator("button.jupyter-button, .widget-toggle-button", has_text=words).last.click()

    def type(self, description, text):
        "Write into a text field and press Enter."
        field = self.control(description, ".widget-text, .widget-textarea").locator("input, textarea").first
        field.fill(text)
        field.press("Enter")

    def upload(self, *paths, words="Upload"):
        "Choose files through the browser's file chooser."
        with self.page.expect_file_chooser() as chooser:
            self.page.locator(".widget-upload", has_text=words).last.click()
        chooser.value.set_files([str(p) for p in paths])


class Lab:
    "JupyterLab that runs, and the browser to open its notebooks in."

    def __init__(self, address, token, root, chromium):
        self.address, self.token, self.root, self.chromium = address, token, Path(root), chromium

    @contextmanager
    def open(self, notebook, size=(1366, 900), **parameters):
        "Open a copy of a notebook (a path, or one read with nbformat) whose parameters are set, in the browser."
        from papermill.iorw import load_notebook_node
        from papermill.parameterize import parameterize_notebook
        from playwright.sync_api import sync_playwright
        import nbformat

        folder = self.root / secrets.token_hex(4)
        folder.mkdir()
        path = folder / (Path(notebook).name if isinstance(notebook, (str, Path)) else "notebook.ipynb")
        if path.stem == "notebook":
            nbformat.write(notebook, path)
        else:
            shutil.copy(PROJECT / notebook, path)
        if parameters:
            nbformat.write(parameterize_notebook(load_notebook_node(str(path)), parameters), path)
        with sync_playwright() as p:
            browser = p.chromium.launch_persistent_context(
                self.root / ".chromium",
                executable_path=self.chromium,
                args=FLAGS,
                headless=True,
                viewport=dict(width=size[0], height=size[1]),
            )
            opened = Notebook(browser.pages[0])
            opened.folder = folder  # where the kernel stands
            opened.page.goto(f"{self.address}/lab/tree/{folder.name}/{path.name}?reset&token={self.token}")
            opened.page.wait_for_function(
                "window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'",
                timeout=90_000,
            )
            opened.page.evaluate("window.jupyterapp.shell.collapseLeft()")
            try:
                yield opened
            finally:
                opened.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
                browser.close()


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    "JupyterLab for all browser tests: `with lab.open('nbs/alignment.ipynb', run=...) as notebook`."
    chromium, root = find_chromium(), tmp_path_factory.mktemp("lab")
    with jupyterlab(root) as (address, token):
        yield Lab(address, token, root, chromium)
