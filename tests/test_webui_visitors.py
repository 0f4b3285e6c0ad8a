"""Visitors from other machines see no path of this one."""

import pytest
from fakes_webui import FakeHost, FakeJobs

from resalign.backend.errors import ResAlignError
from resalign.scripts.resalign_webui.actions import Actions
from resalign.scripts.resalign_webui.visitors import for_visitor, without_paths

TRACEBACK = 'File "/home/ann lee/venv/lib/torch/nn.py", line 3, in forward\nOSError: /mnt/x/y.bin'


@pytest.fixture
def host(tmp_path):
    return FakeHost(tmp_path, remote=True)


def test_the_hosts_own_folders_keep_what_lies_below_them(tmp_path):
    said = f"{tmp_path}/outputs/resalign/runs/a stopped after step 3"
    assert without_paths(said, FakeHost(tmp_path)) == said
    found = without_paths(said, FakeHost(tmp_path, remote=True))
    assert found == "outputs/resalign/runs/a stopped after step 3"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("/home/ann/a.safetensors does not exist", "a.safetensors does not exist"),
        ("checkpoint: /srv/m/x.safetensors: torn; /srv/y", "checkpoint: x.safetensors: torn; y"),
        ("(/home/ann/.cache/x), '/opt/my models/b.bin'", "(x), 'b.bin'"),
        (TRACEBACK, 'File "nn.py", line 3, in forward\nOSError: y.bin'),
        ("PATH=/usr/bin:/home/ann/bin", "PATH=bin:bin"),
        (r"C:\Users\Ann Lee\models\a.safetensors is gone", "a.safetensors is gone"),
        (r'File "D:\\ai\\x.py", line 1; \\server\share\b.bin.', 'File "x.py", line 1; b.bin.'),
        ("C:/Users/ann/x.bin is gone", "x.bin is gone"),
        ("file:///home/ann/x.bin", "x.bin"), ("/home/ann/folder/ is empty", "folder is empty"),
        ("/home/a/run stopped after step 3/10", "run stopped after step 3/10"),
        ("step 3/10, and/or 1 / 2, sub/name", "step 3/10, and/or 1 / 2, sub/name"),
        ("see https://github.com/a/b, or http://[::1]:7860/x", None), ("/", None), ("", None),
        ("resalign: harm/retain 0.5/2 at 10:30", None),
    ],
)  # fmt: skip
def test_a_path_is_told_by_its_last_part(host, said, shown):
    assert without_paths(said, host) == (said if shown is None else shown)


def test_a_folder_with_spaces_is_left_out_whole(host, tmp_path):
    folder = tmp_path.parent / f"{tmp_path.name} of ann"
    folder.mkdir()
    assert without_paths(f"{folder}/x.bin is 1/2 read", host) == "x.bin is 1/2 read"


def test_the_panel_of_a_failed_job_tells_no_path(host, tmp_path):
    """Its log and its traceback name the worker's files."""
    jobs = FakeJobs(steps=1, pause=0)
    state = {
        "job": "resume", "kind": "resume", "status": "failed", "revision": 1, "message": "x",
        "error": {"kind": "bug", "message": "/home/ann/a.bin is torn", "traceback": TRACEBACK},
        "log": ["worker: /home/ann/venv/bin/python"], "result": {"warnings": ["/home/ann/w"]},
        "request": {"run_folder": "/home/ann/runs/mine"},
        "pictures": [{"url": "data:image/png;base64,/9j/AAAA/BBBB", "caption": "step 1"}],
    }  # fmt: skip
    jobs._state = state
    (shown, over), *_ = Actions(host, jobs, lambda *names: "").follow()
    assert over and "/home" not in shown and "ann" not in shown and "/mnt" not in shown
    assert "Last output of the worker" in shown and "nn.py" in shown
    assert "base64,/9j/AAAA/BBBB" in shown and "</div>" in shown
    host.is_remote = False
    (shown, _), *_ = Actions(host, jobs, lambda *names: "").follow()
    assert "/home/ann/a.bin is torn" in shown and for_visitor(state, host) is state


def test_the_output_of_the_environments_button_tells_no_path(host, monkeypatch):
    monkeypatch.setattr(host, "build_worker", lambda: iter(["Making it in /home/ann/ext/.env."]))
    host.problem = "No job can run yet: /home/ann/python is gone."
    actions = Actions(host, FakeJobs(), lambda *names: "")
    said = "".join([*actions.build_worker(), actions.missing()])
    assert "Making it in .env." in said and "python is gone" in said and "/home" not in said


def test_a_refusal_tells_no_path(host):
    def start(request):
        raise ResAlignError("/home/ann/venv/bin/python does not start")

    jobs = FakeJobs()
    jobs.start = start
    said = Actions(host, jobs, lambda *names: "").harden({"checkpoint": "ResAlign demo"})
    assert "python does not start" in said and "/home" not in said
    said = Actions(host, jobs, lambda *names: "").describe("/home/ann/x.safetensors")
    assert "/home" not in said
