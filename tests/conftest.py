"Shared by the tests: where the project lies, where real clips lie, and a small release."
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def javased():
    "Java-SED, 144 real clips; tests that need them skip where they are not."
    folder = PROJECT.parent / "shared" / "javased"
    if not folder.is_dir(): pytest.skip("the real clips of Java-SED are not on this machine")
    return folder


@pytest.fixture(scope="session")
def small_release(tmp_path_factory):
    "Forty clips of the demo in MER2023's layout: all four splits."
    from vat_nb.synth import plan_demo, write_demo
    plans = plan_demo(sizes=dict(train=24, test1=6, test2=4, test3=6), people=dict(train=4, test1=2, test2=1, test3=2))
    return write_demo(tmp_path_factory.mktemp("release") / "R&D videos [1]", processes=0, plans=plans)
